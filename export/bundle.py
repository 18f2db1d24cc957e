"""A stage to encoder files that may leave: converted, compared on the device's own code path, carded, written whole."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from edge.encoder import Encoder as DeviceEncoder
from export import parity, waivers
from export.half import to_fp16
from export.parity import Parity
from export.quantize import to_int8
from export.to_onnx import to_onnx
from lineside import __version__, features, onnx_metadata, release
from lineside.errors import ConfigError, ReleaseError
from lineside.files import sha256, sync_folder
from lineside.targets import PRECISIONS
from trainer import checkpoint
from trainer.attach import must_pass
from trainer.attached import Attached
from trainer.checkpoint import Stage
from trainer.encoders import Encoder
from trainer.evaluate import embed
from trainer.progress import Progress, silent

TOLERANCE = {"fp32": 1e-4, "fp16": 1e-3, "int8": 1e-3}
MARGIN = 4.0
DOMAIN = "org.lineside"
IMAGE = {  # ONNX, MetadataProps.md
    "Image.BitmapPixelFormat": "Rgb8",
    "Image.ColorSpaceGamma": "SRGB",
    "Image.NominalPixelRange": "NominalRange_0_255",
}


class Built(msgspec.Struct, frozen=True):
    """One encoder file that left."""

    file: str
    modality: str
    version: int
    precision: str
    bytes: int
    sha256: str
    parity: Parity
    tolerance: float
    int8_layers: str = "none"
    cut: float = 0.0


def build(
    folder: Path,
    out: Path,
    version: int = 0,
    precisions: Sequence[str] = PRECISIONS,
    modalities: Sequence[str] = (),
    progress: Progress = silent,
    head: Path | None = None,
    like: Sequence[Path] = (),
) -> list[Built]:
    """Export a stage's encoders (all, or `modalities`) into `out`, under their `file_name`.

    Version 0 means the stage's number. With a `head`, only the sensor that it attaches, in the space of its base.
    `like` are older INT8 files, each for its modality, whose scales the new ones keep. Raises ConfigError for one that
    is none of ours or of another encoder than adapters stand on, GateError for a stage or head with a failed gate that
    nobody waived (of a stage, beside older ones too), and for a file that fails parity, of which nothing stays.
    """
    stage = checkpoint.load_stage(folder)
    stage = msgspec.structs.replace(stage, certificate=waivers.certificate(folder, stage))
    known = Attached.load(head, stage) if head else None
    chosen = list(modalities) or ([known.about.newcomer] if known else sorted(stage.prepare))
    if unknown := [name for name in chosen if name not in stage.prepare]:
        raise ConfigError(
            "--modality", f"{stage.name} has no {unknown[0]}", f"choose {', '.join(sorted(stage.prepare))}"
        )
    tensors = checkpoint.load_tensors(folder, stage)
    if known:
        tensors.encoders[known.about.newcomer] = known.encoder(tensors.encoders[known.about.newcomer])
    identities = checkpoint.identities(stage, tensors.encoders)
    if known and head:
        stage = _in_base(known, head, chosen, stage, identities[known.about.newcomer])
    older = dict(_older(path, stage) for path in like)
    built = []
    for modality in chosen:
        windows = tensors.calibration[modality].numpy()
        encoder = tensors.encoders[modality].eval()
        fp32 = to_onnx(encoder, stage.prepare[modality])
        golden = embed(encoder, parity.golden_inputs(stage.prepare[modality]))
        for precision in precisions:
            model, told = in_precision(fp32, precision, windows, older.get(modality))
            card = card_of(stage, modality, identities[modality], version or stage.stage, precision, golden)
            built.append(msgspec.structs.replace(_leave(model, encoder, card, windows, out), **told))
            progress("encoder files", len(built), len(chosen) * len(precisions))
    return built


def in_precision(
    fp32: onnx.ModelProto, precision: str, windows: NDArray[np.generic], like: onnx.ModelProto | None = None
) -> tuple[onnx.ModelProto, dict[str, str | float]]:
    """An fp32 encoder in another precision, and what is to be told of its quantisation (fields of Built)."""
    if precision == "int8":
        found = to_int8(fp32, windows, like)
        return found.model, {"int8_layers": found.layers, "cut": found.cut}
    return (to_fp16(fp32) if precision == "fp16" else fp32), {}


def _older(path: Path, stage: Stage) -> tuple[str, onnx.ModelProto]:
    """Modality and graph of an INT8 file of ours; beside adapters, of the encoder that they stand on."""
    mend = "give an encoder that `lineside export build` wrote in INT8"
    try:
        data = path.read_bytes()
        card = release.from_metadata(onnx_metadata.read(data, path.name), path.name)
    except (OSError, ReleaseError) as error:
        raise ConfigError("--like", f"{path} cannot be read ({error})", mend) from error
    if card.precision != "int8":
        raise ConfigError("--like", f"{path} is of {card.precision}", mend)
    adapters = stage.adapters.get(card.modality)
    if adapters and adapters.base not in (card.encoder, card.base):
        told = f"{path} is encoder {card.encoder}, and the adapters of {stage.name} stand on {adapters.base}"
        raise ConfigError("--like", told, "give the INT8 file of that encoder, or one with adapters on it")
    return card.modality, onnx.load_from_string(data)


def _in_base(known: Attached, head: Path, chosen: Sequence[str], stage: Stage, identity: str) -> Stage:
    """What the leaf's stage says of an attached sensor: the base's space, the gates of both, and the base's encoders
    as those that it was measured beside. Raises GateError."""
    if chosen != [known.about.newcomer]:
        told = f"the head attaches {known.about.newcomer} alone"
        raise ConfigError("--modality", told, "leave it out, or export the others without --head")
    must_pass(known.about, head)
    gates = [*stage.certificate.gates, *known.about.gates]
    mixes = [{**known.about.base_encoders, known.about.newcomer: identity}]
    both = msgspec.structs.replace(stage.certificate, gates=gates, mixes=mixes)
    return msgspec.structs.replace(stage, space=known.about.space, certificate=both)


def file_name(modality: str, version: int, precision: str) -> str:
    """Name of an encoder file.

    >>> file_name("camera", 3, "fp32"), file_name("camera", 3, "int8")
    ('camera-3.onnx', 'camera-3.int8.onnx')
    """
    return f"{modality}-{version}.onnx" if precision == "fp32" else f"{modality}-{version}.{precision}.onnx"


def _leave(
    model: onnx.ModelProto, encoder: Encoder, card: release.Card, windows: NDArray[np.generic], out: Path
) -> Built:
    """Try one encoder file under a hidden name beside its place; it gets its name only when parity holds."""
    out.mkdir(parents=True, exist_ok=True)
    name = file_name(card.modality, card.version, card.precision)
    with tempfile.TemporaryDirectory(dir=out, prefix=f".{name}.") as hidden:
        path = Path(hidden) / name
        write(path, model, card)
        device = DeviceEncoder.load(path)
        found = parity.compare(encoder, device, windows)
        gate = parity.gate(card.precision, found)
        parity.must_pass(name, gate)
        proven = msgspec.structs.replace(card.certificate, gates=[*card.certificate.gates, gate])
        card = msgspec.structs.replace(card, certificate=proven)
        if card.precision != "fp32":
            card = _measured(card, path, device)
        write(path, model, card)
        release.self_test(card, DeviceEncoder.load(path).embed)
        data = path.read_bytes()
        os.replace(path, out / name)
    sync_folder(out)
    about = card.modality, card.version, card.precision
    return Built(str(out / name), *about, len(data), sha256(data), found, card.tolerance)


def card_of(
    stage: Stage, modality: str, identity: str, version: int, precision: str, outputs: NDArray[np.float32]
) -> release.Card:
    """What the file says of itself; `outputs` (n, dim) are the embeddings of the golden windows."""
    spec = stage.prepare[modality]
    inputs, expected = release.pack_golden(features.golden_windows(spec), outputs)
    return release.Card(
        modality=modality,
        version=version,
        space=stage.space,
        encoder=identity,
        dim=outputs.shape[1],
        precision=precision,
        prepare=features.to_json(spec),
        prepare_sha256=features.fingerprint(spec),
        stage=stage.name,
        golden_inputs=inputs,
        golden_outputs=expected,
        tolerance=TOLERANCE[precision],
        certificate=stage.certificate,
        window_s=stage.windows.length_s,
        base=stage.adapters[modality].base if modality in stage.adapters else "",
    )


def _measured(card: release.Card, path: Path, device: DeviceEncoder) -> release.Card:
    """The card of an encoder that is not fp32: it must give its own embeddings again, on whatever runtime.

    How far honest runtimes may differ is measured between integer kernels and the same graph run node by node.
    """
    golden = parity.golden_inputs(device.spec)
    own, other = device.embed(golden), parity.unoptimised(path, golden)
    cosines = (own * other).sum(axis=1) / np.linalg.norm(own, axis=1) / np.linalg.norm(other, axis=1)
    tolerance = max(card.tolerance, MARGIN * float(1 - cosines.min()))
    _, expected = release.pack_golden(features.golden_windows(device.spec), own)
    return msgspec.structs.replace(card, golden_outputs=expected, tolerance=tolerance)


def write(path: Path, model: onnx.ModelProto, card: release.Card) -> None:
    """Write a model with its card and the standard metadata (ONNX IR, MetadataProps)."""
    model.producer_name, model.producer_version = "lineside", __version__
    model.domain, model.model_version = DOMAIN, card.version
    model.doc_string = f"{card.name}: {card.modality} encoder of {card.stage}, {card.precision}, space {card.space}"
    metadata = release.to_metadata(card)
    if card.modality == "camera":
        metadata |= IMAGE
        model.graph.input[0].type.denotation = "IMAGE"
    model.ClearField("metadata_props")
    onnx.helper.set_model_props(model, metadata)
    path.write_bytes(model.SerializeToString(deterministic=True))

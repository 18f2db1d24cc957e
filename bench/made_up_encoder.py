"""Encoder files that are published and fetched but never run: a valid card, and random weights of a chosen size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from lineside import features, release

SPECS: dict[str, features.Prepare] = {
    "camera": features.CameraPrepare(frames=1, height=8, width=8),
    "microphone": features.MicrophonePrepare(samples=2048),
}
DIM = 8


def write(folder: Path, modality: str, version: int, kilobytes: int) -> Path:
    """One encoder of any modality and version; all of them are certified beside each other."""
    made = card(SPECS[modality], version, np.ones((len(features.golden_windows(SPECS[modality])), DIM), np.float32))
    model = _model(np.random.default_rng(version).normal(size=kilobytes * 256).astype(np.float32))
    helper.set_model_props(model, release.to_metadata(made))
    path = folder / f"{made.name}.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def card(
    spec: features.Prepare,
    version: int,
    outputs: NDArray[np.float32],
    *,
    space: str = "made up",
    encoder: str = "made up",
    precision: str = "fp32",
    stage: str = "none",
    tolerance: float = 1e-2,
    gates: Sequence[release.Gate] = (),
    mixes: Sequence[Mapping[str, str]] = (),
) -> release.Card:
    """The card of an encoder that no stage made; `outputs` (n, dim) is what it makes of the golden windows.

    It is certified beside every encoder of the same identity, of any modality, unless `mixes` says otherwise.
    """
    inputs, expected = release.pack_golden(features.golden_windows(spec, len(outputs)), outputs)
    beside = [dict(mix) for mix in mixes] or [dict.fromkeys(("camera", "microphone", "series"), encoder)]
    return release.Card(
        modality=features.modality(spec),
        version=version,
        space=space,
        encoder=encoder,
        dim=outputs.shape[1],
        precision=precision,
        prepare=features.to_json(spec),
        prepare_sha256=features.fingerprint(spec),
        stage=stage,
        golden_inputs=inputs,
        golden_outputs=expected,
        tolerance=tolerance,
        certificate=release.Certificate(
            stage=1, parent="", embedding_drift={}, similarity_drift={}, gates=list(gates), mixes=beside
        ),
    )


def _model(weights: np.ndarray) -> onnx.ModelProto:
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [weights.size]) for name in ("window", "embedding")
    ]
    add = helper.make_node("Add", ["window", "weights"], ["embedding"])
    graph = helper.make_graph([add], "made up", values[:1], values[1:], [numpy_helper.from_array(weights, "weights")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)

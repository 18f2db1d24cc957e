"""The commands of `lineside export`."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from lineside.cli import guarded
from lineside.clock import SystemClock

app = typer.Typer(help="Turn a trained stage into verified ONNX bundles.", no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON line.")]


class Precision(str, Enum):
    """What to write."""

    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"
    all = "all"


@app.command()
def build(
    stage: Annotated[Path, typer.Argument(metavar="STAGE_DIR", help="The folder of a finished stage.")],
    out: Annotated[Path, typer.Option(help="Where the encoder files go.")],
    version: Annotated[int, typer.Option(min=0, help="Version of the files; 0: the stage's number.")] = 0,
    precision: Annotated[Precision, typer.Option(help="One precision, or all.")] = Precision.all,
    modality: Annotated[list[str] | None, typer.Option(help="Only this modality; may be given more than once.")] = None,
    head: Annotated[Path | None, typer.Option(help="Head of a sensor attached to another stage's space.")] = None,
    like: Annotated[
        list[Path] | None,
        typer.Option(help="INT8 file in the field whose scales stay; several times."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a stage's encoders as ONNX files that passed parity on the device's code path. Exit 6 when one did not.

    Nothing leaves while a gate of the stage has failed, or one beside an older stage that it was certified against;
    `lineside export waive` is how somebody answers for one.

    Example: lineside export build stage-2 --out encoders

    With --head, the attached sensor's encoder in the space of its base; the stage is its leaf. With --like, most bytes
    of an INT8 file stay those of an older one: devices then fetch the small delta that `lineside deploy publish` makes.
    """
    from export.bundle import build as build_files
    from lineside.targets import PRECISIONS
    from trainer.progress import Bar

    precisions = PRECISIONS if precision is Precision.all else (precision.value,)
    with Bar() as bar:
        built = build_files(stage, out, version, precisions, modality or (), bar, head, like or ())
    if as_json:
        print(json.dumps({"files": msgspec.to_builtins(built)}))
        return
    for one in built:
        told = f"difference {one.parity.max_difference:.1e}, cosine {one.parity.mean_cosine:.5f}"
        print(
            f"{one.file}  {one.bytes / 1024:.0f} KiB  {told}  over {one.parity.windows} windows  int8 {one.int8_layers}"
        )


@app.command()
def waive(
    stage: Annotated[Path, typer.Argument(metavar="STAGE_DIR", help="The folder of a finished stage.")],
    gate: Annotated[str, typer.Option(help="The failed gate, by its whole name.")],
    reason: Annotated[str, typer.Option(help="Why it may be passed over; every device keeps it.")],
    by: Annotated[str, typer.Option(help="Who answers for it.")],
    key: Annotated[Path, typer.Option(help="The plant's offline targets key.")] = Path("keys/targets.pem"),
    as_json: Json = False,
) -> None:
    """Pass over one failed gate of a stage: signed, kept beside it, and told by every encoder file.

    Example: lineside export waive stage-2 --gate "embedding drift camera" --reason "product A has ended" --by "K. Sato"
    """
    from export.waivers import waive as sign

    signed = sign(stage, gate, reason, by, key, SystemClock())
    if as_json:
        print(json.dumps(msgspec.to_builtins(signed)))
        return
    print(f"{signed.stage}: `{signed.gate}` ({signed.value:.4g}, limit {signed.limit:.4g}) waived by {signed.by}")


@app.command()
def labels(
    stage: Annotated[Path, typer.Argument(metavar="STAGE_DIR", help="The folder of a finished stage.")],
    normal: Annotated[Path, typer.Option(help="Normal running of the station, as a device is commissioned.")],
    labelled: Annotated[Path, typer.Option(help="The folder that `lineside hub labels` names.")],
    version: Annotated[int, typer.Option(min=0, help="Version of the encoders; 0: the stage's number.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Also write it to this file: the hub looks for repository/labels/VERSION.json.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Which labelled alarms a stage would raise again, by the device's own pipeline and the thresholds of each alarm.

    Example: lineside export labels stage-2 --normal line.mcap --labelled plant/labelled
    """
    from export.again import replay
    from lineside.errors import ConfigError
    from lineside.files import write_atomic
    from trainer import checkpoint
    from trainer.progress import Bar

    number = version or checkpoint.load_stage(stage).certificate.stage
    if out is not None and out.name != f"{number}.json":
        raise ConfigError(str(out), "is no name that a hub looks for", f"name it {out.with_name(f'{number}.json')}")
    with Bar() as bar:
        found = replay(stage, number, normal, labelled, SystemClock().now_ns(), bar)
    if out is not None:
        write_atomic(out, msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    if as_json:
        print(msgspec.json.encode(found).decode())
        return
    for each in found.alarms:
        told = {True: "raised again", False: "no longer raised", None: each.why}[each.raised]
        print(f"{each.key}  {f'real: {each.kind}' if each.real else 'not real'}  {told}")
    print(found.told)


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE.onnx", help="An encoder file.")], as_json: Json = False
) -> None:
    """Read an encoder's card, run its self-test as a device does, and time it. Exit 5 when it is refused.

    Example: lineside export verify encoders/camera-2.onnx
    """
    result = _verified(file)
    if as_json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name}: {value}")


@app.command()
def bench(
    stage: Annotated[Path, typer.Argument(metavar="STAGE_DIR", help="The folder of a finished stage.")],
    recording: Annotated[Path, typer.Option(help="Normal running that no stage learned from.")],
    out: Annotated[Path | None, typer.Option(help="Write the table there too, as Markdown.")] = None,
    as_json: Json = False,
) -> None:
    """Measure every precision of a stage's encoders: size, time on one thread, parity, retrieval, AUROC. Exit 6 when a
    file fails its gate.

    Example: lineside export bench stage-2 --recording day-3.mcap --out precisions.md
    """
    from export.bench import bench as measure
    from export.bench import table
    from lineside.files import write_atomic
    from trainer.progress import Bar

    with Bar() as bar:
        rows = measure(stage, recording, SystemClock(), bar)
    if out is not None:
        write_atomic(out, (table(rows) + "\n").encode())
    print(json.dumps({"encoders": msgspec.to_builtins(rows)}) if as_json else table(rows))


def _verified(file: Path) -> dict[str, Any]:
    from edge.encoder import Encoder
    from export.bundle import file_name
    from export.parity import latency_ms
    from lineside import release
    from lineside.errors import ReleaseError
    from lineside.files import sha256

    if not file.is_file():
        raise ReleaseError("file", str(file), "there is no such file", "export it with `lineside export build`")
    encoder, clock = Encoder.load(file), SystemClock()
    card = encoder.card
    release.accept(card, {})
    worst = release.self_test(card, encoder.embed)
    result = {
        "name": card.name,
        "precision": card.precision,
        "stage": card.stage,
        "space": card.space,
        "dim": card.dim,
        "prepare": json.loads(card.prepare),
        "encoder": card.encoder,
        "adapters_on": card.base or "none",
        "certified_with": card.certificate.mixes,
        "waivers": msgspec.to_builtins(card.certificate.waivers),
        "gates": [{**msgspec.to_builtins(gate), "passed": gate.passed} for gate in card.certificate.gates],
        "embedding_drift": card.certificate.embedding_drift,
        "self_test": {"worst": worst, "tolerance": card.tolerance},
        "provider": encoder.provider,
        "bytes": file.stat().st_size,
        "sha256": sha256(file.read_bytes()),
        "latency_ms": round(latency_ms(encoder, clock), 4),
    }
    other = file.with_name(file_name(card.modality, card.version, "int8" if card.precision == "fp32" else "fp32"))
    if other.is_file():
        times = {card.precision: result["latency_ms"]}
        twin = Encoder.load(other)
        times[twin.card.precision] = latency_ms(twin, clock)
        smaller = "int8" if card.precision == "fp32" else card.precision
        result[f"{smaller}_over_fp32"] = round(times[smaller] / times["fp32"], 3)
    return result


if __name__ == "__main__":
    guarded(app)

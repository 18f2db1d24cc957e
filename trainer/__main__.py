"""The commands of `lineside train`."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from lineside.cli import guarded
from lineside.clock import NS, SystemClock

if TYPE_CHECKING:
    from lineside.features import Prepare
    from lineside.release import Certificate, Gate
    from trainer.checkpoint import Stage
    from trainer.compatibility import Compatibility, Interval
    from trainer.encoders import Encoder
    from trainer.evaluate import Measured
    from trainer.plan import RecordingPart

# Threads that wait for each other by spinning make training five times slower on a machine that does anything else.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

app = typer.Typer(help="Learn encoders stage by stage from recordings.", no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON line.")]
Folder = Annotated[Path, typer.Argument(metavar="STAGE_DIR", help="The folder of a finished stage.")]


@app.command()
def stage(
    plan: Annotated[Path, typer.Argument(metavar="PLAN.toml", help="The plan of the stage.")], as_json: Json = False
) -> None:
    """Train one stage by its plan, or go on where it stopped. Exit 6 when a gate fails.

    Example: lineside train stage plan.toml

    On several GPUs, or several machines, start it with torchrun: torchrun --nproc-per-node 2 -m trainer stage plan.toml

    A plan can be this short:

        out = "stage-1"

        [[recordings]]

        path = "line.mcap"
    """
    from lineside import config
    from trainer.checkpoint import must_pass
    from trainer.plan import Plan, place
    from trainer.processes import joined
    from trainer.progress import Bar, silent, unheard
    from trainer.stage import run_stage

    wanted, base, clock = config.load(plan, Plan), plan.resolve().parent, SystemClock()
    began = clock.now_ns()
    heard: list[str] = []

    def tell(warning: str) -> None:
        if warning not in heard:
            heard.append(warning)
            print(f"lineside: warning: {warning}", file=sys.stderr)

    with joined() as world, Bar() as bar:
        speak = (bar, tell) if world.first else (silent, unheard)
        done = run_stage(wanted, base, clock, speak[0], world=world, tell=speak[1])
    assert done is not None  # no step limit was given
    if not world.first:
        return
    folder = place(wanted.out, base)
    for warning in done.warnings:
        tell(warning)
    _say(as_json, {"folder": str(folder), "seconds": round((clock.now_ns() - began) / NS, 1), **_summary(done)})
    must_pass(done, folder)


@app.command()
def features(
    recording: Annotated[Path, typer.Argument(metavar="RECORDING.mcap", help="The recording.")],
    backbone: Annotated[
        list[str], typer.Option(metavar="MODALITY=MODEL.onnx", help="A frozen network for a modality; several times.")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE.safetensors", help="The feature file.")],
    plan: Annotated[Path | None, typer.Option(help="Plan whose [windows] and [[prepare]] hold.")] = None,
    as_json: Json = False,
) -> None:
    """Let frozen backbones see a recording once: a stage then trains heads on the feature file.

    Example: lineside train features line.mcap --backbone camera=dino.onnx --out line.safetensors

    A plan names the file among its [[recordings]]; modalities without a backbone are left out.
    """
    from lineside import config
    from lineside.errors import ConfigError
    from lineside.features import modality
    from trainer import feature_files
    from trainer.backbones import featured
    from trainer.plan import Plan, WindowSettings
    from trainer.progress import Bar

    if out.suffix != feature_files.SUFFIX:
        raise ConfigError("--out", f"{out.name} is no feature file's name", f"let it end in {feature_files.SUFFIX}")
    backbones = dict(each.partition("=")[::2] for each in backbone)
    for name, model in backbones.items():
        if not model:
            raise ConfigError("--backbone", f"{name!r} names no model", "write it as camera=model.onnx")
    wanted = config.load(plan, Plan) if plan else None
    windows = wanted.windows if wanted else WindowSettings()
    prepare = {modality(spec): spec for spec in (wanted.prepare if wanted else [])}
    with Bar() as bar:
        made = featured(recording, {name: Path(model) for name, model in backbones.items()}, windows, prepare, bar)
        feature_files.write(out, made)
    about = {name: [int(each.present.sum()), each.features.shape[1]] for name, each in made.sensors.items()}
    _say(as_json, {"file": str(out), "moments": len(made.start_ns), "windows_and_width": about})


@app.command()
def nightly(
    config: Annotated[Path, typer.Option("--config", help="The file of the loop.")] = Path("nightly.toml"),
    again: Annotated[bool, typer.Option("--again", help="Take up the last night that ended with an error.")] = False,
    as_json: Json = False,
) -> None:
    """Learn from what is new: find it, train, certify, export, release, report. What was cut goes on where it was.

    Exit 6 when a gate failed, else that of the command that ended the night; 0 too where there was nothing to do.

    Example: lineside train nightly --config nightly.toml
    """
    from lineside import config as toml
    from trainer.children import call
    from trainer.desk import Desk
    from trainer.night_plan import NightPlan
    from trainer.night_report import headline, report
    from trainer.nightly import run

    desk = Desk(toml.load(config, NightPlan), config.resolve().parent, call, SystemClock(), _journal)
    night = run(desk, report, again)
    about: dict[str, Any] = {"night": night.name, "outcome": night.outcome or "open", "stage": night.version}
    written = desk.folder / "reports" / f"{night.name}.md"
    _say(as_json, {**about, "said": headline(night), "report": str(written), "modalities": night.modalities})
    if night.code:
        raise SystemExit(night.code if night.code > 0 else 1)


@app.command()
def install(
    config: Annotated[Path | None, typer.Option("--config", help="The file of the loop.")] = None,
    root: Annotated[Path, typer.Option(help="Prepare the image under this folder; nothing is started.")] = Path("/"),
    executable: Annotated[str, typer.Option(help="The `lineside` that the service runs (default: this one).")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite what was edited.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Take service and timer away; stages stay.")] = False,
    purge: Annotated[bool, typer.Option("--purge", help="With --remove: stages and reports go too.")] = False,
    as_json: Json = False,
) -> None:
    """Run the nightly loop by a timer: user, units, the loop's file and its plan.

    Example: sudo /opt/lineside/bin/lineside train install --config nightly.toml

    Example: sudo /opt/lineside/bin/lineside train install --remove
    """
    from lineside import config as toml
    from lineside.parts import TRAIN, Own, Put
    from lineside.placing import Asked, carry_out
    from lineside.plant import PlantConfig
    from trainer.install import wanted
    from trainer.night_plan import NightPlan

    if remove == (config is not None) or (purge and not remove):
        raise typer.BadParameter("give either --config or --remove; --purge goes with --remove")

    def here(executable: str, systemd: int) -> tuple[list[Put], list[Own]]:
        assert config is not None
        plan = toml.load(config, NightPlan)
        broker = toml.load(root / plan.plant.lstrip("/"), PlantConfig).broker.name if plan.plant else ""
        return wanted(plan, config.resolve(), broker, executable, systemd)

    changes = carry_out(TRAIN, None if remove else here, Asked(root, executable, dry_run, force, purge))
    print(msgspec.json.encode(changes).decode() if as_json else "\n".join(changes.told) or "all is as it should be")


def _journal(line: str) -> None:
    print(f"lineside: {line}", file=sys.stderr, flush=True)


@app.command()
def attach(
    plan: Annotated[Path, typer.Argument(metavar="PLAN.toml", help="The plan of the attachment.")],
    as_json: Json = False,
) -> None:
    """Attach a kind of sensor that was never recorded together with the base's. Exit 6 when a gate fails.

    Example: lineside train attach attach.toml

    A plan can be this short (overlap: the one modality that both stages know):

        out = "microphone.safetensors"

        base = "camera-pump"

        leaf = "microphone-pump"

        newcomer = "microphone"

        overlaps = [{ path = "pump.mcap" }]

        newcomers = [{ path = "sound.mcap" }]

        partners = [{ path = "pictures.mcap" }]

    To detach, delete the file.
    """
    from lineside import config
    from trainer.attach import must_pass, run_attach
    from trainer.attach_plan import AttachPlan
    from trainer.plan import place
    from trainer.progress import Bar

    wanted, base = config.load(plan, AttachPlan), plan.resolve().parent
    with Bar() as bar:
        about = run_attach(wanted, base, bar)
    out = place(wanted.out, base)
    told = msgspec.to_builtins(about)
    measured, gates = told.pop("measured"), [_gate(gate) for gate in about.gates]
    found = [
        {"way": way, "score": name, **one} for way, rows in measured.pop("rows").items() for name, one in rows.items()
    ]
    shares = [{"score": name, **one} for name, one in measured.pop("of_bound").items()]
    _say(as_json, {"file": str(out), **told, **measured, "found": found, "of_bound": shares, "gates": gates})
    must_pass(about, out)


@app.command()
def bench(
    batch: Annotated[int, typer.Option(min=2, help="Pairs in a batch.")] = 64,
    dim: Annotated[int, typer.Option(min=256, help="Inputs and outputs of a head.")] = 512,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the CPU.")] = 1,
    encoders: Annotated[bool, typer.Option(help="Measure whole encoders and teachers, not heads alone.")] = False,
    exact: Annotated[bool, typer.Option(help="Measure how exactly old embeddings stay, not time.")] = False,
    device: Annotated[str, typer.Option(help="With --encoders: cpu or cuda.")] = "cpu",
    precision: Annotated[str, typer.Option(help="With --encoders: float32 or bfloat16.")] = "float32",
    as_json: Json = False,
) -> None:
    """Measure what protection and teachers cost: steps with and without them, interleaved in one run.

    Example: lineside train bench --encoders --batch 32
    """
    import torch

    from lineside.errors import ConfigError
    from trainer.bench import measure, measure_encoders
    from trainer.exactness import measure_exactness

    if device not in ("cpu", "cuda") or precision not in ("float32", "bfloat16"):
        raise ConfigError("bench", f"there is no {device} or no {precision}", "see --help")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device", "no CUDA device is to be had here", "leave it out, or install a CUDA build")
    torch.set_num_threads(threads)
    about: dict[str, Any] = {} if exact else {"batch": batch, "threads": threads}
    found: dict[str, Any]
    if exact:
        found = measure_exactness()
    elif encoders:
        found = measure_encoders(SystemClock(), torch.device(device), batch, precision=precision)
        about |= {"device": torch.cuda.get_device_name() if device == "cuda" else "cpu", "precision": precision}
    else:
        found = measure(SystemClock(), dim, batch)
        about |= {"dim": dim}
    _say(as_json, {**about, **found})


@app.command()
def compare(
    benchmark: Annotated[str, typer.Option(help="av-digits, skab or fan.")],
    out: Annotated[Path, typer.Option(help="Folder for the runs, the table (Markdown) and the plot.")],
    data: Annotated[Path, typer.Option(help="Folder of the benchmarks' data.")] = Path("../shared/data/dev"),
    methods: Annotated[str, typer.Option(help="Methods, with `;` between; all if empty.")] = "",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 1 to this.")] = 5,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs a stage.")] = 4,
    split: Annotated[str, typer.Option(help="test, or val to choose settings on.")] = "test",
    as_json: Json = False,
) -> None:
    """Compare ways of learning stage by stage on real data. What is there already is not run again.

    Example: lineside train compare --benchmark skab --out compare --seeds 2
    """
    from lineside.errors import ConfigError
    from trainer import report
    from trainer.benchmarks import BENCHMARKS
    from trainer.compare import compare as run_all
    from trainer.methods import METHODS
    from trainer.progress import Bar

    chosen = [name.strip() for name in methods.split(";") if name.strip()] or list(METHODS)
    for what, name, known in [("benchmark", benchmark, BENCHMARKS), *(("methods", name, METHODS) for name in chosen)]:
        if name not in known:
            raise ConfigError(f"--{what}", f"there is no {name!r}", f"choose of: {'; '.join(known)}")
    if split not in ("val", "test"):
        raise ConfigError("--split", f"there is no {split!r}", "choose val or test")
    with Bar() as bar:
        runs = run_all(data, benchmark, chosen, range(1, seeds + 1), split, epochs, out / "runs", bar)
    command = f"lineside train compare --benchmark {benchmark} --seeds {seeds} --epochs {epochs} --split {split}"
    files = report.write(runs, out, benchmark, command)
    _say(as_json, {"tables": {name: report.rows(found) for name, found in report.by_benchmark(runs).items()}, **files})


@app.command()
def register(
    plan: Annotated[Path, typer.Argument(metavar="PLAN.toml", help="What to learn, and the registry's folder.")],
    as_json: Json = False,
) -> None:
    """Train, calibrate and measure a stand-alone classifier of each modality: what may enter fusion.

    Example: lineside train register register.toml
    """
    from lineside import config
    from trainer.adapt import run_register
    from trainer.adapt_plan import RegisterPlan
    from trainer.plan import place
    from trainer.progress import Bar

    wanted, base = config.load(plan, RegisterPlan), plan.resolve().parent
    with Bar() as bar:
        made = run_register(wanted, base, bar)
    _say(as_json, {"registry": str(place(wanted.registry, base)), "entries": _by_name(made, "modality")})


@app.command()
def adapt(
    plan: Annotated[Path, typer.Argument(metavar="PLAN.toml", help="The plan of the fusion.")], as_json: Json = False
) -> None:
    """Fuse registered models, keeping each one's strength: UME, UMT, MMLoRA. Exit 6 when a gate fails.

    Example: lineside train adapt adapt.toml
    """
    from lineside import config
    from trainer import fused
    from trainer.adapt import run_adapt
    from trainer.adapt_plan import AdaptPlan
    from trainer.plan import place
    from trainer.progress import Bar

    wanted, base = config.load(plan, AdaptPlan), plan.resolve().parent
    with Bar() as bar:
        done = run_adapt(wanted, base, bar)
    found, folder = done.result, place(wanted.out, base)
    for warning in found.warnings:
        print(f"lineside: warning: {warning}", file=sys.stderr)
    built = msgspec.to_builtins(found)
    named = {
        "retention": _by_name(found.retention, "sensor"),
        "contributions": [{"sensor": name, **told} for name, told in found.contributions.items()],
        "gates": [_gate(gate) for gate in found.gates],
    }
    _say(as_json, {"folder": str(folder), "passed": found.passed, **built, **named})
    fused.must_pass(done, folder)


@app.command()
def evaluate(
    folder: Folder,
    recording: Annotated[Path, typer.Option(help="The MCAP recording to measure on.")],
    head: Annotated[Path | None, typer.Option(help="Head of a sensor attached to this stage.")] = None,
    leaf: Annotated[Path | None, typer.Option(help="With --head: the stage that knows that sensor.")] = None,
    as_json: Json = False,
) -> None:
    """Measure on a recording how often picture and sound of one moment find each other.

    Example: lineside train evaluate stage-1 --recording line.mcap
    """
    import numpy as np

    from trainer import checkpoint
    from trainer.data import read
    from trainer.evaluate import measure
    from trainer.plan import RecordingPart
    from trainer.progress import Bar

    known = checkpoint.load_stage(folder)
    encoders, prepare = checkpoint.load_tensors(folder, known).encoders, known.prepare
    if head is not None or leaf is not None:
        newcomer, encoder, spec = _attached(head, leaf, known)
        encoders[newcomer], prepare = encoder, {**prepare, newcomer: spec}
    with Bar() as bar:
        part = RecordingPart(path=str(recording.resolve()))
        dataset = read([part], Path(), known.windows, prepare, bar, only=set(prepare))
    for warning in dataset.warnings:
        print(f"lineside: warning: {warning}", file=sys.stderr)
    measured = measure(encoders, dataset, np.arange(len(dataset)))
    result = {"stage": known.name, "moments": len(dataset), "bad_windows": dataset.bad, **_measured(measured)}
    _say(as_json, result)


@app.command()
def certify(
    folder: Folder,
    against: Annotated[
        list[Path] | None, typer.Option(metavar="OLD_DIR", help="A stage that is still in the field; several times.")
    ] = None,
    recording: Annotated[
        Path | None, typer.Option(help="With --against: normal running, best of a day that no stage learned from.")
    ] = None,
    from_s: Annotated[float, typer.Option(help="Where in the recording to begin, seconds.")] = 0.0,
    to_s: Annotated[float, typer.Option(help="Where in it to end; 0: at its end.")] = 0.0,
    faulty: Annotated[
        Path | None, typer.Option(help="With --against: a recording with labelled faults; else defects are made.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compute a stage's certificate again from its second moments. Exit 6 when a gate failed or a number differs.

    Example: lineside train certify stage-2

    With --against, every mix of its encoders with an older stage's is measured too; devices refuse mixes without that.

    Example: lineside train certify stage-2 --against stage-1 --recording line.mcap
    """
    from lineside.errors import ConfigError, GateError
    from trainer import checkpoint
    from trainer.plan import RecordingPart
    from trainer.stage import drifts

    known = checkpoint.load_stage(folder)
    embeddings, similarities = drifts(checkpoint.load_tensors(folder, known))
    said = {**known.certificate.embedding_drift, **known.certificate.similarity_drift}
    again = msgspec.structs.replace(known.certificate, embedding_drift=embeddings, similarity_drift=similarities)
    for name, value in {**embeddings, **similarities}.items():
        if not math.isclose(value, said.get(name, math.nan), rel_tol=1e-6, abs_tol=1e-12):
            told = f"drift of {name} is {value:.3e}, its certificate says {said.get(name)}"
            raise GateError(known.name, told, "do not use this stage; train it again")
    if bool(against) != (recording is not None):
        raise ConfigError("certify", "--against and --recording go together", "give both or neither; see --help")
    found = []
    if against and recording:
        part = RecordingPart(str(recording.resolve()), from_s, to_s)
        found = _beside(folder, against, part, faulty.resolve() if faulty else None)
    beside = {f"beside {one.against}": msgspec.to_builtins(one) if as_json else _mixes(one) for one in found}
    about = {"name": known.name, "space": known.space, "capacity": known.capacity}
    _say(as_json, {**about, **_certificate(again), **beside})
    checkpoint.must_pass(known, folder)
    for one in found:
        mend = "protect more, or train with [backward] weight = 1.0; mixes that passed are certified all the same"
        checkpoint.must_hold(one.gates, f"{one.stage} beside {one.against}", mend)


def _beside(folder: Path, against: list[Path], recording: RecordingPart, faulty: Path | None) -> list[Compatibility]:
    """Certify a stage beside older ones, and keep what was found in its folder."""
    from trainer import certify as rim
    from trainer import compatibility
    from trainer.progress import Bar

    with Bar() as bar:
        new, olds = rim.version(folder), rim.field(folder, against)
        trial, warnings = rim.trial(folder, recording, faulty, bar)
        for warning in warnings:
            print(f"lineside: warning: {warning}", file=sys.stderr)
        found = [compatibility.certify(new, old, trial, bar) for old in olds]
    for one in found:
        compatibility.keep(folder, one)
    return found


def _mixes(found: Compatibility) -> list[dict[str, Any]]:
    """The rows that a person reads: a mix, what was measured with its interval, and whether it passed."""
    names = ("recall", "flips", "false_alarms", "area", "area_lost", "agreement")
    return [
        {
            "new": " + ".join(mix.new) or "nothing",
            **{name: _range(getattr(mix, name)) for name in names},
            "certified": mix.encoders in found.certified,
        }
        for mix in found.mixes
    ]


def _range(interval: Interval | None) -> str:
    return "–" if interval is None else f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _attached(head: Path | None, leaf: Path | None, base: Stage) -> tuple[str, Encoder, Prepare]:
    """Modality, encoder in the base's space and preparation of an attached sensor."""
    from lineside.errors import ConfigError
    from trainer import checkpoint
    from trainer.attached import Attached

    if head is None or leaf is None:
        raise ConfigError("--head, --leaf", "one is not there", "give the head's file and the stage of its leaf")
    stage = checkpoint.load_stage(leaf)
    known = Attached.load(head, stage, base)
    newcomer = known.about.newcomer
    return newcomer, known.encoder(checkpoint.load_tensors(leaf, stage).encoders[newcomer]), stage.prepare[newcomer]


def _summary(known: Stage) -> dict[str, Any]:
    return {
        "name": known.name,
        "stage": known.stage,
        "passed": known.passed,
        "space": known.space,
        "counters": msgspec.to_builtins(known.counters),
        "bad_windows": known.bad_windows,
        "capacity": known.capacity,
        **_measured(known.metrics),
        **_certificate(known.certificate),
    }


def _certificate(certificate: Certificate) -> dict[str, Any]:
    return {**msgspec.to_builtins(certificate), "gates": [_gate(gate) for gate in certificate.gates]}


def _gate(gate: Gate) -> dict[str, Any]:
    return {**msgspec.to_builtins(gate), "passed": gate.passed}


def _measured(measured: Measured) -> dict[str, Any]:
    built: dict[str, Any] = msgspec.to_builtins(measured)
    return built


def _by_name(found: Mapping[str, object], what: str) -> list[dict[str, Any]]:
    """Records by name, as rows."""
    return [{what: name, **msgspec.to_builtins(each)} for name, each in found.items()]


def _say(as_json: bool, result: dict[str, Any]) -> None:
    """The result on stdout: one JSON line, or one line a fact."""
    if as_json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        rows = value if isinstance(value, list) and value and isinstance(value[0], dict) else None
        print(f"{name}:" if rows else f"{name}: {_plain(value)}")
        for row in rows or []:
            print("  " + "  ".join(f"{key} {_plain(item)}" for key, item in row.items()))


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items()) or "none"
    return str(value)


if __name__ == "__main__":
    guarded(app)

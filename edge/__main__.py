"""`lineside edge …`: the commands of a device."""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import signal
import threading
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from edge import notify
from edge.config import DeviceConfig
from lineside.cli import guarded
from lineside.clock import NS, SystemClock
from lineside.config import load

if TYPE_CHECKING:  # what takes long to load is loaded by the command that needs it
    from edge.changeover import Changeover
    from edge.evaluation.section import Section
    from lineside.parts import Own, Put

app = typer.Typer(no_args_is_help=True)

PAUSE_S = 10.0  # that a bench lets the line run around a rollback
ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="The device file (TOML).")]
VerboseOption = Annotated[bool, typer.Option("--verbose", help="Log more.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


@app.command()
def check(config: ConfigOption, json_: JsonOption = False) -> None:
    """Validate a device file and print what is in force.

    Example: lineside edge check --config device.toml
    """
    device = load(config, DeviceConfig)
    if json_:
        typer.echo(msgspec.json.encode(device))
        return
    sensors = ", ".join(
        f"{s.name} ({s.modality} from {s.source} {s.device})".replace(" )", ")") for s in device.sensors
    )
    typer.echo(f"{config}: device {device.device.id}, station {device.device.station}; {sensors}")


@app.command()
def run(
    config: ConfigOption,
    socket: Annotated[
        Path | None, typer.Option(help="Use no network: `lineside edge uplink` comes to this socket instead.")
    ] = None,
    verbose: VerboseOption = False,
) -> None:
    """Watch the line until stopped (Ctrl-C or SIGTERM).

    Example: lineside edge run --config device.toml

    Example: lineside edge run --config device.toml --socket /run/lineside/agent.sock
    """
    from edge.agent import Agent

    _log(verbose)
    faulthandler.enable()  # the watchdog ends an agent that hangs by SIGABRT: the journal has every thread's stack
    device, clock, stop = _with_credentials(load(config, DeviceConfig)), SystemClock(), _stopped_by_signal()
    agent = Agent(device, config.resolve().parent, clock, socket)
    notify.keep_told(agent.signs, os.environ, clock, stop)
    agent.run(stop)


@app.command()
def uplink(
    config: ConfigOption,
    socket: Annotated[Path, typer.Option(help="Where `lineside edge run` with the same option listens.")],
    verbose: VerboseOption = False,
) -> None:
    """Be the network of an agent that has none, until stopped: broker and repository, no sensor, no state.

    Waits for an agent that is not there yet, and for a broker; exits 1 when the agent there is of another device or
    version.

    Example: lineside edge uplink --config device.toml --socket /run/lineside/agent.sock
    """
    from edge import courier

    _log(verbose)
    faulthandler.enable()
    device, clock, stop, life = (
        _with_credentials(load(config, DeviceConfig)),
        SystemClock(),
        _stopped_by_signal(),
        courier.Life(),
    )
    notify.keep_told(life.signs, os.environ, clock, stop)
    courier.run(device, config.resolve().parent, socket, clock, stop, life)


@app.command()
def doctor(config: ConfigOption, json_: JsonOption = False) -> None:
    """Look at sensors, encoders, broker, repository, outbox and machine; exit 1 when something is not well.

    While an agent runs, sensors are its own, and its metrics tell of them.

    Example: lineside edge doctor --config device.toml
    """
    from edge.doctor import examine
    from lineside.cli import tell

    findings = []
    for finding in examine(load(config, DeviceConfig), config.resolve().parent, SystemClock(), tell):
        findings.append(finding)
        if not json_:
            typer.echo(finding.line)
    if json_:
        typer.echo(msgspec.json.encode(findings))
    if not all(finding.well for finding in findings):
        raise typer.Exit(1)


@app.command()
def record(
    out: Annotated[Path, typer.Option(help="The MCAP file to write.")],
    config: Annotated[Path | None, typer.Option("--config", "-c", help="Record this device's sensors.")] = None,
    source: Annotated[Path | None, typer.Option("--from", help="Import this file or folder instead.")] = None,
    seconds: Annotated[float, typer.Option(help="How long to record.")] = 60.0,
    fast: Annotated[bool, typer.Option(help="Simulated sensors only: do not wait for the clock.")] = False,
    flac: Annotated[
        bool, typer.Option("--flac", help="Sound as FLAC: as exact, smaller, no player in Foxglove.")
    ] = False,
    rate_hz: Annotated[
        float, typer.Option("--rate", help="Import: rate of frames, or of rows without time (0: the source's own).")
    ] = 0.0,
    split: Annotated[str, typer.Option(help="Import: only this split of a data set's manifest.")] = "",
    limit: Annotated[int, typer.Option(help="Import: at most this many rows of a data set (0: all).")] = 0,
    json_: JsonOption = False,
) -> None:
    """Record a device's sensors, or import a video with sound, frames with a sound file, a CSV series, a data set.

    Example: lineside edge record --config device.toml --seconds 600 --out normal.mcap

    Example: lineside edge record --from phone.mp4 --out phone.mcap
    """
    from edge import recorder
    from lineside.channels import SoundFormat

    if (config is None) == (source is None):
        raise typer.BadParameter("give either --config or --from")
    sound: SoundFormat = "flac" if flac else "pcm"
    if source is not None:
        done = recorder.from_files(source, out, rate_hz=rate_hz, split=split, limit=limit, sound=sound)
    else:
        assert config is not None
        device, base = load(config, DeviceConfig), config.resolve().parent
        done = recorder.from_sensors(device, base, out, seconds, fast, SystemClock(), _stopped_by_signal(), sound)
    if json_:
        typer.echo(msgspec.json.encode(done))
        return
    for warning in done.warnings:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(f"{out}: {done.seconds:.1f} s, samples {done.samples}, labels {done.labels}, of faults {done.faults}")


@app.command()
def evidence(config: ConfigOption, json_: JsonOption = False) -> None:
    """List what the device keeps on its own disk of what it saw and heard: around alarms, and recordings of everything.

    Example: lineside edge evidence --config device.toml
    """
    from edge.inventory import inventory

    device = load(config, DeviceConfig)
    kept = list(inventory(config.resolve().parent / device.device.state_dir))
    if json_:
        typer.echo(msgspec.json.encode(kept))
        return
    for one in kept:
        what = one.problem or f"{one.seconds:.0f} s of {', '.join(one.sensors)}; {'; '.join(one.alarms) or 'no alarm'}"
        typer.echo(f"{one.folder}/{one.file}  {one.mb:.1f} MB  {what}")
    typer.echo(f"{len(kept)} files, {sum(one.mb for one in kept):.1f} MB")


@app.command()
def commission(
    config: ConfigOption,
    recording: Annotated[Path, typer.Option(help="A recording of normal running.")],
    keep: Annotated[bool, typer.Option("--keep", help="What is known stays normal too.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw what normal is into this PNG.")] = None,
    json_: JsonOption = False,
) -> None:
    """Learn what is normal from a recording, in place of what was known, or beside it with --keep.

    A running agent takes it at its next start.

    Prints what normal is, and how well each subset of sensors would see each kind of fault.

    Example: lineside edge commission --config device.toml --recording normal.mcap --plot normal.png
    """
    from edge import contract
    from edge.ensemble import Ensemble
    from edge.evaluation import normal, report
    from edge.replay import commission as learn
    from lineside.recording import Recording

    device, changeover = _opened(config)
    learned = learn(device, Ensemble(changeover.load_encoders()), Recording(recording))
    if keep and (known := changeover.kept()) is not None:
        learned = learned.after(known)
    changeover.learn(learned)
    ensemble, measured = changeover.pipeline.ensemble, changeover.contract
    assert ensemble is not None  # learned just now
    section = normal.describe(learned, ensemble, device)
    if plot is not None:
        report.draw(section.plots, plot)
    if json_:
        told = {"moments": len(learned.moments), "sensors": sorted(learned.modalities), **report.plain([section])[0]}
        typer.echo(json.dumps({**told, "contract": measured and msgspec.to_builtins(measured)}))
    else:
        typer.echo(f"normal learned from {len(learned.moments)} moments\n\n{report.text(section)}\n")
        typer.echo(contract.told(measured) if measured else "what faults would be seen could not be measured")


@app.command()
def replay(
    config: Annotated[Path | None, typer.Option("--config", "-c", help="The device file (TOML).")] = None,
    recording: Annotated[Path | None, typer.Option(help="The recording to judge.")] = None,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Against the recording's labels, beside rivals.")
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="With --evaluate: all benchmarks, not a recording.")
    ] = False,
    only: Annotated[list[str] | None, typer.Option(help="With --all: only this benchmark (again for more).")] = None,
    data: Annotated[Path, typer.Option(help="With --all: the folder of data sets.")] = Path("../shared/data/dev"),
    encoders: Annotated[Path, typer.Option(help="With --all: see python -m bench.encoders.")] = Path("var/encoders"),
    out: Annotated[Path | None, typer.Option(help="Write what was evaluated here (Markdown, plots beside it).")] = None,
    json_: JsonOption = False,
) -> None:
    """Run a recording through the device's own code, as fast as it goes; print scores and alarms.

    With --evaluate, print how well its labelled faults are seen, told apart and kept from being cried, beside trivial
    and textbook detectors; with --all too, the same for every benchmark there is.

    Example: lineside edge replay --config device.toml --recording shift.mcap --json

    Example: lineside edge replay --config device.toml --recording labelled.mcap --evaluate --out report.md

    Example: lineside edge replay --evaluate --all --out docs/results/monitor.md
    """
    if everything != (config is None) or everything != (recording is None) or (everything and not evaluate):
        raise typer.BadParameter("give --config and --recording, or --evaluate --all")
    if config is None or recording is None:
        _evaluate_all(data, encoders, only or [], out, json_)
    elif evaluate:
        _evaluate(config, recording, out, json_)
    else:
        _replay(config, recording, json_)


def _replay(config: Path, recording: Path, json_: bool) -> None:
    from edge.replay import recorded, through
    from lineside.messages import Alarm, Score
    from lineside.recording import Recording

    device, changeover = _opened(config)
    changeover.begin()
    source, pipeline = Recording(recording), changeover.pipeline
    pipeline.station.hear_labels(source.labels())
    counts: Counter[str] = Counter()
    for message in through(pipeline, recorded(device, source)):
        counts[type(message).__name__.lower()] += 1
        if json_ and isinstance(message, (Score, Alarm)):
            typer.echo(msgspec.json.encode(message))
        elif isinstance(message, Alarm):
            typer.echo(f"{message.time_ns / NS:.1f} s {message.state}: {message.text}")
    if source.problem:
        typer.echo(f"{recording}: {source.problem}", err=True)
    if not json_:
        typer.echo(f"{counts['score']} scores, {counts['alarm']} alarm changes")


def _evaluate(config: Path, recording: Path, out: Path | None, json_: bool) -> None:
    from edge.evaluation import recorded
    from edge.replay import recorded as samples_of
    from lineside.errors import RecordingError
    from lineside.recording import Recording

    device, changeover = _opened(config)
    changeover.begin()
    source, pipeline = Recording(recording), changeover.pipeline
    ensemble, known = pipeline.ensemble, changeover.commissioning
    if ensemble is None or known is None:
        mend = "commission it first: `lineside edge commission --recording normal.mcap`"
        raise RecordingError(str(config), "the device does not know what is normal", mend)
    pipeline.station.hear_labels(source.labels())
    found = recorded.run(device, pipeline, samples_of(device, source), source.labels())
    section = recorded.evaluate(found, device, ensemble, known, recording.name)
    _report(
        [section], out, f"lineside edge replay --config {config.name} --recording {recording.name} --evaluate", json_
    )


def _evaluate_all(data: Path, encoders: Path, only: list[str], out: Path | None, json_: bool) -> None:
    from edge.evaluation import sets
    from lineside.cli import tell

    sections = []
    for section in sets.run(data, encoders, only):
        sections.append(section)
        tell(f"{len(sections)}: {section.title}")
    tell("")
    _report(
        sections, out, " ".join(["lineside edge replay --evaluate --all", *(f"--only {one}" for one in only)]), json_
    )


def _report(sections: list[Section], out: Path | None, command: str, json_: bool) -> None:
    """Print sections, or write them to `out` and print where."""
    from edge.evaluation import report

    if out is not None:
        day = datetime.fromtimestamp(SystemClock().now_ns() / NS, timezone.utc).strftime("%Y-%m-%d")
        report.write(sections, out, "What alarms promise, measured", command, day)
    if json_:
        typer.echo(json.dumps(report.plain(sections)))
    elif out is not None:
        typer.echo(f"{out}: {len(sections)} sections")
    else:
        typer.echo("\n\n".join(report.text(section) for section in sections))


def _opened(config: Path) -> tuple[DeviceConfig, Changeover]:
    """A device that is not running: its file, and its encoders and normal running, which have yet to begin."""
    from edge.changeover import Changeover
    from edge.pipeline import Pipeline
    from edge.slots import Slots

    device, base = load(config, DeviceConfig), config.resolve().parent
    slots = Slots(base / device.device.state_dir, SystemClock())
    return device, Changeover(device, base, Pipeline(device), slots, updater=None)


@app.command()
def bench(
    config: Annotated[Path | None, typer.Option("--config", "-c", help="The device file (TOML).")] = None,
    encoders: Annotated[
        list[Path] | None, typer.Option(help="Encoder files (again for more), instead of those in the device's slots.")
    ] = None,
    moments: Annotated[int, typer.Option(help="How many moments to measure.")] = 400,
    endurance: Annotated[
        int, typer.Option(help="Measure instead how memory grows over so many moments, with encoders that do nothing.")
    ] = 0,
    start: Annotated[bool, typer.Option("--start", help="Time the start of an agent too, and its memory.")] = False,
    rollback: Annotated[
        Path | None, typer.Option(help="Measure instead a rollback from this newer encoder, while the line runs.")
    ] = None,
    normal: Annotated[int, typer.Option(help="With --rollback: moments of normal running.")] = 600,
    json_: JsonOption = False,
) -> None:
    """Measure a whole window, stage by stage, against bare inference in the same run; or how memory grows.

    Samples are made up (720p pictures where the device file says no size), broker and state are the bench's own:
    nothing of the installed device is changed.

    Example: lineside edge bench --config device.toml --start

    Example: lineside edge bench --encoders camera-1.onnx --encoders microphone-1.onnx

    Example: lineside edge bench --endurance 1000000

    Example: lineside edge bench --config device.toml --rollback camera-2.onnx
    """
    from edge import bench as work
    from edge import endurance as lasting
    from edge import pause

    told: list[tuple[msgspec.Struct, str]] = []
    if endurance:
        growth = lasting.growth(endurance)
        told.append((growth, lasting.told(growth)))
    elif rollback is not None:
        device, files = _benched(config, encoders or [])
        taken_back = pause.measure(device, files, rollback, normal, PAUSE_S)
        told.append((taken_back, pause.table(taken_back)))
    else:
        device, files = _benched(config, encoders or [])
        found = work.measure(device, files, moments)
        told.append((found, work.table(found)))
        if start:
            begun = lasting.begin(device, files)
            told.append((begun, lasting.begun(begun)))
    typer.echo(msgspec.json.encode([what for what, _ in told]) if json_ else "\n\n".join(text for _, text in told))


def _benched(config: Path | None, encoders: list[Path]) -> tuple[DeviceConfig | None, list[Path]]:
    """The device file, and the encoder files that were given or those of its slots."""
    from edge.slots import Slots

    if config is None:
        if not encoders:
            raise typer.BadParameter("give --config, --encoders or both")
        return None, encoders
    device = load(config, DeviceConfig)
    slots = Slots(config.resolve().parent / device.device.state_dir, SystemClock())
    modalities = {sensor.modality for sensor in device.sensors}
    found = [slot.path for modality in sorted(modalities) if (slot := slots.current(modality)) is not None]
    return device, encoders or found


def _log(verbose: bool) -> None:
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(name)s %(message)s")


def _with_credentials(device: DeviceConfig) -> DeviceConfig:
    """Secrets from the service manager, where it hands over files of the same names (LoadCredential)."""
    handed = os.environ.get("CREDENTIALS_DIRECTORY", "")
    return msgspec.structs.replace(device, broker=device.broker.handed(Path(handed))) if handed else device


@app.command()
def install(
    config: Annotated[Path | None, typer.Option("--config", "-c", help="The device file (TOML).")] = None,
    root: Annotated[Path, typer.Option(help="Prepare the image under this folder; nothing is started.")] = Path("/"),
    executable: Annotated[str, typer.Option(help="The `lineside` that the services run (default: this one).")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite what was edited.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Take the services away; state stays.")] = False,
    purge: Annotated[bool, typer.Option("--purge", help="With --remove: state and what was edited go too.")] = False,
    json_: JsonOption = False,
) -> None:
    """Run the agent as services: put users, units, the device file and the files that it names in place, and start.

    Sensors and judgement get a service without a network, or one with it where a camera is on the network; the uplink
    gets one without devices, to which systemd hands the broker's secrets. After a change of /etc/lineside/device.toml,
    do it again with that file.

    Example: sudo /opt/lineside/bin/lineside edge install --config device.toml

    Example: sudo /opt/lineside/bin/lineside edge install --remove
    """
    from edge.install import wanted
    from lineside.parts import EDGE
    from lineside.placing import Asked, carry_out

    if remove == (config is not None) or (purge and not remove):
        raise typer.BadParameter("give either --config or --remove; --purge goes with --remove")

    def here(executable: str, systemd: int) -> tuple[list[Put], list[Own]]:
        assert config is not None
        return wanted(load(config, DeviceConfig), config.resolve(), executable, systemd), []

    changes = carry_out(EDGE, None if remove else here, Asked(root, executable, dry_run, force, purge))
    typer.echo(msgspec.json.encode(changes) if json_ else "\n".join(changes.told) or "all is as it should be")


def _stopped_by_signal() -> threading.Event:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


if __name__ == "__main__":
    guarded(app)

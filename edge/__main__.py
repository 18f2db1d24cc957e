"""`lineside edge …`: the commands of a device."""

from __future__ import annotations

import json
import logging
import signal
import threading
from collections import Counter
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from edge.config import DeviceConfig
from lineside.cli import guarded
from lineside.clock import NS, SystemClock
from lineside.config import load

app = typer.Typer(no_args_is_help=True)

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="The device file (TOML).")]
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
def run(config: ConfigOption, verbose: Annotated[bool, typer.Option(help="Log more.")] = False) -> None:
    """Watch the line until stopped (Ctrl-C or SIGTERM).

    Example: lineside edge run --config device.toml
    """
    from edge.agent import Agent

    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(name)s %(message)s")
    device = load(config, DeviceConfig)
    agent = Agent(device, config.resolve().parent, SystemClock())
    agent.run(_stopped_by_signal())


@app.command()
def doctor(config: ConfigOption, json_: JsonOption = False) -> None:
    """Look at sensors, broker, repository, encoders and disk; exit 1 when something is not well.

    Example: lineside edge doctor --config device.toml
    """
    from edge.doctor import examine

    findings = []
    for finding in examine(load(config, DeviceConfig), config.resolve().parent, SystemClock()):
        findings.append(finding)
        if not json_:
            typer.echo(f"{'ok  ' if finding.well else 'FAIL'} {finding.thing}: {finding.told}")
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

    if (config is None) == (source is None):
        raise typer.BadParameter("give either --config or --from")
    if source is not None:
        done = recorder.from_files(source, out, rate_hz=rate_hz, split=split, limit=limit)
    else:
        assert config is not None
        device, base = load(config, DeviceConfig), config.resolve().parent
        done = recorder.from_sensors(device, base, out, seconds, fast, SystemClock(), _stopped_by_signal())
    if json_:
        typer.echo(msgspec.json.encode(done))
        return
    for warning in done.warnings:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(f"{out}: {done.seconds:.1f} s, samples {done.samples}, labels {done.labels}, of faults {done.faults}")


@app.command()
def commission(
    config: ConfigOption,
    recording: Annotated[Path, typer.Option(help="A recording of normal running.")],
    json_: JsonOption = False,
) -> None:
    """Learn what is normal from a recording, in place of what was known; a running agent takes it at its next start.

    Example: lineside edge commission --config device.toml --recording normal.mcap
    """
    from edge.changeover import Changeover
    from edge.ensemble import Ensemble
    from edge.pipeline import Pipeline
    from edge.replay import commission as learn
    from edge.slots import Slots
    from lineside.recording import Recording

    device, base = load(config, DeviceConfig), config.resolve().parent
    slots = Slots(base / device.device.state_dir, SystemClock())
    changeover = Changeover(device, base, Pipeline(device), slots, updater=None)
    learned = learn(device, Ensemble(changeover.load_encoders()), Recording(recording))
    changeover.learn(learned)
    told = {"moments": len(learned.moments), "sensors": sorted(learned.modalities)}
    typer.echo(json.dumps(told) if json_ else f"normal learned from {told['moments']} moments")


@app.command()
def replay(
    config: ConfigOption,
    recording: Annotated[Path, typer.Option(help="The recording to judge.")],
    json_: JsonOption = False,
) -> None:
    """Run a recording through the device's own code, as fast as it goes; print scores and alarms.

    Example: lineside edge replay --config device.toml --recording shift.mcap --json
    """
    from edge.changeover import Changeover
    from edge.pipeline import Pipeline
    from edge.replay import recorded, through
    from edge.slots import Slots
    from lineside.messages import Alarm, Score
    from lineside.recording import Recording

    device, base = load(config, DeviceConfig), config.resolve().parent
    pipeline, slots = Pipeline(device), Slots(base / device.device.state_dir, SystemClock())
    changeover = Changeover(device, base, pipeline, slots, updater=None)
    changeover.begin()
    source = Recording(recording)
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


@app.command()
def bench(
    config: ConfigOption,
    seconds: Annotated[float, typer.Option(help="Length of the simulated run.")] = 60.0,
) -> None:
    """Measure a whole window (cut, check, prepare, embed, judge, encode) against bare inference in the same run.

    Example: lineside edge bench --config device.toml
    """
    from edge.bench import measure

    typer.echo(json.dumps(measure(load(config, DeviceConfig), config.resolve().parent, seconds)))


def _stopped_by_signal() -> threading.Event:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


if __name__ == "__main__":
    guarded(app)

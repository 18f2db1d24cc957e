"""One screen that says what is well and what is not, each with its mend."""

from __future__ import annotations

import shutil
import sqlite3
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edge import machine
from edge.commissioning import Commissioning
from edge.config import DeviceConfig
from edge.declined import Declined
from edge.listening import Heard, listen, skews_ns
from edge.progress import Progress
from edge.slots import Slots
from edge.workshop import AUTO, Workshop
from lineside import mqtt, wire
from lineside.clock import NS, Clock, SystemClock
from lineside.errors import LinesideError, WireError
from lineside.quality import FLAGS

LISTEN_S, ANSWER_S = 6.0, 3.0
LOW_DISK_BYTES = 500_000_000
SLOW, FULL = 0.85, 0.8  # of the rate that was asked for; of the outbox's bound
SKEW_S, STEP_S, HOT_C, SLOWED = 0.25, 0.05, 85.0, 0.5
FIRST_YEAR = 2025


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: what it reads, or the reason why it is not well; with a mend where one is due.

    What is well and has a mend all the same is worth a thought.
    """

    thing: str
    well: bool
    told: str
    mend: str = ""

    @property
    def line(self) -> str:
        """For a person."""
        mark = ("note" if self.mend else "ok  ") if self.well else "FAIL"
        return f"{mark} {self.thing}: {self.told}{'; ' if self.mend else ''}{self.mend}"


def examine(config: DeviceConfig, base: Path, clock: Clock, tell: Callable[[str], None]) -> Iterator[Finding]:
    """Look at the agent, sensors, encoders, what is known, broker, repository, outbox and machine; change nothing."""
    state = base / config.device.state_dir
    outbox = state / "outbox.db"
    if (pid := machine.opened_by(outbox)) is not None or _metrics(config) is not None:
        yield from _agent(config, pid)
    else:
        yield Finding("agent", True, "does not run: sensors are free to be listened to")
        yield from _sensors(config, base, clock, tell)
    slots, workshop = Slots(state, clock), Workshop(config.device.runtime, state / "runtimes", clock)
    yield _runtimes(config, workshop)
    for modality in sorted({sensor.modality for sensor in config.sensors}):
        yield _told(f"encoder {modality}", lambda modality=modality: _encoder(slots, workshop, modality))  # type: ignore[misc]
    yield from _changes(state, clock)
    yield _told("normal running", lambda: _normal(config, state))
    yield _told("broker", lambda: _broker(config, base))
    if config.repository.url:
        yield _told("repository", lambda: _repository(config))
    yield _told("outbox", lambda: _outbox(config, outbox, clock))
    yield _told("clock", lambda: _clock(clock))
    yield _told("disk", lambda: _disk(state))
    yield from _heat()


def _told(thing: str, look: Callable[[], Finding | str]) -> Finding:
    try:
        found = look()
        return found if isinstance(found, Finding) else Finding(thing, True, found)
    except LinesideError as error:
        return Finding(thing, False, error.reason, error.mend)


# ---- a running agent


def _agent(config: DeviceConfig, pid: int | None) -> Iterator[Finding]:
    told = f"runs{'' if pid is None else f' (process {pid})'} and holds the sensors"
    if (text := _metrics(config)) is None:
        mend = "set [metrics] port and run this again to see them, or stop the agent"
        yield Finding("agent", True, f"{told}: what they give is not seen", mend)
        return
    yield Finding("agent", True, f"{told}; what follows is by its own metrics")
    found = _values(text)
    for sensor in config.sensors:
        labels = f'{{modality="{sensor.modality}",sensor="{sensor.name}"'
        flags = [flag for flag in FLAGS if found.get(f'lineside_capture_flagged{labels},flag="{flag}"}}')]
        count = f"{found.get(f'lineside_capture_windows_total{labels}}}', 0):.0f} windows since its start"
        if not found.get(f"lineside_capture_up{labels}}}"):
            yield Finding(sensor.name, False, f"gives no samples, {count}", "look at health or the agent's log")
        else:
            yield _flagged(sensor.name, flags, count)


def _metrics(config: DeviceConfig) -> str | None:
    """What the agent tells over HTTP; None where it does not."""
    if not config.metrics.port:
        return None
    url = f"http://{config.metrics.host}:{config.metrics.port}/metrics"
    try:
        with urllib.request.urlopen(url, timeout=ANSWER_S) as answer:
            return str(answer.read().decode())
    except (OSError, ValueError):
        return None


def _values(text: str) -> dict[str, float]:
    """Samples of Prometheus' text format, keyed as they are written, with labels in order."""
    from prometheus_client.parser import text_string_to_metric_families

    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            flag = sample.labels.pop("flag", None)
            labels = [f'{name}="{value}"' for name, value in sorted(sample.labels.items())]
            labels += [] if flag is None else [f'flag="{flag}"']
            found[f"{sample.name}{{{','.join(labels)}}}"] = sample.value
    return found


# ---- sensors


def _sensors(config: DeviceConfig, base: Path, clock: Clock, tell: Callable[[str], None]) -> Iterator[Finding]:
    heard = listen(config.sensors, config.windows, base, clock, LISTEN_S, tell)
    for one in heard:
        yield _sensor(one)
    for first, second, skew_ns in skews_ns(heard):
        told = f"{second} is {abs(skew_ns) / 1e6:.0f} ms {'later' if skew_ns >= 0 else 'earlier'} in the same interval"
        mend = "" if abs(skew_ns) < SKEW_S * NS else "one of them has a long delay: shorten its buffer or its network"
        yield Finding(f"skew {first}+{second}", not mend, told, mend)


def _sensor(heard: Heard) -> Finding:
    sensor = heard.sensor
    if heard.problem is not None:
        return Finding(sensor.name, False, heard.problem.reason, heard.problem.mend)
    if not heard.windows:
        return Finding(sensor.name, False, f"no whole window within {LISTEN_S:g} s", "check the cable and the rate")
    asked = sensor.rate_hz or heard.windows[-1].rate_hz
    told = f"{heard.rate_hz:.4g} Hz measured, {asked:.4g} Hz {'asked' if sensor.rate_hz else 'told'}"
    if heard.rate_hz < SLOW * asked:
        return Finding(sensor.name, False, told, "more light, a faster bus, or a smaller rate_hz, width and height")
    return _flagged(sensor.name, sorted(heard.flags), told)


def _flagged(name: str, flags: list[str], told: str) -> Finding:
    if not flags:
        return Finding(name, True, told)
    return Finding(name, False, f"{', '.join(flags)} ({told})", "; ".join(FLAGS.get(flag, flag) for flag in flags))


# ---- what the device knows


def _runtimes(config: DeviceConfig, workshop: Workshop) -> Finding:
    """Which runtimes could be taken; with one that was asked for only that one counts."""
    choice, installed = config.device.runtime, workshop.installed()
    there = [name for name, missing in installed.items() if not missing]
    told = "; ".join([f"{choice} of {', '.join(there)}", *(f"not {n}: {m}" for n, m in installed.items() if m)])
    well = bool(there) if choice == AUTO else not installed[choice]
    return Finding("runtime", well, told, "" if well else 'install what is missing, or set [device] runtime = "auto"')


def _encoder(slots: Slots, workshop: Workshop, modality: str) -> Finding | str:
    slot, problem = slots.current(modality), slots.problem(modality)
    if slot is None:
        raise LinesideError(modality, problem or "none on this device yet", "publish one; a running agent fetches it")
    encoder = workshop.ready(slot.path, look=True)
    before = slots.previous(modality)
    previous = f"version {before.version} to fall back to" if before else "none to fall back to"
    told = f"{encoder.card.name} ({encoder.card.precision}) on {encoder.provider}, slot {slot.name}, {previous}"
    return Finding(f"encoder {modality}", True, told, problem) if problem else told


def _changes(state: Path, clock: Clock) -> Iterator[Finding]:
    """The change of encoders in progress, and the last one of each modality if it failed."""
    progress = Progress.load(state)
    if told := progress.told(clock.now_ns()):
        yield Finding("change", True, told)
    declined = Declined(state).known
    for modality, change in progress.ended.items():
        choice = change.choices[modality]
        if change.phase == "failed" and choice.sha256 in declined:
            told = f"{modality}-{choice.version} was not taken: {change.reason}"
            yield Finding(
                f"change {modality}", True, told, "roll it out anew once that is mended, or abort the rollout"
            )


def _normal(config: DeviceConfig, state: Path) -> Finding | str:
    path = state / "commissioning.npz"
    if not path.exists():
        minutes = f"the first {config.commissioning.minutes:g} minutes of live running"
        source = config.commissioning.recording or minutes
        return Finding("normal running", True, "not known yet", f"it is learned from {source}")
    known = Commissioning.load(path)
    since = datetime.fromtimestamp(path.stat().st_mtime, timezone.utc)
    return f"{len(known.moments)} moments of {', '.join(sorted(known.modalities))}, {since:%Y-%m-%d %H:%M} UTC"


def _broker(config: DeviceConfig, base: Path) -> str:
    """Knock with the device's own credentials, under a name that does not push the agent out."""
    where, answered, said = f"{config.broker.host}:{config.broker.port}", threading.Event(), list[Any]()
    client = mqtt.client(config.broker, f"{config.device.id}-doctor", base)

    def heard(_: object, __: object, ___: object, reason: object, ____: object) -> None:
        said.append(reason)
        answered.set()

    client.on_connect = heard
    try:
        mqtt.connect(client, config.broker)
        answered.wait(ANSWER_S)
    except LinesideError as error:
        mend = "start the hub, or mend [broker] host and port"
        raise LinesideError("broker", f"{where} does not answer ({error.__cause__})", mend) from error
    finally:
        client.disconnect()
        client.loop_stop()
    if not said:
        raise LinesideError("broker", f"{where} answers, but not as a broker", "mend [broker] host and port")
    if said[0].is_failure:
        mend = "check [broker] username and password_file"
        raise LinesideError("broker", f"{where} refuses {config.device.id}: {said[0]}", mend)
    return f"{where} lets {config.device.id} in"


def _repository(config: DeviceConfig) -> str:
    url = f"{config.repository.url.rstrip('/')}/metadata/timestamp.json"
    try:
        with urllib.request.urlopen(url, timeout=ANSWER_S) as answer:
            return f"{url} answers ({answer.status})"
    except (urllib.error.URLError, OSError, ValueError) as error:
        mend = "start the hub, or mend [repository] url"
        raise LinesideError("repository", f"{url} does not answer ({error})", mend) from error


def _outbox(config: DeviceConfig, path: Path, clock: Clock) -> Finding | str:
    if not path.exists():
        return "empty: no agent has run here yet"
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=ANSWER_S)) as db:
            count, size = db.execute("SELECT count(*), coalesce(sum(length(payload)), 0) FROM outbox").fetchone()
            oldest = db.execute("SELECT kind, payload FROM outbox ORDER BY place LIMIT 1").fetchone()
    except sqlite3.Error as error:
        mend = "stop the agent and look at the disk; without the file an agent begins a new one"
        raise LinesideError("outbox", f"{path} cannot be read ({error})", mend) from error
    told = f"{count} messages wait, {size / 1e6:.1f} of {config.outbox.max_mb:g} MB"
    if oldest is not None and (at_ns := _made_ns(*oldest)):
        told += f", the oldest for {max(0, clock.now_ns() - at_ns) / NS:.0f} s"
    if size > FULL * config.outbox.max_mb * 1e6:
        return Finding("outbox", False, told, "bring broker and hub back: embeddings are dropped first when it is full")
    return told


def _made_ns(kind: str, payload: bytes) -> int:
    """When a message was made; 0 where it does not tell."""
    try:
        message = wire.decode(kind, payload)
    except WireError:
        return 0
    return int(getattr(message, "time_ns", 0) or getattr(message, "end_ns", 0))


# ---- the machine


def _clock(clock: Clock) -> Finding | str:
    """`clock` was made when we began to look: a new one differs by what the wall clock has jumped since."""
    now = datetime.fromtimestamp(clock.now_ns() / NS, timezone.utc)
    stepped_s = (SystemClock().now_ns() - clock.now_ns()) / NS
    told = f"{now:%Y-%m-%d %H:%M:%S} UTC, {stepped_s * 1e3:+.1f} ms against the monotonic clock while we looked"
    mend = "start chrony or systemd-timesyncd, with a time server that this network reaches"
    if now.year < FIRST_YEAR or abs(stepped_s) > STEP_S:
        raise LinesideError("clock", told, mend)
    known = machine.synchronised()
    if known is None:
        return f"{told}; the kernel does not tell whether it is synchronised"
    synchronised, most_s = known
    if not synchronised:
        return Finding("clock", True, f"{told}; not synchronised", mend)
    return f"{told}; synchronised, at most {most_s * 1e3:.0f} ms off"


def _disk(state: Path) -> str:
    there = next(folder for folder in (state, *state.resolve().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if free < LOW_DISK_BYTES:
        raise LinesideError("disk", f"{free / 1e6:.0f} MB free", "free at least 500 MB on the disk of state_dir")
    return f"{free / 1e9:.1f} GB free"


def _heat() -> Iterator[Finding]:
    """Nothing where the machine does not tell."""
    if zones := machine.heats():
        hottest = max(zones, key=lambda zone: zone.celsius)
        mend = "" if hottest.celsius < HOT_C else "cool it: a machine this hot slows down"
        yield Finding("temperature", not mend, f"{hottest.name} {hottest.celsius:.0f} °C", mend)
    if clocks := machine.frequencies():
        told = ", ".join(f"{one.name} {one.now_hz / 1e6:.0f} of {one.most_hz / 1e6:.0f} MHz" for one in clocks)
        slow = all(one.now_hz < SLOWED * one.most_hz for one in clocks)
        mend = "an idle machine clocks down; under load: `nvpmodel` and `jetson_clocks`, or cooling" if slow else ""
        yield Finding("clocks", True, told, mend)

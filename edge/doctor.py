"""One screen that says what is well and what is not, each with its mend."""

from __future__ import annotations

import shutil
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edge.config import DeviceConfig, SensorSettings
from edge.encoder import Encoder
from edge.sensors.table import open_sensor
from edge.slots import Slots
from lineside.clock import Clock
from lineside.errors import LinesideError
from lineside.quality import FLAGS, Quality
from lineside.windows import Cutter

LISTEN_S = 6.0
LOW_DISK_BYTES = 500_000_000


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `told` is its reading, or reason and mend."""

    thing: str
    well: bool
    told: str


def examine(config: DeviceConfig, base: Path, clock: Clock) -> Iterator[Finding]:
    """Look at sensors, broker, repository, encoders and disk, one finding each."""
    for sensor in config.sensors:
        yield _told(sensor.name, lambda sensor=sensor: _sensor(sensor, config, base, clock))  # type: ignore[misc]
    yield _told("broker", lambda: _broker(config))
    if config.repository.url:
        yield _told("repository", lambda: _repository(config))
    slots = Slots(base / config.device.state_dir, clock)
    for modality in sorted({sensor.modality for sensor in config.sensors}):
        yield _told(f"encoder {modality}", lambda modality=modality: _encoder(slots, modality))  # type: ignore[misc]
    yield _told("disk", lambda: _disk(base))


def _told(thing: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(thing, True, look())
    except LinesideError as error:
        return Finding(thing, False, f"{error.reason}; {error.mend}")


def _sensor(sensor: SensorSettings, config: DeviceConfig, base: Path, clock: Clock) -> str:
    """Listen for one window."""
    source = open_sensor(sensor, clock, clock.now_ns(), base)
    alarm = threading.Timer(LISTEN_S + config.windows.length_s, source.close)
    alarm.start()
    cutter = Cutter(round(config.windows.length_s * 1e9), round(config.windows.length_s * 1e9))
    try:
        for samples in source.samples():
            for window in cutter.push(samples):
                flags = sorted(Quality().flags(window))
                if flags:
                    raise LinesideError(sensor.name, ", ".join(flags), "; ".join(FLAGS[flag] for flag in flags))
                return f"{len(window.data)} samples in {config.windows.length_s:g} s"
    finally:
        alarm.cancel()
        source.close()
    raise LinesideError(sensor.name, f"no whole window within {LISTEN_S:g} s", "check the cable and the rate")


def _broker(config: DeviceConfig) -> str:
    place = (config.broker.host, config.broker.port)
    try:
        with socket.create_connection(place, timeout=3):
            return f"{place[0]}:{place[1]} answers"
    except OSError as error:
        mend = "start the hub, or mend [broker] host and port"
        raise LinesideError("broker", f"{place[0]}:{place[1]} does not answer ({error})", mend) from error


def _repository(config: DeviceConfig) -> str:
    url = f"{config.repository.url.rstrip('/')}/metadata/timestamp.json"
    try:
        with urllib.request.urlopen(url, timeout=3) as answer:
            return f"{url} answers ({answer.status})"
    except (urllib.error.URLError, OSError, ValueError) as error:
        mend = "start the hub, or mend [repository] url"
        raise LinesideError("repository", f"{url} does not answer ({error})", mend) from error


def _encoder(slots: Slots, modality: str) -> str:
    slot = slots.current(modality)
    if slot is None:
        problem = slots.problem(modality) or "none on this device yet"
        raise LinesideError(modality, problem, "publish one; a running agent fetches it")
    encoder = Encoder.load(slot.path)
    return f"{encoder.card.name} ({encoder.card.precision}) on {encoder.provider}"


def _disk(base: Path) -> str:
    free = shutil.disk_usage(base).free
    if free < LOW_DISK_BYTES:
        raise LinesideError("disk", f"{free / 1e6:.0f} MB free", "free at least 500 MB on the disk of state_dir")
    return f"{free / 1e9:.1f} GB free"

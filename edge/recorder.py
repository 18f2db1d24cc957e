"""Make a recording: from this device's sensors, or from files of others."""

from __future__ import annotations

import os
import queue
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from edge import importers
from edge.capture import Capture
from edge.config import DeviceConfig, SensorSettings
from edge.replay import simulated
from edge.sensors.base import Sensor
from edge.sensors.table import open_sensor
from lineside.channels import SoundFormat
from lineside.cli import tell
from lineside.clock import NS, Clock
from lineside.errors import SensorError
from lineside.files import sync_folder
from lineside.recording import About, Recorder
from lineside.windows import Samples

QUEUE_RUNS = 1000


class Recorded(msgspec.Struct, frozen=True):
    """What a recording holds: samples by sensor, labels and how many of faults, seconds, and what was lost."""

    samples: dict[str, int]
    labels: int
    faults: int
    seconds: float
    warnings: list[str]


def from_files(source: Path, out: Path, *, rate_hz: float, split: str, limit: int, sound: SoundFormat) -> Recorded:
    """Import `source` (see edge.importers) into the MCAP file `out`. Raises RecordingError."""

    def show(done_s: float, all_s: float) -> None:
        tell(f"{out.name}: {done_s:.0f} s" + (f" of {all_s:.0f}" if all_s else ""))

    done = importers.import_recording(source, out, show, rate_hz=rate_hz, split=split, limit=limit, sound=sound)
    tell("")
    return Recorded(done.samples, done.labels, done.faults, done.seconds, done.warnings)


def from_sensors(
    config: DeviceConfig,
    base: Path,
    out: Path,
    seconds: float,
    fast: bool,
    clock: Clock,
    stop: threading.Event,
    sound: SoundFormat = "pcm",
) -> Recorded:
    """Record the device's sensors for `seconds`, or until `stop`; `fast` is for simulated ones.

    Raises SensorError when no sensor gives anything.
    """
    about = About(
        station=config.device.station,
        source=config.device.id,
        sensors={sensor.name: sensor.modality for sensor in config.sensors},
        length_s=config.windows.length_s,
        hop_s=config.windows.hop_s,
    )
    warnings: list[str] = []
    if fast:
        return _write(out, about, simulated(config, base, _whole_second(clock), seconds), warnings, sound)
    return _write(out, about, _live(config, base, seconds, clock, stop, warnings), warnings, sound)


def _whole_second(clock: Clock) -> int:
    return clock.now_ns() // NS * NS


def _live(
    config: DeviceConfig, base: Path, seconds: float, clock: Clock, stop: threading.Event, warnings: list[str]
) -> Iterator[Samples]:
    arrived: queue.Queue[Samples] = queue.Queue(QUEUE_RUNS)
    start_ns = clock.now_ns()

    def capture(sensor: SensorSettings) -> Capture:
        def make() -> Sensor:
            return open_sensor(sensor, clock, start_ns, base)

        return Capture(sensor.name, make, arrived)

    captures = [capture(sensor) for sensor in config.sensors]
    for each in captures:
        each.start()
    heard = False
    try:
        while not stop.is_set() and clock.now_ns() < start_ns + round(seconds * NS):
            try:
                yield arrived.get(timeout=0.25)
                heard = True
            except queue.Empty:
                if all(each.ended or (each.problem and not heard) for each in captures):
                    return
    finally:
        for each in captures:
            each.stop()
            if each.problem:
                warnings.append(each.problem)
            if each.dropped:
                warnings.append(f"{each.name}: {each.dropped} samples dropped, the disk was too slow")


def _write(out: Path, about: About, stream: Iterable[Samples], warnings: list[str], sound: SoundFormat) -> Recorded:
    """Write to a file beside `out` and rename it when it is whole; what was recorded before an error stays there."""
    part = out.with_name(f".{out.name}.part")
    counts: Counter[str] = Counter()
    first_ns, last_ns = 0, 0
    with Recorder(part, about, sound=sound) as recorder:
        for samples in stream:
            recorder.write(samples)
            counts[samples.sensor] += len(samples.data)
            first_ns, last_ns = min(first_ns or samples.start_ns, samples.start_ns), max(last_ns, samples.end_ns)
            tell(f"{out.name}: {(last_ns - first_ns) / NS:.0f} s")
    tell("")
    if not counts:
        part.unlink()
        reason = "; ".join(warnings) or "no sensor gave a sample"
        raise SensorError(str(out), reason, "run `lineside edge doctor`")
    os.replace(part, out)
    sync_folder(out.parent)
    return Recorded(dict(counts), 0, 0, (last_ns - first_ns) / NS, warnings)

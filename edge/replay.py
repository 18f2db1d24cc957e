"""A recording, or a simulated line, through the device's own pipeline as fast as it goes."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from msgspec import structs

from edge.commissioning import Commissioning
from edge.config import DeviceConfig
from edge.ensemble import Ensemble
from edge.pipeline import Pipeline
from edge.sensors.table import open_sensor
from edge.station import Station
from lineside.clock import NS, SimulatedClock
from lineside.errors import ConfigError
from lineside.messages import Message
from lineside.recording import Label, Recording, within_faults, without_faults
from lineside.windows import Samples

Part = Callable[[Iterable[Samples], Sequence[Label]], Iterable[Samples]]


def everything(stream: Iterable[Samples], _: Sequence[Label]) -> Iterable[Samples]:
    """All samples, whatever labels say of them."""
    return stream


def recorded(config: DeviceConfig, recording: Recording, part: Part = everything) -> Iterator[Samples]:
    """The samples of a recording, under the names that the device gives its sensors.

    `part` chooses some by the labels (lineside.recording.without_faults, within_faults). Raises ConfigError when the
    recording has none of its sensors.
    """
    names = {sensor.recorded or sensor.name: sensor.name for sensor in config.sensors}
    if not set(names) & set(recording.about.sensors):
        have = ", ".join(sorted(recording.about.sensors)) or "none"
        mend = "name the recorded sensor with `recorded` in [[sensors]]"
        raise ConfigError(str(recording.path), f"has the sensors {have}, the device wants {', '.join(names)}", mend)
    for samples in part(recording.samples(), recording.labels()):
        if samples.sensor in names:
            yield replace(samples, sensor=names[samples.sensor])


def simulated(config: DeviceConfig, base: Path, start_ns: int, seconds: float) -> Iterator[Samples]:
    """`seconds` of all the device's sensors, each on a clock that does not wait, merged by time.

    Raises ConfigError for a sensor that is bound to real time.
    """
    for sensor in config.sensors:
        if sensor.source not in {"simulation", "replay"}:
            mend = "record it without --fast"
            raise ConfigError(sensor.name, f"source {sensor.source!r} gives samples in real time only", mend)
    end_ns = start_ns + round(seconds * NS)
    sources = [open_sensor(sensor, SimulatedClock(start_ns), start_ns, base) for sensor in config.sensors]
    streams = [_until(source.samples(), end_ns) for source in sources]
    yield from heapq.merge(*streams, key=lambda samples: samples.start_ns)
    for source in sources:
        source.close()


def _until(stream: Iterable[Samples], end_ns: int) -> Iterator[Samples]:
    for samples in stream:
        if samples.start_ns >= end_ns:
            return
        yield samples


def through(pipeline: Pipeline, stream: Iterable[Samples]) -> Iterator[Message]:
    """All messages that a finite stream leads to."""
    for samples in stream:
        yield from pipeline.push(samples)
    yield from pipeline.flush()


def commission(config: DeviceConfig, ensemble: Ensemble, recording: Recording) -> Commissioning:
    """Learn normal running from a recording, with the windows and flags that the live device would see.

    What is labelled as a fault is left out of it, and shown to the recogniser of states.
    """
    labels = recording.labels()
    normal = _learned(config, ensemble, recording, Station(config.device.states), labels, without_faults)
    faults = [structs.replace(label, sensor="") for label in labels if label.fault and label.confirmed]
    if not faults:
        return normal
    ended = [structs.replace(label, start_ns=label.end_ns, label="") for label in faults]
    kinds = Station({"", *(label.label for label in faults)})
    shown = _learned(config, ensemble, recording, kinds, [*ended, *faults], within_faults)
    return replace(normal, shown=shown if shown.moments else None)


def _learned(
    config: DeviceConfig,
    ensemble: Ensemble,
    recording: Recording,
    station: Station,
    labels: Sequence[Label],
    part: Part,
) -> Commissioning:
    """What a device takes from a part of a recording whose labels tell the station's state."""
    pipeline = Pipeline(config)
    pipeline.ensemble, pipeline.station = ensemble, station
    pipeline.commissioning = Commissioning.begin(pipeline.modalities, ensemble.encoders)
    if part is within_faults:
        pipeline.commissioning.rehearsal = None  # nothing is laid over what is faulty already
    station.hear_labels(labels)
    for _ in through(pipeline, recorded(config, recording, part)):
        pass
    return pipeline.commissioning.finished()

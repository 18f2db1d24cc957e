"""A recording, or a simulated line, through the device's own pipeline as fast as it goes."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from edge.commissioning import Commissioning
from edge.config import DeviceConfig
from edge.ensemble import Ensemble
from edge.pipeline import Pipeline
from edge.sensors.table import open_sensor
from lineside.clock import NS, SimulatedClock
from lineside.errors import ConfigError
from lineside.messages import Message
from lineside.recording import Recording, without_faults
from lineside.windows import Samples


def recorded(config: DeviceConfig, recording: Recording, faults: bool = True) -> Iterator[Samples]:
    """The samples of a recording, under the names that the device gives its sensors; `faults`: the faulty ones too.

    Raises ConfigError when the recording has none of them.
    """
    names = {sensor.recorded or sensor.name: sensor.name for sensor in config.sensors}
    if not set(names) & set(recording.about.sensors):
        have = ", ".join(sorted(recording.about.sensors)) or "none"
        mend = "name the recorded sensor with `recorded` in [[sensors]]"
        raise ConfigError(str(recording.path), f"has the sensors {have}, the device wants {', '.join(names)}", mend)
    stream = recording.samples()
    for samples in stream if faults else without_faults(stream, recording.labels()):
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

    What is labelled as a fault is left out.
    """
    pipeline = Pipeline(config)
    pipeline.ensemble = ensemble
    pipeline.commissioning = Commissioning.begin(pipeline.modalities, ensemble.encoders)
    pipeline.station.hear_labels(recording.labels())
    for _ in through(pipeline, recorded(config, recording, faults=False)):
        pass
    return pipeline.commissioning.finished()

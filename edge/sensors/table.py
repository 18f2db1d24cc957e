"""The table of sensor sources: a new kind of sensor is one line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge.config import SensorSettings
from edge.sensors.base import Sensor
from edge.sensors.isolated import Isolated
from lineside.clock import Clock

Make = Callable[[SensorSettings, Clock, int, Path], Sensor]


# What a source needs is loaded by who needs it: a microphone's process has no use for OpenCV.


def _camera(settings: SensorSettings, clock: Clock, origin_ns: int, base: Path) -> Sensor:
    from edge.sensors.camera import camera

    return camera(settings, clock, origin_ns, base)


def _microphone(settings: SensorSettings, clock: Clock, origin_ns: int, base: Path) -> Sensor:
    from edge.sensors.microphone import Microphone

    return Microphone(settings, clock, origin_ns, base)


def _series(settings: SensorSettings, clock: Clock, origin_ns: int, base: Path) -> Sensor:
    from edge.sensors.series import Series

    return Series(settings, clock, origin_ns, base)


def _replay(settings: SensorSettings, clock: Clock, origin_ns: int, base: Path) -> Sensor:
    from edge.sensors.replay import Replay

    return Replay(settings, clock, origin_ns, base)


def _simulation(settings: SensorSettings, clock: Clock, origin_ns: int, base: Path) -> Sensor:
    from edge.sensors.simulation import simulated

    return simulated(settings, clock, origin_ns, base)


@dataclass(frozen=True)
class Source:
    """A row: what makes such a sensor, and whether a driver is behind it, which may hang."""

    make: Make
    driver: bool


SENSORS: dict[str, Source] = {
    "camera": Source(_camera, driver=True),
    "microphone": Source(_microphone, driver=True),
    "series": Source(_series, driver=True),
    "replay": Source(_replay, driver=False),
    "simulation": Source(_simulation, driver=False),
}


def open_sensor(
    settings: SensorSettings, clock: Clock, origin_ns: int, base: Path, *, isolated: bool = False
) -> Sensor:
    """The sensor that `settings` describe, not yet opened: its `samples` do that.

    `origin_ns` is the common beginning of all replayed and simulated sensors of one agent; relative files start from
    the folder `base`. `isolated` puts one with a driver into a process of its own.
    """
    source = SENSORS[settings.source]
    make = Isolated if isolated and source.driver else source.make
    return make(settings, clock, origin_ns, base)

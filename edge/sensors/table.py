"""The table of sensor sources: a new kind of sensor is one line here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edge.config import SensorSettings
from edge.sensors.base import Sensor
from edge.sensors.camera import camera
from edge.sensors.microphone import Microphone
from edge.sensors.replay import Replay
from edge.sensors.series import Series
from edge.sensors.simulation import simulated
from lineside.clock import Clock

SENSORS: dict[str, Callable[[SensorSettings, Clock, int, Path], Sensor]] = {
    "camera": camera,
    "microphone": Microphone,
    "series": Series,
    "replay": Replay,
    "simulation": simulated,
}


def open_sensor(settings: SensorSettings, clock: Clock, origin_ns: int, base: Path) -> Sensor:
    """The sensor that `settings` describe, not yet opened: its `samples` do that.

    `origin_ns` is the common beginning of all replayed and simulated sensors of one agent; relative files start from
    the folder `base`.
    """
    return SENSORS[settings.source](settings, clock, origin_ns, base)

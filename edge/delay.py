"""How long an alarm takes, from how strange single moments of a fault are."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge.config import DeviceConfig
from lineside.sequential import e_value

COURSES, HORIZON_S, DAY_S = 200, 600.0, 86_400.0
By = Literal["", "anomaly", "health"]


class Delay(NamedTuple):
    """Windows until the first alarm, in the median, and what raises it: a health rule or the anomaly.

    None and "" where in half of the courses none comes within HORIZON_S.
    """

    windows: float | None
    by: By


def delay(p_values: NDArray[np.float64], flagged: NDArray[np.bool_], config: DeviceConfig) -> Delay:
    """The delay of a fault whose moments have these p-values (n,), or a flagged sensor (n,), n >= 1.

    By COURSES of moments drawn from these as if one told nothing of the next, and by the rules of edge.alarm: strange
    moments that crowd, weak evidence that lasts, flagged windows in a row. Where strange windows come in rows, or
    never twice, the line's own delay is another.

    >>> from edge.config import DeviceSettings, SensorSettings
    >>> sensor = SensorSettings(name="mic0", modality="microphone", source="simulation")
    >>> config = DeviceConfig(device=DeviceSettings(id="a", site="b", station="c"), sensors=[sensor])
    >>> delay(np.array([1e-6]), np.array([False]), config), delay(np.array([1.0]), np.array([True]), config)
    (Delay(windows=5.0, by='anomaly'), Delay(windows=3.0, by='health'))
    """
    windows = round(HORIZON_S / config.windows.hop_s)
    drawn = np.random.default_rng(len(p_values)).integers(len(p_values), size=(windows, COURSES))
    alarm = config.alarm
    crowded = _of_last(p_values <= alarm.p_limit, drawn, alarm.of) >= alarm.raise_count
    health = _first(_of_last(flagged, drawn, alarm.sensor_count) == alarm.sensor_count)
    anomaly = _first(crowded | _lasts(p_values, drawn, config))
    median = float(np.median(np.minimum(health, anomaly)))
    if not math.isfinite(median):
        return Delay(None, "")
    return Delay(median, "health" if np.mean(health <= anomaly) > 0.5 else "anomaly")


def _of_last(true: NDArray[np.bool_], drawn: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """How many of the last `count` moments are true, at each moment of each course."""
    total = np.cumsum(np.concatenate([np.zeros((count, drawn.shape[1]), np.int64), true[drawn]]), axis=0)
    return np.asarray(total[count:] - total[:-count])


def _lasts(p_values: NDArray[np.float64], drawn: NDArray[np.int64], config: DeviceConfig) -> NDArray[np.bool_]:
    """Where lineside.sequential, which takes windows that share no sample, is at its run length."""
    apart = math.ceil(config.windows.length_s / config.windows.hop_s - 1e-9)
    run_length = config.alarm.days_each * DAY_S / config.windows.length_s
    e_values = np.array([e_value(float(p)) for p in p_values])
    value, reached = np.zeros(drawn.shape[1]), np.zeros(drawn.shape, np.bool_)
    for moment in range(0, len(drawn), apart):
        value = np.minimum(run_length, (value + 1) * e_values[drawn[moment]])
        reached[moment] = value >= run_length
    return reached


def _first(true: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The number, from 1 on, of the first true moment of each course; infinite where there is none."""
    return np.where(true.any(axis=0), true.argmax(axis=0) + 1.0, np.inf)

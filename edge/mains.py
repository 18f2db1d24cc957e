"""The mains in a sound: narrow lines at multiples of 50 or 60 Hz, found and taken out again.

A shield that is torn or earthed twice puts the mains and its odd multiples into a microphone's cable. Iron that hums (a
transformer, a motor's core) is drawn twice in each period, so that it sounds at even multiples: these alone are
a machine. A motor's own lines wander with its speed and its load, and do not stand on a multiple for long.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

GRIDS_HZ = (50.0, 60.0)
ORDERS = 10  # the highest multiple that is looked for
OFF = 0.004  # the mains is off its frequency by at most this share (EN 50160 allows 1 %, in half a percent of a year)
NEAR_HZ, AROUND_HZ, STANDS_OUT = 3.0, 10.0, 100.0  # a line has so many times the power of what is around it
FINER = 16  # bins of the spectrum for one that the sound's length resolves


def lines(sound: NDArray[np.generic], rate_hz: float, grid_hz: float) -> list[float]:
    """The multiples of the mains in Hz, up to the highest line that stands out on one, in a sound (n,).

    None, unless two stand out and one of them is odd. Those between are there too, hidden by what lies beside them.

    >>> time_s = np.arange(16_000) / 16_000
    >>> cable, iron = [sum(np.cos(2 * np.pi * hz * time_s) for hz in parts) for parts in ((50, 150), (100, 200))]
    >>> noise = np.random.default_rng(1).normal(0, 0.3, 16_000)
    >>> [round(line) for line in lines(cable + noise, 16_000, 50.0)], lines(iron + noise, 16_000, 50.0)
    ([50, 100, 150], [])
    """
    heard = np.asarray(sound, np.float64)
    power = np.abs(np.fft.rfft(heard * np.hanning(len(heard)), FINER * len(heard))) ** 2
    hz = np.asarray(np.fft.rfftfreq(FINER * len(heard), 1 / rate_hz), np.float64)
    orders = [k for k in range(1, ORDERS + 1) if k * grid_hz + AROUND_HZ < rate_hz / 2]
    standing = {k: line for k in orders if (line := _line(hz, power, k * grid_hz)) is not None}
    if len(standing) < 2 or not any(k % 2 for k in standing):
        return []
    mains_hz = float(np.median([line / k for k, line in standing.items()]))
    return [k * mains_hz for k in range(1, max(standing) + 1)]


def _line(hz: NDArray[np.float64], power: NDArray[np.float64], at_hz: float) -> float | None:
    """The frequency of the strongest bin by `at_hz`, if it stands out of those around."""
    off_hz = np.abs(hz - at_hz)
    here, around = off_hz <= max(0.5, OFF * at_hz), (off_hz > NEAR_HZ) & (off_hz <= AROUND_HZ)
    peak = int(np.argmax(np.where(here, power, -1.0)))
    stands_out = power[peak] > STANDS_OUT * float(np.median(power[around]))
    return float(hz[peak]) if stands_out else None


def without(sound: NDArray[np.generic], rate_hz: float, found_hz: Sequence[float]) -> NDArray[np.int16]:
    """The sound (n,) int16 less these lines, fitted by least squares. Of one strength: one that may change takes more.

    >>> hum = 1000 * np.cos(2 * np.pi * 50.1 * np.arange(8_000) / 8_000)
    >>> int(np.abs(without(hum, 8_000, [50.1])).max())
    0
    """
    heard = np.asarray(sound, np.float64)
    angle = 2 * np.pi * np.outer(np.arange(len(heard)) / rate_hz, found_hz)
    waves = np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
    rest = heard - waves @ np.linalg.lstsq(waves, heard, rcond=None)[0]
    return np.asarray(np.clip(np.round(rest), -32_768, 32_767), np.int16)

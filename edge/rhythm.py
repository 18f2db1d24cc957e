"""The rhythm that an injected fault keeps, counted from its beginning: the same for picture and sound."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lineside.clock import NS
from lineside.windows import Samples

KNOCK_S, SLIP_S = 1.2, 1.6  # seconds from one knock to the next, and from one slip of the belt to the next
CHATTER_S = 2.4  # from one chattering stroke of the press to the next
SLOW = 0.66  # the speed of a slow motor, as a share of what it should be


def times_s(samples: Samples, since_ns: int) -> NDArray[np.float64]:
    """Capture time of each sample in seconds since `since_ns`; below 0 for what was captured just before it."""
    if samples.stamps_ns is not None:
        return np.asarray((samples.stamps_ns - since_ns) / NS)
    return numbers(samples, since_ns) / samples.rate_hz


def numbers(samples: Samples, since_ns: int) -> NDArray[np.int64]:
    """The number of each sample, 0 for the one at `since_ns`: the same in whatever blocks they come."""
    return round((samples.start_ns - since_ns) * samples.rate_hz / NS) + np.arange(len(samples.data))


def after(time_s: Any, period_s: float) -> Any:
    """Seconds since the last beat.

    >>> after(2.5, 1.0)
    0.5
    """
    return time_s % period_s


def lag_s(time_s: Any, speed: float, turn_s: float) -> Any:
    """How far behind what is now heard or seen at `speed` lies, so that what lies behind stays short.

    It grows (or shrinks, above speed 1) evenly for `turn_s` and then leaps back.

    >>> float(lag_s(1.5, 0.75, 2.0)), float(lag_s(2.0, 0.75, 2.0)), float(lag_s(0.5, 1.25, 2.0))
    (0.375, 0.0, 0.375)
    """
    way_s = after(time_s, turn_s) * abs(1 - speed)
    return way_s if speed < 1 else turn_s * (speed - 1) - way_s

"""What channels did lately, fine for the last minutes and coarse for the last days, in memory that does not grow."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SLOTS, FOLD, LEVELS = 64, 4, 8  # a million windows: means of 1, 4, 16 ... windows, the last 64 of each
BEFORE = 16  # windows at least that are shown from before a change; of one that is longer ago, half as many as since
FARTHEST = 10.0  # standard deviations: a single wild window is no curve


class Trace:
    """The course of channels: `means` (LEVELS, SLOTS, channels), rings over the `heard` windows; NaN where absent.

    Each level holds means of FOLD of the level below: a span with gaps counts as much as one without.

    >>> trace = Trace(1)
    >>> for window in range(300):
    ...     trace.hear(np.array([float(window >= 200)]))
    >>> len(trace.of(0, 4)), len(trace.of(0, 100)), trace.of(0, 100)[11:15]
    (20, 38, (0.0, 0.0, 1.0, 1.0))
    """

    def __init__(self, channels: int) -> None:
        self.means = np.full((LEVELS, SLOTS, channels), np.nan)
        self.heard = 0

    def hear(self, values: Floats) -> None:
        """Take the values (channels,) of the next window; one in FOLD closes a span, one in FOLD of those the next."""
        self.means[0, self.heard % SLOTS] = values
        self.heard += 1
        count = self.heard
        for level in range(LEVELS - 1):
            if count % FOLD:
                return
            last = count % SLOTS or SLOTS
            folded = _mean(self.means[level, last - FOLD : last])
            count //= FOLD
            self.means[level + 1, (count - 1) % SLOTS] = folded

    def of(self, channel: int, windows: int) -> tuple[float, ...]:
        """At most SLOTS means over equal spans, of `windows` windows and some before, less spans without a value."""
        wanted = max(1, windows) + max(BEFORE, windows // 2)
        level = next((k for k in range(LEVELS) if SLOTS * FOLD**k >= wanted), LEVELS - 1)
        spans = self.heard // FOLD**level
        shown = np.arange(spans - min(spans, SLOTS, -(-wanted // FOLD**level)), spans) % SLOTS
        course = np.clip(self.means[level, shown, channel], -FARTHEST, FARTHEST)
        return tuple(course[np.isfinite(course)].tolist())


def _mean(values: Floats) -> Floats:
    """Means (channels,) of what is known of values (windows, channels); NaN where nothing is."""
    near = np.minimum(np.maximum(values, -FARTHEST), FARTHEST)
    total: Floats = np.add.reduce(near, axis=0)
    if math.isfinite(float(np.add.reduce(total))):
        return total / len(values)
    known = np.isfinite(near)
    count = known.sum(axis=0)
    return np.asarray(np.where(known, near, 0.0).sum(axis=0) / np.where(count, count, np.nan))

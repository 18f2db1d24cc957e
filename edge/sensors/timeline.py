"""A source's own time against ours: its offset and drift, estimated from when its samples arrive.

A sensor's clock is even but runs a little fast or slow; arrivals are in our time but late by a queue, a bus, a busy
core. No sample comes before it was taken, so the earliest arrivals of each second lie on a line whose slope is the
drift (Moon, Skelly, Towsley, "Estimation and Removal of Clock Skew from Network Delay Measurements", INFOCOM 1999).
The delay that even the earliest have cannot be seen from here: `latency_ms` of the sensor's settings takes it off.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from lineside.clock import NS
from lineside.windows import Timing

SECONDS = 120  # of earliest arrivals that the line is drawn through
FIT_S = 20.0  # less than that says too little about a slope
SETTLE_S, SETTLE_FIRST_S = 2.0, 1.0
LOW = 0.1  # share of the seconds' earliest arrivals below the line: single ones are early by an error of their stamp


@dataclass
class Timeline:
    """Places a source's samples in our time, evenly.

    When a sample is farther than `slack_s` from where it was expected, samples are missing (or the source's time was
    set): the line starts anew there.

    >>> line = Timeline()
    >>> ours = [second * 1_000_100_000 + 5_000_000 for second in range(60)]  # the source is slow by 100 ppm
    >>> placed = [line.place(second * NS, arrival)[0] for second, arrival in enumerate(ours)]
    >>> round(line.timing.drift_ppm), max(abs(a - b) for a, b in zip(placed, ours)) < 3_000_000
    (100, True)
    """

    slack_s: float = 0.25
    _base_ns: int | None = None
    _first_ns: int = 0
    _last_ns: int = 0
    _offset: float = 0.0  # ours minus the source's, beyond _base_ns
    _slope: float = 0.0
    _level: float = 0.0
    _minima: deque[tuple[int, float, float]] = field(default_factory=lambda: deque(maxlen=SECONDS))

    @property
    def timing(self) -> Timing:
        """How far the source has fallen behind, and how fast it does, as known now."""
        return Timing(round(self._offset), self._slope * 1e6)

    def place(self, source_ns: int, measured_ns: int) -> tuple[int, bool]:
        """When a sample was taken that the source stamped `source_ns` and that was measured at `measured_ns`; and
        whether the line starts anew with it, the first sample apart."""
        first = self._base_ns is None
        late = 0.0 if self._base_ns is None else float(measured_ns - source_ns - self._base_ns)
        jumped = not first and abs(late - self._offset) > self.slack_s * NS
        if first or jumped:
            self._base_ns, self._first_ns = measured_ns - source_ns, source_ns
            self._offset = late = 0.0  # the slope stays: it is the same clock
            self._minima.clear()
        else:
            self._hear(source_ns - self._first_ns, late)
        self._last_ns = source_ns
        assert self._base_ns is not None
        return source_ns + self._base_ns + round(self._offset), jumped

    def _hear(self, since_ns: int, late: float) -> None:
        second = since_ns // NS
        if self._minima and self._minima[-1][0] == second:
            if late < self._minima[-1][2]:
                self._minima[-1] = second, since_ns / NS, late
        else:
            self._fit()
            self._minima.append((second, since_ns / NS, late))
        if not self.fitted:
            self._level = min(late - self._slope * NS * at_s for _, at_s, late in self._minima)
        settle_s = SETTLE_S if self.fitted else SETTLE_FIRST_S
        passed_s = (since_ns + self._first_ns - self._last_ns) / NS
        target = self._level + self._slope * since_ns
        self._offset += (target - self._offset) * -math.expm1(-max(passed_s, 0.0) / settle_s)

    @property
    def fitted(self) -> bool:
        """Whether the source has been heard long enough, without a jump, for its drift to be known."""
        return bool(self._minima) and self._minima[-1][1] - self._minima[0][1] >= FIT_S

    def _fit(self) -> None:
        """The line below the earliest arrivals: the median of all slopes (Theil and Sen), and a low quantile."""
        if not self.fitted:
            return
        _, at_s, late = np.array(self._minima).T
        rows, columns = np.triu_indices(len(at_s), 1)
        self._slope = float(np.median((late[columns] - late[rows]) / (at_s[columns] - at_s[rows]))) / NS
        self._level = float(np.quantile(late - self._slope * NS * at_s, LOW))


@dataclass
class Counted:
    """The timeline of a source whose own time is its count of samples at `rate_hz`."""

    rate_hz: float
    slack_s: float = 0.25
    _count: int = 0
    _line: Timeline = field(init=False)

    def __post_init__(self) -> None:
        self._line = Timeline(self.slack_s)

    @property
    def timing(self) -> Timing:
        """As Timeline.timing; positive drift is a source that gives fewer samples a second than it says."""
        return self._line.timing

    def place(self, measured_ns: int, count: int) -> tuple[int, bool]:
        """Start of the next block of `count` samples, measured at `measured_ns`; and whether a gap precedes it."""
        placed = self._line.place(round(self._count * NS / self.rate_hz), measured_ns)
        self._count += count
        return placed

"""What sensors share about time: waiting for a moment that may be called off, and the even grid of a live stream."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from lineside.clock import NS, Clock

SLICE_S = 0.1
BLOCK_S = 0.1  # length of a block of sound or series: two in the shortest hop that anybody uses


@dataclass
class Pace:
    """Waits on a clock in slices, so that `close` from another thread ends the wait soon."""

    clock: Clock
    _closed: threading.Event = field(default_factory=threading.Event)

    def wait(self, until_ns: int) -> bool:
        """Wait until `until_ns`; False when closed instead."""
        while not self._closed.is_set() and (left_ns := until_ns - self.clock.now_ns()) > 0:
            self.clock.sleep(min(left_ns / NS, SLICE_S))
        return not self._closed.is_set()

    @property
    def closed(self) -> bool:
        """Whether somebody closed the sensor."""
        return self._closed.is_set()

    def close(self) -> None:
        """End every wait, now and later."""
        self._closed.set()


@dataclass
class Grid:
    """Even time for the blocks of a live stream of `rate_hz` samples a second.

    Arrival jitters by milliseconds while the samples themselves are even, so each block follows the last one and the
    grid is drawn gently towards the measured time. When the two differ by more than `slack_s`, samples are missing
    (or the source runs at another rate than it says): the grid starts anew there.

    >>> grid = Grid(rate_hz=1000.0)
    >>> grid.place(0, 100), grid.place(103_000_000, 100), grid.place(900_000_000, 100)
    ((0, False), (100060000, False), (900000000, True))
    """

    rate_hz: float
    slack_s: float = 0.25
    pull: float = 0.02
    _next_ns: int | None = None

    def place(self, measured_ns: int, count: int) -> tuple[int, bool]:
        """Start of the next block of `count` samples, measured at `measured_ns`; and whether a gap precedes it."""
        start_ns, jumped = measured_ns, False
        if self._next_ns is not None:
            error_ns = measured_ns - self._next_ns
            jumped = abs(error_ns) > self.slack_s * NS
            start_ns = measured_ns if jumped else self._next_ns + round(self.pull * error_ns)
        self._next_ns = start_ns + round(count * NS / self.rate_hz)
        return start_ns, jumped

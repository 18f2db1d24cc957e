"""Waiting for a moment of the clock, which may be called off."""

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

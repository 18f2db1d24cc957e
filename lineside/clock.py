"""Time as an argument: one clock per process, monotonic whatever the wall clock does."""

from __future__ import annotations

import threading
import time
from typing import Protocol

NS = 1_000_000_000


class Clock(Protocol):
    """Nanoseconds since the Unix epoch that never run backwards, and a way to wait."""

    def now_ns(self) -> int: ...

    def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """Wall time read once, then carried by the monotonic clock: later wall-clock jumps change nothing."""

    def __init__(self) -> None:
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    def now_ns(self) -> int:
        return time.monotonic_ns() + self._offset_ns

    def sleep(self, seconds: float) -> None:
        time.sleep(max(0.0, seconds))


class SimulatedClock:
    """A clock that moves only when somebody sleeps on it: a shift passes in seconds, tests hold time still.

    >>> clock = SimulatedClock(start_ns=5)
    >>> clock.sleep(2.0)
    >>> clock.now_ns()
    2000000005
    """

    def __init__(self, start_ns: int = 0) -> None:
        self._now_ns = start_ns
        self._lock = threading.Lock()

    def now_ns(self) -> int:
        return self._now_ns

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self._now_ns += max(0, round(seconds * NS))

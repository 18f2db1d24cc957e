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
    """Wall time read once, then carried by the monotonic clock: later wall-clock jumps change nothing.

    `offset_ns` makes it the clock of another process of this machine, which may have read the wall at another time.
    """

    def __init__(self, offset_ns: int | None = None) -> None:
        self._offset_ns = time.time_ns() - time.monotonic_ns() if offset_ns is None else offset_ns

    def now_ns(self) -> int:
        return time.monotonic_ns() + self._offset_ns

    def sleep(self, seconds: float) -> None:
        time.sleep(max(0.0, seconds))


def offset_ns(clock: Clock) -> int:
    """How far `clock` is ahead of this machine's monotonic clock, nanoseconds."""
    return clock.now_ns() - time.monotonic_ns()


def wall_error_ns(clock: Clock) -> int:
    """How far the wall clock has been set ahead of `clock` (behind: negative), nanoseconds."""
    return time.time_ns() - clock.now_ns()


def wall_ns() -> int:
    """What the wall clock shows, nanoseconds since the Unix epoch: for what must be right by the calendar."""
    return time.time_ns()


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

"""Work that waits for another thread: bounded by the bytes that it holds on to."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

Work = Callable[[], None]


class Backlog:
    """A queue that never blocks the one who puts; `dropped` counts what did not fit."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._waiting: deque[tuple[Work, int]] = deque()
        self._some = threading.Condition()
        self._ended = False
        self.bytes = self.dropped = 0

    def put(self, work: Work, size: int = 0) -> bool:
        """Whether it fitted; what holds no bytes always does."""
        with self._some:
            if size and self.bytes + size > self._max_bytes:
                self.dropped += 1
                return False
            self._waiting.append((work, size))
            self.bytes += size
            self._some.notify()
            return True

    def take(self, timeout_s: float) -> Work | None:
        """The oldest work; None when none came in time, or none will come."""
        with self._some:
            self._some.wait_for(lambda: self._waiting or self._ended, timeout_s)
            if not self._waiting:
                return None
            work, size = self._waiting.popleft()
            self.bytes -= size
            return work

    def end(self) -> None:
        """Nothing more will come."""
        with self._some:
            self._ended = True
            self._some.notify()

    @property
    def done(self) -> bool:
        """Whether the end was told and everything taken."""
        with self._some:
            return self._ended and not self._waiting

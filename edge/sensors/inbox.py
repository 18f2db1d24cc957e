"""Between a driver's thread and its reader: a bounded queue that counts what it drops and notices silence."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Iterator
from typing import Generic, TypeVar

from lineside.errors import SensorError

T = TypeVar("T")


class Inbox(Generic[T]):
    """Items from one thread to another; `dropped` counts those that found the queue full."""

    def __init__(self, sensor: str, size: int) -> None:
        self._sensor = sensor
        self._items: queue.Queue[T | None] = queue.Queue(size)
        self._end: SensorError | None = None
        self.closed = False
        self.dropped = 0

    def put(self, item: T) -> bool:
        """Hand over an item; False, and counted, when the reader is too far behind."""
        try:
            self._items.put_nowait(item)
        except queue.Full:
            self.dropped += 1
            return False
        return True

    def fail(self, error: SensorError) -> None:
        """Let the reader end with `error` after the items that wait."""
        self._end = error
        self._wake()

    def close(self) -> None:
        """Let the reader end soon, without what waits."""
        self.closed = True
        self._wake()

    def items(self, stall_s: float, first_s: float, mend: str) -> Iterator[T]:
        """Items as they come. Raises SensorError when none came for `stall_s` (`first_s` for the first one)."""
        patience_s = first_s
        while not self.closed:
            if self._end is not None and self._items.empty():
                raise self._end
            try:
                item = self._items.get(timeout=patience_s)
            except queue.Empty:
                raise SensorError(self._sensor, f"nothing came for {patience_s:g} s", mend) from None
            if item is not None and not self.closed:
                yield item
                patience_s = stall_s

    def _wake(self) -> None:
        with contextlib.suppress(queue.Full):  # a reader with so much to take looks at `closed` and `_end` anyway
            self._items.put_nowait(None)

"""A bounded queue that is fair to devices: one that floods waits for itself, and not the others for it.

Each device has a line of its own and the lines are served in turn (Nagle, RFC 970, section 4.3). When all places are
taken, everybody waits for the next one, but a device that floods is turned away: one that holds half of them, or twice
its equal share.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from typing import Generic, Literal, TypeVar

T = TypeVar("T")
Answer = Literal["room", "wait", "away"]


class FairQueue(Generic[T]):
    """Rows by device, filled by one thread and emptied by another.

    >>> queue = FairQueue[int](places=4)
    >>> for number in (1, 2, 3):
    ...     queue.put("loud", number)
    >>> queue.put("quiet", 7)
    >>> queue.answer("loud"), queue.answer("quiet")
    ('away', 'wait')
    >>> queue.take(3, wait_s=0)
    [1, 7, 2]
    """

    def __init__(self, places: int) -> None:
        self.places = places
        self._lines: OrderedDict[str, deque[T]] = OrderedDict()
        self._size = 0
        self._wanted = 1
        self._filled = threading.Condition()

    def __len__(self) -> int:
        return self._size

    def answer(self, device: str) -> Answer:
        """Whether a row of `device` may be put now, must wait, or is turned away."""
        if self._size < self.places:
            return "room"
        with self._filled:
            own = self._lines.get(device, ())
            share = self.places / (len(self._lines) + (not own))
            return "away" if len(own) >= min(2 * share, self.places / 2) else "wait"

    def put(self, device: str, row: T) -> None:
        """Add a row; ask `answer` first."""
        with self._filled:
            if (line := self._lines.get(device)) is None:
                line = self._lines[device] = deque()
            line.append(row)
            self._size += 1
            # Waking the reader at every row would make the two threads take turns at each of them.
            if self._size == self._wanted:
                self._filled.notify()

    def take(self, most: int, wait_s: float, gather_s: float = 0.0) -> list[T]:
        """Up to `most` rows in turn: waits for a first one, then for more, but no longer than `gather_s`."""
        with self._filled:
            self._wanted = 1
            if self._filled.wait_for(lambda: self._size > 0, wait_s) and self._size < most and gather_s:
                self._wanted = most
                self._filled.wait_for(lambda: self._size >= most, gather_s)
            taken: list[T] = []
            while self._lines and len(taken) < most:
                device, line = self._lines.popitem(last=False)
                taken.append(line.popleft())
                if line:
                    self._lines[device] = line  # to the end: the next device's turn
            self._size -= len(taken)
            return taken

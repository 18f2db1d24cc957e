"""How much may be under way without anybody waiting for it: LEDBAT (RFC 6817), in messages instead of bytes.

Devices that come back with days of messages would fill the broker's one line to the hub, and everybody's new messages
would wait in it. Each can see that line grow: its own messages take longer than the quickest of the last minutes did.
So it sends less, and more again when they do not, and no device has to know of the others.
"""

from __future__ import annotations

from collections import deque

from lineside.clock import NS

TARGET_S = 0.05  # what all of them together may add to a message's way
LEAST = 16  # a device that has only new messages is never held up by those with old ones
MINUTE_NS = 60 * NS
MINUTES = 10


class Window:
    """At most `most` messages under way; `size` is how many may be now.

    >>> window = Window(512)
    >>> window.size
    16
    >>> for _ in range(1000):
    ...     window.took(NS // 100, 0)  # ten milliseconds each, as always: there is room
    >>> window.size
    47
    >>> for _ in range(1000):
    ...     window.took(NS // 5, 0)  # two hundred: something waits somewhere
    >>> window.size
    16
    """

    def __init__(self, most: int, target_s: float = TARGET_S, least: int = LEAST) -> None:
        self._most, self._least = most, min(least, most)
        self._target_ns = target_s * NS
        self._size = float(self._least)
        self._quickest: deque[tuple[int, int]] = deque(maxlen=MINUTES)  # minute, nanoseconds

    @property
    def size(self) -> int:
        """Messages that may be under way."""
        return int(self._size)

    def took(self, delay_ns: int, now_ns: int) -> None:
        """A message was stored `delay_ns` after it was sent (RFC 6817, 2.4.2, with a gain of 1)."""
        minute = now_ns // MINUTE_NS
        if self._quickest and self._quickest[-1][0] == minute:
            self._quickest[-1] = (minute, min(delay_ns, self._quickest[-1][1]))
        else:
            self._quickest.append((minute, delay_ns))
        queueing_ns = delay_ns - min(quickest for _, quickest in self._quickest)
        off = max(-1.0, 1 - queueing_ns / self._target_ns)
        self._resize(self._size + off / self._size)

    def lost(self) -> None:
        """A message did not arrive in time, and is sent again (2.4.2: as TCP would)."""
        self._resize(self._size / 2)

    def _resize(self, size: float) -> None:
        self._size = min(float(self._most), max(float(self._least), size))

"""What is to be sent next: alarms in a lane of their own, the rest in order and not too fast."""

from __future__ import annotations

from collections.abc import Sequence

from edge.shelf import Lane
from lineside.clock import NS
from lineside.ledbat import Window


class Pace:
    """Messages allowed at `per_s`, saved up for one second at most."""

    def __init__(self, per_s: float, now_ns: int) -> None:
        self._per_s, self._since_ns, self._saved = per_s, now_ns, per_s

    def allowed(self, now_ns: int) -> int:
        """How many may go now.

        >>> pace = Pace(10, 0)
        >>> pace.spend(10)
        >>> pace.allowed(0), pace.allowed(NS // 2), pace.allowed(60 * NS)
        (0, 5, 10)
        """
        self._saved = min(self._per_s, self._saved + (now_ns - self._since_ns) / NS * self._per_s)
        self._since_ns = now_ns
        return int(self._saved)

    def spend(self, count: int) -> None:
        """So many have gone."""
        self._saved -= count


class Way:
    """The oldest `window` messages of one lane, and since when each is under way.

    A message that waits still `resend_s` after it was sent is sent again: the hub stored it not, or its word was lost.
    What came after it goes on meanwhile. How many are under way at a time is a matter of how long they take.
    """

    def __init__(self, lane: Lane, window: int, resend_s: float, pace: Pace) -> None:
        self.lane, self.window = lane, window
        self._resend_ns, self._pace, self._room = round(resend_s * NS), pace, Window(window)
        self._sent_ns: dict[int, int] = {}
        self._held: dict[int, int] = {}

    @property
    def held(self) -> int:
        """How many the client library has in memory."""
        return len(self._held)

    def due(self, waiting: Sequence[int], now_ns: int) -> list[int]:
        """Places to send now, ascending, of those that wait; what the client library has it will send by itself."""
        waits, late = set(waiting), now_ns - self._resend_ns
        for place in [place for place in self._sent_ns if place not in waits]:
            self._room.took(now_ns - self._sent_ns.pop(place), now_ns)
        held, under_way = set(self._held.values()), sum(sent > late for sent in self._sent_ns.values())
        due = [place for place in waiting if self._sent_ns.get(place, late) <= late and place not in held]
        return due[: max(0, min(self._pace.allowed(now_ns), self._room.size - max(len(held), under_way)))]

    def sent(self, place: int, number: int, now_ns: int) -> None:
        """The client library has it, under a number of its own."""
        if place in self._sent_ns:
            self._room.lost()
        self._sent_ns[place], self._held[number] = now_ns, place
        self._pace.spend(1)

    def taken(self, number: int) -> None:
        """The broker has taken it from the client library."""
        self._held.pop(number, None)

    def again(self, now_ns: int) -> None:
        """The connection is a new one: what the broker had may be gone with it; what the library has, it sends now."""
        self._sent_ns = dict.fromkeys(self._held.values(), now_ns)

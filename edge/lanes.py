"""What is to be sent next: alarms in a lane of their own, the rest in order and not too fast."""

from __future__ import annotations

from collections.abc import Sequence

from edge.shelf import Lane
from lineside.clock import NS


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
    What came after it goes on meanwhile.
    """

    def __init__(self, lane: Lane, window: int, resend_s: float, pace: Pace) -> None:
        self.lane, self.window = lane, window
        self._resend_ns, self._pace = round(resend_s * NS), pace
        self._sent_ns: dict[int, int] = {}
        self._held: dict[int, int] = {}

    @property
    def held(self) -> int:
        """How many the client library has in memory."""
        return len(self._held)

    def due(self, waiting: Sequence[int], now_ns: int) -> list[int]:
        """Places to send now, ascending, of those that wait; what the client library has it will send by itself."""
        self._sent_ns = {place: sent for place in waiting if (sent := self._sent_ns.get(place)) is not None}
        held, late = set(self._held.values()), now_ns - self._resend_ns
        due = [place for place in waiting if self._sent_ns.get(place, late) <= late and place not in held]
        return due[: max(0, min(self._pace.allowed(now_ns), self.window - len(held)))]

    def sent(self, place: int, number: int, now_ns: int) -> None:
        """The client library has it, under a number of its own."""
        self._sent_ns[place], self._held[number] = now_ns, place
        self._pace.spend(1)

    def taken(self, number: int) -> None:
        """The broker has taken it from the client library."""
        self._held.pop(number, None)

    def again(self, now_ns: int) -> None:
        """The connection is a new one: what the broker had may be gone with it; what the library has, it sends now."""
        self._sent_ns = dict.fromkeys(self._held.values(), now_ns)

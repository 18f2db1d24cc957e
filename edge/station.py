"""What the station says of itself: which product it makes, whether it runs. Told by a PLC's gateway, or by labels."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable

from lineside.recording import Label

KEPT = 256  # changes of state; a moment is judged seconds after it was, not hours


class Station:
    """Which of the `known` states the station was in. One thread tells, another asks.

    Nothing is expected of a station without states (`known` is empty), whatever it is told.
    """

    def __init__(self, known: Iterable[str]) -> None:
        self.known = tuple(known)
        self._told: tuple[tuple[int, str], ...] = ()

    def hear(self, state: str, since_ns: int) -> None:
        """The station has been in `state` since then; it may come late, and out of order."""
        if not self.known:
            return
        told = [one for one in self._told if one[0] != since_ns]
        bisect.insort(told, (since_ns, state))
        if len(told) > KEPT:  # what is told again and again says nothing new
            told = [told[0], *(now for before, now in itertools.pairwise(told) if now[1] != before[1])]
        self._told = tuple(told[-KEPT:])

    def hear_labels(self, labels: Iterable[Label]) -> None:
        """Labels of a recording: those of the whole station that name a known state."""
        for label in labels:
            if label.label in self.known and not label.sensor:
                self.hear(label.label, label.start_ns)

    def at(self, start_ns: int, end_ns: int) -> str | None:
        """The state that held from `start_ns` until `end_ns`: "" where none was told; None where it changed between.

        >>> press = Station(["idle", "runs"])
        >>> press.hear("runs", 100)
        >>> press.at(0, 90), press.at(90, 110), press.at(100, 120)
        ('', None, 'runs')
        """
        if not self.known:
            return ""
        told = self._told
        first, last = (bisect.bisect_left(told, (at, "")) for at in (start_ns + 1, end_ns))
        state = told[first - 1][1] if first else ""
        return state if all(now == state for _, now in told[first:last]) else None

    def problem(self, now: str | None, learned: Iterable[str]) -> str:
        """What is wrong with the state `now` for one who has learned these; empty when nothing is."""
        if not self.known or now is None:
            return ""
        known = sorted(learned)
        if now in known:
            return ""
        if not now:
            return "the station has not told its state: it is judged as if in any; publish it (`lineside deploy state`)"
        have = ", ".join(known) or "none"
        return f"state {now!r} was not seen at commissioning (known: {have}): nothing is judged in it; commission in it"

"""Keeps a row a minute of the scores that are kept, so that a month of a station is drawn from minutes, not moments.

What is written can be made anew from the scores at any time: a late score makes its minute anew, and a hub that finds
scores without minutes goes back from the newest to the oldest, a little at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from hub import minute_rows
from hub.chore import Chore
from hub.minutes import MINUTE_NS, Minute
from hub.store import Store
from hub.tables import SCORE_OVERVIEW, SCORES
from lineside.clock import Clock

LOG = logging.getLogger("hub.overview")
EVERY_S, PAUSE_S = 20.0, 0.2
CHUNK_NS, AGAIN_NS = 30 * MINUTE_NS, 2 * MINUTE_NS  # at a time; the newest minutes may not be whole yet
LATE_NS, MOST_LATE = 10 * MINUTE_NS, 2000  # looked back for scores that were committed late


class Overview(Chore):
    """Reading is for any thread."""

    def __init__(self, store: Store, devices: Callable[[], Sequence[str]], clock: Clock) -> None:
        super().__init__()
        self._engine, self._insert = store.engine, store.insert
        self._writing = store.engine.execution_options(writes=True)
        self._devices, self._clock = devices, clock
        self._heard_ns = clock.now_ns() - 6 * LATE_NS

    def minutes(self, device: str, since_ns: int, until_ns: int, step_ns: int = 0) -> list[Minute]:
        """Minutes of kept scores that begin in since_ns <= t < until_ns, in order; as Store.score_minutes."""
        return minute_rows.span(self._engine, SCORE_OVERVIEW, device, since_ns, until_ns, step_ns)

    def newest_ns(self, device: str) -> int:
        """When the newest minute of a device begins; 0 without any."""
        with self._engine.connect() as connection:
            had = minute_rows.ends(connection, SCORE_OVERVIEW, device)
        return had[1] if had else 0

    def bring(self, device: str, heard_ns: int, now_ns: int) -> bool:
        """Write what is new, what came late (after `heard_ns`) and a chunk of what is old; whether older is left."""
        with self._engine.connect() as connection:
            had = minute_rows.ends(connection, SCORE_OVERVIEW, device)
            scores = minute_rows.ends(connection, SCORES, device)
            late = minute_rows.late(connection, device, heard_ns, had[1] if had else 0, MOST_LATE)
        if scores is None:
            return False
        until_ns = min(scores[1], now_ns) + 1
        since_ns = had[1] - AGAIN_NS if had else until_ns - until_ns % MINUTE_NS
        while since_ns < until_ns and not self.stopping.is_set():
            self._refresh(device, since_ns, min(since_ns + CHUNK_NS, until_ns))
            since_ns += CHUNK_NS
        for begin_ns in late:
            self._refresh(device, begin_ns, begin_ns + MINUTE_NS)
        return self._back(device, scores[0])

    def _back(self, device: str, first_ns: int) -> bool:
        """A chunk before the oldest minute, past spans without a score; whether something is left."""
        with self._engine.connect() as connection:
            had = minute_rows.ends(connection, SCORE_OVERVIEW, device)
            before = minute_rows.newest_before(connection, device, had[0]) if had else None
        if had is None or before is None:
            return False
        end_ns = before - before % MINUTE_NS + MINUTE_NS
        self._refresh(device, end_ns - CHUNK_NS, min(end_ns, had[0]))
        return end_ns - CHUNK_NS > first_ns

    def _refresh(self, device: str, since_ns: int, until_ns: int) -> None:
        """Whole minutes only: a part of one would take the place of all of it."""
        begin_ns, end_ns = since_ns - since_ns % MINUTE_NS, -(-until_ns // MINUTE_NS) * MINUTE_NS
        with self._writing.begin() as connection:
            minute_rows.refresh(connection, self._insert, device, begin_ns, end_ns)

    def turn(self) -> float:
        """Bring every device's minutes a step further."""
        now_ns, behind = self._clock.now_ns(), False
        for device in self._devices():
            behind |= self.bring(device, self._heard_ns, now_ns)
            if self.stopping.wait(PAUSE_S):
                return 0.0
        self._heard_ns = now_ns - LATE_NS
        return PAUSE_S if behind else EVERY_S

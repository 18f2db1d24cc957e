"""What has been kept long enough goes, in small batches between which ingest writes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

import msgspec

from hub.chore import Chore
from hub.tables import KEPT
from lineside.clock import NS, Clock
from lineside.plant import KeepDays

LOG = logging.getLogger("hub.retention")
DAY_NS = 24 * 3600 * NS
EVERY_S = 3600.0
BATCH_ROWS = 500
PAUSE_S = 0.05


class Rows(Protocol):
    """The store, as far as it forgets."""

    def numberings(self, kind: str) -> list[tuple[str, int]]: ...

    def retire(self, kind: str, device: str, epoch: int, before_ns: int, most: int) -> int: ...


def sweep(store: Rows, keep: KeepDays, now_ns: int, rest: Callable[[], bool]) -> dict[str, int]:
    """Remove what came too long ago; gives how many rows of each kind went.

    `rest` is called after every batch and ends the sweep when it gives True.
    """
    rows = {kind: days for kind, days in msgspec.structs.asdict(keep).items() if kind in KEPT}
    gone = dict.fromkeys(rows, 0)
    for kind, days in rows.items():
        before_ns = now_ns - round(days * DAY_NS)
        for device, epoch in store.numberings(kind):
            while went := store.retire(kind, device, epoch, before_ns, BATCH_ROWS):
                gone[kind] += went
                if rest():
                    return gone
    return gone


class Retention(Chore):
    """A sweep at the start and every hour."""

    def __init__(self, store: Rows, keep: KeepDays, clock: Clock) -> None:
        super().__init__()
        self._store, self._keep, self._clock = store, keep, clock

    def turn(self) -> float:
        """One sweep, ended early by `stop`."""
        gone = sweep(self._store, self._keep, self._clock.now_ns(), lambda: self.stopping.wait(PAUSE_S))
        if any(gone.values()):
            LOG.info("kept long enough: %s", ", ".join(f"{rows} {kind}" for kind, rows in gone.items() if rows))
        return EVERY_S

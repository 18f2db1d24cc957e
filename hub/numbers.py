"""The devices' own numbering of their messages: what has come, what never did, what came and is kept no longer.

Up to the number `upto` of a numbering (device, epoch) the hub has settled what came: everything but what the table
`missing` names. So a row may go without becoming a gap, and a message that is sent once more is known.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa

from hub.tables import KEPT, MISSING, RETIRED, TOMBSTONES, Row
from lineside import ranges, wire

Numbering = tuple[str, int]
LOCK = 0x6C696E65  # any number, the same for all hubs of a database


def lock(connection: sa.Connection, shared: bool) -> None:
    """Until the transaction ends nobody settles numbers (shared), or adds rows either (not shared).

    SQLite has one writer anyway.
    """
    if connection.dialect.name == "postgresql":
        function = sa.func.pg_advisory_xact_lock_shared if shared else sa.func.pg_advisory_xact_lock
        connection.execute(sa.select(function(LOCK)))


def unretired(connection: sa.Connection, rows: Sequence[Row]) -> list[Row]:
    """`rows` without those that have come before and may be kept no longer."""
    devices = {row.place[0] for row in rows}
    found = connection.execute(sa.select(RETIRED).where(RETIRED.c.device.in_(devices)))
    upto = {(each.device, each.epoch): each.upto for each in found}
    return [row for row in rows if _is_new(connection, row, upto)] if upto else list(rows)


def _is_new(connection: sa.Connection, row: Row, upto: dict[Numbering, int]) -> bool:
    """A settled number is new only while it is missing, which it is no more after this."""
    device, epoch, seq = row.place
    if seq > upto.get((device, epoch), 0):
        return True
    c = MISSING.c
    here = sa.and_(c.device == device, c.epoch == epoch, c.first <= seq, c.last >= seq)
    found = connection.execute(sa.select(MISSING).where(here)).first()
    if found is None:
        return False
    connection.execute(sa.delete(MISSING).where(here))
    _miss(connection, device, epoch, ranges.subtract([(found.first, found.last)], [(seq, seq)]))
    return True


def settle(connection: sa.Connection, insert: Callable[[sa.Table], Any], device: str, epoch: int, upto: int) -> None:
    """Write down what of the numbers up to `upto` has not come, before any row of them goes."""
    c = RETIRED.c
    settled = connection.execute(sa.select(c.upto).where(c.device == device, c.epoch == epoch)).scalar() or 0
    if upto <= settled:
        return
    tables = [kept.table for kept in KEPT.values()]
    own = [
        sa.select(t.c.seq).where(t.c.device == device, t.c.epoch == epoch, t.c.seq > settled, t.c.seq <= upto)
        for t in tables
    ]
    have = ranges.merge((row.seq, row.seq) for row in connection.execute(sa.union_all(*own)))
    _miss(connection, device, epoch, ranges.subtract([(settled + 1, upto)], have))
    made = insert(RETIRED).values(device=device, epoch=epoch, upto=upto)
    keys = ["device", "epoch"]
    connection.execute(made.on_conflict_do_update(index_elements=keys, set_={"upto": made.excluded.upto}))


def gaps(connection: sa.Connection, device: str) -> dict[int, list[ranges.Range]]:
    """Per epoch the numbers that never came and that no tombstone stands for; a numbering begins at 1."""
    missing: dict[int, list[ranges.Range]] = defaultdict(list)
    for row in connection.execute(sa.select(MISSING).where(MISSING.c.device == device)):
        missing[row.epoch].append((row.first, row.last))
    for row in connection.execute(_steps(device)):
        missing[row.epoch].append((row.before + 1, row.seq - 1))
    dropped: dict[int, list[ranges.Range]] = defaultdict(list)
    for row in connection.execute(sa.select(TOMBSTONES).where(TOMBSTONES.c.device == device)):
        stone = wire.decode("tombstone", row.body)
        dropped[stone.of_epoch or row.epoch] += stone.ranges
    left = {epoch: ranges.subtract(lost, dropped[epoch]) for epoch, lost in sorted(missing.items())}
    return {epoch: lost for epoch, lost in left.items() if lost}


def _steps(device: str) -> sa.Select[Any]:
    """Where the numbers that are not settled leap: (epoch, before, seq)."""
    tables = [kept.table for kept in KEPT.values()]
    have = sa.union_all(*(sa.select(t.c.epoch, t.c.seq).where(t.c.device == device) for t in tables)).subquery("have")
    here = sa.and_(RETIRED.c.device == device, RETIRED.c.epoch == have.c.epoch)
    settled = sa.func.coalesce(RETIRED.c.upto, 0)
    open_ = sa.select(have.c.epoch, have.c.seq, settled.label("settled")).outerjoin(RETIRED, here)
    late = open_.where(have.c.seq > settled).subquery("late")
    lag = sa.func.lag(late.c.seq, 1).over(partition_by=late.c.epoch, order_by=late.c.seq)
    before = sa.func.coalesce(lag, late.c.settled)
    steps = sa.select(late.c.epoch, late.c.seq, before.label("before")).subquery("steps")
    return sa.select(steps).where(steps.c.seq > steps.c.before + 1)


def _miss(connection: sa.Connection, device: str, epoch: int, lost: list[ranges.Range]) -> None:
    rows = [{"device": device, "epoch": epoch, "first": first, "last": last} for first, last in lost]
    if rows:
        connection.execute(sa.insert(MISSING), rows)

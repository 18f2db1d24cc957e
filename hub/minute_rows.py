"""Rows of the table `score_minutes`: written when scores are kept no longer, read as hub.minutes has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from hub.minutes import Minute, Share, minute, together
from hub.tables import SCORE_MINUTES
from lineside.messages import Score

SUMS = ("scores", "p_value", "evidence", "contributions")


def read(connection: sa.Connection, device: str, since_ns: int, until_ns: int) -> list[Minute]:
    """A device's minutes that begin in since_ns <= t < until_ns, in order."""
    c = SCORE_MINUTES.c
    query = sa.select(SCORE_MINUTES).where(c.device == device, c.start_ns >= since_ns, c.start_ns < until_ns)
    return [_minute(row) for row in connection.execute(query.order_by(c.start_ns, c.station))]


def keep(connection: sa.Connection, insert: Callable[[sa.Table], Any], scores: Sequence[Score]) -> None:
    """Add scores of one device to the rows of their minutes."""
    new = together(minute(score) for score in scores)
    starts = [each.start_ns for each in new.values()]
    had = read(connection, scores[0].device, min(starts), max(starts) + 1)
    whole = together([*had, *new.values()])
    made = insert(SCORE_MINUTES)
    keys = [column.name for column in SCORE_MINUTES.primary_key]
    changed = made.on_conflict_do_update(index_elements=keys, set_={name: made.excluded[name] for name in SUMS})
    connection.execute(changed, [_row(whole[place]) for place in new])


def _row(each: Minute) -> dict[str, Any]:
    return {**msgspec.structs.asdict(each), "contributions": msgspec.json.encode(each.contributions)}


def _minute(row: sa.Row[Any]) -> Minute:
    shares = msgspec.json.decode(row.contributions, type=dict[str, Share])
    return Minute(row.device, row.station, row.start_ns, row.scores, row.p_value, row.evidence, shares)

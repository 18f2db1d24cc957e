"""Rows of the tables of minutes: written as scores come and when they go, read as hub.minutes has them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from hub.minutes import MINUTE_NS, Minute, Share, minute, together
from hub.tables import SCORE_MINUTES, SCORE_OVERVIEW, SCORES
from lineside import wire
from lineside.messages import Score

SAMPLED = 12  # minutes of a step whose shares are decoded
SUMS = ("scores", "p_value", "evidence", "contributions", "p_limit", "agreements")
SHARES = msgspec.json.Decoder(dict[str, Share])
Insert = Callable[[sa.Table], Any]


def read(connection: sa.Connection, table: sa.Table, device: str, since_ns: int, until_ns: int) -> list[Minute]:
    """A device's minutes that begin in since_ns <= t < until_ns, in order."""
    c = table.c
    query = sa.select(table).where(c.device == device, c.start_ns >= since_ns, c.start_ns < until_ns)
    return [_minute(row) for row in connection.execute(query.order_by(c.start_ns, c.station))]


def span(engine: sa.Engine, table: sa.Table, device: str, since_ns: int, until_ns: int, step_ns: int) -> list[Minute]:
    """Minutes as they are, or put together where a step is of many."""
    with engine.connect() as connection:
        if step_ns // MINUTE_NS > SAMPLED:
            return coarse(connection, table, device, since_ns, until_ns, step_ns)
        return read(connection, table, device, since_ns, until_ns)


def coarse(
    connection: sa.Connection, table: sa.Table, device: str, since_ns: int, until_ns: int, step_ns: int
) -> list[Minute]:
    """As `read`, put together by steps of many minutes: the database counts, the shares are of a dozen minutes a step.

    Numbers and the least p-value are of all minutes; the means by name are of those that are decoded.
    """
    c = table.c
    own = sa.and_(c.device == device, c.start_ns >= since_ns, c.start_ns < until_ns)
    begin = (c.start_ns - c.start_ns % step_ns).label("begin")
    every_ns = max(1, step_ns // MINUTE_NS // SAMPLED) * MINUTE_NS
    some = sa.select(begin, c.contributions, c.agreements).where(own, c.start_ns % every_ns == 0)
    shares = together(_shares(device, row) for row in connection.execute(some))
    sums = (
        sa.func.sum(c.scores).label("scores"),
        sa.func.min(c.p_value).label("p_value"),
        sa.func.sum(c.evidence * c.scores).label("evidence"),
        sa.func.max(c.p_limit).label("p_limit"),
    )
    whole = connection.execute(sa.select(begin, *sums).where(own).group_by(begin).order_by(begin))
    return [_step(device, row, shares.get((device, "", row.begin))) for row in whole]


def _shares(device: str, row: Any) -> Minute:
    agreed = SHARES.decode(row.agreements) if row.agreements else {}
    return Minute(device, "", row.begin, 1, 1.0, 0.0, SHARES.decode(row.contributions), 0.0, agreed)


def _step(device: str, row: Any, means: Minute | None) -> Minute:
    scores = int(row.scores)
    contributions, agreements = (means.contributions, means.agreements) if means else ({}, {})
    evidence, limit = row.evidence / scores, row.p_limit or 0.0
    return Minute(device, "", row.begin, scores, row.p_value, evidence, contributions, limit, agreements)


def keep(connection: sa.Connection, insert: Insert, scores: Sequence[Score]) -> None:
    """Add scores of one device, which are kept no longer, to the rows of their minutes."""
    new = together(minute(score) for score in scores)
    starts = [each.start_ns for each in new.values()]
    device = scores[0].device
    had = read(connection, SCORE_MINUTES, device, min(starts), max(starts) + 1)
    whole = together([*had, *new.values()])
    _write(connection, insert, SCORE_MINUTES, [whole[place] for place in new])
    c = SCORE_OVERVIEW.c
    connection.execute(sa.delete(SCORE_OVERVIEW).where(c.device == device, c.start_ns.in_(starts)))


def refresh(connection: sa.Connection, insert: Insert, device: str, since_ns: int, until_ns: int) -> int:
    """Make the overview's minutes of a span anew from the scores that are kept; gives how many there are."""
    c = SCORES.c
    query = sa.select(c.body).where(c.device == device, c.start_ns >= since_ns, c.start_ns < until_ns)
    made = together(minute(wire.decode("score", row.body)) for row in connection.execute(query))
    if made:
        _write(connection, insert, SCORE_OVERVIEW, made.values())
    return len(made)


def late(connection: sa.Connection, device: str, received_ns: int, before_ns: int, most: int) -> list[int]:
    """Minutes before `before_ns` that got a score after the hub's time `received_ns`."""
    c = SCORES.c
    begin = (c.start_ns - c.start_ns % MINUTE_NS).label("begin")
    query = sa.select(begin).where(c.device == device, c.received_ns > received_ns, c.start_ns < before_ns)
    return [row.begin for row in connection.execute(query.distinct().limit(most))]


def ends(connection: sa.Connection, table: sa.Table, device: str) -> tuple[int, int] | None:
    """When the first and the last row of a device begin, in a table of minutes or of scores."""
    c = table.c
    query = sa.select(c.start_ns).where(c.device == device).limit(1)
    first = connection.execute(query.order_by(c.start_ns)).scalar()
    last = connection.execute(query.order_by(c.start_ns.desc())).scalar()
    return None if first is None or last is None else (first, last)


def newest_before(connection: sa.Connection, device: str, before_ns: int) -> int | None:
    """When the last score of a device before a time began."""
    c = SCORES.c
    query = sa.select(c.start_ns).where(c.device == device, c.start_ns < before_ns)
    return connection.execute(query.order_by(c.start_ns.desc()).limit(1)).scalar()


def _write(connection: sa.Connection, insert: Insert, table: sa.Table, minutes: Iterable[Minute]) -> None:
    made = insert(table)
    keys = [column.name for column in table.primary_key]
    changed = made.on_conflict_do_update(index_elements=keys, set_={name: made.excluded[name] for name in SUMS})
    connection.execute(changed, [_row(each) for each in minutes])


def _row(each: Minute) -> dict[str, Any]:
    values = msgspec.structs.asdict(each)
    limit = values.pop("limit")
    shares = {name: msgspec.json.encode(values[name]) for name in ("contributions", "agreements")}
    return {**values, **shares, "p_limit": limit or None}


def _minute(row: sa.Row[Any]) -> Minute:
    values: tuple[Any, ...] = tuple(row)
    device, start_ns, station, scores, p_value, evidence, shares, p_limit, agreements = values
    contributed, agreed = SHARES.decode(shares), SHARES.decode(agreements) if agreements else {}
    return Minute(device, station, start_ns, scores, p_value, evidence, contributed, p_limit or 0.0, agreed)

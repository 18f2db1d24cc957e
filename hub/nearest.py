"""Normal moments most like an alarm's, by the embeddings that the hub keeps: what each sensor compares with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa

from hub.tables import EMBEDDINGS, SCORES
from lineside import wire
from lineside.clock import NS
from lineside.messages import Alarm, Embeddings, Score

MOMENTS = 2000  # that are looked at, the newest before the alarm
BEFORE_NS = 30 * NS  # of the onset: what came then may have been the beginning
ORDINARY = 0.05  # a moment of a greater p-value was normal to the device
SHOWN, APART_NS = 3, 5 * NS


@dataclass(frozen=True)
class Near:
    """A normal moment and the cosine of its embedding with the alarm's, of one sensor."""

    start_ns: int
    cosine: float


@dataclass(frozen=True)
class Nearest:
    """By sensor, the nearest first; `looked` is how many normal moments there were. Empty where there were none."""

    looked: int
    by_sensor: dict[str, list[Near]]


def raised_by(engine: sa.Engine, alarm: Alarm) -> Score | None:
    """The score of the moment in which an alarm was raised; None where the hub has it no longer, or it never came."""
    c = SCORES.c
    query = sa.select(c.body).where(
        c.device == alarm.device, c.start_ns < alarm.time_ns, c.start_ns >= alarm.time_ns - 10 * NS
    )
    with engine.connect() as connection:
        found: list[Score] = [
            wire.decode("score", row.body) for row in connection.execute(query.order_by(c.start_ns.desc()))
        ]
    return next((score for score in found if score.end_ns == alarm.time_ns), None)


def nearest(engine: sa.Engine, alarm: Alarm, score: Score | None) -> Nearest:
    """The normal moments before an alarm that were most like the moment that raised it, by sensor."""
    with engine.connect() as connection:
        if score is None or (here := _at(connection, alarm.device, score.start_ns)) is None:
            return Nearest(0, {})
        normal = _normal(connection, alarm)
        rows = [each for each in _between(connection, alarm.device, normal) if each.start_ns in normal]
    return Nearest(len(rows), {one.sensor: _of(one.sensor, here, rows) for one in here.embeddings})


def _of(sensor: str, here: Embeddings, rows: list[Embeddings]) -> list[Near]:
    """The nearest of one sensor, not two of one span; embeddings of another version lie elsewhere."""
    mine = next(one for one in here.embeddings if one.sensor == sensor)
    same = [
        (each.start_ns, one.vector)
        for each in rows
        for one in each.embeddings
        if (one.sensor, one.version, one.space, len(one.vector)) == (sensor, mine.version, mine.space, len(mine.vector))
    ]
    if not same:
        return []
    vectors = np.stack([wire.unpack(vector) for _, vector in same])
    own = wire.unpack(mine.vector)
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(own)
    cosines = vectors @ own / np.maximum(lengths, 1e-9)
    found: list[Near] = []
    for place in np.argsort(-cosines):
        near = Near(same[place][0], float(cosines[place]))
        if all(abs(near.start_ns - other.start_ns) >= APART_NS for other in found):
            found.append(near)
        if len(found) == SHOWN:
            break
    return found


def _at(connection: sa.Connection, device: str, start_ns: int) -> Embeddings | None:
    c = EMBEDDINGS.c
    query = sa.select(c.body).where(c.device == device, c.start_ns == start_ns).limit(1)
    return next((_decoded(row) for row in connection.execute(query)), None)


def _normal(connection: sa.Connection, alarm: Alarm) -> set[int]:
    """When the newest normal moments before the alarm began."""
    c = SCORES.c
    query = sa.select(c.start_ns).where(c.device == alarm.device, c.start_ns < alarm.onset_ns - BEFORE_NS)
    newest = query.order_by(c.start_ns.desc()).limit(2 * MOMENTS).subquery()
    ordinary = sa.select(c.start_ns).where(
        c.device == alarm.device, c.start_ns.in_(sa.select(newest.c.start_ns)), c.p_value > ORDINARY
    )
    found = [row.start_ns for row in connection.execute(ordinary.order_by(c.start_ns.desc()).limit(MOMENTS))]
    return set(found)


def _between(connection: sa.Connection, device: str, normal: set[int]) -> list[Embeddings]:
    if not normal:
        return []
    c = EMBEDDINGS.c
    query = sa.select(c.body).where(c.device == device, c.start_ns >= min(normal), c.start_ns <= max(normal))
    return [_decoded(row) for row in connection.execute(query.limit(3 * MOMENTS))]


def _decoded(row: Any) -> Embeddings:
    found: Embeddings = wire.decode("embedding", row.body)
    return found

"""What is stored, page by page in the order of time: each goes on where the one before ended, whatever came meanwhile.

Each page is a transaction of its own, so that a program that reads for an hour holds up no writer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import sqlalchemy as sa
from sqlalchemy import Index

from hub.alarms import Event, book
from hub.labels import Labels
from hub.tables import ACKNOWLEDGEMENTS, ALARMS, EMBEDDINGS, HEALTH, INT64_MAX, MANIFESTS, SCORES
from lineside import wire

# What orders the messages of a kind.
TIMES: dict[str, sa.Column[int]] = {
    "embedding": EMBEDDINGS.c.start_ns,
    "score": SCORES.c.start_ns,
    "alarm": ALARMS.c.time_ns,
    "health": HEALTH.c.time_ns,
    "manifest": MANIFESTS.c.time_ns,
}
STREAM_ROWS = 1000
Index("health_by_time", HEALTH.c.device, HEALTH.c.time_ns)


@dataclass(frozen=True)
class Place:
    """Where a message stands in the order: by its time, then by its device's numbering."""

    time_ns: int
    epoch: int
    seq: int
    device: str

    PATTERN: ClassVar[str] = r"([0-9]{1,19}\.){3}[^/+#\x00-\x1f]{1,300}"

    @property
    def text(self) -> str:
        """As a cursor.

        >>> Place(5, 1, 7, "press-3").text
        '5.1.7.press-3'
        """
        return f"{self.time_ns}.{self.epoch}.{self.seq}.{self.device}"

    @classmethod
    def parse(cls, text: str) -> Place:
        """From a cursor of PATTERN; a number beyond 64 bits stands behind every message.

        >>> Place.parse("5.1.7.press.3")
        Place(time_ns=5, epoch=1, seq=7, device='press.3')
        """
        *numbers, device = text.split(".", 3)
        time_ns, epoch, seq = (min(int(number), INT64_MAX) for number in numbers)
        return cls(time_ns, epoch, seq, device)


@dataclass(frozen=True)
class Span:
    """since_ns <= t < until_ns, of one device or ("") of all, behind `after` where that is given."""

    device: str = ""
    since_ns: int = 0
    until_ns: int = INT64_MAX
    after: Place | None = None

    def behind(self, place: Place) -> Span:
        """What is left of it behind a message."""
        return Span(self.device, self.since_ns, self.until_ns, place)

    def conditions(self, time: sa.Column[int]) -> list[sa.ColumnElement[bool]]:
        """For messages of the table of `time`; the second line on the time is what an index can be used for."""
        c, after = time.table.c, self.after
        found = [time >= max(self.since_ns, after.time_ns if after else 0), time < self.until_ns]
        if self.device:
            found.append(c.device == self.device)
        if after:
            place = sa.tuple_(time, c.epoch, c.seq, c.device)
            found.append(place > sa.tuple_(after.time_ns, after.epoch, after.seq, after.device))
        return found


class History:
    """Reads messages of a store's database; safe in any thread."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine, self._labels = engine, Labels(engine)

    def page(self, kind: str, span: Span, limit: int) -> list[tuple[Place, Any]]:
        """The first `limit` messages of a kind in `span`, oldest first, each with its place."""
        return [(place, wire.decode(kind, body)) for place, body in self._rows(kind, span, limit)]

    def windows(self, modality: str, span: Span, limit: int) -> list[tuple[Place, int]]:
        """start_ns of the first `limit` moments that have an embedding of `modality`, each with its place."""
        has = EMBEDDINGS.c.modalities.contains(f",{modality},", autoescape=True)
        return [(place, place.time_ns) for place, _ in self._rows("embedding", span, limit, has, body=False)]

    def alarms(self, span: Span, limit: int) -> list[tuple[Place, Event]]:
        """The first `limit` alarms whose first word lies in `span`, by it, each with its state and label of now."""
        earlier = ALARMS.alias()
        c, e = ALARMS.c, earlier.c
        own = sa.and_(e.device == c.device, e.key == c.key)
        before = sa.tuple_(e.epoch, e.seq) < sa.tuple_(c.epoch, c.seq)
        first = ~sa.exists().where(own, before).correlate(ALARMS)
        places = {
            (place.device, wire.decode("alarm", body).key): place
            for place, body in self._rows("alarm", span, limit, first)
        }
        events = self._events(list(places))
        found = [(places[event.raised.device, event.raised.key], event) for event in events]
        return sorted(found, key=lambda one: (one[0].time_ns, one[0].epoch, one[0].seq, one[0].device))

    def every(self, kind: str, span: Span) -> Iterator[Any]:
        """All messages of a kind in `span` (of "alarm": all alarms as events), oldest first, a page at a time."""
        while True:
            page = self.alarms(span, STREAM_ROWS) if kind == "alarm" else self.page(kind, span, STREAM_ROWS)
            yield from (found for _, found in page)
            if len(page) < STREAM_ROWS:
                return
            span = span.behind(page[-1][0])

    def _events(self, keys: Sequence[tuple[str, str]]) -> list[Event]:
        a, k = ALARMS.c, ACKNOWLEDGEMENTS.c
        with self._engine.connect() as connection:
            said = connection.execute(sa.select(a.body).where(sa.tuple_(a.device, a.key).in_(keys))).all()
            seen = connection.execute(sa.select(ACKNOWLEDGEMENTS).where(sa.tuple_(k.device, k.key).in_(keys))).all()
        messages = [wire.decode("alarm", row.body) for row in said]
        labels = self._labels.latest(keys)
        events = book(messages, {(row.device, row.key): (row.who, row.time_ns) for row in seen})
        return [replace(event, label=labels.get((event.raised.device, event.raised.key))) for event in events]

    def _rows(
        self, kind: str, span: Span, limit: int, *conditions: sa.ColumnElement[bool], body: bool = True
    ) -> list[tuple[Place, bytes]]:
        time = TIMES[kind]
        c = time.table.c
        columns = [time.label("time_ns"), c.epoch, c.seq, c.device, *([c.body] if body else [])]
        query = sa.select(*columns).where(*span.conditions(time), *conditions)
        with self._engine.connect() as connection:
            rows = connection.execute(query.order_by(time, c.epoch, c.seq, c.device).limit(limit)).all()
        return [(Place(row.time_ns, row.epoch, row.seq, row.device), row.body if body else b"") for row in rows]

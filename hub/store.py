"""The hub's memory: SQLite by default, PostgreSQL by URL, both through SQLAlchemy Core."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from hub.tables import ACKNOWLEDGEMENTS, ALARMS, EMBEDDINGS, HEALTH, KEPT, METADATA, SCORES, TOMBSTONES, Row
from lineside import ranges, wire
from lineside.errors import ConfigError
from lineside.messages import Alarm, Health, Score

INSERTS: dict[str, Callable[[sa.Table], Any]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
DRIVERS = {"postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}
# WAL lets the dashboard read while ingest writes; FULL makes a commit survive a power cut, for an acknowledged
# message is forgotten by its device.
PRAGMAS = ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL", "PRAGMA busy_timeout=10000")


def database_url(text: str, base: Path) -> sa.URL:
    """A database URL with its driver named; a relative SQLite file starts from `base`.

    >>> database_url("sqlite:///hub.db", Path("/plant")).database
    '/plant/hub.db'
    >>> database_url("postgresql://plant@db/line1", Path("/plant")).drivername
    'postgresql+psycopg'
    """
    mend = "use sqlite:///hub.db or postgresql://user@host/name"
    try:
        url = sa.make_url(text)
    except sa.exc.ArgumentError as error:
        raise ConfigError("hub.database", f"{text!r} is no database URL", mend) from error
    url = url.set(drivername=DRIVERS.get(url.drivername, url.drivername))
    if url.get_backend_name() not in INSERTS or not url.database:
        raise ConfigError("hub.database", f"{url.drivername!r} is no database that the hub knows", mend)
    return url.set(database=str(base / url.database)) if url.get_backend_name() == "sqlite" else url


class Store:
    """Stored messages and acknowledgements; every method is one transaction and safe in any thread.

    Opening raises ConfigError when the database cannot be reached.
    """

    def __init__(self, url: sa.URL) -> None:
        self._engine = sa.create_engine(url)
        self._counting = self._engine.execution_options(preserve_rowcount=True)
        self._insert = INSERTS[self._engine.dialect.name]
        self.alarm_version = 0
        if self._engine.dialect.name == "sqlite":
            sa.event.listen(self._engine, "connect", _prepare_sqlite)
        try:
            METADATA.create_all(self._engine)
        except sa.exc.SQLAlchemyError as error:
            place = url.render_as_string(hide_password=True)
            reason = str(getattr(error, "orig", error)).strip().splitlines()[0]
            raise ConfigError("hub.database", f"{place} cannot be opened ({reason})", "mend the URL") from error

    def close(self) -> None:
        """Let go of every connection."""
        self._engine.dispose()

    def add(self, rows: Sequence[Row]) -> int:
        """Commit all rows in one transaction, or none; gives how many were new. Raises SQLAlchemyError."""
        by_kind: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            by_kind[row.kind].append(row.values)
        new = 0
        with self._counting.begin() as connection:
            for kind, values in by_kind.items():
                new += connection.execute(self._insert(KEPT[kind].table).on_conflict_do_nothing(), values).rowcount
        self.alarm_version += "alarm" in by_kind
        return new

    def acknowledge(self, device: str, key: str, who: str, time_ns: int) -> None:
        """Keep who saw an alarm first, and when; a second acknowledgement changes nothing."""
        row = {"device": device, "key": key, "who": who, "time_ns": time_ns}
        with self._engine.begin() as connection:
            connection.execute(self._insert(ACKNOWLEDGEMENTS).on_conflict_do_nothing(), [row])
        self.alarm_version += 1

    def acknowledgements(self) -> dict[tuple[str, str], tuple[str, int]]:
        """(device, alarm key) to (who, time_ns)."""
        rows = self._all(sa.select(ACKNOWLEDGEMENTS))
        return {(row.device, row.key): (row.who, row.time_ns) for row in rows}

    def alarms(self, since_ns: int = 0) -> list[Alarm]:
        """All messages of every alarm that is not cleared, not acknowledged, or had a word at or after `since_ns`."""
        key = sa.tuple_(ALARMS.c.device, ALARMS.c.key)
        keys = sa.select(ALARMS.c.device, ALARMS.c.key)
        cleared = keys.where(ALARMS.c.state == "cleared")
        recent = keys.where(ALARMS.c.time_ns >= since_ns)
        seen = sa.select(ACKNOWLEDGEMENTS.c.device, ACKNOWLEDGEMENTS.c.key)
        wanted = sa.or_(key.in_(recent), key.not_in(cleared), key.not_in(seen))
        query = sa.select(ALARMS.c.body).where(wanted).order_by(ALARMS.c.device, ALARMS.c.epoch, ALARMS.c.seq)
        return [wire.decode("alarm", row.body) for row in self._all(query)]

    def scores(self, device: str, since_ns: int = 0, limit: int = 1000) -> list[Score]:
        """The newest `limit` scores of moments that begin at or after `since_ns`, oldest first."""
        c = SCORES.c
        query = sa.select(c.body).where(c.device == device, c.start_ns >= since_ns)
        newest = self._all(query.order_by(c.start_ns.desc()).limit(limit))
        return [wire.decode("score", row.body) for row in reversed(newest)]

    def arrivals(self, device: str, after_ns: int, limit: int = 1000) -> list[tuple[int, Score]]:
        """(received_ns, score) of what came in after the hub's time `after_ns`, newest `limit`, oldest first."""
        c = SCORES.c
        query = sa.select(c.received_ns, c.body).where(c.device == device, c.received_ns > after_ns)
        newest = self._all(query.order_by(c.received_ns.desc()).limit(limit))
        return [(row.received_ns, wire.decode("score", row.body)) for row in reversed(newest)]

    def latest_health(self, devices: Iterable[str]) -> dict[str, Health]:
        """Each device's newest word about itself; devices that never spoke are left out."""
        found = {}
        for device in devices:
            c = HEALTH.c
            query = sa.select(c.body).where(c.device == device).order_by(c.epoch.desc(), c.seq.desc()).limit(1)
            if rows := self._all(query):
                found[device] = wire.decode("health", rows[0].body)
        return found

    def windows(self, device: str, modality: str, since_ns: int, until_ns: int) -> list[int]:
        """start_ns of every stored moment that has an embedding of `modality`, since_ns <= start_ns < until_ns."""
        c = EMBEDDINGS.c
        query = (
            sa.select(c.start_ns)
            .where(c.device == device, c.start_ns >= since_ns, c.start_ns < until_ns)
            .where(c.modalities.contains(f",{modality},", autoescape=True))
        )
        return [row.start_ns for row in self._all(query.order_by(c.start_ns))]

    def counts(self) -> dict[str, int]:
        """Rows of every table."""
        tables = METADATA.sorted_tables
        query = sa.select(*(sa.select(sa.func.count()).select_from(t).scalar_subquery().label(t.name) for t in tables))
        return dict(self._all(query)[0]._mapping)

    def gaps(self, device: str) -> dict[int, list[ranges.Range]]:
        """Per epoch the sequence numbers that never came and that no tombstone stands for; a numbering begins at 1."""
        tables = [kept.table for kept in KEPT.values()]
        have = sa.union_all(*(sa.select(t.c.epoch, t.c.seq).where(t.c.device == device) for t in tables)).subquery()
        before = sa.func.lag(have.c.seq, 1, 0).over(partition_by=have.c.epoch, order_by=have.c.seq)
        steps = sa.select(have.c.epoch, have.c.seq, before.label("before")).subquery()
        missing: dict[int, list[ranges.Range]] = defaultdict(list)
        for row in self._all(sa.select(steps).where(steps.c.seq > steps.c.before + 1)):
            missing[row.epoch].append((row.before + 1, row.seq - 1))
        dropped: dict[int, list[ranges.Range]] = defaultdict(list)
        for row in self._all(sa.select(TOMBSTONES).where(TOMBSTONES.c.device == device)):
            dropped[row.epoch] += wire.decode("tombstone", row.body).ranges
        left = {epoch: ranges.subtract(lost, dropped[epoch]) for epoch, lost in sorted(missing.items())}
        return {epoch: lost for epoch, lost in left.items() if lost}

    def _all(self, query: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
        with self._engine.connect() as connection:
            return connection.execute(query).all()


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    for pragma in PRAGMAS:
        connection.execute(pragma)

"""The hub's memory: SQLite by default, PostgreSQL by URL, both through SQLAlchemy Core."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from hub import migrations, minute_rows, numbers
from hub.minutes import Minute
from hub.tables import (
    ACKNOWLEDGEMENTS,
    ALARMS,
    EMBEDDINGS,
    HEALTH,
    KEPT,
    MANIFESTS,
    OPEN_ALARMS,
    SCORE_MINUTES,
    SCORES,
    TOTALS,
    Row,
)
from hub.trouble import reason
from lineside import ranges, wire
from lineside.errors import ConfigError
from lineside.files import make_private
from lineside.messages import Alarm, Health, Manifest, Score

INSERTS: dict[str, Callable[[sa.Table], Any]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
COUNTED = (*(kept.table for kept in KEPT.values()), ACKNOWLEDGEMENTS)
DRIVERS = {"postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}
_OF: sa.BindParameter[str] = sa.bindparam("of")
NEWEST_SCORE = (
    sa.select(SCORES.c.received_ns, SCORES.c.body)
    .where(SCORES.c.device == _OF)
    .order_by(SCORES.c.received_ns.desc())
    .limit(1)
)
NEWEST_HEALTH = (
    sa.select(HEALTH.c.body).where(HEALTH.c.device == _OF).order_by(HEALTH.c.epoch.desc(), HEALTH.c.seq.desc()).limit(1)
)
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
        self._writing = self._engine.execution_options(preserve_rowcount=True, writes=True)
        self._insert = INSERTS[self._engine.dialect.name]
        if self._engine.dialect.name == "sqlite":
            _hide(Path(str(url.database)))
            sa.event.listen(self._engine, "connect", _prepare_sqlite)
            sa.event.listen(self._engine, "begin", _begin_sqlite)
        place = url.render_as_string(hide_password=True)
        try:
            with self._writing.begin() as connection:
                numbers.lock(connection, shared=False)
                migrations.upgrade(connection, place)
        except ConfigError:
            self.close()
            raise
        except sa.exc.SQLAlchemyError as error:
            self.close()
            raise ConfigError("hub.database", f"{place} cannot be opened ({reason(error)})", "mend the URL") from error

    @property
    def engine(self) -> sa.Engine:
        """For the rooms of the hub that have tables of their own in this database."""
        return self._engine

    @property
    def insert(self) -> Callable[[sa.Table], Any]:
        """The database's own insert, which knows what to do on a conflict."""
        return self._insert

    @property
    def shared(self) -> bool:
        """Whether several hubs may write to it at a time."""
        return self._engine.dialect.name == "postgresql"

    def close(self) -> None:
        """Let go of every connection."""
        self._engine.dispose()

    def add(self, rows: Sequence[Row]) -> int:
        """Commit all rows in one transaction, or none; gives how many were new. Raises SQLAlchemyError."""
        by_kind: dict[str, list[dict[str, Any]]] = defaultdict(list)
        with self._writing.begin() as connection:
            numbers.lock(connection, shared=True)
            for row in numbers.unretired(connection, rows):
                by_kind[row.kind].append(row.values)
            new = {kind: self._add(connection, KEPT[kind].table, values) for kind, values in by_kind.items()}
            if "alarm" in by_kind:
                keys = [{"device": value["device"], "key": value["key"]} for value in by_kind["alarm"]]
                connection.execute(self._insert(OPEN_ALARMS).on_conflict_do_nothing(), keys)
                _close(connection, keys)
        return sum(new.values())

    def acknowledge(self, device: str, key: str, who: str, time_ns: int) -> None:
        """Keep who saw an alarm first, and when; a second acknowledgement changes nothing."""
        row = {"device": device, "key": key, "who": who, "time_ns": time_ns}
        with self._writing.begin() as connection:
            self._add(connection, ACKNOWLEDGEMENTS, [row])
            _close(connection, [{"device": device, "key": key}])

    def numberings(self, kind: str) -> list[tuple[str, int]]:
        """(device, epoch) of everything that is kept of one kind, by leaps through the primary key."""
        c = KEPT[kind].table.c
        first = sa.select(c.device, c.epoch).order_by(c.device, c.epoch).limit(1)
        found = [("", -1)]  # before all others
        while rows := self._all(first.where(sa.tuple_(c.device, c.epoch) > found[-1])):
            found.append((rows[0].device, rows[0].epoch))
        return found[1:]

    def retire(self, kind: str, device: str, epoch: int, before_ns: int, most: int) -> int:
        """Keep no longer what came before `before_ns`, of the first `most` rows of a numbering; gives how many went.

        Their numbers are no gaps and do not come in again; scores leave a row a minute. Alarms that are open stay.
        """
        table = KEPT[kind].table
        own = sa.and_(table.c.device == device, table.c.epoch == epoch)
        columns = [table.c.seq, table.c.received_ns, *([table.c.body] if kind == "score" else [])]
        rows_ = sa.select(*columns).where(own, _settled(kind)).order_by(table.c.seq).limit(most)
        with self._writing.begin() as connection:
            numbers.lock(connection, shared=False)
            old = [row for row in connection.execute(rows_) if row.received_ns < before_ns]
            if not old:
                return 0
            numbers.settle(connection, self._insert, device, epoch, old[-1].seq)
            if kind == "score":
                minute_rows.keep(connection, self._insert, [wire.decode("score", row.body) for row in old])
            seqs = [{"number": row.seq} for row in old]
            connection.execute(sa.delete(table).where(own, table.c.seq == sa.bindparam("number")), seqs)
            self._count(connection, table, removed=len(old))
        return len(old)

    def score_minutes(self, device: str, since_ns: int, until_ns: int, step_ns: int = 0) -> list[Minute]:
        """What is left of scores that are kept no longer, of minutes that begin in since_ns <= t < until_ns.

        With `step_ns` put together by steps (hub.minute_rows.coarse).
        """
        return minute_rows.span(self._engine, SCORE_MINUTES, device, since_ns, until_ns, step_ns)

    @property
    def alarm_version(self) -> int:
        """Another number when any hub has stored an alarm, removed one or kept an acknowledgement."""
        c = TOTALS.c
        query = sa.select(c.added + c.removed).where(c.name.in_([ALARMS.name, ACKNOWLEDGEMENTS.name]))
        return sum(row[0] for row in self._all(query))

    def acknowledgements(self, since_ns: int = 0) -> dict[tuple[str, str], tuple[str, int]]:
        """(device, alarm key) to (who, time_ns), of the alarms that `alarms` gives and those of `since_ns` or later."""
        c = ACKNOWLEDGEMENTS.c
        recent = sa.select(ACKNOWLEDGEMENTS).where(c.time_ns >= since_ns)
        keys = _wanted(since_ns)
        theirs = sa.select(ACKNOWLEDGEMENTS).join(keys, sa.and_(c.device == keys.c.device, c.key == keys.c.key))
        return {(row.device, row.key): (row.who, row.time_ns) for row in self._all(recent.union(theirs))}

    def alarms(self, since_ns: int = 0) -> list[Alarm]:
        """All messages of every alarm that is not cleared, not acknowledged, or had a word at or after `since_ns`."""
        c, keys = ALARMS.c, _wanted(since_ns)
        query = sa.select(c.body).join(keys, sa.and_(c.device == keys.c.device, c.key == keys.c.key))
        # Sorted here: for an order of its own key SQLite would walk through the whole table.
        found: list[Alarm] = [wire.decode("alarm", row.body) for row in self._all(query)]
        return sorted(found, key=lambda alarm: (alarm.device, alarm.epoch, alarm.seq))

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
        return {device: wire.decode("health", row.body) for device, row in self._newest(NEWEST_HEALTH, devices).items()}

    def newest_scores(self, devices: Iterable[str]) -> dict[str, tuple[int, Score]]:
        """(received_ns, score) of what came last from each device; devices that sent none are left out."""
        found = self._newest(NEWEST_SCORE, devices)
        return {device: (row.received_ns, wire.decode("score", row.body)) for device, row in found.items()}

    def manifests(self, device: str, at_ns: int) -> list[Manifest]:
        """A device's last word on its encoders at or before `at_ns`, and its first one after; either may be missing."""
        c = MANIFESTS.c
        query = sa.select(c.body).where(c.device == device)
        before = query.where(c.time_ns <= at_ns).order_by(c.time_ns.desc(), c.epoch.desc(), c.seq.desc()).limit(1)
        after = query.where(c.time_ns > at_ns).order_by(c.time_ns, c.epoch, c.seq).limit(1)
        return [wire.decode("manifest", row.body) for each in (before, after) for row in self._all(each)]

    def alarm(self, key: str) -> Alarm | None:
        """The first word of the alarm with that key; None when it never came."""
        query = sa.select(ALARMS.c.body).where(ALARMS.c.key == key).order_by(ALARMS.c.epoch, ALARMS.c.seq).limit(1)
        return next((wire.decode("alarm", row.body) for row in self._all(query)), None)

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
        """Rows of every kind of message, and acknowledgements."""
        found = {row.name: row.added - row.removed for row in self._all(sa.select(TOTALS))}
        return {table.name: found.get(table.name, 0) for table in COUNTED}

    def gaps(self, device: str) -> dict[int, list[ranges.Range]]:
        """Per epoch the sequence numbers that never came and that no tombstone stands for; a numbering begins at 1."""
        with self._engine.connect() as connection:
            return numbers.gaps(connection, device)

    def plan(self, ask: Callable[[], object]) -> list[str]:
        """The steps of SQLite's plans for all statements that `ask` makes this store run (EXPLAIN QUERY PLAN)."""
        asked: list[tuple[str, Any]] = []

        def note(_connection: Any, _cursor: Any, statement: str, values: Any, _context: Any, _many: bool) -> None:
            asked.append((statement, values))

        sa.event.listen(self._engine, "before_cursor_execute", note)
        try:
            ask()
        finally:
            sa.event.remove(self._engine, "before_cursor_execute", note)
        with self._engine.connect() as connection:
            explained = [
                connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)
                for statement, values in asked
                if not statement.startswith("BEGIN")
            ]
            return [row.detail for each in explained for row in each]

    def _add(self, connection: sa.Connection, table: sa.Table, values: list[dict[str, Any]]) -> int:
        """Insert what is not there yet; gives how many."""
        new = connection.execute(self._insert(table).on_conflict_do_nothing(), values).rowcount
        self._count(connection, table, added=new)
        return new

    def _count(self, connection: sa.Connection, table: sa.Table, added: int = 0, removed: int = 0) -> None:
        made = self._insert(TOTALS).values(name=table.name, added=added, removed=removed)
        sums = {name: TOTALS.c[name] + made.excluded[name] for name in ("added", "removed")}
        connection.execute(made.on_conflict_do_update(index_elements=["name"], set_=sums))

    def _newest(self, query: sa.Executable, devices: Iterable[str]) -> dict[str, sa.Row[Any]]:
        """The row that a query finds for each device; asked at every look, so the query is made only once."""
        with self._engine.connect() as connection:
            found = {device: connection.execute(query, {"of": device}).first() for device in devices}
        return {device: row for device, row in found.items() if row is not None}

    def _all(self, query: sa.Executable) -> Sequence[sa.Row[Any]]:
        with self._engine.connect() as connection:
            return connection.execute(query).all()


def _wanted(since_ns: int) -> sa.Subquery:
    """Keys of the alarms that are open or had a word at or after `since_ns`."""
    recent = sa.select(ALARMS.c.device, ALARMS.c.key).where(ALARMS.c.time_ns >= since_ns)
    return sa.union(sa.select(OPEN_ALARMS.c.device, OPEN_ALARMS.c.key), recent).subquery("wanted")


def _close(connection: sa.Connection, keys: list[dict[str, str]]) -> None:
    """Take those of `keys` off the open alarms that are cleared and acknowledged."""
    device: sa.BindParameter[str] = sa.bindparam("of")
    key: sa.BindParameter[str] = sa.bindparam("named")
    cleared = sa.exists().where(ALARMS.c.device == device, ALARMS.c.key == key, ALARMS.c.state == "cleared")
    seen = sa.exists().where(ACKNOWLEDGEMENTS.c.device == device, ACKNOWLEDGEMENTS.c.key == key)
    own = sa.and_(OPEN_ALARMS.c.device == device, OPEN_ALARMS.c.key == key)
    bound = [{"of": each["device"], "named": each["key"]} for each in keys]
    connection.execute(sa.delete(OPEN_ALARMS).where(own, cleared, seen), bound)


def _settled(kind: str) -> sa.ColumnElement[bool]:
    """Whether a row may go once it is old: an alarm that is open may not."""
    if kind != "alarm":
        return sa.true()
    own = sa.and_(OPEN_ALARMS.c.device == ALARMS.c.device, OPEN_ALARMS.c.key == ALARMS.c.key)
    return sa.not_(sa.exists().where(own))


def _hide(path: Path) -> None:
    """Keep a file of SQLite from others, for it holds hashes of passwords; what SQLite puts beside it goes by it."""
    beside = [path.with_name(path.name + suffix) for suffix in ("-wal", "-shm")]
    for each in [path, *(file for file in beside if file.exists())]:
        with contextlib.suppress(OSError):  # of somebody else's file; where none can be made, opening it says why
            make_private(each)


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver would begin its own transactions, and none before a DDL statement
    for pragma in PRAGMAS:
        connection.execute(pragma)


def _begin_sqlite(connection: sa.Connection) -> None:
    # IMMEDIATE, for a batch looks at the numbers before it writes, and a reader cannot become a writer once somebody
    # else has written.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

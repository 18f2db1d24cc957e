"""The SQLite file that the outbox keeps its messages in: WAL, synchronous=FULL, each row with a checksum of its own.

SQLite has none for its pages: without ours, a page that a dying disk changed would be sent as if it were true.

A message of the file's present epoch lies at the place that is its number. What was saved from an earlier epoch (when a
damaged file no longer told how far its numbers went) lies before it, at its number less that epoch's shift: so the
order of places is the order of sending, and the hub's word about an epoch finds its rows.
"""

from __future__ import annotations

import contextlib
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

LAYOUT = 2  # PRAGMA user_version
PAGE_BYTES = 4096
LOG_PAGES = 256  # written to the log before they are brought into the file
SHIFT = 1 << 40  # more numbers than an epoch will ever give
OLDEST = -(1 << 62)  # before every place
SCHEMA = (
    """CREATE TABLE about (epoch INTEGER PRIMARY KEY, shift INTEGER NOT NULL, last_seq INTEGER NOT NULL,
       first_seq INTEGER NOT NULL, ran_ns INTEGER NOT NULL, sum INTEGER NOT NULL)""",
    """CREATE TABLE outbox (place INTEGER PRIMARY KEY, kind TEXT NOT NULL, stored_ns INTEGER NOT NULL,
       sum INTEGER NOT NULL, payload BLOB NOT NULL)""",
    # Few rows, wanted from among many: alarms are sent first, tombstones grow together.
    "CREATE INDEX alarms ON outbox (place) WHERE kind = 'alarm'",
    "CREATE INDEX tombstones ON outbox (place) WHERE kind = 'tombstone'",
)
Lane = Literal["all", "alarms", "rest"]
LANES: dict[Lane, str] = {"all": "1", "alarms": "kind = 'alarm'", "rest": "kind <> 'alarm'"}


@dataclass(frozen=True)
class About:
    """One epoch: its shift, the last number given, the first that may still wait, and how long the agent has run."""

    epoch: int
    shift: int = 0
    last_seq: int = 0
    first_seq: int = 1
    ran_ns: int = 0

    @property
    def sum(self) -> int:
        return zlib.crc32(repr((self.epoch, self.shift, self.last_seq, self.first_seq, self.ran_ns)).encode())


@dataclass(frozen=True)
class Row:
    """One message on the shelf; `stored_ns` is on the clock of `About.ran_ns`."""

    place: int
    kind: str
    stored_ns: int
    payload: bytes

    @property
    def sum(self) -> int:
        return zlib.crc32(self.payload, zlib.crc32(f"{self.kind} {self.stored_ns}".encode()))


def is_damage(error: sqlite3.Error) -> bool:
    """Whether the file itself is at fault, not the disk's room, a lock or a caller.

    sqlite3 gives `malformed` and `not a database` as a plain DatabaseError; a number that is there already
    (IntegrityError) is the same: pages of different ages.
    """
    return type(error) in {sqlite3.DatabaseError, sqlite3.IntegrityError}


class Shelf:
    """The open file. Its owner locks; changes stand inside `transaction`. Raises sqlite3.Error."""

    def __init__(self, path: Path, build: bool = False) -> None:
        """`build` opens a new file that nobody else knows yet: quick, and safe only once `close` was called."""
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        try:
            self._prepare(
                ("journal_mode=OFF", "synchronous=OFF") if build else ("journal_mode=WAL", "synchronous=FULL")
            )
        except BaseException:
            self._db.close()
            raise

    def _prepare(self, pragmas: tuple[str, str]) -> None:
        for pragma in (f"page_size={PAGE_BYTES}", *pragmas, f"wal_autocheckpoint={LOG_PAGES}", "busy_timeout=5000"):
            self._db.execute(f"PRAGMA {pragma}")
        if self._db.execute("SELECT count(*) FROM sqlite_schema").fetchone() == (0,):
            with self.transaction():
                for statement in (*SCHEMA, f"PRAGMA user_version={LAYOUT}"):
                    self._db.execute(statement)
        if self._db.execute("PRAGMA user_version").fetchone() != (LAYOUT,):
            raise sqlite3.DatabaseError("is not laid out as an outbox of this version")
        for about in self.abouts():
            if about is None:
                raise sqlite3.DatabaseError("what it says about itself does not fit its checksum")

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it on disk at the end, or none."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # a full disk has rolled back by itself
                self._db.execute("ROLLBACK")
            raise

    def reuse_log(self) -> None:
        """Bring the log into the file, so that its room can be written again: on a full disk there is no other."""
        self._db.execute("PRAGMA wal_checkpoint(RESTART)")

    def close(self) -> None:
        """Everything in it stays."""
        self._db.close()

    def abouts(self) -> list[About | None]:
        """All epochs; None for one whose checksum does not fit."""
        rows = self._db.execute("SELECT epoch, shift, last_seq, first_seq, ran_ns, sum FROM about").fetchall()
        return [about if (about := About(*row[:5])).sum == row[5] else None for row in rows]

    def note(self, about: About) -> None:
        """Keep what is known of an epoch."""
        row = (about.epoch, about.shift, about.last_seq, about.first_seq, about.ran_ns, about.sum)
        self._db.execute("INSERT OR REPLACE INTO about VALUES (?, ?, ?, ?, ?, ?)", row)

    def add(self, rows: Iterable[Row], replace: bool = False) -> None:
        """Put rows at their places, which are free unless `replace`."""
        insert = "INSERT OR REPLACE" if replace else "INSERT"
        values = ((row.place, row.kind, row.stored_ns, row.sum, row.payload) for row in rows)
        self._db.executemany(f"{insert} INTO outbox VALUES (?, ?, ?, ?, ?)", values)

    def delete(self, places: Iterable[int]) -> None:
        """Take rows away."""
        self._db.executemany("DELETE FROM outbox WHERE place = ?", ((place,) for place in places))

    def rows(self, where: str, values: Sequence[object], limit: int) -> tuple[list[Row], list[Row]]:
        """The first rows, in order of place, for a condition of SQL: those that are whole, and those that are not."""
        query = f"SELECT place, kind, stored_ns, payload, sum FROM outbox WHERE {where} ORDER BY place LIMIT ?"
        whole: list[Row] = []
        broken: list[Row] = []
        for *values_of, told in self._db.execute(query, (*values, limit)):
            row = Row(*values_of)
            (whole if row.sum == told else broken).append(row)
        return whole, broken

    def sizes(self, first: int, last: int) -> list[tuple[int, int]]:
        """(place, bytes) of every row from `first` to `last`."""
        query = "SELECT place, length(payload) FROM outbox WHERE place BETWEEN ? AND ?"
        return self._db.execute(query, (first, last)).fetchall()

    def places(self, where: str, limit: int) -> list[int]:
        """The first places for a condition of SQL."""
        return [
            place
            for (place,) in self._db.execute(f"SELECT place FROM outbox WHERE {where} ORDER BY place LIMIT ?", (limit,))
        ]

    def totals(self) -> tuple[int, int]:
        """Rows and bytes of all that waits."""
        rows, size = self._db.execute("SELECT count(*), coalesce(sum(length(payload)), 0) FROM outbox").fetchone()
        return int(rows), int(size)

    def first_place(self, where: str = "1", values: Sequence[object] = ()) -> int | None:
        """The first place in use for which a condition of SQL holds."""
        found = self._db.execute(f"SELECT place FROM outbox WHERE {where} ORDER BY place LIMIT 1", values).fetchone()
        return None if found is None else int(found[0])

"""Messages wait here, on disk, until the hub says that it has committed them.

SQLite in WAL mode with synchronous=FULL, one transaction for all messages of a moment. Numbers are given in the
transaction that stores the message, so they have no gap; what must be dropped leaves a tombstone in its place.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lineside import wire
from lineside.clock import Clock
from lineside.messages import Message, Tombstone
from lineside.ranges import merge

# What goes first when the disk is full. Alarms are in no row of it: they are never dropped.
DROP_ORDER: tuple[tuple[str, ...], ...] = (
    ("embedding",),
    ("embedding", "score", "health", "tombstone"),
)
PAGE = 512


@dataclass(frozen=True)
class Waiting:
    """One message that waits: its number, topic kind and bytes."""

    seq: int
    kind: str
    payload: bytes


class Outbox:
    """The device's outgoing messages; safe to use from several threads.

    `messages` and `bytes` are what waits; `dropped` counts what gave way to the bound since the start.
    """

    def __init__(self, path: Path, device: str, max_bytes: int, clock: Clock) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._device, self._max_bytes, self._clock = device, max_bytes, clock
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000"):
            self._db.execute(f"PRAGMA {pragma}")
        self._db.execute("CREATE TABLE IF NOT EXISTS about (epoch INTEGER NOT NULL, last_seq INTEGER NOT NULL)")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS outbox (seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, payload BLOB NOT NULL)"
        )
        if self._db.execute("SELECT count(*) FROM about").fetchone() == (0,):
            self._db.execute("INSERT INTO about VALUES (?, 0)", (clock.now_ns(),))
        self.epoch = 0
        self.messages = self.bytes = self.dropped = 0
        self._read_state()

    def put(self, messages: Iterable[Message]) -> None:
        """Number and store messages, all or none; beyond the bound, make room by `DROP_ORDER`."""
        with self._lock, self._transaction():
            for message in messages:
                self._insert(message)
            for kinds in DROP_ORDER:
                while self.bytes > self._max_bytes and self._drop_page(kinds):
                    pass

    def pending(self, after: int, limit: int) -> list[Waiting]:
        """The oldest messages with a number above `after`."""
        with self._lock:
            rows = self._db.execute(
                "SELECT seq, kind, payload FROM outbox WHERE seq > ? ORDER BY seq LIMIT ?", (after, limit)
            )
            return [Waiting(*row) for row in rows]

    def waiting_until(self, seq: int) -> int:
        """How many messages with a number up to `seq` wait still: sent, not yet acknowledged."""
        with self._lock:
            return int(self._db.execute("SELECT count(*) FROM outbox WHERE seq <= ?", (seq,)).fetchone()[0])

    def forget(self, epoch: int, ranges: Sequence[tuple[int, int]]) -> int:
        """Delete what the hub has committed; the number of messages deleted.

        Another epoch is not ours, and numbers that were never given mean nothing.
        """
        if epoch != self.epoch:
            return 0
        with self._lock:
            before = self.messages
            with self._transaction():
                for first, last in ranges:
                    given = (max(first, 1), min(last, self._last_seq))
                    if given[0] <= given[1]:  # beyond 64 bits SQLite would refuse the numbers themselves
                        rows = "SELECT seq, length(payload) FROM outbox WHERE seq BETWEEN ? AND ?"
                        self._delete(self._db.execute(rows, given).fetchall())
            return before - self.messages

    def close(self) -> None:
        """Close the file; everything in it stays."""
        with self._lock:
            self._db.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("UPDATE about SET last_seq = ?", (self._last_seq,))
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            self._read_state()
            raise

    def _read_state(self) -> None:
        self.epoch, self._last_seq = self._db.execute("SELECT epoch, last_seq FROM about").fetchone()
        counted = self._db.execute("SELECT count(*), coalesce(sum(length(payload)), 0) FROM outbox").fetchone()
        self.messages, self.bytes = int(counted[0]), int(counted[1])

    def _insert(self, message: Message) -> None:
        self._last_seq += 1
        payload = wire.encode(wire.stamped(message, self.epoch, self._last_seq))
        row = (self._last_seq, wire.kind_of(message), payload)
        self._db.execute("INSERT INTO outbox VALUES (?, ?, ?)", row)
        self.messages += 1
        self.bytes += len(payload)

    def _delete(self, rows: Sequence[tuple[int, int]]) -> None:
        """Delete rows given as (seq, payload bytes)."""
        self._db.executemany("DELETE FROM outbox WHERE seq = ?", [(seq,) for seq, _ in rows])
        self.messages -= len(rows)
        self.bytes -= sum(size for _, size in rows)

    def _drop_page(self, kinds: tuple[str, ...]) -> bool:
        """Put one tombstone in the place of the oldest messages of these kinds; False when that frees nothing."""
        marks = ",".join("?" * len(kinds))
        rows = self._db.execute(
            f"SELECT seq, kind, payload FROM outbox WHERE kind IN ({marks}) ORDER BY seq LIMIT {PAGE}", kinds
        ).fetchall()
        lost = [row for row in rows if row[1] != "tombstone"]
        if not lost:
            return False
        gone = [(seq, seq) for seq, _, _ in rows]
        for _, kind, payload in rows:
            if kind == "tombstone":
                gone += wire.decode(kind, payload).ranges
        self._delete([(seq, len(payload)) for seq, _, payload in rows])
        self.dropped += len(lost)
        now = self._clock.now_ns()
        self._insert(Tombstone(device=self._device, ranges=merge(gone), reason="outbox full", time_ns=now))
        return True

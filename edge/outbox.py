"""Messages wait here, on disk, until the hub says that it has committed them.

One transaction for all messages of a moment. Numbers are given in the transaction that stores the message, so they have
no gap; what must be dropped leaves a tombstone in its place, with a number of its own. A file that is found damaged is
put aside, and what can still be read of it goes on waiting in a new one (edge.salvage).
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from edge import reserve, salvage
from edge.shelf import LANES, OLDEST, SHIFT, About, Lane, Row, Shelf, is_damage
from lineside import wire
from lineside.clock import NS, Clock
from lineside.files import make_folder
from lineside.messages import Alarm, Message, Tombstone
from lineside.ranges import Range

log = logging.getLogger(__name__)

T = TypeVar("T")
Reason = Literal["full", "age", "damaged", "disk", "size"]
# What goes first when there is no room. Alarms are in no row of it: they are never dropped.
DROP_ORDER: tuple[tuple[str, ...], ...] = (("embedding",), ("embedding", "score", "health"))
PAGE = 128  # messages that go at once
CHECK_NS = 60 * NS
DAY_NS = 86_400 * NS
HELD = 1000  # alarms in memory while the disk takes nothing


class Waiting(msgspec.Struct, frozen=True, array_like=True):
    """One message that waits: its place in the order of sending, topic kind and bytes."""

    place: int
    kind: str
    payload: bytes


class Outbox:
    """The device's outgoing messages; safe to use from several threads.

    `messages` and `bytes` are what waits; `dropped` counts by reason what was lost since the start: `full` and `age`
    gave way to the bounds, `disk` was refused by a disk that took nothing, `damaged` could not be read again, `size`
    was larger than a message may be. `problem` tells of a file that was found damaged, with the mend.

    Age counts the time that the agent ran, not that of any wall clock: neither a clock that jumps nor a device that
    was switched off makes messages old.
    """

    def __init__(self, path: Path, device: str, max_bytes: int, clock: Clock, max_days: float = 14.0) -> None:
        make_folder(path.parent)
        self._path, self._device, self._clock = path, device, clock
        self._max_bytes = self._disk_bytes = max_bytes  # the second is less after the disk was full
        self._max_age_ns = round(max_days * DAY_NS)
        self._reserve = reserve.Reserve(path.with_name(path.name + ".reserve"))
        self._lock = threading.RLock()
        self._opened_ns = clock.now_ns()
        self._check_due_ns = 0
        self._held: list[Message] = []  # alarms that the disk refused
        self._refused = 0  # other messages that it refused, not yet accounted for
        self._searched: dict[tuple[str, ...], int] = {}  # up to where these kinds are known to be gone
        self.messages = self.bytes = 0
        self.dropped: Counter[str] = Counter()
        self.problem = ""
        self._opened: Shelf | None = None
        self._about, self._shifts, self._ran_before_ns = About(0), {0: 0}, 0
        self._reserve.keep()
        self._open()

    @property
    def epoch(self) -> int:
        """When this numbering began, ns."""
        return self._about.epoch

    def put(self, messages: Iterable[Message]) -> None:
        """Number and store messages, all or none; beyond the bounds, make room by `DROP_ORDER`.

        A full disk is a smaller bound. Raises sqlite3.Error when the disk takes nothing at all: then alarms are held in
        memory, the rest is lost, and the next `put` stores the ones and accounts for the others.
        """
        given = list(messages)
        with self._lock:
            try:
                self._store(given)
            except sqlite3.Error:
                self._hold(given)
                raise

    def pending(self, after: int, limit: int, lane: Lane = "all") -> list[Waiting]:
        """The oldest messages of a lane at places above `after`."""
        return self._safely(lambda: self._pending(after, limit, lane))

    def places(self, limit: int, lane: Lane = "all") -> list[int]:
        """Where the oldest messages of a lane lie, ascending."""
        return self._safely(lambda: self._shelf.places(LANES[lane], limit))

    def forget(self, epoch: int, ranges: Sequence[Range]) -> int:
        """Delete what the hub has committed; the number of messages deleted.

        An epoch that is not ours and numbers that were never given mean nothing.
        """
        return self._safely(lambda: self._forget(epoch, ranges))

    def close(self) -> None:
        """Close the file; everything in it stays."""
        with self._lock:
            self._shelf.close()

    # Below, the lock is held.

    def _safely(self, work: Callable[[], T]) -> T:
        """Do it; where the file turns out to be damaged, once more on what could be saved of it."""
        with self._lock:
            try:
                return work()
            except sqlite3.Error as error:
                if not is_damage(error):
                    raise
                self._rescue(error)
                return work()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """Changes and what is noted about them, or neither."""
        before = (self._about, self.messages, self.bytes, Counter(self.dropped), dict(self._searched))
        try:
            with self._shelf.transaction():
                yield
                first = self._shelf.first_place("place > 0")
                first_seq = self._about.last_seq + 1 if first is None else first
                self._about = replace(self._about, first_seq=first_seq, ran_ns=self._ran_ns())
                self._shelf.note(self._about)
        except BaseException:
            self._about, self.messages, self.bytes, self.dropped, self._searched = before
            raise

    def _ran_ns(self) -> int:
        return self._ran_before_ns + self._clock.now_ns() - self._opened_ns

    def _store(self, messages: Sequence[Message]) -> None:
        try:
            self._safely(lambda: self._put(messages))
        except sqlite3.OperationalError as error:
            if "full" not in str(error):  # Python 3.10 gives no code: `database or disk is full`
                raise
            self._reserve.release()
            self._disk_bytes = self.bytes + reserve.BYTES // 8  # the rest of it is for alarms
            self._safely(lambda: self._put(messages, no_room=True))

    def _put(self, messages: Sequence[Message], no_room: bool = False) -> None:
        if no_room:
            self._shelf.reuse_log()
        with self._transaction():
            if no_room:
                any(self._drop(kinds, "full") for kinds in DROP_ORDER)
            self._account_for_refused()
            for message in (*self._held, *messages):
                self._insert(message)
            self._keep_bounds()
        self._held, self._refused = [], 0

    def _hold(self, messages: Sequence[Message]) -> None:
        """What the disk refused: alarms are kept in memory, others counted."""
        alarms = [message for message in messages if isinstance(message, Alarm)]
        self._refused += len(messages) - len(alarms) + max(0, len(self._held) + len(alarms) - HELD)
        self._held = (self._held + alarms)[-HELD:]

    def _account_for_refused(self) -> None:
        if self._refused:
            first = self._about.last_seq + 1
            self._about = replace(self._about, last_seq=self._about.last_seq + self._refused)
            self._bury([(first, self._about.last_seq)], "disk", self._refused)

    def _insert(self, message: Message) -> None:
        seq = self._about.last_seq + 1
        self._about = replace(self._about, last_seq=seq)
        payload = wire.encode(wire.stamped(message, self.epoch, seq))
        if len(payload) > wire.MAX_BYTES and isinstance(message, Alarm):  # the alarm itself is never dropped
            payload = wire.encode(wire.stamped(message.plain(), self.epoch, seq))
        if len(payload) > wire.MAX_BYTES:
            self._bury([(seq, seq)], "size", 1)
        else:
            self._shelf.add([Row(seq, wire.kind_of(message), self._ran_ns(), payload)])
            self.messages += 1
            self.bytes += len(payload)

    def _keep_bounds(self) -> None:
        """Drop what is too old, looked for once a minute, then what is too much."""
        if (ran_ns := self._ran_ns()) >= self._check_due_ns:
            self._check_due_ns = ran_ns + CHECK_NS
            if self._reserve.keep():
                self._disk_bytes = self._max_bytes
            young = self._shelf.first_place("stored_ns >= ?", (ran_ns - self._max_age_ns,))
            while self._drop(DROP_ORDER[-1], "age", before=young):
                pass
        for kinds in DROP_ORDER:
            while self.bytes > min(self._max_bytes, self._disk_bytes) and self._drop(kinds, "full"):
                pass

    def _drop(self, kinds: tuple[str, ...], reason: Reason, before: int | None = None) -> bool:
        """Put a tombstone in the place of the oldest messages of these kinds; False when there are none."""
        marks = ",".join("?" * len(kinds))
        after = self._searched.get(kinds, OLDEST)
        where, values = f"kind IN ({marks}) AND place > ? AND place < ?", (*kinds, after, before or -OLDEST)
        whole, broken = self._shelf.rows(where, values, PAGE)
        if not whole and not broken:
            return False
        if before is None:
            self._searched[kinds] = max(row.place for row in (*whole, *broken))
        self._remove(whole, reason)
        self._remove(broken, "damaged")
        return True

    def _remove(self, rows: Sequence[Row], reason: Reason) -> None:
        """Delete rows, and account for them."""
        if rows:
            self._delete([(row.place, len(row.payload)) for row in rows])
            by_epoch: dict[int, list[Range]] = defaultdict(list)
            for row in rows:
                epoch, seq = self._numbered(row.place)
                by_epoch[epoch].append((seq, seq))
            for epoch, gone in by_epoch.items():
                self._bury(gone, reason, len(gone), of_epoch=epoch)

    def _numbered(self, place: int) -> tuple[int, int]:
        """Epoch and number of the message at a place."""
        return next((epoch, place + shift) for epoch, shift in self._shifts.items() if 0 < place + shift <= SHIFT)

    def _delete(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Delete rows given as (place, payload bytes)."""
        self._shelf.delete(place for place, _ in sizes)
        self.messages -= len(sizes)
        self.bytes -= sum(size for _, size in sizes)

    def _bury(self, gone: Iterable[Range], reason: Reason, count: int, of_epoch: int = 0) -> None:
        """A tombstone for these numbers; one that waits already for the same reason becomes one with it."""
        ranges = list(gone)
        if of_epoch in {0, self.epoch}:
            of_epoch = 0
            ranges += self._unearth(reason)
        for tombstone in salvage.tombstones(self._device, ranges, reason, self._clock.now_ns(), of_epoch):
            self._insert(tombstone)
        self.dropped[reason] += count

    def _unearth(self, reason: Reason) -> list[Range]:
        """Take away the tombstones of this numbering that wait for a reason: their ranges and their own numbers."""
        ranges: list[Range] = []
        for row in self._shelf.rows("kind = 'tombstone' AND place > 0", (), -1)[0]:
            told: Tombstone = wire.decode("tombstone", row.payload)
            if (told.reason, told.of_epoch) == (reason, 0):
                self._delete([(row.place, len(row.payload))])
                ranges += [*told.ranges, (told.seq, told.seq)]
        return ranges

    def _pending(self, after: int, limit: int, lane: Lane) -> list[Waiting]:
        whole, broken = self._shelf.rows(f"{LANES[lane]} AND place > ?", (after,), limit)
        if broken:
            log.error("%s: %d messages are not what was stored; check the disk", self._path, len(broken))
            with self._transaction():
                self._remove(broken, "damaged")
        return [Waiting(row.place, row.kind, row.payload) for row in whole]

    def _forget(self, epoch: int, ranges: Sequence[Range]) -> int:
        if epoch not in self._shifts:
            return 0
        shift, before = self._shifts[epoch], self.messages
        with self._transaction():
            for first, last in ranges:
                low, high = max(first, 1), min(last, self._about.last_seq if shift == 0 else SHIFT)
                if low <= high:  # beyond 64 bits SQLite would refuse the numbers themselves
                    self._delete(self._shelf.sizes(low - shift, high - shift))
        return before - self.messages

    def _open(self) -> None:
        """Open the file, or make it; one that is damaged is replaced by what could be saved of it."""
        if self._new.exists() and not self._path.exists():
            os.replace(self._new, self._path)  # the power went in the middle of `_swap`
        try:
            self._read(Shelf(self._path))
        except sqlite3.Error as error:
            if not is_damage(error):
                raise
            self._rescue(error)

    def _read(self, shelf: Shelf) -> None:
        abouts = [about for about in shelf.abouts() if about is not None]
        if not abouts:
            with shelf.transaction():
                shelf.note(About(self._clock.now_ns()))
            abouts = [about for about in shelf.abouts() if about is not None]
        self._about = next(about for about in abouts if about.shift == 0)
        self._shifts = {about.epoch: about.shift for about in abouts}
        self._ran_before_ns, self._opened_ns = self._about.ran_ns, self._clock.now_ns()
        self.messages, self.bytes = shelf.totals()
        self._searched.clear()
        self._opened = shelf

    @property
    def _shelf(self) -> Shelf:
        assert self._opened is not None  # `_open` gives one or raises
        return self._opened

    @property
    def _new(self) -> Path:
        return self._path.with_name(self._path.name + ".new")

    def _rescue(self, error: sqlite3.Error) -> None:
        """Put the file aside and go on with what can be read of it, under a new epoch."""
        log.error("%s: %s; saving what can be read of it", self._path, error)
        saved = salvage.rebuild(self._path, self._new, self._device, self._clock.now_ns())
        if self._opened is not None:
            with contextlib.suppress(sqlite3.Error):
                self._opened.close()
        aside = salvage.swap(self._path, self._new)
        self._read(Shelf(self._path))
        self.dropped["damaged"] += saved.lost
        self.problem = (
            f"outbox: {self._path.name} was damaged ({error}): {saved.rows} messages were saved, {saved.lost} lost; "
            f"check the disk of state_dir, then remove {aside.name}"
        )
        log.error("%s", self.problem)

"""From MQTT into the store: decode, queue, commit in batches, and only then acknowledge to the device.

A broker's PUBACK is not storage. What does not fit into the queue or cannot be committed is not acknowledged, so its
device keeps it and sends it again.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from sqlalchemy.exc import SQLAlchemyError

from hub import tables
from hub.fair import FairQueue
from hub.packets import Publish
from hub.subscriber import Subscriber
from hub.trouble import trouble
from lineside import ranges, topics, wire
from lineside.clock import NS, Clock
from lineside.errors import WireError
from lineside.messages import Ack
from lineside.mqtt import BrokerConfig

LOG = logging.getLogger("hub.ingest")
BATCH_ROWS, BATCH_S = 1000, 0.02
QUEUE_ROWS = 10_000
LOOK_S = 0.2
COMPLAIN_NS = 60 * NS
RETRY_S = 1.0
IDLE_LOOKS = 25  # so often nothing came in: the store is asked whether it still takes rows
AHEAD_NS = 60 * NS


class Keeper(Protocol):
    """Where rows go; `add` commits all or raises SQLAlchemyError, and tells how many were new.

    Of no rows it commits an empty transaction.
    """

    def add(self, rows: Sequence[tables.Row]) -> int: ...


@dataclass
class Counts:
    """What has come in since the hub started; every number is written by one thread only.

    `refused` were no messages of ours, `queue_full` came from a device that floods a full queue (hub.fair), `ahead`
    were stored though their device's clock runs more than a minute ahead. Of `commit_failed`, `database_locked` and
    `database_full` say why.
    """

    received: int = 0
    refused: int = 0
    queue_full: int = 0
    ahead: int = 0
    stored: int = 0
    duplicates: int = 0
    commit_failed: int = 0
    database_locked: int = 0
    database_full: int = 0


@dataclass
class Blamed:
    """By device, what of Counts it is the cause of; what came on no topic of a device is nobody's."""

    refused: Counter[str] = field(default_factory=Counter)
    queue_full: Counter[str] = field(default_factory=Counter)
    ahead: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Presence:
    """A device's last word (or the broker's, after its death) on its status topic."""

    word: str
    since_ns: int


class Ingest:
    """Listens for one site and keeps what it hears; `start` never waits for the broker, which may come later.

    With `shared` it takes its part of what all hubs of the site take together; a store that they share must serve
    several writers.
    """

    def __init__(
        self,
        site: str,
        broker: BrokerConfig,
        base: Path,
        keeper: Keeper,
        *,
        clock: Clock,
        queue_rows: int = QUEUE_ROWS,
        shared: bool = False,
    ) -> None:
        self.counts = Counts()
        self.failing = ""  # why the last commit failed (hub.trouble), "" after one that did not
        self.blamed = Blamed()
        self.presence: dict[str, Presence] = {}
        self._site, self._keeper, self._clock = site, keeper, clock
        self._queue: FairQueue[tables.Row] = FairQueue(queue_rows)
        self._stopping = threading.Event()
        self._complained_ns: dict[str, int] = {}
        self._places: dict[bytes, tuple[str, str]] = {}
        client = f"hub-{site}-{secrets.token_hex(3)}"
        self._subscriber = Subscriber(broker, base, client, filters(site, shared), self.take, clock)
        self._writer = threading.Thread(target=self._write, name="ingest", daemon=True)

    @property
    def connected(self) -> bool:
        """Whether the broker hears us now, and has taken our subscriptions."""
        return self._subscriber.connected

    @property
    def alive(self) -> bool:
        """Whether the thread that writes to the store runs."""
        return self._writer.is_alive()

    @property
    def well(self) -> bool:
        """Whether what comes in is stored: the writer runs, and its last commit or look at an idle store was good."""
        return self.alive and not self.failing

    @property
    def waiting(self) -> int:
        """Messages that have come in and are not committed yet."""
        return len(self._queue)

    def start(self) -> None:
        """Connect in the background and begin to write."""
        self._writer.start()
        self._subscriber.start()

    def stop(self) -> None:
        """Commit and acknowledge what is queued, then leave. May be called twice."""
        self._stopping.set()
        if self._writer.is_alive():
            self._writer.join()
        self._subscriber.stop()

    def take(self, messages: Sequence[Publish]) -> int:
        """Queue messages until one must wait; how many were taken. What is taken after `stop` would not be stored."""
        if self._stopping.is_set():
            return 0
        now_ns = self._clock.now_ns()
        for index, message in enumerate(messages):
            try:
                if not self._taken(message, now_ns):
                    return index
            except WireError as error:
                self.counts.received += 1
                self.counts.refused += 1
                device, _ = self._places.get(message.topic, ("", ""))
                if device:
                    self.blamed.refused[device] += 1
                # of each its own: one that babbles hides no other
                self._complain(f"refused {device}", f"{message.topic.decode(errors='replace')}: {error}", now_ns)
        return len(messages)

    def _taken(self, message: Publish, now_ns: int) -> bool:
        """False when the message must wait. Raises WireError for one that is no message of ours."""
        device, kind = self._places.get(message.topic) or self._place(message.topic)
        if kind == "status":
            self._note_status(device, message.payload, now_ns)
            return True
        answer = self._queue.answer(device)
        if answer == "wait":
            return False
        if answer == "away":
            self._turn_away(device, now_ns)
        else:
            self._queue.put(device, self._row(device, kind, message.payload, now_ns))
        self.counts.received += 1
        return True

    def _place(self, topic: bytes) -> tuple[str, str]:
        """Device and kind of a topic; remembered, for a line has few of them and each message would be parsed anew."""
        _, device, kind, _ = topics.parse(topic.decode(errors="replace"))
        if len(self._places) < QUEUE_ROWS:
            self._places[topic] = device, kind
        return device, kind

    def _turn_away(self, device: str, now_ns: int) -> None:
        self.counts.queue_full += 1
        self.blamed.queue_full[device] += 1
        told = f"{self._queue.places} messages wait for the store, {device} floods it and will have to send again"
        self._complain("queue full", told, now_ns)

    def _row(self, device: str, kind: str, payload: bytes, now_ns: int) -> tables.Row:
        message = wire.decode(kind, payload)
        if message.device != device:
            raise WireError(kind, f"message of {message.device!r} on the topic of {device!r}", "mend the device's id")
        row = tables.row(kind, message, payload, now_ns)
        if row.time_ns > now_ns + AHEAD_NS:
            self.counts.ahead += 1
            self.blamed.ahead[device] += 1
            seconds = (row.time_ns - now_ns) // NS
            self._complain(
                f"ahead {device}", f"the clock of {device} is {seconds} s ahead of the hub's; set it", now_ns
            )
        return row

    def _note_status(self, device: str, payload: bytes, now_ns: int) -> None:
        word = payload.decode(errors="replace")
        if word not in topics.STATUS:
            raise WireError("status", f"unknown word {word[:20]!r}", f"send one of {', '.join(topics.STATUS)}")
        if device not in self.presence or self.presence[device].word != word:
            self.presence[device] = Presence(word, now_ns)

    def _complain(self, about: str, text: str, now_ns: int) -> None:
        """At most once a minute about one thing: a babbling device must not fill the disk with log."""
        if now_ns - self._complained_ns.get(about, -COMPLAIN_NS) >= COMPLAIN_NS:
            self._complained_ns[about] = now_ns
            LOG.warning("%s (refused so far: %d, queue full: %d)", text, self.counts.refused, self.counts.queue_full)

    def _write(self) -> None:
        idle = 0
        while not (self._stopping.is_set() and not len(self._queue)):
            if batch := self._queue.take(BATCH_ROWS, LOOK_S, BATCH_S):
                self._commit(batch)
                idle = 0
            elif (idle := idle + 1) % IDLE_LOOKS == 0 or self.failing:
                self._look()

    def _look(self) -> None:
        """Whether a store to which nothing is written just now would take it."""
        if self.failing == "full":  # for which nothing but a row is a proof
            return
        try:
            self._keeper.add([])
        except SQLAlchemyError as error:
            self.failing = trouble(error)
            self._complain("store", f"the store takes nothing ({self.failing}): {error}", self._clock.now_ns())
            self._stopping.wait(RETRY_S)
        else:
            self.failing = ""

    def _commit(self, batch: list[tables.Row]) -> None:
        try:
            new = self._keeper.add(batch)
        except SQLAlchemyError as error:
            why = trouble(error)
            self.counts.commit_failed += len(batch)
            self.counts.database_locked += len(batch) * (why == "locked")
            self.counts.database_full += len(batch) * (why == "full")
            LOG.error("%d messages not committed (%s), devices will send them again: %s", len(batch), why, error)
            self.failing = why
            self._stopping.wait(RETRY_S)
            return
        self.failing = ""
        self.counts.stored += new
        self.counts.duplicates += len(batch) - new
        self._acknowledge(batch)

    def _acknowledge(self, batch: list[tables.Row]) -> None:
        numbers: dict[tuple[str, int], list[int]] = defaultdict(list)
        for row in batch:
            device, epoch, seq = row.place
            numbers[device, epoch].append(seq)
        acks = [
            Ack(device=device, epoch=epoch, ranges=ranges.merge((seq, seq) for seq in seqs))
            for (device, epoch), seqs in numbers.items()
        ]
        self._subscriber.publish(
            [(topics.name(self._site, ack.device, "ack").encode(), wire.encode(ack)) for ack in acks]
        )


def filters(site: str, shared: bool) -> list[str]:
    """What a hub subscribes to. A shared subscription gives no retained messages, so a device's status is never shared.

    >>> filters("line1", shared=True)[-2:]
    ['$share/hub/lineside/v1/line1/+/tombstone', 'lineside/+/line1/+/status']
    """
    stored = [topics.everything(site, "+", kind) for kind, topic in topics.TOPICS.items() if topic.stored]
    return [f"$share/hub/{each}" if shared else each for each in stored] + [topics.everything(site, "+", "status")]

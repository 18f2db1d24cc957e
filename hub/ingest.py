"""From MQTT into the store: decode, queue, commit in batches, and only then acknowledge to the device.

A broker's PUBACK is not storage. What does not fit into the queue or cannot be committed is not acknowledged, so its
device keeps it and sends it again.
"""

from __future__ import annotations

import logging
import queue
import secrets
import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import paho.mqtt.client as paho
from sqlalchemy.exc import SQLAlchemyError

from hub import tables
from lineside import mqtt, ranges, topics, wire
from lineside.clock import NS, Clock
from lineside.errors import WireError
from lineside.messages import Ack
from lineside.mqtt import BrokerConfig

LOG = logging.getLogger("hub.ingest")
BATCH_ROWS, BATCH_S = 500, 0.2
QUEUE_ROWS = 10_000
COMPLAIN_NS = 60 * NS
RETRY_S = 1.0


class Keeper(Protocol):
    """Where rows go; `add` commits all or raises SQLAlchemyError, and tells how many were new."""

    def add(self, rows: Sequence[tables.Row]) -> int: ...


@dataclass
class Counts:
    """What has come in since the hub started; every number is written by one thread only."""

    received: int = 0
    refused: int = 0
    queue_full: int = 0
    stored: int = 0
    duplicates: int = 0
    commit_failed: int = 0


@dataclass(frozen=True)
class Presence:
    """A device's last word (or the broker's, after its death) on its status topic."""

    word: str
    since_ns: int


class Ingest:
    """Listens for one site and keeps what it hears; `start` never waits for the broker, which may come later."""

    def __init__(
        self, site: str, broker: BrokerConfig, base: Path, keeper: Keeper, *, clock: Clock, queue_rows: int = QUEUE_ROWS
    ) -> None:
        self.counts = Counts()
        self.presence: dict[str, Presence] = {}
        self._site, self._broker, self._keeper, self._clock = site, broker, keeper, clock
        self._queue: queue.Queue[tables.Row] = queue.Queue(queue_rows)
        self._stopping = threading.Event()
        self._complained_ns = -COMPLAIN_NS
        self._client = mqtt.client(broker, f"hub-{site}-{secrets.token_hex(3)}", base)
        self._client.on_connect = self._on_connect
        self._client.on_message = self._on_message
        self._writer = threading.Thread(target=self._write, name="ingest", daemon=True)

    @property
    def connected(self) -> bool:
        """Whether the broker hears us now."""
        return self._client.is_connected()

    @property
    def alive(self) -> bool:
        """Whether the thread that writes to the store runs."""
        return self._writer.is_alive()

    @property
    def waiting(self) -> int:
        """Messages that have come in and are not committed yet."""
        return self._queue.qsize()

    def start(self) -> None:
        """Connect in the background and begin to write."""
        self._writer.start()
        mqtt.connect(self._client, self._broker, wait=False)

    def stop(self) -> None:
        """Commit and acknowledge what is queued, then leave. May be called twice."""
        self._stopping.set()
        if self._writer.is_alive():
            self._writer.join()
        self._client.disconnect()
        self._client.loop_stop()

    def _on_connect(self, client: paho.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            LOG.error("the broker refuses the hub: %s", reason)
            return
        # Subscriptions die with the session, so they are made at every connection.
        wanted = [kind for kind, topic in topics.TOPICS.items() if topic.stored or kind == "status"]
        client.subscribe([(topics.everything(self._site, "+", kind), 1) for kind in wanted])

    def _on_message(self, _client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        now_ns, payload = self._clock.now_ns(), bytes(message.payload)
        try:
            _, device, kind, _ = topics.parse(message.topic)
            if kind == "status":
                self._note_status(device, payload, now_ns)
                return
            self.counts.received += 1
            self._queue.put_nowait(self._row(device, kind, payload, now_ns))
        except WireError as error:
            self.counts.refused += 1
            self._complain(f"{message.topic}: {error}", now_ns)
        except queue.Full:
            self.counts.queue_full += 1
            self._complain(f"{self._queue.maxsize} messages wait for the store; devices will send again", now_ns)

    def _row(self, device: str, kind: str, payload: bytes, now_ns: int) -> tables.Row:
        message = wire.decode(kind, payload)
        if message.device != device:
            raise WireError(kind, f"message of {message.device!r} on the topic of {device!r}", "mend the device's id")
        return tables.row(kind, message, payload, now_ns)

    def _note_status(self, device: str, payload: bytes, now_ns: int) -> None:
        word = payload.decode(errors="replace")
        if word not in topics.STATUS:
            raise WireError("status", f"unknown word {word[:20]!r}", f"send one of {', '.join(topics.STATUS)}")
        if device not in self.presence or self.presence[device].word != word:
            self.presence[device] = Presence(word, now_ns)

    def _complain(self, text: str, now_ns: int) -> None:
        """At most once a minute: a babbling device must not fill the disk with log."""
        if now_ns - self._complained_ns >= COMPLAIN_NS:
            self._complained_ns = now_ns
            LOG.warning("%s (refused so far: %d, queue full: %d)", text, self.counts.refused, self.counts.queue_full)

    def _write(self) -> None:
        while not (self._stopping.is_set() and self._queue.empty()):
            if batch := self._batch():
                self._commit(batch)

    def _batch(self) -> list[tables.Row]:
        """Up to 500 rows, or what came within 0.2 s after the first one."""
        batch: list[tables.Row] = []
        deadline_ns = self._clock.now_ns() + round(BATCH_S * NS)
        while len(batch) < BATCH_ROWS and (left_ns := deadline_ns - self._clock.now_ns()) > 0:
            try:
                batch.append(self._queue.get(timeout=left_ns / NS))
            except queue.Empty:
                break
        return batch

    def _commit(self, batch: list[tables.Row]) -> None:
        try:
            new = self._keeper.add(batch)
        except SQLAlchemyError as error:
            self.counts.commit_failed += len(batch)
            LOG.error("%d messages not committed, devices will send them again: %s", len(batch), error)
            self._stopping.wait(RETRY_S)
            return
        self.counts.stored += new
        self.counts.duplicates += len(batch) - new
        self._acknowledge(batch)

    def _acknowledge(self, batch: list[tables.Row]) -> None:
        numbers: dict[tuple[str, int], list[int]] = defaultdict(list)
        for row in batch:
            device, epoch, seq = row.place
            numbers[device, epoch].append(seq)
        for (device, epoch), seqs in numbers.items():
            ack = Ack(device=device, epoch=epoch, ranges=ranges.merge((seq, seq) for seq in seqs))
            self._client.publish(topics.name(self._site, device, "ack"), wire.encode(ack), qos=1)

"""From a real broker into the store: acknowledged only when committed, stored once, nothing bad gets through."""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import msgspec
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy.exc import OperationalError

from hub import ingest as ingests
from hub.broker import Broker
from hub.dashboard import api
from hub.ingest import Ingest, Presence
from hub.line import Hub
from hub.store import Store, database_url
from hub.subscriber import Subscriber
from hub.tables import Row
from lineside import mqtt, topics, wire
from lineside.clock import NS, SystemClock
from lineside.messages import Ack, Message, Score, Tombstone
from lineside.mqtt import BrokerConfig
from lineside.plant import BrokerProcess, PlantConfig
from tests.line_broker import wait
from tests.line_port import free_port

SCORE = Score(
    device="press-3",
    station="press",
    start_ns=0,
    end_ns=NS,
    evidence=1.0,
    p_value=0.5,
    limit=0.01,
    contributions={"cam0": 1.0},
    without={"cam0": 1.0},
    agreements={},
    modalities={"cam0": "camera"},
    absent={},
    versions={},
    skew_ms=0.5,
)


class Line:
    """One plant with a real broker and store."""

    def __init__(self, folder: Path, **tls: str) -> None:
        self.folder = folder
        (folder / "secrets").mkdir()
        for user in ("hub", "operator", "press-3", "press-4"):
            (folder / "secrets" / f"{user}.password").write_text(f"secret of {user}")
        process = BrokerProcess(port=free_port(), **tls)
        self.plant = PlantConfig(site="line1", devices=["press-3", "press-4"], broker=process)
        self.broker = Broker(self.plant, folder, SystemClock())
        self.broker.start()
        self.store = Store(database_url("sqlite:///hub.db", folder))

    def ingest(self, keeper: object = None, **more: int) -> Ingest:
        hub = self.plant.connection("hub")
        made = Ingest("line1", hub, self.folder, keeper or self.store, clock=SystemClock(), **more)
        made.start()
        assert wait(lambda: made.connected)
        time.sleep(0.2)  # its subscriptions
        return made


class Device:
    """Sends as an agent does: numbered, and again until acknowledged."""

    def __init__(self, line: Line, name: str = "press-3") -> None:
        self.name, self.acks, self.commands = name, [], []
        config = line.plant.connection(name)
        self.client = mqtt.client(config, f"{name}-{id(self)}", line.folder)
        self.client.reconnect_delay_set(min_delay=1, max_delay=1)
        self.client.on_message = lambda _c, _d, message: self._hear(message.topic, message.payload)
        heard = threading.Event()
        self.client.on_connect = lambda c, *_: c.subscribe(
            [(topics.everything("line1", name, kind), 1) for kind in ("ack", "cmd")]
        )
        self.client.on_subscribe = lambda *_: heard.set()
        mqtt.connect(self.client, config)
        assert heard.wait(60)

    def _hear(self, topic: str, payload: bytes) -> None:
        kind = topics.parse(topic)[2]
        if payload:
            (self.acks if kind == "ack" else self.commands).append(wire.decode(kind, payload))

    def send(self, message: Message, seq: int, epoch: int = 1) -> None:
        self.raw(wire.kind_of(message), wire.encode(wire.stamped(message, epoch, seq)))

    def raw(self, kind: str, payload: bytes) -> None:
        self.client.publish(topics.name("line1", self.name, kind), payload, qos=1)

    def acknowledged(self, epoch: int = 1) -> set[int]:
        return {
            n for ack in self.acks if ack.epoch == epoch for first, last in ack.ranges for n in range(first, last + 1)
        }


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    made = Line(tmp_path)
    yield made
    made.broker.stop()
    made.store.close()


@pytest.fixture
def device(line: Line) -> Iterator[Device]:
    made = Device(line)
    yield made
    made.client.disconnect()
    made.client.loop_stop()


@pytest.mark.slow
def test_stored_and_acknowledged_in_runs_and_each_once(line: Line, device: Device) -> None:
    ingest = line.ingest()
    numbers = [1, 2, 3, 7, 8]
    for seq in [*numbers, 2, 3]:
        device.send(SCORE, seq)
    device.send(Tombstone(device="press-3", ranges=[(4, 6)], reason="full", time_ns=1), 9)
    device.send(SCORE, 1, epoch=2)
    assert wait(lambda: device.acknowledged(1) == {*numbers, 9} and device.acknowledged(2) == {1})
    ingest.stop()
    assert all(ack.device == "press-3" for ack in device.acks)
    assert (ingest.counts.received, ingest.counts.stored, ingest.counts.duplicates) == (9, 7, 2)
    assert line.store.gaps("press-3") == {}
    device.acks.clear()
    again = line.ingest()
    device.send(SCORE, 8)  # a device that missed the acknowledgement asks for it again
    assert wait(lambda: device.acknowledged() == {8})
    again.stop()
    assert line.store.counts()["scores"] == 6


@pytest.mark.slow
@pytest.mark.alone
def test_a_burst_is_acknowledged_in_few_messages(line: Line, device: Device) -> None:
    ingest = line.ingest()
    for seq in range(1, 2001):
        device.send(SCORE, seq)
    assert wait(lambda: len(device.acknowledged()) == 2000)
    ingest.stop()
    assert line.store.counts()["scores"] == 2000
    assert len(device.acks) < 200
    assert all(type(ack) is Ack for ack in device.acks)


class Broken:
    """A store whose disk is full until `mended`."""

    def __init__(self, store: Store) -> None:
        self.store, self.mended, self.tried = store, False, 0

    def add(self, rows: Sequence[Row]) -> int:
        self.tried += 1
        if not self.mended:
            raise OperationalError("INSERT", {}, OSError("disk full"))
        return self.store.add(rows)


def test_health_is_what_the_store_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingests, "LOOK_S", 0.01)
    store = Store(database_url("sqlite:///hub.db", tmp_path))
    keeper = Broken(store)
    ingest = Ingest("line1", BrokerConfig(), tmp_path, keeper, clock=SystemClock())
    monkeypatch.setattr(Subscriber, "start", lambda _: None)
    monkeypatch.setattr(Subscriber, "connected", True)
    app = FastAPI()
    api._mount_state(app, cast(Hub, SimpleNamespace(ingest=ingest)))
    client = TestClient(app)
    ingest.start()
    assert wait(lambda: client.get("/healthz").status_code == 503)  # though nothing came in
    assert client.get("/healthz").json() == {"status": "unwell", "broker": True, "ingest": False}
    assert ingest.alive
    keeper.mended = True
    assert wait(lambda: client.get("/healthz").status_code == 200)
    assert ingest.counts.commit_failed == 0
    ingest.stop()
    store.close()


@pytest.mark.slow
def test_no_commit_no_acknowledgement(line: Line, device: Device) -> None:
    keeper = Broken(line.store)
    ingest = line.ingest(keeper)
    device.send(SCORE, 1)
    assert wait(lambda: ingest.counts.commit_failed == 1)
    time.sleep(0.5)
    assert device.acks == []
    assert (ingest.failing, ingest.well) == ("failed", False)
    keeper.mended = True
    device.send(SCORE, 1)  # what a device does with an unacknowledged message
    assert wait(lambda: device.acknowledged() == {1})
    assert (ingest.failing, ingest.well) == ("", True)
    ingest.stop()
    assert line.store.counts()["scores"] == 1


class Slow:
    """A store that takes nothing until `go`."""

    def __init__(self, store: Store) -> None:
        self.store, self.asked, self.go = store, threading.Event(), threading.Event()

    def add(self, rows: Sequence[Row]) -> int:
        if rows:  # not a look at an idle store
            self.asked.set()
            self.go.wait(60)
        return self.store.add(rows)


@pytest.mark.slow
def test_a_full_queue_is_counted_and_not_acknowledged(line: Line, device: Device) -> None:
    keeper = Slow(line.store)
    ingest = line.ingest(keeper, queue_rows=10)
    device.send(SCORE, 1)
    assert wait(keeper.asked.is_set)  # the writer holds the first and waits
    for seq in range(2, 31):
        device.send(SCORE, seq)
    assert wait(lambda: ingest.counts.received == 30)
    assert ingest.counts.queue_full == 19
    keeper.go.set()
    assert wait(lambda: device.acknowledged() == set(range(1, 12)))
    ingest.stop()
    assert set(range(1, 12)) == {each.seq for each in line.store.scores("press-3")}


def test_bad_payloads_are_counted_and_told_once_and_harm_nothing(
    line: Line, device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    chance = random.Random(4)
    bad = [
        (kind, chance.randbytes(n)) for kind in ("score", "embedding", "alarm", "health") for n in (0, 1, 9, 80, 900)
    ]
    bad += [("score", wire.encode(SCORE).replace(b"0.5", b'"half"')), ("score", b'{"device":"press-3"}')]
    bad += [("score", wire.encode(msgspec.structs.replace(SCORE, device="press-4", seq=5)))]
    bad += [("score", wire.encode(msgspec.structs.replace(SCORE, seq=2**63)))]
    bad += [("score", wire.encode(msgspec.structs.replace(SCORE, p_value=p))) for p in (-0.1, 1.5)]
    bad += [("embedding", b"\x99" + b"\xa2\xc3\x28" * 9), ("score", b'{"device":"\xc3\x28"}')]  # no UTF-8
    bad += [("score", b'{"device":"press-3","more":' + b"[" * 100_000)]  # deeper than any parser goes
    with caplog.at_level(logging.WARNING, "hub.ingest"):
        ingest = line.ingest()
        for kind, payload in bad:
            device.raw(kind, payload)
        device.raw("status", b"\xff\xfe nonsense")
        device.send(SCORE, 1)
        assert wait(lambda: device.acknowledged() == {1})
        ingest.stop()
    assert ingest.counts.refused == len(bad) + 1
    assert len(caplog.records) == 1
    assert line.store.counts()["scores"] == 1
    assert "press-3" not in ingest.presence


def test_a_device_of_a_newer_version_is_named_not_missed(
    line: Line, device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "hub.ingest"):
        ingest = line.ingest()
        device.client.publish("lineside/v9/line1/press-3/status", "online", qos=1, retain=True)
        assert wait(lambda: ingest.counts.refused == 1)
        ingest.stop()
    (told,) = [record.message for record in caplog.records]
    assert "press-3" in told
    assert "its sender speaks v9, this side v1; update the older side" in told


def test_presence_follows_the_status_topic(line: Line, device: Device) -> None:
    device.client.publish(topics.name("line1", "press-3", "status"), "online", qos=1, retain=True)
    time.sleep(0.2)
    ingest = line.ingest()  # it was said before the hub came: retained
    assert wait(lambda: ingest.presence.get("press-3", Presence("", 0)).word == "online")
    device.client.publish(topics.name("line1", "press-3", "status"), "stopped", qos=1, retain=True)
    assert wait(lambda: ingest.presence["press-3"].word == "stopped")
    ingest.stop()


@pytest.mark.slow
def test_a_killed_broker_costs_nothing_that_was_accepted(line: Line, device: Device) -> None:
    ingest = line.ingest()
    pid = line.broker.pid
    assert pid is not None
    for seq in range(1, 301):
        device.send(SCORE, seq)
        if seq == 150:
            assert wait(device.acknowledged)
            os.kill(pid, signal.SIGKILL)
    assert wait(lambda: line.broker.restarts == 1 and ingest.connected and device.client.is_connected())
    accepted = device.acknowledged()
    for seq in sorted(set(range(1, 301)) - accepted):  # as the outbox does
        device.send(SCORE, seq)
    assert wait(lambda: device.acknowledged() == set(range(1, 301)))
    ingest.stop()
    assert {each.seq for each in line.store.scores("press-3")} == set(range(1, 301))
    assert line.store.gaps("press-3") == {}


@pytest.mark.slow
def test_ingest_started_before_its_broker_finds_it(tmp_path: Path) -> None:
    line = Line(tmp_path)
    line.broker.stop()
    hub = line.plant.connection("hub")
    ingest = Ingest("line1", hub, tmp_path, line.store, clock=SystemClock())
    ingest.start()
    time.sleep(0.3)
    assert not ingest.connected
    broker = Broker(line.plant, tmp_path, SystemClock())
    broker.start()
    assert wait(lambda: ingest.connected)
    ingest.stop()
    broker.stop()
    line.store.close()

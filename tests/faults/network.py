"""Networks that go away without a word, hubs that are slow, and bytes that nobody should send."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from msgspec import structs

from edge.config import DeviceConfig, DeviceSettings, OutboxSettings
from edge.outbox import Outbox
from edge.uplink import Uplink
from hub.ingest import Ingest
from hub.store import Store, database_url
from hub.tables import Row
from lineside import mqtt, topics
from lineside.clock import NS, SimulatedClock, SystemClock
from lineside.messages import Embedding, Embeddings, Message, Score
from tests.faults.plant import NAME, running
from tests.faults.storage import Unavailable
from tests.faults.table import Fault, Found
from tests.line_broker import LineBroker, wait
from tests.line_device import SENSORS, SITE

HOUR_S = 3600


def moment(number: int) -> list[Message]:
    """What one moment gives."""
    start_ns, end_ns = number * NS // 2, (number + 2) * NS // 2
    vectors = [Embedding(name, name, "1", "line", bytes(64)) for name in ("cam0", "mic0")]
    score = Score(
        device=NAME,
        station="press",
        start_ns=start_ns,
        end_ns=end_ns,
        evidence=1.0,
        p_value=0.5,
        limit=0.01,
        contributions={"cam0": 0.5, "mic0": 0.5},
        without={},
        agreements={},
        modalities={},
        absent={},
        versions={},
        skew_ms=0.0,
    )
    return [Embeddings(device=NAME, station="press", start_ns=start_ns, end_ns=end_ns, embeddings=vectors), score]


class Slow:
    """A store that takes its time."""

    def __init__(self, store: Store, seconds: float) -> None:
        self._store, self._seconds = store, seconds

    def add(self, rows: list[Row]) -> int:
        time.sleep(self._seconds)
        return self._store.add(rows)


@contextlib.contextmanager
def sending(
    folder: Path, moments: int, slow_s: float = 0.0, queue_rows: int = 10_000
) -> Iterator[tuple[Outbox, Store]]:
    """An outbox that has `moments` of messages, gathered while there was no broker, and the way to a hub's store."""
    clock = SimulatedClock(1_700_000_000 * NS)
    config = DeviceConfig(
        device=DeviceSettings(id=NAME, site=SITE, station="press"), sensors=SENSORS, outbox=OutboxSettings()
    )
    broker = LineBroker(folder, NAME)
    broker.stop()
    outbox = Outbox(folder / "outbox.db", NAME, round(config.outbox.max_mb * 1e6), clock)
    for number in range(moments):
        outbox.put(moment(number))
        clock.sleep(0.5)
    store = Store(database_url("sqlite:///hub.db", folder))
    keeper = Slow(store, slow_s) if slow_s else store
    ingest = Ingest(SITE, broker.plant.connection("hub"), folder, keeper, clock=SystemClock(), queue_rows=queue_rows)
    config = structs.replace(config, broker=broker.plant.connection(NAME))
    uplink = Uplink(config, folder, outbox, SystemClock(), lambda _: None)
    ingest.start()
    uplink.start()
    broker.start()
    try:
        yield outbox, store
    finally:
        uplink.stop()
        outbox.close()
        ingest.stop()
        store.close()
        broker.stop()


def drained(outbox: Outbox, store: Store, moments: int, within_s: float) -> Found:
    """Wait until the outbox is empty, and account for it."""
    begun = time.monotonic()
    if not wait(lambda: outbox.messages == 0, within_s):
        return Found(broken=f"{outbox.messages} messages wait after {within_s:g} s")
    took_s = round(time.monotonic() - begun, 1)
    counts, lost = (
        store.counts(),
        sum(last - first + 1 for ranges in store.gaps(NAME).values() for first, last in ranges),
    )
    missing = 2 * moments - counts["embeddings"] - counts["scores"]
    return Found(lost + missing, 0, took_s, f"{2 * moments} messages, {2 * moments / max(took_s, 0.1):.0f} a second")


def hour_away(folder: Path, strikes: int) -> Found:
    """No broker for an hour (of a simulated clock), then one."""
    moments = 2 * HOUR_S
    with sending(folder, moments) as (outbox, store):
        return drained(outbox, store, moments, 300)


def slow_hub(folder: Path, strikes: int) -> Found:
    """A hub that commits slowly behind a short queue: what does not fit is sent again."""
    with sending(folder, 1500, slow_s=0.3, queue_rows=50) as (outbox, store):
        return drained(outbox, store, 1500, 240)


def locked(folder: Path, strikes: int) -> Found:
    """Another program holds the hub's database for eight seconds."""
    with running(folder) as plant:
        with contextlib.closing(sqlite3.connect(folder / "hub.db", timeout=20)) as db:
            db.execute("BEGIN EXCLUSIVE")
            time.sleep(8)
            db.rollback()
        back_s = plant.back_s(20)
        lost, duplicated = plant.account()
    return Found(lost, duplicated, back_s)


def wild(folder: Path, strikes: int) -> Found:
    """Bytes that are no message of ours, and acknowledgements of what was never sent, on every topic of the device."""
    with running(folder) as plant:
        wildest = (
            b"",
            b"{",
            b"\xff" * 1000,
            b"null",
            b"[1e999]",
            b'{"device":"edge-1","epoch":1,"ranges":[[-5,99999999999]]}',
        )
        for user, kinds in (("hub", ("ack",)), ("operator", ("cmd", "state"))):
            client = mqtt.client(plant.broker.plant.connection(user), f"wild-{user}", folder)
            mqtt.connect(client, plant.broker.plant.connection(user))
            for kind in kinds:
                rest = ("x", "y") if kind == "cmd" else ()
                for data in wildest:
                    client.publish(topics.name(SITE, NAME, kind, *rest), data, qos=1).wait_for_publish(5)
            client.disconnect()
            client.loop_stop()
        back_s = plant.back_s(20)
        lost, duplicated = plant.account()
    return Found(lost, duplicated, back_s)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"ip {' '.join(words)}: {done.stderr.strip()}")


@contextlib.contextmanager
def apart(folder: Path) -> Iterator[tuple[str, str]]:
    """A network name space with one wire to us: its name, and our address on the wire. The wire is `ls-host`."""
    space = f"lineside-{os.getpid()}"
    _ip("netns", "add", space)
    try:
        _ip("link", "add", "ls-host", "type", "veth", "peer", "name", "ls-edge")
        _ip("link", "set", "ls-edge", "netns", space)
        _ip("addr", "add", "10.213.7.1/30", "dev", "ls-host")
        _ip("link", "set", "ls-host", "up")
        for words in (
            ("addr", "add", "10.213.7.2/30", "dev", "ls-edge"),
            ("link", "set", "ls-edge", "up"),
            ("link", "set", "lo", "up"),
        ):
            _ip("-n", space, *words)
        yield space, "10.213.7.1"
    finally:
        subprocess.run(["ip", "link", "del", "ls-host"], capture_output=True, check=False)
        subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)


def half_open(folder: Path, strikes: int) -> Found:
    """The wire between agent and broker is dead for 40 s, and nobody is told: connections stay, packets vanish."""
    with apart(folder) as (space, address), running(folder, network=(space, address)) as plant:
        _ip("link", "set", "ls-host", "down")
        time.sleep(40)
        _ip("link", "set", "ls-host", "up")
        back_s = plant.back_s(40)
        lost, duplicated = plant.account()
    return Found(lost, duplicated, back_s, "wire dead for 40 s")


ROWS = (
    Fault("broker away for an hour", "all that waited is delivered in order", hour_away, 240),
    Fault("half-open TCP", "noticed by the keep-alive; nothing is lost", half_open, 40),
    Fault("slow hub", "what the hub cannot take is sent again, once stored", slow_hub, 240),
    Fault("hub's database locked", "nothing is lost", locked, 20),
    Fault("wild bytes from the broker", "refused by name, nothing stops", wild, 10),
)

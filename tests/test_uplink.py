"""From the outbox over a real broker: forgotten only when the hub says so, sent again until then."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from edge.config import DeviceConfig, DeviceSettings, OutboxSettings
from edge.outbox import Outbox
from edge.requests import finished
from edge.uplink import Uplink
from lineside import mqtt, topics, wire
from lineside.clock import NS, Clock, SimulatedClock, SystemClock
from lineside.messages import Ack, Command, Embedding, Embeddings, Message, StationState
from lineside.ranges import merge
from tests.line_broker import LineBroker, wait
from tests.line_device import SENSORS, SITE

NAME = "edge-1"


def moment(number: int) -> Message:
    vectors = [Embedding("cam0", "camera", "1", "line", bytes(64))]
    return Embeddings(device=NAME, station="press", start_ns=number * NS, end_ns=(number + 1) * NS, embeddings=vectors)


class Listener:
    """A client of one plant user that keeps all it hears; as the hub it acknowledges what it hears while `acks`."""

    def __init__(self, line: LineBroker, user: str, *kinds: str, acks: bool = False) -> None:
        self.acks, self.heard, self.words, self.commands = acks, [], [], []
        self.ready = threading.Event()
        config = line.plant.connection(user)
        self.client = mqtt.client(config, f"{user}-listener", line.folder)
        self.client.reconnect_delay_set(min_delay=1, max_delay=1)
        wanted = [(topics.everything(SITE, NAME, kind), 1) for kind in kinds]
        self.client.on_connect = lambda client, *_: client.subscribe(wanted)
        self.client.on_subscribe = lambda *_: self.ready.set()
        self.client.on_message = lambda _c, _d, message: self._hear(message.topic, bytes(message.payload))
        mqtt.connect(self.client, config)
        assert self.ready.wait(60)

    def _hear(self, topic: str, payload: bytes) -> None:
        kind = topics.parse(topic)[2]
        if kind == "status":
            self.words.append(payload.decode())
        elif kind == "cmd":
            self.commands += [wire.decode(kind, payload)] if payload else []
        else:
            message = wire.decode(kind, payload)
            self.heard.append((message.epoch, message.seq))
            if self.acks:
                self.acknowledge([(message.epoch, message.seq)])

    def acknowledge(self, places: list[tuple[int, int]]) -> None:
        for epoch in {epoch for epoch, _ in places}:
            ranges = merge((seq, seq) for of, seq in places if of == epoch)
            self.say("ack", wire.encode(Ack(device=NAME, epoch=epoch, ranges=ranges)))

    def say(self, kind: str, payload: bytes, *rest: str, retain: bool = False) -> None:
        self.client.publish(topics.name(SITE, NAME, kind, *rest), payload, qos=1, retain=retain)

    def numbers(self) -> list[int]:
        return [seq for _, seq in self.heard]

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


class Device:
    """Outbox and uplink as the agent holds them; `commands` and `states` are those that came to it."""

    def __init__(
        self, line: LineBroker, state: Path, *, port: int = 0, clock: Clock | None = None, **outbox: float
    ) -> None:
        broker = line.plant.connection(NAME)
        config = DeviceConfig(
            device=DeviceSettings(id=NAME, site=SITE, station="press"),
            sensors=SENSORS,
            broker=msgspec.structs.replace(broker, port=port or broker.port),
            outbox=OutboxSettings(**{"window": 64, "resend_s": 0.8, **outbox}),
        )
        self.commands: list[Command] = []
        self.states: list[StationState] = []
        self.outbox = Outbox(state / "outbox.db", NAME, 10**9, SystemClock())
        hears = (self.commands.append, self.states.append)
        self.uplink = Uplink(config, line.folder, self.outbox, clock or SystemClock(), *hears)
        self.uplink.start()

    def put(self, *numbers: int) -> None:
        for number in numbers:
            self.outbox.put([moment(number)])
            self.uplink.wake()

    def stop(self) -> None:
        self.uplink.stop()
        self.outbox.close()


@pytest.fixture
def line(tmp_path: Path) -> Iterator[LineBroker]:
    made = LineBroker(tmp_path, NAME)
    yield made
    made.stop()


@pytest.fixture
def device(line: LineBroker, tmp_path: Path) -> Iterator[Device]:
    made = Device(line, tmp_path / "state")
    assert wait(made.uplink.connected.is_set)
    yield made
    made.stop()


@pytest.fixture
def hub(line: LineBroker) -> Iterator[Listener]:
    made = Listener(line, "hub", "embedding", "status")
    yield made
    made.close()


@pytest.fixture
def operator(line: LineBroker) -> Iterator[Listener]:
    made = Listener(line, "operator", "cmd")
    yield made
    made.close()


def test_a_message_is_forgotten_only_when_the_hub_says_so(device: Device, hub: Listener) -> None:
    device.put(1, 2, 3)
    assert wait(lambda: sorted(set(hub.numbers())) == [1, 2, 3])
    assert device.outbox.messages == 3  # the broker has taken them, which is no storage
    hub.acknowledge([(device.outbox.epoch + 1, 1), (device.outbox.epoch, 2)])
    assert wait(lambda: device.outbox.messages == 2)
    assert [waiting.place for waiting in device.outbox.pending(0, 10)] == [1, 3]


@pytest.mark.slow
def test_what_is_not_acknowledged_is_sent_again_from_the_oldest(device: Device, hub: Listener) -> None:
    device.put(1, 2)
    assert wait(lambda: hub.numbers()[:2] == [1, 2])
    before = time.monotonic()
    assert wait(lambda: hub.numbers()[2:4] == [1, 2])
    assert time.monotonic() - before > 0.4  # not in a hurry either
    hub.acks = True
    assert wait(lambda: device.outbox.messages == 0)
    told = len(hub.heard)
    time.sleep(1.5)
    assert len(hub.heard) == told


@pytest.mark.slow
def test_no_more_than_a_window_is_under_way(line: LineBroker, hub: Listener, tmp_path: Path) -> None:
    device = Device(line, tmp_path / "state", window=5, resend_s=60)
    device.put(*range(1, 21))
    assert wait(lambda: hub.numbers() == [1, 2, 3, 4, 5])
    time.sleep(0.6)
    assert hub.numbers() == [1, 2, 3, 4, 5]
    hub.acks = True
    hub.acknowledge(list(hub.heard))
    assert wait(lambda: device.outbox.messages == 0)
    assert hub.numbers() == list(range(1, 21))
    device.stop()


@pytest.mark.slow
def test_a_device_that_starts_before_its_broker_finds_it(line: LineBroker, tmp_path: Path) -> None:
    line.stop()
    device = Device(line, tmp_path / "state")
    device.put(1, 2)
    assert not device.uplink.connected.is_set()
    line.start()
    hub = Listener(line, "hub", "embedding", acks=True)
    assert wait(lambda: device.outbox.messages == 0)
    assert set(hub.numbers()) == {1, 2}
    device.stop()
    hub.close()


@pytest.mark.slow
def test_a_killed_broker_costs_no_message(line: LineBroker, device: Device, hub: Listener) -> None:
    hub.acks = True
    for number in range(1, 201):
        device.put(number)
        if number == 100:
            assert wait(lambda: 50 in hub.numbers())
            os.kill(line.process.pid or 0, signal.SIGKILL)
    assert wait(lambda: device.outbox.messages == 0)
    assert set(hub.numbers()) == set(range(1, 201))
    assert {epoch for epoch, _ in hub.heard} == {device.outbox.epoch}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stopped", "frozen"])
def test_ten_seconds_without_broker_cost_no_message(line: LineBroker, device: Device, hub: Listener, how: str) -> None:
    hub.acks = True
    device.put(*range(1, 11))
    assert wait(lambda: device.outbox.messages == 0)
    pid = line.process.pid or 0
    line.stop() if how == "stopped" else os.kill(pid, signal.SIGSTOP)
    for number in range(11, 111):
        device.put(number)
        time.sleep(0.1)
    assert device.outbox.messages == 100
    line.start() if how == "stopped" else os.kill(pid, signal.SIGCONT)
    assert wait(lambda: device.outbox.messages == 0)
    assert set(hub.numbers()) == set(range(1, 111))


def test_status_says_online_and_stopped(line: LineBroker, hub: Listener, tmp_path: Path) -> None:
    device = Device(line, tmp_path / "state")
    assert wait(lambda: hub.words == ["online"])
    device.stop()
    assert wait(lambda: hub.words == ["online", "stopped"])


def test_status_says_offline_when_the_device_is_lost(line: LineBroker, hub: Listener, tmp_path: Path) -> None:
    config = line.plant.connection(NAME)
    code = (
        "import sys, time\nfrom pathlib import Path\nimport msgspec\n"
        "from edge.config import DeviceConfig\nfrom edge.outbox import Outbox\nfrom edge.uplink import Uplink\n"
        "from lineside.clock import SystemClock\n"
        "config = msgspec.json.decode(sys.argv[1], type=DeviceConfig)\nbase = Path(sys.argv[2])\n"
        f"box = Outbox(base / 'lost.db', {NAME!r}, 10**6, SystemClock())\n"
        "Uplink(config, base, box, SystemClock(), print).start()\ntime.sleep(60)\n"
    )
    settings = DeviceSettings(id=NAME, site=SITE, station="press")
    device = DeviceConfig(device=settings, sensors=SENSORS, broker=config)
    process = subprocess.Popen([sys.executable, "-c", code, msgspec.json.encode(device), str(tmp_path)])
    assert wait(lambda: hub.words == ["online"])
    process.kill()
    process.wait()
    assert wait(lambda: hub.words == ["online", "offline"])


def test_a_command_comes_once_and_its_progress_is_told(line: LineBroker, device: Device, operator: Listener) -> None:
    asked = Command(id="7f", op="rollback", args={"modality": "camera"})
    operator.say("cmd", wire.encode(asked), "rollback", "7f", retain=True)
    assert wait(lambda: device.commands == [asked])
    device.uplink.report(msgspec.structs.replace(asked, status="executing"))
    device.uplink.report(finished(asked, "no previous encoder"))
    assert wait(lambda: [c.status for c in operator.commands] == ["init", "executing", "failed"])
    assert operator.commands[-1].reason == "no previous encoder"
    operator.say("cmd", b"", "rollback", "7f", retain=True)
    time.sleep(0.3)
    assert device.commands == [asked]


@pytest.mark.slow
def test_a_command_that_waits_is_not_taken_again_after_a_reconnection(
    line: LineBroker, device: Device, operator: Listener
) -> None:
    """Its request is retained until the device reports: a rollback done twice would undo itself."""
    asked = Command(id="8a", op="rollback", args={"modality": "camera"})
    operator.say("cmd", wire.encode(asked), "rollback", "8a", retain=True)
    assert wait(lambda: device.commands == [asked])
    line.stop()  # in order, so that what is retained is on disk
    assert wait(lambda: not device.uplink.connected.is_set())
    operator.ready.clear()
    operator.commands.clear()
    line.start()
    assert wait(lambda: device.uplink.connected.is_set() and operator.commands == [asked])
    time.sleep(0.3)
    assert device.commands == [asked]


def test_what_the_station_says_of_itself_is_heard_also_by_a_device_that_comes_later(
    line: LineBroker, operator: Listener, tmp_path: Path
) -> None:
    operator.say("state", wire.encode(StationState("product b", 7)), retain=True)
    device = Device(line, tmp_path / "later")
    try:
        assert wait(lambda: device.states == [StationState("product b", 7)])
        operator.say("state", b"[]")
        operator.say("state", b'{"state":"idle"}')
        assert wait(lambda: device.states[1:] == [StationState("idle")])
    finally:
        device.stop()


@pytest.mark.slow
def test_health_is_told_of_a_broker_that_is_away_or_refuses(line: LineBroker, tmp_path: Path) -> None:
    (tmp_path / "secrets" / f"{NAME}.password").write_text("wrong")
    clock = SimulatedClock(10**18)
    device = Device(line, tmp_path / "state", clock=clock)
    assert device.uplink.problem == ""  # the first seconds are its own
    clock.sleep(11)
    assert wait(lambda: "refuses edge-1" in device.uplink.problem)
    line.stop()
    away = Device(line, tmp_path / "other", clock=clock)
    clock.sleep(11)
    assert f"no connection to 127.0.0.1:{line.plant.broker.port}" in away.uplink.problem
    device.stop()
    away.stop()


GARBAGE = [
    ("ack", b"\xff\x00nonsense", ()),
    ("ack", b"[" * 100_000, ()),
    ("ack", b'{"device":"edge-1"}', ()),
    ("ack", b'{"device":"edge-1","epoch":EPOCH,"ranges":[[-5,0],[9,3],[2,18446744073709551615]]}', ()),
    ("cmd", b"{}", ("update", "1")),
    ("cmd", b'{"id":"a/b","op":"update"}', ("update", "2")),
    ("cmd", b'{"id":"3","op":"+"}', ("update", "3")),
    ("cmd", b'{"id":"4","op":"update","status":"perhaps"}', ("update", "4")),
]


@pytest.mark.parametrize(("kind", "payload", "rest"), GARBAGE)
def test_garbage_is_ignored(
    line: LineBroker,
    device: Device,
    hub: Listener,
    operator: Listener,
    kind: str,
    payload: bytes,
    rest: tuple[str, ...],
) -> None:
    device.put(1)
    assert wait(lambda: 1 in hub.numbers())
    sender = hub if kind == "ack" else operator
    operator.client.unsubscribe(topics.everything(SITE, NAME, "cmd"))  # it would choke on it itself
    sender.say(kind, payload.replace(b"EPOCH", str(device.outbox.epoch).encode()), *rest)
    good = Command(id="ok", op="update")
    operator.say("cmd", wire.encode(good), "update", "ok")
    assert wait(lambda: device.commands == [good])
    assert device.outbox.messages == 1
    hub.acknowledge([(device.outbox.epoch, 1)])
    assert wait(lambda: device.outbox.messages == 0)

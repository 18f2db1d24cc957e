"""What paho-mqtt and mosquitto do to who trusts them, each with a test against both (conventions, sections 3 and 4)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from edge.lanes import Pace, Way
from edge.outbox import Outbox
from edge.requests import finished
from hub.ingest import Ingest
from hub.store import Store, database_url
from lineside import mqtt, topics, wire
from lineside.clock import NS, SystemClock
from lineside.ledbat import LEAST
from lineside.messages import Command, StationState
from lineside.mqtt import BrokerConfig
from tests.line_broker import LineBroker, wait
from tests.line_device import SITE
from tests.line_tap import CONNECT, PUBLISH, SUBSCRIBE, Tap
from tests.test_outbox import alarm
from tests.test_uplink import NAME, Device, Listener, moment

HERE = Path(__file__).parent.parent


@pytest.fixture
def line(tmp_path: Path) -> Iterator[LineBroker]:
    made = LineBroker(tmp_path, NAME)
    yield made
    made.stop()


@pytest.fixture
def tap(line: LineBroker) -> Iterator[Tap]:
    made = Tap(line.plant.broker.port)
    yield made
    made.close()


@pytest.fixture
def device(line: LineBroker, tap: Tap, tmp_path: Path) -> Iterator[Device]:
    made = Device(line, tmp_path / "state", port=tap.port)
    yield made
    made.stop()


def kill(line: LineBroker) -> None:
    """SIGKILL; its watcher starts it again after 0.2 s."""
    os.kill(line.process.pid or 0, signal.SIGKILL)


def sent(tap: Tap) -> Counter[int]:
    """How often each stored message went over the wire, by number."""
    found = [p for p in tap.of(PUBLISH) if topics.parse(p.topic)[2] == "embedding"]
    return Counter(wire.decode("embedding", p.payload).seq for p in found)


@pytest.mark.slow
def test_each_connection_has_the_will_with_it(line: LineBroker, tap: Tap, device: Device) -> None:
    """Trap 1: paho sends the same will at each reconnect. Ours is the same word each time, and must be there."""
    assert wait(device.uplink.connected.is_set)
    kill(line)
    assert wait(lambda: len(tap.of(CONNECT)) == 2 and device.uplink.connected.is_set())
    for packet in tap.of(CONNECT):
        assert topics.name(SITE, NAME, "status").encode() in packet.body
        assert packet.body.count(b"offline") == 1
        assert packet.body[7] & 0b111110 == 0b101110  # will, QoS 1, retained; clean start


def test_nothing_is_published_before_the_broker_has_said_yes(tap: Tap, line: LineBroker, tmp_path: Path) -> None:
    """Trap 2: what paho is given between `connect` and CONNACK goes on the wire before everything else."""
    tap.open.clear()
    device = Device(line, tmp_path / "state", port=tap.port)
    device.put(1, 2, 3)
    device.uplink.report(finished(Command(id="7f", op="update")))
    assert wait(lambda: tap.of(CONNECT))
    time.sleep(0.6)
    assert {packet.type for packet in tap.packets} == {CONNECT}
    tap.open.set()
    assert wait(lambda: set(sent(tap)) == {1, 2, 3})
    kinds = [p.type for p in tap.packets if p.type in {SUBSCRIBE, PUBLISH}]
    assert kinds[:4] == [SUBSCRIBE, SUBSCRIBE, SUBSCRIBE, PUBLISH]
    assert topics.parse(tap.of(PUBLISH)[0].topic)[2] == "status"
    device.stop()


@pytest.mark.slow
def test_what_paho_kept_in_an_outage_is_not_given_to_it_again(line: LineBroker, tap: Tap, tmp_path: Path) -> None:
    """Trap 3: `publish` gives rc 4 for what it has queued, and sends that later: ours too would be twice."""
    device = Device(line, tmp_path / "state", port=tap.port, resend_s=3.0)
    hub = Listener(line, "hub", "embedding", acks=True)
    assert wait(device.uplink.connected.is_set)
    pid = line.process.pid or 0
    os.kill(pid, signal.SIGSTOP)  # half open: paho takes messages and hears nothing
    device.put(*range(1, LEAST + 1))
    assert wait(lambda: device.uplink.held == LEAST)
    assert wait(lambda: set(sent(tap)) == set(range(1, LEAST + 1)))  # paho's thread has written them
    before = sent(tap)
    os.kill(pid, signal.SIGKILL)
    assert wait(lambda: device.uplink.held == 0)
    time.sleep(0.6)
    after = sent(tap)
    assert set(after) == set(range(1, LEAST + 1))
    assert all(after[n] - before[n] <= 1 for n in after)  # once by paho, none by us
    assert wait(lambda: device.outbox.messages == 0)  # also what the hub was not back in time for
    device.stop()
    hub.close()


@pytest.mark.slow
def test_memory_of_queued_messages_is_bounded_whatever_the_connection_does(line: LineBroker, tmp_path: Path) -> None:
    """Trap 3: paho's own queue has no bound, and grows with each reconnection that is sent everything anew."""
    device = Device(line, tmp_path / "state", window=8, resend_s=0.3)
    most = 0
    for round_ in range(3):
        assert wait(device.uplink.connected.is_set)
        os.kill(line.process.pid or 0, signal.SIGSTOP)
        for number in range(40):
            device.put(round_ * 40 + number)
        time.sleep(0.7)  # longer than resend_s
        most = max(most, device.uplink.held)
        kill(line)
        assert wait(lambda: not device.uplink.connected.is_set())
        most = max(most, device.uplink.held)
    assert 0 < most <= 8
    assert wait(device.uplink.connected.is_set)
    hub = Listener(line, "hub", "embedding", acks=True)
    assert wait(lambda: device.outbox.messages == 0)
    assert set(hub.numbers()) == set(range(1, 121))
    device.stop()
    hub.close()


@pytest.mark.slow
def test_subscriptions_are_made_anew_after_a_reconnection(line: LineBroker, tap: Tap, device: Device) -> None:
    """Trap 4: they end with a clean session."""
    assert wait(device.uplink.connected.is_set)
    kill(line)
    assert wait(lambda: len({p.life for p in tap.of(SUBSCRIBE)}) == 2 and device.uplink.connected.is_set())
    operator = Listener(line, "operator", "cmd")
    hub = Listener(line, "hub", "embedding", acks=True)
    asked = Command(id="7f", op="update")
    operator.say("cmd", wire.encode(asked), "update", "7f")
    operator.say("state", wire.encode(StationState("idle")))
    device.put(1)
    assert wait(lambda: (device.commands, device.states) == ([asked], [StationState("idle")]))
    assert wait(lambda: device.outbox.messages == 0)
    hub.close()
    operator.close()


def test_the_client_uses_no_deprecated_callbacks() -> None:
    """Trap 5: `Client()` without VERSION2 works, and warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mqtt.client(BrokerConfig(), "x", Path())


@pytest.mark.slow
def test_a_whole_line_does_not_come_back_in_step() -> None:
    """Trap 6: paho doubles its pause without jitter. Twelve clients that lose their broker at once come back apart."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        config, came = BrokerConfig(port=server.getsockname()[1]), []
        clients = [mqtt.client(config, f"edge-{n}", Path()) for n in range(12)]
        for client in clients:
            mqtt.connect(client, config, wait=False)
        first = [server.accept()[0] for _ in clients]
        for each in first:
            each.close()
        for _ in clients:
            server.accept()[0].close()
            came.append(time.monotonic())
        for client in clients:
            client.disconnect()
            client.loop_stop()
    assert came[-1] - came[0] > 0.7
    assert len({mqtt.back_off() for _ in range(100)}) == 100


def test_a_report_lost_with_a_killed_broker_is_told_again(line: LineBroker, device: Device) -> None:
    """mosquitto saves what is retained each 15 s: killed, it shows the request again, and would for ever."""
    operator = Listener(line, "operator", "cmd")
    asked = Command(id="7f", op="update")
    operator.say("cmd", wire.encode(asked), "update", "7f", retain=True)
    assert wait(lambda: device.commands == [asked])
    device.uplink.report(finished(asked))
    assert wait(lambda: operator.commands and operator.commands[-1].status == "successful")
    operator.say("cmd", wire.encode(asked), "update", "7f", retain=True)  # as the broker would after its death
    assert wait(lambda: [c.status for c in operator.commands[-2:]] == ["init", "successful"])
    assert device.commands == [asked]
    operator.close()


@pytest.mark.slow
@pytest.mark.alone
def test_alarms_do_not_wait_behind_a_backlog_which_goes_in_order_and_not_too_fast(
    line: LineBroker, tmp_path: Path
) -> None:
    kept = Outbox(tmp_path / "state" / "outbox.db", NAME, 10**9, SystemClock())
    kept.put([moment(number) for number in range(1, 301)])
    kept.close()
    hub = Listener(line, "hub", "embedding", "alarm", acks=True)
    started = time.monotonic()
    device = Device(line, tmp_path / "state", window=64, resend_s=60.0, drain_per_s=100.0)
    assert wait(lambda: len(hub.heard) > 20)
    device.outbox.put([msgspec.structs.replace(alarm(), device=NAME)])
    device.uplink.wake()
    assert wait(lambda: 301 in hub.numbers())
    assert hub.numbers().index(301) < 250
    assert wait(lambda: device.outbox.messages == 0)
    assert 1.5 < time.monotonic() - started < 6  # 300 at 100 a second, a second's worth of them at once
    assert [n for n in hub.numbers() if n != 301] == list(range(1, 301))
    device.stop()
    hub.close()


@pytest.mark.slow
def test_one_message_that_nobody_stores_does_not_hold_up_the_rest(line: LineBroker, tmp_path: Path) -> None:
    device = Device(line, tmp_path / "state", window=16, resend_s=0.4)
    hub = Listener(line, "hub", "embedding")
    device.put(*range(1, 5))
    assert wait(lambda: len(hub.heard) >= 4)
    hub.acknowledge([(device.outbox.epoch, n) for n in (1, 3, 4)])
    for number in range(5, 40):  # live traffic goes on, so there is always progress
        device.put(number)
        hub.acks = True
        time.sleep(0.03)
        hub.acknowledge([(device.outbox.epoch, n) for n in hub.numbers() if n != 2])
    assert wait(lambda: hub.numbers().count(2) >= 2)  # it alone was sent again, and the hub could store it this time
    assert wait(lambda: device.outbox.messages == 0)
    device.stop()
    hub.close()


def test_due_is_what_was_never_sent_or_long_ago_within_the_window_and_the_pace() -> None:
    way = Way("rest", 4, 2.0, Pace(3, 0))
    assert way.due([1, 2, 3, 4], 0) == [1, 2, 3]
    for place in (1, 2, 3):
        way.sent(place, 100 + place, 0)
    assert way.due([1, 2, 3, 4], NS) == [4]
    way.sent(4, 104, NS)
    for number in (101, 102, 104):
        way.taken(number)
    assert way.due([1, 2, 3, 4], 2 * NS) == [1, 2]  # the client library has the third still
    way.taken(103)
    assert way.due([2, 4, 5, 6], 5 * NS // 2) == [2, 5, 6]
    assert way.due([2, 4], 3 * NS) == [2, 4]
    way.sent(4, 105, 3 * NS)
    way.taken(105)
    assert way.due([4], 3 * NS) == []
    way.sent(6, 106, 3 * NS)
    way.again(3 * NS)
    assert way.due([4, 6], 3 * NS) == [4]
    way.taken(106)
    assert way.due([4, 6], 3 * NS) == [4]


def test_a_lane_holds_back_while_its_messages_take_longer_and_longer_and_goes_on_when_they_do_not() -> None:
    way, now_ns, number = Way("rest", 512, 60.0, Pace(1e6, 0)), 0, 0
    sizes = []
    for delay_ns in [NS // 100] * 200 + [NS // 2] * 200 + [NS // 100] * 200:
        places = list(range(number, number + 512))
        for place in (due := way.due(places, now_ns)):
            way.sent(place, place, now_ns)
            way.taken(place)
        number += len(due)
        sizes.append(len(due))
        now_ns += delay_ns
    assert sizes[0] == LEAST < 100 < sizes[199]
    assert sizes[399] == LEAST
    assert sizes[599] > 100


HUB = f"""
import sys, threading
from pathlib import Path
import msgspec
from hub.ingest import Ingest
from hub.store import Store, database_url
from lineside.clock import SystemClock
from lineside.mqtt import BrokerConfig
folder = Path(sys.argv[1])
store = Store(database_url("sqlite:///hub.db", folder))
Ingest({SITE!r}, msgspec.json.decode(sys.argv[2], type=BrokerConfig), folder, store, clock=SystemClock()).start()
threading.Event().wait()
"""


@pytest.mark.slow
def test_broker_and_hub_killed_again_and_again_lose_nothing_and_store_each_once(
    line: LineBroker, tmp_path: Path
) -> None:
    """A PUBACK is no storage: what mosquitto or the hub had when it was killed is sent again, and stored once."""
    device = Device(line, tmp_path / "state", resend_s=1.0, drain_per_s=2000.0)
    config = msgspec.json.encode(line.plant.connection("hub"))
    dice, put = [0.05, 0.3, 0.6, 0.15, 0.9, 0.4], 0
    for life, lives_s in enumerate(dice):
        hub = subprocess.Popen([sys.executable, "-c", HUB, str(tmp_path), config], cwd=HERE)
        time.sleep(0.8)
        until = time.monotonic() + lives_s
        while time.monotonic() < until or put < 100 * (life + 1):
            put += 1
            device.put(put)
        hub.kill()
        hub.wait()
        if life % 2:
            assert wait(lambda: line.process.pid)
            kill(line)
    store = Store(database_url("sqlite:///hub.db", tmp_path))
    ingest = Ingest(SITE, line.plant.connection("hub"), tmp_path, store, clock=SystemClock())
    ingest.start()
    assert wait(lambda: device.outbox.messages == 0)
    ingest.stop()
    assert store.counts()["embeddings"] == put
    assert store.gaps(NAME) == {}
    store.close()
    device.stop()

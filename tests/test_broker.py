"""mosquitto itself, started by hub.broker: who may do what, limits, death and restart, ports, secrets."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import paho.mqtt.client as paho
import pytest

from hub import broker_files, ports
from hub.broker import Broker, program, write_files
from lineside import mqtt, topics
from lineside.clock import SystemClock
from lineside.errors import BrokerError, ConfigError, PortInUseError
from lineside.plant import BrokerProcess, HubSettings, PlantConfig
from tests.line_broker import wait
from tests.line_port import free_port

USERS = ("hub", "operator", "press-3", "press-4")


def plant_in(folder: Path, **broker: str | int) -> PlantConfig:
    (folder / "secrets").mkdir(parents=True, exist_ok=True)
    for user in USERS:
        (folder / "secrets" / f"{user}.password").write_text(f"secret of {user}\n")
    process = BrokerProcess(**{"port": free_port(), **broker})
    return PlantConfig(site="line1", devices=list(USERS[2:]), broker=process, hub=HubSettings(port=free_port()))


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PlantConfig, Path]]:
    folder = tmp_path_factory.mktemp("line")
    plant = plant_in(folder)
    broker = Broker(plant, folder, SystemClock())
    broker.start()
    yield plant, folder
    broker.stop()


class Client:
    """One broker user: what it hears, and what the broker says to its publications."""

    def __init__(self, plant: PlantConfig, folder: Path, user: str, name: str = "") -> None:
        config = plant.connection(user)
        self.heard: list[str] = []
        self.refusals: dict[int, bool] = {}
        self.ready = threading.Event()
        self.client = mqtt.client(config, name or f"test-{user}-{id(self)}", folder)
        self.client.on_connect = lambda *_: self.ready.set()
        self.client.on_message = lambda _c, _d, message: self.heard.append(message.topic)
        self.client.on_publish = lambda _c, _d, mid, reason, _p: self.refusals.update({mid: reason.is_failure})
        mqtt.connect(self.client, config)
        assert self.ready.wait(60)

    def publish(self, topic: str) -> bool:
        """Whether the broker took it."""
        sent = self.client.publish(topic, b"x", qos=1)
        assert wait(lambda: sent.mid in self.refusals)
        return not self.refusals[sent.mid]

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


def every_topic() -> list[tuple[str, str, str]]:
    """(device, kind, topic) of every row of the table for both devices."""
    return [
        (device, kind, topics.name("line1", device, kind, *["x"] * topic.depth))
        for device in USERS[2:]
        for kind, topic in topics.TOPICS.items()
    ]


def allowed(user: str, device: str, roles: tuple[str, ...]) -> bool:
    return user in roles if user in ("hub", "operator") else "device" in roles and user == device


@pytest.mark.parametrize("user", USERS)
def test_each_user_writes_its_rows_and_no_other(line: tuple[PlantConfig, Path], user: str) -> None:
    client = Client(*line, user)
    taken = {topic for _, _, topic in every_topic() if client.publish(topic)}
    others = [client.publish(topic) for topic in ("lineside/v1/line2/press-3/score", "anything", "lineside/v1/line1")]
    client.close()
    assert taken == {t for device, kind, t in every_topic() if allowed(user, device, topics.TOPICS[kind].writers)}
    assert others == [False, False, False]


@pytest.mark.parametrize("user", USERS)
def test_each_user_hears_its_rows_and_no_other(line: tuple[PlantConfig, Path], user: str) -> None:
    listener = Client(*line, user)
    subscribed = threading.Event()
    listener.client.on_subscribe = lambda *_: subscribed.set()
    listener.client.subscribe([("#", 1)])
    assert subscribed.wait(60)
    writers = {name: Client(*line, name) for name in USERS}
    for device, kind, topic in every_topic():
        writer = next(name for name in USERS if allowed(name, device, topics.TOPICS[kind].writers))
        assert writers[writer].publish(topic)
    should = {t for device, kind, t in every_topic() if allowed(user, device, topics.TOPICS[kind].readers)}
    assert wait(lambda: should <= set(listener.heard))
    time.sleep(0.2)
    for client in (listener, *writers.values()):
        client.close()
    assert set(listener.heard) == should


@pytest.mark.slow
def test_wrong_password_and_no_password_are_refused(line: tuple[PlantConfig, Path]) -> None:
    plant, folder = line
    for user, secret in (("press-3", "secret of press-4"), ("", None)):
        refused: list[bool] = []
        client = mqtt.client(msgspec.structs.replace(plant.connection(""), password_file=""), f"bad-{user}", folder)
        if user:
            client.username_pw_set(user, secret)
        client.on_connect = lambda _c, _d, _f, reason, _p, kept=refused: kept.append(reason.is_failure)
        client.connect("127.0.0.1", plant.broker.port)
        client.loop_start()
        assert wait(lambda kept=refused: kept)
        client.loop_stop()
        assert refused[0]


@pytest.mark.slow
def test_a_packet_beyond_the_limit_ends_its_session(tmp_path: Path) -> None:
    plant = plant_in(tmp_path, max_packet_bytes=4096)
    broker = Broker(plant, tmp_path, SystemClock())
    broker.start()
    lost = threading.Event()
    client = Client(plant, tmp_path, "press-3")
    client.client.on_disconnect = lambda *_: lost.set()
    sent = client.client.publish("lineside/v1/line1/press-3/score", b"x" * 8000, qos=1)
    assert sent.rc == paho.MQTT_ERR_SUCCESS
    assert lost.wait(60)
    client.close()
    broker.stop()


def test_files_are_ours_alone_and_hold_no_password(tmp_path: Path) -> None:
    conf = write_files(plant_in(tmp_path), tmp_path, tmp_path / "broker")
    files = [path for path in conf.parent.iterdir() if path.is_file()]
    assert sorted(path.name for path in files) == ["acl", "mosquitto.conf", "passwd"]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files)
    assert stat.S_IMODE(conf.parent.stat().st_mode) == 0o700
    assert "secret" not in "".join(path.read_text() for path in files)
    assert [line.split(":")[0] for line in (conf.parent / "passwd").read_text().splitlines()] == list(USERS)


def test_the_configuration_states_every_limit(tmp_path: Path) -> None:
    text = broker_files.conf_text(plant_in(tmp_path, port=1999), tmp_path, tmp_path / "b", "plant")
    options = dict(row.split(" ", 1) for row in text.splitlines())
    assert options["listener"] == "1999 127.0.0.1"
    assert options["allow_anonymous"] == options["per_listener_settings"] == "false"
    limits = ("max_queued_messages", "max_queued_bytes", "max_inflight_messages", "max_packet_size")
    assert all(int(options[limit]) > 0 for limit in (*limits, "autosave_interval"))
    assert options["persistence"] == "true"
    assert "certfile" not in options


def test_a_missing_password_names_the_mend(tmp_path: Path) -> None:
    plant = plant_in(tmp_path)
    (tmp_path / "secrets" / "press-4.password").unlink()
    with pytest.raises(ConfigError, match=r"press-4\.password.*lineside deploy init"):
        Broker(plant, tmp_path, SystemClock()).start()


def test_a_machine_without_mosquitto_is_told_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(BrokerError, match="apt-get install mosquitto"):
        program("mosquitto", path=str(tmp_path))


def test_a_port_in_use_is_told_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        plant = plant_in(tmp_path, port=taken.getsockname()[1])
        broker = Broker(plant, tmp_path, SystemClock())
        with pytest.raises(PortInUseError, match=rf"port {plant.broker.port} on 127.0.0.1.*\[broker\] port"):
            broker.start()
        assert broker.pid is None
        assert not (broker.folder / "mosquitto.conf").exists()


@pytest.mark.slow
def test_a_killed_broker_comes_back_and_stop_ends_it(tmp_path: Path) -> None:
    plant = plant_in(tmp_path)
    broker = Broker(plant, tmp_path, SystemClock())
    broker.start()
    first = broker.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert wait(lambda: broker.pid not in (None, first) and ports.answers("127.0.0.1", plant.broker.port))
    assert broker.restarts == 1
    last = broker.pid
    broker.stop()
    assert not Path(f"/proc/{last}").exists()
    time.sleep(0.5)
    assert not ports.answers("127.0.0.1", plant.broker.port)


def test_a_broker_left_behind_by_a_killed_hub_is_replaced(tmp_path: Path) -> None:
    plant = plant_in(tmp_path)
    conf = write_files(plant, tmp_path, tmp_path / "state" / "broker")
    orphan = subprocess.Popen([program("mosquitto"), "-c", str(conf)], stderr=subprocess.DEVNULL)
    assert wait(lambda: ports.answers("127.0.0.1", plant.broker.port) and (conf.parent / "mosquitto.pid").exists())
    reaper = threading.Thread(target=orphan.wait)  # init does that for a real orphan
    reaper.start()
    broker = Broker(plant, tmp_path, SystemClock())
    broker.start()
    reaper.join(5)
    assert orphan.returncode is not None
    assert broker.pid not in (None, orphan.pid)
    broker.stop()


@pytest.mark.slow
def test_with_certificates_the_listener_speaks_tls_only(tmp_path: Path) -> None:
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    files = ["-keyout", "tls.key", "-out", "tls.crt", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*make.split(), *files], cwd=tmp_path, check=True, capture_output=True)
    plant = plant_in(tmp_path, cert_file="tls.crt", key_file="tls.key", ca_file="tls.crt")
    broker = Broker(plant, tmp_path, SystemClock())
    broker.start()
    client = Client(plant, tmp_path, "hub")
    assert client.publish("lineside/v1/line1/press-3/ack")
    client.close()
    plain = mqtt.client(msgspec.structs.replace(plant.connection("hub"), ca_file=""), "plain", tmp_path)
    connected = threading.Event()
    plain.on_connect = lambda *_: connected.set()
    plain.connect("127.0.0.1", plant.broker.port)
    plain.loop_start()
    assert not connected.wait(1)
    plain.loop_stop()
    broker.stop()

"""Requests to devices over a real broker with passwords and access lists, and what the fleet shows."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import paho.mqtt.client as paho
import pytest
from typer.testing import CliRunner

from deploy import credentials, fleet, repository
from deploy.__main__ import app
from deploy.repository import Pointed
from lineside import config, mqtt, topics, wire
from lineside.clock import SystemClock
from lineside.errors import BrokerError, ConfigError, ReleaseError
from lineside.messages import Command, EncoderHealth, Health, StationState
from lineside.operator import Operator, Outcome, Report, check
from lineside.pins import Pins
from lineside.plant import BrokerProcess, PlantConfig
from tests import tiny_encoder
from tests.line_port import free_port

Answer = Callable[[Command], list[Command]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plant")


@pytest.fixture(scope="module")
def plant(base: Path) -> Iterator[PlantConfig]:
    """A plant of two devices whose mosquitto runs with the passwords and the access list of lineside.topics."""
    made = PlantConfig(site="line1", devices=["edge-1", "edge-2"], broker=BrokerProcess(port=free_port()))
    credentials.create(made, base)
    for user in made.users:
        flags = ["-b"] if (base / "passwords").exists() else ["-b", "-c"]
        password = credentials.path(made, base, user).read_text().strip()
        subprocess.run(["mosquitto_passwd", *flags, base / "passwords", user, password], check=True)
    (base / "access").write_text("".join(f"user {user}\n{_rows(made, user)}" for user in made.users))
    (base / "mosquitto.conf").write_text(
        f"listener {made.broker.port} 127.0.0.1\nallow_anonymous false\npersistence false\nuser root\n"
        f"password_file {base / 'passwords'}\nacl_file {base / 'access'}\n"
    )
    with subprocess.Popen(["mosquitto", "-c", base / "mosquitto.conf"], stderr=subprocess.DEVNULL) as broker:
        _until(lambda: _listens(made.broker.port))
        yield made
        broker.terminate()


def _rows(plant: PlantConfig, user: str) -> str:
    role = user if user in ("hub", "operator") else "device"
    return "".join(
        f"topic {access} {filter_}\n"
        for access, filter_ in topics.rules(role, plant.site, user if role == "device" else "+")
    )


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _until(done: Callable[[], bool], limit_s: float = 120.0) -> None:
    end = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


class Device:
    """A device that answers each request by `answer`, on the request's own topic."""

    def __init__(self, plant: PlantConfig, base: Path, name: str, answer: Answer) -> None:
        self.asked: list[Command] = []
        self.cleared: list[str] = []
        self._answer = answer
        self.client = mqtt.client(plant.connection(name), name, base)
        self.client.on_message = self._on_message
        self._listening = False
        self.client.on_subscribe = lambda *_: setattr(self, "_listening", True)
        mqtt.connect(self.client, plant.connection(name))
        self.client.subscribe(topics.everything(plant.site, name, "cmd"), 1)
        _until(lambda: self._listening)

    def _on_message(self, client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        if not message.payload:
            self.cleared.append(message.topic)
            return
        command: Command = wire.decode("cmd", message.payload)
        if command.status == "init":
            self.asked.append(command)
            for answer in self._answer(command):
                client.publish(message.topic, wire.encode(answer), qos=1, retain=True)

    def tell(self, plant: PlantConfig, name: str, kind: str, payload: bytes) -> None:
        self.client.publish(topics.name(plant.site, name, kind), payload, qos=1, retain=True).wait_for_publish(5)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


def obeys(command: Command) -> list[Command]:
    return [msgspec.structs.replace(command, status=status) for status in ("executing", "successful")]


def refuses(command: Command) -> list[Command]:
    return [msgspec.structs.replace(command, status="failed", reason="golden failed: 1 - cosine is 0.3")]


def dawdles(command: Command) -> list[Command]:
    return [msgspec.structs.replace(command, status="executing")]


@pytest.fixture
def device(plant: PlantConfig, base: Path) -> Iterator[Callable[[str, Answer], Device]]:
    made: list[Device] = []

    def start(name: str, answer: Answer) -> Device:
        made.append(Device(plant, base, name, answer))
        return made[-1]

    yield start
    for one in made:
        one.close()


@pytest.fixture
def operator(plant: PlantConfig, base: Path) -> Iterator[Operator]:
    with Operator(plant.connection("operator"), base, plant.site, SystemClock()) as connected:
        yield connected


def retained(plant: PlantConfig, base: Path) -> list[str]:
    """Topics of requests that the broker still holds."""
    found: list[str] = []
    reader = mqtt.client(plant.connection("operator"), "reader", base)
    reader.on_message = lambda _client, _data, message: found.append(message.topic)
    mqtt.connect(reader, plant.connection("operator"))
    reader.subscribe(topics.everything(plant.site, "+", "cmd"), 1)
    time.sleep(0.3)
    reader.disconnect()
    reader.loop_stop()
    return found


def test_devices_that_obey(plant: PlantConfig, base: Path, device, operator: Operator) -> None:
    both = [device(name, obeys) for name in plant.devices]
    outcomes = operator.ask(plant.devices, "update", {"modality": "camera"}, timeout_s=5)
    assert outcomes == [Outcome("edge-1", "successful"), Outcome("edge-2", "successful")]
    check(outcomes, "update", "-")
    assert [(c.op, c.args, c.status) for c in both[0].asked] == [("update", {"modality": "camera"}, "init")]
    _until(lambda: all(one.cleared for one in both))
    assert retained(plant, base) == []


def test_a_device_that_fails_is_named_with_its_reason(plant: PlantConfig, device, operator: Operator) -> None:
    device("edge-1", obeys), device("edge-2", refuses)
    outcomes = operator.ask(plant.devices, "update", {"modality": "camera"}, timeout_s=5)
    assert outcomes[1] == Outcome("edge-2", "failed", "golden failed: 1 - cosine is 0.3")
    with pytest.raises(ReleaseError, match="edge-2: golden failed") as error:
        check(outcomes, "update", "-")
    assert error.value.check == "rollout"


@pytest.mark.slow
def test_a_silent_device_is_named_and_the_request_is_taken_back(
    plant: PlantConfig, base: Path, device, operator: Operator
) -> None:
    device("edge-1", obeys), device("edge-2", dawdles)
    outcomes = operator.ask(plant.devices, "rollback", {"modality": "camera"}, timeout_s=3.0)
    assert [outcome.status for outcome in outcomes] == ["successful", "silent"]
    with pytest.raises(BrokerError, match=r"^edge-2: no final answer to 'rollback'"):
        check(outcomes, "rollback", "-")
    late = device("edge-2", obeys)
    time.sleep(0.3)
    assert late.asked == []
    assert retained(plant, base) == []


def test_only_the_devices_that_were_chosen_are_asked(plant: PlantConfig, device, operator: Operator) -> None:
    first, second = device("edge-1", obeys), device("edge-2", obeys)
    assert operator.ask(["edge-2"], "update", {"modality": "camera"}, 5) == [Outcome("edge-2", "successful")]
    assert (len(first.asked), len(second.asked)) == (0, 1)


def test_an_answer_that_is_no_command_counts_as_failed(plant: PlantConfig, device, operator: Operator) -> None:
    garbled = device("edge-1", lambda _: [])
    garbled.client.on_message = lambda client, _data, message: (
        client.publish(message.topic, b"?", qos=1, retain=True) if message.payload[:1] == b"{" else None
    )
    (outcome,) = operator.ask(["edge-1"], "update", {"modality": "camera"}, 5)
    assert (outcome.status, "payload is no json" in outcome.reason) == ("failed", True)


def test_a_wrong_password_and_a_broker_that_is_away_are_told(plant: PlantConfig, base: Path) -> None:
    (base / "wrong").mkdir(exist_ok=True)
    connection = msgspec.structs.replace(plant.connection("operator"), password_file="wrong/operator.password")
    (base / "wrong" / "operator.password").write_text("guess")
    with pytest.raises(BrokerError, match="refused user 'operator'"), _operator(connection, base, plant):
        pass
    away = msgspec.structs.replace(plant.connection("operator"), port=free_port())
    with pytest.raises(BrokerError, match="no connection"), _operator(away, base, plant):
        pass
    with pytest.raises(ConfigError, match="password file cannot be read"):
        _operator(msgspec.structs.replace(connection, password_file="nowhere"), base, plant)


def _operator(connection: mqtt.BrokerConfig, base: Path, plant: PlantConfig) -> Operator:
    return Operator(connection, base, plant.site, SystemClock())


def health(device: str, **encoders: EncoderHealth) -> Health:
    return Health(
        device=device, station="press", agent="0.1.0", time_ns=0, uptime_s=5.0, state="running", sensors={},
        encoders=encoders, windows=0, moments=0, scores=0, outbox_messages=0, outbox_bytes=0, dropped_messages=0,
        problems=["mic0: silent; check the plug"],
    )  # fmt: skip


def runs(version: int, sha256: str) -> EncoderHealth:
    return EncoderHealth(version=str(version), previous=str(version - 1), sha256=sha256, space="s1", provider="CPU")


def test_the_survey_finds_what_is_retained(plant: PlantConfig, base: Path, device) -> None:
    first, second = device("edge-1", obeys), device("edge-2", obeys)
    told = health("edge-1", camera=runs(2, "aa"))
    first.tell(plant, "edge-1", "status", b"online")
    first.tell(plant, "edge-1", "health", wire.encode(told))
    second.tell(plant, "edge-2", "status", b"offline")
    second.tell(plant, "edge-2", "health", b"no health")
    try:
        with _operator(plant.connection("operator"), base, plant) as operator:
            found = operator.survey(listen_s=2.0)
    finally:
        for one, name in ((first, "edge-1"), (second, "edge-2")):
            for kind in ("status", "health"):
                one.tell(plant, name, kind, b"")
    assert found["edge-1"] == Report("edge-1", "online", told)
    assert (found["edge-2"].device, found["edge-2"].health) == ("edge-2", None)


def test_the_fleet_is_compared_with_what_is_pointed_at() -> None:
    reports = {
        "edge-1": Report("edge-1", "online", health("edge-1", camera=runs(2, "aa"), microphone=runs(1, "mm"))),
        "edge-2": Report("edge-2", "offline", health("edge-2", camera=runs(1, "bb"))),
        "stray": Report("stray", "online", None),
    }
    pointed = {"camera": Pointed("camera", 2, {"fp32": "ff", "int8": "aa"})}
    rows = fleet.versions(["edge-1", "edge-2", "edge-3"], ("camera", "microphone"), reports, pointed, Pins(Path()))
    assert {(row.device, row.modality): row.state for row in rows} == {
        ("edge-1", "camera"): "as pointed",
        ("edge-1", "microphone"): "not published",
        ("edge-2", "camera"): "differs",
        ("edge-2", "microphone"): "no encoder",
        ("edge-3", "camera"): "no report",
        ("edge-3", "microphone"): "no report",
        ("stray", "camera"): "no report",
        ("stray", "microphone"): "no report",
    }
    assert (rows[0].running, rows[0].previous, rows[0].pointed) == ("2", "1", "2")
    shown = fleet.devices(["edge-1", "edge-3"], reports)
    assert [(row.device, row.status) for row in shown] == [
        ("edge-1", "online"),
        ("edge-3", "unknown"),
        ("edge-2", "offline"),
        ("stray", "online"),
    ]
    assert shown[0].problems == ["mic0: silent; check the plug"]


def lineside(*words: object) -> object:
    """Run a `lineside deploy` command with --json and read what it prints; its errors are raised."""
    result = CliRunner().invoke(app, [str(word) for word in (*words, "--json")], standalone_mode=False)
    if result.exception:
        raise result.exception
    return json.loads(result.stdout)


def test_a_state_is_told_and_retained(plant: PlantConfig, base: Path, device) -> None:
    file = base / "plant.toml"
    file.write_text(f'site = "line1"\ndevices = ["edge-1", "edge-2"]\n[broker]\nport = {plant.broker.port}\n')
    assert CliRunner().invoke(app, ["init", str(base)]).exit_code == 0
    told = lineside("state", "product b", "--config", file, "--device", "edge-1")
    assert told == {"state": "product b", "devices": ["edge-1"]}
    heard: list[tuple[str, StationState]] = []
    for name in plant.devices:
        client = device(name, obeys).client
        client.on_message = lambda _c, _d, m: heard.append((m.topic, wire.decode("state", m.payload)))
        client.subscribe(topics.everything(plant.site, name, "state"), 1)
    _until(lambda: bool(heard))
    time.sleep(0.2)
    assert heard == [(topics.name(plant.site, "edge-1", "state"), StationState("product b"))]


def test_a_rollback_without_broker_moves_no_pointer(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "plant.toml"
    file.write_text(f'site = "line1"\ndevices = ["edge-1"]\n[broker]\nport = {free_port()}\n')
    assert CliRunner().invoke(app, ["init", str(tmp_path)]).exit_code == 0
    for version in (1, 2):
        lineside("publish", "--config", file, tiny_encoder.write(tmp_path, "camera", version))
    repo = repository.of(config.load(file, PlantConfig), tmp_path, SystemClock())
    with pytest.raises(BrokerError):
        lineside("rollout", "start", "--config", file, "--modality", "camera")
    assert (repo.pointed()["camera"].candidate, list(tmp_path.glob("state/rollouts/*.json"))) == (None, [])
    repo.point("camera", 2)
    with pytest.raises(BrokerError):
        lineside("rollback", "--config", file, "--modality", "camera")
    assert repo.pointed()["camera"].version == 2
    assert lineside("refresh", "--config", file)["timestamp"]["days"] > 6.9


@pytest.mark.slow
def test_the_commands_show_devices_and_versions(plant: PlantConfig, base: Path, device) -> None:
    file = base / "plant.toml"
    file.write_text(f'site = "line1"\ndevices = ["edge-1", "edge-2"]\n[broker]\nport = {plant.broker.port}\n')
    assert CliRunner().invoke(app, ["init", str(base)]).exit_code == 0
    one = device("edge-1", obeys)
    one.tell(plant, "edge-1", "status", b"online")
    one.tell(plant, "edge-1", "health", wire.encode(health("edge-1", camera=runs(7, "aa"))))
    shown = lineside("devices", "--config", file)
    assert [(row["device"], row["status"], row["station"]) for row in shown] == [
        ("edge-1", "online", "press"),
        ("edge-2", "unknown", ""),
    ]
    rows = [row for row in lineside("status", "--config", file) if row["modality"] == "camera"]
    assert [(row["device"], row["running"], row["verified"], row["doubt"]) for row in rows] == [
        ("edge-1", "7", False, "no manifest"),
        ("edge-2", "", False, "no manifest"),
    ]
    assert lineside("rollout", "status", "--config", file) == {"rollout": None, "devices": []}

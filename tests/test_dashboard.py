"""`lineside hub run` as a process, fed through its real broker: what programs read and what people see."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest

from lineside import config as toml
from lineside import mqtt, topics, wire
from lineside.clock import NS
from lineside.messages import (
    Alarm,
    Contribution,
    Embedding,
    Embeddings,
    EncoderHealth,
    Health,
    Message,
    Score,
    SensorHealth,
)
from lineside.plant import PlantConfig
from tests.line_broker import wait
from tests.line_port import free_port

ROOT = Path(__file__).parent.parent
MODALITIES = {"cam0": "camera", "mic0": "microphone", "vib0": "series"}
RATES_HZ = {"camera": 25.0, "microphone": 16_000.0, "series": 1000.0}
HISTORY_S = 120


class Hub:
    """A plant folder and `lineside hub run` on it."""

    def __init__(self, folder: Path, devices: Sequence[str] = ("press-3", "press-4")) -> None:
        self.folder = folder
        broker, page = free_port(), free_port()
        (folder / "secrets").mkdir()
        for user in ("hub", "operator", *devices):
            (folder / "secrets" / f"{user}.password").write_text(f"secret of {user}")
        self.config = folder / "plant.toml"
        self.config.write_text(
            f'site = "line1"\ndevices = {json.dumps(list(devices))}\n'
            f"[broker]\nport = {broker}\n[hub]\nport = {page}\ndemo = true\n"
        )
        self.plant = toml.load(self.config, PlantConfig)
        self.url = f"http://127.0.0.1:{page}"

    def run(self) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
        command = [sys.executable, "-m", "hub", "run", "--config", str(self.config)]
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.load(answer)

    def status_of(self, path: str) -> int:
        try:
            with urllib.request.urlopen(self.url + path, timeout=60) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code


class Device:
    """A device as its agent would speak, two minutes of history first, then live twice a second."""

    def __init__(self, hub: Hub, name: str, *, faulty: bool) -> None:
        self.name, self.faulty, self.seq, self.epoch = name, faulty, 0, time.time_ns()
        self.chance = np.random.default_rng(len(name) + faulty)
        self.station = f"press {name[-1]}"
        config = hub.plant.connection(name)
        self.client = mqtt.client(config, name, hub.folder)
        self.client.on_message = lambda _c, _d, message: self._obey(message.topic, message.payload)
        self.commands: list[str] = []
        connected = threading.Event()
        self.client.on_connect = lambda c, *_: (
            c.subscribe(topics.everything("line1", name, "cmd"), 1),
            c.publish(topics.name("line1", name, "status"), "online", qos=1, retain=True),
            connected.set(),
        )
        mqtt.connect(self.client, config)
        assert connected.wait(60)
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._live)

    def send(self, message: Message) -> None:
        self.seq += 1
        kind = wire.kind_of(message)
        payload = wire.encode(wire.stamped(message, self.epoch, self.seq))
        self.client.publish(topics.name("line1", self.name, kind), payload, qos=1, retain=topics.TOPICS[kind].retain)

    def _obey(self, topic: str, payload: bytes) -> None:
        if payload and (asked := wire.decode("cmd", payload)).status == "init":
            self.commands.append(f"{asked.op} {asked.args}")
            done = msgspec.structs.replace(asked, status="successful")
            self.client.publish(topic, wire.encode(done), qos=1, retain=True)

    def begin(self) -> None:
        now_ns = time.time_ns() // (NS // 2) * (NS // 2)
        self.send(self.health(now_ns))
        for half in range(-2 * HISTORY_S, 0):
            self.moment(now_ns + half * NS // 2, since_s=half / 2)
        self.thread.start()

    def end(self) -> None:
        self.stop.set()
        self.thread.join()
        self.client.disconnect()
        self.client.loop_stop()

    def _live(self) -> None:
        due_ns = time.time_ns() // (NS // 2) * (NS // 2)
        while not self.stop.wait(max(0.0, (due_ns - time.time_ns()) / NS)):
            self.moment(due_ns - NS, since_s=0.0)
            if due_ns % (5 * NS) == 0:
                self.send(self.health(due_ns))
            due_ns += NS // 2

    def moment(self, start_ns: int, since_s: float) -> None:
        ill = self.faulty and since_s > -14
        phi = {"cam0": self.chance.gamma(2, 0.2), "mic0": self.chance.gamma(2, 0.2), "vib0": self.chance.gamma(2, 0.15)}
        if ill:
            phi = {**phi, "mic0": 5.2 + self.chance.normal(0, 0.4), "vib0": 1.6 + self.chance.normal(0, 0.2)}
        evidence = float(sum(phi.values()))
        vectors = [
            Embedding(s, m, "2.1.0" if m == "camera" else "2.0.0", "space-1", b"\0\0") for s, m in MODALITIES.items()
        ]
        self.send(
            Embeddings(
                device=self.name, station=self.station, start_ns=start_ns, end_ns=start_ns + NS, embeddings=vectors
            )
        )
        self.send(
            Score(
                device=self.name,
                station=self.station,
                start_ns=start_ns,
                end_ns=start_ns + NS,
                evidence=evidence,
                p_value=float(np.exp(-evidence)),
                limit=0.01,
                contributions={name: float(value) for name, value in phi.items()},
                without=dict.fromkeys(phi, 0.5),
                agreements={"cam0+mic0": 0.31 if ill else 0.82 + self.chance.normal(0, 0.01)},
                drift={"cam0": 0.08, "mic0": 0.61 if self.faulty else 0.12, "cam0+mic0": 0.2},
                modalities=MODALITIES,
                absent={},
                versions={"camera": "2.1.0", "microphone": "2.0.0"},
                skew_ms=4.0,
            )
        )

    def health(self, time_ns: int) -> Health:
        encoder = EncoderHealth(
            version="2.0.0", previous="1.0.0", sha256="0", space="space-1", provider="CPUExecutionProvider"
        )
        sensors = {
            name: SensorHealth(
                modality=kind,
                windows=self.seq // 2,
                dropped_samples=0,
                flags=[],
                problem="",
                rate_hz=RATES_HZ[kind],
                offset_ms=0.8,
                drift_ppm=12.0,
            )
            for name, kind in MODALITIES.items()
        }
        if not self.faulty:
            lens = "the same picture comes again and again; restart the camera"
            sensors["cam1"] = msgspec.structs.replace(sensors["cam0"], flags=["frozen"], problem=lens)
        newer = msgspec.structs.replace(encoder, version="2.1.0", previous="2.0.0")
        return Health(
            device=self.name,
            station=self.station,
            agent="0.1.0",
            time_ns=time_ns,
            uptime_s=900.0,
            state="watching",
            sensors=sensors,
            encoders={"camera": newer, "microphone": encoder},
            windows=self.seq,
            moments=self.seq // 2,
            scores=self.seq // 2,
            drift="42 of 42 channels are watched",
            contributions={"cam0": Contribution(0.6, 1.2, 0.3, 1.0), "mic0": Contribution(0.4, 0.8, 0.3, 1.0)},
            effective_sensors=1.96,
            sensitivity=["all sensors: mean AUROC 0.97 of 12 process faults"],
            outbox_messages=3,
            outbox_bytes=4000,
            dropped_messages=0,
            problems=[],
        )

    def alarm(self, key: str, ago_s: int, top: str, text: str, contributions: dict[str, float]) -> Alarm:
        now_ns = time.time_ns()
        return Alarm(
            device=self.name,
            station=self.station,
            key=key,
            kind="anomaly" if contributions else "sensor",
            state="raised",
            subject=self.station if contributions else top,
            top_sensor=top,
            top_modality=MODALITIES[top],
            onset_ns=now_ns - (ago_s + 2) * NS,
            time_ns=now_ns - ago_s * NS,
            p_value=float(np.exp(-sum(contributions.values()))),
            evidence=sum(contributions.values()),
            contributions=contributions,
            versions={"camera": "2.1.0"},
            limits={"p_limit": 0.01},
            text=text,
            pictures={"cam0": picture()} if contributions else {},
        )


def picture() -> bytes:
    """A part on a belt, as a camera would see it."""
    frame = np.full((120, 160, 3), 70, np.uint8)
    cv2.rectangle(frame, (0, 35), (160, 90), (45, 50, 48), -1)
    cv2.ellipse(frame, (82, 62), (34, 18), 24, 0, 360, (70, 150, 205), -1)
    cv2.circle(frame, (82, 62), 7, (40, 44, 44), -1)
    return cv2.imencode(".jpg", frame)[1].tobytes()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    made = Hub(tmp_path_factory.mktemp("plant"))
    process = made.run()
    assert process.stdout is not None
    assert process.stdout.readline().strip() == f"dashboard on {made.url}"
    yield made
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors


@pytest.fixture(scope="module")
def line(hub: Hub) -> Iterator[dict[str, Device]]:
    """Two devices; press-3 hears a bearing."""
    devices = {name: Device(hub, name, faulty=name == "press-3") for name in ("press-3", "press-4")}
    for device in devices.values():
        device.begin()
    ill = devices["press-3"]
    muted = ill.alarm("k0", 95, "mic0", "mic0 (microphone): the microphone gives no sound at all; is it muted?", {})
    ill.send(muted)
    ill.send(msgspec.structs.replace(muted, state="cleared", time_ns=muted.time_ns + 21 * NS))
    shares = {"cam0": 0.5, "mic0": 5.3, "vib0": 1.7}
    ill.send(
        ill.alarm("k1", 9, "mic0", "press 3 is unlike normal: 71% of the evidence comes from mic0 (microphone)", shares)
    )
    yield devices
    for device in devices.values():
        device.end()


def words(hub: Hub) -> tuple[str, ...]:
    """The state of each station in a word."""
    return tuple(device["word"] for _, device in sorted(hub.get("/api/status")["devices"].items()))


def test_the_api_tells_what_was_stored(hub: Hub, line: dict[str, Device]) -> None:
    assert hub.get("/healthz") == {"status": "ok", "broker": True, "ingest": True}
    assert wait(lambda: hub.get("/api/status")["counts"]["alarms"] == 3)
    assert wait(lambda: hub.get("/api/status")["counts"]["embeddings"] >= 4 * HISTORY_S)
    assert wait(lambda: words(hub) == ("alarm", "normal"))
    status = hub.get("/api/status")
    assert status["site"] == "line1"
    assert status["devices"]["press-3"]["live"]
    assert status["devices"]["press-3"]["versions"] == {"camera": "2.1.0", "microphone": "2.0.0"}
    assert {"received", "refused", "duplicates", "queue_full"} <= set(status["ingest"])
    assert status["ingest"]["refused"] == 0
    assert [(a["key"], a["state"], a["pictures"]) for a in hub.get("/api/alarms")] == [
        ("k1", "ACTIVE_UNACK", ["cam0"]),
        ("k0", "CLEARED_UNACK", []),
    ]


def test_the_api_proves_that_no_window_is_missing(hub: Hub, line: dict[str, Device]) -> None:
    assert wait(lambda: hub.get("/api/status")["counts"]["scores"] >= 4 * HISTORY_S)
    starts = hub.get("/api/windows?device=press-4&modality=microphone")
    assert len(starts) >= 2 * HISTORY_S
    middle = starts[20:40]
    assert (
        hub.get(f"/api/windows?device=press-4&modality=camera&since_ns={middle[0]}&until_ns={middle[-1]}")
        == middle[:-1]
    )
    assert hub.get("/api/windows?device=press-4&modality=smell") == []
    assert hub.get("/api/gaps?device=press-4") == {}
    scores = hub.get("/api/scores?device=press-4&limit=5")
    assert len(scores) == 5
    assert scores == sorted(scores, key=lambda score: score["start_ns"])
    assert hub.status_of("/api/scores?device=press-4&limit=0") == 422


def test_programs_find_the_versioned_api_and_the_metrics(hub: Hub, line: dict[str, Device]) -> None:
    assert wait(lambda: len(hub.get("/api/v1/scores?device=press-4&limit=5")["items"]) == 5)
    first = hub.get("/api/v1/scores?device=press-4&limit=5")
    second = hub.get(f"/api/v1/scores?device=press-4&limit=5&cursor={first['next']}")
    starts = [score["start_ns"] for page in (first, second) for score in page["items"]]
    assert starts == sorted(set(starts))
    assert hub.get("/api/v1/openapi.json")["servers"] == [{"url": "/api/v1"}]
    assert hub.status_of("/api/v1/secrets") == 404
    with urllib.request.urlopen(f"{hub.url}/metrics", timeout=60) as answer:
        told = answer.read().decode()
    assert 'lineside_hub_device_up{device="press-3"} 1.0' in told
    assert "lineside_hub_commit_duration_seconds_count" in told


def test_devices_read_the_release_repository_and_nothing_else(hub: Hub) -> None:
    repository = hub.folder / "repository"
    (repository / "metadata" / "root.json").write_text("{}")
    (repository / "targets" / "camera%2Fv1.onnx").write_bytes(b"\0" * 100_000)
    (repository / "private.txt").write_text("not for devices")
    assert hub.get("/repository/metadata/root.json") == {}
    with urllib.request.urlopen(f"{hub.url}/repository/targets/camera%252Fv1.onnx") as answer:
        assert answer.headers["Content-Length"] == "100000"
        assert len(answer.read()) == 100_000
    for path in ("metadata/2.root.json", "private.txt", "metadata/", "metadata/..%2f..%2fplant.toml", "../plant.toml"):
        assert hub.status_of(f"/repository/{path}") == 404


@pytest.mark.slow
@pytest.mark.parametrize("part", ["hub", "broker"])
def test_a_taken_port_is_told_before_anything_starts(tmp_path: Path, part: str) -> None:
    blocked = Hub(tmp_path)
    port = getattr(blocked.plant, part).port
    with socket.create_server(("127.0.0.1", port)):
        process = blocked.run()
        told, errors = process.communicate(timeout=60)
    assert (process.returncode, told) == (8, "")
    assert f"port {port} on 127.0.0.1: somebody else listens there already" in errors
    assert f"[{part}] port" in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "state" / "broker" / "mosquitto.pid").exists()


@pytest.mark.slow
def test_ctrl_c_ends_the_hub_and_its_broker(tmp_path: Path) -> None:
    made = Hub(tmp_path)
    process = made.run()
    assert process.stdout is not None
    assert process.stdout.readline().startswith("dashboard on")
    broker = int((tmp_path / "state" / "broker" / "mosquitto.pid").read_text())
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in errors) == (0, False)
    assert not Path(f"/proc/{broker}").exists()

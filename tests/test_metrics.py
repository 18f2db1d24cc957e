"""The agent's metrics over real HTTP: edge.metrics, edge.stages."""

from __future__ import annotations

import re
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from edge.config import DeviceConfig, MetricsSettings
from edge.metrics import MetricsServer, Pages
from edge.stages import STAGES, Stages
from lineside.config import loads
from lineside.errors import ConfigError
from lineside.messages import Contribution, EncoderHealth, Health, SensorHealth
from tests.line_port import free_port

HEALTH = Health(
    device="edge-1",
    station="press",
    agent="0.1.0",
    time_ns=0,
    uptime_s=12.5,
    state="watching",
    sensors={
        "cam0": SensorHealth(modality="camera", windows=24, dropped_samples=3, flags=["black"], problem=""),
        "mic0": SensorHealth(modality="microphone", windows=25, dropped_samples=0, flags=[], problem=""),
    },
    encoders={"camera": EncoderHealth(version="3", previous="2", sha256="ab", space="s1", provider="CPU")},
    windows=49,
    embedded=40,
    moments=24,
    scores=20,
    contributions={"cam0": Contribution(0.75, 1.0, 0.5, 1.0)},
    outbox_messages=7,
    outbox_bytes=4200,
    dropped_messages=2,
    problems=["disk: nearly full"],
)
SENSOR = '[[sensors]]\nname = "cam0"\nmodality = "camera"\nsource = "camera"\n'
DEVICE = '[device]\nid = "e"\nsite = "s"\nstation = "p"\n' + SENSOR


class Told:
    """What the server is asked of; `asked` counts."""

    def __init__(self) -> None:
        self.health, self.connected, self.asked = HEALTH, True, 0

    def look(self) -> Health:
        self.asked += 1
        return self.health


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def stages() -> Stages:
    made = Stages()
    for _ in range(3):
        with made["judge"]:
            pass
    return made


@pytest.fixture
def get(told: Told, stages: Stages) -> Iterator[Callable[[str], tuple[int, str]]]:
    server = MetricsServer(MetricsSettings(port=free_port()), Pages(told.look, stages, lambda: told.connected).answer)
    server.start()

    def ask(path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    yield ask
    server.stop()


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Value by name and labels."""
    return {
        (s.name, *(f"{k}={v}" for k, v in sorted(s.labels.items()))): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def test_health_and_stages_are_read_over_http(get, told):
    assert told.asked == 0  # nothing is computed until somebody asks
    status, text = get("/metrics")
    found = samples(text)
    assert status == 200
    assert told.asked == 1
    assert found["lineside_build_info", "version=0.1.0"] == 1
    assert found["lineside_agent_state", "state=watching"] == 1
    assert found["lineside_capture_windows_total", "modality=camera", "sensor=cam0"] == 24
    assert found["lineside_capture_dropped_samples_total", "modality=camera", "sensor=cam0"] == 3
    assert found["lineside_capture_flagged", "flag=black", "modality=camera", "sensor=cam0"] == 1
    assert found["lineside_capture_flagged", "flag=black", "modality=microphone", "sensor=mic0"] == 0
    assert found["lineside_model_info", "modality=camera", "provider=CPU", "space=s1", "version=3"] == 1
    assert found["lineside_contribution_ratio", "sensor=cam0"] == 0.75
    assert (found["lineside_outbox_messages",], found["lineside_outbox_dropped_total",]) == (7, 2)
    assert found["lineside_problems",] == 1
    assert found["lineside_inference_duration_seconds_count", "stage=judge"] == 3
    assert found["lineside_inference_duration_seconds_bucket", "le=+Inf", "stage=judge"] == 3
    assert 0 < found["lineside_inference_duration_seconds_sum", "stage=judge"] < 1
    assert found["process_resident_memory_bytes",] > 1e6


def test_names_keep_to_what_promtool_checks(get):
    """Prefix, base units, `_total` for counters alone, a help text, no label named like its metric, bounded labels."""
    families = [f for f in text_string_to_metric_families(get("/metrics")[1]) if not f.name.startswith("process_")]
    assert len(families) > 15
    for family in families:
        assert re.fullmatch(r"lineside_[a-z0-9]+(_[a-z0-9]+)*", family.name), family.name
        assert family.documentation.endswith("."), family.name
        assert not re.search(r"_(ms|milliseconds|minutes|hours|mb|kb|percent|ns)(_|$)", family.name), family.name
        assert not (family.type != "counter" and family.name.endswith(("_total", "_count", "_sum", "_bucket")))
        for sample in family.samples:
            assert (family.type == "counter") == sample.name.endswith("_total"), sample.name
            assert set(sample.labels) <= {"sensor", "modality", "flag", "state", "stage", "le"} | {
                "version",
                "space",
                "provider",
            }
    durations = next(f for f in families if f.type == "histogram")
    assert {s.labels["stage"] for s in durations.samples} == set(STAGES)


@pytest.mark.parametrize(
    ("change", "connected", "missing"),
    [
        ({}, True, ""),
        ({}, False, "broker: not connected"),
        ({"state": "waiting for encoders"}, True, "agent: waiting for encoders"),
        (
            {"sensors": {"c": SensorHealth(modality="camera", windows=0, dropped_samples=0, flags=[], problem="")}},
            True,
            "c: no",
        ),
    ],
)
def test_ready_when_sensors_encoders_and_broker_are_there(get, told, change, connected, missing):
    told.health, told.connected = msgspec.structs.replace(HEALTH, **change), connected
    status, text = get("/readyz")
    assert status == (503 if missing else 200)
    assert text.startswith(missing or "ok")
    assert get("/healthz") == (200, "ok\n")
    assert get("/secrets")[0] == 404


@pytest.mark.slow
def test_a_caller_that_says_nothing_keeps_nobody_from_reading(told, stages):
    server = MetricsServer(MetricsSettings(port=free_port()), Pages(told.look, stages, lambda: True).answer)
    server.start()
    silent = [socket.create_connection(("127.0.0.1", server.port), timeout=5) for _ in range(20)]
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=2) as answer:
        assert answer.status == 200
    for each in silent:
        each.close()
    server.stop()


def test_a_port_in_use_is_a_problem_and_no_crash(told, stages):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = MetricsServer(
            MetricsSettings(port=taken.getsockname()[1]), Pages(told.look, stages, lambda: True).answer
        )
        server.start()
        assert server.port == 0
        assert "cannot be served" in server.problem
        assert "choose another [metrics] port" in server.problem
        server.stop()


def test_without_a_port_nothing_listens(told, stages):
    server = MetricsServer(MetricsSettings(), Pages(told.look, stages, lambda: True).answer)
    server.start()
    assert (server.port, server.problem) == (0, "")


def test_the_settings_are_checked():
    assert loads(DEVICE, DeviceConfig).metrics == MetricsSettings(port=0, host="127.0.0.1")
    assert loads(DEVICE + "[metrics]\nport = 9105\n", DeviceConfig).metrics.port == 9105
    with pytest.raises(ConfigError, match="port must be 0"):
        loads(DEVICE + "[metrics]\nport = 70000\n", DeviceConfig)

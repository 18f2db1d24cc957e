"""`lineside edge bench`: what it says it measures, of a device of its own: edge.bench, edge.trial, edge.sink."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge import bench, endurance
from edge.config import DeviceConfig, DeviceSettings, SensorSettings
from edge.sink import answer
from edge.stages import STAGES, Stopwatch
from edge.trial import prepare
from lineside import topics, wire
from lineside.errors import ReleaseError
from lineside.messages import Ack, Tombstone
from tests.line_device import DATA

FILES = [DATA / "camera-1.onnx", DATA / "microphone-1.onnx"]
SMALL = [
    SensorSettings(name="cam0", modality="camera", source="camera", width=160, height=120, rate_hz=5),
    SensorSettings(name="mic0", modality="microphone", source="microphone"),
]
CONFIG = DeviceConfig(device=DeviceSettings(id="edge-1", site="line1", station="press"), sensors=SMALL)


@pytest.mark.slow
def test_a_bench_measures_every_stage_of_a_device_that_judges_and_watches() -> None:
    found = bench.measure(CONFIG, FILES, 40)
    assert found.moments == 40
    assert set(found.stages) == {*STAGES, "other", "to wire", "publish"}
    assert all(0 < found.stages[name]["p10"] <= found.stages[name]["p99"] for name in found.stages)
    assert sum(found.stages[name]["p50"] for name in STAGES) <= 1.3 * found.whole["p50"]
    assert found.whole["p50"] > sum(sensor.bare["p50"] for sensor in found.sensors.values())
    assert found.ratio["p10"] == pytest.approx(found.whole["p10"] / found.bare["p10"])
    assert found.latency["p99"] > found.stages["publish"]["p10"]
    assert found.sensors["cam0"].samples == "120x160x3 at 5 Hz"
    assert "channels are watched" in found.drift
    assert "| cam0 | 120x160x3 at 5 Hz | camera-1 | fp32 | CPU | camera/1 6x96x96 |" in bench.table(found)


@pytest.mark.slow
def test_the_command_prints_json_and_an_agent_starts(tmp_path: Path) -> None:
    words = [word for path in FILES for word in ("--encoders", str(path))]
    command = [sys.executable, "-m", "lineside", "edge", "bench", *words, "--moments", "5", "--start", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    measured, begun = json.loads(done.stdout)
    assert measured["sensors"]["cam0"]["samples"] == "720x1280x3 at 10 Hz"
    assert 0.5 < begun["first_score_s"] < 60
    assert 0.5 < begun["unproven_s"] < 60
    assert begun["rss_mb"] >= begun["pss_mb"] > 30


def test_growth_is_that_of_memory_over_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endurance, "SETTLED", 20)
    found = endurance.growth(40)
    assert found.moments == 40
    assert 20 < found.first_mb <= found.most_mb
    assert found.growth == pytest.approx(found.last_mb / found.first_mb - 1)
    assert endurance.told(found).endswith("%")


@pytest.mark.slow
def test_a_trial_gives_what_the_device_file_says_and_leaves_the_device_alone(tmp_path: Path) -> None:
    trial = prepare(FILES, tmp_path, CONFIG)
    given = [samples for samples, _ in zip(trial.samples(), range(60), strict=False)]
    frames = [samples for samples in given if samples.sensor == "cam0"]
    sound = [samples for samples in given if samples.sensor == "mic0"]
    assert {samples.data.shape for samples in frames} == {(1, 120, 160, 3)}
    assert set(np.diff([samples.start_ns for samples in frames])) == {200_000_000}
    assert all(one.end_ns == other.start_ns for one, other in itertools.pairwise(sound))
    assert len({samples.data.tobytes() for samples in frames[:17]}) == 17
    assert trial.config.repository.url == ""
    assert trial.config.broker.host == "127.0.0.1"
    with pytest.raises(ReleaseError, match="give one with --encoders"):
        prepare(FILES[:1], tmp_path / "other", CONFIG)


def test_the_sink_says_what_a_broker_and_a_hub_would() -> None:
    message = wire.stamped(Tombstone(device="edge-1", ranges=[], reason="", time_ns=0), 5, 9)
    topic, payload = topics.name("line1", "edge-1", "tombstone").encode(), wire.encode(message)
    said = answer(0x32, len(topic).to_bytes(2, "big") + topic + b"\x00\x07" + b"\x00" + payload)
    assert said[:4] == b"\x40\x02\x00\x07"
    acknowledged = wire.decode("ack", said[said.index(b"{") :])
    assert acknowledged == Ack(device="edge-1", epoch=5, ranges=[(9, 9)])
    status = topics.name("line1", "edge-1", "status").encode()
    assert answer(0x32, len(status).to_bytes(2, "big") + status + b"\x00\x08\x00online") == b"\x40\x02\x00\x08"
    assert answer(0x82, b"\x00\x03\x00") == b"\x90\x04\x00\x03\x00\x01"


def test_a_stopwatch_counts_into_buckets_that_only_grow() -> None:
    watch = Stopwatch()
    for _ in range(5):
        with watch:
            pass
    told = list(watch.cumulative())
    assert told[-1] == ("+Inf", 5.0)
    assert [count for _, count in told] == sorted(count for _, count in told)
    assert watch.total_ns < 1e9

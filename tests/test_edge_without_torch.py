"""An environment as a device has it, without torch and onnx, does all that a device does: the first job of CI."""

from __future__ import annotations

import importlib
import importlib.util
import json
import pkgutil
import signal
import sqlite3
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

if importlib.util.find_spec("torch") is not None:
    pytest.skip("this job is for an environment without torch", allow_module_level=True)

import edge
import lineside
from tests.line_device import install

ABSENT = ("torch", "onnx", "sqlalchemy", "nicegui", "safetensors")
DEVICE = """
[device]
id = "edge-1"
site = "line1"
station = "press"

[[sensors]]
name = "cam0"
modality = "camera"
source = "simulation"

[[sensors]]
name = "mic0"
modality = "microphone"
source = "simulation"
"""


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`lineside edge …` as a person types it, in `folder`."""
    whole = [sys.executable, "-m", "lineside", "edge", *words]
    return subprocess.run(whole, cwd=folder, capture_output=True, text=True, check=False, timeout=120)


def told(folder: Path, *words: str) -> str:
    """What a command that succeeds prints."""
    done = command(folder, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a device file, a recording of the simulated line, and encoders that have learned from it."""
    folder = tmp_path_factory.mktemp("device")
    (folder / "device.toml").write_text(DEVICE)
    recorded = told(
        folder, "record", "--config", "device.toml", "--fast", "--seconds", "60", "--out", "n.mcap", "--json"
    )
    assert json.loads(recorded)["samples"] == {"cam0": 600, "mic0": 960_000}
    install(folder / "state")
    learned = told(folder, "commission", "--config", "device.toml", "--recording", "n.mcap", "--json")
    assert json.loads(learned)["sensors"] == ["cam0", "mic0"]
    assert json.loads(learned)["moments"] >= 115
    return folder


@pytest.mark.parametrize("name", ABSENT)
def test_what_the_trainer_and_the_hub_need_is_not_here(name: str) -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(name)


def test_every_module_of_edge_and_lineside_can_be_imported() -> None:
    packages = (edge, lineside)
    names = [m.name for p in packages for m in pkgutil.walk_packages(p.__path__, f"{p.__name__}.")]
    names.remove("lineside.__main__")  # that one is the command itself
    assert {"edge.agent", "edge.sensors.camera", "edge.foreign.media", "lineside.operator"} <= set(names)
    for name in names:
        importlib.import_module(name)


def test_check_prints_what_is_in_force(device: Path) -> None:
    in_force = json.loads(told(device, "check", "--config", "device.toml", "--json"))
    assert in_force["device"]["id"] == "edge-1"
    assert [sensor["name"] for sensor in in_force["sensors"]] == ["cam0", "mic0"]
    assert in_force["windows"] == {"length_s": 1.0, "hop_s": 0.5}


def test_replay_prints_one_score_a_moment_and_the_same_ones_again(device: Path) -> None:
    words = ("replay", "--config", "device.toml", "--recording", "n.mcap", "--json")
    lines = told(device, *words).splitlines()
    scores = [each for each in map(json.loads, lines) if "p_value" in each and "key" not in each]
    assert len(scores) >= 115
    assert {b["start_ns"] - a["start_ns"] for a, b in pairwise(scores)} == {500_000_000}
    for score in scores:
        assert 0 < score["p_value"] <= 1
        assert set(score["contributions"]) == {"cam0", "mic0"}
        assert sum(score["contributions"].values()) == pytest.approx(score["evidence"])
        assert score["versions"] == {"camera": "1", "microphone": "1"}
    assert told(device, *words).splitlines() == lines


def test_replay_without_json_is_a_sentence(device: Path) -> None:
    assert told(device, "replay", "--config", "device.toml", "--recording", "n.mcap").endswith(" alarm changes\n")


def test_bench_measures_the_whole_against_the_bare(device: Path) -> None:
    [measured] = json.loads(told(device, "bench", "--config", "device.toml", "--moments", "20", "--json"))
    assert measured["moments"] == 20
    assert measured["whole"]["p10"] > measured["bare"]["p10"] > 0
    assert measured["ratio"]["p10"] == pytest.approx(measured["whole"]["p10"] / measured["bare"]["p10"])


def test_record_takes_a_folder_of_pictures(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    for number in range(20):
        cv2.imwrite(str(tmp_path / "frames" / f"{number:03}.png"), np.full((60, 80, 3), 10 * number, np.uint8))
    done = json.loads(told(tmp_path, "record", "--from", "frames", "--rate", "10", "--out", "f.mcap", "--json"))
    assert done["seconds"] == pytest.approx(2.0)
    assert sum(done["samples"].values()) == 20
    assert done["warnings"] == ["no sound file beside the pictures: only the camera is imported"]


def test_run_judges_the_line_with_nobody_to_report_to(device: Path) -> None:
    (device / "alone.toml").write_text(f"{DEVICE}\n[broker]\nport = 1\n")
    whole = [sys.executable, "-m", "lineside", "edge", "run", "--config", "alone.toml"]
    running = subprocess.Popen(whole, cwd=device, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while waiting_scores(device) < 3 and time.monotonic() < deadline:
        time.sleep(0.2)
    running.send_signal(signal.SIGTERM)
    assert running.wait(20) == 0
    assert waiting_scores(device) >= 3


def waiting_scores(device: Path) -> int:
    path = device / "state" / "outbox.db"
    if not path.exists():
        return 0
    with sqlite3.connect(path, timeout=5) as outbox:
        tables = outbox.execute("SELECT name FROM sqlite_master WHERE name = 'outbox'").fetchall()
        rows = outbox.execute("SELECT count(*) FROM outbox WHERE kind = 'score'") if tables else [(0,)]
        return int(next(iter(rows))[0])


def test_a_device_without_encoders_says_so_in_one_line(device: Path, tmp_path: Path) -> None:
    (tmp_path / "device.toml").write_text(DEVICE)
    done = command(tmp_path, "replay", "--config", "device.toml", "--recording", str(device / "n.mcap"))
    assert done.returncode == 5
    assert done.stderr.startswith("lineside: ")
    assert len(done.stderr.splitlines()) == 1
    assert "no encoder on this device yet" in done.stderr

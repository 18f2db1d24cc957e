"""A whole night by the product's own commands: a small line learned from, proved, signed; and cut with kill -9."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from deploy import repository
from deploy.begin import Asked, begin
from export.bundle import build
from lineside import config
from lineside.clock import SystemClock
from lineside.plant import PlantConfig
from tests import pitch_scene
from tests.line_broker import wait

pytestmark = pytest.mark.slow


def start(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lineside", *words, "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def call(*words: str, code: int = 0) -> Any:
    process = start(*words)
    out, err = process.communicate()
    assert process.returncode == code, err
    return json.loads(out.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A line whose first stage is in use, with two new recordings of which one is damaged."""
    folder = tmp_path_factory.mktemp("line")
    pitch_scene.before_a_night(folder, folder / "recordings", folder / "nightly/stages")
    (folder / "nightly.toml").write_text(pitch_scene.NIGHT.format(recordings="recordings", plant="plant/plant.toml"))
    built = build(folder / "nightly/stages/1", folder / "bundles", precisions=("fp32",))
    asked = Asked(
        "line1", ("edge-1",), ("camera", "microphone"), 1, 8080, demo=False
    )  # nobody listens there: the broker is away
    begin(folder / "plant", asked, SystemClock())
    plant = config.load(folder / "plant/plant.toml", PlantConfig)
    repository.of(plant, folder / "plant", SystemClock()).publish([Path(each.file) for each in built])
    return folder


def published(folder: Path) -> set[str]:
    """The encoder files in the repository, without their hashes."""
    files = (folder / "plant/repository/targets/models").rglob("*.onnx")
    return {file.name.partition(".")[2] for file in files}


def test_a_night_that_is_killed_goes_on_and_publishes_what_it_proved(folder: Path):
    night = ("train", "nightly", "--config", str(folder / "nightly.toml"))
    killed = start(*night)
    assert wait(lambda: (folder / "nightly/stages/2/log.csv").exists() or killed.poll() is not None)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert published(folder) == {"camera-1.onnx", "microphone-1.onnx"}
    # What it had started holds the lock until it ends; then the night is gone on with.
    assert wait((folder / "nightly/stages/2/stage.json").exists)
    trained = (folder / "nightly/stages/2/stage.json").stat().st_mtime_ns
    while "another night uses this state folder" in (said := start(*night).communicate())[1]:
        time.sleep(0.5)
    ended = json.loads(said[0])
    assert ended["outcome"] == "published", Path(ended["report"]).read_text()
    assert (folder / "nightly/stages/2/stage.json").stat().st_mtime_ns == trained  # not trained twice
    assert published(folder) == {"camera-1.onnx", "microphone-1.onnx", "camera-2.onnx", "microphone-2.onnx"}
    told = Path(ended["report"]).read_text()
    assert "a.mcap: is damaged or cut short" in told
    assert "| stage-1-" in told  # beside which it was certified, with retrieval and AUROC
    assert "devices could not be asked" in told
    assert "Waits for approval: `lineside deploy rollout start" in told
    assert (folder / "nightly/reports/course.png").stat().st_size > 1000
    verified = call("export", "verify", str(next((folder / "nightly/nights").rglob("camera-2.onnx"))))
    assert len({json.dumps(mix) for mix in verified["certified_with"]}) == 4  # each of two modalities, old and new


def test_a_night_whose_gate_fails_ends_with_6_and_publishes_nothing(folder: Path):
    before, template = published(folder), folder / "stage.toml"
    plan = template.read_text()
    template.write_text(f"{pitch_scene.NEXT}\n[gates]\nspread = -1.0\n")
    pitch_scene.record(folder / "recordings/c.mcap", 150, seed=4, tint=0.5)
    ended = call("train", "nightly", "--config", str(folder / "nightly.toml"), code=6)
    assert ended["outcome"] == "refused"
    assert "gate `spread camera`" in ended["said"]
    assert published(folder) == before
    os.remove(folder / "recordings/c.mcap")
    template.write_text(plan)
    ended = call("train", "nightly", "--config", str(folder / "nightly.toml"))
    assert ended["outcome"] == "nothing new"  # stage 2 learned the same, and waits for its rollout
    assert published(folder) == before

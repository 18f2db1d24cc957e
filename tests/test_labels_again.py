"""Labelled alarms played to a stage: which would it raise again? export.again, and the night's report of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from lineside.clock import NS, SystemClock
from lineside.evidence import INDEX, Labelled, Replayed
from lineside.recording import Recording
from tests import pitch_scene
from tests.night_scene import FROM_NS, Line, record
from trainer.children import Answer
from trainer.night_report import report
from trainer.nightly import run
from trainer.stage import run_stage

LIMITS = {"p_limit": 0.01, "raise_count": 5.0, "of": 6.0}


def labelled(folder: Path, name: str, *, real: bool, **more: object) -> Labelled:
    """An alarm of which the whole recording is the event."""
    first, last = Recording(folder / name).span_ns() if (folder / name).exists() else (0, 0)
    told = {"alarm": "anomaly", "limits": LIMITS, "recording": name, **more}
    return Labelled(
        device="edge-1", key=name, real=real, kind="blue light" if real else "", who="Sato", time_ns=1,
        start_ns=first, end_ns=last, **told,  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.mark.slow
def test_a_stage_tells_which_labelled_alarms_it_would_raise_again(tmp_path: Path) -> None:
    pitch_scene.record(tmp_path / "normal.mcap", 120, seed=1)
    assert run_stage(pitch_scene.plan("one", "normal.mcap"), tmp_path, SystemClock()).passed
    folder = tmp_path / "labelled"
    pitch_scene.record(folder / "blue.mcap", 15, seed=5, tint=3.0)
    pitch_scene.record(folder / "well.mcap", 15, seed=6)
    rows = [
        labelled(folder, "blue.mcap", real=True),
        labelled(folder, "well.mcap", real=False),
        labelled(folder, "gone.mcap", real=True),
        labelled(folder, "well.mcap", real=True, alarm="drift"),
        labelled(folder, "well.mcap", real=True, limits={}),
    ]
    (folder / INDEX).write_bytes(msgspec.json.encode(rows))
    out = tmp_path / "repository" / "labels" / "7.json"
    command = [sys.executable, "-m", "lineside", "export", "labels", str(tmp_path / "one"), "--version", "7", "--json"]
    command += ["--normal", str(tmp_path / "normal.mcap"), "--labelled", str(folder), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    command[-1] = str(tmp_path / "stage-7.json")
    done_elsewhere = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done_elsewhere.returncode == 2
    assert "stage-7.json: is no name that a hub looks for; name it" in done_elsewhere.stderr
    found = msgspec.json.decode(out.read_bytes(), type=Replayed)
    assert msgspec.json.decode(done.stdout, type=Replayed) == found
    assert [each.raised for each in found.alarms] == [True, False, None, None, None]
    assert [each.why.split(" ")[:3] for each in found.alarms[2:]] == [
        ["the", "hub", "has"],
        ["an", "alarm", "of"],
        ["its", "thresholds", "are"],
    ]
    assert (found.version, found.normal) == (7, "normal.mcap")
    assert found.told == (
        "of 5 labelled alarms: 1 of 1 real ones raised again, 1 of 1 that were not real no longer raised, "
        "3 cannot be told"
    )


class Night(Line):
    """A line whose plant has labelled alarms; `answer` is what the command says of them."""

    def __init__(self, folder: Path, answer: Answer) -> None:
        super().__init__(folder)
        self.answer = answer
        (folder / "labelled" / INDEX).write_text("[]")
        (folder / "plant" / "plant.toml").write_text('site = "line1"\ndevices = ["edge-1"]\nrepository = "signed"\n')
        self.first_stage()
        record(folder / "recordings" / "new.mcap", 4.0, FROM_NS // (86_400 * NS))

    def call(self, words: list[str], log: Path) -> Answer:  # type: ignore[override]
        if words[:2] == ["export", "labels"]:
            self.words = words
            return self.answer
        return super().call(words, log)


def told(line: Night) -> str:
    line.clock.sleep(86_400)
    assert run(line.desk, report).outcome == "canary"
    (path,) = (line.desk.folder / "reports").glob("*.md")
    return path.read_text()


def test_the_nights_report_says_what_labels_changed(tmp_path: Path) -> None:
    alarms = [
        {"device": "edge-1", "key": "k1", "real": True, "kind": "leak", "raised": True},
        {"device": "edge-1", "key": "k2", "real": False, "kind": "", "raised": False},
    ]
    found = {"version": 2, "stage": "two", "time_ns": 1, "normal": "new.mcap", "alarms": alarms}
    line = Night(tmp_path, Answer(0, found, ""))
    text = told(line)
    assert "| `k1` | real: leak | raises it |" in text
    assert "| `k2` | not real | does not raise it |" in text
    assert "1 of 1 that were not real no longer raised" in text
    given = dict(zip(line.words[3::2], line.words[4::2], strict=True))
    assert given["--out"] == str(tmp_path / "plant" / "signed" / "labels" / "2.json")
    assert given["--labelled"] == str(tmp_path / "labelled")
    assert json.loads(json.dumps(given))["--normal"].endswith("new.mcap")


def test_labels_that_cannot_be_played_hold_no_release_up(tmp_path: Path) -> None:
    text = told(Night(tmp_path, Answer(3, None, "new.mcap: too short")))
    assert "were not played to it: new.mcap: too short" in text

"""From a word on an alarm to what training reads: hub.labels, hub.labelled."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hub.desk import Desk
from hub.evidence.room import found
from hub.labelled import LabelledSet
from hub.labels import Labels, Said
from hub.store import Store, database_url
from hub.tables import row
from lineside import wire
from lineside.clock import NS, SimulatedClock
from lineside.errors import LinesideError
from lineside.messages import Alarm
from lineside.plant import AlarmRules
from lineside.recording import Recording, within_faults, without_faults
from tests.evidence_scene import NAME, START_NS, alarm, recording
from tests.line_broker import LineBroker
from trainer.data import read
from trainer.plan import RecordingPart

ROOT = Path(__file__).parents[1]
OTHER = alarm("k2", kind="sensor", subject="cam0")


class Scene:
    """A hub's store and folders, with two alarms of which the hub has the recording."""

    def __init__(self, folder: Path, *, arrived: bool = True) -> None:
        self.folder, self.clock = folder, SimulatedClock(START_NS + 60 * NS)
        self.store = Store(database_url("sqlite:///hub.db", folder))
        self.store.add([kept(each, seq) for seq, each in enumerate((alarm(), OTHER), start=1)])
        self.desk = Desk(self.store, AlarmRules(), self.clock)
        self.evidence = folder / "state" / "evidence"
        self.set = LabelledSet(
            folder / "labelled", self.desk.labels, self.store.alarm, lambda told: found(self.evidence, told)
        )
        self.path = folder / "labelled" / f"edge-1-{NAME}"
        if arrived:
            self.arrive()

    def arrive(self) -> None:
        recording(self.evidence / "edge-1" / NAME, alarm(), OTHER)

    def say(self, key: str, word: str, kind: str = "", who: str = "Sato", why: str = "") -> None:
        self.clock.sleep(1)
        for told in self.desk.label("edge-1", key, word, kind, who, why):  # type: ignore[arg-type]
            self.set.renew("edge-1", told.recording)

    def labels(self) -> list[tuple[str, str, bool, bool]]:
        return [(each.label, each.sensor, each.fault, each.confirmed) for each in Recording(self.path).labels()]


def kept(told: Alarm, seq: int) -> object:
    stamped = wire.stamped(told, 1, seq)
    return row("alarm", stamped, wire.encode(stamped), told.time_ns)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_a_real_fault_is_shown_to_training_under_its_kind(scene: Scene) -> None:
    scene.say("k1", "real", "bearing worn")
    assert scene.labels() == [("bearing worn", "", True, True), ("alarm: sensor of cam0", "cam0", True, False)]
    copy, source = Recording(scene.path), Recording(scene.evidence / "edge-1" / NAME)
    shown = [run for run in within_faults(copy.samples(), copy.labels()) if run.sensor == "mic0"]
    assert sum(len(run.data) for run in shown) == 4 * 16_000  # from its onset to the end of the recording
    same = [(a.data == b.data).all() for a, b in zip(copy.samples(), source.samples(), strict=True)]
    assert all(same)
    assert [each.key for each in copy.alarms()] == ["k1", "k2"]


def test_what_was_not_real_is_normal_running_for_training(scene: Scene) -> None:
    before = read([RecordingPart(str(scene.evidence / "edge-1" / NAME))], Path())
    scene.say("k1", "not real", why="a fork lift passed")
    scene.say("k2", "not real")
    assert [(label, fault, sure) for label, _, fault, sure in scene.labels()] == [("normal", False, True)] * 2
    recording = Recording(scene.path)
    assert len(list(without_faults(recording.samples(), recording.labels()))) == len(list(recording.samples()))
    after = read([RecordingPart("labelled")], scene.folder)  # the folder itself, as a plan names it
    assert len(after) > len(before) > 0


def test_the_last_word_counts_and_every_word_stays(scene: Scene) -> None:
    scene.say("k1", "real", "leak")
    scene.say("k1", "not real", who="Mori")
    assert scene.desk.labels.latest()["edge-1", "k1"].word == "not real"
    assert [(each.who, each.word, each.kind) for each in scene.desk.labels.of("edge-1", "k1")] == [
        ("Sato", "real", "leak"),
        ("Mori", "not real", ""),
    ]
    history = [(each.what, each.who, each.why) for each in scene.desk.history("edge-1", "k1")]
    assert history[1:] == [("label", "Sato", "real (leak)"), ("label", "Mori", "not real")]
    scene.say("k1", "withdrawn")
    assert not scene.path.exists()
    assert json.loads((scene.folder / "labelled" / "labels.json").read_bytes()) == []


def test_a_recording_that_comes_after_its_label_is_brought_to_the_set(tmp_path: Path) -> None:
    scene = Scene(tmp_path, arrived=False)
    scene.say("k1", "real", "leak")
    (told,) = json.loads((tmp_path / "labelled" / "labels.json").read_bytes())
    assert (told["recording"], told["kind"]) == ("", "leak")
    assert not scene.path.exists()
    scene.arrive()
    scene.set.renew("edge-1", NAME)
    (listed,) = scene.set.rows()
    assert (listed.recording, listed.start_ns, listed.end_ns) == (scene.path.name, START_NS + 4 * NS, START_NS + 8 * NS)
    assert (listed.versions, listed.limits["raise_count"], listed.alarm) == ({"microphone": "1"}, 5.0, "anomaly")
    (scene.evidence / "edge-1" / NAME).unlink()  # kept no longer there; the set goes on without it
    scene.say("k1", "not real")
    assert ("normal", "", False, True) in scene.labels()


def test_a_damaged_recording_is_no_training_data(scene: Scene) -> None:
    file = scene.evidence / "edge-1" / NAME
    file.write_bytes(file.read_bytes()[:-3000])
    with pytest.raises(LinesideError, match="is damaged or cut short"):
        scene.say("k1", "real")
    assert [*(scene.folder / "labelled").glob("*.mcap")] == []
    assert scene.desk.labels.latest()["edge-1", "k1"].word == "real"  # what was said stands


def test_a_label_that_is_none_is_refused_by_name(scene: Scene) -> None:
    for word, kind in (("perhaps", ""), ("not real", "leak"), ("real", "a\nb"), ("real", "x" * 61), ("real", " leak")):
        with pytest.raises(LinesideError, match="label:"):
            scene.say("k1", word, kind)
    with pytest.raises(LinesideError, match="has raised none of this key"):
        scene.say("k9", "real")
    assert scene.desk.labels.latest() == {}


def test_kinds_are_offered_by_how_often_they_were_named(tmp_path: Path) -> None:
    store = Store(database_url("sqlite:///hub.db", tmp_path))
    labels = Labels(store.engine)
    named = ["leak", "bearing worn", "leak", ""]
    labels.add([Said(n, "Sato", "edge-1", f"k{n}", "real", kind) for n, kind in enumerate(named)])
    labels.add([Said(9, "Sato", "edge-1", "k1", "withdrawn")])
    assert labels.kinds() == ["leak"]


@pytest.mark.slow
def test_the_command_lists_the_set(tmp_path: Path) -> None:
    broker = LineBroker(tmp_path, "edge-1")
    broker.stop()
    scene = Scene(tmp_path)
    scene.say("k1", "real", "leak")
    scene.say("k2", "not real")
    file = tmp_path / "plant.toml"
    file.write_text('site = "line1"\ndevices = ["edge-1"]\n')
    command = [sys.executable, "-m", "hub", "labels", "--config", str(file)]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "k1  real: leak  by Sato" in told
    assert "2 labels, 2 with a recording" in told
    scene.path.unlink()
    rows = json.loads(
        subprocess.run([*command, "--renew", "--json"], cwd=ROOT, capture_output=True, check=True).stdout
    )["labels"]
    assert [(each["key"], each["real"]) for each in rows] == [("k1", True), ("k2", False)]
    assert [each.label for each in Recording(scene.path).labels()] == ["leak", "normal"]

"""`lineside deploy rollout` on a plant of simulated devices, over a real broker and a real signed repository."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy import repository, rollout
from deploy.conductor import Conductor
from deploy.desk import sit
from lineside import operator
from lineside.clock import NS, SimulatedClock, SystemClock
from lineside.errors import BrokerError, ConfigError, GateError, ReleaseError
from lineside.operator import Report
from lineside.pins import Pins
from lineside.plant import PlantConfig
from lineside.rollout_record import Record, policy, rings
from lineside.rollout_records import Records
from lineside.targets import Terms
from tests import tiny_encoder
from tests.killed import before_step
from tests.line_broker import wait
from tests.line_fleet import Plant

NAMES = [f"edge-{number}" for number in range(1, 5)]


@pytest.fixture
def plant(tmp_path: Path) -> Iterator[Plant]:
    """Four devices, of which none is there yet; camera 1 is what they run first, camera 2 is published."""
    made = Plant(tmp_path, *NAMES)
    for version in (1, 2):
        made.lineside("publish", tiny_encoder.write(tmp_path, "camera", version))
    yield made
    made.close()


def everybody(plant: Plant, version: str, names: list[str] = NAMES) -> bool:
    return wait(lambda: plant.runs() == dict.fromkeys(names, version))


def start(plant: Plant, *words: str) -> dict:
    return plant.lineside("rollout", "start", "--modality", "camera", *words)


@pytest.mark.slow
def test_from_the_canary_to_all_and_back(plant: Plant) -> None:
    plant.come(*NAMES)
    assert everybody(plant, "1")
    told = start(plant)
    assert (told["rollout"]["state"], told["rollout"]["ring"]) == ("approval", 0)
    assert [(row["device"], row["progress"]) for row in told["devices"]] == [("edge-1", "done")]
    assert plant.runs() == {"edge-1": "2", "edge-2": "1", "edge-3": "1", "edge-4": "1"}
    while told["rollout"]["state"] == "approval":
        told = plant.lineside("rollout", "promote")
    assert told["rollout"]["state"] == "finished"
    assert everybody(plant, "2")
    with pytest.raises(ConfigError, match="camera-2: is what every device is to run already"):
        start(plant)
    assert plant.lineside("rollback", "--modality", "camera", "--wait-s", 30)["pointed"]["version"] == 1
    assert everybody(plant, "1")
    with pytest.raises(ReleaseError, match="none is under way"):
        plant.lineside("rollout", "watch")


@pytest.mark.slow
def test_a_version_that_fails_on_the_canary_goes_no_further(plant: Plant) -> None:
    plant.come("edge-1", fails_at=2)
    plant.come(*NAMES[1:])
    assert everybody(plant, "1")
    with pytest.raises(GateError, match=r"rollout of camera-2: aborted: 1 of 1 devices failed \(edge-1: shadow: anom"):
        start(plant, "--auto")
    assert plant.runs() == dict.fromkeys(NAMES, "1")
    pointed = repository.of(plant.config, plant.folder, SystemClock()).pointed()["camera"]
    assert (pointed.version, pointed.candidate) == (1, None)
    assert plant.lineside("rollout", "status")["rollout"]["state"] == "aborted"


@pytest.mark.slow
def test_abort_takes_it_back_from_those_that_have_it(plant: Plant) -> None:
    plant.come("edge-1", "edge-2")
    assert everybody(plant, "1", NAMES[:2])
    assert start(plant, "--canary", "edge-1")["rollout"]["state"] == "approval"
    with pytest.raises(ReleaseError, match="a rollout of camera-2 is under way"):
        start(plant)
    told = plant.lineside("rollout", "abort", "--reason", "glare at noon")
    assert told["rollout"]["reason"] == "glare at noon"
    assert everybody(plant, "1", NAMES[:2])
    assert start(plant, "--percent", "100", "--no-wait")["rollout"]["state"] == "open"
    assert plant.lineside("rollback", "--modality", "camera")["rollout"]["reason"] == "rolled back"
    assert everybody(plant, "1", NAMES[:2])


@pytest.mark.slow
def test_while_paused_nobody_begins_and_who_was_away_catches_up(plant: Plant) -> None:
    assert start(plant, "--all", "--auto", "--no-wait")["rollout"]["state"] == "open"
    assert plant.lineside("rollout", "pause")["rollout"]["state"] == "paused"
    plant.come("edge-1")
    plant.come("edge-2")
    assert everybody(plant, "1", NAMES[:2])
    assert plant.lineside("rollout", "resume")["rollout"]["state"] == "open"
    plant.come("edge-3")
    assert wait(lambda: plant.runs().get("edge-3") == "2")
    assert plant.runs()["edge-1"] == "1"  # it has looked while paused, and nobody has told it since


@pytest.mark.slow
def test_with_a_service_rollouts_go_on_with_nobody_at_the_desk(plant: Plant) -> None:
    def stands(state: str) -> bool:
        return wait(lambda: plant.lineside("rollout", "status")["rollout"]["state"] == state, 60)

    command = [sys.executable, "-m", "lineside", "deploy", "rollout", "watch", "--always", "--config", str(plant.file)]
    service = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        plant.come(*NAMES)
        assert everybody(plant, "1")
        two_rings = ["--canary", "edge-1", "--percent", "100", "--no-wait"]
        start(plant, *two_rings)
        assert stands("approval")  # the canary was told, watched and found well
        plant.lineside("rollout", "abort")
        assert everybody(plant, "1")
        start(plant, *two_rings)
        assert stands("approval")
        assert plant.lineside("rollout", "promote", "--no-wait")["rollout"]["state"] == "open"
        assert stands("finished")
        assert everybody(plant, "2")
        with plant.file.open("a") as file:
            file.write("# looked at\n")  # nothing else by it
        assert service.poll() is None
        service.terminate()
        told, _ = service.communicate(timeout=30)
    finally:
        service.kill()
    assert service.returncode == 0
    lines = told.splitlines()
    assert lines[0] == "following the rollouts of line1"
    assert "camera-2: ring 1 of 2 opened: edge-1" in lines
    assert "camera-2: ring 1 is well, the next one waits for a person" in lines
    assert "camera-2: aborted: by the operator" in lines
    assert lines[-1] == "camera-2: finished: every device is to run it"


@pytest.mark.slow
def test_what_was_heard_before_the_broker_went_is_no_ground_to_go_on(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operator, "ANSWER_S", 1.0)
    desk = sit(plant.file)
    with desk.operator() as here:
        assert here.survey() == {}
        plant.broker.stop()
        with pytest.raises(BrokerError, match="went away; see that the hub runs"):
            here.survey()


@pytest.mark.slow
def test_two_modalities_are_changed_together(tmp_path: Path) -> None:
    plant = Plant(tmp_path, "edge-1", modalities=("camera", "microphone"))
    try:
        for version, space in ((1, "s1"), (2, "s2")):
            files = [tiny_encoder.write(tmp_path, name, version, space=space) for name in ("camera", "microphone")]
            plant.lineside("publish", *files)
        plant.come("edge-1")
        assert everybody(plant, "1", ["edge-1"])
        with pytest.raises(ReleaseError) as error:
            start(plant)
        assert error.value.check == "space"
        assert plant.lineside("rollout", "status")["rollout"] is None
        told = start(plant, "--modality", "microphone")
        assert told["rollout"]["state"] == "finished"
        assert [row["running"] for row in plant.lineside("status")] == ["2", "2"]
    finally:
        plant.close()


@pytest.mark.slow
def test_a_word_signed_by_another_key_is_refused_by_name(plant: Plant) -> None:
    plant.come("edge-1")
    assert everybody(plant, "1", ["edge-1"])
    pinned = plant.folder / "secrets" / "edge-1.pub"
    pinned.write_text("00" * 32)
    (row,) = (row for row in plant.lineside("status") if row["device"] == "edge-1")
    assert (row["verified"], row["running"]) == (False, "")
    assert row["doubt"] == f"signed by another key than at first; delete {pinned} if the device was really replaced"
    pinned.unlink()
    assert plant.runs() == {"edge-1": "1"}


class Nobody:
    """No device is there."""

    def survey(self, _: float) -> dict[str, Report]:
        return {}


def conductor(folder: Path, clock: SimulatedClock) -> Conductor:
    made = repository.of(PLANT, folder, clock)
    return Conductor(["edge-1"], Records(folder / "rollouts"), made, Nobody(), Pins(folder), clock)  # type: ignore[arg-type]


PLANT = PlantConfig(site="line1", devices=["edge-1"], modalities=("camera",))
RECORD = Record(
    rollout="7f",
    versions={"camera": 2},
    rings=rings(["edge-1"], [100]),
    policy=policy(PLANT.rollout, approve=True, soak_min=0),
    terms=Terms(),
    state="open",
    since_ns=0,
)


@pytest.mark.slow
@pytest.mark.parametrize("word", ["begin", "pause", "abort"])
def test_a_command_that_was_killed_anywhere_is_finished_by_the_next_one(tmp_path: Path, word: str) -> None:
    clock = SimulatedClock(1_760_000_000 * NS)
    first = conductor(tmp_path, clock)
    first.repository.init(PLANT.modalities)
    for version in (1, 2):
        first.repository.publish([tiny_encoder.write(tmp_path, "camera", version)])
    if word != "begin":
        first.begin(RECORD)
    work = {
        "begin": lambda one: one.begin(RECORD),
        "pause": lambda one: one.change("7f", rollout.pause),
        "abort": lambda one: one.change("7f", lambda record, now_ns: rollout.abort(record, "no", now_ns)),
    }[word]
    seen, step, killed = set(), 0, True
    while killed:
        shutil.copytree(tmp_path, folder := tmp_path.parent / f"{word}{step}")
        one = conductor(folder, clock)
        killed = before_step(step, lambda one=one: work(one))
        one.heal()
        candidate = one.repository.pointed()["camera"].candidate
        state = next((record.state for record in one.records.all()), "")
        assert bool(candidate) == (state in ("open", "paused"))
        assert candidate is None or candidate.paused == (state == "paused")
        seen.add(state)
        step += 1
    assert seen == {"begin": {"", "open"}, "pause": {"open", "paused"}, "abort": {"open", "aborted"}}[word]
    assert step > 5


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--canary", "edge-9"), "edge-9"),
        (("--percent", "50"), "rise from above 0 to 100"),
        (("--version", "2", "--version", "1"), "2 for 1 modalities"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_begins(plant: Plant, words: tuple[str, ...], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        start(plant, *words)
    assert list(plant.folder.glob("state/rollouts/*.json")) == []

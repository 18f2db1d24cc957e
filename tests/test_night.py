"""The nightly loop: what it decides, what it remembers; a night that is cut anywhere comes to the same end."""

from __future__ import annotations

import doctest
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from lineside import config
from lineside.clock import NS
from lineside.errors import ConfigError
from lineside.lock import only_one
from lineside.targets import Candidate, Pointer
from tests.killed import before_step
from tests.night_scene import DAY_NS, Line, record
from trainer import diary, new_recordings, night
from trainer.diary import Night
from trainer.new_recordings import Found
from trainer.night import decide, faulty, key_of, parent_of
from trainer.night_plan import NightPlan, stage_plan
from trainer.night_report import report
from trainer.nightly import run


def found(path: str, day: int = 1, moments: int = 1000, faults: int = 0, **minutes: float) -> Found:
    return Found(path=path, sha256=path, begin_ns=day, end_ns=day + 1, minutes=minutes, moments=moments, faults=faults)


@pytest.fixture
def line(tmp_path: Path) -> Line:
    made = Line(tmp_path)
    made.first_stage()
    return made


def one_night(line: Line, *, again: bool = False) -> Night:
    line.clock.sleep(86_400)
    return run(line.desk, report, again)


def reports(line: Line) -> list[str]:
    return [path.read_text() for path in sorted((line.desk.folder / "reports").glob("*.md"))]


def test_the_examples_of_the_pure_parts_hold():
    assert [doctest.testmod(module).failed for module in (night, new_recordings, diary)] == [0, 0, 0]


def test_with_enough_that_is_new_the_newest_whole_recording_is_held_back_to_certify_on():
    monday, tuesday, short = found("mon", 1, camera=8.0), found("tue", 2, camera=9.0), found("wed", 3, 50, camera=1.0)
    decision = decide([monday, tuesday, short], {"camera": 9.0})
    assert (decision.learn, decision.certify_on, decision.why_not) == ((monday, short), "tue", "")


def test_a_single_recording_serves_for_both_and_a_given_one_to_certify_on_holds_nothing_back():
    both = [found("mon", 1, camera=8.0), found("tue", 2, camera=9.0)]
    assert decide(both[:1], {}).certify_on == "mon"
    assert decide(both, {"camera": 17.0}, certify_on="fixed").learn == tuple(both)


@pytest.mark.parametrize(
    ("new", "minutes", "told"),
    [
        ([], {}, "no recording is new"),
        ([found("mon", camera=3.0)], {"camera": 5.0}, "3.0 new minutes of camera, 5 are wanted"),
        ([found("mon", camera=9.0)], {"microphone": 5.0}, "0.0 new minutes of microphone, 5 are wanted"),
        (
            [found("mon", camera=4.0), found("tue", 2, camera=4.0)],
            {"camera": 5.0},
            "4.0 new minutes of camera, besides the recording to certify on, 5 are wanted",
        ),
        (
            [found("mon", camera=4.0), found("tue", 2, microphone=4.0)],
            {},
            "no new recording has camera, microphone for 200 moments, to certify on; name one in certify_on",
        ),
    ],
)
def test_why_there_is_no_stage_tonight_is_said_in_numbers(new: list[Found], minutes: dict[str, float], told: str):
    assert decide(new, minutes).why_not == told


def test_the_parent_is_the_newest_good_stage_in_use_and_the_newest_good_one_before_anything_is():
    way = Candidate(rollout="r", version=4, targets={})
    assert parent_of([1, 2, 3, 5], {"camera": Pointer(version=2, targets={})}) == 2
    assert parent_of([1, 2, 4, 5], {"camera": Pointer(version=2, targets={}, candidate=way)}) == 4
    assert parent_of([1, 2, 3], {}) == 3
    assert parent_of([], {}) == 0


def test_the_newest_labelled_fault_is_what_certifying_looks_at():
    assert faulty([found("a", 1, faults=2), found("b", 3), found("c", 2, faults=1)]) == "c"
    assert faulty([found("b", 3)]) == ""


def test_what_decides_the_outcome_is_in_the_key():
    base = key_of("epochs = 2", 1, [found("a")])
    assert base == key_of("epochs = 2", 1, [found("a")])
    assert base not in {key_of("epochs = 3", 1, [found("a")]), key_of("epochs = 2", 2, [found("a")])}
    assert base != key_of("epochs = 2", 1, [found("b")])


def test_a_night_goes_from_new_recordings_to_the_first_ring_and_waits_there(line: Line):
    record(line.folder / "recordings/mon.mcap", 1.5, day=1)
    record(line.folder / "recordings/tue.mcap", 1.2, day=2)
    record(line.folder / "labelled/leak.mcap", 0.5, day=0, fault=True)
    done = one_night(line)
    assert (done.outcome, done.version, done.parent, done.code) == ("canary", 2, 1, 0)
    assert [Path(each.path).name for each in done.learn] == ["leak.mcap", "mon.mcap"]
    assert (Path(done.certify_on).name, Path(done.faulty).name) == ("tue.mcap", "leak.mcap")
    assert line.pointers["series"].candidate.version == 2
    told = reports(line)[0]
    assert f"Waits for approval: `lineside deploy rollout promote --config {line.folder}/plant/plant.toml" in told
    assert "| embedding drift series | 0.01 | at most 0.05 | yes |" in told
    assert one_night(line).outcome == "waits"
    assert "series-2 is on its way: promote or abort it" in reports(line)[1]


def test_what_was_held_back_is_learned_the_next_night(line: Line):
    record(line.folder / "recordings/mon.mcap", 1.5, day=1)
    record(line.folder / "recordings/tue.mcap", 1.2, day=2)
    one_night(line)
    line.approve()
    second = one_night(line)
    assert (second.outcome, second.version, second.parent) == ("canary", 3, 2)
    assert [Path(each.path).name for each in second.learn] == ["tue.mcap"]
    line.approve()
    assert one_night(line).outcome == "nothing new"


def test_a_failed_gate_releases_nothing_and_says_which_and_the_same_is_not_trained_again(line: Line):
    (line.folder / "worse").touch()
    record(line.folder / "recordings/mon.mcap", 1.5, day=1)
    done = one_night(line)
    assert (done.outcome, done.code) == ("refused", 6)
    assert not (line.folder / "plant/published").exists()
    assert "`embedding drift series` is 0.2, limit 0.05" in reports(line)[0]
    assert "lineside export waive" in reports(line)[0]
    assert one_night(line).outcome == "nothing new"
    assert "stage 2 learned the same from stage 1" in reports(line)[1]
    (line.folder / "worse").unlink()
    record(line.folder / "recordings/tue.mcap", 1.5, day=2)
    record(line.folder / "recordings/wed.mcap", 1.5, day=3)
    third = one_night(line)
    assert (third.outcome, third.version, third.parent) == ("canary", 3, 1)
    assert [Path(each.path).name for each in third.learn] == ["mon.mcap", "tue.mcap"]


def test_a_gate_that_somebody_answers_for_lets_the_night_go_on_behind_it(line: Line):
    (line.folder / "worse").touch()
    record(line.folder / "recordings/mon.mcap", 1.5, day=1)
    one_night(line)
    assert one_night(line, again=True).outcome == "canary"
    assert line.asked("train stage") == 1
    with pytest.raises(ConfigError, match="no night ended with an error"):
        one_night(line, again=True)


def test_what_an_aborted_stage_learned_is_new_again_for_the_next(line: Line):
    record(line.folder / "recordings/mon.mcap", 1.5, day=1)
    one_night(line)
    line.abort()
    assert one_night(line).outcome == "nothing new"  # from the same stage it would come out the same
    record(line.folder / "recordings/tue.mcap", 1.5, day=2)
    record(line.folder / "recordings/wed.mcap", 1.5, day=3)
    third = one_night(line)
    assert (third.version, third.parent) == (3, 1)
    assert [Path(each.path).name for each in third.learn] == ["mon.mcap", "tue.mcap"]


@pytest.mark.parametrize("command", ["train certify", "export build", "deploy publish", "deploy rollout"])
def test_an_error_that_passes_leaves_the_night_open_and_the_next_start_goes_on(line: Line, command: str):
    record(line.folder / "recordings/mon.mcap", 1.5, day=1)
    line.fails[command] = 7
    stopped = one_night(line)
    assert (stopped.outcome, stopped.code) == ("", 7)
    assert "stopped, and goes on by itself at the next start" in reports(line)[0]
    line.fails.clear()
    done = one_night(line)
    assert (done.outcome, done.name) == ("canary", stopped.name)
    assert line.asked("train stage") == 1
    assert len(reports(line)) == 1


def test_a_broker_that_is_away_does_not_keep_a_stage_from_being_certified(line: Line):
    record(line.folder / "recordings/mon.mcap", 1.5, day=1)
    line.fails["deploy status"] = 7
    done = one_night(line)
    assert (done.outcome, done.against) == ("canary", [1])
    assert "devices could not be asked" in reports(line)[0]


def test_a_version_in_the_field_without_its_stage_stops_the_night_by_name(line: Line):
    record(line.folder / "recordings/mon.mcap", 1.5, day=1)
    one_night(line)
    line.approve()
    record(line.folder / "recordings/tue.mcap", 1.5, day=2)
    shutil.rmtree(line.desk.stage(1))
    done = one_night(line)
    assert (done.outcome, done.code) == ("stopped", 2)
    assert "stages/1: is not there, and version 1 is in the field" in reports(line)[1]


@pytest.mark.parametrize("every", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_cut_at_any_change_of_the_disk_a_night_comes_to_the_same_end(line: Line, tmp_path: Path, every: int):
    record(line.folder / "recordings/mon.mcap", 1.5, day=1)
    record(line.folder / "recordings/tue.mcap", 1.2, day=2)
    step = 0
    while True:
        folder = tmp_path / "cut"
        shutil.copytree(tmp_path, folder, ignore=shutil.ignore_patterns("cut"))
        cut = Line(folder)
        if not before_step(step, lambda cut=cut: one_night(cut)):
            break
        done = one_night(cut)
        assert (done.outcome, done.version, done.code) == ("canary", 2, 0), step
        assert {path.name for path in cut.desk.stage(1).parent.iterdir()} == {"1", "2"}, step
        assert cut.pointers["series"].candidate.version == 2
        assert cut.pointers["series"].version == 1
        remembered = diary.load(cut.desk.folder / "diary.json")
        assert (remembered.night, remembered.learned[2]) == (None, [done.learn[0].sha256]), step
        assert any("on its way to the first ring" in told for told in reports(cut)), step
        shutil.rmtree(folder)
        step += every
    assert step > 40  # as many places were tried


def test_two_nights_at_once_are_kept_apart_and_a_child_that_outlives_its_night_too(line: Line, tmp_path: Path):
    with only_one(line.desk.folder, "night", with_children=True):
        with pytest.raises(ConfigError, match="another night uses this state folder"):
            one_night(line)
        child = subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE, close_fds=False
        )
    with pytest.raises(ConfigError, match="another night"):
        one_night(line)
    child.communicate()
    assert one_night(line).outcome == "nothing new"


def test_what_cannot_be_read_is_told_and_what_can_be_is_learned(line: Line):
    whole = record(line.folder / "recordings/mon.mcap", 40.0, day=1)
    whole.write_bytes(whole.read_bytes()[: round(0.8 * whole.stat().st_size)])
    (line.folder / "recordings/tue.mcap").write_bytes(b"no recording")
    (line.folder / "recordings/.wed.mcap").write_bytes(b"still being copied")
    done = one_night(line)
    assert done.outcome == "canary"
    assert 15.0 < done.learn[0].minutes["series"] < 39.0
    told = reports(line)[0]
    assert "mon.mcap: is damaged or cut short" in told
    assert "tue.mcap: " in told
    assert "wed" not in told


def test_a_copy_is_not_new_and_what_still_changes_is_left_for_the_next_night(tmp_path: Path):
    line = Line(tmp_path, settled_min=10.0)
    line.first_stage()
    path = record(tmp_path / "recordings/mon.mcap", 1.5, day=1)
    os.utime(path, ns=(0, line.clock.now_ns() + DAY_NS - 60 * NS))  # a minute before the night
    assert one_night(line).outcome == "nothing new"
    assert one_night(line).outcome == "canary"
    line.approve()
    shutil.copy(tmp_path / "recordings/mon.mcap", tmp_path / "recordings/again.mcap")
    line.clock.sleep(86_400)
    assert one_night(line).outcome == "nothing new"


def test_faults_are_not_counted_as_minutes_to_learn_from(tmp_path: Path):
    glances = new_recordings.look([record(tmp_path / "a.mcap", 2.0, day=1, fault=True).parent], {}, 2**62)
    [seen] = new_recordings.readable(glances)
    assert seen.minutes == {"series": pytest.approx(1.8, abs=0.03)}
    assert (seen.faults, seen.moments) == (1, 480)


def test_a_file_that_did_not_change_is_not_read_again(tmp_path: Path):
    path = record(tmp_path / "a.mcap", 0.5, day=1)
    before = new_recordings.look([tmp_path], {}, 2**62)
    about = path.stat()
    path.write_bytes(b"x" * about.st_size)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert new_recordings.look([tmp_path], before, 2**62) == before
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns + 1))
    assert new_recordings.look([tmp_path], before, 2**62)[str(path)].refused


def test_old_stages_go_but_never_one_in_the_field_or_before_it(line: Line):
    for day in range(1, 7):
        record(line.folder / f"recordings/{day}.mcap", 1.5, day=day)
        one_night(line)
        line.approve() if line.pointers["series"].candidate else None
    kept = {int(path.name) for path in line.desk.stage(1).parent.iterdir()}
    newest = max(kept)
    assert newest >= 4
    assert kept == {1, newest - 1, newest}  # 1 still runs on edge-1


def test_stages_that_gates_refuse_night_after_night_do_not_fill_the_disk(line: Line):
    (line.folder / "worse").touch()
    for day in range(1, 8):
        record(line.folder / f"recordings/{day}.mcap", 1.5, day=day)
        one_night(line)
    kept = {int(path.name) for path in line.desk.stage(1).parent.iterdir()}
    assert 1 in kept
    assert len(kept) <= 4  # the one in use, the newest two, and the one that was refused tonight
    assert len(list((line.desk.folder / "nights").iterdir())) <= 2


def test_the_report_goes_to_whom_the_file_names(tmp_path: Path):
    line = Line(tmp_path, report_command=["cp", "-t", str(tmp_path / "plant")])
    line.first_stage()
    one_night(line)
    assert "nothing to do (no recording is new)" in next((tmp_path / "plant").glob("*.md")).read_text()


def test_a_damaged_diary_is_refused_by_name(line: Line):
    one_night(line)
    (line.desk.folder / "diary.json").write_text("{")
    with pytest.raises(ConfigError, match=r"diary\.json: is damaged .* every recording counts as new"):
        one_night(line)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('plan = "s.toml"\nrecordings = []', "at least one folder"),
        ('plan = "s.toml"\nrecordings = ["r"]\nrelease = "canary"', 'needs the plant file: plant = "plant/plant.toml"'),
        ('plan = "s.toml"\nrecordings = ["r"]\n[minutes]\ncamra = 3.0', "known are camera, microphone"),
        ('plan = "s.toml"\nrecordings = ["r"]\nkeep_stages = 0', "keep_stages and keep_nights at least 1"),
        ('plan = "s.toml"\nrecordings = ["r"]\nreleas = "none"', "did you mean 'release'"),
    ],
)
def test_a_file_of_the_loop_that_cannot_be_is_refused(text: str, told: str):
    with pytest.raises(ConfigError, match=told):
        config.loads(text, NightPlan)


def test_a_template_that_says_what_each_night_says_is_refused(tmp_path: Path):
    (tmp_path / "stage.toml").write_text('parent = "stage-1"\n')
    with pytest.raises(ConfigError, match="says 'parent', which each night says itself; leave it out"):
        stage_plan(tmp_path / "stage.toml", tmp_path, tmp_path, ["a"])
    (tmp_path / "stage.toml").write_text("epoch = 3\n")
    with pytest.raises(ConfigError, match="did you mean 'epochs'"):
        stage_plan(tmp_path / "stage.toml", tmp_path, tmp_path, ["a"])


def test_a_report_is_json_too(line: Line):
    one_night(line)
    told = json.loads(next((line.desk.folder / "reports").glob("*.json")).read_bytes())
    assert msgspec.convert(told, Night).outcome == "nothing new"

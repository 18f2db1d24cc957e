"""What a device keeps around alarms, on its own disk: edge.evidence, edge.archive, edge.ring, edge.case."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.agent import Agent
from edge.archive import Archive
from edge.case import LONGEST, Case
from edge.config import DeviceConfig, DeviceSettings, EvidenceSettings, SensorSettings
from edge.evidence import BACKLOG_BYTES, Evidence
from edge.inventory import inventory
from edge.replay import simulated
from edge.ring import Ring
from lineside.channels import Block
from lineside.clock import NS, SimulatedClock, SystemClock
from lineside.errors import LinesideError
from lineside.evidence import labels
from lineside.messages import Alarm, Message
from lineside.mqtt import BrokerConfig
from lineside.recording import Recording, within_faults, without_faults
from lineside.windows import Samples
from tests.killed import before_step
from tests.line_broker import wait
from tests.line_device import SENSORS, SITE

START_NS = 1_700_000_000 * NS
PLENTY = 10**12
ROOT = Path(__file__).parents[1]


def device(**evidence: object) -> DeviceConfig:
    settings = EvidenceSettings(**{"before_s": 2.0, "after_s": 1.0, "keep_free_mb": 0.0, **evidence})  # type: ignore[arg-type]
    return DeviceConfig(
        device=DeviceSettings(id="edge-1", site=SITE, station="press"), sensors=SENSORS, evidence=settings
    )


def alarm(at_s: float, key: str = "k1", state: str = "raised", **more: object) -> Alarm:
    time_ns = START_NS + round(at_s * NS)
    named = {"kind": "anomaly", "subject": "press", "onset_ns": time_ns - NS // 2, **more}
    return Alarm(
        device="edge-1", station="press", key=key, state=state, top_sensor="mic0", top_modality="microphone",
        time_ns=time_ns, p_value=1e-4, evidence=9.0, contributions={}, versions={}, limits={}, text=f"alarm {key}",
        pictures={"cam0": b"\xff\xd8 small"}, **named,
    )  # fmt: skip


class Shift:
    """Some seconds of the simulated line through an Evidence, with messages at their times."""

    def __init__(self, config: DeviceConfig, state: Path, free: Callable[[Path], int] = lambda _: PLENTY) -> None:
        self.config, self.state, self.clock = config, state, SimulatedClock(START_NS)
        self.evidence = Evidence(config, state, self.clock, free)
        self.evidence.start()
        self.samples: list[Samples] = []
        self.told: list[Alarm] = []
        self._stream = simulated(config, Path(), START_NS, 1000.0)
        self._next = next(self._stream)

    def run(self, until_s: float, *messages: Message) -> None:
        """Samples up to that second, then the messages."""
        while self._next.end_ns <= START_NS + round(until_s * NS):
            self.clock.sleep(max(0, self._next.end_ns - self.clock.now_ns()) / NS)
            self.evidence.take(self._next)
            self.samples.append(self._next)
            self._next = next(self._stream)
        self.told += [m for m in self.evidence.hear(messages) if isinstance(m, Alarm)]

    def settled(self) -> None:
        """Wait until the thread has done all that it was given."""
        done = threading.Event()
        self.evidence._put(done.set)
        assert done.wait(60)

    def files(self, folder: str = "evidence") -> list[Path]:
        return sorted((self.state / folder).glob("*.mcap"))


def sound(runs: list[Samples], start_s: float, end_s: float) -> bytes:
    span = START_NS + round(start_s * NS), START_NS + round(end_s * NS)
    return b"".join(run.between(*span).data.tobytes() for run in runs if run.sensor == "mic0")


@pytest.mark.slow
def test_an_alarm_keeps_the_seconds_before_and_after_of_every_sensor(tmp_path: Path) -> None:
    shift = Shift(device(), tmp_path)
    shift.run(5.0, alarm(5.0))
    shift.run(9.0)
    shift.evidence.stop()
    (file,) = shift.files()
    assert shift.told[0].recording == file.name == "20231114T221325.000Z-anomaly-press.mcap"
    recording = Recording(file)
    read = list(recording.samples())
    assert recording.problem == ""
    assert recording.about.sensors == {"cam0": "camera", "mic0": "microphone"}
    assert (recording.about.station, recording.about.source) == ("press", "edge-1")
    assert sound(read, 3.0, 6.0) == sound(shift.samples, 3.0, 6.0) != b""  # bit for bit
    frames = [run for run in read if run.sensor == "cam0"]
    assert [(run.start_ns - START_NS) / NS for run in frames] == pytest.approx(np.arange(3.0, 6.0, 0.1))
    taken = [run for run in shift.samples if run.sensor == "cam0" and run.start_ns == frames[7].start_ns]
    assert np.abs(frames[7].data.astype(int) - taken[0].data).mean() < 6  # JPEG
    assert len({run.data.shape for run in frames}) == 1
    assert not (tmp_path / "recordings").exists()


@pytest.mark.slow
def test_the_label_of_an_alarm_is_left_out_of_normal_but_is_no_known_fault(tmp_path: Path) -> None:
    shift = Shift(device(), tmp_path)
    shift.run(5.0, alarm(5.0), alarm(5.0, "k2", kind="sensor", subject="mic0"))
    shift.run(5.5, alarm(5.5, state="cleared", onset_ns=START_NS + 9 * NS // 2))
    shift.run(9.0)
    shift.evidence.stop()
    recording = Recording(shift.files()[0])
    assert [(a.key, a.state, a.pictures) for a in recording.alarms()] == [
        ("k1", "raised", {}),
        ("k2", "raised", {}),
        ("k1", "cleared", {}),
    ]
    first, second = recording.labels()
    assert (first.label, first.sensor, first.fault, first.confirmed) == ("alarm: anomaly of press", "", True, False)
    assert ((first.start_ns - START_NS) / NS, (first.end_ns - START_NS) / NS) == (4.5, 5.5)
    assert (second.label, second.sensor) == ("alarm: sensor of mic0", "mic0")
    assert second.end_ns == START_NS + 6 * NS
    normal = list(without_faults(recording.samples(), recording.labels()))
    assert {run.sensor for run in normal if run.start_ns >= START_NS + 11 * NS // 2} == {"cam0"}
    assert list(within_faults(recording.samples(), recording.labels())) == []


@pytest.mark.slow
def test_alarms_at_once_share_a_file_and_one_that_lasts_does_not_grow_it(tmp_path: Path) -> None:
    shift = Shift(device(), tmp_path)
    shift.run(5.0, alarm(5.0, "a"), alarm(5.0, "b"))
    shift.run(5.8, alarm(5.8, "c"))
    shift.run(30.0, alarm(30.0, "a", "cleared"))
    shift.evidence.stop()
    (file,) = shift.files()
    assert {told.recording for told in shift.told if told.state == "raised"} == {file.name}
    assert shift.told[-1].recording == ""
    first_ns, last_ns = Recording(file).span_ns()
    assert (first_ns - START_NS) / NS == pytest.approx(3.0)
    assert (last_ns - START_NS) / NS == pytest.approx(6.8, abs=0.11)
    assert [a.key for a in Recording(file).alarms()] == ["a", "b", "c"]


@pytest.mark.slow
def test_alarms_without_end_make_files_of_bounded_length(tmp_path: Path) -> None:
    shift = Shift(device(before_s=1.0, after_s=1.0), tmp_path)
    for k in range(30):
        shift.run(2.0 + k, alarm(2.0 + k, str(k)))
    shift.run(40.0)
    shift.evidence.stop()
    spans = [Recording(file).span_ns() for file in shift.files()]
    assert len(spans) >= 4
    assert max(last - first for first, last in spans) <= (LONGEST * 2 + 0.3) * NS
    for told in shift.told:  # each alarm has its own seconds in the file that it names
        first, last = Recording(tmp_path / "evidence" / told.recording).span_ns()
        assert first <= told.time_ns - NS
        assert last >= told.time_ns + NS


@pytest.mark.slow
def test_the_folder_never_holds_more_than_max_mb_whatever_the_number_of_alarms(tmp_path: Path) -> None:
    config = device(before_s=0.5, after_s=0.3, max_mb=1.0)
    archive = Archive(config, tmp_path, SimulatedClock(START_NS), lambda _: PLENTY)
    most, names = 0, []
    for k, samples in enumerate(simulated(config, Path(), START_NS, 60.0)):
        archive.take(samples)
        if k % 40 == 20:
            raised = alarm((samples.end_ns - START_NS) / NS, str(k))
            archive.hear(raised, Case.of(raised, config.evidence))
            names.append(Case.of(raised, config.evidence).name)
        if k % 40 == 39:
            archive.close_case()
        if k % 5 == 0:
            most = max(most, sum(file.stat().st_size for file in (tmp_path / "evidence").glob("*")) if names else 0)
    archive.close()
    assert 0.5e6 < most <= 1e6
    left = sorted(file.name for file in (tmp_path / "evidence").glob("*.mcap"))
    assert left == names[-len(left) :]  # the oldest went
    assert 2 <= len(left) < len(names)


@pytest.mark.slow
def test_an_alarm_too_large_for_the_bound_is_cut_and_the_next_still_has_a_file(tmp_path: Path) -> None:
    config = device(before_s=5.0, after_s=5.0, max_mb=1.0)
    shift = Shift(config, tmp_path)
    shift.run(6.0, alarm(6.0))
    shift.run(40.0, alarm(40.0, "later"))
    shift.run(50.0)
    shift.evidence.stop()
    assert sum(file.stat().st_size for file in shift.files()) <= 1e6
    assert [[a.key for a in Recording(file).alarms()] for file in shift.files()] == [["k1", "later"]]


@pytest.mark.slow
def test_a_disk_without_room_stops_evidence_which_begins_again_by_itself(tmp_path: Path) -> None:
    free = [PLENTY]
    config = device(keep_free_mb=300.0, record_all=True)
    shift = Shift(config, tmp_path, lambda _: free[0])
    shift.run(3.0, alarm(3.0, "a"))
    shift.settled()
    free[0] = 290_000_000  # in the midst of a file
    shift.run(20.0, alarm(20.0, "b"))
    shift.settled()
    assert shift.evidence.problem == (
        "evidence: stopped, the disk has 290 MB free, 300 MB are kept for alarms; free the disk of state_dir"
    )
    assert [Recording(file).alarms()[0].key for file in shift.files()] == ["a"]  # whole, as far as it went
    assert shift.told[-1].recording == ""
    before = sum(file.stat().st_size for file in tmp_path.rglob("*.mcap"))
    assert list(tmp_path.rglob("*.part")) == []
    shift.run(21.0)
    free[0] = 310_000_000  # not yet: it would be full again at once
    shift.run(22.0)
    shift.settled()
    assert shift.evidence.problem
    assert sum(file.stat().st_size for file in tmp_path.rglob("*.mcap")) == before
    free[0] = 400_000_000
    shift.run(30.0, alarm(30.0, "c"))
    shift.run(33.0)
    shift.settled()
    assert shift.evidence.problem == ""
    assert shift.told[-1].recording == shift.files()[-1].name
    shift.evidence.stop()
    assert Recording(shift.files("recordings")[-1]).span_ns()[1] >= START_NS + 32 * NS


def test_the_outboxs_room_is_never_taken_by_evidence(tmp_path: Path) -> None:
    config = device(keep_free_mb=0.0)
    assert config.keep_free_bytes == round(config.outbox.max_mb * 1e6)


@pytest.mark.slow
def test_a_disk_that_refuses_is_told_and_evidence_goes_on_when_it_is_mended(tmp_path: Path) -> None:
    (tmp_path / "evidence").write_text("a file in the folder's place")
    shift = Shift(device(), tmp_path)
    shift.run(3.0, alarm(3.0))
    shift.settled()
    assert "evidence: cannot be written" in shift.evidence.problem
    (tmp_path / "evidence").unlink()
    shift.run(15.0, alarm(15.0, "later"))
    shift.run(18.0)
    shift.evidence.stop()
    assert shift.evidence.problem == ""
    assert [[a.key for a in Recording(file).alarms()] for file in shift.files()] == [["k1", "later"]]
    assert sound(list(Recording(shift.files()[0]).samples()), 13.0, 16.0) == sound(shift.samples, 13.0, 16.0)


def test_a_stalled_disk_never_holds_up_judging_and_what_is_lost_is_counted(tmp_path: Path) -> None:
    stalled = threading.Event()
    evidence = Evidence(device(), tmp_path, SimulatedClock(START_NS), lambda _: stalled.wait(20) and PLENTY)
    evidence.start()
    frame = np.zeros((1, 720, 1280, 3), np.uint8)
    for k in range(100):
        at_ns = START_NS + k * NS // 10
        evidence.take(Samples("cam0", "camera", at_ns, 10.0, frame, np.array([at_ns], np.int64)))
    held = BACKLOG_BYTES // frame.nbytes
    assert 100 - held - 2 <= evidence.dropped <= 100 - held
    assert evidence._backlog.bytes <= BACKLOG_BYTES
    assert "runs of samples are missing" in evidence.problem
    (told,) = evidence.hear([alarm(9.0)])
    stalled.set()
    evidence.stop()
    assert (tmp_path / "evidence" / told.recording).exists()  # type: ignore[attr-defined]


def test_without_seconds_before_and_after_nothing_is_kept_and_nothing_encoded(tmp_path: Path) -> None:
    shift = Shift(device(before_s=0.0, after_s=0.0), tmp_path)
    shift.run(3.0, alarm(3.0))
    shift.run(6.0)
    shift.evidence.stop()
    assert list(tmp_path.rglob("*.mcap")) == []
    assert shift.told[0] == alarm(3.0)
    assert shift.evidence._archive._ring.bytes == 0


def test_what_cannot_be_encoded_is_told_and_the_other_sensors_are_kept(tmp_path: Path) -> None:
    shift = Shift(device(), tmp_path)
    shift.run(2.0)
    shift.evidence.take(Samples("cam0", "camera", START_NS + 2 * NS, 10.0, np.zeros((1, 8, 8, 3), np.uint8)))
    shift.run(3.0, alarm(3.0))
    shift.run(5.5)
    shift.settled()
    assert "camera samples need a stamp" in shift.evidence.problem
    shift.evidence.stop()
    assert {run.sensor for run in Recording(shift.files()[0]).samples()} == {"cam0", "mic0"}


@pytest.mark.slow
def test_recording_everything_rolls_within_its_bound_and_labels_what_alarms_said(tmp_path: Path) -> None:
    config = device(before_s=0.0, after_s=0.0, record_all=True, max_mb_all=2.0)
    shift = Shift(config, tmp_path)
    shift.run(1.0, alarm(1.0))
    most = 0
    for second in range(2, 40):
        shift.run(second)
        shift.settled()
        most = max(most, sum(file.stat().st_size for file in (tmp_path / "recordings").iterdir()))
    shift.evidence.stop()
    files = shift.files("recordings")
    assert 1e6 < most <= 2e6
    assert len(files) >= 3
    spans = [Recording(file).span_ns() for file in files]
    assert spans[-1][1] >= START_NS + 39 * NS
    assert spans[0][0] > START_NS + NS  # the oldest went
    gaps = [later[0] - before[1] for before, later in itertools.pairwise(spans)]
    assert max(gaps) <= NS // 10
    for file, (first, last) in zip(files, spans, strict=True):  # the alarm was never cleared: none of it is normal
        (label,) = Recording(file).labels()
        assert (label.start_ns <= first, label.end_ns >= last) == (True, True)
    assert sound([run for file in files for run in Recording(file).samples()], 30.0, 38.0) == sound(
        shift.samples, 30.0, 38.0
    )


def test_an_operators_switch_holds_over_restarts_until_the_device_file_says_otherwise(tmp_path: Path) -> None:
    shift = Shift(device(), tmp_path)
    assert not shift.evidence.recording
    shift.evidence.record(True)
    shift.run(2.0)
    shift.evidence.stop()
    assert len(shift.files("recordings")) == 1
    again = Shift(device(), tmp_path)
    assert again.evidence.recording
    again.evidence.record(False)
    again.run(2.0)
    again.evidence.stop()
    assert len(again.files("recordings")) == 1
    for config, on in ((device(record_all=True), True), (device(), False)):
        shift = Shift(config, tmp_path)
        assert shift.evidence.recording is on
        shift.evidence.stop()


def test_where_recording_everything_is_not_allowed_nobody_can_switch_it_on(tmp_path: Path) -> None:
    evidence = Evidence(device(max_mb_all=0.0), tmp_path, SimulatedClock(START_NS))
    with pytest.raises(LinesideError, match=r"edge-1: may not record everything; set \[evidence\] max_mb_all"):
        evidence.record(True)
    evidence.record(False)
    assert not evidence.recording
    with pytest.raises(ValueError, match="record_all needs max_mb_all"):
        EvidenceSettings(record_all=True, max_mb_all=0.0)


KILLED = """
import sys, time
from pathlib import Path
from tests.test_evidence import Shift, alarm, device
shift = Shift(device(before_s=30.0, after_s=60.0, record_all=True), Path(sys.argv[1]))
shift.run(40.0, alarm(40.0))
shift.run(55.0)
shift.settled()
print("written", flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_after_kill_9_in_the_midst_of_files_they_are_finished_at_the_next_start(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"written\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert list(tmp_path.rglob("*.mcap")) == []
    assert len(list(tmp_path.rglob(".*.part"))) == 2
    (tmp_path / "evidence" / ".20200101T000000.000Z-x.mcap.part").write_bytes(b"\x89MCAP0\r\n")  # killed at once
    (tmp_path / "evidence" / ".old.mcap.mended").write_bytes(b"killed while mending")
    shift = Shift(device(), tmp_path)
    assert wait(lambda: len(list(tmp_path.rglob("*.mcap"))) == 2)
    shift.evidence.stop()
    assert sorted(file.name for file in tmp_path.rglob("*") if file.is_file()) == [
        "20231114T221320.000Z.mcap",
        "20231114T221400.000Z-anomaly-press.mcap",
    ]
    recording = Recording(shift.files()[0])
    first_ns, last_ns = recording.span_ns()
    assert recording.problem == ""
    assert first_ns == pytest.approx(START_NS + 10 * NS, abs=NS // 5)
    assert last_ns > START_NS + 50 * NS  # what a kill costs is the chunk that filled
    (label,) = recording.labels()
    assert (label.fault, label.confirmed, label.end_ns) == (True, False, last_ns)
    (kept, everything) = inventory(tmp_path)
    assert (kept.alarms, kept.sensors, kept.problem) == (["alarm k1"], ["cam0", "mic0"], "")
    assert kept.seconds == pytest.approx((last_ns - first_ns) / NS, abs=0.3)
    assert everything.folder == "recordings"


@pytest.mark.slow
def test_the_command_lists_what_is_kept(tmp_path: Path) -> None:
    shift = Shift(device(record_all=True), tmp_path / "state")
    shift.run(5.0, alarm(5.0))
    shift.run(9.0)
    shift.evidence.stop()
    (tmp_path / "state" / "evidence" / "19990101T000000.000Z.mcap").write_bytes(b"a copy that went wrong")
    (tmp_path / "device.toml").write_text(
        '[device]\nid = "edge-1"\nsite = "line1"\nstation = "press"\n'
        '[[sensors]]\nname = "cam0"\nmodality = "camera"\nsource = "simulation"\n'
    )
    command = [sys.executable, "-m", "lineside", "edge", "evidence", "--config", str(tmp_path / "device.toml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    lines = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    assert "cannot be read" in lines.splitlines()[0]
    assert "3 s of cam0, mic0; alarm k1" in lines.splitlines()[1]
    assert "9 s of cam0, mic0; alarm k1" in lines.splitlines()[2]
    told = subprocess.run([*command, "--json"], cwd=ROOT, env=environment, capture_output=True, check=True).stdout
    assert [one["folder"] for one in json.loads(told)] == ["evidence", "evidence", "recordings"]


@pytest.mark.slow
@pytest.mark.parametrize("allowed", [False, True])
def test_of_what_an_agent_keeps_nothing_leaves_but_the_name_of_the_file(tmp_path: Path, allowed: bool) -> None:
    """A real agent whose broker is away: what would be sent waits in its outbox. A microphone that is away alarms."""
    sensors = [SENSORS[0], SensorSettings(name="mic0", modality="microphone", source="replay", device="gone.mcap")]
    config = DeviceConfig(
        device=DeviceSettings(id="edge-1", site=SITE, station="press", evidence=allowed),
        sensors=sensors,
        broker=BrokerConfig(port=1),
        evidence=EvidenceSettings(before_s=1.0, after_s=0.2, record_all=True, keep_free_mb=0.0),
    )
    agent, stop = Agent(config, tmp_path, SystemClock()), threading.Event()
    thread = threading.Thread(target=agent.run, args=(stop,))
    thread.start()
    state = tmp_path / "state"
    assert wait(lambda: [*(state / "evidence").glob("*.mcap")])
    stop.set()
    thread.join(20)
    with sqlite3.connect(state / "outbox.db") as db:
        waiting = [(kind, bytes(payload)) for kind, payload in db.execute("SELECT kind, payload FROM outbox")]
    (told,) = [msgspec.json.decode(payload, type=Alarm) for kind, payload in waiting if kind == "alarm"]
    (file,) = (state / "evidence").glob("*.mcap")
    assert (told.subject, told.recording, sorted(told.pictures)) == ("mic0", file.name, ["cam0"] if allowed else [])
    assert {run.sensor for run in Recording(file).samples()} == {"cam0"}
    assert len([*(state / "recordings").glob("*.mcap")]) == 1
    kept = [made for path in state.rglob("*.mcap") for made in Recording(path).blocks() if made.topic == "/cam0"]
    pictures = [msgspec.json.decode(made.data)["data"].encode() for made in kept]
    sent = b"".join(payload for _, payload in waiting)
    assert len(pictures) > 10
    assert not any(picture in sent for picture in pictures)
    assert (b"/9j/" in sent) is allowed  # how a JPEG begins in base64


@given(
    made=st.lists(st.tuples(st.integers(0, 3_000), st.integers(0, 400)), max_size=60),
    span_ns=st.integers(1, 500),
    most=st.integers(0, 2_000),
)
def test_the_ring_holds_the_last_seconds_and_never_more_bytes(
    made: list[tuple[int, int]], span_ns: int, most: int
) -> None:
    ring, at_ns = Ring(span_ns, most), 0
    for step, size in made:
        at_ns += step // 20
        ring.push(Block("/mic0", "lineside.FlacAudio", at_ns, at_ns + 10, bytes(size)))
        held = ring.within(0, 10**9)
        assert sum(len(block.data) for block in held) == ring.bytes <= most
        assert all(block.end_ns >= at_ns + 10 - span_ns for block in held)
        wanted = [one for one in held if one.end_ns > at_ns - 5 and one.start_ns < at_ns + 5]
        assert ring.within(at_ns - 5, at_ns + 5) == wanted


def test_a_ring_whose_time_is_set_back_goes_on() -> None:
    ring = Ring(100, 10_000)
    for at_ns in (*range(10_000, 10_200, 10), *range(500, 800, 10)):
        ring.push(Block("/cam0", "foxglove.CompressedImage", at_ns, at_ns + 10, b"x"))
    assert [block.start_ns for block in ring.within(0, 9_000)] == [*range(690, 800, 10)]


def test_a_case_grows_with_alarms_that_follow_until_it_is_long() -> None:
    around = EvidenceSettings(before_s=2.0, after_s=3.0)
    case = Case.of(alarm(10.0, kind="drift", subject="プレス/1 +2"), around)
    assert case.name == "20231114T221330.000Z-drift-プレス-1-2.mcap"
    assert (case.start_ns, case.end_ns) == (START_NS + 8 * NS, START_NS + 13 * NS)
    assert case.joined(alarm(9.0), around) == case
    later = case.joined(alarm(25.0), around)
    assert later is not None
    assert (later.name, later.end_ns) == (case.name, START_NS + 28 * NS)
    assert later.joined(alarm(25.1), around) is None
    assert (case.over(case.end_ns + NS // 2), case.over(case.end_ns + NS)) == (False, True)


def test_a_label_of_an_alarm_that_was_raised_and_cleared_before_is_none_of_normal() -> None:
    told = [alarm(1.0, onset_ns=0), alarm(3.0, state="cleared", onset_ns=0), alarm(2.0, "k2")]
    one, two = labels(told, ["mic0"], START_NS, START_NS + 9 * NS).values()
    assert (one.start_ns, one.end_ns) == (START_NS, START_NS + 3 * NS)
    assert (two.start_ns, two.end_ns) == (START_NS + 3 * NS // 2, START_NS + 9 * NS)
    assert msgspec.json.decode(msgspec.json.encode(one), type=type(one)) == one


@pytest.mark.slow
def test_after_kill_9_before_any_change_of_the_disk_the_folders_are_whole_again(tmp_path: Path) -> None:
    """Two alarms and a recording of everything, so that files are made, named and rolled."""
    config = device(before_s=0.5, after_s=0.3, max_mb=1.0, record_all=True, max_mb_all=2.0)
    blocks = [*itertools.islice(simulated(config, Path(), START_NS, 1000.0), 60)]

    def archive(folder: Path) -> Archive:
        made = Archive(config, folder, SimulatedClock(START_NS), lambda _: PLENTY)
        made.record(True)
        return made

    def work(folder: Path) -> None:
        kept = archive(folder)
        for k, samples in enumerate(blocks):
            kept.take(samples)
            if k in {20, 45}:
                raised = alarm((samples.end_ns - START_NS) / NS, str(k))
                kept.hear(raised, Case.of(raised, config.evidence))
            if k in {35, 55}:
                kept.close_case()
        kept.close()

    step, ended = 0, True
    while ended:
        folder = tmp_path / str(step)
        folder.mkdir()
        ended = before_step(step, lambda folder=folder: work(folder))  # type: ignore[misc]
        whole = {file: file.read_bytes() for file in folder.rglob("*.mcap")}
        archive(folder).close()
        assert not [file for file in folder.rglob("*") if file.is_file() and file.name.startswith(".")]
        for file in folder.rglob("*.mcap"):
            recording = Recording(file)
            recording.span_ns()
            assert recording.problem == ""
            assert whole.get(file, file.read_bytes()) == file.read_bytes()
        for name in ("evidence", "recordings"):
            assert sum(file.stat().st_size for file in (folder / name).glob("*")) <= 2e6
        step += 1
    assert step > 8
    assert len([*(folder / "evidence").glob("*.mcap")]) == 2
    assert len([*(folder / "recordings").glob("*.mcap")]) >= 2


@pytest.mark.slow
def test_on_a_disk_that_is_full_judging_goes_on_and_evidence_comes_back(tmp_path: Path) -> None:
    """A real one: a tmpfs of some megabytes, filled to the last byte by somebody else while evidence is written."""
    mount = tmp_path / "disk"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", mount], check=False).returncode:
        pytest.skip("may not mount a tmpfs here")
    try:
        shift = Shift(device(record_all=True), mount, free=lambda _: PLENTY)  # as if somebody were faster than we look
        shift.run(3.0, alarm(3.0, "a"))
        shift.settled()
        (mount / "filler").write_bytes(bytes(shutil.disk_usage(mount).free))
        problems = set()
        for second in range(4, 21):
            shift.run(second, *([alarm(20.0, "b")] if second == 20 else []))
            shift.settled()
            problems.add(shift.evidence.problem)
            if shift.evidence.problem:
                assert [*mount.rglob("*.part")] == []  # what was half gives way
        assert any("No space left on device" in problem for problem in problems)
        (mount / "filler").unlink()
        shift.run(30.0, alarm(30.0, "c"))
        shift.run(33.0)
        shift.evidence.stop()
        assert shift.evidence.problem == ""
        assert [a.key for a in Recording(mount / "evidence" / shift.told[-1].recording).alarms()] == ["a", "b", "c"]
    finally:
        subprocess.run(["umount", "-l", mount], check=True)

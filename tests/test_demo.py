"""The whole loop, as `./run demo --once` runs it: on the simulated line, on a video, on real digits."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from demo.labelled import Labelled
from demo.plan import Line, plant_tables
from edge.config import DeviceConfig, DeviceSettings, SensorSettings
from edge.faults import Injector
from edge.replay import simulated
from edge.sensors.table import open_sensor
from lineside.clock import NS, SimulatedClock
from lineside.config import loads
from lineside.plant import PlantConfig
from lineside.recording import About, Label, Recorder
from lineside.windows import Samples
from tests import line_device, line_video

ROOT = Path(__file__).parent.parent
DIGITS = ROOT.parent / "shared" / "data" / "dev" / "av_digits"


def demo(folder, *words, timeout_s=900):
    command = [sys.executable, "-m", "demo", "--once", "--folder", str(folder / "demo"), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False)
    return done.returncode, json.loads(done.stdout.strip().splitlines()[-1]) if done.stdout else {}, done.stderr


def holds(code, told, errors, faults):
    assert code == 0, errors
    assert told["ok"]
    assert told["first_alarm_s"] < 180
    assert [alarm["fault"] for alarm in told["alarms"]] == faults
    assert all(alarm["top_modality"] == alarm["expected"] for alarm in told["alarms"])
    assert all(alarm["evidence"] for alarm in told["alarms"] if alarm["kind"] == "anomaly")
    assert told["versions"]["before"] == told["versions"]["rolled_back"]
    assert told["versions"]["rolled_out"]["camera"] == "2"
    assert told["versions"]["rolled_out"]["microphone"] == "1"
    assert told["windows_lost_in_change"] == {"microphone": 0}
    assert told["windows_stored"] >= told["windows_embedded"] > 0
    assert told["sequence_gaps"] == {}


@pytest.mark.slow
@pytest.mark.alone
def test_the_loop_holds_on_the_simulated_line(tmp_path):
    holds(*demo(tmp_path), ["bearing_noise", "misaligned_part", "dirty_lens", "muted"])


@pytest.mark.slow
@pytest.mark.alone
def test_the_loop_holds_on_a_video_with_sound(tmp_path):
    video = line_video.write(tmp_path / "phone.mp4", 120)
    holds(*demo(tmp_path, "--recording", str(video)), ["bearing_noise", "dirty_lens", "muted"])


def labelled_line(path):
    """Four minutes of the simulated line, with 20 seconds of a fault that a label tells of."""
    start_ns = line_device.START_NS + 180 * NS
    device = DeviceSettings(id="edge-1", site="demo", station="press")
    config = DeviceConfig(device=device, sensors=line_device.SENSORS)
    injector = Injector()
    with Recorder(path, About(station="press", sensors=line_device.MODALITIES)) as recorder:
        recorder.label(Label(start_ns, start_ns + 20 * NS, "bearing_noise", "mic0", fault=True))
        for samples in simulated(config, path.parent, line_device.START_NS, 240):
            if samples.start_ns >= start_ns and not injector.running():
                injector.start("bearing_noise", start_ns + 20 * NS)
            recorder.write(injector.apply(samples))
    return path


@pytest.mark.slow
@pytest.mark.alone
def test_the_loop_waits_for_the_faults_that_a_recording_has_labels_for(tmp_path):
    line = labelled_line(tmp_path / "line.mcap")
    holds(*demo(tmp_path, "--recording", str(line)), ["bearing_noise", "muted"])


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.shared
def test_the_loop_holds_on_real_digits_seen_and_spoken(tmp_path):
    if not DIGITS.exists():
        pytest.skip("needs ../shared/data/dev/av_digits")
    digits = tmp_path / "digits.mcap"
    words = ["edge", "record", "--from", str(DIGITS), "--limit", "2000", "--out", str(digits)]
    subprocess.run([sys.executable, "-m", "lineside", *words], check=True)
    holds(*demo(tmp_path, "--recording", str(digits)), ["bearing_noise", "dirty_lens", "muted"])


def series(path, seconds, *faults):
    """A series that is 1 during its faults (name, first second, last second) and 0 else."""
    start_ns = line_device.START_NS
    with Recorder(path, About(sensors={"vib0": "series"})) as recorder:
        for k in range(seconds):
            faulty = any(first <= k < last for _, first, last in faults)
            recorder.write(Samples("vib0", "series", start_ns + k * NS, 10.0, np.full((10, 1), faulty, np.float32)))
        for name, first, last in faults:
            recorder.label(Label(start_ns + first * NS, start_ns + last * NS, name, fault=True))
    return path


def test_the_first_fault_of_each_name_that_an_alarm_could_answer_to_is_waited_for(tmp_path):
    faults = [
        ("blink", 10, 12),
        ("jam", 80, 84),
        ("jam", 84, 90),
        ("wear", 200, 220),
        ("crack", 210, 215),
        ("jam", 290, 300),
        ("leak", 330, 350),
        ("late", 470, 500),
    ]
    found = Labelled.of(series(tmp_path / "line.mcap", 490, *faults), 0.5)
    at = [(fault.label, fault.start_ns - found.first_ns, fault.end_ns - found.first_ns) for fault in found.faults]
    assert at == [("jam", 80 * NS, 90 * NS)]
    assert found.from_s == 35.0
    assert found.normal_s == 490 - 2 - 10 - 20 - 10 - 20 - 20
    assert (found.cut_s(0.1), found.cut_s(0.25)) == (42.8, 114.0)
    assert Labelled.of(series(tmp_path / "well.mcap", 30), 0.5).from_s == 0.0


@pytest.mark.parametrize("first", [20, 110])  # round the end of the recording, and within it
def test_a_labelled_fault_comes_when_it_is_said_to_come(first, tmp_path):
    found = Labelled.of(series(tmp_path / "line.mcap", 200, ("jam", first, first + 10)), 0.5)
    started_ns = 1_800_000_000 * NS + 123_456_789
    row = SensorSettings(name="vib0", modality="series", source="replay", device="line.mcap", from_s=found.from_s)
    clock = SimulatedClock(started_ns)
    came = []
    for samples in open_sensor(row, clock, started_ns, tmp_path).samples():
        if samples.data[0, 0] and samples.start_ns > (came[-1] if came else 0) + 20 * NS:
            came.append(samples.start_ns)
        if len(came) == 2:
            break
    assert found.next_ns(found.faults[0], started_ns, started_ns) == came[0]
    assert found.next_ns(found.faults[0], started_ns, came[0] + 1) == came[1]
    assert 45 * NS <= came[0] - started_ns <= 47 * NS


@pytest.mark.parametrize("kind", ["simulation", "recording", "live"])
def test_the_rings_that_the_demo_writes_into_the_plant_file_are_valid(kind):
    plant = loads('site = "demo"\ndevices = ["edge-1"]\n' + plant_tables(Line(kind, {})), PlantConfig)
    assert not plant.rollout.approve


def test_a_port_in_use_is_named_before_anything_starts(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, errors = demo(tmp_path, "--port", str(port), timeout_s=60)
    assert code == 8
    assert f"port {port}: somebody else listens there; choose another with --port" in errors


@pytest.mark.slow
def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "thesis.txt").write_text("years of work")
    code, _, errors = demo(tmp_path, timeout_s=60)
    assert code == 1
    assert "is not empty, and no demo made it; name another one with --folder" in errors
    assert (tmp_path / "demo" / "thesis.txt").read_text() == "years of work"


@pytest.mark.slow
def test_a_recording_that_is_none_fails_with_the_mend(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    code, told, _ = demo(tmp_path, "--recording", str(tmp_path / "notes.txt"), timeout_s=120)
    assert code == 1
    assert told["failed"].startswith("step 1: ")
    assert "notes.txt" in told["failed"]


@pytest.mark.slow
@pytest.mark.skipif(Path("/dev/video0").exists(), reason="this machine has a camera")
def test_live_without_a_camera_ends_soon_with_the_mend(tmp_path):
    code, told, _ = demo(tmp_path, "--live", timeout_s=50)
    assert code == 1
    assert "cam0: cannot open /dev/video0 (no such device); is it plugged in and free?" in told["failed"]

"""The whole loop, as `./run demo --once` runs it: on the simulated line, on a video, on real digits."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests import line_video

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
def test_the_loop_holds_on_the_simulated_line(tmp_path):
    holds(*demo(tmp_path), ["bearing_noise", "misaligned_part", "dirty_lens", "muted"])


@pytest.mark.slow
def test_the_loop_holds_on_a_video_with_sound(tmp_path):
    video = line_video.write(tmp_path / "phone.mp4", 540)
    holds(*demo(tmp_path, "--recording", str(video)), ["bearing_noise", "dirty_lens", "muted"])


@pytest.mark.slow
@pytest.mark.shared
def test_the_loop_holds_on_real_digits_seen_and_spoken(tmp_path):
    if not DIGITS.exists():
        pytest.skip("needs ../shared/data/dev/av_digits")
    digits = tmp_path / "digits.mcap"
    words = ["edge", "record", "--from", str(DIGITS), "--limit", "2000", "--out", str(digits)]
    subprocess.run([sys.executable, "-m", "lineside", *words], check=True)
    holds(*demo(tmp_path, "--recording", str(digits)), ["bearing_noise", "dirty_lens", "muted"])


def test_a_port_in_use_is_named_before_anything_starts(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, errors = demo(tmp_path, "--port", str(port), timeout_s=60)
    assert code == 8
    assert f"port {port}: somebody else listens there; choose another with --port" in errors


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "thesis.txt").write_text("years of work")
    code, _, errors = demo(tmp_path, timeout_s=60)
    assert code == 1
    assert "is not empty, and no demo made it; name another one with --folder" in errors
    assert (tmp_path / "demo" / "thesis.txt").read_text() == "years of work"


def test_a_recording_that_is_none_fails_with_the_mend(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    code, told, _ = demo(tmp_path, "--recording", str(tmp_path / "notes.txt"), timeout_s=120)
    assert code == 1
    assert told["failed"].startswith("step 1: ")
    assert "notes.txt" in told["failed"]

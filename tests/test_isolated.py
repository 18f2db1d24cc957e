"""A sensor in a process of its own: samples arrive whole, and whatever happens to the process, nothing of it stays."""

from __future__ import annotations

import mmap
import os
import queue
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge import capture
from edge.capture import Capture
from edge.config import SensorSettings
from edge.framing import HEAD, receive, send, unnamed_memory
from edge.sensors import isolated
from edge.sensors.isolated import Isolated
from edge.sensors.shared import DECODER, MEMORY_BYTES, Run, Writer, taken
from edge.sensors.table import open_sensor
from lineside.clock import NS, SimulatedClock, SystemClock, offset_ns
from lineside.errors import SensorError
from lineside.windows import Samples, Timing
from tests.faults.plant import resources

ROW = SensorSettings(name="vib0", modality="series", source="series", device="rows", rate_hz=1000.0, channels=2)


class Pipe:
    """Both ends of a link in one process."""

    def __init__(self) -> None:
        self.handle = unnamed_memory("lineside-samples", MEMORY_BYTES)
        self.memory = mmap.mmap(self.handle, MEMORY_BYTES)
        self.ours, self.theirs = socket.socketpair()
        self.writer = Writer(self.memory, self.theirs)

    def next(self) -> Samples:
        run = receive(self.ours, DECODER)
        assert isinstance(run, Run)
        return taken(self.memory, run, ROW)


def rows(folder: Path, text: str) -> Isolated:
    """A sensor that reads these lines, in a process."""
    (folder / "rows").write_text(text)
    sensor = open_sensor(ROW, SystemClock(), 0, folder, isolated=True)
    assert isinstance(sensor, Isolated)
    return sensor


def endless(folder: Path) -> Isolated:
    """A sensor with an open pipe behind it into which nobody has written the last row yet."""
    os.mkfifo(folder / "rows")
    writer = os.open(folder / "rows", os.O_RDWR | os.O_NONBLOCK)
    os.write(writer, b"1,2\n" * 100)
    sensor = open_sensor(ROW, SystemClock(), 0, folder, isolated=True)
    assert isinstance(sensor, Isolated)
    return sensor


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


# through shared memory


def test_samples_come_out_as_they_went_in() -> None:
    pipe = Pipe()
    picture = np.random.default_rng(1).integers(0, 255, (2, 48, 64, 3), np.uint8)
    stamps = np.array([NS, 2 * NS], np.int64)
    sent = Samples("vib0", "series", NS, 10.0, picture, stamps, frozenset({"gap"}), Timing(5, 80.0))
    pipe.writer.put(sent, 0)
    got = pipe.next()
    assert np.array_equal(got.data, picture)
    assert (got.start_ns, got.rate_hz, got.flags, got.timing) == (NS, 10.0, frozenset({"gap"}), Timing(5, 80.0))
    assert got.stamps_ns is not None
    assert got.stamps_ns.tolist() == [NS, 2 * NS]


@pytest.mark.slow
@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(0, 24), st.integers(0, 3)), min_size=1, max_size=40))
def test_no_run_is_overwritten_before_it_was_taken(steps: list[tuple[int, int]]) -> None:
    """Runs of 0 to 24 megabytes, and a reader that takes some now and then: each is whole, or counted as dropped."""
    pipe, waiting, lost = Pipe(), [], 0
    data = np.zeros((24_000_000, 1), np.uint8)
    for number, (megabytes, taken_now) in enumerate(steps):
        part = data[: megabytes * 1_000_000]
        part[::1_000_000] = number
        before = pipe.writer.dropped
        pipe.writer.put(Samples("vib0", "series", number, 1.0, part), 0)
        if pipe.writer.dropped == before:
            waiting.append((number, len(part), receive(pipe.ours, DECODER)))
        else:
            lost += len(part)
        for number_then, length, run in waiting[:taken_now]:
            assert isinstance(run, Run)
            got = taken(pipe.memory, run, ROW)
            assert (got.start_ns, len(got.data)) == (number_then, length)
            assert (got.data[::1_000_000] == number_then % 256).all()
        pipe.writer.credited(len(waiting[:taken_now]))
        del waiting[:taken_now]
    assert pipe.writer.dropped == lost
    pipe.memory.close()
    os.close(pipe.handle)


def test_a_reader_that_keeps_up_makes_no_more_of_the_memory_real() -> None:
    pipe = Pipe()
    for number in range(100):
        pipe.writer.put(Samples("vib0", "series", number, 1.0, np.ones((1_000_000, 1), np.uint8)), 0)
        pipe.next()
        pipe.writer.credited(1)
    assert os.fstat(pipe.handle).st_blocks * 512 < 1_100_000


@pytest.mark.parametrize(
    "data", [HEAD.pack(2**31), HEAD.pack(3) + b"abc", HEAD.pack(1) + b"\x90", HEAD.pack(9) + b"\x81\xa4type\xa1"]
)
def test_bytes_that_are_no_message_are_refused(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(data)
    theirs.close()
    with pytest.raises((ValueError, EOFError)):
        receive(ours, DECODER)


def test_a_header_that_points_beyond_the_memory_is_refused() -> None:
    pipe = Pipe()
    for place, shape in ((MEMORY_BYTES - 4, (2, 1)), (-8, (1, 1)), (0, (-1, 4))):
        send(pipe.theirs, Run(0, 1.0, "<f4", shape, place, (), None, None, 0))
        run = receive(pipe.ours, DECODER)
        assert isinstance(run, Run)
        with pytest.raises(ValueError, match="beyond the memory"):
            taken(pipe.memory, run, ROW)


# the process


def test_what_the_sensor_says_in_its_process_is_said_here(tmp_path: Path) -> None:
    sensor = rows(tmp_path, "1,2\n" * 150 + "1,2,3\n")
    stream = sensor.samples()
    assert next(stream).data.tolist() == [[1.0, 2.0]] * 100
    with pytest.raises(SensorError, match=r"^vib0: line 151 of .* has 3 channels, not 2; set channels = 3"):
        list(stream)
    assert sensor.pid is not None
    assert gone(sensor.pid)


def test_a_finite_source_ends(tmp_path: Path) -> None:
    assert sum(len(run.data) for run in rows(tmp_path, "1,2\n" * 250).samples()) == 250


def test_stamps_are_on_the_clock_of_the_agent_even_when_the_wall_was_set_meanwhile(tmp_path: Path) -> None:
    """The wall clock that the child would read is an hour off the agent's."""
    clock = SystemClock(offset_ns(SystemClock()) - 3600 * NS)
    endless(tmp_path).close()
    sensor = open_sensor(ROW, clock, 0, tmp_path, isolated=True)
    run = next(sensor.samples())
    assert abs(run.end_ns - clock.now_ns()) < 5 * NS
    assert run.timing is not None


def test_a_killed_process_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    sensor = endless(tmp_path)
    stream = sensor.samples()
    next(stream)
    assert sensor.pid is not None
    os.kill(sensor.pid, signal.SIGKILL)
    with pytest.raises(
        SensorError, match=r"^vib0: its capture process ended \(signal 9\); see the log; it begins again"
    ):
        next(stream)
    assert gone(sensor.pid)


def test_a_process_that_hangs_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "GRACE_S", -4.5)  # of a stall of 5 s
    sensor = endless(tmp_path)
    stream = sensor.samples()
    next(stream)
    assert sensor.pid is not None
    os.kill(sensor.pid, signal.SIGSTOP)
    with pytest.raises(SensorError, match=r"gave nothing for 0.5 s and was killed; its driver hangs"):
        next(stream)
    assert gone(sensor.pid)


def test_without_an_agent_the_process_ends(tmp_path: Path) -> None:
    """An agent that dies closes its end of the link without a word."""
    sensor = endless(tmp_path)
    stream = sensor.samples()
    next(stream)
    process = sensor._process
    sensor._process = None
    with pytest.raises(AssertionError):
        stream.close()  # the link is closed, and the kill that belongs to it cannot happen
    assert process is not None
    assert process.wait(60) == 0


def test_close_from_another_thread_ends_a_wait_at_once(tmp_path: Path) -> None:
    sensor = endless(tmp_path)
    stream = sensor.samples()
    next(stream)
    threading.Timer(0.05, sensor.close).start()
    begun = time.monotonic()
    assert list(stream) == []
    assert time.monotonic() - begun < 2


# kept open


def unplugged(folder: Path, cycles: int) -> Capture:
    """A sensor that gives 100 rows and fails, again and again, `cycles` times."""
    made = rows(folder, "1,2\n" * 100 + "broken\n")
    out: queue.Queue[Samples] = queue.Queue(10)
    kept = Capture("vib0", lambda: open_sensor(ROW, made._clock, 0, folder, isolated=True), out)
    kept.start()
    for _ in range(cycles):
        assert len(out.get(timeout=30).data) == 100
    return kept


@pytest.mark.parametrize("cycles", [5, pytest.param(60, marks=pytest.mark.slow)])
def test_unplugging_again_and_again_leaks_nothing(cycles: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "BACKOFF_S", (0.001, 0.001))
    before = resources()
    kept = unplugged(tmp_path, cycles)
    kept.stop()
    assert kept.restarts >= cycles - 1
    assert {name: held for name, held in resources().items() if held > before[name]} == {}


# a real network camera


def camera_at(port: int = 0) -> subprocess.Popen[str]:
    """GStreamer's RTSP server; its first line is the port."""
    command = ["/usr/bin/python3", str(Path(__file__).with_name("rtsp_server.py")), str(port)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


@pytest.fixture
def rtsp() -> Iterator[tuple[subprocess.Popen[str], int]]:
    try:
        server = camera_at()
    except OSError:
        pytest.skip("this system has no Python of its own")
    assert server.stdout is not None
    if not (line := server.stdout.readline()):
        pytest.skip("GStreamer's RTSP server is not installed (gir1.2-gst-rtsp-server-1.0, gstreamer1.0-plugins-good)")
    yield server, int(line)
    server.kill()
    server.wait()


@pytest.mark.slow
@pytest.mark.alone
def test_a_network_camera_that_goes_away_is_back_within_seconds(rtsp: tuple[subprocess.Popen[str], int]) -> None:
    server, port = rtsp
    row = SensorSettings(
        name="cam0", modality="camera", source="camera", device=f"rtsp://127.0.0.1:{port}/cam", stall_s=1.0
    )
    clock, out = SystemClock(), queue.Queue[Samples](1000)
    kept = Capture("cam0", lambda: open_sensor(row, clock, 0, Path(), isolated=True), out)
    kept.start()
    first = out.get(timeout=60)
    assert first.data.shape == (1, 240, 320, 3)
    assert -0.1 * NS < clock.now_ns() - first.start_ns < 2 * NS
    server.kill()
    server.wait()
    deadline = time.monotonic() + 15
    while not kept.problem and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "cam0: " in kept.problem
    while not out.empty():
        out.get_nowait()
    again, begun = camera_at(port), time.monotonic()
    assert out.get(timeout=60).data.shape == (1, 240, 320, 3)
    assert time.monotonic() - begun < 10  # that it takes less than five is measured by `make faults`
    assert kept.problem == ""
    kept.stop()
    again.kill()
    again.wait()


def test_a_simulated_sensor_needs_no_process(tmp_path: Path) -> None:
    row = SensorSettings(name="cam0", modality="camera", source="simulation")
    sensor = open_sensor(row, SimulatedClock(), 0, tmp_path, isolated=True)
    assert not isinstance(sensor, Isolated)
    assert len(list(islice(sensor.samples(), 2))) == 2

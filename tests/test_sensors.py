"""Every source of samples keeps the same promises, on real parts: files, HTTP, pipes, PortAudio over ALSA."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice, pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from bench.real_sensors import fifo_microphone
from edge.config import SensorSettings
from edge.sensors.camera import Camera, Thinned
from edge.sensors.inbox import Inbox
from edge.sensors.series import Series
from edge.sensors.table import SENSORS, open_sensor
from lineside.clock import NS, Clock, SimulatedClock, SystemClock
from lineside.errors import SensorError
from lineside.recording import About, Recorder
from lineside.windows import Samples, moments

START_NS = 1_700_000_000 * NS


def picture(k: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A picture whose grey level is 10 times its number."""
    return np.full((height, width, 3), 10 * k % 250, np.uint8)


def video(path: Path, frames: int = 20, rate: int = 20) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for k in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(k), format="rgb24")))
        container.mux(stream.encode(None))
    return path


def recording(path: Path, seconds: int = 3) -> Path:
    """cam0 (4 Hz), mic0 (16 kHz) and vib0; picture and sound both carry the number of their second."""
    about = About(sensors={"cam0": "camera", "mic0": "microphone", "vib0": "series"})
    with Recorder(path, about, image="png") as recorder:
        for k in range(seconds):
            at_ns = START_NS + k * NS
            for quarter in range(4):
                stamp = np.array([at_ns + quarter * NS // 4], np.int64)
                recorder.write(Samples("cam0", "camera", int(stamp[0]), 4.0, picture(k + 1)[None], stamp))
                sound = np.full(4_000, k + 1, np.int16)
                recorder.write(Samples("mic0", "microphone", int(stamp[0]), 16_000.0, sound))
            recorder.write(Samples("vib0", "series", at_ns, 10.0, np.full((10, 3), k, np.float32)))
    return path


def camera_row(folder: Path) -> SensorSettings:
    return SensorSettings(name="cam0", modality="camera", source="camera", device=video(folder / "line.mp4").name)


def series_row(folder: Path) -> SensorSettings:
    (folder / "vib.csv").write_text("time,x,y\n" + "".join(f"{k},{k},{-k}\n" for k in range(40)))
    return SensorSettings(name="vib0", modality="series", source="series", device="vib.csv", rate_hz=20, channels=2)


def replay_row(folder: Path) -> SensorSettings:
    recording(folder / "line.mcap")
    return SensorSettings(name="ear", modality="microphone", source="replay", device="line.mcap", recorded="mic0")


def simulation_row(folder: Path) -> SensorSettings:
    return SensorSettings(name="cam0", modality="camera", source="simulation")


def microphone_row(folder: Path) -> SensorSettings:
    return SensorSettings(name="mic0", modality="microphone", source="microphone", device="filemic")


ROWS: dict[str, Callable[[Path], SensorSettings]] = {
    "camera": camera_row,
    "microphone": microphone_row,
    "series": series_row,
    "replay": replay_row,
    "simulation": simulation_row,
}


def keeps_promises(settings: SensorSettings, clock: Clock, folder: Path, isolated: bool = False) -> None:
    """Samples rise in time, have the promised type and shape, and `close` from another thread ends them soon."""
    origin_ns = clock.now_ns()
    sensor = open_sensor(settings, clock, origin_ns, folder, isolated=isolated)
    stream = sensor.samples()
    runs = list(islice(stream, 5))
    sensor.close()
    stream.close()
    assert len(runs) == 5
    for run in runs:
        assert (run.sensor, run.modality) == (settings.name, settings.modality)
        assert len(run.data) > 0
        assert run.rate_hz > 0
        if run.modality == "camera":
            assert run.data.dtype == np.uint8
            assert run.data.shape[3] == 3
            assert run.stamps_ns is not None
            assert len(run.stamps_ns) == len(run.data)
        elif run.modality == "microphone":
            assert (run.data.dtype, run.data.ndim) == (np.int16, 1)
        else:
            assert (run.data.dtype, run.data.shape[1]) == (np.float32, settings.channels)
    starts = [run.start_ns for run in runs]
    assert starts == sorted(set(starts))
    assert origin_ns - NS < starts[0] < origin_ns + 3 * NS

    sensor = open_sensor(settings, clock, clock.now_ns(), folder, isolated=isolated)
    stream = sensor.samples()
    next(stream)
    threading.Timer(0.05, sensor.close).start()
    begun = time.monotonic()
    for _ in stream:
        pass
    assert time.monotonic() - begun < 2.0


def test_every_row_of_the_table_is_tested() -> None:
    assert set(ROWS) == set(SENSORS)


@pytest.mark.slow
@pytest.mark.parametrize("source", sorted(set(ROWS) - {"microphone"}))
def test_sensor_keeps_its_promises(source: str, tmp_path: Path) -> None:
    keeps_promises(ROWS[source](tmp_path), SystemClock(), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("source", sorted(name for name, row in SENSORS.items() if row.driver and name != "microphone"))
def test_a_sensor_in_a_process_of_its_own_keeps_the_same_promises(source: str, tmp_path: Path) -> None:
    keeps_promises(ROWS[source](tmp_path), SystemClock(), tmp_path, isolated=True)


MISSING = {
    "camera": ({"device": "97"}, "/dev/video97 \\(no such device\\); is it plugged in and free\\? run `lineside edge"),
    "series": ({"device": "no.csv", "rate_hz": 5.0}, "no.csv \\(no such file or directory\\); give a CSV file"),
    "replay": ({"device": "no.mcap"}, "cannot be read \\(No such file or directory\\)"),
    "simulation": ({"product": "z"}, "makes no product 'z'; choose one of a, b"),
}


@pytest.mark.parametrize("source", sorted(MISSING))
def test_a_missing_source_is_told_with_its_mend(source: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    changes, words = MISSING[source]
    modality = "series" if source == "series" else "camera"
    settings = SensorSettings(name="s0", modality=modality, source=source, **changes)
    with pytest.raises(SensorError, match=f"^s0: .*{words}"):
        next(open_sensor(settings, SimulatedClock(), 0, tmp_path).samples())
    assert capfd.readouterr().err == ""  # no chatter of libraries beside our one line


# camera


def test_a_video_file_is_paced_by_its_own_rate(tmp_path: Path) -> None:
    clock = SimulatedClock(START_NS)
    runs = list(open_sensor(camera_row(tmp_path), clock, START_NS, tmp_path).samples())
    assert len(runs) == 20
    assert [run.start_ns - START_NS for run in runs[:3]] == [0, NS // 20, NS // 10]
    assert clock.now_ns() - START_NS >= 0.9 * NS
    assert abs(float(runs[7].data.mean()) - 70) < 5


def test_camera_frames_are_thinned_and_scaled_as_asked(tmp_path: Path) -> None:
    device = video(tmp_path / "line.mp4").name
    settings = SensorSettings(name="c", modality="camera", source="camera", device=device, rate_hz=5.0, width=32)
    runs = list(open_sensor(settings, SimulatedClock(), 0, tmp_path).samples())
    assert (len(runs), runs[0].rate_hz, runs[0].data.shape) == (5, 5.0, (1, 24, 32, 3))


def test_thinning_survives_frames_that_come_irregularly() -> None:
    thinned = Thinned(10.0)
    rng = np.random.default_rng(1)
    stamps = np.cumsum(rng.uniform(0.02, 0.05, 600) * NS).astype(int)
    taken = sum(thinned.takes(int(stamp)) for stamp in stamps)
    assert taken / (stamps[-1] / NS) == pytest.approx(10.0, rel=0.05)


@pytest.mark.parametrize("name", ["notes.mp4", "missing.mp4"])
def test_a_file_that_is_no_video_is_refused(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.mp4").write_text("this is no video\n" * 100)
    settings = SensorSettings(name="c", modality="camera", source="camera", device=name)
    with pytest.raises(SensorError, match=r"cannot (open|read)"):
        next(open_sensor(settings, SystemClock(), 0, tmp_path).samples())
    assert capfd.readouterr().err == ""


class MotionJpeg(BaseHTTPRequestHandler):
    """A network camera: about 50 pictures a second, `limit` of them, and then nothing more."""

    limit = 10_000

    def log_message(self, *words: object) -> None:
        pass

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=F")
        self.end_headers()
        try:
            for k in range(self.limit):
                data = cv2.imencode(".jpg", picture(k))[1].tobytes()
                head = b"--F\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(data)
                self.wfile.write(head + data + b"\r\n")
                time.sleep(0.02)
            time.sleep(3.0)
        except (BrokenPipeError, ConnectionResetError):
            pass


@pytest.fixture
def network_camera() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), MotionJpeg)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://user:secret@127.0.0.1:{server.server_address[1]}/cam.mjpg"
    server.shutdown()
    server.server_close()


def http_camera(url: str, **more: float) -> SensorSettings:
    return SensorSettings(name="cam0", modality="camera", source="camera", device=url, **more)


def test_a_network_camera_streams_and_closes(network_camera: str, tmp_path: Path) -> None:
    keeps_promises(http_camera(network_camera), SystemClock(), tmp_path)


@pytest.mark.slow
@pytest.mark.alone
def test_a_live_camera_stamps_on_arrival_at_the_measured_rate(network_camera: str, tmp_path: Path) -> None:
    clock = SystemClock()
    sensor = open_sensor(http_camera(network_camera), clock, 0, tmp_path)
    for run in islice(sensor.samples(), 40):
        assert 0 <= clock.now_ns() - run.start_ns < 0.5 * NS
    sensor.close()
    assert 15 < run.rate_hz < 60  # the server gives just under 50; FFmpeg would say 25


@pytest.mark.alone
def test_a_camera_whose_frames_stop_raises(
    network_camera: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MotionJpeg, "limit", 10)
    sensor = open_sensor(http_camera(network_camera, stall_s=0.5), SystemClock(), 0, tmp_path)
    begun = time.monotonic()
    with pytest.raises(SensorError, match=r"cam0: (nothing came for 0.5 s|the camera stopped giving frames)"):
        list(sensor.samples())
    assert time.monotonic() - begun < 3
    sensor.close()


def test_a_network_camera_that_is_not_there_is_told_without_its_password(tmp_path: Path) -> None:
    sensor = Camera(http_camera("http://user:secret@127.0.0.1:9/x", stall_s=1.0), SystemClock(), 0, tmp_path)
    with pytest.raises(SensorError, match=r"cannot open http://127.0.0.1:9/x") as caught:
        next(sensor.samples())
    assert "secret" not in str(caught.value)


def test_gstreamer_is_opened_or_named_as_missing(tmp_path: Path) -> None:
    sensor = open_sensor(http_camera("videotestsrc ! videoconvert ! appsink"), SystemClock(), 0, tmp_path)
    if cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER):
        assert next(sensor.samples()).data.dtype == np.uint8
        sensor.close()
    else:
        with pytest.raises(SensorError, match="this OpenCV has no GStreamer; use JetPack's OpenCV"):
            next(sensor.samples())


# between a driver and its reader


def test_a_full_inbox_counts_what_it_drops_and_fails_after_the_rest() -> None:
    inbox: Inbox[int] = Inbox("s", 2)
    assert [inbox.put(k) for k in range(4)] == [True, True, False, False]
    inbox.fail(SensorError("s", "gone", "plug it in"))
    items = inbox.items(stall_s=5.0, first_s=5.0, mend="-")
    assert [next(items), next(items), inbox.dropped] == [0, 1, 2]
    with pytest.raises(SensorError, match="gone"):
        next(items)


def test_silence_of_a_driver_is_an_error() -> None:
    with pytest.raises(SensorError, match=r"s: nothing came for 0.05 s; plug it in"):
        next(Inbox[int]("s", 2).items(stall_s=0.05, first_s=0.05, mend="plug it in"))


# series


def series(folder: Path, text: str, **more: float) -> Series:
    (folder / "s.csv").write_text(text)
    settings = SensorSettings(name="s0", modality="series", source="series", device="s.csv", **{"rate_hz": 10.0} | more)
    return Series(settings, SimulatedClock(), 0, folder)


def test_a_bad_value_becomes_nan_and_is_counted(tmp_path: Path) -> None:
    sensor = series(tmp_path, "a,b\n1,2\n3,OVERLOAD\n,\n5,6\n", channels=2)
    data = np.concatenate([run.data for run in sensor.samples()])
    np.testing.assert_array_equal(data, np.array([[1, 2], [3, np.nan], [np.nan, np.nan], [5, 6]], np.float32))
    assert sensor.bad_values == 3


def test_a_row_with_another_number_of_channels_names_its_line(tmp_path: Path) -> None:
    with pytest.raises(SensorError, match=r"line 3 of .*s.csv has 3 channels, not 2; set channels = 3"):
        list(series(tmp_path, "1,2\n3,4\n5,6,7\n", channels=2).samples())


def test_a_series_without_a_rate_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SensorError, match="has no rate_hz"):
        next(series(tmp_path, "1\n", rate_hz=0.0).samples())


def test_close_ends_a_long_wait(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("1\n2\n")
    settings = SensorSettings(name="s0", modality="series", source="series", device="s.csv", rate_hz=0.1)
    sensor = open_sensor(settings, clock := SystemClock(), clock.now_ns(), tmp_path)
    threading.Timer(0.2, sensor.close).start()
    begun = time.monotonic()
    assert list(sensor.samples()) == []
    assert time.monotonic() - begun < 2.0


@pytest.mark.slow
def test_a_named_pipe_is_read_live_across_writers_and_stalls_are_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    settings = SensorSettings(
        name="s0", modality="series", source="series", device="pipe", rate_hz=50, channels=2, stall_s=2.0
    )
    sensor = open_sensor(settings, SystemClock(), 0, tmp_path)

    def write() -> None:
        for writer in range(2):
            with (tmp_path / "pipe").open("w") as pipe:
                for k in range(25):
                    print(f"{writer},{k}", file=pipe, flush=True)
                    time.sleep(0.02)

    threading.Thread(target=write, daemon=True).start()
    runs: list[Samples] = []
    with pytest.raises(SensorError, match=r"s0: no row from .*pipe for 2 s; does the program that writes to it run"):
        runs.extend(run for run in sensor.samples())
    data = np.concatenate([run.data for run in runs])
    assert data.tolist() == [[w, k] for w in range(2) for k in range(25)]


# replay


def replayed(folder: Path, name: str, modality: str, origin_ns: int, **more: float) -> Iterator[Samples]:
    settings = SensorSettings(name=name, modality=modality, source="replay", device="line.mcap", **more)
    return open_sensor(settings, SimulatedClock(origin_ns), origin_ns, folder).samples()


def test_replayed_sensors_stay_aligned_over_many_passes(tmp_path: Path) -> None:
    recording(tmp_path / "line.mcap")
    origin_ns = 1_800_000_000 * NS + 123_456_789
    both = [islice(replayed(tmp_path, "cam0", "camera", origin_ns), 40)]
    both.append(islice(replayed(tmp_path, "mic0", "microphone", origin_ns), 40))
    stream = sorted((run for sensor in both for run in sensor), key=lambda run: run.start_ns)
    found = [
        (int(moment.windows["cam0"].data[0].mean()) // 10, int(moment.windows["mic0"].data[0]))
        for moment in moments(stream, ("cam0", "mic0"), NS, NS)
        if not moment.windows["mic0"].flags
    ]
    assert found[:9] == [(k, k) for k in (1, 2, 3)] * 3
    assert origin_ns <= stream[0].start_ns < origin_ns + NS


def test_a_replay_begins_where_it_is_told_and_goes_round(tmp_path: Path) -> None:
    recording(tmp_path / "line.mcap")
    origin_ns = 1_800_000_000 * NS + 123_456_789
    runs = list(islice(replayed(tmp_path, "vib0", "series", origin_ns, from_s=1.0), 5))
    assert [float(run.data[0, 0]) for run in runs] == [1.0, 2.0, 0.0, 1.0, 2.0]
    assert origin_ns <= runs[0].start_ns < origin_ns + NS
    assert {b.start_ns - a.end_ns for a, b in pairwise(runs)} == {0}
    with pytest.raises(SensorError, match=r"lasts 3 s, it cannot begin at 3 s; lower from_s in \[\[sensors\]\]"):
        next(replayed(tmp_path, "vib0", "series", 0, from_s=3.0))


def test_a_replay_without_loop_ends(tmp_path: Path) -> None:
    recording(tmp_path / "line.mcap")
    runs = list(replayed(tmp_path, "vib0", "series", 0, loop=False))
    assert [float(run.data[0, 0]) for run in runs] == [0.0, 1.0, 2.0]


def test_a_loop_has_no_hole_where_the_recording_ends_in_the_middle_of_a_second(tmp_path: Path) -> None:
    with Recorder(tmp_path / "line.mcap", About(sensors={"mic0": "microphone"})) as recorder:
        for k in range(25):
            sound = np.full(1_600, k, np.int16)
            recorder.write(Samples("mic0", "microphone", START_NS + k * NS // 10, 16_000.0, sound))
    runs = list(islice(replayed(tmp_path, "mic0", "microphone", 0), 45))
    assert {b.start_ns - a.end_ns for a, b in pairwise(runs)} == {0}
    assert [int(run.data[0]) for run in runs[18:22]] == [18, 19, 0, 1]


def test_a_sensor_that_the_recording_lacks_is_told_with_those_it_has(tmp_path: Path) -> None:
    recording(tmp_path / "line.mcap")
    with pytest.raises(SensorError, match="has no sensor 'cam7'; set `recorded` to one of: cam0, mic0, vib0"):
        next(replayed(tmp_path, "cam7", "camera", 0))
    with pytest.raises(SensorError, match=r"mic0 in .* is a microphone; set modality = 'microphone'"):
        next(replayed(tmp_path, "mic0", "camera", 0))


# microphone


def hear(folder: Path) -> None:
    """What the microphone's test does in a process of its own, since PortAudio reads ALSA's files only once."""
    ramp = (np.arange(48_000) % 30_000 + 1).astype(np.int16)
    fifo_microphone(folder, ramp, 1_600)
    settings, clock = microphone_row(folder), SystemClock()
    sensor = open_sensor(settings, clock, clock.now_ns(), folder)
    runs = list(islice(sensor.samples(), 20))
    late_s = [(clock.now_ns() - runs[-1].end_ns) / NS]
    sensor.close()
    sound = np.concatenate([run.data for run in runs]).astype(int)
    first = int(np.argmax(sound > 0))
    exact = ramp[sound[first] - 1 :][: len(sound) - first].astype(int)
    assert np.array_equal(sound[first : first + len(exact)], exact), "samples are those of the file"
    steps = np.diff([run.start_ns for run in runs]) / NS
    assert np.abs(steps - 0.1).max() < 0.01, steps
    assert -0.2 < late_s[0] < 1.0, late_s
    keeps_promises(settings, clock, folder)
    keeps_promises(settings, clock, folder, isolated=True)
    refused = SensorSettings(name="mic0", modality="microphone", source="microphone", device="no such thing")
    with pytest.raises(SensorError, match=r"cannot open no such thing at 16000 Hz .*; inputs are .*filemic"):
        next(open_sensor(refused, clock, 0, folder).samples())
    print("heard")


@pytest.mark.slow
def test_a_microphone_through_portaudio_keeps_its_promises(tmp_path: Path) -> None:
    try:
        found = importlib.util.find_spec("sounddevice") is not None
        assert found
        import sounddevice  # noqa: F401
    except (OSError, AssertionError):
        pytest.skip("PortAudio is not installed (apt-get install libportaudio2)")
    if not Path("/usr/share/alsa/alsa.conf").exists():
        pytest.skip("ALSA's own configuration is not installed (apt-get install libasound2-data)")
    env = os.environ | {"ALSA_CONFIG_PATH": str(tmp_path / "asound.conf"), "HOME": str(tmp_path)}
    command = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.endswith("heard\n"), done.stdout + done.stderr


def test_without_any_sound_input_the_microphone_says_so() -> None:
    code = (
        "from pathlib import Path\nfrom edge.config import SensorSettings\nfrom edge.sensors.table import open_sensor\n"
        "from lineside.clock import SystemClock\n"
        "s = SensorSettings(name='mic0', modality='microphone', source='microphone')\n"
        "next(open_sensor(s, SystemClock(), 0, Path()).samples())\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode == 0:
        pytest.skip("this machine has a sound input")
    last = done.stderr.strip().splitlines()[-1]
    assert "SensorError: mic0: " in last
    assert "no sound input" in last or "apt-get install libportaudio2" in last


if __name__ == "__main__":
    hear(Path(sys.argv[1]))

"""Foreign files become recordings: video with sound, folders, CSV, data sets; bad parts are left out and told."""

from __future__ import annotations

import json
import wave
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from edge import importers
from edge.__main__ import app
from edge.foreign.base import EPOCH_NS
from lineside.clock import NS
from lineside.errors import RecordingError
from lineside.quality import Quality
from lineside.recording import About, Label, Recorder, Recording
from lineside.windows import Moment, Samples, moments

SHARED = Path(__file__).parents[2] / "shared" / "data" / "dev"
FLASH_S = 2.5  # when the picture turns white and the sound begins


def make_video(path: Path, *, seconds: int = 4, rate: int = 25, width: int = 640, sound_hz: int = 44_100) -> Path:
    """A dark, silent film that turns white and loud at FLASH_S; `sound_hz` 0 leaves the sound out."""
    codecs = {".mkv": ("libx264", "pcm_s16le"), ".mp4": ("mpeg4", "aac"), ".avi": ("mjpeg", "pcm_s16le")}[path.suffix]
    with av.open(str(path), "w") as container:
        video = container.add_stream(codecs[0], rate=rate)
        video.width, video.height = width, width * 3 // 4
        video.pix_fmt = "yuvj420p" if codecs[0] == "mjpeg" else "yuv420p"
        sound = container.add_stream(codecs[1], rate=sound_hz, layout="mono") if sound_hz else None
        for k in range(seconds * rate):
            level = 230 if k / rate >= FLASH_S - 1e-9 else 20
            frame = av.VideoFrame.from_ndarray(np.full((video.height, width, 3), level, np.uint8), format="rgb24")
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if sound is not None:
            t = np.arange(seconds * sound_hz) / sound_hz
            tone = np.where(t >= FLASH_S, 9_000 * np.sin(2 * np.pi * 440 * t), 0).astype(np.int16)
            block = av.AudioFrame.from_ndarray(tone[None], format="s16", layout="mono")
            block.sample_rate, block.pts = sound_hz, 0
            fifo = av.AudioFifo()
            fifo.write(block)
            while (part := fifo.read(1024, partial=True)) is not None:
                container.mux(sound.encode(part))
            container.mux(sound.encode(None))
    return path


def wav(path: Path, seconds: float = 2.0, rate_hz: int = 48_000, level: int = 5_000) -> Path:
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    block = av.AudioFrame.from_ndarray((level * np.sin(2 * np.pi * 440 * t)).astype(np.int16)[None], "s16", "mono")
    block.sample_rate = rate_hz
    codec = {".wav": "pcm_s16le", ".flac": "flac"}[path.suffix]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate_hz, layout="mono")
        fifo = av.AudioFifo()
        fifo.write(block)
        while (part := fifo.read(4096, partial=True)) is not None:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path


def frames(folder: Path, count: int = 12, suffix: str = ".jpg") -> Path:
    """Pictures whose grey level is 10 times their number, named without leading zeros."""
    folder.mkdir(exist_ok=True)
    for k in range(count):
        cv2.imwrite(str(folder / f"frame{k}{suffix}"), np.full((60, 80, 3), 10 * k, np.uint8))
    return folder


def imported(source: Path, out: Path, **options: object) -> tuple[importers.Report, Recording]:
    report = importers.import_recording(source, out, **options)
    return report, Recording(out)


def of(recording: Recording, sensor: str) -> list[Samples]:
    return list(recording.samples(sensor))


# video


@pytest.mark.slow
@pytest.mark.parametrize("name", ["film.mp4", "film.mkv", "film.avi"])
def test_a_film_keeps_picture_and_sound_together(name: str, tmp_path: Path) -> None:
    report, recording = imported(make_video(tmp_path / name), tmp_path / "out.mcap")
    pictures, sounds = of(recording, "cam0"), of(recording, "mic0")
    assert report.about.sensors == recording.about.sensors == {"cam0": "camera", "mic0": "microphone"}
    assert report.warnings == []
    assert 38 <= len(pictures) <= 42
    assert pictures[0].data.shape == (1, 240, 320, 3)
    assert {run.rate_hz for run in sounds} == {16_000.0}
    assert report.samples["mic0"] == pytest.approx(64_000, abs=3_000)
    flash_ns = next(run.start_ns for run in pictures if run.data.mean() > 120)
    loud = next(run for run in sounds if np.abs(run.data.astype(int)).max() > 3_000)
    loud_ns = loud.start_ns + int(np.argmax(np.abs(loud.data.astype(int)) > 3_000)) * NS // 16_000
    assert abs(flash_ns - EPOCH_NS - FLASH_S * NS) < 0.12 * NS  # 10 pictures a second
    assert abs(loud_ns - EPOCH_NS - FLASH_S * NS) < 0.04 * NS


def test_the_stream_of_a_film_is_in_order_enough_to_be_joined(tmp_path: Path) -> None:
    found = importers.read(make_video(tmp_path / "film.mp4"))
    assert found.length_s == pytest.approx(4.0, abs=0.1)
    joined = list(moments((run for run in found.stream if isinstance(run, Samples)), ("cam0", "mic0"), NS, NS))
    assert [sorted(moment.windows) for moment in joined[:3]] == [["cam0", "mic0"]] * 3
    assert all(moment.skew_ns < 0.1 * NS for moment in joined[:3])


def test_a_film_without_sound_gives_the_camera_and_says_so(tmp_path: Path) -> None:
    report, recording = imported(make_video(tmp_path / "mute.mp4", sound_hz=0), tmp_path / "out.mcap")
    assert report.about.sensors == recording.about.sensors == {"cam0": "camera"}
    assert report.warnings == ["mute.mp4 has no sound: only the camera is imported"]


def test_a_small_slow_film_is_neither_enlarged_nor_sped_up(tmp_path: Path) -> None:
    _, recording = imported(make_video(tmp_path / "s.mp4", rate=5, width=160), tmp_path / "out.mcap")
    pictures = of(recording, "cam0")
    assert (len(pictures), pictures[0].rate_hz, pictures[0].data.shape) == (20, 5.0, (1, 120, 160, 3))


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_of_a_film_cut_short_the_readable_part_is_used(share: float, tmp_path: Path) -> None:
    data = make_video(tmp_path / "whole.mkv", seconds=6).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: int(share * len(data))])
    report, recording = imported(tmp_path / "cut.mkv", tmp_path / "out.mcap")
    assert report.samples["cam0"] > 0
    assert sum(len(run.data) for run in recording.samples("cam0")) == report.samples["cam0"]


@pytest.mark.slow
@given(place=st.floats(0.02, 0.98), wild=st.binary(min_size=1, max_size=3_000))
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_film_is_read_in_part_or_refused(place: float, wild: bytes, tmp_path: Path) -> None:
    good = tmp_path / "good.avi"
    data = bytearray((good if good.exists() else make_video(good, seconds=3, width=64)).read_bytes())
    at = int(place * len(data))
    data[at : at + len(wild)] = wild
    (tmp_path / "bad.avi").write_bytes(data)
    try:
        report = importers.import_recording(tmp_path / "bad.avi", tmp_path / "out.mcap")
    except RecordingError:
        return
    assert sum(report.samples.values()) > 0
    starts = [run.start_ns for run in Recording(tmp_path / "out.mcap").samples("cam0")]
    assert starts == sorted(set(starts))


def test_a_sound_file_alone_is_a_microphone(tmp_path: Path) -> None:
    report, recording = imported(wav(tmp_path / "press.flac", 2.0), tmp_path / "out.mcap")
    heard = np.concatenate([run.data for run in of(recording, "mic0")]).astype(float)
    assert report.about.sensors == {"mic0": "microphone"}
    assert len(heard) == pytest.approx(32_000, abs=50)
    hz = np.fft.rfftfreq(len(heard), 1 / 16_000)[np.abs(np.fft.rfft(heard)).argmax()]
    assert hz == pytest.approx(440, abs=1)
    assert heard[2_000:-2_000].std() * np.sqrt(2) == pytest.approx(5_000, rel=0.03)


def test_a_hole_in_the_sound_of_a_film_stays_a_hole(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "holed.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        for k in range(40):
            block = av.AudioFrame.from_ndarray(np.full((1, 1_600), 100 * k, np.int16), "s16", "mono")
            block.sample_rate, block.pts = 16_000, 1_600 * (k if k < 20 else k + 30)  # three seconds without sound
            container.mux(stream.encode(block))
    _, recording = imported(tmp_path / "holed.mkv", tmp_path / "out.mcap")
    runs = of(recording, "mic0")
    assert sum(len(run.data) for run in runs) == 64_000
    late = next(run for run in runs if run.data.max() == 2_000)
    assert (late.start_ns - EPOCH_NS) / NS == pytest.approx(5.0, abs=0.002)


def test_a_file_without_a_single_sample_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "empty.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
    with pytest.raises(RecordingError, match=r"empty\.wav"):
        importers.import_recording(tmp_path / "empty.wav", tmp_path / "out.mcap")
    assert [path.name for path in tmp_path.iterdir()] == ["empty.wav"]


# folders


def test_a_folder_with_one_unreadable_file_keeps_time(tmp_path: Path) -> None:
    folder = frames(tmp_path / "shots")
    (folder / "frame5.jpg").write_bytes(b"\xff\xd8 this is no picture")
    wav(folder / "sound.wav", 1.2)
    report, recording = imported(folder, tmp_path / "out.mcap")
    pictures = of(recording, "cam0")
    assert report.warnings == ["frame5.jpg cannot be read as a picture and is left out"]
    assert report.samples["cam0"] == 11
    for run in pictures:
        place = (run.start_ns - EPOCH_NS) / (NS / 10)
        assert abs(run.data.mean() - 10 * place) < 3  # every picture is where its number says, frame9 before frame10
    assert report.samples["mic0"] == pytest.approx(19_200, abs=50)
    assert recording.span_ns()[0] == EPOCH_NS


def test_the_rate_of_a_folder_can_be_given(tmp_path: Path) -> None:
    report, recording = imported(frames(tmp_path / "shots", 8, ".png"), tmp_path / "out.mcap", rate_hz=4.0)
    assert report.seconds == pytest.approx(2.0)
    assert {run.rate_hz for run in of(recording, "cam0")} == {4.0}
    assert report.warnings == ["no sound file beside the pictures: only the camera is imported"]


def test_a_folder_with_a_broken_sound_or_two_still_gives_the_pictures(tmp_path: Path) -> None:
    folder = frames(tmp_path / "shots", 4)
    (folder / "a.wav").write_bytes(b"RIFF no sound")
    wav(folder / "b.wav", 0.3)
    report, recording = imported(folder, tmp_path / "out.mcap")
    assert recording.about.sensors == {"cam0": "camera"}
    assert report.warnings == [
        "b.wav is not used: one sound file is enough",
        "a.wav cannot be read as sound: only the camera is imported",
    ]


def test_pictures_of_another_size_are_fitted(tmp_path: Path) -> None:
    folder = frames(tmp_path / "shots", 3)
    cv2.imwrite(str(folder / "frame1.jpg"), np.full((500, 900, 3), 99, np.uint8))
    _, recording = imported(folder, tmp_path / "out.mcap")
    assert {run.data.shape for run in of(recording, "cam0")} == {(1, 60, 80, 3)}


def test_a_folder_without_any_readable_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "shots").mkdir()
    (tmp_path / "shots" / "a.jpg").write_bytes(b"")
    with pytest.raises(RecordingError, match="has no picture that can be read; give a folder of JPEG or PNG"):
        importers.import_recording(tmp_path / "shots", tmp_path / "out.mcap")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shots"]  # no half recording stays


# series


def series(folder: Path, text: str, **options: float) -> tuple[importers.Report, list[Samples]]:
    (folder / "s.csv").write_text(text)
    report, recording = imported(folder / "s.csv", folder / "out.mcap", **options)
    return report, of(recording, "series0")


@pytest.mark.parametrize(
    ("stamps", "start_ns"),
    [
        (["0.0", "0.1", "0.2", "0.3"], EPOCH_NS),
        (["1700000000.0", "1700000000.1", "1700000000.2", "1700000000.3"], 1_700_000_000 * NS),
        (["1700000000000", "1700000000100", "1700000000200", "1700000000300"], 1_700_000_000 * NS),
        (
            [
                "2024-05-01T10:00:00Z",
                "2024-05-01T10:00:00.100Z",
                "2024-05-01T10:00:00.200Z",
                "2024-05-01T10:00:00.300Z",
            ],
            None,
        ),
    ],
)
def test_the_rate_of_a_series_comes_from_its_time_column(
    stamps: list[str], start_ns: int | None, tmp_path: Path
) -> None:
    text = "timestamp,x,y\n" + "".join(f"{stamp},{k},{-k}\n" for k, stamp in enumerate(stamps))
    report, (run,) = series(tmp_path, text)
    assert run.rate_hz == pytest.approx(10.0, rel=1e-3)
    assert run.data.tolist() == [[k, -k] for k in range(4)]
    assert abs(run.start_ns - (start_ns or 1_714_557_600 * NS)) < 1_000
    assert "x, y" in report.about.source


def test_a_hole_in_the_time_column_stays_a_hole(tmp_path: Path) -> None:
    text = "time;x\n" + "".join(f"{t};1\n" for t in (0, 1, 2, 7, 8))
    _, runs = series(tmp_path, text)
    assert [((run.start_ns - EPOCH_NS) // NS, len(run.data)) for run in runs] == [(0, 3), (7, 2)]


def test_a_series_without_time_needs_a_rate(tmp_path: Path) -> None:
    _, runs = series(tmp_path, "x\n1\n2\n3\n", rate_hz=50.0)
    assert [(run.rate_hz, run.data[:, 0].tolist()) for run in runs] == [(50.0, [1, 2, 3])]
    for text in ("x\n1\n2\n3\n", "time,x\n0,1\n0,2\n", "time,x\nnoon,1\none,2\n"):
        with pytest.raises(RecordingError, match=r"time column.*; give a CSV file with a header, numbers"):
            series(tmp_path, text)


def test_bad_cells_rows_and_columns_are_told_and_the_rest_is_used(tmp_path: Path) -> None:
    report, (run,) = series(tmp_path, "time,x,note\n0,1,ok\n1,NaN,ok\n2,3\n3,4,bad\n")
    np.testing.assert_array_equal(run.data, np.array([[1], [np.nan], [np.nan], [4]], np.float32))
    assert report.warnings == [
        "1 rows have another number of columns than the header; their values are not used",
        "column 'note' has no numbers and is left out",
        "2 values are not numbers and are kept as such",
    ]


@given(text=st.text(alphabet='0123456789.,;-eE+\n\t xntimeNaN"', max_size=200), rate_hz=st.sampled_from([0.0, 10.0]))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_wild_table_is_read_or_refused(text: str, rate_hz: float, tmp_path: Path) -> None:
    try:
        _, runs = series(tmp_path, text, rate_hz=rate_hz)
    except RecordingError as error:
        assert error.reason  # noqa: PT017
        return
    assert all(run.data.dtype == np.float32 and run.data.ndim == 2 and run.rate_hz > 0 for run in runs)


@pytest.mark.parametrize(
    ("labels", "faults"),
    [
        ("normal leak crack", "leak crack"),
        ("good scratch", "scratch"),
        ("0 1 -1", "1 -1"),
        ("0 1 2", ""),
        ("dog rain", ""),
    ],
)
def test_a_manifest_tells_which_of_its_labels_are_faults(labels: str, faults: str, tmp_path: Path) -> None:
    frames(tmp_path / "shots")
    rows = [f"frame{k}.jpg,{label}" for k, label in enumerate(labels.split())]
    (tmp_path / "shots" / "manifest.csv").write_text("\n".join(["file,label", *rows]))
    _, recording = imported(tmp_path / "shots", tmp_path / "out.mcap")
    assert {label.label for label in recording.labels() if label.fault} == set(faults.split())


# recordings, and what is nothing


def test_a_cut_recording_is_imported_as_far_as_it_goes(tmp_path: Path) -> None:
    noise = np.random.default_rng(1)
    with Recorder(tmp_path / "whole.mcap", About(station="press-3", sensors={"mic0": "microphone"})) as recorder:
        recorder.label(Label(0, NS, "normal"))
        for k in range(30):
            recorder.write(Samples("mic0", "microphone", k * NS, 16_000.0, noise.integers(-99, 99, 16_000, np.int16)))
    data = (tmp_path / "whole.mcap").read_bytes()
    (tmp_path / "cut.mcap").write_bytes(data[: len(data) * 3 // 4])
    report, recording = imported(tmp_path / "cut.mcap", tmp_path / "out.mcap")
    assert 12 * 16_000 < report.samples["mic0"] < 30 * 16_000
    assert len(report.warnings) == 1
    assert "cut.mcap is damaged or cut short" in report.warnings[0]
    assert recording.about.station == "press-3"
    assert [label.label for label in recording.labels()] == ["normal"]
    assert (list(recording.samples()), recording.problem)[1] == ""


@pytest.mark.parametrize("name", ["notes.txt", "empty", "film.mp4", "none.mcap", "bad.mcap"])
def test_anything_else_is_refused_with_what_is_accepted(name: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    (tmp_path / "film.mp4").write_text("no film")
    (tmp_path / "bad.mcap").write_text("no recording")
    with pytest.raises(RecordingError) as caught:
        importers.import_recording(tmp_path / name, tmp_path / "out.mcap")
    assert name in caught.value.thing
    if name in ("notes.txt", "empty"):
        assert all(importer.name in caught.value.mend for importer in importers.IMPORTERS)
    assert not (tmp_path / "out.mcap").exists()


def test_progress_is_told_up_to_the_whole(tmp_path: Path) -> None:
    told: list[tuple[float, float]] = []
    importers.import_recording(frames(tmp_path / "shots"), tmp_path / "out.mcap", lambda *done: told.append(done))
    assert len(told) == 12
    assert told[-1] == pytest.approx((1.2, 1.2))


# the data sets

SETS = {
    "av_digits": ({"cam0": "camera", "mic0": "microphone"}, set("0123456789")),
    "esc10_sound": ({"mic0": "microphone"}, {"rain", "chainsaw", "helicopter"}),
    "fan_vibration": ({"vib0": "series"}, {"normal", "anomaly"}),
    "skab_pump": ({"pump0": "series"}, {"normal", "valve1", "valve2", "other"}),
    "solar_cells": ({"cam0": "camera"}, {"0", "1"}),
    "ballscrew_camera": ({"cam0": "camera"}, {"0", "1"}),
    "milling_multiview_mini": ({"tool": "camera", "chip": "camera", "work": "camera"}, {"sharp", "used", "dulled"}),
}
FAULTS = {
    "fan_vibration": {"anomaly"},
    "skab_pump": {"valve1", "valve2", "other"},
    "solar_cells": {"1"},
    "ballscrew_camera": {"1"},
    "milling_multiview_mini": {"dulled"},
}
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the recordings under ../shared are not here")


def joined(recording: Recording) -> list[Moment]:
    about = recording.about
    sensors = tuple(about.sensors)
    return list(moments(recording.samples(), sensors, round(about.length_s * NS), round(about.hop_s * NS)))


@needs_shared
@pytest.mark.shared
@pytest.mark.parametrize("name", sorted(SETS))
def test_every_data_set_gives_labelled_windows_of_good_quality(name: str, tmp_path: Path) -> None:
    limit = 0 if name in ("skab_pump", "milling_multiview_mini") else 40
    report, recording = imported(SHARED / name, tmp_path / "out.mcap", limit=limit)
    sensors, labels = SETS[name]
    assert report.about.sensors == recording.about.sensors == sensors
    assert report.warnings == []
    assert labels <= {label.label for label in recording.labels()}
    assert {label.label for label in recording.labels() if label.fault} & labels == FAULTS.get(name, set())
    quality, found = Quality(), joined(recording)
    assert len(found) >= 20
    flagged = sum(bool(quality.flags(window)) for moment in found for window in moment.windows.values())
    assert flagged <= 0.05 * sum(len(moment.windows) for moment in found)


@needs_shared
@pytest.mark.shared
def test_a_digit_is_shown_and_spoken_in_the_same_second(tmp_path: Path) -> None:
    report, recording = imported(SHARED / "av_digits", tmp_path / "out.mcap", split="test", limit=60)
    found, labels = joined(recording), recording.labels()
    assert [label.start_ns for label in labels] == [moment.start_ns for moment in found] != []
    assert (report.samples, report.seconds) == ({"cam0": 240, "mic0": 960_000}, 60.0)
    for moment in found:
        assert moment.windows["cam0"].data.shape == (4, 96, 96, 3)
        assert len(moment.windows["mic0"].data) == 16_000
        assert np.abs(moment.windows["mic0"].data.astype(int)).max() > 300
        assert not np.any(np.all(moment.windows["mic0"].data.reshape(160, 100) == 0, axis=1))  # never digital silence
        assert not np.array_equal(moment.windows["cam0"].data[0], moment.windows["cam0"].data[1])
    per_digit: dict[str, list[np.ndarray]] = {}
    for label, moment in zip(labels, found, strict=True):
        per_digit.setdefault(label.label, []).append(moment.windows["cam0"].data[0].astype(float).mean(axis=2))
    ones, zeros = (np.mean(per_digit[digit], axis=0) for digit in "10")
    assert zeros[44:52, 44:52].mean() < ones[44:52, 44:52].mean()  # a nought is empty in the middle


@needs_shared
@pytest.mark.shared
def test_views_of_one_step_go_from_import_to_a_trained_stage(tmp_path: Path) -> None:
    """A smoke test: 20 samples say nothing about accuracy. One encoder serves three cameras."""
    pytest.importorskip("torch")
    from trainer.__main__ import app as train

    imported(SHARED / "milling_multiview_mini", tmp_path / "milling.mcap")
    (tmp_path / "plan.toml").write_text(
        'out = "stage"\nepochs = 2\nbatch = 4\npairs = [["tool", "chip"], ["work", "tool"]]\n'
        '[[recordings]]\npath = "milling.mcap"\n[gates]\nretrieval_times_chance = 0\nspread = 1.0\n'
    )
    done = CliRunner().invoke(train, ["stage", str(tmp_path / "plan.toml"), "--json"])
    assert done.exit_code == 0, done.output
    stage = json.loads((tmp_path / "stage" / "stage.json").read_bytes())
    assert stage["sensors"] == {"tool": "camera", "chip": "camera", "work": "camera"}
    terms = (tmp_path / "stage" / "log.csv").read_text()
    assert "tool+chip=" in terms
    assert "tool+work=" in terms
    assert "chip+work=" not in terms


@needs_shared
@pytest.mark.shared
def test_a_split_that_is_not_there_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="has no split 'holdout'; choose one of: test, train, val"):
        importers.read(SHARED / "av_digits", split="holdout")


def test_the_command_keeps_the_rate_that_a_series_says_of_itself(tmp_path: Path) -> None:
    rows = "".join(f"{i / 100},{i % 7}\n" for i in range(500))
    (tmp_path / "vibration.csv").write_text(f"time,x\n{rows}")
    words = ["record", "--from", str(tmp_path / "vibration.csv"), "--out", str(tmp_path / "v.mcap"), "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.splitlines()[-1])["seconds"] == pytest.approx(5.0, abs=0.02)

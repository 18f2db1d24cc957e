"""Recordings: what was written is read back, also from a file that was cut or damaged anywhere."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mcap.reader import make_reader

from lineside.clock import NS
from lineside.errors import RecordingError
from lineside.recording import About, Label, Recorder, Recording, without_faults
from lineside.windows import Samples

START_NS = 1_700_000_000 * NS + 123_456_789
SENSORS = {"cam0": "camera", "mic0": "microphone", "vib0": "series"}
ABOUT = About(station="press-3", source="test", sensors=SENSORS, length_s=2.0, hop_s=1.0)


def stream(seconds: int) -> list[Samples]:
    """A second of each sensor at a time; noisy sound, so that chunks fill as they do in life."""
    rng, out = np.random.default_rng(1), []
    for k in range(seconds):
        at_ns = START_NS + k * NS
        frames = rng.integers(0, 256, (2, 12, 16, 3), np.uint8)
        stamps = np.array([at_ns, at_ns + NS // 2], np.int64)
        out.append(Samples("cam0", "camera", at_ns, 2.0, frames, stamps, frozenset({"gap"} if k == 1 else ())))
        out.append(Samples("mic0", "microphone", at_ns, 16_000.0, rng.integers(-9_000, 9_000, 16_000, np.int16)))
        values = rng.normal(size=(5, 3)).astype(np.float32)
        values[2, 1] = np.nan
        out.append(Samples("vib0", "series", at_ns, 5.0, values))
    return out


def written(path: Path, seconds: int = 3, labels: int = 2) -> Path:
    with Recorder(path, ABOUT, image="png") as recorder:
        for samples in stream(seconds):
            recorder.write(samples)
        for k in reversed(range(labels)):
            recorder.label(Label(START_NS + k * NS, START_NS + (k + 1) * NS, f"state {k}"))
    return path


def single(runs: list[Samples]) -> list[tuple[str, int, float, frozenset[str], bytes]]:
    """Runs as comparable values, cameras frame by frame, which is how they are stored."""
    out = []
    for run in runs:
        pieces = [(run.start_ns, run.data)]
        if run.stamps_ns is not None:
            pieces = [(int(stamp), run.data[k : k + 1]) for k, stamp in enumerate(run.stamps_ns)]
        out += [(run.sensor, at_ns, run.rate_hz, run.flags, data.tobytes()) for at_ns, data in pieces]
    return out


def test_what_was_written_is_read_back_exactly(tmp_path: Path) -> None:
    recording = Recording(written(tmp_path / "r.mcap"))
    read = list(recording.samples())
    assert single(read) == single(stream(3))
    assert {(run.modality, run.data.dtype, run.data.ndim) for run in read} == {
        ("camera", np.dtype(np.uint8), 4),
        ("microphone", np.dtype(np.int16), 1),
        ("series", np.dtype(np.float32), 2),
    }
    assert recording.about == ABOUT
    assert [label.label for label in recording.labels()] == ["state 0", "state 1"]
    assert recording.span_ns() == (START_NS, START_NS + 3 * NS)
    assert recording.problem == ""


def test_one_sensor_can_be_read_alone(tmp_path: Path) -> None:
    recording = Recording(written(tmp_path / "r.mcap"))
    assert {run.sensor for run in recording.samples("mic0")} == {"mic0"}
    assert sum(len(run.data) for run in recording.samples("mic0")) == 48_000
    assert list(recording.samples("nobody")) == []


def test_jpeg_is_close_and_smaller(tmp_path: Path) -> None:
    scene = cv2.GaussianBlur(np.random.default_rng(1).integers(0, 256, (60, 80, 3), np.uint8), (9, 9), 0)
    run = Samples("cam0", "camera", START_NS, 1.0, scene[None], np.array([START_NS], np.int64))
    for image in ("jpeg", "png"):
        with Recorder(tmp_path / image, ABOUT, image=image) as recorder:
            recorder.write(run)
    (read,) = Recording(tmp_path / "jpeg").samples()
    assert np.abs(read.data.astype(int) - run.data).mean() < 4
    assert (tmp_path / "jpeg").stat().st_size < (tmp_path / "png").stat().st_size


def test_any_mcap_reader_finds_foxglove_messages(tmp_path: Path) -> None:
    with written(tmp_path / "r.mcap").open("rb") as file:
        found = {}
        for schema, channel, message in make_reader(file).iter_messages():
            found.setdefault(channel.topic, (schema.name, schema.encoding, json.loads(message.data)))
    assert {topic: name for topic, (name, _, _) in found.items()} == {
        "/cam0": "foxglove.CompressedImage",
        "/mic0": "foxglove.RawAudio",
        "/vib0": "lineside.Series",
        "/labels": "lineside.Label",
    }
    image, sound = found["/cam0"][2], found["/mic0"][2]
    assert image["timestamp"] == {"sec": 1_700_000_000, "nsec": 123_456_789}
    assert cv2.imdecode(np.frombuffer(base64.b64decode(image["data"]), np.uint8), cv2.IMREAD_COLOR).shape == (12, 16, 3)
    assert (sound["format"], sound["sample_rate"], sound["number_of_channels"]) == ("pcm-s16", 16_000, 1)
    assert found["/cam0"][1] == "jsonschema"


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, bytes, list[tuple[str, int, float, frozenset[str], bytes]]]:
    folder = tmp_path_factory.mktemp("cut")
    return folder, written(folder / "whole.mcap", seconds=20).read_bytes(), single(stream(20))


def read_or_refused(path: Path) -> list[tuple[str, int, float, frozenset[str], bytes]]:
    """What can be read; nothing where the file is refused with a RecordingError."""
    try:
        recording = Recording(path)
        read = single(list(recording.samples()))
        recording.labels()
    except RecordingError as error:
        assert error.mend  # noqa: PT017
        return []
    return read


@given(share=st.floats(0, 1))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_of_a_recording_cut_anywhere_the_part_before_is_read(share: float, whole: tuple[Path, bytes, list]) -> None:
    folder, data, samples = whole
    cut = folder / "cut.mcap"
    cut.write_bytes(data[: int(share * len(data))])
    read = read_or_refused(cut)
    assert read == samples[: len(read)]
    # what a cut costs: a chunk of 256 kB, and no more
    assert len(read) / len(samples) > share - 0.05 - 300_000 / len(data)


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_bit_never_changes_what_is_read(place: float, bit: int, whole: tuple[Path, bytes, list]) -> None:
    folder, data, samples = whole
    damaged = bytearray(data)
    damaged[int(place * len(data))] ^= 1 << bit
    (folder / "flipped.mcap").write_bytes(damaged)
    read = read_or_refused(folder / "flipped.mcap")
    assert read == samples[: len(read)]


@pytest.mark.slow
def test_no_flipped_bit_anywhere_is_an_error_of_a_library(whole: tuple[Path, bytes, list]) -> None:
    """The decompressor has errors of its own, which share no base with those of the container."""
    folder, data, samples = whole
    for number in range(400):
        damaged = bytearray(data)
        damaged[number * len(data) // 400] ^= 1 << number % 8
        (folder / "flipped.mcap").write_bytes(damaged)
        read = read_or_refused(folder / "flipped.mcap")
        assert read == samples[: len(read)]


@given(data=st.binary(max_size=2_000))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_wild_bytes_are_refused_or_empty(data: bytes, whole: tuple[Path, bytes, list]) -> None:
    folder, good, _ = whole
    for head in (b"", good[:8], good[:60]):
        (folder / "wild.mcap").write_bytes(head + data)
        assert read_or_refused(folder / "wild.mcap") == []


def test_a_cut_is_told(whole: tuple[Path, bytes, list]) -> None:
    folder, data, samples = whole
    (folder / "cut.mcap").write_bytes(data[: len(data) * 2 // 3])
    recording = Recording(folder / "cut.mcap")
    assert 0 < len(single(list(recording.samples()))) < len(samples)
    assert "is damaged or cut short" in recording.problem
    assert recording.about == ABOUT


def test_a_recording_that_is_still_written_can_be_read(tmp_path: Path) -> None:
    with Recorder(tmp_path / "r.mcap", ABOUT) as recorder:
        for samples in stream(30):
            recorder.write(samples)
        before = sum(len(run.data) for run in Recording(tmp_path / "r.mcap").samples("mic0")) / 16_000
        assert before > 20  # all but the chunk that fills just now


def test_missing_files_and_unwritable_places_name_the_mend(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"no\.mcap: cannot be read \(No such file or directory\); check the path"):
        Recording(tmp_path / "no.mcap")
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordingError, match=r"cannot be written .*; choose another place with --out"):
        Recorder(tmp_path / "file" / "r.mcap", ABOUT)
    with pytest.raises(RecordingError, match="holds no samples"):
        Recording(written(tmp_path / "empty.mcap", seconds=0, labels=0)).span_ns()
    with pytest.raises(ValueError, match="camera samples need a stamp"):
        Recorder(tmp_path / "r.mcap", ABOUT).write(Samples("c", "camera", 0, 1.0, np.zeros((1, 4, 4, 3), np.uint8)))


@given(seconds=st.lists(st.integers(0, 100), max_size=6))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_labels_come_by_their_start_in_whatever_order_they_were_written(seconds: list[int], tmp_path: Path) -> None:
    labels = [Label(k * NS, (k + 1) * NS, str(k), "cam0") for k in seconds]
    with Recorder(tmp_path / "r.mcap", ABOUT) as recorder:
        for label in labels:
            recorder.label(label)
    assert Recording(tmp_path / "r.mcap").labels() == sorted(labels, key=lambda label: label.start_ns)


def test_what_was_captured_during_a_labelled_fault_can_be_left_out(tmp_path: Path) -> None:
    labels = [
        Label(START_NS + NS, START_NS + 2 * NS, "valve shut", fault=True),
        Label(START_NS + 2 * NS, START_NS + 5 * NS // 2, "lens", "cam0", fault=True),
        Label(START_NS, START_NS + 3 * NS, "product a"),
    ]
    with Recorder(tmp_path / "r.mcap", ABOUT) as recorder:
        for samples in stream(3):
            recorder.write(samples)
        for label in labels:
            recorder.label(label)
    recording = Recording(tmp_path / "r.mcap")
    assert recording.labels() == sorted(labels, key=lambda label: label.start_ns)
    left = [(run.sensor, (run.start_ns - START_NS) / NS) for run in without_faults(recording.samples(), labels)]
    assert [at_s for sensor, at_s in left if sensor == "cam0"] == [0.0, 0.5, 2.5]
    assert [at_s for sensor, at_s in left if sensor == "mic0"] == [0.0, 2.0]


@given(edges=st.lists(st.integers(0, 3_000), min_size=2, max_size=12))
def test_no_sample_of_a_fault_and_every_other_one_is_left(edges: list[int]) -> None:
    ms = NS // 1000
    faults = [Label(a * ms, b * ms, "x", fault=True) for a, b in zip(edges[::2], edges[1::2], strict=False)]
    runs = [Samples("vib0", "series", k * NS, 100.0, np.arange(100.0).reshape(100, 1) + 100 * k) for k in range(3)]
    kept = [float(v) for run in without_faults(runs, faults) for v in run.data[:, 0]]
    assert kept == [k for k in range(300) if not any(f.start_ns <= k * 10 * ms < f.end_ns for f in faults)]

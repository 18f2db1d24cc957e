"""What pages show of a recording, and the normal moments nearest to an alarm: hub.evidence.view, hub.nearest."""

from __future__ import annotations

import doctest
import wave
from pathlib import Path

import cv2
import numpy as np
import pytest

from hub import labelled, nearest
from hub.evidence import spectrogram, view
from hub.store import Store, database_url
from hub.tables import row
from lineside import evidence, wire
from lineside.channels import CompressedImage, Time, block
from lineside.clock import NS
from lineside.errors import RecordingError
from lineside.messages import Embedding, Embeddings, Message, Score
from lineside.recording import About, Recorder
from lineside.windows import Samples
from tests import evidence_scene as scene

BEGIN = 1_700_000_000 * NS


def recorded(path: Path, sensors: dict[str, str], *runs: Samples) -> Path:
    with Recorder(path, About(station="press", sensors=sensors), image="png") as recorder:
        for run in runs:
            recorder.write(run)
    return path


def series(sensor: str, values: np.ndarray, start_ns: int = BEGIN) -> Samples:
    return Samples(sensor, "series", start_ns, 10.0, values.astype(np.float32))


def test_the_examples_hold() -> None:
    assert [doctest.testmod(module).failed for module in (spectrogram, labelled, evidence)] == [0, 0, 0]


def test_picture_sound_and_spectrogram_of_an_alarm(tmp_path: Path) -> None:
    found = view.of(scene.recording(tmp_path / scene.NAME))
    folder = view.folder_of(tmp_path / scene.NAME)
    assert found.seconds == pytest.approx(8.0, abs=0.2)
    stamps = found.pictures["cam0"]
    assert len(stamps) == len(list(folder.glob("cam0-*.jpg"))) == 80
    assert stamps == sorted(stamps)
    assert cv2.imread(str(folder / "cam0-0079.jpg")) is not None
    with wave.open(str(folder / "mic0.wav")) as heard:
        assert (heard.getframerate(), heard.getnchannels()) == (found.sounds["mic0"].rate_hz, 1)
        assert heard.getnframes() / heard.getframerate() == pytest.approx(found.seconds, abs=0.01)
    assert cv2.imread(str(folder / "mic0.png")).shape == (spectrogram.HEIGHT, spectrogram.WIDTH, 3)
    assert found.problems == []


def test_a_series_is_thinned_and_keeps_its_holes(tmp_path: Path) -> None:
    values = np.stack([np.arange(900.0), np.full(900, 2.0)], axis=1)
    values[450:, 1] = np.nan
    found = view.of(recorded(tmp_path / scene.NAME, {"vib0": "series"}, series("vib0", values)))
    drawn = found.series["vib0"]
    assert len(drawn.seconds) == len(drawn.values[0]) == view.POINTS
    assert (drawn.seconds[0], drawn.seconds[-1]) == (0.0, 89.9)
    assert drawn.values[0][-1] == 899.0
    assert (drawn.values[1][0], drawn.values[1][-1]) == (2.0, None)


def test_names_and_pictures_that_are_none_are_not_written(tmp_path: Path) -> None:
    good, evil = series("vib0", np.zeros((20, 1))), series("../../vib0", np.zeros((20, 1)))
    sensors = {"vib0": "series", "../../vib0": "series", "cam0": "camera"}
    path = tmp_path / "evidence" / scene.NAME
    with Recorder(path, About(sensors=sensors)) as recorder:
        recorder.write(good)
        recorder.write(evil)
        image = CompressedImage(Time(BEGIN // NS, 0), "cam0", b"<script>", "jpeg")
        recorder.append(block("/cam0", BEGIN, BEGIN, image))
    found = view.of(path)
    assert (list(found.series), found.pictures) == (["vib0"], {})
    assert found.problems == ["cam0: cam0: has a picture that is not shown here; look at it with Foxglove"]
    assert sorted(file.name for file in tmp_path.rglob("*")) == sorted(
        ["evidence", scene.NAME, f"{scene.NAME}{view.VIEW}", view.INDEX]
    )


def test_what_spans_years_is_not_laid_out(tmp_path: Path) -> None:
    late = series("vib0", np.zeros((20, 1)), BEGIN + 10**9 * NS)
    path = recorded(tmp_path / scene.NAME, {"vib0": "series"}, series("vib0", np.zeros((20, 1))), late)
    with pytest.raises(RecordingError, match="spans 1000000002 s"):
        view.of(path)
    assert [file.name for file in tmp_path.iterdir()] == [scene.NAME]


def test_numbers_that_no_device_would_write_are_told_as_damage(tmp_path: Path) -> None:
    path = tmp_path / scene.NAME
    with Recorder(path, About(sensors={"cam0": "camera"})) as recorder:
        image = CompressedImage(Time(BEGIN // NS, 0), "cam0", view.JPEG, "jpeg", rate_hz=0.0)
        recorder.append(block("/cam0", BEGIN, BEGIN, image))
    for read in (view.of, lambda path: labelled.write(path, tmp_path / "out.mcap", {})):
        with pytest.raises(RecordingError, match="division by zero"):
            read(path)
    assert [file.name for file in tmp_path.iterdir()] == [scene.NAME]


class Moments:
    """Moments in a store, a second each: an angle of one sensor's embedding, and how ordinary it was."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(database_url("sqlite:///hub.db", folder))
        self.seq = 0

    def add(self, second: float, degrees: float, p: float = 0.5, version: str = "1") -> None:
        start_ns = BEGIN + round(second * NS)
        about = {"device": "edge-1", "station": "press", "start_ns": start_ns, "end_ns": start_ns + NS}
        turned = np.radians(degrees)
        vector = wire.pack(np.array([np.cos(turned), np.sin(turned)], np.float32))
        one = Embedding("mic0", "microphone", version, "space", vector)
        judged = Score(
            **about, evidence=1.0, p_value=p, limit=0.01, contributions={}, without={}, agreements={}, modalities={},
            absent={}, versions={}, skew_ms=0.0,
        )  # fmt: skip
        self.store.add([self._row(Embeddings(**about, embeddings=[one])), self._row(judged)])

    def _row(self, message: Message) -> object:
        self.seq += 1
        stamped = wire.stamped(message, 1, self.seq)
        return row(wire.kind_of(message), stamped, wire.encode(stamped), BEGIN)


def test_the_nearest_normal_moments_are_normal_apart_and_of_the_same_encoder(tmp_path: Path) -> None:
    moments, alarm = Moments(tmp_path), scene.alarm(start_ns=BEGIN)  # raised at 5 s, its onset at 4 s
    engine = moments.store.engine
    assert nearest.nearest(engine, alarm, None).by_sensor == {}
    moments.add(4, 90, p=1e-4)
    for second, degrees in ((-100, 60), (-99, 61), (-80, 40), (-60, 0)):
        moments.add(second, degrees)
    moments.add(-70, 89, p=0.01)  # was strange itself
    moments.add(-50, 88, version="2")  # another encoder's
    moments.add(-10, 87)  # too near before the onset
    score = nearest.raised_by(engine, alarm)
    assert score is not None
    assert score.p_value == 1e-4
    found = nearest.nearest(engine, alarm, score)
    assert [(near.start_ns - BEGIN) // NS for near in found.by_sensor["mic0"]] == [-99, -80, -60]
    assert found.by_sensor["mic0"][0].cosine == pytest.approx(np.cos(np.radians(29)), abs=1e-3)
    assert found.looked == 5
    moments.store.close()

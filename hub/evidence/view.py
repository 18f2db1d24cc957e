"""What a page shows of a recording: pictures as they are, sound as WAV with its spectrogram, series as points.

Made once, into a folder beside the recording, and served from there. Pictures are not decoded here: that is the
browser's, which keeps what it draws in a process of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import threading
import wave
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from hub.evidence import spectrogram
from hub.evidence.safe import WILD
from lineside.channels import KINDS, Block, CompressedImage, decoded
from lineside.clock import NS
from lineside.errors import LinesideError, RecordingError
from lineside.files import sync_folder, write_atomic
from lineside.recording import Recording
from lineside.windows import Samples

VIEW, MAKING, INDEX = ".view", ".making", "index.json"
SENSOR = r"[a-z][a-z0-9_-]{0,30}"  # as device files name them
FILE = rf"{SENSOR}(-[0-9]{{4}}\.jpg|\.wav|\.png)"
PICTURES, POINTS, CHANNELS, SENSORS = 120, 400, 3, 16
PICTURE_BYTES, SOUND_SAMPLES, LONGEST_S = 4_000_000, 40_000_000, 3600.0
JPEG = b"\xff\xd8\xff"
_making = threading.Lock()


class Sound(msgspec.Struct, frozen=True):
    """One microphone: the WAV begins with the recording; silence stands where nothing was recorded."""

    rate_hz: int
    seconds: float


class Series(msgspec.Struct, frozen=True):
    """One series, thinned: seconds from the beginning, and the values of each channel at them, None where missing."""

    seconds: list[float]
    values: list[list[float | None]]


class View(msgspec.Struct, frozen=True, kw_only=True):
    """All of a recording that is shown, by sensor; `pictures` are seconds from `start_ns`, one a file."""

    start_ns: int
    seconds: float
    pictures: dict[str, list[float]] = {}
    sounds: dict[str, Sound] = {}
    series: dict[str, Series] = {}
    problems: list[str] = []


def folder_of(recording: Path) -> Path:
    """Where the files of a recording's view lie."""
    return recording.with_name(f"{recording.name}{VIEW}")


def of(recording: Path) -> View:
    """The view of a recording, made where it is not there yet. Raises RecordingError where nothing can be shown."""
    folder = folder_of(recording)
    with _making:  # one at a time: each may need some hundred megabytes for a second
        if not (folder / INDEX).is_file():
            try:
                _make(recording, folder)
            except WILD as error:
                told = f"cannot be shown ({error})"
                raise RecordingError(recording.name, told, "look at it with Foxglove") from error
    try:
        return msgspec.json.decode((folder / INDEX).read_bytes(), type=View)
    except (OSError, msgspec.DecodeError) as error:
        raise RecordingError(str(folder), f"cannot be shown ({error})", "delete that folder") from error


def _make(path: Path, folder: Path) -> None:
    recording = Recording(path)
    start_ns, end_ns = recording.span_ns()
    seconds = (end_ns - start_ns) / NS
    if not 0 < seconds <= LONGEST_S:
        raise RecordingError(path.name, f"spans {seconds:.0f} s", "look at it with Foxglove")
    shutil.rmtree(folder, ignore_errors=True)
    part = Path(tempfile.mkdtemp(prefix=".", suffix=MAKING, dir=folder.parent))
    try:
        made = _Making(part, start_ns, seconds)
        made.take(recording)
        view = made.finished([recording.problem] if recording.problem else [])
        write_atomic(part / INDEX, msgspec.json.encode(view))
        os.replace(part, folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


class _Making:
    """Files and facts of one view while its recording is read."""

    def __init__(self, folder: Path, start_ns: int, seconds: float) -> None:
        self._folder, self._start_ns, self._seconds = folder, start_ns, seconds
        self._pictures: dict[str, list[float]] = defaultdict(list)
        self._runs: dict[str, list[Samples]] = defaultdict(list)
        self._problems: dict[str, str] = {}

    def take(self, recording: Recording) -> None:
        sensors = [name for name in recording.about.sensors if re.fullmatch(SENSOR, name)][:SENSORS]
        shown = _chosen(recording, sensors)
        for made in recording.blocks():
            sensor = made.topic.lstrip("/")
            if sensor not in sensors or not KINDS[made.schema].modality:
                continue
            try:
                if KINDS[made.schema].modality != "camera":
                    self._runs[sensor].append(decoded(sensor, msgspec.json.decode(made.data, type=_payload(made))))
                elif made.start_ns in shown[sensor]:
                    self._picture(sensor, made)
            except (LinesideError, msgspec.DecodeError) as error:
                self._problems[sensor] = f"{sensor}: {error}"

    def finished(self, problems: list[str]) -> View:
        sounds, series = {}, {}
        for sensor, runs in self._runs.items():
            kinds = {run.modality for run in runs}
            if kinds == {"microphone"}:
                sounds[sensor] = self._sound(sensor, runs)
            elif kinds == {"series"}:
                series[sensor] = self._points(runs)
        return View(
            start_ns=self._start_ns,
            seconds=self._seconds,
            pictures=dict(self._pictures),
            sounds={name: one for name, one in sounds.items() if one},
            series=series,
            problems=[*problems, *self._problems.values()],
        )

    def _picture(self, sensor: str, made: Block) -> None:
        image = msgspec.json.decode(made.data, type=CompressedImage)
        if not image.data.startswith(JPEG) or len(image.data) > PICTURE_BYTES:
            raise RecordingError(sensor, "has a picture that is not shown here", "look at it with Foxglove")
        number = len(self._pictures[sensor])
        (self._folder / f"{sensor}-{number:04d}.jpg").write_bytes(image.data)
        self._pictures[sensor].append(round((made.start_ns - self._start_ns) / NS, 3))

    def _sound(self, sensor: str, runs: Sequence[Samples]) -> Sound | None:
        rate = round(runs[0].rate_hz)
        total = round(self._seconds * rate)
        if not 0 < total <= SOUND_SAMPLES or any(round(run.rate_hz) != rate for run in runs):
            self._problems[sensor] = f"{sensor}: its rate changes, or it is too long to be played here"
            return None
        whole: NDArray[np.int16] = np.zeros(total, np.int16)
        for run in runs:
            at = max(0, round((run.start_ns - self._start_ns) / NS * rate))
            piece = run.data.reshape(-1)[: max(0, total - at)]
            whole[at : at + len(piece)] = piece
        with wave.open(str(self._folder / f"{sensor}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(rate)
            file.writeframes(whole.astype("<i2").tobytes())
        (self._folder / f"{sensor}.png").write_bytes(spectrogram.png(whole, rate))
        return Sound(rate, self._seconds)

    def _points(self, runs: Sequence[Samples]) -> Series:
        times = np.concatenate(
            [(run.start_ns - self._start_ns) / NS + np.arange(len(run.data)) / run.rate_hz for run in runs]
        )
        width = min(CHANNELS, *(run.data.shape[1] for run in runs))
        rows = np.concatenate([run.data[:, :width] for run in runs]).astype(np.float64)
        chosen = np.unique(np.linspace(0, len(times) - 1, min(len(times), POINTS)).round().astype(int))
        values = [[float(v) if np.isfinite(v) else None for v in rows[chosen, channel]] for channel in range(width)]
        return Series([round(float(t), 3) for t in times[chosen]], values)


def _chosen(recording: Recording, sensors: Sequence[str]) -> dict[str, set[int]]:
    """The pictures of each camera that are shown, evenly, by their time."""
    stamps: dict[str, list[int]] = defaultdict(list)
    for made in recording.blocks():
        if KINDS[made.schema].modality == "camera":
            stamps[made.topic.lstrip("/")].append(made.start_ns)
    found = {}
    for sensor in sensors:
        every = sorted(set(stamps[sensor]))
        places = np.unique(np.linspace(0, max(0, len(every) - 1), min(len(every), PICTURES)).round().astype(int))
        found[sensor] = {every[place] for place in places}
    return found


def _payload(made: Block) -> type[msgspec.Struct]:
    return KINDS[made.schema].payload

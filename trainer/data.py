"""Recordings to prepared windows, by the windowing, quality rules and preparation of the device."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lineside import features
from lineside.clock import NS
from lineside.errors import RecordingError
from lineside.features import CameraPrepare, MicrophonePrepare, Prepare, SeriesPrepare
from lineside.quality import Quality
from lineside.recording import Recording, without_faults
from lineside.windows import Moment, Samples, Window, moments
from trainer.plan import RecordingPart, WindowSettings, place
from trainer.progress import Progress, silent

MEL_FRAME_S = 0.064


@dataclass(frozen=True)
class View:
    """One sensor's prepared windows: `inputs` (moments, *shape); rows that are not `present` are never read."""

    modality: str
    inputs: NDArray[np.generic]
    present: NDArray[np.bool_]


@dataclass(frozen=True)
class Dataset:
    """Moments of one or more recordings, in the order of `recordings` and of time.

    `bad` counts the windows left out, by sensor and by flag (`missing` where there was none).
    """

    views: dict[str, View]
    specs: dict[str, Prepare]
    start_ns: NDArray[np.int64]
    recording: NDArray[np.int64]
    length_ns: int
    hop_ns: int
    bad: dict[str, dict[str, int]]
    warnings: list[str]

    def __len__(self) -> int:
        return len(self.start_ns)

    @property
    def modalities(self) -> dict[str, str]:
        """Modality of each sensor."""
        return {sensor: view.modality for sensor, view in self.views.items()}

    def pairs(self) -> list[tuple[str, str]]:
        """All pairs of sensors, in order."""
        names = list(self.views)
        return [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]

    def of_modality(self, modality: str, rows: NDArray[np.int64]) -> NDArray[np.generic]:
        """All present windows (n, *shape) of one modality among the moments `rows`."""
        views = [view for view in self.views.values() if view.modality == modality]
        return np.concatenate([view.inputs[rows[view.present[rows]]] for view in views])

    @property
    def sha256(self) -> str:
        """Hash of all that is learned from."""
        digest = hashlib.sha256(self.start_ns.tobytes())
        for sensor, view in self.views.items():
            digest.update(sensor.encode() + view.present.tobytes() + np.ascontiguousarray(view.inputs).tobytes())
        return digest.hexdigest()

    def split(self, held_out: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Moments to learn from and moments held out: the last share in time of each recording, none overlapping."""
        learn, held = [], []
        for number in np.unique(self.recording):
            rows = np.flatnonzero(self.recording == number)
            start = self.start_ns[rows]
            cut = start[0] + round((start[-1] + self.hop_ns - start[0]) * (1 - held_out))
            learn.append(rows[start + self.length_ns <= cut])
            held.append(rows[start >= cut])
        return np.concatenate(learn), np.concatenate(held)


@dataclass
class _Column:
    """The windows of one sensor while they are read."""

    modality: str
    inputs: dict[int, NDArray[np.generic]] = field(default_factory=dict)
    bad: Counter[str] = field(default_factory=Counter)


def read(
    parts: Sequence[RecordingPart],
    base: Path,
    windows: WindowSettings = WindowSettings(),  # noqa: B008  frozen
    specs: dict[str, Prepare] | None = None,
    progress: Progress = silent,
    only: set[str] | None = None,
) -> Dataset:
    """Read recordings into one dataset. `specs` fixes preparations by modality; the rest follow from the first window.

    `only` leaves out sensors of other modalities. A damaged recording gives its readable part and a warning; what is
    labelled as a fault is never learned from.
    Raises RecordingError when nothing is usable.
    """
    recordings = [(part, Recording(place(part.path, base))) for part in parts]
    about = recordings[0][1].about
    length_ns = round((windows.length_s or about.length_s) * NS)
    hop_ns = round((windows.hop_s or min(about.hop_s, length_ns / NS)) * NS)
    known, columns = dict(specs or {}), dict[str, _Column]()
    starts: list[tuple[int, int]] = []
    warnings = []
    for number, (part, recording) in enumerate(recordings):
        quality = Quality()
        sensors = _sensors(recording, only)
        normal = without_faults(_between(recording, part), recording.labels())
        for moment in moments(normal, tuple(sensors), length_ns, hop_ns):
            _take(moment, len(starts), quality, known, columns, recording.path, sensors)
            starts.append((moment.start_ns, number))
            progress("reading windows", len(starts))
        if recording.problem:
            warnings.append(f"{recording.path}: {recording.problem}")
    if not any(column.inputs for column in columns.values()):
        told = warnings[0] if warnings else "no window without a flag"
        raise RecordingError(str(recordings[0][1].path), f"nothing to learn from ({told})", "record the line again")
    return _dataset(columns, known, starts, (length_ns, hop_ns), warnings)


def _sensors(recording: Recording, only: set[str] | None) -> dict[str, str]:
    """Modality by sensor of the sensors to be read."""
    sensors = recording.about.sensors
    if not sensors:
        raise RecordingError(str(recording.path), "does not name its sensors", "write About.sensors when recording")
    return {sensor: modality for sensor, modality in sensors.items() if only is None or modality in only}


def _between(recording: Recording, part: RecordingPart) -> Iterator[Samples]:
    """The samples of the part of a recording that the plan asks for."""
    first = -1
    for samples in recording.samples():
        first = samples.start_ns if first < 0 else first
        to_ns = first + round(part.to_s * NS) if part.to_s else samples.end_ns
        chosen = samples.between(first + round(part.from_s * NS), to_ns)
        if len(chosen.data):
            yield chosen


def _take(
    moment: Moment,
    row: int,
    quality: Quality,
    known: dict[str, Prepare],
    columns: dict[str, _Column],
    path: Path,
    sensors: dict[str, str],
) -> None:
    """Prepare the good windows of one moment and count the bad ones."""
    for sensor, modality in sensors.items():
        column = columns.setdefault(sensor, _Column(modality))
        if column.modality != modality:
            told = f"calls {sensor} a {modality}, an earlier recording a {column.modality}"
            raise RecordingError(str(path), told, "give the sensors different names")
        window = moment.windows.get(sensor)
        flags = quality.flags(window) if window is not None else frozenset({"missing"})
        if window is None or flags:
            column.bad.update(flags)
            continue
        spec = known.setdefault(modality, default_spec(window))
        try:
            column.inputs[row] = features.prepare(spec, window)
        except ValueError as error:
            mend = "record it as the encoder was trained, or start a new first stage"
            raise RecordingError(str(path), str(error), mend) from error


def default_spec(window: Window) -> Prepare:
    """The preparation that suits a sensor, from its first window: frames of 32 to 64 ms for sound of any rate."""
    length_s = (window.end_ns - window.start_ns) / NS
    if window.modality == "camera":
        return CameraPrepare()
    if window.modality == "microphone":
        rate = round(window.rate_hz)
        n_fft = 2 ** int(np.log2(MEL_FRAME_S * rate) + 1e-9)
        high = min(8_000.0, rate / 2)
        return MicrophonePrepare(rate, round(rate * length_s), n_fft, n_fft // 4, high_hz=high)
    samples = int(np.clip(round(window.rate_hz * length_s), 256, 4096))
    return SeriesPrepare(channels=window.data.shape[1], samples=samples)


def _dataset(
    columns: dict[str, _Column],
    known: dict[str, Prepare],
    starts: list[tuple[int, int]],
    grid: tuple[int, int],
    warnings: list[str],
) -> Dataset:
    views = {}
    for sensor, column in columns.items():
        if not column.inputs:
            warnings.append(f"{sensor}: no window without a flag ({dict(column.bad)}); it is left out")
            continue
        spec = known[column.modality]
        inputs = np.zeros((len(starts), *features.shape(spec)), features.dtype(spec))
        present = np.zeros(len(starts), np.bool_)
        for row, window in column.inputs.items():
            inputs[row], present[row] = window, True
        column.inputs.clear()
        views[sensor] = View(column.modality, inputs, present)
    modalities = {view.modality for view in views.values()}
    return Dataset(
        views=views,
        specs={name: spec for name, spec in known.items() if name in modalities},
        start_ns=np.array([start for start, _ in starts], np.int64),
        recording=np.array([number for _, number in starts], np.int64),
        length_ns=grid[0],
        hop_ns=grid[1],
        bad={sensor: dict(column.bad) for sensor, column in columns.items()},
        warnings=warnings,
    )

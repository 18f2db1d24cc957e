"""Recordings to prepared windows, by the windowing, quality rules and preparation of the device.

A feature file (trainer.feature_files) stands for a recording whose windows went through frozen backbones before.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from lineside import features
from lineside.clock import NS
from lineside.errors import ConfigError, RecordingError
from lineside.features import CameraPrepare, FeaturesPrepare, MicrophonePrepare, Prepare, SeriesPrepare
from lineside.quality import Quality
from lineside.recording import Label, Recording, without_faults
from lineside.windows import Moment, Samples, Window, moments
from trainer import feature_files
from trainer.feature_files import FeatureFile
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

    `bad` counts the windows left out, by sensor and by flag (`missing` where there was none). `labels` says what was
    true of each moment, "" where nothing is known; a dataset made without them has an empty array, no moment labelled.
    """

    views: dict[str, View]
    specs: dict[str, Prepare]
    start_ns: NDArray[np.int64]
    recording: NDArray[np.int64]
    length_ns: int
    hop_ns: int
    bad: dict[str, dict[str, int]]
    warnings: list[str]
    labels: NDArray[np.str_] = field(default_factory=lambda: np.zeros(0, np.str_))

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
        if (self.labels != "").any():  # only then, so that what was trained without labels keeps its hash
            digest.update(msgspec.json.encode(self.labels.tolist()))
        return digest.hexdigest()

    def check_finite(self) -> None:
        """Raises RecordingError naming the sensor and the moment of a present window that holds NaN or infinity."""
        for sensor, view in self.views.items():
            if (row := feature_files.first_not_finite(view.inputs, view.present)) is not None:
                started = self.start_ns[self.recording == self.recording[row]].min()
                when = f"{(self.start_ns[row] - started) / NS:g} s into recording {self.recording[row] + 1} of the plan"
                told = f"its window at {self.start_ns[row]} ns ({when}) holds values that are not finite"
                raise RecordingError(sensor, told, "leave that part out with from_s and to_s, or record it again")

    def joined(self, later: Dataset) -> Dataset:
        """These moments and, after them, those of a dataset of the same sensors and preparations."""
        views = {
            sensor: View(
                view.modality,
                np.concatenate([view.inputs, later.views[sensor].inputs]),
                np.concatenate([view.present, later.views[sensor].present]),
            )
            for sensor, view in self.views.items()
        }
        names = [part.labels if len(part.labels) else np.zeros(len(part), np.str_) for part in (self, later)]
        return replace(
            self,
            views=views,
            start_ns=np.concatenate([self.start_ns, later.start_ns]),
            recording=np.concatenate([self.recording, later.recording]),
            labels=np.concatenate(names),
        )

    def only(self, rows: NDArray[np.int64]) -> Dataset:
        """The moments `rows`, in their order."""
        views = {name: View(view.modality, view.inputs[rows], view.present[rows]) for name, view in self.views.items()}
        return replace(
            self,
            views=views,
            start_ns=self.start_ns[rows],
            recording=self.recording[rows],
            labels=self.labels[rows] if len(self.labels) else self.labels,
        )

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


@dataclass
class _Reading:
    """All that is known while recordings are read, one after the other."""

    known: dict[str, Prepare]
    length_ns: int
    hop_ns: int
    faults: bool = False
    columns: dict[str, _Column] = field(default_factory=dict)
    starts: list[tuple[int, int]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def read(
    parts: Sequence[RecordingPart],
    base: Path,
    windows: WindowSettings = WindowSettings(),  # noqa: B008  frozen
    specs: dict[str, Prepare] | None = None,
    progress: Progress = silent,
    only: set[str] | None = None,
    faults: bool = False,
) -> Dataset:
    """Read recordings and feature files into one dataset. `specs` fixes preparations by modality.

    The rest follow from the first window, or from the first feature file. `only` leaves out sensors of other
    modalities. A damaged recording gives its readable part and a warning; what is labelled as a fault is not
    learned from, unless `faults` are to be told apart too: then their labels name moments. Raises RecordingError when
    nothing is usable, ConfigError when two files cannot be learned from together. A folder stands for all recordings in
    it, by name (as the hub's labelled set).
    """
    parts = [each for part in parts for each in _each(part, base)]
    paths = [place(part.path, base) for part in parts]
    sources = [_open(path, only) for path in paths]
    known = _known(paths, sources, specs or {}, only)  # what cannot go together is refused before hours are read
    reading = _Reading(known, *_grid(paths, sources, windows), faults=faults)
    for number, (part, path, source) in enumerate(zip(parts, paths, sources, strict=True)):
        if isinstance(source, FeatureFile):
            _take_file(source, path, part, number, reading)
            progress("reading windows", len(reading.starts))
        else:
            _take_recording(source, part, number, reading, only, progress)
    if not any(column.inputs for column in reading.columns.values()):
        told = reading.warnings[0] if reading.warnings else "no window without a flag"
        raise RecordingError(str(paths[0]), f"nothing to learn from ({told})", "record the line again")
    dataset = _dataset(reading)
    dataset.check_finite()
    return dataset


def _each(part: RecordingPart, base: Path) -> list[RecordingPart]:
    """The recordings that a part of a plan stands for: those in it, where it is a folder."""
    folder = place(part.path, base)
    if not folder.is_dir():
        return [part]
    found = [RecordingPart(str(path), part.from_s, part.to_s) for path in sorted(folder.glob("[!.]*.mcap"))]
    if not found:
        raise RecordingError(str(folder), "holds no recording (*.mcap)", "give a file, or a folder of recordings")
    return found


def _open(path: Path, only: set[str] | None) -> Recording | FeatureFile:
    return feature_files.read(path, only) if path.suffix == feature_files.SUFFIX else Recording(path)


def _known(
    paths: Sequence[Path],
    sources: Sequence[Recording | FeatureFile],
    specs: Mapping[str, Prepare],
    only: set[str] | None,
) -> dict[str, Prepare]:
    """Preparations that are known before a window is read: `specs`, and those of the feature files.

    Raises ConfigError when a modality comes from two backbones, or here as features and there as raw windows.
    """
    known = dict(specs)
    for path, source in zip(paths, sources, strict=True):
        if isinstance(source, FeatureFile):
            known |= feature_files.agree(path, source, known)
    for path, source in zip(paths, sources, strict=True):
        if isinstance(source, Recording):
            for sensor, modality in _sensors(source, only).items():
                spec = known.get(modality)
                if isinstance(spec, FeaturesPrepare):
                    told = f"holds raw windows of {sensor}, but {modality} is learned as features of a backbone here"
                    mend = f"give its feature file (backbone {spec.backbone[:12]}), or start anew from recordings alone"
                    raise ConfigError(str(path), told, mend)
    return known


def _grid(
    paths: Sequence[Path], sources: Sequence[Recording | FeatureFile], windows: WindowSettings
) -> tuple[int, int]:
    """Length and hop of windows in ns: the plan's, or those that suit the first recording.

    Raises ConfigError when a feature file has others, since its windows can be cut no more.
    """
    first = sources[0]
    if isinstance(first, FeatureFile):
        own_length_s, own_hop_s = first.length_ns / NS, first.hop_ns / NS
    else:
        own_length_s, own_hop_s = first.about.length_s, first.about.hop_s
    length_ns = round((windows.length_s or own_length_s) * NS)
    hop_ns = round((windows.hop_s or min(own_hop_s, length_ns / NS)) * NS)
    for path, source in zip(paths, sources, strict=True):
        if isinstance(source, FeatureFile) and (source.length_ns, source.hop_ns) != (length_ns, hop_ns):
            own = f"{source.length_ns / NS:g} s every {source.hop_ns / NS:g} s"
            told = f"has windows of {own}; the plan, or what it follows, {length_ns / NS:g} s every {hop_ns / NS:g} s"
            raise ConfigError(str(path), told, "make it again with those windows, or set its own in [windows]")
    return length_ns, hop_ns


def _take_file(file: FeatureFile, path: Path, part: RecordingPart, number: int, reading: _Reading) -> None:
    """Take the moments of a feature file that the plan asks for."""
    rows, row = file.rows(part.from_s, part.to_s), len(reading.starts)
    for sensor, made in file.sensors.items():
        column = _column(reading.columns, sensor, made.modality, path)
        present = made.present[rows]
        column.inputs |= {row + int(at): made.features[rows[at]] for at in np.flatnonzero(present)}
        column.bad += Counter(missing=int((~present).sum()))
    reading.starts += [(int(start), number) for start in file.start_ns[rows]]
    reading.labels += file.labels[rows].tolist()


def _take_recording(
    recording: Recording,
    part: RecordingPart,
    number: int,
    reading: _Reading,
    only: set[str] | None,
    progress: Progress,
) -> None:
    """Cut and prepare the windows of a recording that the plan asks for."""
    quality, sensors, labels = Quality(), _sensors(recording, only), recording.labels()
    every = _between(recording, part)
    taken = every if reading.faults else without_faults(every, labels)
    first = len(reading.starts)
    for moment in moments(taken, tuple(sensors), reading.length_ns, reading.hop_ns):
        _take(moment, len(reading.starts), quality, reading.known, reading.columns, recording.path, sensors)
        reading.starts.append((moment.start_ns, number))
        progress("reading windows", len(reading.starts))
    middles = np.array([start for start, _ in reading.starts[first:]], np.int64) + reading.length_ns // 2
    reading.labels += named(labels, middles, reading.faults)
    if recording.problem:
        reading.warnings.append(f"{recording.path}: {recording.problem}")


def named(labels: Sequence[Label], middles_ns: NDArray[np.int64], faults: bool = False) -> list[str]:
    """What the labels that tell of no fault, or all with `faults`, say of each time, "" where none does.

    Of several, one of the station goes before one of a sensor, then the one that began last.

    >>> shift = Label(0, 100, "part A"), Label(20, 60, "warm-up"), Label(50, 90, "burst", sensor="mic0")
    >>> named(shift, np.array([10, 30, 55, 120]))
    ['part A', 'warm-up', 'warm-up', '']
    """
    names = [""] * len(middles_ns)
    for label in sorted(labels, key=lambda label: (not label.sensor, label.start_ns)):
        if faults or not label.fault:
            for row in np.flatnonzero((label.start_ns <= middles_ns) & (middles_ns < label.end_ns)):
                names[row] = label.label
    return names


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
        column = _column(columns, sensor, modality, path)
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


def _column(columns: dict[str, _Column], sensor: str, modality: str, path: Path) -> _Column:
    column = columns.setdefault(sensor, _Column(modality))
    if column.modality != modality:
        told = f"calls {sensor} a {modality}, an earlier recording a {column.modality}"
        raise RecordingError(str(path), told, "give the sensors different names")
    return column


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


def _dataset(reading: _Reading) -> Dataset:
    views = {}
    starts = reading.starts
    for sensor, column in reading.columns.items():
        if not column.inputs:
            reading.warnings.append(f"{sensor}: no window without a flag ({dict(column.bad)}); it is left out")
            continue
        spec = reading.known[column.modality]
        inputs = np.zeros((len(starts), *features.shape(spec)), features.dtype(spec))
        present = np.zeros(len(starts), np.bool_)
        for row, window in column.inputs.items():
            inputs[row], present[row] = window, True
        column.inputs.clear()
        views[sensor] = View(column.modality, inputs, present)
    modalities = {view.modality for view in views.values()}
    return Dataset(
        views=views,
        specs={name: spec for name, spec in reading.known.items() if name in modalities},
        start_ns=np.array([start for start, _ in starts], np.int64),
        recording=np.array([number for _, number in starts], np.int64),
        length_ns=reading.length_ns,
        hop_ns=reading.hop_ns,
        bad={sensor: dict(column.bad) for sensor, column in reading.columns.items()},
        warnings=reading.warnings,
        labels=np.array(reading.labels, np.str_),
    )

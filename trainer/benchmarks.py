"""Real data in stages, on which ways of learning are compared: `BENCHMARKS` is the table.

Each reads a folder of shared recordings, keeps to the splits of its manifest, and gives tasks in the order in which a
line would bring them. What is chosen is chosen on `val`; `test` is read when everything else stands.

- conditions, classes  av_digits, written and spoken digits paired by class: a new speaker and camera mounting a stage
                       (turned by 0, 45 or 90 degrees, dark on light or light on dark), or two new digits a stage
- skab                 four groups of a pump's sensors; other pairs of them, of later days, arrive stage by stage, and
                       each has to find the other group's window of the same moment
- fan                  three axes of an accelerometer as three sensors; a new speed a stage
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from lineside import features
from lineside.clock import NS
from lineside.errors import RecordingError
from lineside.features import CameraPrepare, MicrophonePrepare, Prepare, SeriesPrepare
from lineside.windows import Window
from trainer.data import Dataset, View

Array = NDArray[np.generic]
Split = str  # "train", "val" or "test"

RANKS = {"train": 5, "val": 5, "test": 10}  # how many images are paired with each clip
TURNS = (0, 0, 45, 45, 90, 90)  # degrees, by condition; every second one is inverted
SKAB_S, SKAB_HOP_S = 30, 10
SKAB_GROUPS = {
    "vibration": ("Accelerometer1RMS", "Accelerometer2RMS"),
    "electrical": ("Current", "Voltage"),
    "hydraulic": ("Pressure", "Volume Flow RateRMS"),
    "thermal": ("Temperature", "Thermocouple"),
}
SKAB_STAGES = (
    ("anomaly-free", ("vibration", "electrical")),
    ("other", ("electrical", "hydraulic")),
    ("valve1", ("hydraulic", "thermal")),
    ("valve2", ("vibration", "thermal")),
)


@dataclass(frozen=True)
class Task:
    """What one stage brings, by split, and which pairs of sensors it trains; `groups` is what a resampling draws."""

    name: str
    parts: Mapping[Split, Dataset]
    pairs: tuple[tuple[str, str], ...]
    groups: Mapping[Split, NDArray[np.int64]]


@dataclass(frozen=True)
class Benchmark:
    """Tasks in order. A hit is the query's class (`by = "class"`) or its own moment; `gallery` is a task's own, or
    that of all tasks seen so far."""

    name: str
    tasks: tuple[Task, ...]
    by: str
    gallery: str
    chance: float


def conditions(shared: Path) -> Benchmark:
    """Six speakers, each with a camera mounted another way."""
    digits = _digits(shared)
    speakers = sorted(set(digits.speaker.tolist()))
    tasks = []
    for k, speaker in enumerate(speakers):
        here = digits.speaker == speaker
        tasks.append(_digit_task(f"{speaker}, {_mounting(k)}", digits, here, k))
    return Benchmark("av-digits conditions", tuple(tasks), "class", "own", 0.1)


def classes(shared: Path) -> Benchmark:
    """Five pairs of digits; the gallery grows."""
    digits = _digits(shared)
    tasks = [
        _digit_task(f"{2 * k} and {2 * k + 1}", digits, (digits.label == 2 * k) | (digits.label == 2 * k + 1), 0)
        for k in range(5)
    ]
    return Benchmark("av-digits classes", tuple(tasks), "class", "seen", 0.1)


def skab(shared: Path) -> Benchmark:
    """Pairs of sensor groups over days that shift; learned from each file's fitting rows, tested on its normal rest.

    Some files hold the same minutes: what shares a second with any test window is neither learned nor chosen from.
    """
    folder = _folder(shared, "skab_pump")
    rows = _rows(folder / "manifest.csv")
    with np.load(folder / "skab.npz") as held:
        x, anomaly, file_id, time_s = held["X"], held["anomaly"], held["file_id"], held["time"]
        columns = [str(name) for name in held["columns"]]
    starts = {row["file_id"]: np.flatnonzero(file_id == int(row["file_id"]))[0] for row in rows}
    places = {row["file_id"]: _skab_windows(anomaly[file_id == int(row["file_id"])], row) for row in rows}
    tested = {
        second
        for file, found in places.items()
        for at in found["test"]
        for second in time_s[starts[file] + at : starts[file] + at + SKAB_S].tolist()
    }
    tasks = []
    for group, pair in SKAB_STAGES:
        parts: dict[Split, list[tuple[NDArray[np.float32], int]]] = {"train": [], "val": [], "test": []}
        for file in (row["file_id"] for row in rows if row["group"] == group):
            for split, found in places[file].items():
                for first in starts[file] + np.array(found, np.int64):
                    rows_of = slice(first, first + SKAB_S)
                    if split == "test" or tested.isdisjoint(time_s[rows_of].tolist()):
                        parts[split].append((x[rows_of], int(file)))
        tasks.append(_skab_task(group, pair, parts, columns))
    return Benchmark("skab", tuple(tasks), "moment", "own", 0.05)


def fan(shared: Path) -> Benchmark:
    """Speeds of a fan, without the weight; the gallery grows by a speed a stage."""
    folder = _folder(shared, "fan_vibration")
    rows = _rows(folder / "manifest.csv")
    with np.load(folder / "accel.npz") as held:
        x = held["X"]
    tasks = []
    for speed in ("off", "low", "med", "high"):
        parts, groups = {}, {}
        for split in ("train", "val", "test"):
            chosen = [r for r in rows if r["split"] == split and r["speed"] == speed and r["label"] == "normal"]
            index = np.array([int(r["idx"]) for r in chosen])
            series = x[index].transpose(0, 2, 1).astype(np.float32)  # (n, 3, samples)
            views = {f"axis-{name}": View(f"axis-{name}", series[:, k : k + 1], _all(len(index))) for k, name in AXES}
            spec = SeriesPrepare(channels=1, samples=series.shape[2])
            parts[split] = _dataset(views, {name: spec for name in views}, [speed] * len(index))
            groups[split] = np.arange(len(index))
        tasks.append(Task(speed, parts, (("axis-x", "axis-y"), ("axis-y", "axis-z"), ("axis-x", "axis-z")), groups))
    return Benchmark("fan", tuple(tasks), "class", "seen", 0.25)


AXES = tuple(enumerate("xyz"))
BENCHMARKS: dict[str, Callable[[Path], Sequence[Benchmark]]] = {
    "av-digits": lambda shared: (conditions(shared), classes(shared)),
    "skab": lambda shared: (skab(shared),),
    "fan": lambda shared: (fan(shared),),
}


@dataclass(frozen=True)
class _Digits:
    images: NDArray[np.uint8]
    mels: NDArray[np.float32]
    split: NDArray[np.str_]
    label: NDArray[np.int64]
    speaker: NDArray[np.str_]
    audio: NDArray[np.int64]
    image: NDArray[np.int64]
    rank: NDArray[np.int64]


DIGIT_CAMERA = CameraPrepare(frames=1, height=28, width=28)
DIGIT_MICROPHONE = MicrophonePrepare(rate_hz=8000, samples=8000, n_fft=512, hop=128, mels=40, high_hz=4000.0)


def _digits(shared: Path) -> _Digits:
    folder = _folder(shared, "av_digits")
    rows = _rows(folder / "pairs.csv")
    with np.load(folder / "audio.npz") as audio, np.load(folder / "images.npz") as shown:
        samples, offsets, images = audio["samples"], audio["offsets"], shown["images"]
    clips = [samples[first:last] for first, last in itertools.pairwise(offsets)]
    mels = [features.prepare(DIGIT_MICROPHONE, Window("mic0", "microphone", 0, NS, 8000.0, clip, 0)) for clip in clips]

    def column(name: str) -> NDArray[np.int64]:
        return np.array([int(row[name]) for row in rows])

    texts = {name: np.array([row[name] for row in rows]) for name in ("split", "speaker")}
    return _Digits(
        images,
        np.stack(mels).astype(np.float32),
        texts["split"],
        column("label"),
        texts["speaker"],
        column("audio_idx"),
        column("image_idx"),
        column("rank"),
    )


def _digit_task(name: str, digits: _Digits, here: NDArray[np.bool_], mounting: int) -> Task:
    parts, groups = {}, {}
    for split in ("train", "val", "test"):
        rows = np.flatnonzero(here & (digits.split == split) & (digits.rank < RANKS[split]))
        pictures = mounted(digits.images[digits.image[rows]], mounting)
        views = {
            "cam0": View("camera", np.repeat(pictures[:, None], 3, axis=1), _all(len(rows))),
            "mic0": View("microphone", digits.mels[digits.audio[rows]], _all(len(rows))),
        }
        specs: dict[str, Prepare] = {"camera": DIGIT_CAMERA, "microphone": DIGIT_MICROPHONE}
        parts[split] = _dataset(views, specs, [str(label) for label in digits.label[rows]])
        groups[split] = digits.audio[rows]
    return Task(name, parts, (("cam0", "mic0"),), groups)


def mounted(pictures: NDArray[np.uint8], mounting: int) -> NDArray[np.uint8]:
    """Pictures (n, height, width) as a camera of that condition sees them: turned, every second one inverted."""
    if TURNS[mounting]:
        _, height, width = pictures.shape
        turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), TURNS[mounting], 1.0)
        pictures = np.stack([cv2.warpAffine(picture, turn, (width, height)) for picture in pictures])
    return 255 - pictures if mounting % 2 else pictures


def _mounting(k: int) -> str:
    return f"{TURNS[k]} degrees{', inverted' if k % 2 else ''}"


def _skab_windows(anomaly: NDArray[np.uint8], row: Mapping[str, str]) -> dict[Split, list[int]]:
    """First rows of a file's windows: the last fifth of its fitting rows is `val`, what is normal of the rest `test`.

    The anomaly-free file is all fitting rows by the manifest; its last fifth is `test`, the fifth before it `val`.
    """
    fit, rows = int(row["train_rows"]), len(anomaly)
    if fit == rows:
        spans = {"train": (0, 3 * rows // 5), "val": (3 * rows // 5, 4 * rows // 5), "test": (4 * rows // 5, rows)}
    else:
        spans = {"train": (0, 4 * fit // 5), "val": (4 * fit // 5, fit), "test": (fit, rows)}
    return {
        split: [at for at in range(first, last - SKAB_S + 1, SKAB_HOP_S) if not anomaly[at : at + SKAB_S].any()]
        for split, (first, last) in spans.items()
    }


def _skab_task(
    group: str,
    pair: tuple[str, str],
    parts: Mapping[Split, Sequence[tuple[NDArray[np.float32], int]]],
    columns: Sequence[str],
) -> Task:
    datasets, groups = {}, {}
    for split, windows in parts.items():
        x = np.stack([window for window, _ in windows]).transpose(0, 2, 1).astype(np.float32)
        views = {}
        for name in pair:
            chosen = [columns.index(column) for column in SKAB_GROUPS[name]]
            views[name] = View(name, np.ascontiguousarray(x[:, chosen]), _all(len(x)))
        specs: dict[str, Prepare] = {name: SeriesPrepare(channels=2, samples=SKAB_S) for name in pair}
        datasets[split] = _dataset(views, specs, [""] * len(x))
        groups[split] = np.array([file for _, file in windows])
    return Task(f"{group}: {pair[0]} + {pair[1]}", datasets, (pair,), groups)


def _dataset(views: dict[str, View], specs: dict[str, Prepare], labels: Sequence[str]) -> Dataset:
    count = len(labels)
    start = np.arange(count, dtype=np.int64) * NS
    return Dataset(views, specs, start, np.zeros(count, np.int64), NS, NS, {}, [], np.array(labels, np.str_))


def _all(count: int) -> NDArray[np.bool_]:
    return np.ones(count, np.bool_)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _folder(shared: Path, name: str) -> Path:
    folder = shared / name
    if not folder.is_dir():
        raise RecordingError(str(folder), "is not there", "give the folder of the benchmarks' data with --data")
    return folder

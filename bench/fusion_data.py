"""Labelled benchmarks of two sensors or more: `BENCHMARKS` is the table, `LEFT_OUT` says which do not qualify, and why.

Splits are the manifests'; where there is none of labels (SKAB), experiments are split whole, and no second is in two.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lineside.clock import NS
from lineside.features import Prepare, SeriesPrepare
from trainer.benchmarks import AXES, RANKS, SKAB_GROUPS, SKAB_HOP_S, SKAB_S, classes
from trainer.compare import together
from trainer.data import Dataset, View
from trainer.labelled import Labelled

PARTS = ("train", "val", "test")
LEFT_OUT = {
    "ballscrew_camera": "one camera, no second sensor",
    "esc10_sound": "one microphone, no second sensor",
    "solar_cells": "one camera, no second sensor",
    "milling_multiview_mini": "nine views, but 20 samples in all: fewer than 300",
}


def digits(data: Path) -> Labelled:
    """av_digits: which digit is written and spoken. Splits of its manifest, rank 0 (2400 / 300 / 300 pairs)."""
    tasks = classes(data).tasks
    parts, groups = {}, {}
    for part in PARTS:
        whole = together([task.parts[part] for task in tasks])
        clip = np.concatenate([task.groups[part] for task in tasks])
        first = np.unique(clip, return_index=True)[1] if RANKS[part] > 1 else np.arange(len(clip))
        parts[part], groups[part] = _taken(whole, first), clip[first]
    return joined(parts, groups)


def fan(data: Path) -> Labelled:
    """fan_vibration: which speed, by three axes as three sensors; test holds a coin on a blade too, train does not."""
    folder = data / "fan_vibration"
    with (folder / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with np.load(folder / "accel.npz") as held:
        x = held["X"].transpose(0, 2, 1).astype(np.float32)  # (n, 3, samples)
    parts, groups = {}, {}
    for part in PARTS:
        chosen = [row for row in rows if row["split"] == part]
        index = np.array([int(row["idx"]) for row in chosen])
        series = {f"axis-{name}": x[index, k : k + 1] for k, name in AXES}
        parts[part] = dataset(series, [row["speed"] for row in chosen])
        groups[part] = index // 10  # recorded one after the other
    return joined(parts, groups)


def skab(data: Path) -> Labelled:
    """skab_pump: normal or faulty, by four groups of two sensors, in 30 s; other experiments are tested than learned.

    Each experiment's first 400 rows, as far as normal, say what its normal is, as a device is commissioned: windows
    are scaled by them and come from the rest. Windows in which a fault begins or ends are left out.
    """
    folder = data / "skab_pump"
    with (folder / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with np.load(folder / "skab.npz") as held:
        x, anomaly, file_id, time_s = held["X"], held["anomaly"], held["file_id"], held["time"]
        columns = [str(name) for name in held["columns"]]
    experiments = [row for row in rows if row["group"] != "anomaly-free"]
    runs = {int(row["file_id"]): np.flatnonzero(file_id == int(row["file_id"])) for row in experiments}
    fit = {int(row["file_id"]): int(row["train_rows"]) for row in experiments}
    parts, groups = {}, {}
    for part, files in _experiments({file: set(time_s[run].tolist()) for file, run in runs.items()}).items():
        found = [_windows(x[runs[f]], anomaly[runs[f]], fit[f]) for f in files]
        windows = np.concatenate([each for each, _ in found]).transpose(0, 2, 1)
        labels = [name for _, names in found for name in names]
        series = {name: windows[:, [columns.index(c) for c in chosen]] for name, chosen in SKAB_GROUPS.items()}
        parts[part] = dataset(series, labels)
        groups[part] = np.concatenate([np.full(len(names), f) for f, (_, names) in zip(files, found, strict=True)])
    return joined(parts, groups)


BENCHMARKS: dict[str, Callable[[Path], Labelled]] = {"av_digits": digits, "fan_vibration": fan, "skab_pump": skab}


def dataset(series: Mapping[str, NDArray[np.float32]], labels: Sequence[str]) -> Dataset:
    """Series (n, channels, samples) by sensor, each a modality of its own."""
    count = len(labels)
    views = {name: View(name, np.ascontiguousarray(x), np.ones(count, np.bool_)) for name, x in series.items()}
    specs: dict[str, Prepare] = {n: SeriesPrepare(channels=x.shape[1], samples=x.shape[2]) for n, x in series.items()}
    start = np.arange(count, dtype=np.int64) * NS
    return Dataset(views, specs, start, np.zeros(count, np.int64), NS, NS, {}, [], np.array(labels, np.str_))


def joined(parts: Mapping[str, Dataset], groups: Mapping[str, NDArray[np.int64]]) -> Labelled:
    """Three datasets as one, with their rows."""
    whole = together([parts[part] for part in PARTS])
    ends = np.cumsum([0, *(len(parts[part]) for part in PARTS)])
    names, state = np.unique(whole.labels, return_inverse=True)
    rows = {part: np.arange(ends[k], ends[k + 1]) for k, part in enumerate(PARTS)}
    every = np.concatenate([groups[part] for part in PARTS])
    return Labelled(whole, tuple(names.tolist()), state.astype(np.int64), rows, every)


def _taken(whole: Dataset, rows: NDArray[np.int64]) -> Dataset:
    views = {s: View(v.modality, v.inputs[rows], v.present[rows]) for s, v in whole.views.items()}
    start, recording = whole.start_ns[rows], whole.recording[rows]
    return Dataset(views, whole.specs, start, recording, NS, NS, {}, [], whole.labels[rows])


def _experiments(seconds: Mapping[int, set[float]]) -> dict[str, list[int]]:
    """Experiments by part: of each ten, five learned from, two chosen on, three tested; shared seconds bind."""
    bound: list[list[int]] = []
    for file, mine in seconds.items():
        met = [group for group in bound if any(mine & seconds[other] for other in group)]
        bound = [group for group in bound if group not in met] + [sorted([file, *(f for g in met for f in g)])]
    places = dict(zip(range(10), ["train", "test", "train", "val", "train"] * 2, strict=True)) | {9: "test"}
    found: dict[str, list[int]] = {part: [] for part in PARTS}
    for k, group in enumerate(sorted(bound)):
        found[places[k % 10]] += group
    return found


def _windows(x: NDArray[np.float32], anomaly: NDArray[np.uint8], fit: int) -> tuple[NDArray[np.float32], list[str]]:
    """Windows (n, seconds, columns) of one experiment after its fitting rows, scaled by these, and their labels."""
    normal = x[:fit][anomaly[:fit] == 0]
    scaled = ((x - normal.mean(axis=0)) / (normal.std(axis=0) + 1e-6)).astype(np.float32)
    starts = [at for at in range(fit, len(x) - SKAB_S + 1, SKAB_HOP_S) if len(set(anomaly[at : at + SKAB_S])) == 1]
    windows = np.stack([scaled[at : at + SKAB_S] for at in starts])
    return windows, ["faulty" if anomaly[at] else "normal" for at in starts]

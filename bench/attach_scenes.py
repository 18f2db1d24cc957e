"""Real data for bench.attach: which windows leaf, base, bound and measurement get, and that they share no second."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lineside.clock import NS
from lineside.features import FeaturesPrepare, Prepare, SeriesPrepare
from lineside.files import sha256
from trainer.benchmarks import SKAB_GROUPS, classes
from trainer.compare import together
from trainer.data import Dataset, View

WINDOW_S, HOP_S, STRETCH_S = 60, 10, 180
PLACES = {2: "val", 3: "test"}  # of every four files of a day, in order of time


@dataclass(frozen=True)
class Scene:
    """One benchmark: what leaf and base learn from, all of it in pairs for the bound, what chooses, what is measured.

    `groups` are resampled together; `kinds`, of the measured moments, are days or classes.
    """

    sensors: tuple[str, str, str]  # newcomer, overlap, partner
    leaf: Dataset
    base: Dataset
    paired: Dataset
    val: Dataset
    measured: Dataset
    groups: NDArray[np.int64]
    kinds: NDArray[np.int64]


def skab(shared: Path, split: str) -> Scene:
    """Windows of 60 s every 10 s, over normal and faulty rows alike."""
    folder = shared / "skab_pump"
    places = split_by_day(folder / "manifest.csv")
    with np.load(folder / "skab.npz") as held:
        x, file_id, time_s = held["X"], held["file_id"], held["time"]
        columns = [str(name) for name in held["columns"]]
    seconds = {part: set(time_s[_of(file_id, places, part)].tolist()) for part in ("val", "test")}
    taken: dict[str, list[NDArray[np.int64]]] = {"train": [], "val": [], "test": []}
    for file, part in places.items():
        rows = np.flatnonzero(file_id == file)
        for at in range(0, len(rows) - WINDOW_S + 1, HOP_S):
            window = rows[at : at + WINDOW_S]
            if time_s[window[-1]] - time_s[window[0]] <= 2 * WINDOW_S and _apart(time_s[window], part, seconds):
                taken[part].append(window)
    cut = {part: np.stack(windows) for part, windows in taken.items()}
    first, last = (time_s[cut["train"][:, at]] // STRETCH_S for at in (0, -1))
    side = np.where(first == last, first % 2, -1)  # a window that reaches over two stretches is nobody's

    def dataset(windows: NDArray[np.int64]) -> Dataset:
        return _series(x[windows].transpose(0, 2, 1).astype(np.float32), columns)

    files = file_id[cut[split][:, 0]].astype(np.int64)
    days = np.unique(time_s[cut[split][:, 0]].astype(np.int64) // 86_400, return_inverse=True)[1]
    leaf, base = (dataset(cut["train"][side == which]) for which in (0, 1))
    sensors = ("electrical", "hydraulic", "vibration")
    return Scene(
        sensors,
        leaf,
        base,
        dataset(cut["train"]),
        dataset(cut["val"]),
        dataset(cut[split]),
        files,
        days.astype(np.int64),
    )


def split_by_day(manifest: Path) -> dict[int, str]:
    """The split of each file: of each day's files in order of time, every third of four is val, every fourth test."""
    days: dict[str, list[dict[str, str]]] = {}
    with manifest.open(newline="") as file:
        for row in csv.DictReader(file):
            days.setdefault(row["start"][:10], []).append(row)
    ordered = (sorted(rows, key=lambda row: row["start"]) for rows in days.values())
    return {int(row["file_id"]): PLACES.get(k % 4, "train") for rows in ordered for k, row in enumerate(rows)}


def digits(shared: Path, split: str) -> Scene:
    """All ten digits; the leaf hears even clips, the base sees the pictures that belong to odd ones."""
    tasks = classes(shared).tasks
    parts = {part: _with_code(together([task.parts[part] for task in tasks])) for part in ("train", "val", "test")}
    groups = {part: np.concatenate([task.groups[part] for task in tasks]) for part in parts}
    thin = groups["train"] // 2 % 2 == 0  # half of the clips: enough, and half the time
    parts["train"], groups["train"] = _rows(parts["train"], thin), groups["train"][thin]
    leaf, base = (_rows(parts["train"], groups["train"] % 2 == which) for which in (0, 1))
    kinds = parts[split].labels.astype(np.int64)
    sensors = ("mic0", "code0", "cam0")
    return Scene(sensors, leaf, base, parts["train"], parts["val"], parts[split], groups[split], kinds)


def _apart(time_s: NDArray[np.int64], part: str, seconds: Mapping[str, set[int]]) -> bool:
    """Whether a window of one split shares no second with those that are to be kept from it: test first, then val."""
    kept = {"train": ("val", "test"), "val": ("test",), "test": ()}[part]
    return all(seconds[other].isdisjoint(time_s.tolist()) for other in kept)


def _of(file_id: NDArray[np.int64], places: Mapping[int, str], part: str) -> NDArray[np.bool_]:
    return np.isin(file_id, [file for file, place in places.items() if place == part])


def _series(windows: NDArray[np.float32], columns: Sequence[str]) -> Dataset:
    """Windows (n, columns, samples) as moments of the three groups of sensors."""
    views: dict[str, View] = {}
    specs: dict[str, Prepare] = {}
    for name in ("electrical", "hydraulic", "vibration"):
        chosen = [columns.index(column) for column in SKAB_GROUPS[name]]
        views[name] = View(name, np.ascontiguousarray(windows[:, chosen]), np.ones(len(windows), np.bool_))
        specs[name] = SeriesPrepare(channels=len(chosen), samples=windows.shape[2])
    return _dataset(views, specs, [""] * len(windows))


def _dataset(views: dict[str, View], specs: dict[str, Prepare], labels: Sequence[str]) -> Dataset:
    count = len(labels)
    none = np.zeros(count, np.int64)
    return Dataset(views, specs, np.arange(count) * NS, none, NS, NS, {}, [], np.array(labels, np.str_))


def _with_code(part: Dataset) -> Dataset:
    """With a third sensor: the class of each moment as one of ten codes."""
    code = np.eye(10, dtype=np.float32)[part.labels.astype(int)]
    spec = FeaturesPrepare(10, sha256(b"one of ten codes"))
    views = {**part.views, "code0": View("code", code, np.ones(len(code), np.bool_))}
    return replace(part, views=views, specs={**part.specs, "code": spec})


def only(part: Dataset, sensors: tuple[str, ...]) -> Dataset:
    """The same moments of some sensors."""
    views = {name: part.views[name] for name in sensors}
    return replace(part, views=views, specs={view.modality: part.specs[view.modality] for view in views.values()})


def _rows(part: Dataset, chosen: NDArray[np.bool_]) -> Dataset:
    views = {name: View(view.modality, view.inputs[chosen], view.present[chosen]) for name, view in part.views.items()}
    return _dataset(views, part.specs, part.labels[chosen].tolist())

"""Labelled moments in three parts: learned from, chosen on, measured on; no second of a recording in two of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from lineside.clock import NS
from lineside.errors import RecordingError
from trainer.data import Dataset

Numbers = NDArray[np.int64]
BLOCK_NS = 10 * NS  # windows nearer to each other than this are drawn together when intervals are made
FEWEST = 2  # moments of a label in each part


@dataclass(frozen=True)
class Labelled:
    """Moments and the number of each one's label in `names`, -1 for none.

    `rows` are those of `train`, `val` and `test`; moments of one of `groups` (n,) are drawn together by a resampling.
    """

    dataset: Dataset
    names: tuple[str, ...]
    state: Numbers
    rows: Mapping[str, Numbers]
    groups: Numbers

    def windows(self, modality: str, part: str) -> tuple[NDArray[np.generic], Numbers]:
        """All present windows (n, *shape) of a modality's sensors in one part, and the moment of each (n,)."""
        found = [view for view in self.dataset.views.values() if view.modality == modality]
        rows = [self.rows[part][view.present[self.rows[part]]] for view in found]
        return np.concatenate([view.inputs[row] for view, row in zip(found, rows, strict=True)]), np.concatenate(rows)

    def log_prior(self) -> NDArray[np.float64]:
        """Logarithm of how common each label is among what is learned from, (C,)."""
        count = np.bincount(self.state[self.rows["train"]], minlength=len(self.names))
        return np.asarray(np.log(count / count.sum()))


def data_sha256(dataset: Dataset, modality: str) -> str:
    """Hash of all that one modality's model learns from and is measured on."""
    digest = hashlib.sha256(dataset.start_ns.tobytes() + dataset.recording.tobytes())
    digest.update(msgspec.json.encode(dataset.labels.tolist()))
    for sensor, view in dataset.views.items():
        if view.modality == modality:
            digest.update(sensor.encode() + view.present.tobytes() + np.ascontiguousarray(view.inputs).tobytes())
    return digest.hexdigest()


def by_time(dataset: Dataset, validation: float, held_out: float, where: str) -> Labelled:
    """Split each label's time in each recording: the last share is `test`, the share before it `val`.

    Raises RecordingError, naming `where`, for fewer than two labels and for a label that a part hardly holds.
    """
    labels = dataset.labels if len(dataset.labels) else np.zeros(len(dataset), np.str_)
    names = tuple(sorted(set(labels.tolist()) - {""}))
    if len(names) < 2:
        told = f"carries {', '.join(names) or 'no label'}: a classifier needs two labels to tell apart"
        raise RecordingError(where, told, "label the states of the station when recording")
    number = {name: k for k, name in enumerate(names)}
    state = np.array([number.get(name, -1) for name in labels.tolist()], np.int64)
    seen = np.any([view.present for view in dataset.views.values()], axis=0)
    part = _parts(dataset, np.where(seen, state, -1), validation, held_out)
    rows = {name: np.flatnonzero(part == k) for k, name in enumerate(("train", "val", "test"))}
    data = Labelled(dataset, names, state, rows, _blocks(dataset, state))
    _enough(data, where)
    return data


def _parts(dataset: Dataset, state: Numbers, validation: float, held_out: float) -> Numbers:
    """0, 1 or 2 for train, val and test, -1 for a moment that is used in none."""
    part = np.full(len(state), -1)
    for recording in np.unique(dataset.recording):
        for k in np.unique(state[state >= 0]):
            rows = np.flatnonzero((dataset.recording == recording) & (state == k))
            done = (np.arange(len(rows)) + 0.5) / max(1, len(rows))
            part[rows] = (done > 1 - held_out - validation).astype(int) + (done > 1 - held_out)
        here = dataset.recording == recording
        for earlier in (0, 1):
            mine = here & (part == earlier)
            later = np.sort(dataset.start_ns[here & (part > earlier)])
            part[mine & _near(dataset.start_ns, later, dataset.length_ns)] = -1
    return part


def _near(start_ns: Numbers, others_ns: Numbers, length_ns: int) -> NDArray[np.bool_]:
    """Which windows (n,) share a moment with a window that starts at one of `others_ns`, which are in order.

    >>> _near(np.array([0, 5, 10]), np.array([12, 40]), 10)
    array([False,  True,  True])
    """
    first = others_ns.searchsorted(start_ns - length_ns, "right")  # the first that ends after this one's start
    return np.asarray(np.append(others_ns, np.iinfo(np.int64).max)[first] < start_ns + length_ns)


def _blocks(dataset: Dataset, state: Numbers) -> Numbers:
    """A number for each BLOCK_NS of one label in one recording."""
    key = np.stack([dataset.recording, state, dataset.start_ns // BLOCK_NS])
    return np.asarray(np.unique(key, axis=1, return_inverse=True)[1].reshape(-1), np.int64)


def _enough(data: Labelled, where: str) -> None:
    for name, rows in data.rows.items():
        counts: Sequence[int] = np.bincount(data.state[rows], minlength=len(data.names)).tolist()
        if few := [f"{count} of {label}" for label, count in zip(data.names, counts, strict=True) if count < FEWEST]:
            told = f"leaves {', '.join(few)} in its {name} part, at least {FEWEST} moments of each are needed"
            raise RecordingError(where, told, "record longer, or change validation and held_out")

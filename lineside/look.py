"""How a window looks to no network at all: its coarse cells, and what is left of them outside what normal ones do.

A learned encoder gives up what it was not taught to keep: a spot on the lens, a part that is missing. Plain principal
axes of the window itself see some of that at once, and a detector that loses to them should not be offered.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SIDE = 16  # cells along each side
AXES, EXPLAINED = 32, 0.95  # at most, and the share of power that they need not exceed


def coarse(windows: NDArray[np.generic]) -> NDArray[np.float32] | None:
    """Prepared windows (n, channels, height, width) as means of cells (n, p), at most SIDE by SIDE a channel.

    None for series (n, channels, samples): the phase of a waveform is chance, and its cells mean nothing.

    >>> coarse(np.ones((2, 3, 96, 96), np.uint8)).shape, coarse(np.ones((2, 3, 256)))
    ((2, 768), None)
    """
    if windows.ndim != 4:
        return None
    rows, columns = (_averages(size) for size in windows.shape[2:])
    cells = np.matmul(np.matmul(rows, windows.astype(np.float32, copy=False)), columns.T)
    return np.ascontiguousarray(cells.reshape(len(windows), -1))


@functools.lru_cache(maxsize=16)
def _averages(length: int) -> NDArray[np.float32]:
    """The means of at most SIDE runs of neighbours, as a matrix (runs, length)."""
    runs = min(SIDE, length)
    edges = np.arange(runs + 1) * length // runs
    made = np.zeros((runs, length), np.float32)
    for row, (first, end) in enumerate(itertools.pairwise(edges)):
        made[row, first:end] = 1 / (end - first)
    return made


@dataclass(frozen=True)
class Look:
    """Normal looks of one sensor: `mean` (p,) and principal `axes` (p, k) of their cells."""

    mean: NDArray[np.float32]
    axes: NDArray[np.float32]

    @classmethod
    def fit(cls, cells: NDArray[np.float32]) -> Look:
        """Learn from `cells` (n, p), n >= 2."""
        mean = cells.mean(axis=0)
        off = cells - mean
        power, turns = np.linalg.eigh(off @ off.T) if len(off) < off.shape[1] else np.linalg.eigh(off.T @ off)
        power, turns = np.maximum(power[::-1], 0.0), turns[:, ::-1]
        share = np.cumsum(power) / max(float(power.sum()), 1e-12)
        kept = min(AXES, max(1, len(cells) // 4), int(np.searchsorted(share, EXPLAINED)) + 1)
        axes = turns[:, :kept]
        if len(off) < off.shape[1]:
            axes = off.T @ axes / np.sqrt(np.maximum(power[:kept], 1e-12))
        return cls(mean, np.asarray(axes, np.float32))

    def distances(self, cells: NDArray[np.float32]) -> NDArray[np.float64]:
        """Length (n,) of what is left of `cells` (n, p) beside the mean and the axes.

        >>> line = np.outer(np.arange(8.0), [1.0, 1.0, 0.0]).astype(np.float32)
        >>> Look.fit(line).distances(line[:1] + np.array([5.0, 5.0, 2.0], np.float32)).round(3).tolist()
        [2.0]
        """
        off = cells - self.mean
        left = (off * off).sum(axis=1, dtype=np.float64) - ((off @ self.axes) ** 2).sum(axis=1, dtype=np.float64)
        return np.asarray(np.sqrt(np.maximum(left, 0.0)))

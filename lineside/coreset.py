"""Normal, compressed: whitened features, and a small subset of them that lies near all those of normal running."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHRINKAGE = 1.0


@dataclass(frozen=True)
class Coreset:
    """Normal running of one sensor: `mean` (f,), `whiten` (f, r), the whitened `bank` (m, r), and `beside`.

    Whitened, so that a change counts by how unusual it is, not by how large: features of normal running differ
    along few directions, and a fault that moves them along another one would else be lost among these. The mean
    variance is added to every direction's own, which from few windows is known badly or not at all. Fewer windows than
    features span r < f directions alone: what leads beside them counts by its length over `beside`. `taken` (m,) says
    which of the windows the bank's rows are.
    """

    mean: NDArray[np.floating[Any]]
    whiten: NDArray[np.floating[Any]]
    bank: NDArray[np.float32]
    beside: float = math.inf
    taken: NDArray[np.intp] = field(default_factory=lambda: np.zeros(0, np.intp))

    @classmethod
    def fit(cls, points: NDArray[np.float32], size: int) -> Coreset:
        """Learn from `points` (n, f), n >= 2, of which at most `size` are kept.

        >>> usual = np.array([[3.0, 0.0], [-3.0, 0.01], [1.0, 0.0], [-1.0, -0.01]], np.float32)
        >>> near, far = Coreset.fit(usual, 4).distances(np.array([[2.0, 0.0], [1.0, 1.0]], np.float32))
        >>> bool(near < far)
        True
        """
        mean = points.mean(axis=0, dtype=np.float64)
        spread, axes = _principal(points - mean)
        added = SHRINKAGE * float(spread.sum()) / points.shape[1] + 1e-12
        whiten = np.asarray(axes / np.sqrt(spread + added), np.float32)
        white = np.asarray((points - mean).astype(np.float32) @ whiten, np.float32)
        beside = math.inf if len(spread) == points.shape[1] else math.sqrt(added)
        taken = k_center(white, size)
        return cls(mean.astype(np.float32), whiten, white[taken], beside, taken)

    def distances(self, points: NDArray[np.float32]) -> NDArray[np.float64]:
        """Whitened distance (n,) from each of `points` (n, f) to its nearest neighbour in the bank."""
        off = points - self.mean
        white = off @ self.whiten
        near = distances(white.astype(np.float32, copy=False), self.bank)
        if math.isinf(self.beside):
            return near
        left = np.square(off, dtype=np.float64).sum(axis=1) - np.square(white / self._scale, dtype=np.float64).sum(
            axis=1
        )
        return np.asarray(np.sqrt(near**2 + np.maximum(left, 0.0) / self.beside**2))

    def nearest(self, point: NDArray[np.float32]) -> int:
        """Which of the points that `fit` was given is, of those kept, the nearest to one (f,), whitened.

        >>> usual = np.array([[3.0, 0.0], [-3.0, 0.01], [1.0, 0.0], [-1.0, -0.01]], np.float32)
        >>> Coreset.fit(usual, 4).nearest(np.array([-1.2, 0.0], np.float32))
        3
        """
        white = (point - self.mean) @ self.whiten
        return int(self.taken[np.square(self.bank - white).sum(axis=1).argmin()])

    @cached_property
    def _scale(self) -> NDArray[np.floating[Any]]:
        """What a step of length 1 along each axis is whitened to (r,)."""
        return np.asarray(np.linalg.norm(self.whiten, axis=0))


def _principal(off: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Variances (r,) along the orthonormal axes (f, r) that the centred points (n, f) span, or along all f.

    By the smaller of the two products of the points with themselves, which have the same spectrum.
    """
    n, f = off.shape
    if n > f:
        spread, axes = np.linalg.eigh(off.T @ off / (n - 1))
        return np.maximum(spread, 0.0), axes
    power, turns = np.linalg.eigh(off @ off.T)
    kept = power > max(1e-12 * float(power[-1]), 0.0)
    axes = off.T @ turns[:, kept] / np.sqrt(power[kept])
    return power[kept] / (n - 1), axes


def k_center(points: NDArray[np.float32], size: int) -> NDArray[np.intp]:
    """Indices (<= size,) of a greedy k-center cover of `points` (n, dim), beginning with the first point.

    Each step takes the point farthest from those taken; the cover radius is at most twice the best possible one
    (Gonzalez, Clustering to minimize the maximum intercluster distance, 1985).

    >>> k_center(np.array([[0.0], [0.1], [5.0], [9.0]], np.float32), 3).tolist()
    [0, 3, 2]
    """
    chosen = [0]
    nearest = np.linalg.norm(points - points[0], axis=1)
    while len(chosen) < min(size, len(points)) and nearest.max() > 0:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.linalg.norm(points - points[chosen[-1]], axis=1))
    return np.array(chosen)


def distances(points: NDArray[np.float32], bank: NDArray[np.float32]) -> NDArray[np.float64]:
    """Euclidean distance (n,) from each of `points` (n, dim) to its nearest neighbour in `bank` (m, dim)."""
    squared = (points**2).sum(1)[:, None] + (bank**2).sum(1)[None] - 2.0 * points @ bank.T
    return np.asarray(np.sqrt(np.maximum(squared.min(axis=1), 0.0)), np.float64)

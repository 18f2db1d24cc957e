"""Normal, compressed: whitened features, and a small subset of them that lies near all those of normal running."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SHRINKAGE = 1.0


@dataclass(frozen=True)
class Coreset:
    """Normal running of one sensor: `mean` (f,), `whiten` (f, f) and the whitened `bank` (m, f).

    Whitened, so that a change counts by how unusual it is, not by how large: features of normal running differ
    along few directions, and a fault that moves them along another one would else be lost among these. The mean
    variance is added to every direction's own, which from few windows is known badly or not at all.
    """

    mean: NDArray[np.float64]
    whiten: NDArray[np.float64]
    bank: NDArray[np.float32]

    @classmethod
    def fit(cls, points: NDArray[np.float32], size: int) -> Coreset:
        """Learn from `points` (n, f), n >= 2, of which at most `size` are kept.

        >>> usual = np.array([[3.0, 0.0], [-3.0, 0.01], [1.0, 0.0], [-1.0, -0.01]], np.float32)
        >>> near, far = Coreset.fit(usual, 4).distances(np.array([[2.0, 0.0], [1.0, 1.0]], np.float32))
        >>> bool(near < far)
        True
        """
        mean = points.mean(axis=0, dtype=np.float64)
        spread, axes = np.linalg.eigh(np.cov(points.T.astype(np.float64)))
        scale = np.sqrt(np.maximum(spread, 0.0) + SHRINKAGE * spread.mean() + 1e-12)
        whiten = axes / scale
        white = ((points - mean) @ whiten).astype(np.float32)
        return cls(mean, whiten, white[k_center(white, size)])

    def distances(self, points: NDArray[np.float32]) -> NDArray[np.float64]:
        """Whitened distance (n,) from each of `points` (n, f) to its nearest neighbour in the bank."""
        return distances(((points - self.mean) @ self.whiten).astype(np.float32), self.bank)


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

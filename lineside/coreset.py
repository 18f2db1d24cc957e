"""Normal, compressed: a small subset of embeddings that lies near every embedding of normal running."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


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

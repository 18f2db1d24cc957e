"""Chance as a pure function of a seed and an index: the same number whoever asks, in whatever order or block size."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def uniform(seed: int, index: NDArray[Any] | int) -> NDArray[np.float64]:
    """One number in [-1, 1) for every integer of `index`, from splitmix64 (Steele, Lea, Flood, 2014).

    >>> bool((uniform(7, np.arange(4))[2:] == uniform(7, np.arange(2, 4))).all())
    True
    """
    start = (seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) % 2**64
    x = np.atleast_1d(np.asarray(index, np.int64)).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(start)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
    return ((x >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0).reshape(np.shape(index))


def smooth(seed: int, place: NDArray[np.float64]) -> NDArray[np.float64]:
    """Noise at real places, straight lines between the numbers of the whole ones."""
    whole = np.floor(place).astype(np.int64)
    first = int(whole.min()) if whole.size else 0
    points = uniform(seed, np.arange(first, first + int(np.ptp(whole)) + 2 if whole.size else first))
    left = points[whole - first]
    return np.asarray(left + (points[whole - first + 1] - left) * (place - whole))

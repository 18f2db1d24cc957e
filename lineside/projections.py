"""An embedding as a few numbers, so that a change in any direction moves one of them: channels for lineside.drift."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEADING, WIDE = 8, 32
MEMORIES = (1 / 32, 1 / 256)  # of the witnesses, in windows
NARROWEST, TINY = 1e-3, 1e-12
CHANNELS = (*(f"axis {k + 1}" for k in range(LEADING)), "spread", "rest", "centre", "course 32", "course 256")
WITNESSES = len(MEMORIES)

_FORGET = np.array(MEMORIES)[:, None]


@dataclass(frozen=True)
class Space:
    """Whitened principal axes of normal embeddings: `mean` (d,), `axes` (d, d) with the widest first, their standard
    deviations `scale` (d,), and the unit `centre` (d,).

    All axes are kept, for a change goes along none of them: what leaves out three quarters of the axes sees a quarter
    of it (`python -m bench.embedding_drift`).
    """

    mean: Floats
    axes: Floats
    scale: Floats
    centre: Floats

    @classmethod
    def fit(cls, embeddings: NDArray[np.float32]) -> Space:
        """Learn from `embeddings` (n, d), n >= 2; from few, variances are drawn towards their mean."""
        points = embeddings.astype(np.float64)
        mean = points.mean(axis=0)
        off = points - mean
        variance, axes = np.linalg.eigh(off.T @ off / len(off))
        variance, axes = np.maximum(variance[::-1], 0.0), np.ascontiguousarray(axes[:, ::-1])
        drawn = shrinkage(off, variance)
        scale = np.sqrt((1 - drawn) * variance + drawn * variance.mean())
        least = max(NARROWEST * float(scale.max()), TINY)  # an axis that nothing fills holds rounding alone
        return cls(mean, axes, np.maximum(scale, least), mean / max(float(np.linalg.norm(mean)), TINY))


def shrinkage(off: Floats, variance: Floats) -> float:
    """How far, 0 to 1, to draw the covariance of centred points (n, d) towards the mean of its eigenvalues (d,).

    (Ledoit and Wolf, A well-conditioned estimator for large-dimensional covariance matrices, 2004, lemma 3.3.)

    >>> few, many = (np.random.default_rng(0).normal(size=(n, 8)) * np.arange(1, 9) for n in (20, 2000))
    >>> [round(shrinkage(x, np.linalg.eigvalsh(x.T @ x / len(x))), 3) for x in (few, many)]
    [0.276, 0.007]
    """
    apart = float(((variance - variance.mean()) ** 2).sum())
    if apart <= 0:
        return 1.0
    error = (float(((off**2).sum(axis=1) ** 2).sum()) / len(off) - float((variance**2).sum())) / len(off)
    return min(1.0, max(0.0, error / apart))


@dataclass
class Projections:
    """One sensor's embeddings, window by window, as CHANNELS; `course` (witnesses, d) is where they have been.

    The leading axes see a shift along what varies in normal running, `spread` one along all axes together, `rest` one
    along those where next to nothing varies (beyond the first WIDE), `centre` one away from the middle. A witness looks
    along the mean of the last embeddings: it bets on the direction that a slow drift has taken so far, whichever it is,
    and knows it only from windows before.
    """

    space: Space
    course: Floats = field(default_factory=lambda: np.zeros((WITNESSES, 1)))

    def __post_init__(self) -> None:
        if self.course.shape[1] != self.space.axes.shape[1]:
            self.course = np.zeros((WITNESSES, self.space.axes.shape[1]))

    def hear(self, embedding: NDArray[np.float32]) -> Floats:
        """The channels (CHANNELS,) of the next embedding (d,); one that is no number gives NaN and moves nothing."""
        space, point = self.space, embedding.astype(np.float64)
        off = point - space.mean
        if not math.isfinite(off.dot(off)):
            return np.full(len(CHANNELS), np.nan)
        along = off @ space.axes
        y, narrow = along / space.scale, along[WIDE:]
        lengths = [max(math.sqrt(course.dot(course)), TINY) for course in self.course]
        found = np.zeros(len(CHANNELS))
        found[: len(y[:LEADING])] = y[:LEADING]
        found[LEADING:-WITNESSES] = (
            math.log(y.dot(y) + TINY),
            math.log(narrow.dot(narrow) + TINY),
            point.dot(space.centre),
        )
        found[-WITNESSES:] = self.course @ y / lengths
        self.course += _FORGET * (y - self.course)
        return found

    def hear_all(self, embeddings: NDArray[np.float32]) -> Floats:
        """The channels (n, CHANNELS) of embeddings (n, d) in order; a row of NaN is an absent window."""
        return np.array([self.hear(embedding) for embedding in embeddings]).reshape(-1, len(CHANNELS))

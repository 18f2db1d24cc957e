"""An embedding as a few numbers, so that a change in any direction moves one of them: channels for lineside.drift."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEADING, KEPT = 8, 32
MEMORIES = (1 / 32, 1 / 256)  # of the witnesses, in windows
TINY = 1e-12
CHANNELS = (*(f"axis {k + 1}" for k in range(LEADING)), "spread", "rest", "centre", "course 32", "course 256")
WITNESSES = len(MEMORIES)


@dataclass(frozen=True)
class Space:
    """Whitened principal axes of normal embeddings: `mean` (d,), `axes` (d, kept), and the unit `centre` (d,)."""

    mean: Floats
    axes: Floats
    scale: Floats
    centre: Floats

    @classmethod
    def fit(cls, embeddings: NDArray[np.float32]) -> Space:
        """Learn from `embeddings` (n, d), n >= 2, of which no more axes are kept than they fill."""
        points = embeddings.astype(np.float64)
        mean = points.mean(axis=0)
        _, spread, axes = np.linalg.svd(points - mean, full_matrices=False)
        kept = max(1, min(KEPT, len(points) // 4, int((spread > 1e-6 * max(spread[0], TINY)).sum())))
        scale = np.maximum(spread[:kept] / np.sqrt(len(points) - 1), TINY)
        return cls(mean, axes[:kept].T, scale, mean / max(float(np.linalg.norm(mean)), TINY))


@dataclass
class Projections:
    """One sensor's embeddings, window by window, as CHANNELS; `course` (witnesses, kept) is where they have been.

    The leading axes see a shift along what varies in normal running, `spread` one along all kept axes together, `rest`
    one that leaves them, `centre` one away from the middle. A witness looks along the mean of the last embeddings: it
    bets on the direction that a slow drift has taken so far, whichever it is, and knows it only from windows before.
    """

    space: Space
    course: Floats = field(default_factory=lambda: np.zeros((WITNESSES, 1)))

    def __post_init__(self) -> None:
        if self.course.shape[1] != self.space.axes.shape[1]:
            self.course = np.zeros((WITNESSES, self.space.axes.shape[1]))

    def hear(self, embedding: NDArray[np.float32]) -> Floats:
        """The channels (CHANNELS,) of the next embedding (d,)."""
        off = embedding - self.space.mean
        along = off @ self.space.axes
        y = along / self.space.scale
        rest = max(float(off @ off - along @ along), 0.0)
        lengths = np.sqrt((self.course**2).sum(axis=1))
        witnessed = (self.course @ y) / np.maximum(lengths, TINY)
        self.course += np.array(MEMORIES)[:, None] * (y - self.course)
        leading = np.zeros(LEADING)
        leading[: len(y[:LEADING])] = y[:LEADING]
        others = np.log(float(y @ y) + TINY), np.log(rest + TINY), float(embedding @ self.space.centre)
        return np.concatenate([leading, others, witnessed])

    def hear_all(self, embeddings: NDArray[np.float32]) -> Floats:
        """The channels (n, CHANNELS) of embeddings (n, d) in order; a row of NaN is an absent window."""
        found = np.full((len(embeddings), len(CHANNELS)), np.nan)
        for row, embedding in enumerate(embeddings):
            if np.isfinite(embedding).all():
                found[row] = self.hear(embedding)
        return found

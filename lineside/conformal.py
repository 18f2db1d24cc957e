"""Scores to p-values: split conformal inside the calibration set, an exponential tail beyond it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

P_FLOOR = 1e-12
TAIL_SHARE = 0.1


@dataclass(frozen=True)
class Calibration:
    """Calibration scores of normal running, ascending; larger means stranger.

    A score inside them gets the conformal p-value (1 + #{calibration >= score}) / (n + 1), valid for exchangeable
    windows (Bates et al., Testing for outliers with conformal p-values, 2021, section 2). Beyond the largest one the
    p-value is extrapolated by an exponential tail fitted to the excesses over the upper tenth (peaks over threshold
    with shape 0): a model, not a guarantee, so that a far score still ranks above a near one.
    """

    scores: NDArray[np.float64]
    tail_scale: float

    @classmethod
    def fit(cls, scores: NDArray[np.float64]) -> Calibration:
        """Calibrate on `scores` (n,), n >= 1, all finite.

        >>> Calibration.fit(np.arange(99.0)).p_value(98.5) < 0.01
        True
        """
        if not len(scores) or not np.isfinite(scores).all():
            raise ValueError(f"calibration needs finite scores, got {len(scores)}")
        ordered = np.sort(np.asarray(scores, np.float64))
        tail = ordered[-max(2, int(np.ceil(TAIL_SHARE * len(ordered)))) :]
        scale = float(np.mean(tail - tail[0]))
        return cls(ordered, max(scale, 1e-9 * (1.0 + abs(float(ordered[-1])))))

    def p_value(self, score: float) -> float:
        """The p-value of one score, in (0, 1]; a score that is not a number is as strange as can be."""
        n = len(self.scores)
        if not np.isfinite(score):
            return P_FLOOR
        at_least = n - int(np.searchsorted(self.scores, score, side="left"))
        inside = (1 + at_least) / (n + 1)
        if at_least:
            return inside
        return max(P_FLOOR, inside * float(np.exp(-(score - self.scores[-1]) / self.tail_scale)))

    def evidence(self, score: float) -> float:
        """-ln p, in nats: 0 for the most ordinary score."""
        return -float(np.log(self.p_value(score)))

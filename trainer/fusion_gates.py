"""Gates of a fusion: each sensor keeps its registered strength, and together they are never below the best of them.

Pure functions of which held-out moments were told right; a moment at which a sensor is absent is NaN and does not count
for it. What is compared is compared on the same moments, draw by draw (trainer.resampling).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lineside.release import Gate
from trainer.resampling import Resampling, interval

Floats = NDArray[np.float64]


def retention(
    fused: Mapping[str, Floats],
    registered: Mapping[str, Floats],
    draws: Resampling,
    loss: float = 0.01,
    confidence: float = 0.95,
) -> list[Gate]:
    """rho of each sensor, its accuracy inside the fused model over its registered one's, is surely at least 1 - `loss`.

    `fused` and `registered` (n,) say of each moment whether the sensor alone was right (1.0), wrong (0.0) or absent.
    The value is the lower confidence bound of rho (paired bootstrap): what cannot be shown to be kept does not pass.
    (ume-mmlora.md, section 7.)

    >>> same = {"cam0": np.array([1.0, 0.0, 1.0, 1.0])}
    >>> retention(same, same, Resampling.of(np.arange(4)))
    [Gate(name='retention cam0', value=1.0, limit=0.99, at_most=False)]
    """
    found = {sensor: ratios(right, registered[sensor], draws) for sensor, right in fused.items()}
    ends = {sensor: interval(values, 2 * confidence - 1)[0] for sensor, values in found.items()}
    return [Gate(f"retention {sensor}", low, 1 - loss, False) for sensor, low in ends.items()]


def ratios(now: Floats, before: Floats, draws: Resampling) -> Floats:
    """One accuracy over another in every resample; 1 where the other is 0, as there is nothing to lose."""
    a, b = draws.means(now), draws.means(before)
    return np.asarray(np.divide(a, b, out=np.ones_like(a), where=b != 0))


def fusion_gain(
    fused: Floats, singles: Mapping[str, Floats], draws: Resampling, confidence: float = 0.95
) -> list[Gate]:
    """The fused accuracy is not below that of the best single sensor's registered model, by more than chance allows.

    The best is the one that is most often right of the moments at which it is there; both are compared on these. The
    value is the upper end of the paired interval of the difference, so that it fails where fusion is surely worse.
    Empty where no sensor says anything.

    >>> mic = {"mic0": np.ones(50), "cam0": np.zeros(50)}
    >>> [gate.passed for gate in fusion_gain(np.ones(50), mic, Resampling.of(np.arange(50)))]
    [True]
    >>> [gate.passed for gate in fusion_gain(np.zeros(50), mic, Resampling.of(np.arange(50)))]
    [False]
    """
    best = best_single(singles)
    if not best:
        return []
    high = interval(draws.means(fused - singles[best]), confidence)[1]
    return [Gate(f"fusion gain over {best}", high, 0.0, False)]


def best_single(singles: Mapping[str, Floats]) -> str:
    """The sensor that is most often right where it is there, "" where none ever is."""
    means = {sensor: float(np.nanmean(right)) for sensor, right in singles.items() if np.isfinite(right).any()}
    return max(means, key=lambda sensor: means[sensor], default="")

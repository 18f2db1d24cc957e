"""How good scores and alarms are, against labels: areas, rates, and how surely they are known."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def auroc(normal: Floats, faulty: Floats) -> float:
    """Share of pairs (normal, faulty) in which the faulty one has the larger score; ties count half.

    NaN where there is none of either.

    >>> auroc(np.array([1.0, 2.0]), np.array([2.0, 3.0]))
    0.875
    """
    if not len(normal) or not len(faulty):
        return math.nan
    ordered = np.sort(normal)
    below, up_to = ordered.searchsorted(faulty, "left"), ordered.searchsorted(faulty, "right")
    return float((below + up_to).mean() / (2 * len(ordered)))


def auroc_error(area: float, normal: int, faulty: int) -> float:
    """Standard error of an AUROC (Hanley and McNeil, Radiology 143, 1982, eq. 2).

    >>> round(auroc_error(0.9, 100, 100), 3)
    0.023
    """
    one, two = area / (2 - area), 2 * area * area / (1 + area)
    spread = area * (1 - area) + (faulty - 1) * (one - area * area) + (normal - 1) * (two - area * area)
    return math.sqrt(max(0.0, spread) / (normal * faulty))


def rate_upper(count: int, time: float, confidence: float = 0.95) -> float:
    """What a Poisson rate is at most that gave `count` events in `time` > 0, with `confidence` (Garwood, 1936).

    >>> round(rate_upper(0, 1.0), 2), round(rate_upper(3, 1.0), 2)
    (3.0, 7.75)
    """

    def at_most(mean: float) -> float:
        return math.exp(-mean) * sum(mean**k / math.factorial(k) for k in range(count + 1))

    low, high = 0.0, 10.0 + 3.0 * count
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if at_most(middle) > 1 - confidence else (low, middle)
    return high / time

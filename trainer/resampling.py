"""How surely a measure is known: groups of moments drawn anew, the same draws for all that is compared (bootstrap).

Moments of one group (a recording's neighbours, one clip's pictures) are drawn together, as they are not independent
(Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8). Two measures of the same moments are
compared draw by draw, so that what both find easy or hard falls out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]

RESAMPLES = 4000


@dataclass(frozen=True)
class Resampling:
    """`index` (n,) is the group of each moment, `drawn` (resamples, groups) how often each group was drawn."""

    index: Numbers
    drawn: Floats

    @classmethod
    def of(cls, groups: Numbers, resamples: int = RESAMPLES, seed: int = 0) -> Resampling:
        """Draw as many groups as there are, with replacement."""
        names, index = np.unique(groups, return_inverse=True)
        chance, share = np.random.default_rng(seed), np.full(len(names), 1 / len(names))
        return cls(index.reshape(-1), chance.multinomial(len(names), share, resamples).astype(np.float64))

    def totals(self, values: Floats) -> Floats:
        """Sum of `values` (n, ...) in every resample, (resamples, ...)."""
        flat = values.reshape(len(values), -1)
        grouped = np.stack([np.bincount(self.index, column, self.drawn.shape[1]) for column in flat.T], axis=1)
        return np.asarray((self.drawn @ grouped).reshape(len(self.drawn), *values.shape[1:]))

    def means(self, values: Floats) -> Floats:
        """Mean of `values` (n,) in every resample, (resamples,); NaN marks moments that do not count.

        >>> Resampling.of(np.array([1, 2, 2])).means(np.array([1.0, 1.0, np.nan]))[:3]
        array([1., 1., 1.])
        """
        counts = np.isfinite(values)
        summed, many = self.totals(np.where(counts, values, 0.0)), self.totals(counts.astype(np.float64))
        return np.asarray(np.divide(summed, many, out=np.full(len(summed), np.nan), where=many > 0))

    def macro_f1(self, state: Numbers, said: Numbers, classes: int) -> Floats:
        """`macro_f1` of every resample."""
        hit, named, true = (self.totals(table) for table in _tables(state, said, classes))
        return _f1(hit, named, true)


def interval(values: Floats, confidence: float = 0.95) -> tuple[float, float]:
    """The two ends between which the middle share `confidence` of the resamples lies; NaN where there are none."""
    found = values[np.isfinite(values)]
    if not len(found):
        return float("nan"), float("nan")
    low, high = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def macro_f1(state: Numbers, said: Numbers, classes: int) -> float:
    """Mean over the classes that occur of 2 P R / (P + R), which is 2 hits / (named + true).

    >>> macro_f1(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), 2)
    0.7333333333333334
    """
    hit, named, true = (table.sum(axis=0) for table in _tables(state, said, classes))
    return float(_f1(hit, named, true))


def _tables(state: Numbers, said: Numbers, classes: int) -> tuple[Floats, Floats, Floats]:
    """For each moment and class (n, C): it was found, it was named, it was true."""
    one = np.eye(classes)
    return one[state] * one[said], one[said], one[state]


def _f1(hit: Floats, named: Floats, true: Floats) -> Floats:
    occurs = named + true > 0
    each = np.divide(2 * hit, named + true, out=np.zeros_like(hit), where=occurs)
    return np.asarray(each.sum(axis=-1) / np.maximum(1, occurs.sum(axis=-1)))

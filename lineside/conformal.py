"""Scores to p-values: split conformal inside the calibration set, peaks over threshold beyond it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

P_FLOOR = 1e-12
TAIL_SHARE, TAIL_LEAST, TAIL_MOST = 0.1, 5, 500  # scores above the threshold; more would bias the tail of a normal law
SHAPES = np.linspace(-0.25, 1.0, 64)  # 0 is not among them: its formula would be another
LEAST_SPREAD = 1e-6  # of the level: below it, scores differ by the rounding of float32 embeddings
_NODES = np.array([NormalDist().inv_cdf((i + 0.5) / 9) for i in range(9)])


@dataclass(frozen=True)
class Tail:
    """How fast the law of scores fades beyond the largest calibration score, and how surely that is known.

    A mixture of generalised Pareto laws S(x) = (1 + theta x) ** -g, each weighted by what `count` excesses say for it.
    The prior is flat in the shape (SHAPES, by theta * median = 2 ** shape - 1) and in the logarithm of g. Given theta,
    g times sum(log(1 + theta * excesses)) is Gamma(count): `totals` are these sums, and `rates` are the thetas as seen
    from the largest score (a generalised Pareto law stays one beyond any threshold). A mixture, unlike its best member,
    has no end point that chance can put just beyond the largest score, and it is heavier the fewer excesses it knows.
    """

    count: int
    rates: Array
    totals: Array
    weights: Array

    @classmethod
    def fit(cls, excesses: Array) -> Tail:
        """Fit to the `excesses` (count,) > 0 over a threshold, ascending, count >= 1."""
        count, largest = len(excesses), float(excesses[-1])
        theta = np.expm1(SHAPES * math.log(2)) / max(float(np.median(excesses)), 1e-9 * largest)
        theta = theta[theta * largest > -1 + 1e-9]
        totals = np.log1p(theta[:, None] * excesses).sum(axis=1)
        likelihood = count * np.log(theta / totals) - totals
        weights = np.exp(likelihood - likelihood.max())
        return cls(count, theta / (1 + theta * largest), totals, weights / weights.sum())

    def fading(self, beyond: float) -> float:
        """P(excess > largest + `beyond` | excess > largest), in [0, 1], averaged over what is not known of the tail."""
        return float(self.weights @ np.exp(-self.count * np.log1p(self._depths(beyond))))

    def fading_upper(self, beyond: float, confidence: float) -> float:
        """The `confidence` quantile of what `fading` averages over: members, and nine quantiles of Gamma(count) each.

        (Those by Wilson and Hilferty's cube.)
        """
        gamma = self.count * np.maximum(0.0, 1 - 1 / (9 * self.count) + _NODES / (3 * math.sqrt(self.count))) ** 3
        values = np.exp(-np.minimum(self._depths(beyond), 1e300)[:, None] * gamma).ravel()
        order = np.argsort(values)
        mass = np.cumsum(np.repeat(self.weights, len(_NODES))[order])
        return float(values[order[np.searchsorted(mass, confidence * mass[-1])]])

    def _depths(self, beyond: float) -> Array:
        """-ln S of each member, in units of 1 / its total; infinite beyond its end point."""
        with np.errstate(over="ignore"):  # infinitely far is far enough
            moved = self.rates * beyond
        depths = np.full(len(moved), np.inf)
        inside = moved > -1
        depths[inside] = np.log1p(moved[inside]) / self.totals[inside]
        return depths


@dataclass(frozen=True)
class Calibration:
    """Calibration scores of normal running, ascending; larger means stranger.

    A score inside them gets the conformal p-value (1 + #{calibration >= score}) / (n + 1), valid for exchangeable
    windows (Bates et al., Testing for outliers with conformal p-values, 2021, section 2). Beyond the largest one,
    where conformal has only 1 / (n + 1) to give, this is multiplied by how much the tail has faded since (peaks over
    threshold): a model, not a guarantee, so that a far score still ranks above a near one. `p_upper` bounds both.
    """

    scores: Array
    tail: Tail

    @classmethod
    def fit(cls, scores: Array) -> Calibration:
        """Calibrate on `scores` (n,), n >= 1, all finite.

        >>> Calibration.fit(np.arange(99.0)).p_value(98.5) < 0.01
        True
        """
        if not len(scores) or not np.isfinite(scores).all():
            raise ValueError(f"calibration needs finite scores, got {len(scores)}")
        ordered = np.sort(np.asarray(scores, np.float64))
        return cls(ordered, Tail.fit(_excesses(ordered)))

    def p_value(self, score: float) -> float:
        """The p-value of one score, in (0, 1]; a score that is not a number is as strange as can be."""
        n = len(self.scores)
        if not math.isfinite(score):
            return P_FLOOR
        at_least = n - int(self.scores.searchsorted(score))
        if at_least:
            return (1 + at_least) / (n + 1)
        return max(P_FLOOR, self.tail.fading(score - float(self.scores[-1])) / (n + 1))

    def evidence(self, score: float) -> float:
        """-ln p, in nats: 0 for the most ordinary score."""
        return -math.log(self.p_value(score))

    def p_upper(self, score: float, confidence: float = 0.95) -> float:
        """What P(a normal score >= `score`) is at most, with `confidence` in (0.5, 1); never below `p_value`.

        Inside the calibration set this is the quantile of the Beta law of the conformal p-value given the calibration
        (Bates et al., 2021, section 3; Clopper and Pearson's bound): no model. Beyond it, that of the largest score
        times that of the fading over all that the excesses leave open: a product of quantiles, for the two err
        together (a largest score that came out low also makes the tail look short), and quantiles instead of the delta
        method, since what is known of a tail's end is far from symmetric. It is blind to what no generalised Pareto
        law describes and to windows that are not exchangeable; `python -m bench.calibration` shows how far it holds.
        """
        if not 0.5 < confidence < 1:
            raise ValueError(f"confidence must be between 0.5 and 1, got {confidence}")
        estimate, n = self.p_value(score), len(self.scores)
        if not math.isfinite(score):
            return estimate
        at_least = n - int(self.scores.searchsorted(score))
        bound = beta_upper(at_least, n, confidence)
        if not at_least:
            bound *= self.tail.fading_upper(score - float(self.scores[-1]), confidence)
        return max(estimate, bound)

    @property
    def reach(self) -> float:
        """The smallest p-value that conformal supports alone, 1 / (n + 1)."""
        return 1 / (len(self.scores) + 1)

    def supports(self, alpha: float) -> bool:
        """Whether alarms at p <= `alpha` rest on counting alone, and not on a fitted tail."""
        return self.reach <= alpha

    def realised_upper(self, alpha: float, confidence: float = 0.95) -> float:
        """What the false-alarm rate of p <= `alpha` is at most, given these scores, with `confidence`.

        The rate has the law Beta(k, n + 1 - k), k = floor(alpha * (n + 1)) (Bates et al., 2021, section 3). Raises
        ValueError where conformal does not support `alpha`.

        >>> round(Calibration.fit(np.arange(20000.0)).realised_upper(1e-3), 5)
        0.00139
        """
        if not self.supports(alpha):
            raise ValueError(self.told(alpha))
        n = len(self.scores)
        return beta_upper(min(n, math.floor(alpha * (n + 1))) - 1, n, confidence)

    def told(self, alpha: float) -> str:
        """Whether these windows support `alpha`, as a sentence for a report or an error.

        >>> Calibration.fit(np.arange(3600.0)).told(1e-4)
        '3600 normal windows support p-values down to 0.00028, a fitted tail those below; 0.0001 needs 9999 windows'
        """
        have = f"{len(self.scores)} normal windows support "
        if self.supports(alpha):
            return f"{have}{alpha:.3g}: its false-alarm rate is at most {self.realised_upper(alpha):.2g} (95 %)"
        down = f"{have}p-values down to {self.reach:.2g}, a fitted tail those below"
        return f"{down}; {alpha:.3g} needs {windows_needed(alpha)} windows"


def windows_needed(alpha: float) -> int:
    """How many normal windows conformal needs to support p-values down to `alpha`, in (0, 1).

    >>> windows_needed(1e-3), windows_needed(0.3)
    (999, 3)
    """
    if not 0 < alpha < 1:
        raise ValueError(f"a level must be between 0 and 1, got {alpha}")
    return math.ceil(1 / alpha) - 1


def beta_upper(hits: int, n: int, confidence: float) -> float:
    """The `confidence` quantile of Beta(hits + 1, n - hits): what a rate is at most that hit `hits` times of `n`.

    Solves P(Binomial(n, p) <= hits) = 1 - confidence.

    >>> round(beta_upper(0, 1000, 0.95), 6), beta_upper(3, 3, 0.95)
    (0.002991, 1.0)
    """
    if hits >= n:
        return 1.0
    if not hits:
        return -math.expm1(math.log1p(-confidence) / n)
    i = np.arange(1, hits + 1)
    log_choose = np.concatenate([[0.0], np.cumsum(np.log((n - i + 1) / i))])
    count = np.arange(hits + 1)

    def below(p: float) -> bool:
        logs = log_choose + count * math.log(p) + (n - count) * math.log1p(-p)
        return float(np.exp(logs).sum()) > 1 - confidence

    return _smallest(below)


def _smallest(below: Callable[[float], bool]) -> float:
    """Where `below` turns from true to false in [P_FLOOR, 1], to a billionth of it, rounded up."""
    low, high = math.log(P_FLOOR), 0.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if below(math.exp(middle)) else (low, middle)
    return math.exp(high)


def _excesses(ordered: Array) -> Array:
    """Excesses > 0 over the threshold, ascending; where scores do not vary, one as small as rounding."""
    n, largest = len(ordered), float(ordered[-1])
    above = min(n - 1, TAIL_MOST, max(TAIL_LEAST, math.ceil(TAIL_SHARE * n)))
    threshold = float(ordered[-above - 1])
    if threshold == largest:  # ties fill the tail
        threshold = float(ordered[0])
    least = max(LEAST_SPREAD * (max(abs(threshold), abs(largest)) or 1.0), 1e-100)
    if largest - threshold < least:
        return np.array([least])
    excesses = ordered - threshold
    return excesses[excesses > 0]

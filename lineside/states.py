"""Which state a station is in (running, idle, a kind of fault), said by each sensor alone and by all together.

Per sensor a linear discriminant with one covariance for all states, shrunk, gives logits; a factor learned on windows
that it did not see keeps it from saying more than it knows. Logits of several sensors add up where these err
independently of each other; where they do not, the sum says the same thing twice, and a factor learned for each set of
sensors takes that back. What a sensor contributed to the state named: lineside.shapley.of_logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Numbers = NDArray[np.int64]

LEAST = 20  # windows a state and sensor
FOLDS, GAP = 4, 2  # stretches of each state's time, and windows left out between those learned from and those judged
SHRINKAGES = (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4)  # of the mean variance
SHARPEST, HALVINGS = 64.0, 60


@dataclass(frozen=True)
class Discriminant:
    """One sensor's linear classifier: logits are features (f,) times `weights` (f, C), plus `bias` (C,)."""

    weights: Floats
    bias: Floats

    def logits(self, rows: Floats) -> Floats:
        """Logits (..., C) of features (..., f)."""
        return np.asarray(rows @ self.weights + self.bias)


def discriminants(rows: Floats, state: Numbers, count: int) -> list[Discriminant]:
    """Classifiers of features `rows` (n, f) whose states are `state` (n,), 0 to count - 1: one for each of SHRINKAGES.

    Logits are log-densities of normal laws around each state's mean with one covariance, less what all states share.
    As in lineside.coreset, a part of the mean variance is added to every direction's own, of which few windows tell
    too little; a large part makes of it the nearest mean.

    >>> two = discriminants(np.array([[0.0], [1.0], [4.0], [5.0]]), np.array([0, 0, 1, 1]), 2)
    >>> two[-1].logits(np.array([[0.0], [2.5], [5.0]])).argmax(axis=1).tolist()
    [0, 0, 1]
    """
    middle = rows.mean(axis=0)
    means = np.stack([rows[state == k].mean(axis=0) - middle for k in range(count)])
    within = rows - middle - means[state]
    spread, axes = np.linalg.eigh(within.T @ within / len(rows))
    spread, found = np.maximum(spread, 0.0), []
    for shrinkage in SHRINKAGES:
        towards = axes @ ((means @ axes) / (spread + shrinkage * spread.mean() + 1e-12)).T
        found.append(Discriminant(towards, -(means.T * towards).sum(axis=0) / 2 - middle @ towards))
    return found


@dataclass(frozen=True)
class States:
    """The states that can be told apart, `names` (C,) in order of their logits, and how each sensor tells them.

    `log_prior` (C,) is how common each was while it was learned; `fusion` says for every set of sensors how sharp the
    sum of their logits may be.
    """

    names: tuple[str, ...]
    log_prior: Floats
    sensors: dict[str, Discriminant]
    fusion: dict[frozenset[str], float]

    @classmethod
    def fit(cls, features: Mapping[str, NDArray[np.floating]], labels: Sequence[str]) -> States:
        """Learn from aligned moments in order of time: row i (f,) of every sensor is the moment of label i.

        A sensor that is absent from a moment has a row of NaN; a moment whose label is empty is not used. Factors are
        cross-fitted: each state's time is cut into FOLDS stretches, and each stretch is judged by what was learned
        from the others, GAP windows away, so that none is judged by itself or by one that overlaps it. A set of
        sensors that was too seldom together in some state counts as copies of each other: the mean of their logits.

        Raises ValueError for no sensor, rows and labels of different number, fewer than two states, and fewer than
        LEAST windows of a sensor in a state.
        """
        names, state, used = _numbered(features, labels)
        log_prior = np.log(np.bincount(state) / len(state))
        sensors, unseen = {}, {}
        for sensor, every in features.items():
            rows = np.asarray(every, np.float64)[used]
            present = np.isfinite(rows).all(axis=1)
            _refuse_few(sensor, names, state[present])
            unseen[sensor] = np.full((len(rows), len(names)), np.nan)
            sensors[sensor], unseen[sensor][present] = _learn(rows[present], state[present], log_prior)
        fusion = {
            frozenset(members): _fused(np.sum([unseen[m] for m in members], axis=0), state, log_prior, size)
            for size in range(1, len(sensors) + 1)
            for members in combinations(sorted(sensors), size)
        }
        return cls(names, log_prior, sensors, fusion)

    def logits(self, features: Mapping[str, NDArray[np.floating]]) -> dict[str, Floats]:
        """What each sensor present says, (C,) from its features (f,), as it is to be summed with the others here.

        Raises ValueError for a sensor that was not learned from, and for features that are not its f finite numbers.
        """
        if unknown := features.keys() - self.sensors.keys():
            raise ValueError(f"{', '.join(sorted(unknown))}: states were learned from {', '.join(self.sensors)} only")
        for sensor, row in features.items():
            size = len(self.sensors[sensor].weights)
            if np.shape(row) != (size,) or not np.isfinite(row).all():
                raise ValueError(f"{sensor}: features are not {size} finite numbers")
        sharp = self.fusion[frozenset(features)] if features else 1.0
        return {
            sensor: sharp * self.sensors[sensor].logits(np.asarray(row, np.float64)) for sensor, row in features.items()
        }

    def fused(self, logits: Mapping[str, Floats]) -> Floats:
        """Log-probability (C,) of each state from what all sensors present say; the prior's where none is."""
        return _log_softmax(self.log_prior + np.sum([*logits.values()], axis=0))

    def index(self, name: str) -> int:
        """The place of a state among the logits. Raises ValueError for a state that was never learned."""
        if name not in self.names:
            raise ValueError(f"{name}: a state never learned; known are {', '.join(self.names)}")
        return self.names.index(name)


def sharpness(logits: Floats, state: Numbers, log_prior: Floats) -> float:
    """The factor w >= 0 for which softmax(log_prior + w * logits) has the best logarithmic score; 1 / temperature.

    `logits` (n, C) must be of windows that they were not learned from. 0 where these say nothing. One window in n + 1
    is taken to be of a state drawn from the prior, so that no finite number of windows makes for certainty (after
    Platt, Probabilistic outputs for support vector machines, 1999). The score is concave in w: found by halving.
    """
    doubt = 1 / (len(state) + 1)
    target = (1 - doubt) * np.eye(len(log_prior))[state] + doubt * np.exp(log_prior)
    logits = logits - logits.max(axis=1, keepdims=True)

    def too_sharp(w: float) -> bool:
        return float(((np.exp(_log_softmax(log_prior + w * logits)) - target) * logits).sum()) >= 0

    low, high = 0.0, SHARPEST
    if too_sharp(low):
        return low
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if too_sharp(middle) else (middle, high)
    return low


def log_score(logits: Floats, state: Numbers, log_prior: Floats) -> float:
    """Mean of ln p(state) in nats, p = softmax(log_prior + logits (n, C)): 0 is perfect, the prior's is its entropy."""
    return float(_log_softmax(log_prior + logits)[np.arange(len(state)), state].mean())


def _log_softmax(logits: Floats) -> Floats:
    rest = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(rest - np.log(np.exp(rest).sum(axis=-1, keepdims=True)))


def _numbered(
    features: Mapping[str, NDArray[np.floating]], labels: Sequence[str]
) -> tuple[tuple[str, ...], Numbers, Bools]:
    """Names of the states, the state's number of each moment that has a label (n,), and which moments have one."""
    odd = [f"{sensor} has {len(rows)}" for sensor, rows in features.items() if len(rows) != len(labels)]
    if odd or not features:
        raise ValueError(
            f"{len(labels)} labels, but {', '.join(odd) or 'no sensor'}: states need a row of each a label"
        )
    names = tuple(sorted(set(labels) - {""}))
    if len(names) < 2:
        raise ValueError(f"states are told apart, and {', '.join(names) or 'no label'} leaves nothing to tell apart")
    used = np.array([label != "" for label in labels])
    number = {name: k for k, name in enumerate(names)}
    return names, np.array([number[label] for label in labels if label], np.int64), used


def _refuse_few(sensor: str, names: Sequence[str], state: Numbers) -> None:
    counts = zip(names, np.bincount(state, minlength=len(names)), strict=True)
    if few := [f"{count} of {name}" for name, count in counts if count < LEAST]:
        raise ValueError(f"{sensor}: {', '.join(few)}: at least {LEAST} windows of each state are needed")


def _stretches(state: Numbers) -> Iterator[tuple[Bools, Bools]]:
    """FOLDS times: which windows (n,) are judged, a stretch of each state's time, and which are learned from."""
    place, size = np.zeros(len(state)), np.zeros(len(state))
    for k in np.unique(state):
        size[state == k] = (state == k).sum()
        place[state == k] = np.arange((state == k).sum())
    for k in range(FOLDS):
        begin, end = size * k / FOLDS, size * (k + 1) / FOLDS
        yield (begin <= place) & (place < end), (place < begin - GAP) | (place >= end + GAP)


def _learn(rows: Floats, state: Numbers, log_prior: Floats) -> tuple[Discriminant, Floats]:
    """One sensor's classifier, and logits (n, C) of each row by ones that were learned from other stretches of time.

    Of SHRINKAGES the one with the best logarithmic score on these, and as sharp as is best on them.
    """
    unseen = np.empty((len(SHRINKAGES), len(rows), len(log_prior)))
    for judged, learned in _stretches(state):
        found = discriminants(rows[learned], state[learned], len(log_prior))
        unseen[:, judged] = [one.logits(rows[judged]) for one in found]
    sharp = [sharpness(logits, state, log_prior) for logits in unseen]
    scores = [log_score(w * logits, state, log_prior) for w, logits in zip(sharp, unseen, strict=True)]
    best = int(np.argmax(scores))
    whole = discriminants(rows, state, len(log_prior))[best]
    return Discriminant(sharp[best] * whole.weights, sharp[best] * whole.bias), sharp[best] * unseen[best]


def _fused(summed: Floats, state: Numbers, log_prior: Floats, size: int) -> float:
    """How sharp the sum (n, C) of `size` sensors' logits may be, each of which is as sharp as it may be alone."""
    if size == 1:
        return 1.0
    together = np.isfinite(summed).all(axis=1)
    if np.bincount(state[together], minlength=len(log_prior)).min() < LEAST:
        return 1 / size
    return sharpness(summed[together], state[together], log_prior)

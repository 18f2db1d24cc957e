"""How well windows of two sensors find each other, with intervals: every query's score, resampled by groups."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from trainer.evaluate import FEW, chances_among, ranks
from trainer.resampling import Resampling, interval

Floats = NDArray[np.float64]
RESAMPLES = 1000
SCORES = ("recall_1", "recall_5", "mean_ap", "recall_few")


class Found(msgspec.Struct, frozen=True):
    """One score: its mean over queries both ways, a 95 % interval by bootstrap over groups, and what chance gives."""

    value: float
    low: float
    high: float
    chance: float


@dataclass(frozen=True)
class Queries:
    """Scores of all queries (2n,), first one way, then the other, by name; `groups` (2n,) are drawn together."""

    scores: dict[str, Floats]
    groups: NDArray[np.int64]
    chance: dict[str, float]


def asked(a: NDArray[np.float32], b: NDArray[np.float32], groups: NDArray[np.int64]) -> Queries:
    """Let matched unit rows (n, d) find each other among all n, both ways.

    R@1, R@5, mAP with one right answer (the mean of 1 / rank), and the expected R@1 among the partner and up to 19
    others (trainer.evaluate.chances_among). A tie counts against.
    """
    found = [scored(ranks(x, y)) for x, y in ((a, b), (b, a))]
    scores = {name: np.concatenate([way[name] for way in found]) for name in SCORES}
    return Queries(scores, np.tile(groups, 2), chances(len(a)))


def scored(rank: NDArray[np.int64]) -> dict[str, Floats]:
    """Each score of queries whose partner is the `rank`-th best, counted from 0.

    >>> {name: x.tolist() for name, x in scored(np.array([0, 1])).items()}
    {'recall_1': [1.0, 0.0], 'recall_5': [1.0, 1.0], 'mean_ap': [1.0, 0.5], 'recall_few': [1.0, 0.0]}
    """
    few = chances_among(rank, min(FEW, len(rank)))
    values = ((rank < 1).astype(float), (rank < 5).astype(float), 1 / (rank + 1.0), few)
    return dict(zip(SCORES, values, strict=True))


def chances(n: int) -> dict[str, float]:
    """What each score is in the mean where embeddings say nothing.

    >>> chances(100)["recall_few"]
    0.05
    """
    harmonic = float((1 / np.arange(1, n + 1)).sum())
    return dict(zip(SCORES, (1 / n, min(5, n) / n, harmonic / n, 1 / min(FEW, n)), strict=True))


def intervals(queries: Queries) -> dict[str, Found]:
    """Every score with its interval."""
    told = {}
    for name, values in queries.scores.items():
        drawn = resampled(values, queries.groups)
        low, high = interval(drawn)
        told[name] = Found(float(values.mean()), float(low), float(high), queries.chance[name])
    return told


def of_bound(reached: Queries, bound: Queries, score: str) -> Found:
    """The share of the bound's score above chance that is reached; resampled together. NaN where the bound has none."""
    chance = reached.chance[score]
    pairs = [(queries.scores[score], queries.groups) for queries in (reached, bound)]
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = np.divide(*(resampled(values, groups) - chance for values, groups in pairs))
        value = np.divide(*(values.mean() - chance for values, _ in pairs))
    low, high = interval(drawn)
    return Found(float(value), float(low), float(high), 0.0)


def resampled(values: Floats, groups: NDArray[np.int64]) -> Floats:
    """Means (1000,) of `values` when its groups are drawn anew, the same draws for the same groups."""
    return Resampling.of(groups, RESAMPLES).means(values)


def mean_over(runs: list[Queries]) -> Queries:
    """The scores of several seeds on the same queries, averaged query by query."""
    first = runs[0]
    scores = {name: np.mean([run.scores[name] for run in runs], axis=0) for name in first.scores}
    return Queries(scores, first.groups, first.chance)

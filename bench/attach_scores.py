"""What counts as right in bench.attach: the same moment, the same moment within its day, the same class."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.align import Matched, Way
from trainer.matching import Queries, asked, scored


def by_moment(way: Way, held: Matched, kinds: NDArray[np.int64]) -> Queries:
    """The right answer is the window of the same moment."""
    a, c = _embedded(way, held)
    return asked(a, c, held.groups)


def within(way: Way, held: Matched, kinds: NDArray[np.int64]) -> Queries:
    """The same among the windows of the query's own kind (its day) alone."""
    a, c = _embedded(way, held)
    parts = [asked(a[kinds == kind], c[kinds == kind], held.groups[kinds == kind]) for kind in np.unique(kinds)]
    weight = np.array([len(part.groups) for part in parts]) / sum(len(part.groups) for part in parts)
    chance = {name: float(weight @ [part.chance[name] for part in parts]) for name in parts[0].scores}
    scores = {name: np.concatenate([part.scores[name] for part in parts]) for name in parts[0].scores}
    return Queries(scores, np.concatenate([part.groups for part in parts]), chance)


def by_class(way: Way, held: Matched, kinds: NDArray[np.int64]) -> Queries:
    """Every window of the query's class is right: R@1, and mAP over all of them. Others than these are not scored."""
    a, c = _embedded(way, held)
    same = kinds[:, None] == kinds
    first, precision = [], []
    for x, y in ((a, c), (c, a)):
        hits = np.take_along_axis(same, np.argsort(-(x @ y.T), axis=1, kind="stable"), axis=1)
        first.append(hits[:, 0].astype(float))
        precision.append((hits * hits.cumsum(axis=1) / np.arange(1, hits.shape[1] + 1)).sum(axis=1) / hits.sum(axis=1))
    chance = float(same.mean())
    scores = {"recall_1": np.concatenate(first), "mean_ap": np.concatenate(precision)}
    return Queries(scores, np.tile(held.groups, 2), dict.fromkeys(scores, chance))


def knows_the_kind(groups: NDArray[np.int64], kinds: NDArray[np.int64]) -> Queries:
    """What a query scores in the mean if it knows its partner's kind and nothing else: any order within it."""
    by_rank = scored(np.arange(len(kinds)))
    others = np.array([int((kinds == kind).sum()) for kind in kinds])
    means = {name: np.cumsum(values) / np.arange(1, len(values) + 1) for name, values in by_rank.items()}
    scores = {name: np.tile(mean[others - 1], 2) for name, mean in means.items()}
    return Queries(scores, np.tile(groups, 2), dict.fromkeys(scores, 0.0))


def _embedded(way: Way, held: Matched) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    with torch.no_grad():
        return way.newcomer(held.m).numpy(), way.partner(held.c).numpy()

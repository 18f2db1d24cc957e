"""Normal running of a station, and how far a moment is from it: fused evidence with a p-value.

Per sensor: distance of its features to a coreset of normal ones, and of its plain look (lineside.look) to what normal
ones do, whichever is stranger. Per pair of sensors: cosine of their embeddings,
where low is strange. Each becomes evidence e = -ln p; the evidence of a set of sensors is the sum over its members
and pairs, and that sum is calibrated itself, for every subset of sensors, so that its p-value holds whatever the
dependence between sensors and whichever of them are present.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from lineside import shapley
from lineside.conformal import Calibration
from lineside.coreset import Coreset
from lineside.look import Look

MIN_MOMENTS = 40
FOLDS, BLOCK = 4, 10


class Encoded(NamedTuple):
    """What an encoder makes of windows: unit-norm `embedding` (n, dim) and unit-norm `features` (n, f).

    Embeddings of all modalities share one space, for which they give up what the sensors do not have in common;
    features keep it, and say something within their own modality alone. `look` is the windows' own coarse cells (n, p),
    None for series. One window has no axis n.
    """

    embedding: NDArray[np.float32]
    features: NDArray[np.float32]
    look: NDArray[np.float32] | None = None

    def at(self, rows: NDArray[np.intp] | NDArray[np.bool_] | int) -> Encoded:
        """Some of the windows, or one."""
        return Encoded(self.embedding[rows], self.features[rows], None if self.look is None else self.look[rows])


@dataclass(frozen=True)
class Judgement:
    """What one moment means: see lineside.messages.Score for the fields.

    `single` is the evidence of each sensor alone, `pair` that of each pair's agreement, keyed `sensor+sensor`; their
    sum is `evidence`. `p_upper` is what the p-value is at most (95 %) where it rests on a fitted tail, else None.
    """

    evidence: float
    p_value: float
    contributions: dict[str, float]
    without: dict[str, float]
    agreements: dict[str, float]
    single: dict[str, float]
    pair: dict[str, float]
    p_upper: float | None = None


@dataclass(frozen=True)
class Normal:
    """Normal running of one station, for one set of encoders.

    `coresets` are of features by sensor, `looks` of cells; the calibrations are of distances to these per sensor, of
    negative cosines per pair, and of evidence per subset of sensors. `moments` numbers the windows that a sensor's
    coreset was made of by their moments.
    """

    coresets: dict[str, Coreset]
    singles: dict[str, Calibration]
    pairs: dict[tuple[str, str], Calibration]
    fused: dict[frozenset[str], Calibration]
    looks: dict[str, Look] = field(default_factory=dict)
    seen: dict[str, Calibration] = field(default_factory=dict)
    moments: dict[str, NDArray[np.intp]] = field(default_factory=dict)

    @classmethod
    def fit(cls, encoded: Mapping[str, Encoded], coreset_size: int, numbers: NDArray[np.intp] | None = None) -> Normal:
        """Learn normal from aligned moments: row i of all sensors is the same moment, number i or `numbers[i]`.

        A sensor that is absent from a moment has rows of NaN there. Calibration scores are cross-conformal: the
        moments are dealt out to FOLDS folds in blocks of time, and each fold is scored against banks and
        calibrations made of the others, so that no window is judged by itself or (but at the borders of blocks) by
        one that overlaps it.

        Raises ValueError when a sensor is present in fewer than MIN_MOMENTS moments.
        """
        features = {sensor: both.features for sensor, both in encoded.items()}
        cells = {sensor: both.look for sensor, both in encoded.items() if both.look is not None}
        for sensor, rows in features.items():
            if (count := int(_present(rows).sum())) < MIN_MOMENTS:
                raise ValueError(f"{sensor}: {count} normal windows, at least {MIN_MOMENTS} are needed")
        coresets = {sensor: Coreset.fit(rows[_present(rows)], coreset_size) for sensor, rows in features.items()}
        looks = {sensor: Look.fit(rows[_present(rows)]) for sensor, rows in cells.items()}
        far = {s: _out_of_fold(rows, partial(_smaller_coreset, coreset_size)) for s, rows in features.items()}
        odd = {sensor: _out_of_fold(rows, lambda others, _: Look.fit(others)) for sensor, rows in cells.items()}
        apart = {
            (a, b): -np.sum(encoded[a].embedding * encoded[b].embedding, axis=1).astype(np.float64)
            for a, b in combinations(sorted(encoded), 2)
        }
        singles = {sensor: Calibration.fit(_finite(scores)) for sensor, scores in far.items()}
        seen = {sensor: Calibration.fit(_finite(scores)) for sensor, scores in odd.items()}
        pairs = {pair: Calibration.fit(_finite(s)) for pair, s in apart.items() if np.isfinite(s).any()}
        single = {sensor: _evidence(far[sensor]) for sensor in sorted(encoded)}
        single |= {sensor: either(single[sensor], _evidence(scores)) for sensor, scores in odd.items()}
        pair = {names: _evidence(apart[names]) for names in pairs}
        fused = {}
        for size in range(1, len(encoded) + 1):
            for members in combinations(sorted(encoded), size):
                inside = [evidence for names, evidence in pair.items() if set(names) <= set(members)]
                scores = _finite(np.sum([*(single[m] for m in members), *inside], axis=0))
                if len(scores) >= MIN_MOMENTS:
                    fused[frozenset(members)] = Calibration.fit(scores)
        moments = {s: np.flatnonzero(_present(rows)) for s, rows in features.items()}
        if numbers is not None:
            moments = {sensor: numbers[rows] for sensor, rows in moments.items()}
        return cls(coresets, singles, pairs, fused, looks, seen, moments)

    def judge(self, encoded: Mapping[str, Encoded]) -> Judgement | None:
        """Judge one moment from what the sensors present gave, one window each.

        None when this set of sensors was never seen together in normal running.
        """
        members = frozenset(encoded)
        if members not in self.fused:
            return None
        cosines = {
            (a, b): float(encoded[a].embedding @ encoded[b].embedding)
            for a, b in self.pairs
            if members.issuperset((a, b))
        }
        single = {m: self._alone(m, encoded[m]) for m in sorted(members)}
        pair = {p: self.pairs[p].evidence(-cosine) for p, cosine in cosines.items()}
        evidence, known = sum(single.values()) + sum(pair.values()), self.fused[members]
        p_value = known.p_value(evidence)
        return Judgement(
            evidence=evidence,
            p_value=p_value,
            contributions=shapley.of_evidence(single, pair),
            without={m: self._p_without(m, single, pair) for m in single if members - {m} in self.fused},
            agreements={"+".join(p): cosine for p, cosine in cosines.items()},
            single=single,
            pair={"+".join(p): a for p, a in pair.items()},
            p_upper=known.p_upper(evidence) if p_value < known.reach else None,
        )

    def nearest(self, sensor: str, one: Encoded) -> int:
        """The number of the normal moment that a sensor's window is most like, by its features, of those kept."""
        return int(self.moments[sensor][self.coresets[sensor].nearest(one.features)])

    def _alone(self, sensor: str, one: Encoded) -> float:
        """Evidence of one sensor's window (-ln p)."""
        far = self.singles[sensor].evidence(float(self.coresets[sensor].distances(one.features[None])[0]))
        if sensor not in self.looks or one.look is None:
            return far
        odd = self.seen[sensor].evidence(float(self.looks[sensor].distances(one.look[None])[0]))
        return float(either(np.array(far), np.array(odd)))

    def _p_without(self, gone: str, single: dict[str, float], pair: dict[tuple[str, str], float]) -> float:
        rest = sum(e for m, e in single.items() if m != gone) + sum(a for p, a in pair.items() if gone not in p)
        return self.fused[frozenset(single) - {gone}].p_value(rest)


def _present(rows: NDArray[np.float32]) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(rows).all(axis=1))


def _finite(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    return scores[np.isfinite(scores)]


def _folds(n: int) -> list[NDArray[np.intp]]:
    """Moments 0..n-1 dealt out in blocks of BLOCK, so that every fold sees every part of the commissioning."""
    fold = np.arange(n) // BLOCK % FOLDS
    return [np.flatnonzero(fold == k) for k in range(FOLDS)]


def either(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Evidence of the smaller p of two p-values, -ln(1 - (1 - p)^2) (Šidák): exact where they are independent.

    Where they are not it errs by a factor of 2 at most, which the calibration of fused evidence takes up.

    >>> either(np.array([5.0, 0.1]), np.array([1.0, 0.2])).round(3).tolist()
    [4.31, 0.033]
    """
    most = np.maximum(one, other)
    return np.asarray(most - np.log(2 - np.exp(-most)))


class _Known(Protocol):
    """What windows are far from."""

    def distances(self, points: NDArray[np.float32]) -> NDArray[np.float64]: ...


def _smaller_coreset(size: int, others: NDArray[np.float32], share: float) -> Coreset:
    """A coreset of a share of the windows has that share of places: on fewer points as many places would cover them
    better than the whole coreset will cover new windows, and these would look strange."""
    return Coreset.fit(others, max(1, round(size * share)))


def _out_of_fold(
    rows: NDArray[np.float32], known: Callable[[NDArray[np.float32], float], _Known]
) -> NDArray[np.float64]:
    """Distance of each row to what is `known` of the other folds, a share of all; NaN where the sensor is absent."""
    scores = np.full(len(rows), np.nan)
    present = _present(rows)
    for fold in _folds(len(rows)):
        others = present.copy()
        others[fold] = False
        mine = fold[present[fold]]
        if len(mine) and others.sum() > 1:
            scores[mine] = known(rows[others], float(others.sum() / present.sum())).distances(rows[mine])
    return scores


def _evidence(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Evidence of each score (n,), each fold judged by a calibration of the others; NaN stays NaN."""
    known = np.isfinite(scores)
    evidence = np.full(len(scores), np.nan)
    for fold in _folds(len(scores)):
        mine = fold[known[fold]]
        others = np.setdiff1d(np.flatnonzero(known), fold)
        if len(mine) and len(others):
            calibration = Calibration.fit(scores[others])
            evidence[mine] = [calibration.evidence(score) for score in scores[mine]]
    return evidence

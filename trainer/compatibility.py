"""The compatibility certificate: what new encoders do beside every version that is still in the field.

Encoders are updated and taken back one modality at a time, so every mix of old and new runs somewhere for a while. For
each of the 2^M mixes of a new stage with an old one: do the sensors of a moment still find each other; does normal
running as the old encoders learned it still hold, at the threshold that it set; and what would learning it anew change.
Intervals are of 95 %, by drawing blocks of neighbouring moments anew, the same ones for a mix and for old with old.

The criterion M(new, old) >= M(old, old) - epsilon is that of Shen et al., Towards backward-compatible representation
learning (CVPR 2020), section 3, for every mix; negative flips are those of Yan et al., Positive-congruent training
(CVPR 2021), section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations, permutations
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from lineside import features
from lineside.errors import ConfigError
from lineside.files import write_atomic
from lineside.fusion import BLOCK, Encoded, Normal
from lineside.metrics import auroc
from lineside.release import Gate
from trainer.data import Dataset, View
from trainer.defects import defective
from trainer.encoders import Encoders
from trainer.evaluate import FEW, chances_among, encode, ranks
from trainer.progress import Progress, silent

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

FILE = "compatibility.json"  # in the folder of the newer stage
CORESET, RESAMPLES = 256, 400
RATE, FEWEST_ALARMS = 0.01, 5  # the old threshold lies where this share of normal moments is beyond it, or this many
LEAST_RECALL, MOST_FLIPS, MOST_FALSE, MOST_LOSS = 0.99, 0.01, 1.2, 0.01


class Interval(msgspec.Struct, frozen=True):
    """A measured value and its 95 % interval."""

    value: float
    low: float
    high: float


class Mix(msgspec.Struct, frozen=True, kw_only=True):
    """One mix of old and new encoders, measured; `encoders` are their identities, `new` the modalities that are new.

    `recall` is relative to old with old, of the moment's own window among few, or of its label; None for one sensor.
    `flips` is the share of moments that old with old judged right and the mix judges wrong; `false_alarms` the share of
    normal moments beyond the old threshold, relative to old with old; `area` the AUROC of evidence against normal
    running as the old encoders learned it, `area_lost` how much less that is than against normal running learned anew.
    `agreement` is how far the law of agreement moved: the largest difference between the distributions of cosines
    (Kolmogorov–Smirnov) over pairs.
    """

    encoders: dict[str, str]
    new: list[str]
    recall: Interval | None
    flips: Interval
    false_alarms: Interval
    area: Interval
    area_lost: Interval
    agreement: Interval | None


class Compatibility(msgspec.Struct, frozen=True, kw_only=True):
    """What certifies a stage beside an old one: both names, what it was measured on, every mix, and the gates."""

    stage: str
    against: str
    normal: int
    faulty: int
    by: str
    recall_old: float | None
    area_old: float
    mixes: list[Mix]
    gates: list[Gate]

    @property
    def certified(self) -> list[dict[str, str]]:
        """The mixes that passed all their gates."""
        return [mix.encoders for mix in self.mixes if all(gate.passed for gate in gates_of(mix))]


@dataclass(frozen=True)
class Version:
    """One stage's encoders under its name, with the identity of each (trainer.checkpoint.identities)."""

    name: str
    encoders: Encoders
    identities: Mapping[str, str]


@dataclass(frozen=True)
class Trial:
    """Moments that neither stage learned from: `bank` teaches what is normal, `normal` and `faulty` are judged.

    With `labels` a window of the query's label is a hit, else that of its own moment alone.
    """

    bank: Dataset
    normal: Dataset
    faulty: Dataset
    labels: bool = False

    @property
    def kinds(self) -> dict[str, str]:
        """Modality of each sensor."""
        return self.normal.modalities


def in_turn(dataset: Dataset) -> tuple[Dataset, Dataset]:
    """Moments that teach what is normal, one block of time of three, and moments to be judged, the other two."""
    rows = np.arange(len(dataset))
    block = rows // BLOCK
    alone = np.append(np.diff(block) == 0, True)  # the last window of a block may share samples with the next one
    usable = alone if dataset.hop_ns < dataset.length_ns else np.ones(len(rows), np.bool_)
    bank, normal = (dataset.only(rows[usable & mine]) for mine in (block % 3 == 0, block % 3 > 0))
    return bank, normal


def with_defects(dataset: Dataset, seed: int = 0) -> Dataset:
    """The same moments, each with a made defect in one of its sensors in turn."""
    views = {}
    for place, (sensor, view) in enumerate(dataset.views.items()):
        rows = np.flatnonzero((np.arange(len(dataset)) % len(dataset.views) == place) & view.present)
        chance = [np.random.default_rng([seed, place, int(row)]) for row in rows]
        kind, inputs = features.modality(dataset.specs[view.modality]), view.inputs.copy()
        if len(rows):
            inputs[rows] = defective(kind, torch.from_numpy(inputs[rows]), chance).numpy().astype(inputs.dtype)
        views[sensor] = View(view.modality, inputs, view.present)
    return replace(dataset, views=views)


def certify(new: Version, old: Version, trial: Trial, progress: Progress = silent) -> Compatibility:
    """Measure every mix of `new` with `old`; modalities that only `new` knows are part of every mix.

    Raises ValueError when they share no modality of the trial's sensors, when a sensor has fewer than
    lineside.fusion.MIN_MOMENTS moments to learn from what is normal, or when no moment can be judged.
    """
    kinds = sorted({kind for kind in trial.kinds.values() if kind in new.encoders})
    common = [kind for kind in kinds if kind in old.encoders]
    if not common:
        raise ValueError(f"{new.name} and {old.name} share no modality of {', '.join(sorted(trial.kinds))}")
    only_new = frozenset(kinds) - frozenset(common)
    bench = _Bench(new, old, trial)
    ways = [only_new.union(way) for size in range(len(common) + 1) for way in combinations(common, size)]
    before, mixes = bench.found(only_new, only_new), []
    draws = _draws(len(trial.normal), len(trial.faulty))
    if not all(np.isfinite(part).any() for part in before.kept):
        raise ValueError("no normal, or no faulty, moment has sensors that were seen together while normal")
    for number, way in enumerate(ways):
        identities = {kind: (new if kind in way else old).identities[kind] for kind in kinds}
        mixes.append(_mix(identities, sorted(way - only_new), before, bench.found(way, only_new), draws))
        progress("mixes", number + 1, len(ways))
    return Compatibility(
        stage=new.name,
        against=old.name,
        normal=len(trial.normal),
        faulty=len(trial.faulty),
        by="label" if trial.labels else "moment",
        recall_old=float(np.nanmean(before.hits)) if np.isfinite(before.hits).any() else None,
        area_old=_area(before.kept, np.arange(len(trial.normal)), np.arange(len(trial.faulty))),
        mixes=mixes,
        gates=[gate for mix in mixes for gate in gates_of(mix)],
    )


def kept(folder: Path, stage: str) -> list[Compatibility]:
    """What the stage in `folder` was certified beside; none where it never was.

    Raises ConfigError when the file cannot be read or is of other weights than `stage` names.
    """
    path = folder / FILE
    if not path.exists():
        return []
    again = "certify the stage again with `lineside train certify --against`"
    try:
        found = msgspec.json.decode(path.read_bytes(), type=list[Compatibility])
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(str(path), f"cannot be read ({error})", again) from error
    if others := [one.stage for one in found if one.stage != stage]:
        raise ConfigError(str(path), f"certifies {others[0]}, not {stage}", again)
    return found


def keep(folder: Path, found: Compatibility) -> None:
    """Write a certificate beside the others of its stage, in the place of an earlier one against the same version."""
    rest = [one for one in kept(folder, found.stage) if one.against != found.against]
    write_atomic(folder / FILE, msgspec.json.format(msgspec.json.encode([*rest, found]), indent=2) + b"\n")


def gates_of(mix: Mix) -> list[Gate]:
    """The gates of one mix, named by what of it is new: one fails where the whole interval lies beyond its limit.

    So what a few moments cannot tell from chance is not refused; more moments can tell less.
    """
    name = f"compatibility, {' + '.join(mix.new) or 'nothing'} new"
    recall = [] if mix.recall is None else [Gate(f"{name}: recall, at best", mix.recall.high, LEAST_RECALL, False)]
    return [
        *recall,
        Gate(f"{name}: negative flips, at least", mix.flips.low, MOST_FLIPS, True),
        Gate(f"{name}: false alarms, at least", mix.false_alarms.low, MOST_FALSE, True),
        Gate(f"{name}: AUROC lost with the old normal, at least", mix.area_lost.low, MOST_LOSS, True),
    ]


@dataclass(frozen=True)
class _Found:
    """What one mix does: `hits` (normal, ways) of retrieval, NaN where a window is absent; evidence of normal and of
    faulty moments against the `kept` old normal running and against one learned `anew`; cosines (normal,) by pair."""

    hits: Floats
    kept: tuple[Floats, Floats]
    anew: tuple[Floats, Floats]
    cosines: dict[str, Floats]


@dataclass
class _Bench:
    """Both versions' embeddings of a trial, each made once."""

    new: Version
    old: Version
    trial: Trial
    _normals: dict[frozenset[str], Normal] = field(default_factory=dict)

    @cached_property
    def _seen(self) -> dict[tuple[str, bool, str], Encoded]:
        """By part of the trial, newness and sensor: a row a moment, NaN where the window is absent."""
        return {
            (part, is_new, sensor): _encoded(version, view)
            for part in ("bank", "normal", "faulty")
            for is_new, version in ((True, self.new), (False, self.old))
            for sensor, view in getattr(self.trial, part).views.items()
            if view.modality in version.encoders
        }

    def _by(self, part: str, way: frozenset[str]) -> dict[str, Encoded]:
        kinds = {sensor: kind for sensor, kind in self.trial.kinds.items() if kind in self.new.encoders}
        return {sensor: self._seen[part, kind in way, sensor] for sensor, kind in kinds.items()}

    def found(self, way: frozenset[str], only_new: frozenset[str]) -> _Found:
        """The mix in which the modalities of `way` are new, beside normal running of that in which `only_new` are."""
        for each in (only_new, way):
            if each not in self._normals:
                self._normals[each] = Normal.fit(self._by("bank", each), CORESET)
        normal, faulty = self._by("normal", way), self._by("faulty", way)
        known = self._normals[only_new], self._normals[way]
        kept, anew = ((_evidence(one, normal), _evidence(one, faulty)) for one in known)
        pairs = {f"{a}+{b}": (normal[a].embedding, normal[b].embedding) for a, b in combinations(sorted(normal), 2)}
        cosines = {name: (za * zb).sum(axis=1).astype(np.float64) for name, (za, zb) in pairs.items()}
        return _Found(self._hits(normal), kept, anew, cosines)

    def _hits(self, seen: Mapping[str, Encoded]) -> Floats:
        labels = self.trial.normal.labels if self.trial.labels else None
        ways = [_asked(seen[a].embedding, seen[b].embedding, labels) for a, b in permutations(sorted(seen), 2)]
        return np.stack(ways, axis=1) if ways else np.zeros((len(self.trial.normal), 0))


def _encoded(version: Version, view: View) -> Encoded:
    made = encode(version.encoders[view.modality], view.inputs[view.present])
    parts = []
    for rows in (made.embedding, made.features):
        parts.append(np.full((len(view.present), rows.shape[1]), np.nan, np.float32))
        parts[-1][view.present] = rows
    return Encoded(*parts)


def _asked(za: NDArray[np.float32], zb: NDArray[np.float32], labels: NDArray[np.str_] | None) -> Floats:
    """For each moment with both windows, how well `za` (n, dim) finds its partner among `zb`; NaN for the others."""
    both = np.isfinite(za).all(axis=1) & np.isfinite(zb).all(axis=1)
    hits = np.full(len(za), np.nan)
    if both.sum() < 2:
        return hits
    if labels is None:
        rank = ranks(za[both], zb[both])
        hits[both] = chances_among(rank, min(FEW, len(rank)))
    else:
        hits[both] = labels[both][(za[both] @ zb[both].T).argmax(axis=1)] == labels[both]
    return hits


def _evidence(known: Normal, seen: Mapping[str, Encoded]) -> Floats:
    """Fused evidence of each moment from the sensors present; NaN where these were never seen together."""
    count = len(next(iter(seen.values())).embedding)
    evidence = np.full(count, np.nan)
    for row in range(count):
        here = {sensor: each.at(row) for sensor, each in seen.items()}
        judged = known.judge({sensor: one for sensor, one in here.items() if np.isfinite(one.features).all()})
        if judged is not None:
            evidence[row] = judged.evidence
    return evidence


def _mix(
    identities: dict[str, str], new: list[str], before: _Found, after: _Found, draws: Sequence[tuple[Rows, Rows]]
) -> Mix:
    threshold = _threshold(before.kept[0])
    right = before.kept[0] <= threshold, before.kept[1] > threshold
    wrong = after.kept[0] > threshold, after.kept[1] <= threshold  # neither where there is no evidence
    alarms = before.kept[0] > threshold

    def recall(normal: Rows, _: Rows) -> float:
        return float(np.nanmean(after.hits[normal]) / np.nanmean(before.hits[normal]))

    def flips(normal: Rows, faulty: Rows) -> float:
        flipped = (right[0] & wrong[0])[normal], (right[1] & wrong[1])[faulty]
        return float(np.concatenate(flipped).mean())

    def false_alarms(normal: Rows, _: Rows) -> float:
        now, then = wrong[0][normal].sum(), alarms[normal].sum()
        return float(now / then if then else 1 + now)  # none of none is as many

    def area(normal: Rows, faulty: Rows) -> float:
        return _area(after.kept, normal, faulty)

    def area_lost(normal: Rows, faulty: Rows) -> float:
        return _area(after.anew, normal, faulty) - area(normal, faulty)

    def agreement(normal: Rows, _: Rows) -> float:
        return max(_apart(before.cosines[pair][normal], after.cosines[pair][normal]) for pair in before.cosines)

    paired = bool(np.isfinite(before.hits).any())
    return Mix(
        encoders=identities,
        new=new,
        recall=_interval(recall, draws) if paired else None,
        flips=_interval(flips, draws),
        false_alarms=_interval(false_alarms, draws),
        area=_interval(area, draws),
        area_lost=_interval(area_lost, draws),
        agreement=_interval(agreement, draws) if paired else None,
    )


def _area(evidence: tuple[Floats, Floats], normal: Rows, faulty: Rows) -> float:
    """AUROC of some normal and faulty moments, of those with evidence."""
    parts = evidence[0][normal], evidence[1][faulty]
    return auroc(*(part[np.isfinite(part)] for part in parts))


def _threshold(evidence: Floats) -> float:
    """The evidence that a share RATE of normal moments is beyond, at least FEWEST_ALARMS of them."""
    known = np.sort(evidence[np.isfinite(evidence)])
    beyond = max(FEWEST_ALARMS, round(RATE * len(known)))
    return float(known[-min(beyond + 1, len(known))])


def _apart(one: Floats, other: Floats) -> float:
    """The largest difference between two empirical distributions (Kolmogorov–Smirnov), without what is NaN.

    >>> _apart(np.array([1.0, 2.0]), np.array([2.0, 3.0]))
    0.5
    """
    one, other = np.sort(one[np.isfinite(one)]), np.sort(other[np.isfinite(other)])
    places = np.concatenate([one, other])
    below = (each.searchsorted(places, "right") / len(each) for each in (one, other))
    return float(np.abs(np.subtract(*below)).max())


def _interval(told: Callable[[Rows, Rows], float], draws: Sequence[tuple[Rows, Rows]]) -> Interval:
    """A statistic of normal and faulty rows: of all of them (the first of `draws`), and the interval over the rest."""
    value, *drawn = (told(*rows) for rows in draws)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(value, float(low), float(high))


def _draws(normal: int, faulty: int) -> list[tuple[Rows, Rows]]:
    """All rows, then RESAMPLES draws of as many, the same for every statistic and mix."""
    rng = np.random.default_rng(0)
    drawn = [(_blocks(normal, rng), _blocks(faulty, rng)) for _ in range(RESAMPLES)]
    return [(np.arange(normal), np.arange(faulty)), *drawn]


def _blocks(count: int, rng: np.random.Generator) -> Rows:
    """`count` row numbers in blocks of BLOCK neighbours (moving blocks; Künsch, Annals of Statistics 17, 1989)."""
    size = min(BLOCK, count)
    first = rng.integers(count - size + 1, size=-(-count // size))
    return (first[:, None] + np.arange(size)).ravel()[:count]

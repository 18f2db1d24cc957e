"""The anomaly-free run of SKAB cut into trials like its test files: from it alone comes whatever is set beforehand.

Two things are: how far a well plant strays from a commissioning of 400 rows (lineside.fusion.Normal), and the level
at which alarms keep within the budget of false ones, on pieces with invented faults that the knowledge has not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from edge.alarm import AnomalyAlarm
from edge.config import AlarmSettings
from edge.evaluation.wander import AROUND, HALF, Rows, Wander
from lineside.clock import NS
from lineside.conformal import Calibration
from lineside.coreset import Coreset
from lineside.fusion import Encoded, Judgement, Normal
from lineside.messages import Score
from lineside.metrics import auroc

Floats = NDArray[np.float64]
Truth = NDArray[np.bool_]

FIT, LIVE = 400, 750  # rows: SKAB's protocol, and what follows in most of its test files
EVERY, THIN, FOLDS = 100, 5, 3  # a piece every so many rows, one row of it in so many; parts of the run
WELL = 0.75  # p-value above which a window is well beyond doubt, and foretells others
FAULTY_EVERY, PACES = 250, (1, 2, 3)
LIMITS = (0.2, 0.15, 0.1, 0.07, 0.05, 0.03, 0.01)  # p-values at which a row may count as strange
SURE = NormalDist().inv_cdf(0.9)
NONE: Rows = np.zeros(0, np.int64)  # no later window foretells
SEEN = HALF + AROUND // 2  # rows on either side of one that are looked at to judge it


@dataclass(frozen=True)
class Trial:
    """One experiment: `rows` (n, channels), of which the first FIT are commissioning, and where it is faulty (n,)."""

    rows: Floats
    faulty: Truth


@dataclass(frozen=True)
class Device:
    """What a device knows of well plants of this kind: how far they stray from what is foretold.

    `first` where commissioning alone foretells, `normal` where later windows that were well beyond doubt do so too.
    """

    first: Normal
    normal: Normal

    @classmethod
    def learn(cls, run: Floats, sensors: Sequence[str]) -> Device:
        """Learn from an anomaly-free run (n, channels)."""
        wanders = [Wander.fit(piece, FIT) for piece in _pieces(run, FIT + LIVE, EVERY)]
        first = _normal([wander.encode(NONE) for wander in wanders], sensors)
        return cls(first, _normal([wander.encode(_well(first, wander)) for wander in wanders], sensors))

    def judge(self, trial: Trial) -> list[Judgement]:
        """Commission on the first FIT rows, then judge each later one, in retrospect."""
        wander = Wander.fit(trial.rows, FIT)
        return _judged(self.normal, wander.encode(_well(self.first, wander)))


def _well(normal: Normal, wander: Wander) -> Rows:
    """Of the windows after commissioning, those that are well beyond doubt."""
    judged = _judged(normal, wander.encode(NONE)[wander.windows - HALF - wander.known])
    return np.asarray(wander.windows[np.array([one.p_value > WELL for one in judged], bool)])


def _judged(normal: Normal, features: NDArray[np.float32]) -> list[Judgement]:
    """Judge each row of features (n, channels, 2)."""
    nowhere = np.zeros(0, np.float32)  # channels have no space in common in which they could agree
    rows = ({name: Encoded(nowhere, one) for name, one in zip(normal.singles, row, strict=True)} for row in features)
    return [found for row in rows if (found := normal.judge(row)) is not None]


def _normal(pieces: Sequence[NDArray[np.float32]], sensors: Sequence[str]) -> Normal:
    """How far a channel strays in well pieces (n, channels, 2), from 0; and all of them together.

    All channels have one law: what they measure and how they run differ between plants and days, and each is measured
    by its own commissioning already. The evidence of all together is calibrated on other parts of the run than the law.
    """
    far = [np.linalg.norm(piece[::THIN].astype(np.float64), axis=2) for piece in pieces]
    part = np.arange(len(far)) * FOLDS // len(far)
    fused: list[float] = []
    for fold in range(FOLDS):
        law = Calibration.fit(np.concatenate([one.ravel() for one, at in zip(far, part, strict=True) if at != fold]))
        mine = np.concatenate([one for one, at in zip(far, part, strict=True) if at == fold])
        fused += [sum(law.evidence(one) for one in row) for row in mine.tolist()]
    origin = Coreset(np.zeros(2), np.eye(2), np.zeros((1, 2), np.float32))
    law = Calibration.fit(np.concatenate(far).ravel())
    together = {frozenset(sensors): Calibration.fit(np.array(fused))}
    return Normal(dict.fromkeys(sensors, origin), dict.fromkeys(sensors, law), {}, together)


def alarmed(judged: Sequence[Judgement], p_limit: float) -> Truth:
    """Rows (n,), one a second, between the onset of an anomaly alarm and the first row of the calm that cleared it."""
    settings = AlarmSettings(p_limit=p_limit, p_clear=p_limit)
    alarm, rows = AnomalyAlarm(settings), np.zeros(len(judged), bool)
    onset = 0
    for row, one in enumerate(judged):
        alarm, told = alarm.hear(_score(one, row, p_limit))
        if told and told.state == "raised":
            onset = told.onset_ns // NS + SEEN - FIT
        elif told:
            rows[onset : row + 1 - settings.clear_count] = True
    if alarm.active:
        rows[onset : len(rows) - alarm.calm] = True
    return rows


def _score(judged: Judgement, row: int, p_limit: float) -> Score:
    return Score(
        device="skab",
        station="pump",
        start_ns=(FIT + row - SEEN) * NS,
        end_ns=(FIT + row + SEEN) * NS,
        evidence=judged.evidence,
        p_value=judged.p_value,
        limit=p_limit,
        contributions=judged.contributions,
        without=judged.without,
        agreements=judged.agreements,
        modalities=dict.fromkeys(judged.contributions, "series"),
        absent={},
        versions={},
        skew_ms=0.0,
    )


@dataclass(frozen=True)
class Rates:
    """Alarmed rows against faulty ones, of all trials together, as shares; `f1` is the harmonic mean of hits."""

    f1: float
    far: float
    mar: float

    @classmethod
    def of(cls, alarmed: Sequence[Truth], faulty: Sequence[Truth]) -> Rates:
        """Compare row by row.

        >>> Rates.of([np.array([True, True, False])], [np.array([True, False, False])])
        Rates(f1=0.6666666666666666, far=0.5, mar=0.0)
        """
        cried, true = np.concatenate(alarmed), np.concatenate(faulty)
        hits, false, missed = int((cried & true).sum()), int((cried & ~true).sum()), int((~cried & true).sum())
        share = 2 * hits / max(1, 2 * hits + false + missed)
        return cls(share, false / max(1, int((~true).sum())), missed / max(1, int(true.sum())))


@dataclass(frozen=True)
class Rehearsal:
    """What invented faults in the anomaly-free run gave: `rates` by level, and the mean AUROC of `area` by trial.

    `far_upper` is what the share of false alarms is at most, with 90 % confidence, by level: trials differ by more
    than chance within them, and count as no more than there are rows to make them of.
    """

    rates: dict[float, Rates]
    far_upper: dict[float, float]
    area: float

    @classmethod
    def of(cls, run: Floats, sensors: Sequence[str]) -> Rehearsal:
        """Each half of the run, with a fault in every piece, is judged by what the other half taught.

        Also at two and three times the pace (every second, every third row), for other days wander faster.
        """
        half = len(run) // 2
        heard: list[tuple[list[Judgement], Truth]] = []
        for known, live, seed in ((run[:half], run[half:], 1), (run[half:], run[:half], 2)):
            device, chance = Device.learn(known, sensors), np.random.default_rng(seed)
            trials = [trial for pace in PACES for trial in invented(live[::pace], chance)]
            heard += [(device.judge(trial), trial.faulty[FIT:]) for trial in trials]
        faulty = [truth for _, truth in heard]
        rates, upper = {}, {}
        for limit in LIMITS:
            cried = [alarmed(each, limit) for each, _ in heard]
            rates[limit] = Rates.of(cried, faulty)
            false = [each[~truth].mean() for each, truth in zip(cried, faulty, strict=True)]
            error = float(np.std(false, ddof=1)) / np.sqrt(max(1, len(run) // (FIT + LIVE)))
            upper[limit] = float(np.mean(false)) + SURE * error
        strange = [np.array([one.evidence for one in each]) for each, _ in heard]
        areas = [auroc(one[~truth], one[truth]) for one, truth in zip(strange, faulty, strict=True)]
        return cls(rates, upper, float(np.mean(areas)))

    def limit(self, most: float) -> float:
        """The largest of LIMITS that surely keeps false alarms within `most`; the least where none does."""
        return next((limit for limit in LIMITS if self.far_upper[limit] <= most), LIMITS[-1])


def invented(run: Floats, chance: np.random.Generator) -> Iterator[Trial]:
    """Pieces of an anomaly-free run with a fault in each, by turns one of FAULTS, that comes and goes by a ramp.

    In every second piece something of an earlier fault fades during commissioning, and of this one after its end: rows
    that are well again by their label, as after a valve was opened.
    """
    for number, piece in enumerate(_pieces(run, FIT + LIVE, FAULTY_EVERY)):
        begin = int(chance.integers(FIT + 80, FIT + 300))
        end = min(begin + int(chance.integers(250, 420)), FIT + LIVE - 20)
        place = np.arange(len(piece))
        ramp = np.clip(np.minimum(place - begin, end - place) / chance.integers(10, 100), 0.0, 1.0)
        rows = FAULTS[number % len(FAULTS)](piece, ramp, chance)
        if number // len(FAULTS) % 2:
            rows = rows + _remnant(piece, place, chance) + _remnant(piece, place - end, chance)
        yield Trial(rows, (begin <= place) & (place < end))


def _moved(piece: Floats, ramp: Floats, chance: np.random.Generator) -> Floats:
    """One to three channels away from their level by 1 to 4 deviations of commissioning."""
    return piece + ramp[:, None] * _some(piece, chance) * _size(piece, chance, 1, 4)


def _all_moved(piece: Floats, ramp: Floats, chance: np.random.Generator) -> Floats:
    """All channels a little away, as under another load: 0.2 to 1 deviation."""
    return piece + ramp[:, None] * _size(piece, chance, 0.2, 1)


def _shaken(piece: Floats, ramp: Floats, chance: np.random.Generator) -> Floats:
    """One to three channels scatter about their course by 0.6 or 1.5 times as much."""
    course = np.stack([np.convolve(np.pad(one, 12, "edge"), np.full(25, 1 / 25), "valid") for one in piece.T], axis=1)
    factor = np.where(_some(piece, chance), chance.choice([0.6, 1.5, 1.5], piece.shape[1]), 1.0)
    return np.asarray(np.where(ramp[:, None] > 0, course + (piece - course) * factor, piece))


FAULTS: tuple[Callable[[Floats, Floats, np.random.Generator], Floats], ...] = (_moved, _all_moved, _shaken)


def _remnant(piece: Floats, since: Rows, chance: np.random.Generator) -> Floats:
    """What is left in one to three channels, `since` (n,) rows after a fault, of 1 to 4 deviations."""
    left = np.where(since >= 0, np.exp(-np.maximum(since, 0) / chance.uniform(30, 200)), 0.0)
    return np.asarray(left[:, None] * _some(piece, chance) * _size(piece, chance, 1, 4))


def _size(piece: Floats, chance: np.random.Generator, least: float, most: float) -> Floats:
    """By how much each channel moves (channels,): `least` to `most` deviations of commissioning, up or down."""
    channels = piece.shape[1]
    return np.asarray(
        chance.choice([-1, 1], channels) * chance.uniform(least, most, channels) * piece[:FIT].std(axis=0)
    )


def _some(piece: Floats, chance: np.random.Generator) -> Truth:
    channels = piece.shape[1]
    return np.isin(np.arange(channels), chance.choice(channels, chance.integers(1, 4), replace=False))


def _pieces(run: Floats, length: int, every: int) -> list[Floats]:
    return [run[begin : begin + length] for begin in range(0, len(run) - length + 1, every)]

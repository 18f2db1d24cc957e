"""What is ordinary for a channel, learned once from windows of normal running, and bets that it is so no longer.

A channel is a number per window (a contribution, a cosine, a projection of an embedding). Its reference is its level in
each stratum (product, machine state) and over the day, its memory, and the law of what these leave: the residual, which
becomes a normal score z. A bet is a likelihood ratio of z against "nothing has changed", of mean at most 1.

That holds exactly for the law of the reference's residuals. A finite reference knows that law with an error: each bet
is divided by its mean over the reference plus SLACK standard errors: an asymptotic bound, not a proof.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from lineside.clock import NS

Floats = NDArray[np.float64]

SHIFTS, SHIFT_WEIGHTS = (0.25, 0.5, 1.0, 2.0), (0.10, 0.20, 0.08, 0.03)  # of each sign, in standard deviations
SCALES, SCALE_WEIGHT = (0.5, 1.6, 2.5), 0.06
CAP = 6.0  # of a bet: no single window, be it ever so strange, is an alarm; that is for the rule that counts windows
SLACK = 3.0
LEVEL_ERRORS = 2.0  # standard errors of a level that moves
KNOTS, FARTHEST = 129, 4.0  # of the map from residuals to normal scores
LONGEST_MEMORY = 8
LEAST, LEAST_STRATUM = 300, 100  # windows of a reference, as good as independent ones; and of each stratum
LEAST_SPREAD = 1e-4  # of the level, between the 10th and the 90th percentile: less is rounding
HARMONICS, DAY_NS = 3, 86_400 * NS
WHOLE_DAY = 0.95

_TURNS = np.tile(np.arange(1.0, HARMONICS + 1), 2)
_AHEAD = np.repeat([0.0, np.pi / 2], HARMONICS)  # a cosine is a sine a quarter of a turn ahead
BETS = np.array(  # ln of each likelihood ratio, as factors of z, of z squared, and of 1
    [
        [*(-t for t in SHIFTS), *SHIFTS, *(0.0 for _ in SCALES)],
        [*(0.0 for _ in SHIFTS * 2), *((1 - s**-2) / 2 for s in SCALES)],
        [*(-t * t / 2 for t in SHIFTS * 2), *(-math.log(s) for s in SCALES)],
    ]
)
LOG_CAP = math.log(CAP)
BET_WEIGHTS = np.array([*SHIFT_WEIGHTS, *SHIFT_WEIGHTS, *(SCALE_WEIGHT for _ in SCALES)])


def log_bets(z: Floats) -> Floats:
    """ln of the capped likelihood ratios (..., bets) of normal scores (...,): shifts down, shifts up, scales.

    >>> np.exp(log_bets(np.array(0.5))).round(2)[:8].tolist()
    [0.86, 0.69, 0.37, 0.05, 1.1, 1.13, 1.0, 0.37]
    """
    z = np.asarray(z)[..., None]
    return np.asarray(np.minimum(z * BETS[0] + z * z * BETS[1] + BETS[2], LOG_CAP))


@dataclass(frozen=True)
class Reference:
    """What is ordinary for each channel, learned once; `refused` says of a channel why it is not watched.

    Arrays have a row or column a watched channel (K): `mean`, `scale` (strata, K), NaN where a channel was never seen
    in a stratum; `daily` (2 * HARMONICS, K); `memory` (K, lags), newest lag first; `knots` (K, KNOTS) residuals at the
    normal scores `levels` (K, KNOTS); `log_mean` (strata, K, bets), what bets are divided by; `residual` (K,), the
    residuals' standard deviation in units of `scale`.
    """

    names: tuple[str, ...]
    hop_ns: int
    mean: Floats
    scale: Floats
    daily: Floats
    memory: Floats
    knots: Floats
    levels: Floats
    log_mean: Floats
    residual: Floats
    refused: dict[str, str]

    @classmethod
    def fit(
        cls,
        names: Sequence[str],
        values: Floats,
        start_ns: NDArray[np.int64],
        hop_ns: int,
        strata: NDArray[np.int64] | None = None,
    ) -> Reference:
        """Learn from `values` (n, channels), NaN where absent, of windows that begin at `start_ns` (n,), ascending.

        `strata` (n,) numbers the state that each window was in, from 0. The course of the day is learned when the
        reference spans one.
        """
        state = np.zeros(len(values), np.int64) if strata is None else strata
        learned: dict[str, _Channel] = {}
        refused: dict[str, str] = {}
        for name, column in zip(names, values.T, strict=True):
            found = _learn(column, start_ns, hop_ns, state)
            if isinstance(found, str):
                refused[name] = found
            else:
                learned[name] = found
        rows = list(learned.values())
        count = int(state.max()) + 1 if len(state) else 1
        return cls(
            tuple(learned),
            hop_ns,
            _columns([row.mean for row in rows], count),
            _columns([row.scale for row in rows], count),
            _columns([row.daily for row in rows], 2 * HARMONICS),
            _columns([row.memory for row in rows], LONGEST_MEMORY).T,
            _columns([row.knots for row in rows], KNOTS).T,
            _columns([row.levels for row in rows], KNOTS).T,
            np.stack([row.log_mean for row in rows], axis=1) if rows else np.zeros((count, 0, len(BET_WEIGHTS))),
            np.array([row.residual for row in rows]),
            refused,
        )

    def deviation(self, values: Floats, start_ns: NDArray[np.int64] | int, stratum: NDArray[np.int64] | int) -> Floats:
        """How far values (..., K) are from their level, in standard deviations; NaN in a stratum never seen."""
        return np.asarray((values - self.mean[stratum] - of_day(start_ns) @ self.daily) / self.scale[stratum])

    def seen(self, stratum: int) -> NDArray[np.bool_]:
        """Which channels (K,) are known in a stratum."""
        if not 0 <= stratum < len(self.scale):
            return np.zeros(len(self.names), bool)
        return np.asarray(np.isfinite(self.scale[stratum]))

    def score(self, residual: Floats) -> Floats:
        """Normal scores (..., K) of finite residuals (..., K): between knots on a straight line, never beyond them."""
        columns, first, segments = self._lines
        passed = (residual[..., None, :] >= columns).view(np.uint8)
        line = segments.take(np.add.reduce(passed, axis=-2, dtype=np.uint8) + first, axis=0)
        return np.asarray(line[..., 0] + (residual - line[..., 1]) * line[..., 2])

    @cached_property
    def _lines(self) -> tuple[Floats, NDArray[np.intp], Floats]:
        """Knots (KNOTS, K), each channel's first row of the lines, and lines: score at the left, left, slope."""
        width = np.diff(self.knots, axis=1)
        slope = np.diff(self.levels, axis=1) / np.where(width > 0, width, 1.0)
        flat = np.zeros((len(self.names), 1))
        lines = np.stack(
            [
                np.hstack([self.levels[:, :1], self.levels]),
                np.hstack([self.knots[:, :1], self.knots]),
                np.hstack([flat, slope, flat]),
            ],
            axis=-1,
        )
        first = np.arange(len(self.names)) * (KNOTS + 1)
        return np.ascontiguousarray(self.knots.T), first, lines.reshape(-1, 3)


def recalled(memory: Floats, lags: Floats) -> Floats:
    """What the past says of the next deviation (..., K): memory (K, lags) against the last deviations (..., K, lags).

    A lag that counts and is not known makes it NaN; one that does not count need not be known.
    """
    return np.asarray(np.where(memory != 0, memory * np.where(memory != 0, lags, 0.0), 0.0).sum(axis=-1))


@dataclass(frozen=True)
class _Channel:
    """One channel of a reference; see there."""

    mean: Floats
    scale: Floats
    daily: Floats
    memory: Floats
    knots: Floats
    levels: Floats
    log_mean: Floats
    residual: float


def _learn(values: Floats, start_ns: NDArray[np.int64], hop_ns: int, state: NDArray[np.int64]) -> _Channel | str:
    """What is ordinary for one channel, or why it cannot be watched."""
    good = np.isfinite(values)
    if (count := int(good.sum())) < LEAST:
        mend = f"learn {LEAST / count:.1f} times as long" if count else "learn while its sensor is there"
        return f"{count} windows are no reference, at least {LEAST} are needed: {mend}"
    if not _moves(values[good]):
        return "it never moved while normal was learned, so that nothing is known of its spread"
    strata = range(int(state.max()) + 1)
    known = [s for s in strata if (here := good & (state == s)).sum() >= LEAST_STRATUM and _moves(values[here])]
    if not known:
        return f"in no state did it move for as long as {LEAST_STRATUM} windows: learn longer"
    mean, daily = _levels(values, good, start_ns, state, known)
    off = values - mean[state] - of_day(start_ns) @ daily
    scale = np.array([float(np.std(off[good & (state == s)])) if s in known else math.nan for s in strata])
    deviation = off / scale[state]
    follows = np.append(False, np.diff(start_ns) == hop_ns)
    memory = _memory(deviation, follows)
    residual = deviation - recalled(memory, _lagged(deviation, follows, LONGEST_MEMORY))
    residual = residual[np.isfinite(residual)]
    kept = float(memory.sum())
    worth = independent(len(residual), kept)
    if worth < LEAST:
        told = (
            f"its {len(residual)} windows follow each other so closely that they are worth {worth:.0f} independent ones"
        )
        return f"{told}, at least {LEAST} are needed: learn {LEAST / worth:.1f} times as long"
    knots, levels = _knots(residual)
    share = np.array([np.mean(state[good] == s) for s in range(len(mean))])
    moving = 2 * HARMONICS * bool(daily.any()) / worth + (share < 1) / np.maximum(worth * share, 1e-9)
    unsure = LEVEL_ERRORS * np.sqrt(moving) * (1 - min(1.0, max(0.0, kept)))
    means = [
        _bet_means(residual, knots, levels, worth * part, error) for part, error in zip(share, unsure, strict=True)
    ]
    scale[worth * share < 1] = math.nan  # too little for a bet: as if never seen
    return _Channel(mean, scale, daily, memory, knots, levels, np.stack(means), float(np.std(residual)))


def independent(count: int, memory: float) -> float:
    """How many independent windows `count` ones are worth whose memory sums to `memory`: n (1 - m) / (1 + m)."""
    held = min(0.99, max(0.0, memory))
    return count * (1 - held) / (1 + held)


def _levels(
    values: Floats, good: NDArray[np.bool_], start_ns: NDArray[np.int64], state: NDArray[np.int64], known: list[int]
) -> tuple[Floats, Floats]:
    """Mean by stratum and course of the day, by least squares; NaN for a stratum that is not `known`."""
    rows = good & np.isin(state, known)
    y, kinds = values[rows], np.stack([state[rows] == s for s in known], axis=1).astype(float)
    levels, off = _fitted(kinds, y)
    daily = np.zeros(2 * HARMONICS)
    if start_ns[-1] - start_ns[0] >= WHOLE_DAY * DAY_NS:
        both, left = _fitted(np.hstack([kinds, of_day(start_ns[rows])]), y)
        count = independent(len(y), float(np.corrcoef(left[1:], left[:-1])[0, 1]))
        gain = count * math.log(float(off @ off) / max(float(left @ left), 1e-300))
        if gain > 2 * HARMONICS * math.log(max(2.0, count)):  # BIC, of independent windows
            levels, daily = both[: len(known)], both[len(known) :]
    mean = np.full(int(state.max()) + 1, np.nan)
    mean[known] = levels
    return mean, daily


def _fitted(columns: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Coefficients of least squares, and what they leave of `y`."""
    found = np.asarray(np.linalg.lstsq(columns, y, rcond=None)[0], np.float64)
    return found, y - columns @ found


def _moves(values: Floats) -> bool:
    low, level, high = np.quantile(values, [0.1, 0.5, 0.9])
    return bool(high - low > LEAST_SPREAD * abs(float(level)))


def of_day(start_ns: NDArray[np.int64] | int) -> Floats:
    """Sines and cosines (..., 2 * HARMONICS) of the time of day."""
    turn = np.asarray(2 * np.pi * (start_ns % DAY_NS) / DAY_NS)
    return np.asarray(np.sin(turn[..., None] * _TURNS + _AHEAD))


def _lagged(deviation: Floats, follows: NDArray[np.bool_], count: int) -> Floats:
    """The `count` deviations before each one (n, count), newest first; NaN beyond a gap."""
    lags = np.full((len(deviation), count), np.nan)
    before = deviation
    for k in range(count):
        before = np.where(follows, np.append(np.nan, before[:-1]), np.nan)
        lags[:, k] = before
    return lags


def _memory(deviation: Floats, follows: NDArray[np.bool_]) -> Floats:
    """Coefficients (LONGEST_MEMORY,) of the autoregression whose order BIC chooses; zeros beyond it."""
    lags = _lagged(deviation, follows, LONGEST_MEMORY)
    rows = np.isfinite(lags).all(axis=1) & np.isfinite(deviation)
    best, chosen = math.inf, np.zeros(LONGEST_MEMORY)
    y, count = deviation[rows], int(rows.sum())
    if count <= 10 * LONGEST_MEMORY:
        return chosen
    for order in range(LONGEST_MEMORY + 1):
        x = lags[rows][:, :order]
        found = np.linalg.lstsq(x, y, rcond=None)[0]
        price = count * math.log(float(np.mean((y - x @ found) ** 2)) + 1e-300) + order * math.log(max(2, count))
        if price < best:
            best, chosen = price, np.append(found, np.zeros(LONGEST_MEMORY - order))
    return chosen


def _knots(residual: Floats) -> tuple[Floats, Floats]:
    """Residuals at evenly spaced normal scores, as far out as the reference reaches; equal ones share their score."""
    normal = NormalDist()
    far = min(FARTHEST, normal.inv_cdf(1 - 0.5 / len(residual)))
    levels = np.linspace(-far, far, KNOTS)
    knots = np.quantile(residual, [normal.cdf(level) for level in levels])
    _, place = np.unique(knots, return_inverse=True)
    shared = np.bincount(place, levels) / np.bincount(place)
    return knots, shared[place]


def _bet_means(residual: Floats, knots: Floats, levels: Floats, worth: float, unsure: float) -> Floats:
    """ln of what each bet is divided by: its mean over the reference and SLACK standard errors of it.

    Where levels move (by the day, between strata) they are known with an error, which lasts for hours and would be
    taken for drift: the mean is the largest that any level within `unsure` of the fitted one gives.
    """
    if worth < 1:
        return np.full(len(BET_WEIGHTS), np.nan)
    bets = [
        np.exp(log_bets(np.interp(residual + error, knots, levels)))
        for error in ((0.0, -unsure, unsure) if unsure else (0.0,))
    ]
    means = np.max([each.mean(axis=0) for each in bets], axis=0)
    return np.asarray(np.log(means + SLACK * bets[0].std(axis=0) / math.sqrt(worth)))


def _columns(rows: Sequence[Floats], height: int) -> Floats:
    return np.stack(rows, axis=1) if rows else np.zeros((height, 0))

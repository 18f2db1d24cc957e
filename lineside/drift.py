"""Slow change told from chance: one e-detector over many channels, with one budget of false alarms for all of them.

A channel is a number per window (a contribution, a cosine, a projection of an embedding). A reference learns what is
ordinary for it: its level in each stratum (product, machine state) and over the day, its memory, and its law. A live
value becomes a residual, the residual a normal score z, and z a bet against "nothing has changed" of mean at most 1.
Shiryaev-Roberts sums of bets, weighted to 1 over all channels, stay below the run length A but for one false alarm in A
windows on average (Shin, Ramdas and Rinaldo, E-detectors, 2023, theorem 2.4): whatever the channels have to do with
each other, and with no correction for their number.

The promise holds exactly for the law of the reference's residuals. A finite reference knows that law with an error:
each bet is divided by its mean over the reference plus SLACK standard errors: an asymptotic bound, not a proof.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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

_SHIFT = np.array([*(-t for t in SHIFTS), *SHIFTS, *(0.0 for _ in SCALES)])
_CURVE = np.array([*(0.0 for _ in SHIFTS * 2), *((1 - s**-2) / 2 for s in SCALES)])
_LEVEL = np.array([*(-t * t / 2 for t in SHIFTS * 2), *(-math.log(s) for s in SCALES)])
BET_WEIGHTS = np.array([*SHIFT_WEIGHTS, *SHIFT_WEIGHTS, *(SCALE_WEIGHT for _ in SCALES)])


def log_bets(z: Floats) -> Floats:
    """ln of the capped likelihood ratios (..., bets) of normal scores (...,): shifts down, shifts up, scales.

    >>> np.exp(log_bets(np.array(0.5))).round(2)[:8].tolist()
    [0.86, 0.69, 0.37, 0.05, 1.1, 1.13, 1.0, 0.37]
    """
    z = np.asarray(z)[..., None]
    return np.asarray(np.minimum(z * _SHIFT + z * z * _CURVE + _LEVEL, math.log(CAP)))


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
        return np.asarray((values - self.mean[stratum] - _of_day(start_ns) @ self.daily) / self.scale[stratum])

    def score(self, residual: Floats) -> Floats:
        """Normal scores (..., K) of residuals (..., K), between knots along a straight line, never beyond the last."""
        place = np.clip((residual[..., None] >= self.knots).sum(axis=-1), 1, KNOTS - 1)
        row = np.arange(len(self.names))
        left, right = self.knots[row, place - 1], self.knots[row, place]
        low, high = self.levels[row, place - 1], self.levels[row, place]
        share = np.clip((residual - left) / np.where(right > left, right - left, 1.0), 0.0, 1.0)
        return np.asarray(low + share * (high - low))


@dataclass(frozen=True)
class Finding:
    """A change: in which channel, since when, how large (standard deviations of the channel), and up or down.

    `effect` is 0 where the spread has changed and the level has not.
    """

    channel: str
    onset_ns: int
    effect: float


@dataclass
class Detector:
    """Live windows against a reference; `run_length` is the budget in windows, `weights` (K,) its share by channel.

    All state is in arrays that `state` gives and `restore` takes, so that a restart forgets nothing.
    """

    reference: Reference
    run_length: float
    weights: Floats = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        channels = len(self.reference.names)
        if not len(self.weights):
            self.weights = np.full(channels, 1.0 / max(1, channels))
        self._shares = self.weights[:, None] * BET_WEIGHTS
        self._lags = np.full((channels, LONGEST_MEMORY), np.nan)
        self._last_ns = 0
        self.reset()

    def reset(self) -> None:
        """Begin to watch anew, as after an alarm: sums at 0."""
        shape = len(self.reference.names), len(BET_WEIGHTS)
        self._sums, self._climb, self._scores = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        self._steps, self._onset = np.zeros(shape), np.zeros(shape, np.int64)

    def hear(self, values: Floats, start_ns: int, stratum: int = 0) -> Finding | None:
        """Take the values (K,) of the next window, NaN where absent; a finding when the budget is reached.

        A value that is absent, not a number, or in a stratum never seen is no evidence, for or against; nor are the
        first ones after a gap, whose past is unknown. After a finding the sums are at 0.
        """
        if start_ns - self._last_ns != self.reference.hop_ns:
            self._lags[:] = np.nan
        self._last_ns = start_ns
        deviation = self.reference.deviation(values, start_ns, stratum)
        residual = deviation - recalled(self.reference.memory, self._lags)
        self._lags[:, 1:], self._lags[:, 0] = self._lags[:, :-1].copy(), deviation
        known = np.isfinite(residual)
        if not known.any():
            return None
        z = self.reference.score(np.where(known, residual, 0.0))
        gain = log_bets(z) - self.reference.log_mean[stratum]
        gain, known = np.where(np.isfinite(gain), gain, 0.0), known & np.isfinite(gain[:, 0])
        self._sums = np.where(known[:, None], (self._sums + 1) * np.exp(gain), self._sums)
        self._remember(np.where(known[:, None], gain, 0.0), np.where(known, z, 0.0), known, start_ns)
        if float((self._sums * self._shares).sum()) < self.run_length:
            return None
        finding = self._finding()
        self.reset()
        return finding

    def gauges(self) -> dict[str, float]:
        """Evidence of each channel, 0 (none) to 1 (an alarm by itself): ln of its part of the sum over the budget's."""
        total = (self._sums * self._shares).sum(axis=1)
        found = np.minimum(1.0, np.log1p(total) / math.log1p(self.run_length))
        return dict(zip(self.reference.names, found.tolist(), strict=True))

    def _remember(self, gain: Floats, z: Floats, known: NDArray[np.bool_], start_ns: int) -> None:
        """Since when each bet has been winning: where its climb was last at 0 (the change point's likeliest place)."""
        fresh = self._climb <= 0
        self._onset = np.where(fresh & known[:, None], start_ns, self._onset)
        self._scores = np.where(fresh, 0.0, self._scores) + z[:, None]
        self._steps = np.where(fresh, 0.0, self._steps) + known[:, None]
        self._climb = np.maximum(0.0, np.where(fresh, 0.0, self._climb) + gain)

    def _finding(self) -> Finding:
        won = self._sums * self._shares
        channel = int(won.sum(axis=1).argmax())
        bet = int(won[channel].argmax())
        memory = float(np.nansum(self.reference.memory[channel]))
        level = self._scores[channel, bet] / max(1.0, self._steps[channel, bet])
        shifted = bet < 2 * len(SHIFTS)
        effect = float(level * self.reference.residual[channel] / max(0.02, 1 - memory)) if shifted else 0.0
        return Finding(self.reference.names[channel], int(self._onset[channel, bet]), effect)

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Everything that a restart would lose."""
        last = np.array(self._last_ns, np.int64)
        named = {"sums": self._sums, "climb": self._climb, "scores": self._scores, "steps": self._steps}
        return {**named, "onset": self._onset, "lags": self._lags, "last_ns": last}

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on from `state`. Raises ValueError when it is of another reference."""
        mine = self.state()
        if state.keys() != mine.keys() or any(state[name].shape != mine[name].shape for name in mine):
            raise ValueError("the state is of other channels")
        self._sums, self._climb, self._scores, self._steps, self._lags = (
            np.array(state[name], np.float64) for name in ("sums", "climb", "scores", "steps", "lags")
        )
        self._onset, self._last_ns = np.array(state["onset"], np.int64), int(state["last_ns"])


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
    if good.sum() < LEAST:
        return f"{int(good.sum())} windows are no reference, at least {LEAST} are needed: learn longer"
    low, level, high = np.quantile(values[good], [0.1, 0.5, 0.9])
    if high - low <= LEAST_SPREAD * abs(float(level)):
        return "it never moved while normal was learned, so that nothing is known of its spread"
    mean, daily = _levels(values, good, start_ns, state)
    off = values - mean[state] - _of_day(start_ns) @ daily
    scale = np.array([_spread(off[good & (state == s)]) for s in range(len(mean))])
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
    return _Channel(mean, scale, daily, memory, knots, levels, np.stack(means), float(np.std(residual)))


def independent(count: int, memory: float) -> float:
    """How many independent windows `count` ones are worth whose memory sums to `memory`: n (1 - m) / (1 + m)."""
    held = min(0.99, max(0.0, memory))
    return count * (1 - held) / (1 + held)


def _levels(
    values: Floats, good: NDArray[np.bool_], start_ns: NDArray[np.int64], state: NDArray[np.int64]
) -> tuple[Floats, Floats]:
    """Mean by stratum and course of the day, by least squares; NaN for a stratum with too few windows."""
    strata = int(state.max()) + 1
    known = [s for s in range(strata) if (good & (state == s)).sum() >= LEAST_STRATUM]
    rows = good & np.isin(state, known)
    y, kinds = values[rows], np.stack([state[rows] == s for s in known], axis=1).astype(float)
    levels, off = _fitted(kinds, y)
    daily = np.zeros(2 * HARMONICS)
    if start_ns[-1] - start_ns[0] >= WHOLE_DAY * DAY_NS:
        both, left = _fitted(np.hstack([kinds, _of_day(start_ns[rows])]), y)
        count = independent(len(y), float(np.corrcoef(left[1:], left[:-1])[0, 1]))
        gain = count * math.log(float(off @ off) / max(float(left @ left), 1e-300))
        if gain > 2 * HARMONICS * math.log(max(2.0, count)):  # BIC, of independent windows
            levels, daily = both[: len(known)], both[len(known) :]
    mean = np.full(strata, np.nan)
    mean[known] = levels
    return mean, daily


def _fitted(columns: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Coefficients of least squares, and what they leave of `y`."""
    found = np.asarray(np.linalg.lstsq(columns, y, rcond=None)[0], np.float64)
    return found, y - columns @ found


def _spread(off: Floats) -> float:
    return float(np.std(off)) if len(off) >= LEAST_STRATUM else math.nan


def _of_day(start_ns: NDArray[np.int64] | int) -> Floats:
    """Sines and cosines (..., 2 * HARMONICS) of the time of day."""
    turn = 2 * np.pi * (np.asarray(start_ns) % DAY_NS) / DAY_NS
    angles = turn[..., None] * np.arange(1, HARMONICS + 1)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)


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
    for order in range(LONGEST_MEMORY + 1 if count > 10 * LONGEST_MEMORY else 1):
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

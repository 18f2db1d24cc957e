"""Slow change told from chance: one e-detector over many channels, with one budget of false alarms for all of them.

A live value becomes a normal score, and the score bets against "nothing has changed" of mean at most 1
(lineside.reference). Shiryaev-Roberts sums of bets, weighted to 1 over all channels, stay below the run length A but
for one false alarm in A windows on average (Shin, Ramdas and Rinaldo, E-detectors, 2023, theorem 2.4): whatever the
channels have to do with each other, and with no correction for their number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lineside.reference import BET_WEIGHTS, BETS, LOG_CAP, LONGEST_MEMORY, SHIFTS, Floats, Reference, of_day, recalled
from lineside.trace import Trace

ZERO, ONE, CAPPED = (np.array(value) for value in (0.0, 1.0, LOG_CAP))  # a number would be made an array at each call
LEVEL_BETS = 2 * len(SHIFTS)
TIED = 20.0  # a large shift wins as much on a wider spread: within this factor it is told as a shift


@dataclass(frozen=True)
class Finding:
    """A change: in which channel, since when, how large (standard deviations of the channel), and up or down.

    `effect` is 0 where the spread has changed and the level has not. `trace` is the channel's course from before the
    onset to now (lineside.trace), in standard deviations from its level.
    """

    channel: str
    onset_ns: int
    effect: float
    trace: tuple[float, ...] = ()


class Scores:
    """Live windows as normal scores, against a reference; `deviation` (K,) is of the last window.

    NumPy's cost is by the call, not by the channel: what is the same in every window is reckoned once, and what is
    needed only where values are absent is left out while all are known.
    """

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        channels = len(reference.names)
        order = max((int(k) + 1 for k in np.flatnonzero(reference.memory.any(axis=0))), default=0)
        self._memory = np.ascontiguousarray(reference.memory[:, :order].T)
        self._daily = reference.daily if reference.daily.any() else None
        self._levels = list(zip(reference.mean, reference.scale, strict=True))
        self._all = np.ones(channels)
        self.deviation = np.full(channels, np.nan)
        self.lags = np.full((LONGEST_MEMORY, channels), np.nan)
        self.last_ns = 0

    def hear(self, values: Floats, start_ns: int, stratum: int) -> Floats:
        """Normal scores (K,) of the next window's values (K,), NaN where there are none.

        There is none for a value that is absent, not a number, or in a stratum never seen, nor for the first ones after
        a gap or a jump of the clock, whose past is unknown.
        """
        if start_ns - self.last_ns != self.reference.hop_ns:
            self.lags[:] = np.nan
        self.last_ns = start_ns
        deviation = self.deviation = self._deviation(values, start_ns, stratum)
        if order := len(self._memory):
            residual = deviation - np.add.reduce(self._memory * self.lags[:order])
        else:
            residual = deviation
        whole = self.whole(residual)
        z = self.reference.score(residual) if whole else self._some(deviation)
        self.lags[1:] = self.lags[:-1]
        self.lags[0] = deviation
        return z

    def whole(self, values: Floats) -> bool:
        """Whether each of the values (K,) is a number."""
        return math.isfinite(values.dot(self._all))

    def _deviation(self, values: Floats, start_ns: int, stratum: int) -> Floats:
        if not 0 <= stratum < len(self._levels):
            return np.full(len(self._all), np.nan)
        mean, scale = self._levels[stratum]
        off = values if self.whole(values) else np.where(np.isfinite(values), values, np.nan)
        off = off - mean
        if self._daily is not None:
            off -= of_day(start_ns) @ self._daily
        return np.asarray(off / scale)

    def _some(self, deviation: Floats) -> Floats:
        """Scores where something is unknown: a lag that does not count need not be known."""
        residual = deviation - recalled(self.reference.memory, self.lags.T)
        known = np.isfinite(residual)
        return np.where(known, self.reference.score(np.where(known, residual, 0.0)), np.nan)


@dataclass
class Detector:
    """Live windows against a reference; `run_length` is the budget in windows, `weights` (K,) its share by channel.

    All state is in arrays of fixed size that `state` gives and `restore` takes, so that a restart forgets nothing.
    """

    reference: Reference
    run_length: float
    weights: Floats = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        channels, bets = len(self.reference.names), len(BET_WEIGHTS)
        if not len(self.weights):
            self.weights = np.full(channels, 1.0 / max(1, channels))
        self._shares = self.weights[:, None] * BET_WEIGHTS
        self._flat_shares = self._shares.ravel()
        self._log_mean = list(self.reference.log_mean)
        self._scores, self._trace = Scores(self.reference), Trace(channels)
        self._powers = np.ones((channels, 3))  # z, its square, and 1: what BETS are factors of
        self._sums = np.zeros((channels, bets))
        self._flat_sums = self._sums.reshape(-1)
        self._climbs = np.zeros((3, channels, bets))  # of each bet: how high, scores since its foot, windows since
        self._news = np.ones((3, channels, bets))  # what the next window adds to these
        self._climb, (self._gain, self._score, self._step) = self._climbs[0], self._news
        self._onset = np.zeros((channels, bets), np.int64)

    def __deepcopy__(self, _: object) -> Detector:
        """One that goes on by itself: arrays are views of each other, which an ordinary copy would part."""
        made = Detector(self.reference, self.run_length, self.weights)
        made.restore(self.state())
        return made

    def reset(self) -> None:
        """Begin to watch anew, as after an alarm: sums at 0."""
        for array in (self._sums, self._climbs, self._onset):
            array.fill(0)

    def hear(self, values: Floats, start_ns: int, stratum: int = 0) -> Finding | None:
        """Take the values (K,) of the next window, NaN where absent; a finding when the budget is reached.

        What has no normal score is no evidence, for or against. After a finding the sums are at 0.
        """
        z = self._scores.hear(values, start_ns, stratum)
        self._trace.hear(self._scores.deviation)
        if self._scores.whole(z):
            self._bet(z, None, stratum, start_ns)
        elif (known := np.isfinite(z)).any():
            self._bet(np.where(known, z, 0.0), known, stratum, start_ns)
        if self._flat_sums.dot(self._flat_shares) < self.run_length:
            return None
        finding = self._finding()
        self.reset()
        return finding

    def gauges(self) -> dict[str, float]:
        """Evidence of each channel, 0 (none) to 1 (an alarm by itself): ln of its part of the sum over the budget's."""
        total = np.add.reduce(self._sums * self._shares, axis=1)
        found = np.minimum(ONE, np.log1p(total) / math.log1p(self.run_length))
        return dict(zip(self.reference.names, found.tolist(), strict=True))

    def _bet(self, z: Floats, known: NDArray[np.bool_] | None, stratum: int, start_ns: int) -> None:
        """Every bet's gain from z (K,) and its sum; where it is not `known` (K,) nothing moves. None: all are.

        A bet has been winning since its climb was last at 0: the change point's likeliest place.
        """
        self._powers[:, 0] = z
        np.multiply(z, z, out=self._powers[:, 1])
        gain = self._gain
        np.dot(self._powers, BETS, out=gain)
        np.minimum(gain, CAPPED, out=gain)
        gain -= self._log_mean[stratum]
        self._score[:] = z[:, None]
        self._step[:] = ONE
        if known is not None:
            gain[~known] = self._step[~known] = 0.0
        self._sums += self._step
        self._sums *= np.exp(gain)
        fresh = self._climb <= ZERO
        self._climbs *= np.logical_not(fresh)
        self._climbs += self._news
        np.maximum(self._climb, ZERO, out=self._climb)
        np.putmask(self._onset, fresh, start_ns)

    def _finding(self) -> Finding:
        won = self._sums * self._shares
        channel = int(won.sum(axis=1).argmax())
        bet, shift = int(won[channel].argmax()), int(won[channel, :LEVEL_BETS].argmax())
        if won[channel, shift] * TIED >= won[channel, bet]:
            bet = shift
        _, scores, steps = self._climbs[:, channel, bet]
        onset = int(self._onset[channel, bet])
        effect = moved(self.reference, channel, scores / max(1.0, steps)) if bet < LEVEL_BETS else 0.0
        since = (self._scores.last_ns - onset) // self.reference.hop_ns + 1
        return Finding(self.reference.names[channel], onset, effect, self._trace.of(channel, since))

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Everything that a restart would lose, as copies."""
        last = np.array([self._scores.last_ns, self._trace.heard], np.int64)
        return {name: array.copy() for name, array in self._arrays().items()} | {"last": last}

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on from `state`. Raises ValueError when it is of another reference."""
        mine = self._arrays()
        if state.keys() != {*mine, "last"} or any(state[name].shape != mine[name].shape for name in mine):
            raise ValueError("the state is of other channels")
        for name, array in mine.items():
            array[:] = state[name]
        self._scores.last_ns, self._trace.heard = (int(value) for value in state["last"])

    def _arrays(self) -> dict[str, NDArray[np.generic]]:
        past = {"lags": self._scores.lags, "trace": self._trace.means}
        return {"sums": self._sums, "climbs": self._climbs, "onset": self._onset, **past}


def moved(reference: Reference, channel: int, score: float) -> float:
    """A lasting mean normal score as a shift of the channel in its standard deviations: memory hid a part of it."""
    hidden = float(np.nansum(reference.memory[channel]))
    return float(score * reference.residual[channel] / max(0.02, 1 - hidden))

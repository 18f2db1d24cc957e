"""How soon a change of 128-d embeddings is told, ours and MMD-online's, all with the same mean run length.

`python -m bench.embedding_drift` draws unit embeddings, learns from 20 000 of them, and sets all thresholds on streams
without a change so that a false alarm comes once in RUN_LENGTH windows; fresh streams show what was reached. Then the
same streams change under all after WARM windows. Ours is the device's: channels of lineside.projections, weights of
edge.monitor for a device that watches one embedding and nothing else, e-detector of lineside.drift. MMD-online is
written from the literature: the unbiased squared MMD (Gretton et al., A kernel two-sample test, JMLR 2012, lemma 6)
between REFERENCE points and a sliding window, the median of their distances as the width of a Gaussian kernel, sums
updated window by window as in Li, Xie, Dai and Song, Scan B-statistic for kernel change-point detection, 2019; once on
embeddings as they are, and once along their whitened axes, which is the stronger where axes differ in spread.

A delay is the mean over the streams on which none had an alarm before the change (Pollak's conditional delay), so
that no rule for what follows a false alarm favours either. `--json` prints one line.
"""

from __future__ import annotations

import argparse
import json
import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge.monitor import EMBEDDING, weights
from lineside.clock import NS, SystemClock
from lineside.drift import Detector
from lineside.projections import CHANNELS, Projections, Space
from lineside.reference import BET_WEIGHTS, LONGEST_MEMORY, Reference, log_bets, recalled

Floats = NDArray[np.float64]
Embeddings = NDArray[np.float32]
Real = TypeVar("Real", np.float64, np.float32)

WIDTH = 128
COMMISSIONED, LEARNED = 600, 20_000  # axes are of the first, what is ordinary along them of the others: as on a device
REFERENCE, WINDOW = 2_000, 50  # of MMD-online
RUN_LENGTH, HORIZON = 1_000.0, 3_000  # windows; streams without a change end at the horizon
BLOCK, WARM, MOST = 50, 250, 3_000  # windows drawn at once; before a change; after it, at most
HIGHEST = 1e290  # of our sum, long past any threshold

# Standard deviation of axis k is k ** -fall; the embeddings of the simulated line's encoders fall with 0.65 to 0.7.
FALLS = {"even": 0.0, "falling": 0.7}

# What becomes of the noise (steps, streams, WIDTH), in standard deviations of each axis, after the change: from it, a
# unit vector (streams, WIDTH) of random direction, and the last noise before the change (streams, WIDTH).
CHANGES: dict[str, Callable[[Floats, Floats, Floats], Floats]] = {
    "1 sigma, one direction": lambda noise, way, last: noise + way,
    "0.5 sigma, one direction": lambda noise, way, last: noise + 0.5 * way,
    "0.1 sigma, every axis": lambda noise, way, last: noise + 0.1,
    "noise x 1.1": lambda noise, way, last: noise * 1.1,
    "frozen embedding": lambda noise, way, last: np.broadcast_to(last, noise.shape),
}


@dataclass(frozen=True)
class Law:
    """Embeddings in normal running: a unit centre and t(6) noise, about as long, cast onto the unit sphere."""

    centre: Floats
    scale: Floats

    @classmethod
    def draw(cls, rng: np.random.Generator, fall: float) -> Law:
        scale = np.arange(1.0, WIDTH + 1) ** -fall
        return cls(_unit(rng.normal(size=WIDTH)), scale / np.linalg.norm(scale))

    def noise(self, rng: np.random.Generator, *shape: int) -> Floats:
        """t(6) of variance 1 (*shape, WIDTH)."""
        return np.asarray(rng.standard_t(6, size=(*shape, WIDTH)) / math.sqrt(6 / 4))

    def embeddings(self, noise: Floats) -> Embeddings:
        return _unit(self.centre + noise * self.scale).astype(np.float32)


class Judge(Protocol):
    """A detector on several streams at once."""

    def hear(self, embeddings: Embeddings) -> Floats:
        """The statistic (steps, streams) after each of the next windows (steps, streams, WIDTH); never reset."""

    def keep(self, streams: NDArray[np.bool_]) -> None:
        """Go on with some of the streams."""


class Bank:
    """The device's detector: the sum that lineside.drift.Detector compares with its run length, by stream."""

    def __init__(self, learned: Embeddings, streams: int) -> None:
        self.space = Space.fit(learned[:COMMISSIONED])
        before, live = Projections(self.space), learned[COMMISSIONED:]
        values, starts = before.hear_all(live), np.arange(len(live)) * NS
        named = Reference.fit([f"{EMBEDDING}/one/{channel}" for channel in CHANNELS], values, starts, NS)
        self.reference, self.course = named, before.course
        self.watched = [k for k, channel in enumerate(CHANNELS) if f"{EMBEDDING}/one/{channel}" in named.names]
        self.weights = weights(named.names)
        self._shares = (self.weights[:, None] * BET_WEIGHTS).ravel()
        self._projections = [self.projections() for _ in range(streams)]
        self._sums = np.zeros((streams, len(self._shares)))
        self._past = np.full((LONGEST_MEMORY, streams, len(self.watched)), np.nan)

    def projections(self) -> Projections:
        """Of a stream that begins: learning passes into watching without a break."""
        return Projections(self.space, self.course.copy())

    def hear(self, embeddings: Embeddings) -> Floats:
        gain = np.exp(self._gains(embeddings))
        found = np.empty(gain.shape[:2])
        for step, factor in enumerate(gain):
            grown = np.minimum((self._sums + 1) * factor, HIGHEST)
            self._sums = np.where(np.isnan(factor), self._sums, grown)
            found[step] = self._sums @ self._shares
        return found

    def keep(self, streams: NDArray[np.bool_]) -> None:
        self._projections = [one for one, kept in zip(self._projections, streams, strict=True) if kept]
        self._sums, self._past = self._sums[streams], self._past[:, streams]

    def _gains(self, embeddings: Embeddings) -> Floats:
        """ln of every bet (steps, streams, K * bets); NaN where a past that counts is not known yet."""
        rows = [one.hear_all(embeddings[:, k]) for k, one in enumerate(self._projections)]
        deviation = self.reference.deviation(np.stack(rows, axis=1)[..., self.watched], 0, 0)
        line, steps = np.concatenate([self._past, deviation]), len(deviation)
        lags = np.stack([line[-k - steps : -k] for k in range(1, LONGEST_MEMORY + 1)], axis=-1)
        self._past = line[-LONGEST_MEMORY:]
        residual = deviation - recalled(self.reference.memory, lags)
        known = np.isfinite(residual)
        z = self.reference.score(np.where(known, residual, 0.0))
        gains = np.where(known[..., None], log_bets(z) - self.reference.log_mean[0], np.nan)
        return np.asarray(gains.reshape(*z.shape[:2], -1))


class Mmd:
    """MMD-online: unbiased squared MMD between the reference and the last WINDOW windows, by stream."""

    def __init__(self, learned: Embeddings, streams: int) -> None:
        self._points = np.ascontiguousarray(learned[:REFERENCE].T)
        among = self._points.T @ self._points
        pairs = ~np.eye(REFERENCE, dtype=bool)
        self._width = float(np.median(2 - 2 * among[pairs]))  # squared distance of unit vectors
        self._own = float(self._kernel(among)[pairs].mean(dtype=np.float64))
        first = learned[REFERENCE : REFERENCE + WINDOW]  # the window is full from the beginning
        self._window = np.repeat(first[None], streams, axis=0)
        gram = self._kernel(first @ first.T) * ~np.eye(WINDOW, dtype=bool)
        self._gram = np.repeat(gram[None], streams, axis=0).astype(np.float64)
        self._far = np.repeat(self._to_reference(first)[None], streams, axis=0)
        self._inner = self._gram.sum(axis=(1, 2))
        self._place = 0

    def hear(self, embeddings: Embeddings) -> Floats:
        far = np.stack([self._to_reference(row) for row in embeddings])
        return np.stack([self._step(row, each) for row, each in zip(embeddings, far, strict=True)])

    def keep(self, streams: NDArray[np.bool_]) -> None:
        self._window, self._gram = self._window[streams], self._gram[streams]
        self._far, self._inner = self._far[streams], self._inner[streams]

    def _step(self, newest: Embeddings, far: Floats) -> Floats:
        """Let the newest (streams, WIDTH) take the place of the oldest: one row and column of each window's kernel."""
        place, self._place = self._place, (self._place + 1) % WINDOW
        near = self._kernel((self._window @ newest[:, :, None])[..., 0]).astype(np.float64)
        near[:, place] = 0
        self._inner += 2 * (near.sum(axis=1) - self._gram[:, place].sum(axis=1))
        self._gram[:, place], self._gram[:, :, place] = near, near
        self._window[:, place], self._far[:, place] = newest, far
        return np.asarray(self._own + self._inner / (WINDOW * (WINDOW - 1)) - 2 * self._far.mean(axis=1))

    def _to_reference(self, points: Embeddings) -> Floats:
        return np.asarray(self._kernel(points @ self._points).mean(axis=-1, dtype=np.float64))

    def _kernel(self, cosines: Embeddings) -> Embeddings:
        """exp(-|x - y|^2 / (2 m^2)) of unit vectors, m the median distance."""
        return np.asarray(np.exp((cosines - 1) / self._width))


class WhitenedMmd(Mmd):
    """MMD-online along whitened principal axes: for who knows that a raw distance sees the largest axes alone."""

    def __init__(self, learned: Embeddings, streams: int) -> None:
        self._mean = learned.mean(axis=0)
        spread, axes = np.linalg.eigh(np.cov(learned.T))
        self._axes = (axes / np.sqrt(spread)).astype(np.float32)
        super().__init__(self._whitened(learned), streams)

    def hear(self, embeddings: Embeddings) -> Floats:
        return super().hear(self._whitened(embeddings))

    def _whitened(self, embeddings: Embeddings) -> Embeddings:
        """Of unit length again: only direction is left, as in an embedding."""
        return _unit((embeddings - self._mean) @ self._axes)


OURS = "ours"
JUDGES: dict[str, Callable[[Embeddings, int], Judge]] = {OURS: Bank, "MMD-online": Mmd, "MMD, whitened": WhitenedMmd}
RIVALS = tuple(JUDGES)[1:]


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error."""

    mean: float
    error: float


def run_length(statistic: Floats, threshold: float) -> Estimate:
    """Mean windows to an alarm, of streams (steps, streams) that end at the first alarm or at the horizon.

    Windows watched over alarms: the likeliest mean where waiting for an alarm has no memory.

    >>> run_length(np.array([[1.0, 1.0], [5.0, 1.0], [1.0, 1.0]]), 5.0)
    Estimate(mean=5.0, error=5.0)
    """
    over = statistic >= threshold
    alarmed = over.any(axis=0)
    watched = np.where(alarmed, over.argmax(axis=0) + 1, len(statistic)).sum()
    alarms = max(1, int(alarmed.sum()))
    return Estimate(float(watched / alarms), float(watched / alarms**1.5))


def threshold_for(statistic: Floats, wanted: float) -> float:
    """The least value that `statistic` (steps, streams) ran up to with which it runs so long."""
    reached = np.unique(np.maximum.accumulate(statistic))
    return float(reached[bisect_left(reached, wanted, key=lambda value: run_length(statistic, value).mean)])


def unchanged(law: Law, learned: Embeddings, rng: np.random.Generator, streams: int) -> dict[str, Floats]:
    """Every statistic (HORIZON, streams) where nothing changes."""
    judges = {name: judge(learned, streams) for name, judge in JUDGES.items()}
    found: dict[str, list[Floats]] = {name: [] for name in judges}
    for _ in range(HORIZON // BLOCK):
        block = law.embeddings(law.noise(rng, BLOCK, streams))
        for name, judge in judges.items():
            found[name].append(judge.hear(block))
    return {name: np.concatenate(rows) for name, rows in found.items()}


def delays(
    law: Law, learned: Embeddings, change: str, thresholds: dict[str, float], rng: np.random.Generator, streams: int
) -> dict[str, Floats]:
    """Windows from the change to the alarm of each, on the same streams (kept,); inf where none came in MOST.

    Raises ValueError where no stream was without an alarm until the change.
    """
    judges = {name: judge(learned, streams) for name, judge in JUDGES.items()}
    last = warmed(law, judges, thresholds, rng, streams)
    way = _unit(rng.normal(size=last.shape))
    found = {name: np.full(len(last), np.inf) for name in judges}
    going = np.arange(len(last))
    for first in range(0, MOST, BLOCK):
        block = law.embeddings(CHANGES[change](law.noise(rng, BLOCK, len(going)), way[going], last[going]))
        for name, judge in judges.items():
            over = judge.hear(block) >= thresholds[name]
            new = over.any(axis=0) & np.isinf(found[name][going])
            found[name][going[new]] = first + over.argmax(axis=0)[new] + 1
        waits = np.any([np.isinf(row[going]) for row in found.values()], axis=0)
        going = going[waits]
        if not len(going):
            break
        for judge in judges.values():
            judge.keep(waits)
    return found


def warmed(
    law: Law, judges: dict[str, Judge], thresholds: dict[str, float], rng: np.random.Generator, streams: int
) -> Floats:
    """WARM windows without a change: `judges` go on with the streams on which none had an alarm; their last noise."""
    quiet = np.ones(streams, bool)
    for _ in range(WARM // BLOCK):
        noise = law.noise(rng, BLOCK, streams)
        for name, judge in judges.items():
            quiet &= (judge.hear(law.embeddings(noise)) < thresholds[name]).all(axis=0)
    if not quiet.any():
        raise ValueError("every stream had an alarm before the change: ask for more streams")
    for judge in judges.values():
        judge.keep(quiet)
    return np.asarray(noise[-1, quiet])


@dataclass(frozen=True)
class Delay:
    """Of each detector its mean windows and on how many of the streams it never came; ratios ours / rival.

    A stream on which an alarm never came counts with MOST windows. Errors of ratios are by bootstrap over streams.
    """

    streams: int
    windows: dict[str, Estimate]
    missed: dict[str, int]
    ratio: dict[str, Estimate]

    @classmethod
    def of(cls, found: dict[str, Floats], rng: np.random.Generator) -> Delay:
        counted = {name: np.minimum(row, MOST) for name, row in found.items()}
        streams = len(counted[OURS])
        drawn = rng.integers(0, streams, (2_000, streams))
        again = {name: row[drawn].mean(axis=1) for name, row in counted.items()}
        windows = {
            name: Estimate(float(row.mean()), float(row.std(ddof=1)) / math.sqrt(streams))
            for name, row in counted.items()
        }
        ratio = {
            name: Estimate(windows[OURS].mean / windows[name].mean, float((again[OURS] / again[name]).std()))
            for name in found
            if name != OURS
        }
        return cls(streams, windows, {name: int(np.isinf(row).sum()) for name, row in found.items()}, ratio)


def costs(learned: Embeddings, embeddings: Embeddings) -> dict[str, float]:
    """Microseconds of one embedding, in turn on the same ones: the lower quartile of each."""
    bank, clock = Bank(learned, 0), SystemClock()
    projections, detector = bank.projections(), Detector(bank.reference, RUN_LENGTH, bank.weights)
    rivals = {name: JUDGES[name](learned, 1) for name in RIVALS}
    times: dict[str, list[int]] = {name: [] for name in JUDGES}
    for step, embedding in enumerate(embeddings):
        began = clock.now_ns()
        detector.hear(projections.hear(embedding)[bank.watched], step * NS)
        times[OURS].append(clock.now_ns() - began)
        for name, rival in rivals.items():
            began = clock.now_ns()
            rival.hear(embedding[None, None])
            times[name].append(clock.now_ns() - began)
    return {name: float(np.quantile(spent, 0.25)) / 1e3 for name, spent in times.items()}


@dataclass(frozen=True)
class Compared:
    """One law: for each detector its threshold, run length where that was set and on fresh streams; delays; costs."""

    thresholds: dict[str, float]
    nominal: dict[str, Estimate]
    achieved: dict[str, Estimate]
    delays: dict[str, Delay]
    us: dict[str, float]


def compared(fall: float, streams: int, seed: int) -> Compared:
    """Everything of one law."""
    chances = [np.random.default_rng([seed, part]) for part in range(5)]
    law = Law.draw(chances[0], fall)
    learned = law.embeddings(law.noise(chances[0], COMMISSIONED + LEARNED))
    known = unchanged(law, learned, chances[1], streams)
    thresholds = {name: threshold_for(rows, RUN_LENGTH) for name, rows in known.items()}
    fresh = unchanged(law, learned, chances[2], streams)
    found = {name: delays(law, learned, name, thresholds, chances[3], streams) for name in CHANGES}
    return Compared(
        thresholds,
        {name: run_length(rows, thresholds[name]) for name, rows in known.items()},
        {name: run_length(rows, thresholds[name]) for name, rows in fresh.items()},
        {name: Delay.of(rows, chances[4]) for name, rows in found.items()},
        costs(learned, law.embeddings(law.noise(chances[4], 1_000))),
    )


def table(name: str, one: Compared) -> list[str]:
    """Markdown of one law."""
    lines = [
        f"\n**{name} spread**\n",
        *_head("", "threshold", "run length: set", "on fresh streams", "us an embedding"),
    ]
    for who in JUDGES:
        set_, fresh = (f"{each[who].mean:.0f} ± {each[who].error:.0f}" for each in (one.nominal, one.achieved))
        lines.append(f"| {who} | {one.thresholds[who]:.4g} | {set_} | {fresh} | {one.us[who]:.0f} |")
    ratios = (f"ours / {rival}" for rival in RIVALS)
    lines += ["", *_head("change", *(f"{who}, windows" for who in JUDGES), *ratios, "missed, of streams")]
    for change, row in one.delays.items():
        windows = [f"{each.mean:.1f} ± {each.error:.1f}" for each in row.windows.values()]
        ratio = [f"{each.mean:.2f} ± {each.error:.2f}" for each in row.ratio.values()]
        missed = ", ".join(str(count) for count in row.missed.values())
        lines.append(f"| {' | '.join([change, *windows, *ratio])} | {missed} of {row.streams} |")
    return lines


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=400, help="of each kind; on some an alarm precedes the change")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found = {name: compared(fall, asked.streams, asked.seed) for name, fall in FALLS.items()}
    if asked.json:
        print(json.dumps({"seed": asked.seed, **{name: asdict(one) for name, one in found.items()}}))
        return
    for name, one in found.items():
        print("\n".join(table(name, one)))


def _unit(rows: NDArray[Real]) -> NDArray[Real]:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True))


def _head(*columns: str) -> tuple[str, str]:
    return f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"


if __name__ == "__main__":
    main()

"""How far slow series have strayed from what their commissioning foretells, in units of how far well ones stray.

An encoder without weights for channels that warm up, swing and drift when all is well. Levels and spreads of the last
rows are foretold from those of commissioning by ordinary kriging (Cressie, Statistics for Spatial Data, 1993, section
3.2), under a variogram of the channel itself: how far it has moved within a time. What is foretold grows less sure
with time, faster for a channel that wanders than for one that only shakes, so that neither is strange by being itself.
Later windows that are well beyond doubt, before or after, may be given beside commissioning: the further a well channel
wanders from that, the more they tell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

LAGS = 12  # at which a variogram is looked at, up to half of what is known
POWERS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # 1 is a random walk; at 2 a straight line would be known for ever
LEAST_MOVE = 1e-6  # of a trait's size: less is rounding
LEAST_ROWS = 4  # times the window
LENGTH, HALF, AROUND = 32, 16, 61  # rows: of a window, from its middle to its end, of those looked at around a row


def traits(rows: Floats, length: int, known: int) -> Floats:
    """Level, then log spread, of each channel over windows of `length` rows: (n - length + 1, 2 * channels).

    `rows` (n, channels); the first `known` are of commissioning. Spread is the mean square of steps from row to row,
    which slow movement leaves alone; the usual one is added to it before the logarithm, so that a coarse converter
    that gives the same number for a while is no event.

    >>> traits(np.array([[1.0], [3.0], [1.0], [3.0]]), 2, 4).round(2).tolist()
    [[2.0, 2.08], [2.0, 2.08], [2.0, 2.08]]
    """
    middle = rows[:known].mean(axis=0)
    steps = np.diff(rows, axis=0) ** 2
    usual = steps[: known - 1].mean(axis=0)
    tiny = (LEAST_MOVE * np.abs(middle)) ** 2 + 1e-300
    return np.hstack([middle + _moving(rows - middle, length), np.log(_moving(steps, length - 1) + usual + tiny)])


def _moving(values: Floats, length: int) -> Floats:
    """Means (n - length + 1, k) of `length` successive rows of `values` (n, k)."""
    total = np.cumsum(np.vstack([np.zeros(values.shape[1]), values]), axis=0)
    return np.asarray((total[length:] - total[:-length]) / length)


@dataclass(frozen=True)
class Variogram:
    """Half the mean square by which a trait (K,) differs `lag` rows apart: nugget + slope * (lag / length) ** power."""

    length: int
    nugget: Floats
    slope: Floats
    power: Floats

    @classmethod
    def fit(cls, known: Floats, length: int) -> Variogram:
        """Learn from the traits (n, K) of successive windows of `length` rows, n > 2 * length.

        >>> walk = np.cumsum(np.random.default_rng(0).normal(size=(4000, 1)), axis=0)
        >>> round(float(Variogram.fit(walk, 8).power[0]), 1)
        1.0
        """
        lags = np.unique(np.geomspace(length, len(known) // 2, LAGS).astype(int))
        least = (LEAST_MOVE * np.abs(known).max(axis=0)) ** 2 + 1e-300
        found = np.stack([0.5 * np.mean((known[lag:] - known[:-lag]) ** 2, axis=0) for lag in lags])
        weight = 1 / np.sqrt(lags)[:, None]  # far lags rest on few moves
        fits = [_not_negative(weight / (found + least), (lags / length) ** power, weight) for power in POWERS]
        best = np.argmin([lost for _, _, lost in fits], axis=0)
        column = np.arange(len(best))
        nugget, slope = (np.array([fit[k] for fit in fits])[best, column] for k in (0, 1))
        return cls(length, nugget + least, slope, np.array(POWERS)[best])

    def at(self, lag: Rows) -> Floats:
        """Its value (K, *lag.shape) at lags in rows; 0 at lag 0."""
        shape = (-1, *(1 for _ in lag.shape))
        nugget, slope, power = (part.reshape(shape) for part in (self.nugget, self.slope, self.power))
        return np.asarray(np.where(lag > 0, nugget + slope * (lag / self.length) ** power, 0.0))


def _not_negative(ones: Floats, curve: Floats, wanted: Floats) -> tuple[Floats, Floats, Floats]:
    """Coefficients a, b >= 0 (K,) of `ones` (n, K) and ones * `curve` (n,) nearest to `wanted` (n, 1), and the loss."""
    rising = ones * curve[:, None]
    aa, bb, ab = (ones**2).sum(axis=0), (rising**2).sum(axis=0), (ones * rising).sum(axis=0)
    ay, by = (ones * wanted).sum(axis=0), (rising * wanted).sum(axis=0)
    flat = np.maximum(aa * bb - ab**2, 1e-12 * aa * bb)
    nugget, slope = (bb * ay - ab * by) / flat, (aa * by - ab * ay) / flat
    inside = (nugget >= 0) & (slope >= 0)
    level = ay**2 / aa >= by**2 / bb  # the better one alone, where both together ask for less than nothing of one
    nugget = np.where(inside, nugget, np.where(level, ay / aa, 0.0))
    slope = np.where(inside, slope, np.where(level, 0.0, by / bb))
    return nugget, slope, ((nugget * ones + slope * rising - wanted) ** 2).sum(axis=0)


@dataclass(frozen=True)
class Wander:
    """One run: the `traits` (n - LENGTH + 1, 2 * channels) of its windows, and their `variogram`.

    The first `known` of its n rows are commissioning, from which the variogram was learned.
    """

    known: int
    traits: Floats
    variogram: Variogram

    @classmethod
    def fit(cls, rows: Floats, known: int) -> Wander:
        """Look at `rows` (n, channels), the first `known` of which are commissioning.

        Raises ValueError when these are fewer than LEAST_ROWS windows or not all finite.
        """
        if min(known, len(rows)) < LEAST_ROWS * LENGTH or not np.isfinite(rows[:known]).all():
            raise ValueError(f"{min(known, len(rows))} rows, at least {LEAST_ROWS * LENGTH} finite ones are needed")
        found = traits(rows, LENGTH, known)
        return cls(known, found, Variogram.fit(found[: known - LENGTH + 1], LENGTH))

    @property
    def windows(self) -> Rows:
        """Last rows of the windows after commissioning, as many as share no row."""
        return np.arange(self.known + LENGTH - 1, len(self.traits) + LENGTH - 1, LENGTH)

    def encode(self, well: Rows) -> NDArray[np.float32]:
        """Features (n, channels, 2) of the rows after commissioning: how far level and spread have strayed around each.

        In standard errors, root mean square over the windows whose middles are at most AROUND // 2 rows away, so that
        a row is known LENGTH // 2 + AROUND // 2 rows later. `well` are last rows of windows that foretell beside those
        of commissioning, except where they share a row with what is foretold.
        """
        last = self.known - 1
        commissioned = np.arange(last, LENGTH - 2, -LENGTH)[::-1]
        live = np.arange(self.known, len(self.traits) + LENGTH - 1)
        parts = []
        for ends in np.split(live, np.arange(LENGTH, len(live), LENGTH)):
            apart = well[(well <= ends[0] - LENGTH) | (well >= ends[-1] + LENGTH)]
            parts.append(self._strayed(np.concatenate([commissioned, apart]), ends))
        around = np.sqrt(_moving(_centred(np.vstack(parts) ** 2), AROUND))
        return around.reshape(len(live), 2, -1).transpose(0, 2, 1).astype(np.float32)

    def _strayed(self, blocks: Rows, ends: Rows) -> Floats:
        """How far the windows that end at `ends` (n,) are from what those that end at `blocks` (m,) foretell."""
        traits, count = self.traits.shape[1], len(blocks)
        among = np.ones((traits, count + 1, count + 1))
        among[:, :count, :count] = self.variogram.at(np.abs(blocks[:, None] - blocks))
        among[:, count, count] = 0.0
        there = np.ones((traits, count + 1, len(ends)))
        there[:, :count] = self.variogram.at(np.abs(blocks[:, None] - ends))
        scale = np.maximum(among[:, :count, :count].max(axis=(1, 2)), 1e-300)[:, None, None]
        among[:, :count, :count] /= scale
        there[:, :count] /= scale
        weights = np.linalg.solve(among, there)
        level = np.einsum("kmn,mk->nk", weights[:, :count], self.traits[blocks - (LENGTH - 1)])
        error = (weights * there).sum(axis=1).T * scale[:, 0, 0]
        return np.asarray((self.traits[ends - (LENGTH - 1)] - level) / np.sqrt(np.maximum(error, 1e-300)))


def _centred(ending: Floats) -> Floats:
    """Of windows that end at rows (n, K), those around them, and AROUND // 2 more at both ends: the outer repeated."""
    beside, count = AROUND // 2, len(ending)
    return np.asarray(ending[np.clip(np.arange(HALF - beside, HALF + count + beside), HALF, count - 1)])

"""One-sided clicks in a sound: a bad contact, which no machine sounds like.

Where a plug or a wire breaks contact, the voltage jumps and comes back to its middle from one side. A sound in the air
does not: its pressure swings about zero, so that within a period it has pushed as much as it has drawn (Landau and
Lifshitz, Fluid Mechanics, section 70). A ring, a rattle or a rush of bubbles is as sudden, and has two sides.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PIECE_S, AROUND = 0.001, 100  # the sound's roughness is taken in such pieces, and compared with so many of them
CALM, STANDS_OUT = 0.2, 4.0  # quantile of the pieces around; a click is so many times as rough
SWING_S = 0.012  # a period of the lowest sound that counts; a contact is quiet again by then
ONE_SIDED, CLICKS_A_SECOND = 0.25, 5.0  # share of a click that is not drawn back; the strokes of a press are fewer


def one_sided(sound: NDArray[np.generic], rate_hz: float) -> float:
    """Clicks a second in a sound (n,), 0 where they are few or most of them have two sides.

    >>> time_s = np.arange(16_000) / 16_000 % 0.05
    >>> noise = np.random.default_rng(1).normal(0, 10, 16_000)
    >>> contact, metal = np.exp(-time_s / 0.003), np.exp(-time_s / 0.003) * np.sin(9_000 * time_s)
    >>> round(one_sided(noise + 2_000 * contact, 16_000)), one_sided(noise + 2_000 * metal, 16_000)
    (19, 0.0)
    """
    heard = np.asarray(sound, np.float64)
    piece, swing = round(PIECE_S * rate_hz), round(SWING_S * rate_hz)
    if piece < 2 or len(heard) < AROUND * piece:
        return 0.0
    begins = _begins(heard, piece)
    clicks = [heard[at : at + swing] for at in begins if at + swing <= len(heard)]
    rate = len(clicks) * rate_hz / len(heard)
    if rate < CLICKS_A_SECOND:
        return 0.0
    sides = [abs(click.sum()) / np.abs(click).sum() for click in clicks]
    return rate if np.median(sides) >= ONE_SIDED else 0.0


def _begins(heard: NDArray[np.float64], piece: int) -> NDArray[np.int64]:
    """Where the sound grows rough (in its second differences, which hardly know a hum), a piece early."""
    count = len(heard) // piece
    rough = np.abs(np.diff(heard, 2, prepend=heard[:1].repeat(2)))[: count * piece].reshape(count, piece).mean(axis=1)
    around = np.lib.stride_tricks.sliding_window_view(np.pad(rough, AROUND // 2, mode="reflect"), AROUND)[:count]
    stands_out = rough > STANDS_OUT * np.quantile(around, CALM, axis=1)
    return np.asarray(np.flatnonzero(stands_out[1:] & ~stands_out[:-1]) * piece, np.int64)

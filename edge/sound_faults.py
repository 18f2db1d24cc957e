"""What faults do to sound. What is added follows the level of the signal, so that it can be heard in any recording.

Each effect is a function of the sound and of the time since the fault began, at any rate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.chance import smooth, uniform
from edge.rhythm import CHATTER_S, KNOCK_S, SLIP_S, after, lag_s, numbers, times_s
from lineside.windows import Samples

Values = NDArray[np.float64]
Noise = Callable[[Values, NDArray[np.int64]], Values]  # of seconds since the fault began and of sample numbers


class Level:
    """The running level (root mean square) of a signal at each of its samples, over the last 2 seconds or so."""

    MEMORY_S, PIECE_S = 2.0, 60.0

    def __init__(self) -> None:
        self._power = self._weight = 0.0

    def __call__(self, signal: Values, rate_hz: float) -> Values:
        count = -(-len(signal) // max(1, round(self.PIECE_S * rate_hz)))
        return np.concatenate([self._piece(piece, rate_hz) for piece in np.array_split(signal, count)])

    def _piece(self, signal: Values, rate_hz: float) -> Values:
        """A sum with weights that fall by e in the memory's time; pieces are short, so that no weight underflows."""
        keep = np.exp(-1 / (rate_hz * self.MEMORY_S))
        fall = keep ** np.arange(1, len(signal) + 1)
        power = fall * (self._power + np.cumsum(signal**2 / fall))
        weight = fall * self._weight + (1 - fall) / (1 - keep)
        self._power, self._weight = float(power[-1]), float(weight[-1])
        return np.asarray(np.sqrt(power / weight))


class Added:
    """A noise of level 1 laid over the signal, `ratio` times as loud as it and at least as in a quiet room."""

    LEAST_RMS = 60.0

    def __init__(self, noise: Noise, ratio: float) -> None:
        self._noise, self._ratio, self._level = noise, ratio, Level()

    def __call__(self, samples: Samples, since_ns: int) -> Samples:
        signal = samples.data.astype(np.float64)
        gain = self._ratio * np.maximum(self._level(signal, samples.rate_hz), self.LEAST_RMS)
        noise = self._noise(times_s(samples, since_ns), numbers(samples, since_ns))
        return _clipped(samples, signal + gain * noise)


# ---- the process that the microphone hears


def bearing(time_s: Values, number: NDArray[np.int64]) -> Values:
    """A damaged rolling bearing: resonances struck 91 times a second, rough noise, both with the shaft's turn."""
    place = time_s * 91.0 + 0.1 * np.sin(2 * np.pi * 1.7 * time_s)  # the balls slip a little
    strike = np.floor(place).astype(np.int64)
    after_s = (place - strike) / 91.0
    turn = 1 + 0.6 * np.sin(2 * np.pi * 12.4 * time_s)
    force = 1 + 0.4 * uniform(11, strike)
    ring = force * np.exp(-after_s / 0.0018) * np.sin(2 * np.pi * 3_100.0 * after_s)
    return np.asarray(turn * (2.9 * ring + 1.2 * uniform(12, number)))


def squeal(time_s: Values, number: NDArray[np.int64]) -> Values:
    """A belt that slips: 0.4 s of a hoarse tone about 2 kHz at each slip."""
    loud = np.clip(1 - after(time_s, SLIP_S) / 0.4, 0, 1)
    return np.asarray(4.0 * loud * np.sin(2 * np.pi * 2_050.0 * time_s + 2 * smooth(13, 90.0 * time_s)))


def knocks(time_s: Values, number: NDArray[np.int64]) -> Values:
    """Something hard strikes the frame of the machine: a thump at 160 Hz with a crack."""
    after_s = after(time_s, KNOCK_S)
    crack = np.exp(-after_s / 0.008) * uniform(14, number)
    return np.asarray(9.0 * np.exp(-after_s / 0.05) * np.cos(2 * np.pi * 160.0 * after_s) + 8.0 * crack)


def rattle(time_s: Values, number: NDArray[np.int64]) -> Values:
    """Loose metal: eleven clanks a second, none as hard as the last."""
    clank = np.floor(time_s * 11).astype(np.int64)
    after_s = time_s - clank / 11
    force = 1 + 0.7 * uniform(15, clank)
    tones = np.sin(2 * np.pi * 1_870.0 * after_s) + np.sin(2 * np.pi * 3_310.0 * after_s)
    return np.asarray(3.0 * force * np.exp(-after_s / 0.012) * tones)


def air_leak(time_s: Values, number: NDArray[np.int64]) -> Values:
    """Compressed air through a torn hose: a steady hiss, more of it the higher."""
    return 1.22 * (uniform(16, number) - uniform(16, number - 1))


def gear_whine(time_s: Values, number: NDArray[np.int64]) -> Values:
    """Worn teeth that mesh 413 times a second, give or take a little, louder once a turn of their shaft."""
    angle = 2 * np.pi * 413.0 * time_s + 6.0 * np.sin(2 * np.pi * 0.11 * time_s)
    turn = 1 + 0.3 * np.sin(angle / 17)
    return np.asarray(turn * (1.2 * np.sin(angle) + 0.6 * np.sin(2 * angle) + 0.3 * np.sin(3 * angle)))


def chatter(time_s: Values, number: NDArray[np.int64]) -> Values:
    """The press chatters as it comes down: for 0.6 s of each stroke it clangs 38 times a second."""
    loud = after(time_s, CHATTER_S) < 0.6
    after_s = after(time_s, 1 / 38)
    return np.asarray(5.0 * loud * np.exp(-after_s / 0.008) * np.sin(2 * np.pi * 760.0 * after_s))


def cavitation(time_s: Values, number: NDArray[np.int64]) -> Values:
    """Bubbles collapse in a pump, 350 times a second at most and no two alike, and its housing rings at 4.7 kHz."""
    slot = np.floor(time_s * 350).astype(np.int64)
    after_s = time_s - slot / 350
    force = np.maximum(uniform(41, slot), 0.0) ** 2
    ring = np.exp(-after_s / 0.0012) * np.sin(2 * np.pi * 4_700.0 * after_s)
    rush = np.exp(-after_s / 0.0025) * uniform(42, number)
    return np.asarray((1 + 0.3 * smooth(43, 1.7 * time_s)) * force * (6.0 * ring + 4.0 * rush))


class Shifted:
    """All of the sound at another speed: lower and slower, or higher and quicker.

    Two readers go at `speed` through the last TURN_S * |1 - speed| seconds and fade into each other as they leap:
    pitch shifting by delay-line modulation (Zölzer, DAFX: Digital Audio Effects).
    """

    TURN_S = 0.2

    def __init__(self, speed: float) -> None:
        self._speed = speed
        self._time_s = self._heard = np.zeros(0)

    def __call__(self, samples: Samples, since_ns: int) -> Samples:
        time_s = times_s(samples, since_ns)
        before = self._time_s < time_s[0]
        self._time_s = np.concatenate([self._time_s[before], time_s])
        self._heard = np.concatenate([self._heard[before], samples.data])
        mixed = self._reader(time_s, 0.0) + self._reader(time_s, self.TURN_S / 2)
        past_s = self.TURN_S * abs(1 - self._speed) + 2 / samples.rate_hz
        kept = self._time_s > time_s[-1] - past_s
        self._time_s, self._heard = self._time_s[kept], self._heard[kept]
        return _clipped(samples, mixed)

    def _reader(self, time_s: Values, ahead_s: float) -> Values:
        """One reader, silent as it leaps; before the fault began there is silence."""
        behind_s = lag_s(time_s + ahead_s, self._speed, self.TURN_S)
        fade = np.sin(np.pi * after(time_s + ahead_s, self.TURN_S) / self.TURN_S) ** 2
        return np.asarray(fade * np.interp(time_s - behind_s, self._time_s, self._heard, left=0.0))


# ---- the microphone itself


def muted(samples: Samples, since_ns: int) -> Samples:
    """Digital silence."""
    return replace(samples, data=np.zeros_like(samples.data))


def clipped(samples: Samples, since_ns: int) -> Samples:
    """A gain that is 30 dB too high, cut at full scale."""
    return _clipped(samples, 31.6 * samples.data.astype(np.float64))


def gain_loss(samples: Samples, since_ns: int) -> Samples:
    """A gain that is 20 dB too low."""
    return _clipped(samples, 0.1 * samples.data.astype(np.float64))


def hum(time_s: Values, number: NDArray[np.int64]) -> Values:
    """A broken shield: the mains at 50 Hz and its harmonics."""
    angle = 2 * np.pi * 50.0 * time_s
    return np.asarray(sum(level * np.cos(times * angle) for times, level in ((1, 1.1), (2, 0.6), (3, 0.5), (5, 0.3))))


def ground_loop(time_s: Values, number: NDArray[np.int64]) -> Values:
    """Earthed at both ends: the mains of another country, 60 Hz, with the odd harmonics of what draws on it."""
    angle = 2 * np.pi * 60.0 * time_s + 0.8
    levels = ((1, 1.2), (3, 0.6), (5, 0.4), (7, 0.25), (9, 0.15))
    return np.asarray(sum(level * np.cos(times * angle) for times, level in levels))


def crackle(time_s: Values, number: NDArray[np.int64]) -> Values:
    """A contact with oxide on it: every so often a scratch of some milliseconds, with a thump, hard or slight."""
    slot = np.floor(time_s * 45).astype(np.int64)
    after_s = time_s - slot / 45
    force = np.maximum(uniform(26, slot), 0.0)
    scratch = np.exp(-after_s / 0.004) * uniform(27, number)
    thump = np.exp(-after_s / 0.003) * np.sign(uniform(28, slot))
    return np.asarray(6.0 * force * (scratch + 0.5 * thump))


def phone_buzz(time_s: Values, number: NDArray[np.int64]) -> Values:
    """What a GSM telephone's transmitter leaves in a cable: one slot of 0.577 ms in each frame of 4.615 ms.

    The edges take 0.06 ms; of 26 frames one is left out (3GPP TS 45.002). The cable lets no constant voltage pass.
    """
    frame = np.floor(time_s / 0.004615).astype(np.int64)
    after_s = time_s - frame * 0.004615
    pulse = np.clip(np.minimum(after_s, 0.000577 - after_s) / 0.00006, 0, 1) * (frame % 26 < 25)
    return np.asarray(3.1 * (pulse - 0.107))


class Stuttering:
    """Of blocks of 32 ms, as a sound interface passes them on, two in five are the one before once more."""

    BLOCK_S = 0.032

    def __init__(self) -> None:
        self._past = np.zeros(0, np.int16)

    def __call__(self, samples: Samples, since_ns: int) -> Samples:
        size = max(1, round(self.BLOCK_S * samples.rate_hz))
        joined = np.concatenate([self._past, samples.data])
        place = len(self._past) + np.arange(len(samples.data))
        again = uniform(44, numbers(samples, since_ns) // size) > 0.2
        self._past = joined[-size:]
        return replace(samples, data=joined[np.where(again & (place >= size), place - size, place)])


def wind(time_s: Values, number: NDArray[np.int64]) -> Values:
    """Gusts of rumble below 100 Hz or so, as of wind or of a hand on the housing."""
    gust = 1 + 0.7 * smooth(22, 1.3 * time_s)
    return np.asarray(gust * (1.6 * smooth(23, 60.0 * time_s) + 0.8 * smooth(24, 170.0 * time_s)))


def dropouts(samples: Samples, since_ns: int) -> Samples:
    """A loose plug: more than half of all slots of 80 ms are silent, the first one too."""
    slot = np.floor(times_s(samples, since_ns) / 0.08).astype(np.int64)
    held = (slot > 0) & (uniform(25, slot) < -0.1)
    return replace(samples, data=np.where(held, samples.data, 0).astype(np.int16))


class Covered:
    """Something thick before the microphone: a Hann window of 4 ms, which leaves little above 400 Hz."""

    WIDTH_S = 0.004

    def __init__(self) -> None:
        self._past = np.zeros(0)

    def __call__(self, samples: Samples, since_ns: int) -> Samples:
        count = max(3, round(self.WIDTH_S * samples.rate_hz))
        window = np.hanning(count + 2)[1:-1]
        past = np.concatenate([np.zeros(count), self._past])[-(count - 1) :]
        joined = np.concatenate([past, samples.data])
        self._past = joined[-(count - 1) :]
        return _clipped(samples, np.convolve(joined, window / window.sum(), "valid"))


def _clipped(samples: Samples, sound: NDArray[Any]) -> Samples:
    return replace(samples, data=np.clip(sound, -32_768, 32_767).astype(np.int16))

"""The simulated line's sensors: picture, sound and series made from one physical state (edge.sensors.line).

A simulated camera and a simulated microphone meet only in the clock; what is seen and what is heard at one moment
tells of the same state, of a line that is well as of one that is upset.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.chance import smooth, uniform
from edge.config import SensorSettings
from edge.sensors.drawing import draw
from edge.sensors.line import PRODUCTS, LineState, Upset, Values, line_state
from edge.sensors.pace import Pace
from lineside.clock import NS, Clock
from lineside.errors import SensorError
from lineside.windows import Samples

FRAMES_HZ, SOUND_HZ, SERIES_HZ = 10, 16_000, 200
LAMP, WHITE, ROLL, VALUES, SQUEAL = (what << 32 for what in range(4, 9))  # streams of chance of a seed


def render(state: LineState, seed: int = 1) -> NDArray[np.uint8]:
    """The picture (120, 160, 3) RGB of one moment, with lamps that flicker a little and the noise of a sensor."""
    made = PRODUCTS[state.product]
    picture = draw(state, made.kinds[int(state.kind)], made.kinds[int(state.last_kind)], made.motor_hz)
    frame = round(float(state.t_s) * FRAMES_HZ)
    flicker = 1 + 0.02 * np.sin(2 * np.pi * 0.9 * state.t_s) + 0.01 * float(uniform(seed + LAMP, frame))
    noise = np.random.default_rng([seed, frame % 2**32]).integers(-5, 6, picture.shape, np.int8)
    lit = picture.astype(np.float32) * np.float32(flicker) + noise
    return np.asarray(np.clip(lit, 0, 255), np.uint8)


def pictures(first: int, count: int, seed: int, product: str, *upsets: Upset) -> NDArray[np.uint8]:
    """Pictures (count, 120, 160, 3) at 10 Hz, beginning with the number `first` since the origin."""
    times = np.arange(first, first + count) / FRAMES_HZ
    return np.stack([render(line_state(float(t_s), seed, product, *upsets), seed) for t_s in times])


def sound(first: int, count: int, seed: int, product: str, *upsets: Upset) -> NDArray[np.int16]:
    """The sound (count,) int16 at 16 kHz, beginning with the sample number `first` since the origin."""
    index = np.arange(first, first + count)
    state = line_state(index / SOUND_HZ, seed, product, *upsets)
    white = uniform(seed + WHITE, index)
    mixed = _hum(state) + _belt(state, index, white, seed) + _stroke(state, white) + 40 * white
    return np.clip(mixed, -32_768, 32_767).astype(np.int16)


def _hum(state: LineState) -> Values:
    """The motor: harmonics of its speed, louder under load."""
    angle = 2 * np.pi * np.mod(state.motor_turns, 1.0)
    load = 700 * (1 + 0.5 * state.press + 0.4 * state.belt_speed)
    parts = (
        ((1, 0.8), (2, 1.0), (3, 0.5), (5, 0.3), (8, 0.2)) if state.product == "a" else ((1, 1.0), (4, 0.9), (7, 0.4))
    )
    return np.asarray(load * sum(level * np.sin(times * angle) for times, level in parts))


def _belt(state: LineState, index: NDArray[np.int64], white: Values, seed: int) -> Values:
    """Rolling of the belt, and the servo that brings the part: a heavier kind whines lower.

    A belt that slips squeals, and what does not belong on it rattles.
    """
    rolling = 1100 * smooth(seed + ROLL, index / 14.0) + 250 * white
    servo_hz = 0.55 * _ring_hz(state)
    whine = 450 * np.sin(2 * np.pi * servo_hz * state.since_hit_s)
    squeal = 1800 * np.sin(2 * np.pi * 2350 * state.since_hit_s + 2 * smooth(seed + SQUEAL, index / 180.0))
    after_s = np.mod(state.since_hit_s, 0.09)
    rattle = 8000 * np.exp(-after_s / 0.012) * np.sin(2 * np.pi * 3400 * after_s)
    moving = rolling + state.loaded * whine + state.slip * squeal + state.foreign * rattle
    return np.asarray(state.belt_speed * moving)


def _stroke(state: LineState, white: Values) -> Values:
    """The press: thump and ring of the part when it strikes, hiss of air while it rises."""
    after = np.maximum(state.since_hit_s, 0.0)
    struck = (state.since_hit_s >= 0) * state.force * np.clip((1 - state.phase) / 0.05, 0, 1)
    thump = 9000 * np.exp(-after / 0.05) * np.sin(2 * np.pi * 75 * after) + 5000 * np.exp(-after / 0.006) * white
    ring_hz = _ring_hz(state)
    ring = np.sin(2 * np.pi * ring_hz * after) + 0.4 * np.sin(2 * np.pi * 2.41 * ring_hz * after)
    rising = (state.phase > 0.6) * (state.phase < 0.8) * np.sin(np.pi * (state.phase - 0.6) / 0.2) ** 2
    return np.asarray(struck * (thump + 2600 * state.loaded * np.exp(-after / 0.35) * ring) + 1500 * rising * white)


def _ring_hz(state: LineState) -> Values:
    return np.asarray(np.array([kind.ring_hz for kind in PRODUCTS[state.product].kinds])[state.kind])


def values(first: int, count: int, seed: int, product: str, *upsets: Upset) -> NDArray[np.float32]:
    """Press force, motor current and belt speed (count, 3) at 200 Hz, beginning with row `first` since the origin."""
    index = np.arange(first, first + count)
    state = line_state(index / SERIES_HZ, seed, product, *upsets)
    force = state.force * state.press + 0.3 * np.exp(-np.maximum(state.since_hit_s, 0) / 0.04) * (
        state.since_hit_s >= 0
    )
    current = state.motor_hz / 100 * (1 + 0.4 * state.press + 0.2 * state.belt_speed)
    clean = np.stack([force, current, state.belt_speed], axis=1)
    noise = np.stack([uniform(seed + VALUES + channel, index) for channel in range(3)], axis=1)
    return np.asarray(clean + 0.02 * noise, np.float32)


RATES_HZ = {"camera": FRAMES_HZ, "microphone": SOUND_HZ, "series": SERIES_HZ}
MAKERS: dict[str, Callable[..., NDArray[Any]]] = {"camera": pictures, "microphone": sound, "series": values}


@dataclass(frozen=True, slots=True)
class LineSamples(Samples):
    """Samples of the simulated line that know their line; `first` is the number of their first one since the origin."""

    seed: int = 1
    product: str = "a"
    first: int = 0
    upsets: tuple[Upset, ...] = ()

    def under(self, upset: Upset) -> LineSamples:
        """These samples as the same sensor would take them of the line with one upset more."""
        upsets = (*self.upsets, upset)
        data = MAKERS[self.modality](self.first, len(self.data), self.seed, self.product, *upsets)
        return replace(self, data=data, upsets=upsets)


class Simulated:
    """One sensor on the simulated line: camera at 10 Hz, microphone at 16 kHz, series (3 channels) at 200 Hz."""

    def __init__(self, settings: SensorSettings, clock: Clock, origin_ns: int) -> None:
        self._settings, self._origin_ns = settings, origin_ns
        self._pace = Pace(clock)
        self.dropped = 0

    def samples(self) -> Iterator[Samples]:
        if self._settings.product not in PRODUCTS:
            reason = f"the simulated line makes no product {self._settings.product!r}"
            raise SensorError(self._settings.name, reason, f"choose one of {', '.join(PRODUCTS)}")
        tenth = 0
        while self._pace.wait(self._at(tenth if self._settings.modality == "camera" else tenth + 1)):
            yield self._samples(tenth)
            tenth += 1

    def close(self) -> None:
        self._pace.close()

    def _at(self, tenth: int) -> int:
        return self._origin_ns + tenth * NS // 10

    def _samples(self, tenth: int) -> LineSamples:
        """The samples of one tenth of a second: one picture, or a block of sound or of the series."""
        modality, seed, product = self._settings.modality, self._settings.seed, self._settings.product
        at_ns, rate_hz = self._at(tenth), RATES_HZ[modality]
        first, count = tenth * rate_hz // 10, rate_hz // 10
        stamps = np.array([at_ns], np.int64) if modality == "camera" else None
        data = MAKERS[modality](first, count, seed, product)
        return LineSamples(
            self._settings.name, modality, at_ns, rate_hz, data, stamps, seed=seed, product=product, first=first
        )


def simulated(settings: SensorSettings, clock: Clock, origin_ns: int, base: Path) -> Simulated:
    """The row of the sensors' table; there is no file, so `base` is not needed."""
    return Simulated(settings, clock, origin_ns)

"""The simulated line: a press over an indexing belt, one physical state from which both picture and sound are made.

The state is a pure function of time, seed and product, so a simulated camera and a simulated microphone meet only in
the clock. Each cycle brings a part (its kind decides colour, shape and ring), a press force and a length of its own;
the motor's speed wanders. What is seen and what is heard at one moment therefore tell of the same things.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.chance import smooth, uniform
from edge.config import SensorSettings
from edge.sensors.drawing import draw
from edge.sensors.pace import Pace
from lineside.clock import NS, Clock
from lineside.errors import SensorError
from lineside.windows import Samples

Values = NDArray[np.float64]
FRAMES_HZ, SOUND_HZ, SERIES_HZ = 10, 16_000, 200
BLOCK = 1_600  # samples of sound in a block: 0.1 s
BEAT, KIND, FORCE, MOTOR, LAMP, WHITE, ROLL, VALUES = (what << 32 for what in range(8))  # streams of chance of a seed
HIT = 0.45  # the phase at which the press strikes


@dataclass(frozen=True)
class Kind:
    """One kind of part: `corners` of its outline (0: round), RGB colour, and the ring that it gives when struck."""

    corners: int
    colour: tuple[int, int, int]
    ring_hz: float


@dataclass(frozen=True)
class Product:
    """What the line makes: its kinds of part, seconds of a cycle, and revolutions a second of the motor."""

    kinds: tuple[Kind, ...]
    cycle_s: float
    motor_hz: float


PRODUCTS = {
    "a": Product(
        (
            Kind(0, (214, 72, 60), 620.0),
            Kind(4, (62, 120, 214), 980.0),
            Kind(3, (232, 190, 58), 1480.0),
            Kind(6, (86, 180, 96), 2150.0),
        ),
        cycle_s=2.4,
        motor_hz=112.0,
    ),
    "b": Product(
        (
            Kind(5, (190, 96, 200), 760.0),
            Kind(8, (70, 190, 190), 1220.0),
            Kind(-5, (236, 140, 60), 1830.0),
        ),
        cycle_s=2.8,
        motor_hz=104.0,
    ),
}


@dataclass(frozen=True)
class LineState:
    """The line at one time or at many (each field a number or an array of them).

    `phase` 0..1 of `cycle`; `kind` is the place of its part in the product; `force` 0.6..1 of its stroke; `since_hit_s`
    is negative before it. `belt` 0..1 is the way of the parts in this cycle, `belt_speed` 0..1 of its largest; `press`
    0 (up)..1 (down); `motor_hz` and `motor_turns` are of the drive.
    """

    product: str
    t_s: Any
    cycle: Any
    phase: Any
    kind: Any
    last_kind: Any
    force: Any
    since_hit_s: Any
    belt: Any
    belt_speed: Any
    press: Any
    motor_hz: Any
    motor_turns: Any


def line_state(t_s: Values | float, seed: int, product: str) -> LineState:
    """The state at `t_s` seconds since the origin."""
    made, t = PRODUCTS[product], np.asarray(t_s, np.float64)
    cycle = np.floor(t / made.cycle_s).astype(np.int64)
    cycle = cycle - (t < _begin(cycle, seed, made)) + (t >= _begin(cycle + 1, seed, made))
    begin = _begin(cycle, seed, made)
    length = _begin(cycle + 1, seed, made) - begin
    phase = (t - begin) / length
    moved = np.clip(phase / 0.35, 0.0, 1.0)
    down, up = np.clip((phase - 0.37) / (HIT - 0.37), 0, 1), np.clip((phase - 0.6) / 0.2, 0, 1)
    motor_hz, motor_turns = _motor(t, seed, made)
    return LineState(
        product=product,
        t_s=t,
        cycle=cycle,
        phase=phase,
        kind=_kind(cycle, seed, made),
        last_kind=_kind(cycle - 1, seed, made),
        force=0.8 + 0.2 * uniform(seed + FORCE, cycle),
        since_hit_s=(phase - HIT) * length,
        belt=moved * moved * (3 - 2 * moved),
        belt_speed=4 * moved * (1 - moved),
        press=down**2 * (1 - up * up * (3 - 2 * up)),
        motor_hz=motor_hz,
        motor_turns=motor_turns,
    )


def _begin(cycle: Any, seed: int, made: Product) -> Values:
    """When a cycle begins: an even beat, each beat off by up to 12 % of it."""
    return np.asarray(made.cycle_s * (cycle + 0.12 * uniform(seed + BEAT, cycle)))


def _kind(cycle: Any, seed: int, made: Product) -> NDArray[np.int64]:
    return np.asarray((uniform(seed + KIND, cycle) + 1) / 2 * len(made.kinds), np.float64).astype(np.int64)


def _motor(t: Values, seed: int, made: Product) -> tuple[Values, Values]:
    """Speed in Hz, wandering by up to 18 %, and its integral in turns."""
    wander = ((0.08, 5.3), (0.06, 13.7), (0.04, 31.0))  # share of the speed, period in seconds
    speed, turns = np.ones_like(t), np.array(t)
    for place, (share, period_s) in enumerate(wander):
        angle = 2 * np.pi * t / period_s + np.pi * uniform(seed + MOTOR, place)
        speed = speed + share * np.sin(angle)
        turns = turns - share * period_s / (2 * np.pi) * np.cos(angle)
    return made.motor_hz * speed, made.motor_hz * turns


def render(state: LineState, seed: int = 1) -> NDArray[np.uint8]:
    """The picture (120, 160, 3) RGB of one moment, with lamps that flicker a little and the noise of a sensor."""
    made = PRODUCTS[state.product]
    picture = draw(state, made.kinds[int(state.kind)], made.kinds[int(state.last_kind)], made.motor_hz)
    frame = round(float(state.t_s) * FRAMES_HZ)
    flicker = 1 + 0.02 * np.sin(2 * np.pi * 0.9 * state.t_s) + 0.01 * float(uniform(seed + LAMP, frame))
    noise = np.random.default_rng([seed, frame % 2**32]).integers(-5, 6, picture.shape, np.int8)
    lit = picture.astype(np.float32) * np.float32(flicker) + noise
    return np.asarray(np.clip(lit, 0, 255), np.uint8)


def sound(first: int, count: int, seed: int, product: str) -> NDArray[np.int16]:
    """The sound (count,) int16 at 16 kHz, beginning with the sample number `first` since the origin."""
    index = np.arange(first, first + count)
    state = line_state(index / SOUND_HZ, seed, product)
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
    """Rolling of the belt, and the servo that brings the part: a heavier kind whines lower."""
    rolling = 1100 * smooth(seed + ROLL, index / 14.0) + 250 * white
    servo_hz = 0.55 * _ring_hz(state)
    whine = 450 * np.sin(2 * np.pi * servo_hz * state.since_hit_s)
    return np.asarray(state.belt_speed * (rolling + whine))


def _stroke(state: LineState, white: Values) -> Values:
    """The press: thump and ring of the part when it strikes, hiss of air while it rises."""
    after = np.maximum(state.since_hit_s, 0.0)
    struck = (state.since_hit_s >= 0) * state.force * np.clip((1 - state.phase) / 0.05, 0, 1)
    thump = 9000 * np.exp(-after / 0.05) * np.sin(2 * np.pi * 75 * after) + 5000 * np.exp(-after / 0.006) * white
    ring_hz = _ring_hz(state)
    ring = np.sin(2 * np.pi * ring_hz * after) + 0.4 * np.sin(2 * np.pi * 2.41 * ring_hz * after)
    rising = (state.phase > 0.6) * (state.phase < 0.8) * np.sin(np.pi * (state.phase - 0.6) / 0.2) ** 2
    return np.asarray(struck * (thump + 2600 * np.exp(-after / 0.35) * ring) + 1500 * rising * white)


def _ring_hz(state: LineState) -> Values:
    return np.asarray(np.array([kind.ring_hz for kind in PRODUCTS[state.product].kinds])[state.kind])


def values(first: int, count: int, seed: int, product: str) -> NDArray[np.float32]:
    """Press force, motor current and belt speed (count, 3) at 200 Hz, beginning with row `first` since the origin."""
    index = np.arange(first, first + count)
    state = line_state(index / SERIES_HZ, seed, product)
    force = state.force * state.press + 0.3 * np.exp(-np.maximum(state.since_hit_s, 0) / 0.04) * (
        state.since_hit_s >= 0
    )
    current = state.motor_hz / 100 * (1 + 0.4 * state.press + 0.2 * state.belt_speed)
    clean = np.stack([force, current, state.belt_speed], axis=1)
    noise = np.stack([uniform(seed + VALUES + channel, index) for channel in range(3)], axis=1)
    return np.asarray(clean + 0.02 * noise, np.float32)


class Simulated:
    """One sensor on the simulated line: camera at 10 Hz, microphone at 16 kHz, series (3 channels) at 200 Hz."""

    def __init__(self, settings: SensorSettings, clock: Clock, origin_ns: int) -> None:
        self._settings, self._origin_ns = settings, origin_ns
        self._pace = Pace(clock)

    def samples(self) -> Iterator[Samples]:
        if self._settings.product not in PRODUCTS:
            reason = f"the simulated line makes no product {self._settings.product!r}"
            raise SensorError(self._settings.name, reason, f"choose one of {', '.join(PRODUCTS)}")
        make = {"camera": self._frame, "microphone": self._sound, "series": self._values}[self._settings.modality]
        tenth = 0
        while self._pace.wait(self._at(tenth if self._settings.modality == "camera" else tenth + 1)):
            yield make(tenth)
            tenth += 1

    def close(self) -> None:
        self._pace.close()

    def _at(self, tenth: int) -> int:
        return self._origin_ns + tenth * NS // 10

    def _frame(self, tenth: int) -> Samples:
        settings, stamps = self._settings, np.array([self._at(tenth)], np.int64)
        picture = render(line_state(tenth / FRAMES_HZ, settings.seed, settings.product), settings.seed)
        return Samples(settings.name, "camera", self._at(tenth), FRAMES_HZ, picture[None], stamps)

    def _sound(self, tenth: int) -> Samples:
        settings = self._settings
        heard = sound(tenth * BLOCK, BLOCK, settings.seed, settings.product)
        return Samples(settings.name, "microphone", self._at(tenth), SOUND_HZ, heard)

    def _values(self, tenth: int) -> Samples:
        settings, rows = self._settings, SERIES_HZ // 10
        read = values(tenth * rows, rows, settings.seed, settings.product)
        return Samples(settings.name, "series", self._at(tenth), SERIES_HZ, read)


def simulated(settings: SensorSettings, clock: Clock, origin_ns: int, base: Path) -> Simulated:
    """The row of the sensors' table; there is no file, so `base` is not needed."""
    return Simulated(settings, clock, origin_ns)

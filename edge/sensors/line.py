"""The physical state of the simulated line, a press over an indexing belt, and what can upset it.

The state is a pure function of time, seed and product. Each cycle brings a part (its kind decides colour, shape and
ring), a press force and a length of its own; the motor's speed wanders.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.chance import uniform
from edge.rhythm import SLOW

Values = NDArray[np.float64]
BEAT, KIND, FORCE, MOTOR = (what << 32 for what in range(4))  # streams of chance of a seed
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
    0 (up)..1 (down); `motor_hz` and `motor_turns` are of the drive. On a line that is well `slip` of the belt is 0, all
    places are `loaded` with a part (1), and nothing `foreign` (0) lies on the belt.
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
    slip: Any = 0.0
    loaded: Any = 1.0
    foreign: Any = 0.0


Upset = Callable[[LineState], LineState]  # what is wrong with the line: from its state to that of the upset line


def line_state(t_s: Values | float, seed: int, product: str, *upsets: Upset) -> LineState:
    """The state at `t_s` seconds since the origin, of a line with these upsets, one laid over the other."""
    return functools.reduce(lambda state, upset: upset(state), upsets, _well(t_s, seed, product))


def _well(t_s: Values | float, seed: int, product: str) -> LineState:
    """The state of a line with which nothing is wrong."""
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


def slow_motor(state: LineState) -> LineState:
    """The motor turns at two thirds of the speed that it should."""
    return replace(state, motor_hz=SLOW * state.motor_hz, motor_turns=SLOW * state.motor_turns)


def slipping_belt(state: LineState) -> LineState:
    """The belt has slipped by a fifth of a step, so that parts lie before their places, and squeals as it moves."""
    return replace(state, belt=state.belt - 0.2, slip=1.0)


def no_part(state: LineState) -> LineState:
    """Nothing lies in any place."""
    return replace(state, loaded=0.0)


def foreign_object(state: LineState) -> LineState:
    """A spanner lies on the belt, goes round with it and rattles."""
    return replace(state, foreign=1.0)


def jammed_belt(state: LineState) -> LineState:
    """The belt stands, and the press strikes the part of one kind that it has struck already, again and again."""
    first = 0 * state.kind
    return replace(state, cycle=first, kind=first, last_kind=first, belt=0 * state.belt, belt_speed=0 * state.belt)


def wrong_product(state: LineState) -> LineState:
    """The line makes another product than it is set up for."""
    other = next(product for product in PRODUCTS if product != state.product)
    count = len(PRODUCTS[other].kinds)
    return replace(state, product=other, kind=state.kind % count, last_kind=state.last_kind % count)

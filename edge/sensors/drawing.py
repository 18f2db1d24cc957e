"""How the simulated line looks: belt, press, parts, wheel, gauges and lamps, drawn with OpenCV."""

from __future__ import annotations

import functools
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
HEIGHT, WIDTH = 120, 160
BELT_Y, PART_Y, PRESS_X = 96, 84, 72
STEP_PX = 74  # way of a part in one cycle
GEAR = 60.0  # turns of the motor for one of the wheel that is seen


class Seen(Protocol):
    """What of the line's state can be seen."""

    @property
    def phase(self) -> float: ...
    @property
    def force(self) -> float: ...
    @property
    def belt(self) -> float: ...
    @property
    def press(self) -> float: ...
    @property
    def since_hit_s(self) -> float: ...
    @property
    def motor_hz(self) -> float: ...
    @property
    def motor_turns(self) -> float: ...
    @property
    def cycle(self) -> int: ...
    @property
    def loaded(self) -> float: ...
    @property
    def foreign(self) -> float: ...


class Part(Protocol):
    """What of a part can be seen; `corners` is 0 for a disc, negative for a star."""

    @property
    def corners(self) -> int: ...
    @property
    def colour(self) -> tuple[int, int, int]: ...


def draw(state: Seen, part: Part, last: Part, motor_hz: float) -> Picture:
    """The picture (120, 160, 3) RGB without noise: `part` comes under the press, `last` leaves."""
    picture = _room().copy()
    way = float(state.belt) * STEP_PX
    _belt(picture, int(state.cycle) * STEP_PX + way)
    if state.loaded:
        _part(picture, PRESS_X + way, last, struck=True)
        _part(picture, PRESS_X - STEP_PX + way, part, struck=float(state.since_hit_s) > 0)
    if state.foreign:
        _spanner(picture, int(state.cycle) * STEP_PX + way)
    _press(picture, float(state.press))
    _wheel(picture, float(state.motor_turns) / GEAR)
    _bar(picture, 128, float(state.motor_hz) / motor_hz - 0.5, (70, 150, 230))
    _bar(picture, 140, float(state.press) * float(state.force), (230, 120, 60))
    _lamps(picture, float(state.phase))
    return picture


@functools.lru_cache(maxsize=1)
def _room() -> Picture:
    shade = np.linspace(150, 105, HEIGHT, dtype=np.float32)[:, None, None] * np.array([0.95, 1.0, 1.02], np.float32)
    return np.repeat(shade.astype(np.uint8), WIDTH, axis=1)


def _belt(picture: Picture, way_px: float) -> None:
    cv2.rectangle(picture, (0, BELT_Y), (WIDTH, BELT_Y + 12), (52, 54, 58), -1)
    for x in np.arange(way_px % 16 - 16, WIDTH, 16).astype(int):
        cv2.line(picture, (int(x), BELT_Y + 1), (int(x) + 5, BELT_Y + 11), (92, 94, 98), 2)


def _part(picture: Picture, x: float, part: Part, struck: bool) -> None:
    centre, radius = np.array([x, PART_Y]), 11
    count = abs(part.corners) or 24
    if part.corners < 0:
        radii = np.where(np.arange(2 * count) % 2, 5, radius)
        count *= 2
    else:
        radii = np.full(count, radius)
    angle = np.arange(count) * 2 * np.pi / count - np.pi / 2
    outline = centre + radii[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    points = [(outline * 8).round().astype(np.int32)]  # an eighth of a pixel: smooth motion
    cv2.fillPoly(picture, points, part.colour, cv2.LINE_AA, shift=3)
    cv2.polylines(picture, points, True, (30, 30, 34), 1, cv2.LINE_AA, shift=3)
    if struck:
        cv2.circle(picture, (round(x), PART_Y), 4, (30, 30, 34), -1, cv2.LINE_AA)


def _spanner(picture: Picture, way_px: float) -> None:
    """It goes round with the belt, and on its way back it is out of sight."""
    x = round(way_px % (WIDTH + 40)) - 30
    cv2.line(picture, (x, BELT_Y - 3), (x + 26, BELT_Y - 9), (38, 40, 44), 5, cv2.LINE_AA)
    cv2.circle(picture, (x + 28, BELT_Y - 10), 6, (38, 40, 44), 3, cv2.LINE_AA)


def _press(picture: Picture, press: float) -> None:
    tip = round(34 + 38 * press)
    cv2.rectangle(picture, (PRESS_X - 22, 6), (PRESS_X + 22, 20), (84, 92, 104), -1)
    cv2.rectangle(picture, (PRESS_X - 5, 20), (PRESS_X + 5, tip), (176, 180, 186), -1)
    cv2.rectangle(picture, (PRESS_X - 12, tip - 6), (PRESS_X + 12, tip), (60, 66, 76), -1)


def _wheel(picture: Picture, turns: float) -> None:
    centre = (20, 30)
    cv2.circle(picture, centre, 15, (70, 74, 82), -1, cv2.LINE_AA)
    for spoke in range(3):
        angle = 2 * np.pi * (turns + spoke / 3)
        tip = (round(20 + 13 * np.cos(angle)), round(30 + 13 * np.sin(angle)))
        cv2.line(picture, centre, tip, (220, 222, 226) if spoke else (240, 90, 60), 3, cv2.LINE_AA)


def _bar(picture: Picture, x: int, level: float, colour: tuple[int, int, int]) -> None:
    cv2.rectangle(picture, (x, 24), (x + 8, 72), (40, 42, 46), -1)
    cv2.rectangle(picture, (x + 1, round(71 - 46 * min(max(level, 0.0), 1.0))), (x + 7, 71), colour, -1)


def _lamps(picture: Picture, phase: float) -> None:
    """Green while the belt moves, red while the press is down, amber while it rises."""
    lit = 0 if phase < 0.35 else 1 if phase < 0.6 else 2 if phase < 0.8 else 3
    for place, colour in enumerate(((60, 220, 90), (235, 60, 50), (240, 180, 40))):
        shown = colour if place == lit else tuple(c // 4 for c in colour)
        cv2.circle(picture, (108, 12 + 10 * place), 4, shown, -1, cv2.LINE_AA)

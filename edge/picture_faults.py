"""What faults do to pictures. A part or a product is where most cameras have it: in the middle.

Each effect is a function of the pictures and of the time since the fault began, for pictures of any size.
"""

from __future__ import annotations

import functools
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import replace
from operator import itemgetter
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.chance import uniform
from edge.rhythm import CHATTER_S, KNOCK_S, SLIP_S, SLOW, after, lag_s, times_s
from lineside.windows import Samples

Picture = NDArray[Any]
REFLECT = cv2.BORDER_REFLECT_101

# ---- the process that the camera watches


def misaligned_part(samples: Samples, since_ns: int) -> Samples:
    """The middle of every picture turned by 22 degrees and moved aside, with a soft edge."""
    return _mixed(samples, _each(samples, lambda frame: _moved(frame, 22.0, 0.06, 0.04)), _middle(samples))


def missing_part(samples: Samples, since_ns: int) -> Samples:
    """The middle of every picture filled with what lies left and right of it."""
    width = samples.data.shape[2]
    left, right = int(0.14 * width), int(0.86 * width)
    ramp = np.clip((np.arange(width) - left) / max(1, right - left), 0, 1)[:, None]
    edges = samples.data[:, :, [left, right]].astype(np.float32)
    filled = edges[:, :, :1] * (1 - ramp) + edges[:, :, 1:] * ramp
    return _mixed(samples, filled, _middle(samples))


def wrong_product(samples: Samples, since_ns: int) -> Samples:
    """The middle of every picture in other colours and the other way round."""
    return _mixed(samples, np.roll(samples.data[:, :, ::-1], 1, axis=3), _middle(samples))


def foreign_object(samples: Samples, since_ns: int) -> Samples:
    """A dark tool that goes from left to right through the picture every 5 seconds."""
    height, width = samples.data.shape[1:3]
    thick = max(1, round(0.06 * height))
    pictures = samples.data.copy()
    for frame, time_s in zip(pictures, times_s(samples, since_ns), strict=True):
        x, y = round(after(0.2 + time_s / 5, 1.0) * width), round(0.62 * height)
        tip = (x + round(0.18 * width), y - round(0.05 * height))
        cv2.line(frame, (x, y), tip, (38, 40, 44), thick, cv2.LINE_AA)
        cv2.circle(frame, tip, thick, (150, 154, 160), max(1, thick // 2), cv2.LINE_AA)
    return replace(samples, data=pictures)


def slipping_belt(samples: Samples, since_ns: int) -> Samples:
    """The middle of every picture lies behind its place, and further with every slip until the next one."""
    way = 0.05 + 0.05 * np.clip(after(times_s(samples, since_ns), SLIP_S) / 0.4, 0, 1)
    return _aside(samples, -way)


def knocking(samples: Samples, since_ns: int) -> Samples:
    """The middle of every picture shakes for a third of a second after each knock."""
    after_s = after(times_s(samples, since_ns), KNOCK_S)
    return _aside(samples, 0.04 * np.exp(-after_s / 0.2) * np.cos(2 * np.pi * 7 * after_s))


def wrong_colour(samples: Samples, since_ns: int) -> Samples:
    """The colours in the middle of every picture turned into those opposite to them; what is grey stays."""
    pictures = samples.data.astype(np.float32)
    return _mixed(samples, 2 * pictures.mean(axis=3, keepdims=True) - pictures, _middle(samples))


def chatter(samples: Samples, since_ns: int) -> Samples:
    """The middle of every picture trembles for 0.6 s of each stroke."""
    time_s = times_s(samples, since_ns)
    trembles = after(time_s, CHATTER_S) < 0.6
    return _aside(samples, 0.035 * trembles * np.cos(2 * np.pi * 4.3 * time_s))


class SlowMotor:
    """All goes slower than it should, and every 2 seconds leaps to where it really is."""

    TURN_S = 2.0

    def __init__(self) -> None:
        self._seen: list[tuple[float, Picture]] = []

    def __call__(self, samples: Samples, since_ns: int) -> Samples:
        timed = zip(times_s(samples, since_ns), samples.data, strict=True)
        return replace(samples, data=np.stack([self._late(float(time_s), frame) for time_s, frame in timed]))

    def _late(self, time_s: float, frame: Picture) -> Picture:
        like = [(then_s, seen) for then_s, seen in self._seen if then_s < time_s and seen.shape == frame.shape]
        self._seen = [*like, (time_s, frame)]
        shown = self._seen[self._place(time_s - lag_s(time_s, SLOW, self.TURN_S))][1]
        self._seen = self._seen[self._place(time_s - (1 - SLOW) * self.TURN_S) :]
        return shown

    def _place(self, time_s: float) -> int:
        """Of the newest picture that was there at `time_s`; of the oldest one when none was."""
        return max(0, bisect_right(self._seen, time_s, key=itemgetter(0)) - 1)


class JammedBelt:
    """The middle of every picture as it was in the first one."""

    def __init__(self) -> None:
        self._held = Frozen()

    def __call__(self, samples: Samples, since_ns: int) -> Samples:
        return _mixed(samples, self._held(samples, since_ns).data, _middle(samples))


def smoke(samples: Samples, since_ns: int) -> Samples:
    """Grey smoke in whirls, from the middle of the picture to its upper edge, wider the higher."""
    height, width = samples.data.shape[1:3]
    y, x = np.mgrid[0:height, 0:width] / np.array([height, width])[:, None, None]
    up = np.clip(0.6 - y, 0, 0.6)
    plume = np.clip(up / 0.1, 0, 1) * np.exp(-(((x - 0.5) / (0.08 + 0.3 * up)) ** 2))
    time_s = times_s(samples, since_ns)[:, None, None]
    whirl = np.sin(2 * np.pi * (2.3 * y + 0.6 * time_s) + 3 * np.sin(2 * np.pi * (1.7 * x + 0.17 * time_s)))
    return _mixed(samples, np.array(190.0), (plume * (0.5 + 0.35 * whirl)).astype(np.float32)[..., None])


# ---- the camera itself


def dirty_lens(samples: Samples, since_ns: int) -> Samples:
    """Smudges on the lens: blotches through which the picture is blurred, darker and brownish."""
    height, width = samples.data.shape[1:3]
    blur = max(3, width // 12) | 1
    smeared = _each(samples, lambda frame: cv2.GaussianBlur(frame, (blur, blur), 0))
    dirt = 0.3 * smeared + 0.7 * np.array([78, 66, 50])
    return _mixed(samples, dirt, _blotches(height, width)[..., None])


def black(samples: Samples, since_ns: int) -> Samples:
    """No light at all."""
    return replace(samples, data=np.zeros_like(samples.data))


class Frozen:
    """The first picture for ever; another one when their size changes."""

    def __init__(self) -> None:
        self._held: Picture | None = None

    def __call__(self, samples: Samples, since_ns: int) -> Samples:
        if self._held is None or self._held.shape != samples.data.shape[1:]:
            self._held = samples.data[0].copy()
        return replace(samples, data=np.repeat(self._held[None], len(samples.data), axis=0))


def defocused(samples: Samples, since_ns: int) -> Samples:
    """All of the picture out of focus."""
    spread_px = max(1.0, 0.02 * samples.data.shape[2])
    return replace(samples, data=_each(samples, lambda frame: cv2.GaussianBlur(frame, (0, 0), spread_px)))


def knocked_camera(samples: Samples, since_ns: int) -> Samples:
    """The whole view turned by 7 degrees and moved by a tenth."""
    return replace(samples, data=_each(samples, lambda frame: _moved(frame, 7.0, 0.1, 0.07)))


def overexposed(samples: Samples, since_ns: int) -> Samples:
    """The gain half too high at once, and two and a half times what it was after half a minute."""
    time_s = np.maximum(times_s(samples, since_ns), 0.0)
    gain = 2.5 - np.exp(-time_s / 10)
    return _clipped(samples, samples.data.astype(np.float32) * gain[:, None, None, None])


def dead_rows(samples: Samples, since_ns: int) -> Samples:
    """Three bands of rows that the sensor does not read: each row has one level for ever."""
    height = samples.data.shape[1]
    bands = [np.arange(int(at * height), int(at * height) + max(1, height // 30)) for at in (0.22, 0.47, 0.71)]
    rows = np.unique(np.concatenate(bands).clip(0, height - 1))
    pictures = samples.data.copy()
    pictures[:, rows] = (127.5 * (1 + uniform(21, rows))).astype(np.uint8)[:, None, None]
    return replace(samples, data=pictures)


def colour_cast(samples: Samples, since_ns: int) -> Samples:
    """A white balance gone wrong: too red, and hardly blue."""
    return _clipped(samples, samples.data.astype(np.float32) * np.array([1.3, 0.95, 0.6]))


def rolling_bands(samples: Samples, since_ns: int) -> Samples:
    """An exposure that does not go with the lamps: darker and lighter bands roll down over the picture."""
    height = samples.data.shape[1]
    turns = 2.2 * np.arange(height) / height - 0.7 * times_s(samples, since_ns)[:, None]
    gain = 1 + 0.35 * np.sin(2 * np.pi * turns)
    return _clipped(samples, samples.data.astype(np.float32) * gain[:, :, None, None])


def water_drop(samples: Samples, since_ns: int) -> Samples:
    """A drop on the lens, left of the middle, in which the whole view stands on its head, small."""
    height, width = samples.data.shape[1:3]
    drop = _soft_ellipse(height, width, (0.36, 0.42), (0.14, 0.19))[..., None]
    left, right, top, bottom = round(0.22 * width), round(0.5 * width), round(0.23 * height), round(0.61 * height)
    size = (max(1, right - left), max(1, bottom - top))

    def through(frame: Picture) -> Picture:
        seen = frame.copy()
        seen[top : top + size[1], left : left + size[0]] = cv2.resize(frame[::-1, ::-1], size)
        return seen

    return _mixed(samples, _each(samples, through), drop)


def loose_camera(samples: Samples, since_ns: int) -> Samples:
    """The whole view shakes by up to 2 % of its width and as much of its height, at two frequencies."""
    time_s = times_s(samples, since_ns)
    right, down = 0.02 * np.sin(2 * np.pi * 7.3 * time_s), 0.02 * np.sin(2 * np.pi * 9.1 * time_s + 1)
    places = zip(samples.data, right, down, strict=True)
    return replace(samples, data=np.stack([_moved(frame, 0.0, float(x), float(y)) for frame, x, y in places]))


def noisy_camera(samples: Samples, since_ns: int) -> Samples:
    """Noise on each pixel and colour by itself, anew in every picture: by up to a fifth of full scale."""
    first = np.round(1000 * times_s(samples, since_ns)).astype(np.int64) * samples.data[0].size
    index = first[:, None] + np.arange(samples.data[0].size)
    return _clipped(samples, samples.data.astype(np.float64) + 50 * uniform(31, index).reshape(samples.data.shape))


# ---- what they are made of


def _each(samples: Samples, change: Callable[[Picture], Picture]) -> Picture:
    return np.stack([change(frame) for frame in samples.data])


def _clipped(samples: Samples, pictures: NDArray[Any]) -> Samples:
    return replace(samples, data=np.clip(pictures, 0, 255).astype(np.uint8))


def _mixed(samples: Samples, other: NDArray[Any], share: NDArray[np.float32]) -> Samples:
    """`other` in the place of the picture, by `share` (height, width, 1)."""
    return _clipped(samples, samples.data.astype(np.float32) * (1 - share) + other * share)


def _moved(frame: Picture, degrees: float, right: float, down: float) -> Picture:
    """Turned about its middle and moved by shares of its width and height."""
    height, width = frame.shape[:2]
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0)
    turn[:, 2] += (right * width, down * height)
    return np.asarray(cv2.warpAffine(frame, turn, (width, height), borderMode=REFLECT))


def _aside(samples: Samples, right: NDArray[np.float64]) -> Samples:
    """The middle of each picture moved by its share of the width."""
    moved = [_moved(frame, 0.0, float(way), 0.0) for frame, way in zip(samples.data, right, strict=True)]
    return _mixed(samples, np.stack(moved), _middle(samples))


def _middle(samples: Samples) -> NDArray[np.float32]:
    """The share (height, width, 1) of the part in the middle of the picture."""
    return _soft_ellipse(*samples.data.shape[1:3], (0.5, 0.5), (0.34, 0.36))[..., None]


@functools.lru_cache(maxsize=8)
def _soft_ellipse(
    height: int, width: int, centre: tuple[float, float], radii: tuple[float, float]
) -> NDArray[np.float32]:
    """1 inside, 0 outside, with an edge of about a tenth of the radius."""
    y, x = np.mgrid[0:height, 0:width]
    far = np.hypot((x / width - centre[0]) / radii[0], (y / height - centre[1]) / radii[1])
    return np.asarray(np.clip((1 - far) / 0.12, 0, 1), np.float32)


@functools.lru_cache(maxsize=8)
def _blotches(height: int, width: int) -> NDArray[np.float32]:
    """How much dirt lies on each pixel, 0..0.85: seven smudges, the same ones for every picture of this size."""
    dirt = np.zeros((height, width), np.float32)
    rng = np.random.default_rng(20_240_501)
    for _ in range(7):
        x, y, wide, tall = rng.uniform([0.1, 0.1, 0.08, 0.08], [0.9, 0.9, 0.24, 0.24])
        y_place, x_place = np.mgrid[0:height, 0:width]
        far = np.hypot((x_place / width - x) / wide, (y_place / height - y) / tall)
        dirt = np.maximum(dirt, np.exp(-(far**4)).astype(np.float32))
    return 0.85 * dirt

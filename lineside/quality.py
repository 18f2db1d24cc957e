"""What is wrong with a window, by fixed rules: a table of flags, each with its meaning."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lineside.windows import Window

FLAGS: dict[str, str] = {
    "absent": "no window came; is the sensor plugged in?",
    "unfit": "rate or channels are not those of the encoder; mend rate_hz or channels in [[sensors]]",
    "senseless": "its encoder gives no numbers for it; roll the encoder back",
    "gap": "samples are missing; the cable, the bus or the machine is overloaded",
    "black": "the picture is black; is the lens covered or the light off?",
    "overexposed": "the picture is white; lower the exposure or the light",
    "defocused": "the picture has lost its edges; is the lens dirty, fogged or turned?",
    "frozen": "the same picture comes again and again; restart the camera",
    "silent": "the microphone gives no sound at all; is it muted or unplugged?",
    "clipped": "the sound is cut at full scale; lower the microphone gain",
    "dc": "the sound has a constant offset and nothing else; check the microphone's supply",
    "flat": "the series does not move; check the sensor's cable",
    "not-a-number": "the series has values that are not numbers; check the sensor's driver",
}

# Limits are of 8-bit pixels and 16-bit samples; a live sensor's own noise is far above the "frozen" and "silent" ones.
BLACK_MEAN, WHITE_MEAN, FLAT_STD = 4.0, 251.0, 2.0
BLURRED, EDGE_SHARE, EDGE_ROWS = 0.25, 0.005, 16  # of the usual sharpness; the steepest edges; rows that are looked at
ADAPT, ADAPT_BLURRED = 0.01, 0.0001  # a window: usual in a minute; what stays blurred for hours is how it looks now
SILENT_RMS, CLIPPED_SHARE, FULL_SCALE, DC_SHARE = 1.0, 0.01, 32_700, 0.98


@dataclass
class Quality:
    """The flags of each window, told with a memory of each sensor's last window and usual sharpness."""

    _last: dict[str, NDArray[np.generic]] = field(default_factory=dict)
    _sharpness: dict[str, float] = field(default_factory=dict)

    def flags(self, window: Window) -> frozenset[str]:
        """All flags of `window`: those it came with and those found in its samples."""
        rules = {"camera": self._camera, "microphone": _microphone, "series": self._series}
        return window.flags | frozenset(rules[window.modality](window))

    def _camera(self, window: Window) -> set[str]:
        frames = window.data
        found = set()
        if _may_be_flat(frames[-1]):
            mean, spread = float(frames[-1].mean()), float(frames[-1].std())
            if spread < FLAT_STD and mean < BLACK_MEAN:
                found.add("black")
            if spread < FLAT_STD and mean > WHITE_MEAN:
                found.add("overexposed")
        before = self._last.get(window.sensor)
        self._last[window.sensor] = frames[-1]
        still = all(_same(frames[0], frame) for frame in frames[1:])
        if len(frames) > 1 and still and before is not None and _same(before, frames[0]):
            found.add("frozen")
        return found or self._focus(window.sensor, frames[-1])

    def _focus(self, sensor: str, frame: NDArray[np.generic]) -> set[str]:
        """Whether a picture is much less sharp than this camera's usually are."""
        now = sharpness(frame)
        usual = self._sharpness.get(sensor, now)
        blurred = now < BLURRED * usual
        step = ADAPT_BLURRED if blurred else ADAPT
        self._sharpness[sensor] = usual * (1 + step if now > usual else 1 - step)
        return {"defocused"} if blurred else set()

    def _series(self, window: Window) -> set[str]:
        if not np.isfinite(window.values.astype(np.float64)).all():
            return {"not-a-number"}
        return {"flat"} if len(window.data) > 2 and float(np.ptp(window.values, axis=0).max()) == 0.0 else set()


def _may_be_flat(frame: NDArray[np.generic]) -> bool:
    """Whether a picture can be black or white all over, by some of its rows.

    Where all pixels differ by FLAT_STD at most, the mean of one row in k is at most FLAT_STD * sqrt(k) from that of all
    (Cauchy and Schwarz): no flat picture is passed over.
    """
    every = max(1, len(frame) // 12)
    rows = frame[every // 2 :: every]
    mean, off = float(rows.mean()), FLAT_STD * math.sqrt(len(frame) / len(rows))
    return mean < BLACK_MEAN + off or mean > WHITE_MEAN - off


def _same(one: NDArray[np.generic], other: NDArray[np.generic]) -> bool:
    """Whether two pictures are equal; the middle row tells nearly all that are not."""
    middle = len(one) // 2
    return np.array_equal(one[middle : middle + 1], other[middle : middle + 1]) and np.array_equal(one, other)


def sharpness(frame: NDArray[np.generic]) -> float:
    """How steep the steepest edges of a picture (height, width, 3) are, beside its contrast: light changes neither.

    >>> edge = np.zeros((8, 64, 3), np.uint8)
    >>> edge[:, 32:] = 200
    >>> ramp = np.repeat(np.linspace(0, 200, 64).astype(np.uint8)[None, :, None], 8, 0).repeat(3, 2)
    >>> round(sharpness(edge), 2), round(sharpness(ramp), 2)
    (1.99, 0.08)
    """
    rows = frame[:: max(1, len(frame) // EDGE_ROWS), :, 1].astype(np.int16)
    steps = np.bincount(np.abs(np.diff(rows, axis=1)).ravel(), minlength=256)
    steepest = int(np.searchsorted(np.cumsum(steps), (1 - EDGE_SHARE) * steps.sum()))
    return (steepest + 0.5) / (float(rows.std(dtype=np.float32)) + 1.0)


def _microphone(window: Window) -> set[str]:
    sound = window.values.astype(np.float32)
    found = set()
    power, level = math.sqrt(float(sound @ sound) / len(sound)), abs(float(sound.mean()))
    if power < SILENT_RMS:
        found.add("silent")
    elif level > DC_SHARE * power:
        found.add("dc")
    if np.abs(sound).max() >= FULL_SCALE and float(np.mean(np.abs(sound) >= FULL_SCALE)) > CLIPPED_SHARE:
        found.add("clipped")
    return found

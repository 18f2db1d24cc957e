"""What is wrong with a window, by fixed rules: a table of flags, each with its meaning."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lineside.windows import Window

FLAGS: dict[str, str] = {
    "absent": "no window came; is the sensor plugged in?",
    "unfit": "rate or channels are not those of the encoder; mend rate_hz or channels in [[sensors]]",
    "gap": "samples are missing; the cable, the bus or the machine is overloaded",
    "black": "the picture is black; is the lens covered or the light off?",
    "overexposed": "the picture is white; lower the exposure or the light",
    "frozen": "the same picture comes again and again; restart the camera",
    "silent": "the microphone gives no sound at all; is it muted or unplugged?",
    "clipped": "the sound is cut at full scale; lower the microphone gain",
    "dc": "the sound has a constant offset and nothing else; check the microphone's supply",
    "flat": "the series does not move; check the sensor's cable",
    "not-a-number": "the series has values that are not numbers; check the sensor's driver",
}

# Limits are of 8-bit pixels and 16-bit samples; a live sensor's own noise is far above the "frozen" and "silent" ones.
BLACK_MEAN, WHITE_MEAN, FLAT_STD = 4.0, 251.0, 2.0
SILENT_RMS, CLIPPED_SHARE, FULL_SCALE, DC_SHARE = 1.0, 0.01, 32_700, 0.98


@dataclass
class Quality:
    """The flags of each window of one sensor, told with a memory of the last window (for `frozen` and `flat`)."""

    _last: dict[str, NDArray[np.generic]] = field(default_factory=dict)

    def flags(self, window: Window) -> frozenset[str]:
        """All flags of `window`: those it came with and those found in its samples."""
        rules = {"camera": self._camera, "microphone": _microphone, "series": self._series}
        return window.flags | frozenset(rules[window.modality](window))

    def _camera(self, window: Window) -> set[str]:
        frames = window.data
        found = set()
        mean, spread = float(frames[-1].mean()), float(frames[-1].std())
        if spread < FLAT_STD and mean < BLACK_MEAN:
            found.add("black")
        if spread < FLAT_STD and mean > WHITE_MEAN:
            found.add("overexposed")
        before = self._last.get(window.sensor)
        self._last[window.sensor] = frames[-1]
        still = all(np.array_equal(frames[0], frame) for frame in frames[1:])
        if len(frames) > 1 and still and before is not None and np.array_equal(before, frames[0]):
            found.add("frozen")
        return found

    def _series(self, window: Window) -> set[str]:
        if not np.isfinite(window.data.astype(np.float64)).all():
            return {"not-a-number"}
        return {"flat"} if len(window.data) > 2 and float(np.ptp(window.data, axis=0).max()) == 0.0 else set()


def _microphone(window: Window) -> set[str]:
    sound = window.data.astype(np.float64)
    found = set()
    power, level = float(np.sqrt(np.mean(sound**2))), abs(float(sound.mean()))
    if power < SILENT_RMS:
        found.add("silent")
    elif level > DC_SHARE * power:
        found.add("dc")
    if float(np.mean(np.abs(sound) >= FULL_SCALE)) > CLIPPED_SHARE:
        found.add("clipped")
    return found

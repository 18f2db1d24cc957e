"""Faults laid over real samples, for the demo's panel and for tests: what a worn or disturbed line would look like.

Every effect is a function of the time since the fault began, so that it runs on over the edges of blocks.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.chance import uniform
from lineside.clock import NS
from lineside.windows import Samples

Picture = NDArray[Any]


class Effect(Protocol):
    """Lays one fault over a run of samples of one sensor; the fault began at `since_ns`."""

    def __call__(self, samples: Samples, since_ns: int) -> Samples: ...


@dataclass(frozen=True)
class Fault:
    """A row of the table: which modality it strikes, what it is, and how to make its effect anew for one sensor."""

    modality: str
    about: str
    make: Callable[[], Effect]


class BearingNoise:
    """A damaged rolling bearing: resonances struck about 90 times a second and rough noise, in step with the shaft.

    Its level is 1.3 times the signal's own running level (the two together are 4.3 dB louder than the signal), and at
    least that of a quiet room's, so that it can be heard in any recording.
    """

    RATIO, LEAST_RMS, MEMORY_S = 1.3, 60.0, 2.0
    STRIKES_HZ, RESONANCE_HZ, SHAFT_HZ, RING_S = 91.0, 3_100.0, 12.4, 0.0018

    def __init__(self) -> None:
        self._rms = 0.0

    def __call__(self, samples: Samples, since_ns: int) -> Samples:
        signal = samples.data.astype(np.float64)
        now_rms = max(self.LEAST_RMS, float(np.sqrt(np.mean(signal**2))))
        before_rms = self._rms or now_rms
        share = min(1.0, len(signal) / samples.rate_hz / self.MEMORY_S)
        self._rms = float(np.sqrt((1 - share) * before_rms**2 + share * now_rms**2))
        gain = self.RATIO * np.linspace(before_rms, self._rms, len(signal))
        mixed = signal + gain * self._noise(samples, since_ns)
        return replace(samples, data=np.clip(mixed, -32_768, 32_767).astype(np.int16))

    def _noise(self, samples: Samples, since_ns: int) -> NDArray[np.float64]:
        """The bearing alone, at a level of about 1."""
        first = round((samples.start_ns - since_ns) * samples.rate_hz / NS)
        index = first + np.arange(len(samples.data))
        t = index / samples.rate_hz
        place = t * self.STRIKES_HZ + 0.1 * np.sin(2 * np.pi * 1.7 * t)  # the balls slip a little
        strike = np.floor(place).astype(np.int64)
        after_s = (place - strike) / self.STRIKES_HZ
        turn = 1 + 0.6 * np.sin(2 * np.pi * self.SHAFT_HZ * t)
        force = 1 + 0.4 * uniform(11, strike)
        ring = force * np.exp(-after_s / self.RING_S) * np.sin(2 * np.pi * self.RESONANCE_HZ * after_s)
        return np.asarray(turn * (2.9 * ring + 1.2 * uniform(12, index)))


def misaligned_part(samples: Samples, since_ns: int) -> Samples:
    """The middle of every picture turned by 22 degrees and moved aside, with a soft edge."""
    height, width = samples.data.shape[1:3]
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), 22.0, 1.0)
    turn[:, 2] += (0.06 * width, 0.04 * height)
    middle = _soft_ellipse(height, width, (0.5, 0.5), (0.34, 0.36))[..., None]
    border = cv2.BORDER_REFLECT_101
    turned = [cv2.warpAffine(frame, turn, (width, height), borderMode=border) for frame in samples.data]
    return _mixed(samples, np.stack(turned), middle)


def dirty_lens(samples: Samples, since_ns: int) -> Samples:
    """Smudges on the lens: blotches through which the picture is blurred, darker and brownish."""
    height, width = samples.data.shape[1:3]
    blur = max(3, width // 12) | 1
    smeared = [cv2.GaussianBlur(frame, (blur, blur), 0) for frame in samples.data]
    dirt = 0.3 * np.stack(smeared) + 0.7 * np.array([78, 66, 50])
    return _mixed(samples, dirt, _blotches(height, width)[..., None])


def muted(samples: Samples, since_ns: int) -> Samples:
    """Digital silence."""
    return replace(samples, data=np.zeros_like(samples.data))


def black(samples: Samples, since_ns: int) -> Samples:
    """No light at all."""
    return replace(samples, data=np.zeros_like(samples.data))


FAULTS: dict[str, Fault] = {
    "bearing_noise": Fault("microphone", "a rolling bearing with a damaged race", BearingNoise),
    "misaligned_part": Fault("camera", "the part lies turned and off its place", lambda: misaligned_part),
    "dirty_lens": Fault("camera", "oil and dust on the camera's lens", lambda: dirty_lens),
    "muted": Fault("microphone", "the microphone gives digital silence", lambda: muted),
    "black": Fault("camera", "the camera sees nothing", lambda: black),
}


@dataclass
class _Running:
    until_ns: int
    since_ns: dict[str, int] = field(default_factory=dict)
    effects: dict[str, Effect] = field(default_factory=dict)


class Injector:
    """Lays the faults that are running over the samples that pass; safe to use from several threads."""

    def __init__(self) -> None:
        self._running: dict[str, _Running] = {}
        self._lock = threading.Lock()

    def start(self, kind: str, until_ns: int) -> None:
        """Begin a fault with the next samples; it ends with those captured at `until_ns`. Begun again, it goes on.

        Raises ValueError, naming the kinds there are, for an unknown one.
        """
        if kind not in FAULTS:
            raise ValueError(f"no fault {kind!r}; known are {', '.join(FAULTS)}")
        with self._lock:
            self._running.setdefault(kind, _Running(until_ns)).until_ns = until_ns

    def stop(self) -> None:
        """End all faults now."""
        with self._lock:
            self._running.clear()

    def running(self) -> dict[str, int]:
        """Kinds that were started and have not yet ended, with their ends."""
        with self._lock:
            return {kind: running.until_ns for kind, running in self._running.items()}

    def apply(self, samples: Samples) -> Samples:
        """The samples with all faults of their modality on them; the very same object when there is none."""
        with self._lock:
            for kind, running in list(self._running.items()):
                if FAULTS[kind].modality != samples.modality:
                    continue
                if samples.start_ns >= running.until_ns:
                    del self._running[kind]
                elif len(samples.data):
                    since_ns = running.since_ns.setdefault(samples.sensor, samples.start_ns)
                    effect = running.effects.setdefault(samples.sensor, FAULTS[kind].make())
                    samples = effect(samples, since_ns)
        return samples


def _mixed(samples: Samples, other: NDArray[Any], share: NDArray[np.float32]) -> Samples:
    """`other` in the place of the picture, by `share` (height, width, 1)."""
    mixed = samples.data.astype(np.float32) * (1 - share) + other * share
    return replace(samples, data=np.clip(mixed, 0, 255).astype(np.uint8))


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

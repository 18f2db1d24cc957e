"""Sound as a picture: time to the right, pitch upwards, loudness as colour."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 1200, 256
FRAME_S, RANGE_DB = 0.032, 70.0
CHUNK = 512  # columns at a time: bounds what is in memory


def png(sound: NDArray[np.int16], rate_hz: int) -> bytes:
    """The power of the short-time Fourier transform (Hann), in dB below the loudest, as a PNG of HEIGHT rows.

    `sound` is (n,); the lowest row is 0 Hz, the uppermost half the rate; frames spread evenly over the whole of it.
    """
    levels = decibels(sound, rate_hz)
    grey = np.clip((levels / RANGE_DB + 1) * 255, 0, 255).astype(np.uint8)[::-1]
    drawn = cv2.applyColorMap(cv2.resize(grey, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA), cv2.COLORMAP_VIRIDIS)
    return bytes(cv2.imencode(".png", drawn)[1])


def decibels(sound: NDArray[np.int16], rate_hz: int) -> NDArray[np.float32]:
    """Levels (frequencies, frames), 0 for the loudest, never below -RANGE_DB.

    >>> tone = (8000 * np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000)).astype(np.int16)
    >>> found = decibels(tone, 16_000)
    >>> int(found[:, 50].argmax()) * 16_000 / 2 / (len(found) - 1)
    1000.0
    """
    size = 2 ** max(5, round(np.log2(max(1.0, FRAME_S * rate_hz))))
    padded = np.pad(sound, (0, max(0, size - len(sound))))
    starts = np.linspace(0, len(padded) - size, min(WIDTH, max(1, len(padded) // (size // 4)))).astype(int)
    window = np.hanning(size).astype(np.float32)
    columns = []
    for at in range(0, len(starts), CHUNK):
        frames = padded[starts[at : at + CHUNK, None] + np.arange(size)] * window
        columns.append((np.abs(np.fft.rfft(frames, axis=1)) ** 2).astype(np.float32))
    power = np.concatenate(columns).T
    loudest = max(float(power.max()), 1.0)
    return np.asarray(np.maximum(10 * np.log10(power / loudest + 1e-12), -RANGE_DB), np.float32)

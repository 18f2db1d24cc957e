"""Small pictures that go with an alarm: the last frame, the sound's spectrogram, the series' curve."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from lineside.features import MicrophonePrepare, prepare
from lineside.windows import Window

WIDTH, HEIGHT = 320, 200


def thumbnail(window: Window) -> bytes:
    """One window as a JPEG of at most 320 x 200 pixels."""
    draw = {"camera": _frame, "microphone": _spectrogram, "series": _curve}
    image = draw[window.modality](window)
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 80])
    return bytes(data)


def _frame(window: Window) -> NDArray[np.uint8]:
    frame = window.data[-1].astype(np.uint8)
    scale = min(WIDTH / frame.shape[1], HEIGHT / frame.shape[0])
    size = (max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale)))
    return np.asarray(cv2.cvtColor(cv2.resize(frame, size), cv2.COLOR_RGB2BGR), np.uint8)


def _spectrogram(window: Window) -> NDArray[np.uint8]:
    rate = round(window.rate_hz)
    spec = MicrophonePrepare(rate_hz=rate, samples=max(len(window.data), 1024), high_hz=rate / 2)
    mel = prepare(spec, window)[0].astype(np.float64)
    scaled = np.clip((mel + 14.0) / 14.0 * 255.0, 0, 255).astype(np.uint8)  # -14..0 natural-log power: quiet to loud
    coloured = cv2.applyColorMap(scaled[::-1], cv2.COLORMAP_INFERNO)
    return np.asarray(cv2.resize(coloured, (WIDTH, HEIGHT), interpolation=cv2.INTER_NEAREST), np.uint8)


def _curve(window: Window) -> NDArray[np.uint8]:
    image = np.full((HEIGHT, WIDTH, 3), 24, np.uint8)
    values = np.nan_to_num(window.values.astype(np.float64))
    spread = np.ptp(values, axis=0)
    scaled = (values - values.min(axis=0)) / np.where(spread > 0, spread, 1.0)
    for channel in scaled.T:
        x = np.linspace(0, WIDTH - 1, len(channel))
        points = np.stack([x, (HEIGHT - 1) * (1 - channel)], axis=1).astype(np.int32)
        cv2.polylines(image, [points], False, (120, 200, 120), 1, cv2.LINE_AA)
    return image

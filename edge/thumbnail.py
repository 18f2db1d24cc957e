"""Small pictures that go with an alarm: the last frame, the sound's spectrogram, the series' curve.

Beside each the window of normal running that it is most like, drawn from what its encoder was given, the same way.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lineside.features import MicrophonePrepare, prepare
from lineside.windows import Window

WIDTH, HEIGHT = 320, 200
Picture = NDArray[np.uint8]


def thumbnail(window: Window, like: NDArray[np.generic] | None = None) -> bytes:
    """One window as a JPEG of at most 320 x 200 pixels; a series to a scale that `like`, an encoder input, fits too."""
    if window.modality == "camera":
        return _jpeg(_frame(window.data[-1], window))
    if window.modality == "microphone":
        return _jpeg(_spectrogram(_log_mel(window)))
    return _jpeg(_curve(window.values, window, like))


def example(prepared: NDArray[np.generic], window: Window) -> bytes:
    """An encoder input (lineside.features.shape) as `thumbnail(window, prepared)` draws a window of that sensor."""
    if window.modality == "camera":
        return _jpeg(_frame(prepared[-3:].transpose(1, 2, 0), window))
    if window.modality == "microphone":
        return _jpeg(_spectrogram(prepared[0]))
    return _jpeg(_curve(prepared.T, window, prepared))


def _jpeg(image: Picture) -> bytes:
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 80])
    return bytes(data)


def _frame(frame: NDArray[np.generic], window: Window) -> Picture:
    """To the shape of the window's own pictures: what an encoder is given is squeezed into its square."""
    height, width = window.data[-1].shape[:2]
    scale = min(WIDTH / width, HEIGHT / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.cvtColor(cv2.resize(frame.astype(np.uint8), size), cv2.COLOR_RGB2BGR), np.uint8)


def _log_mel(window: Window) -> NDArray[np.generic]:
    rate = round(window.rate_hz)
    spec = MicrophonePrepare(rate_hz=rate, samples=max(len(window.data), 1024), high_hz=rate / 2)
    return np.asarray(prepare(spec, window)[0])


def _spectrogram(mel: NDArray[Any]) -> Picture:
    scaled = np.clip((mel + 14.0) / 14.0 * 255.0, 0, 255).astype(np.uint8)  # -14..0 natural-log power: quiet to loud
    coloured = cv2.applyColorMap(scaled[::-1], cv2.COLORMAP_INFERNO)
    return np.asarray(cv2.resize(coloured, (WIDTH, HEIGHT), interpolation=cv2.INTER_NEAREST), np.uint8)


def _curve(values: NDArray[Any], window: Window, like: NDArray[Any] | None) -> Picture:
    image = np.full((HEIGHT, WIDTH, 3), 24, np.uint8)
    both = [window.values] if like is None else [window.values, like.T]
    seen = np.nan_to_num(np.concatenate(both).astype(np.float64))
    low, spread = seen.min(axis=0), np.ptp(seen, axis=0)
    scaled = (np.nan_to_num(values.astype(np.float64)) - low) / np.where(spread > 0, spread, 1.0)
    for channel in scaled.T:
        x = np.linspace(0, WIDTH - 1, len(channel))
        points = np.stack([x, (HEIGHT - 1) * (1 - channel)], axis=1).astype(np.int32)
        cv2.polylines(image, [points], False, (120, 200, 120), 1, cv2.LINE_AA)
    return image

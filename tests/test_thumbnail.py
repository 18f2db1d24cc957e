"""Small pictures of windows, and of what encoders are given of them: edge.thumbnail."""

import cv2
import numpy as np

from edge.thumbnail import HEIGHT, WIDTH, example, thumbnail
from lineside.clock import NS
from lineside.features import CameraPrepare, MicrophonePrepare, SeriesPrepare, prepare
from lineside.windows import Window

NOISE = np.random.default_rng(3)


def window(modality, rate_hz, data):
    return Window("it", modality, 0, NS, rate_hz, data, 0)


def decoded(jpeg):
    return cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).astype(float)


def test_a_picture_keeps_its_shape_and_its_colours_though_its_encoder_sees_a_square():
    frames = np.zeros((4, 180, 320, 3), np.uint8)
    frames[:, 40:140, 100:220] = (200, 120, 30)
    seen = window("camera", 4.0, frames)
    whole, again = decoded(thumbnail(seen)), decoded(example(prepare(CameraPrepare(), seen), seen))
    assert whole.shape == again.shape == (180, 320, 3)
    assert np.abs(whole - again).mean() < 4
    assert np.allclose(again[90, 160], (30, 120, 200), atol=6)  # OpenCV's order


def test_a_sound_is_drawn_as_its_encoder_hears_it():
    seen = window("microphone", 16_000.0, (3000 * NOISE.normal(size=16_000)).astype(np.int16))
    heard = prepare(MicrophonePrepare(), seen)
    assert thumbnail(seen) == thumbnail(seen, heard) == example(heard, seen)
    assert decoded(thumbnail(seen)).shape == (HEIGHT, WIDTH, 3)


def test_series_that_are_compared_have_one_scale():
    swing = np.sin(np.arange(256) / 10)[:, None].astype(np.float32)
    strong, usual = window("series", 256.0, 10 * swing), prepare(SeriesPrepare(1), window("series", 256.0, swing))

    def height(jpeg):
        rows = np.flatnonzero((decoded(jpeg) > 100).any(axis=(1, 2)))
        return int(np.ptp(rows))

    assert height(thumbnail(strong)) > 0.9 * HEIGHT
    assert height(thumbnail(strong, usual)) > 0.9 * HEIGHT
    assert 0.05 * HEIGHT < height(example(usual, strong)) < 0.2 * HEIGHT

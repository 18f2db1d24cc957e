"""From a raw window to an encoder's input: the one preparation that trainer and device share.

A preparation is a small frozen record; its canonical JSON and hash travel in the ONNX metadata, and a device
refuses a preparation that it does not implement. Normalisation stands inside the encoder's graph.
"""

from __future__ import annotations

import functools
from typing import Any

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from lineside.errors import ReleaseError
from lineside.files import sha256
from lineside.windows import Frames, Window


class CameraPrepare(msgspec.Struct, frozen=True, tag="camera/1", forbid_unknown_fields=True):
    """`frames` pictures spread evenly over the window, area-resized to height x width, stacked on the channel axis."""

    frames: int = 2
    height: int = 96
    width: int = 96


class HalvedPrepare(CameraPrepare, frozen=True, tag="camera/halved", forbid_unknown_fields=True):
    """As camera/1, resized otherwise: halved while it is twice as large as wanted both ways, then bilinear.

    Of 720p that is a fifth of the work. A halved pixel is the mean of four, so what is finer than the result is still
    averaged away, where bilinear alone would pick at random among it.
    """


class MicrophonePrepare(msgspec.Struct, frozen=True, tag="microphone/1", forbid_unknown_fields=True):
    """Log-mel power: Hann frames of `n_fft` every `hop`, HTK mel filters, natural log, floored; full scale is 1."""

    rate_hz: int = 16_000
    samples: int = 16_000
    n_fft: int = 1024
    hop: int = 256
    mels: int = 64
    low_hz: float = 50.0
    high_hz: float = 8_000.0
    floor: float = 1e-9


class SeriesPrepare(msgspec.Struct, frozen=True, tag="series/1", forbid_unknown_fields=True):
    """The raw channels, resampled linearly to `samples` values per window."""

    channels: int
    samples: int = 256


class FeaturesPrepare(msgspec.Struct, frozen=True, tag="features/1", forbid_unknown_fields=True):
    """A vector of `width` numbers that a frozen network made of the window; `backbone` is the SHA-256 of its file.

    It serves any modality, whose name stands beside it (in a stage's `prepare`, in a feature file).
    """

    width: int
    backbone: str


RawPrepare = CameraPrepare | HalvedPrepare | MicrophonePrepare | SeriesPrepare
Prepare = RawPrepare | FeaturesPrepare
BACKBONE_FIRST = "its frozen backbone has to run first, which a device cannot do yet"


def kind(spec: Prepare) -> str:
    """Name and number of a preparation, as it stands in its JSON.

    >>> kind(CameraPrepare())
    'camera/1'
    """
    return str(msgspec.to_builtins(spec)["type"])


def modality(spec: Prepare) -> str:
    """The modality that a preparation belongs to; `features`, which is none, where a backbone ran before.

    >>> modality(SeriesPrepare(channels=3))
    'series'
    """
    return kind(spec).partition("/")[0]


def shape(spec: Prepare) -> tuple[int, ...]:
    """Shape of one prepared window, without the batch axis.

    >>> shape(CameraPrepare()), shape(MicrophonePrepare()), shape(SeriesPrepare(channels=3))
    ((6, 96, 96), (1, 64, 59), (3, 256))
    """
    if isinstance(spec, FeaturesPrepare):
        return (spec.width,)
    if isinstance(spec, CameraPrepare):
        return (3 * spec.frames, spec.height, spec.width)
    if isinstance(spec, MicrophonePrepare):
        return (1, spec.mels, (spec.samples - spec.n_fft) // spec.hop + 1)
    return (spec.channels, spec.samples)


def dtype(spec: Prepare) -> np.dtype[np.generic]:
    """Element type of a prepared window: uint8 pixels, float32 otherwise."""
    return np.dtype(np.uint8 if isinstance(spec, CameraPrepare) else np.float32)


def prepare(spec: Prepare, window: Window) -> NDArray[np.generic]:
    """One raw window to one encoder input of `shape(spec)` and `dtype(spec)`.

    Raises ValueError when the window is not of the spec's modality, rate or channel count, or has no samples, and
    for a `FeaturesPrepare`, which is made by its backbone and not here.
    """
    if isinstance(spec, FeaturesPrepare):
        raise ValueError(f"{window.sensor}: a raw window for {kind(spec)}: {BACKBONE_FIRST}")
    if window.modality != modality(spec) or not len(window.data):
        raise ValueError(f"{window.sensor}: a {window.modality} window of {len(window.data)} samples for {spec}")
    if isinstance(spec, CameraPrepare):
        return _camera(spec, window.data)
    if isinstance(spec, MicrophonePrepare):
        if round(window.rate_hz) != spec.rate_hz:
            raise ValueError(f"{window.sensor}: sound at {window.rate_hz} Hz for an encoder of {spec.rate_hz} Hz")
        return _log_mel(spec, window.values)
    if window.data.shape[1] != spec.channels:
        raise ValueError(f"{window.sensor}: {window.data.shape[1]} channels for an encoder of {spec.channels}")
    return _series(spec, window.values)


def _camera(spec: CameraPrepare, frames: NDArray[np.generic] | Frames) -> NDArray[np.generic]:
    chosen = np.linspace(0, len(frames) - 1, spec.frames).round().astype(int)
    resize = _halved if isinstance(spec, HalvedPrepare) else _area
    pictures = [resize(frames[i], spec.width, spec.height) for i in chosen]
    return np.concatenate([picture.transpose(2, 0, 1) for picture in pictures]).astype(np.uint8, copy=False)


def _area(picture: NDArray[Any], width: int, height: int) -> NDArray[np.generic]:
    return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA))


def _halved(picture: NDArray[Any], width: int, height: int) -> NDArray[np.generic]:
    while picture.shape[0] >= 2 * height and picture.shape[1] >= 2 * width:
        half = (picture.shape[1] // 2, picture.shape[0] // 2)
        picture = cv2.resize(picture, half, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR))


def _log_mel(spec: MicrophonePrepare, sound: NDArray[np.generic]) -> NDArray[np.generic]:
    wave = np.zeros(spec.samples)  # in double precision numpy's transform is four times as fast as in single
    part = sound[: spec.samples].astype(np.float64) / 32_768
    wave[: len(part)] = part  # a window may be one sample short of its length
    frames = np.lib.stride_tricks.sliding_window_view(wave, spec.n_fft)[:: spec.hop]
    spectrum = np.fft.rfft(frames * _hann(spec.n_fft))
    power = (spectrum.real**2 + spectrum.imag**2) / spec.n_fft
    return np.log(np.maximum(mel_filters(spec) @ power.T, spec.floor)).astype(np.float32)[None]


@functools.lru_cache(maxsize=8)
def _hann(length: int) -> NDArray[np.float64]:
    return np.hanning(length + 1)[:-1]


@functools.lru_cache(maxsize=8)
def mel_filters(spec: MicrophonePrepare) -> NDArray[np.float64]:
    """Triangular filters (mels, n_fft // 2 + 1) on the HTK mel scale (Young et al., The HTK Book, section 5.4)."""
    low, high = (2595.0 * np.log10(1 + f / 700.0) for f in (spec.low_hz, spec.high_hz))
    edges = 700.0 * (10 ** (np.linspace(low, high, spec.mels + 2) / 2595.0) - 1)
    bins = np.linspace(0.0, spec.rate_hz / 2, spec.n_fft // 2 + 1)
    rising = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    return np.asarray(np.maximum(0.0, np.minimum(rising, falling)))


def _series(spec: SeriesPrepare, values: NDArray[np.generic]) -> NDArray[np.generic]:
    place = np.linspace(0, len(values) - 1, spec.samples)
    columns = [np.interp(place, np.arange(len(values)), column) for column in values.T.astype(np.float64)]
    return np.stack(columns).astype(np.float32)


def to_json(spec: Prepare) -> str:
    """Canonical JSON of a preparation, as it stands in the ONNX metadata."""
    return msgspec.json.encode(spec, order="sorted").decode()


def from_json(text: str) -> Prepare:
    """Read a preparation from metadata.

    Raises ReleaseError (check `prepare`) for one that this version does not implement on a device.
    """
    try:
        spec: Prepare = msgspec.json.decode(text, type=Prepare)
    except msgspec.DecodeError as error:
        raise ReleaseError("prepare", "encoder", f"unknown preparation {text} ({error})", "update the agent") from error
    if isinstance(spec, FeaturesPrepare):  # known, but refused here: whoever reads metadata is to run the encoder
        raise _no_device_runs(spec)
    return spec


def _no_device_runs(spec: FeaturesPrepare) -> ReleaseError:
    """Why nothing that runs on a device is made of `spec`."""
    return ReleaseError("prepare", "encoder", f"{kind(spec)}: {BACKBONE_FIRST}", "release one trained on raw windows")


def fingerprint(spec: Prepare) -> str:
    """SHA-256 of the canonical JSON: two encoders with the same one see the same input."""
    return sha256(to_json(spec).encode())


def golden_windows(spec: Prepare, count: int = 2) -> list[Window]:
    """Raw windows made by rule, for the self-test that travels inside an encoder (no picture of a real plant leaves).

    They are smooth patterns with a little seeded noise, raw-sized, so that resizing and log-mel are tested too.
    Raises ReleaseError (check `prepare`) for a `FeaturesPrepare`, which begins after the raw window.
    """
    if isinstance(spec, FeaturesPrepare):
        raise _no_device_runs(spec)
    rng = np.random.default_rng(20_240_501)
    return [_golden(spec, float(k), rng) for k in range(count)]


def _golden(spec: RawPrepare, k: float, rng: np.random.Generator) -> Window:
    name = modality(spec)
    if isinstance(spec, CameraPrepare):
        y, x = np.mgrid[0:48, 0:64] / 16.0
        base = [np.sin(x * (1 + k) + c) + np.cos(y * (2 - c / 3) + k + 0.4 * f) for f in range(4) for c in range(3)]
        wave = np.stack(base).reshape(4, 3, 48, 64).transpose(0, 2, 3, 1)
        noise = rng.normal(0, 3, wave.shape)
        data: NDArray[np.generic] = np.clip(127 + 60 * wave + noise, 0, 255).astype(np.uint8)
        return Window("golden", name, 0, 10**9, 4.0, data, 0)
    if isinstance(spec, MicrophonePrepare):
        t = np.arange(spec.samples) / spec.rate_hz
        tone = np.sin(2 * np.pi * (220 + 330 * k) * t) * (1 + 0.5 * np.sin(2 * np.pi * 5 * t))
        data = np.clip(6000 * tone + rng.normal(0, 300, len(t)), -32768, 32767).astype(np.int16)
        return Window("golden", name, 0, 10**9, float(spec.rate_hz), data, 0)
    t = np.arange(spec.samples)[:, None] / spec.samples
    phase = np.arange(spec.channels)[None]
    data = (np.sin(2 * np.pi * (3 + k) * t + phase) + rng.normal(0, 0.05, (spec.samples, spec.channels))).astype("f4")
    return Window("golden", name, 0, 10**9, float(spec.samples), data, 0)

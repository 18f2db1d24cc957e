"""What stands in the channels of a recording: kinds of messages, each with its schema, and samples as messages.

Pictures are `foxglove.CompressedImage`, sound is `foxglove.RawAudio` or, smaller and as exact, `lineside.FlacAudio`
(Foxglove's own schemas have no lossless sound but PCM), series are `lineside.Series`; labels and alarms stand beside
them. All are JSON with base64 bytes (https://docs.foxglove.dev/docs/sdk/schemas), with our `flags` added.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from lineside import flac
from lineside.clock import NS
from lineside.errors import RecordingError
from lineside.messages import Alarm
from lineside.windows import Samples

JPEG_QUALITY = 95
ImageFormat = Literal["jpeg", "png"]
SoundFormat = Literal["pcm", "flac"]


class Time(msgspec.Struct, frozen=True):
    """Foxglove's time: whole seconds and nanoseconds since the epoch."""

    sec: int
    nsec: int


class CompressedImage(msgspec.Struct, frozen=True):
    """One picture; `rate_hz` is the camera's nominal rate, `flags` are quality flags known at capture."""

    timestamp: Time
    frame_id: str
    data: bytes
    format: str
    rate_hz: float = 4.0
    flags: list[str] = []


class RawAudio(msgspec.Struct, frozen=True):
    """One block of interleaved 16-bit little-endian sound; `timestamp` is of its first sample."""

    timestamp: Time
    data: bytes
    format: str
    sample_rate: int
    number_of_channels: int
    flags: list[str] = []


class FlacAudio(msgspec.Struct, frozen=True):
    """One block of sound as a whole FLAC file of its own; `timestamp` is of its first sample."""

    timestamp: Time
    data: bytes
    sample_rate: int
    number_of_channels: int
    flags: list[str] = []


class Series(msgspec.Struct, frozen=True):
    """One block of a sampled series, values as rows of channels; `timestamp` is of the first row."""

    timestamp: Time
    rate_hz: float
    values: list[list[float | None]]
    flags: list[str] = []


class Label(msgspec.Struct, frozen=True):
    """What was true of the station (or of one sensor) from `start_ns` until `end_ns`; `fault` if it was not normal.

    A fault that is not `confirmed` is what an alarm said and nobody has answered for: it is left out of normal running
    like any other, but shows nobody what a kind of fault looks like.
    """

    start_ns: int
    end_ns: int
    label: str
    sensor: str = ""
    fault: bool = False
    confirmed: bool = True


@dataclass(frozen=True)
class Kind:
    """One kind of message: its type, the properties of its JSON schema, the modality of the samples in it, if any."""

    payload: type[msgspec.Struct]
    properties: dict[str, Any]
    modality: str = ""


_BYTES = {"type": "string", "contentEncoding": "base64"}
_NUMBER, _WHOLE, _TEXT, _YES = {"type": "number"}, {"type": "integer"}, {"type": "string"}, {"type": "boolean"}
_FLAGS = {"type": "array", "items": _TEXT}
_TIME = {"type": "object", "title": "time", "properties": {"sec": _WHOLE, "nsec": _WHOLE}}
_ROWS = {"type": "array", "items": {"type": "array", "items": _NUMBER}}
_SOUND = {"timestamp": _TIME, "data": _BYTES, "sample_rate": _WHOLE, "number_of_channels": _WHOLE, "flags": _FLAGS}
_SPAN = {"start_ns": _NUMBER, "end_ns": _NUMBER}
KINDS: dict[str, Kind] = {  # by the schema's name
    "foxglove.CompressedImage": Kind(
        CompressedImage,
        {"timestamp": _TIME, "frame_id": _TEXT, "data": _BYTES, "format": _TEXT, "rate_hz": _NUMBER, "flags": _FLAGS},
        "camera",
    ),
    "foxglove.RawAudio": Kind(RawAudio, {**_SOUND, "format": _TEXT}, "microphone"),
    "lineside.FlacAudio": Kind(FlacAudio, _SOUND, "microphone"),
    "lineside.Series": Kind(
        Series, {"timestamp": _TIME, "rate_hz": _NUMBER, "values": _ROWS, "flags": _FLAGS}, "series"
    ),
    "lineside.Label": Kind(Label, {**_SPAN, "label": _TEXT, "sensor": _TEXT, "fault": _YES, "confirmed": _YES}),
    "lineside.Alarm": Kind(
        Alarm, {"key": _TEXT, "kind": _TEXT, "state": _TEXT, "subject": _TEXT, "time_ns": _NUMBER, "text": _TEXT}
    ),
}
_NAMES = {kind.payload: name for name, kind in KINDS.items()}


@dataclass(frozen=True, slots=True)
class Block:
    """One message as it stands in a file: `schema` is a row of KINDS, `data` its JSON.

    It holds what was captured from `start_ns` until `end_ns`.
    """

    topic: str
    schema: str
    start_ns: int
    end_ns: int
    data: bytes


def blocks(samples: Samples, image: ImageFormat = "jpeg", sound: SoundFormat = "pcm") -> Iterator[Block]:
    """One run of samples as messages: a picture each, or all of the run's sound or rows in one.

    Raises ValueError for pictures without stamps, RecordingError for what cannot be encoded.
    """
    topic, flags = f"/{samples.sensor}", sorted(samples.flags)
    if samples.modality == "camera":
        if samples.stamps_ns is None:
            raise ValueError(f"{samples.sensor}: camera samples need a stamp for every frame")
        for stamp, frame in zip(samples.stamps_ns.tolist(), samples.data, strict=True):
            data, kind = _compress(frame, image)
            one = CompressedImage(_time(stamp), samples.sensor, data, kind, samples.rate_hz, flags)
            yield block(topic, stamp, stamp + round(NS / samples.rate_hz), one)
    elif len(samples.data):
        made = _sound(samples, flags, sound) if samples.modality == "microphone" else _series(samples, flags)
        yield block(topic, samples.start_ns, samples.end_ns, made)


def block(topic: str, start_ns: int, end_ns: int, message: msgspec.Struct) -> Block:
    """One message of a row of KINDS."""
    return Block(topic, _NAMES[type(message)], start_ns, end_ns, msgspec.json.encode(message))


def decoded(sensor: str, message: Any) -> Samples:
    """The samples in a decoded message. Raises RecordingError for a picture or sound that cannot be read."""
    start, flags = message.timestamp.sec * NS + message.timestamp.nsec, frozenset(message.flags)
    if isinstance(message, CompressedImage):
        picture = cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_COLOR)
        if picture is None:
            raise RecordingError(sensor, "has a picture that cannot be read", "record it again")
        frame = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)[None]
        return Samples(sensor, "camera", start, message.rate_hz, frame, np.array([start], np.int64), flags)
    if isinstance(message, Series):
        rows = np.array([[np.nan if v is None else v for v in row] for row in message.values], np.float32)
        return Samples(sensor, "series", start, message.rate_hz, rows, None, flags)
    raw = isinstance(message, RawAudio)
    heard = np.frombuffer(message.data, "<i2").astype(np.int16) if raw else flac.decode(message.data)
    return Samples(sensor, "microphone", start, float(message.sample_rate), heard, None, flags)


def ends_ns(sensor: str, message: Any) -> int:
    """Just after the last sample in a decoded message; a picture itself is not looked at. Raises as `decoded`."""
    if isinstance(message, CompressedImage):
        return message.timestamp.sec * NS + message.timestamp.nsec + round(NS / message.rate_hz)
    return decoded(sensor, message).end_ns


def _sound(samples: Samples, flags: list[str], sound: SoundFormat) -> RawAudio | FlacAudio:
    time, rate = _time(samples.start_ns), round(samples.rate_hz)
    if sound == "flac":
        return FlacAudio(time, flac.encode(samples.data.astype(np.int16, copy=False), rate), rate, 1, flags)
    return RawAudio(time, samples.data.astype("<i2").tobytes(), "pcm-s16", rate, 1, flags)


def _series(samples: Samples, flags: list[str]) -> Series:
    rows = [[float(v) if np.isfinite(v) else None for v in row] for row in samples.data.astype(np.float64)]
    return Series(_time(samples.start_ns), samples.rate_hz, rows, flags)


def _time(time_ns: int) -> Time:
    return Time(time_ns // NS, time_ns % NS)


def _compress(frame: NDArray[np.generic], kind: ImageFormat) -> tuple[bytes, str]:
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if kind == "jpeg" else [cv2.IMWRITE_PNG_COMPRESSION, 3]
    picture = cv2.cvtColor(frame.astype(np.uint8, copy=False), cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(f".{kind}", picture, options)
    if not done:
        raise RecordingError("picture", f"cannot be written as {kind}", "record as the other kind")
    return bytes(data), kind

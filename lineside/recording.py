"""Recordings: raw samples with capture time, flags and labels in MCAP, readable in Foxglove.

Pictures are `foxglove.CompressedImage`, sound is `foxglove.RawAudio`, series are `lineside.Series`; all as JSON with
base64 bytes (https://docs.foxglove.dev/docs/visualization/message-schemas), with our `flags` beside. Windows are cut
when a recording is read, by the code that cuts them on the device. Chunks are small and go to disk as they
fill, so that a cut in the middle of a write costs the last second, not the file.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal

import cv2
import msgspec
import numpy as np
from mcap.exceptions import McapError
from mcap.records import Channel, Message, Metadata, Schema
from mcap.stream_reader import StreamReader
from mcap.writer import CompressionType, IndexType, Writer
from numpy.typing import NDArray

from lineside.clock import NS
from lineside.errors import RecordingError
from lineside.windows import Samples

CHUNK_BYTES = 256 * 1024
JPEG_QUALITY = 95


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


class Series(msgspec.Struct, frozen=True):
    """One block of a sampled series, values as rows of channels; `timestamp` is of the first row."""

    timestamp: Time
    rate_hz: float
    values: list[list[float | None]]
    flags: list[str] = []


class Label(msgspec.Struct, frozen=True):
    """What was true of the station (or of one sensor) from `start_ns` until `end_ns`; `fault` if it was not normal."""

    start_ns: int
    end_ns: int
    label: str
    sensor: str = ""
    fault: bool = False


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What a recording says of itself; `sensors` maps sensor names to modalities.

    `length_s` and `hop_s` are the windows that suit it: events of one second, say, want a hop of one second.
    """

    station: str = ""
    source: str = ""
    sensors: dict[str, str] = {}
    length_s: float = 1.0
    hop_s: float = 0.5


_BYTES = {"type": "string", "contentEncoding": "base64"}
_NUMBER, _TEXT, _FLAGS = {"type": "number"}, {"type": "string"}, {"type": "array", "items": {"type": "string"}}
_TIME = {"type": "object", "title": "time", "properties": {"sec": {"type": "integer"}, "nsec": {"type": "integer"}}}
_ROWS = {"type": "array", "items": {"type": "array", "items": _NUMBER}}
SCHEMAS: dict[str, tuple[str, type[msgspec.Struct], dict[str, Any]]] = {
    "camera": (
        "foxglove.CompressedImage",
        CompressedImage,
        {"timestamp": _TIME, "frame_id": _TEXT, "data": _BYTES, "format": _TEXT, "rate_hz": _NUMBER, "flags": _FLAGS},
    ),
    "microphone": (
        "foxglove.RawAudio",
        RawAudio,
        {
            "timestamp": _TIME,
            "data": _BYTES,
            "format": _TEXT,
            "sample_rate": {"type": "integer"},
            "number_of_channels": {"type": "integer"},
            "flags": _FLAGS,
        },
    ),
    "series": ("lineside.Series", Series, {"timestamp": _TIME, "rate_hz": _NUMBER, "values": _ROWS, "flags": _FLAGS}),
    "label": (
        "lineside.Label",
        Label,
        {"start_ns": _NUMBER, "end_ns": _NUMBER, "label": _TEXT, "sensor": _TEXT, "fault": {"type": "boolean"}},
    ),
}
_MODALITY = {schema[0]: modality for modality, schema in SCHEMAS.items()}


class Recorder:
    """Writes samples and labels to an MCAP file, as a context manager.

    `image` is `jpeg` (quality 95, small) or `png` (exact). Raises RecordingError when the file cannot be made.
    """

    def __init__(self, path: Path, about: About, image: Literal["jpeg", "png"] = "jpeg") -> None:
        self._image = image
        self._channels: dict[str, int] = {}
        self._schemas: dict[str, int] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = path.open("wb")
        except OSError as error:
            mend = "choose another place with --out"
            raise RecordingError(str(path), f"cannot be written ({error.strerror})", mend) from error
        self._writer = Writer(
            self._file, chunk_size=CHUNK_BYTES, compression=CompressionType.LZ4, index_types=IndexType.ALL
        )
        self._writer.start(profile="", library="lineside")
        self._writer.add_metadata("lineside", {"about": msgspec.json.encode(about).decode()})

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write the index and close the file."""
        self._writer.finish()  # type: ignore[no-untyped-call]
        self._file.close()

    def write(self, samples: Samples) -> None:
        """Append one run of samples, stamped with its capture time."""
        flags = sorted(samples.flags)
        if samples.modality == "camera":
            stamps = samples.stamps_ns
            if stamps is None:
                raise ValueError(f"{samples.sensor}: camera samples need a stamp for every frame")
            for stamp, frame in zip(stamps, samples.data, strict=True):
                data, kind = _compress(frame, self._image)
                time, rate = _time(int(stamp)), samples.rate_hz
                self._put(samples, int(stamp), CompressedImage(time, samples.sensor, data, kind, rate, flags))
        elif samples.modality == "microphone":
            sound = samples.data.astype("<i2").tobytes()
            rate = round(samples.rate_hz)
            self._put(samples, samples.start_ns, RawAudio(_time(samples.start_ns), sound, "pcm-s16", rate, 1, flags))
        else:
            rows = [[float(v) if np.isfinite(v) else None for v in row] for row in samples.data.astype(np.float64)]
            self._put(samples, samples.start_ns, Series(_time(samples.start_ns), samples.rate_hz, rows, flags))

    def label(self, label: Label) -> None:
        """Append one label; labels may come at any time, also after their interval."""
        self._message("/labels", "label", label.start_ns, label)

    def _put(self, samples: Samples, time_ns: int, message: msgspec.Struct) -> None:
        self._message(f"/{samples.sensor}", samples.modality, time_ns, message)

    def _message(self, topic: str, modality: str, time_ns: int, message: msgspec.Struct) -> None:
        if topic not in self._channels:
            name, _, properties = SCHEMAS[modality]
            if modality not in self._schemas:
                text = json.dumps({"title": name, "type": "object", "properties": properties}).encode()
                self._schemas[modality] = self._writer.register_schema(name, "jsonschema", text)
            self._channels[topic] = self._writer.register_channel(topic, "json", self._schemas[modality])
        self._writer.add_message(self._channels[topic], time_ns, msgspec.json.encode(message), time_ns)
        self._file.flush()  # a finished chunk must not wait in this process


class Recording:
    """Reads an MCAP file that `Recorder` wrote, whole or cut short.

    `problem` says, after reading, what could not be read: empty for a whole file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problem = ""
        self.about = About()
        for record in self._records():
            if isinstance(record, Metadata) and record.name == "lineside":
                self.about = self._described(record.metadata)
            if isinstance(record, (Message, Metadata)):
                break
        else:
            if self.problem:
                raise RecordingError(str(path), self.problem, "record it again, or check that it is an MCAP file")
        self.problem = ""

    def samples(self, sensor: str = "", from_ns: int = 0) -> Iterator[Samples]:
        """All samples, or those of one sensor, in the order in which they were written.

        Messages that hold nothing captured at `from_ns` or later are passed over undecoded, but for the last before
        it. Stops quietly where the file is damaged. Raises RecordingError when a whole message is none of ours.
        """
        wanted = f"/{sensor}" if sensor else ""
        before: dict[str, tuple[str, Message]] = {}
        for modality, topic, message in self._messages():
            if modality == "label" or wanted not in ("", topic):
                continue
            if message.log_time < from_ns:
                before[topic] = (modality, message)
                continue
            for kind, held in filter(None, (before.pop(topic, None), (modality, message))):
                yield _samples(topic.lstrip("/"), kind, self._decode(kind, held.data))

    def labels(self) -> list[Label]:
        """All labels, by start."""
        found = [
            self._decode("label", message.data) for modality, _, message in self._messages() if modality == "label"
        ]
        return sorted((m for m in found if isinstance(m, Label)), key=lambda label: label.start_ns)

    def span_ns(self) -> tuple[int, int]:
        """Capture time of the first sample and just after the last one. Raises RecordingError when there is none.

        Only the last message of each sensor is decoded, so that this is quick.
        """
        first_ns = 0
        last: dict[str, tuple[str, Message]] = {}
        for modality, topic, message in self._messages():
            if modality != "label":
                first_ns = min(first_ns, message.log_time) if last else message.log_time
                last[topic] = (modality, message)
        if not last:
            raise RecordingError(str(self.path), "holds no samples", "record it again")
        ends = [_samples("", kind, self._decode(kind, message.data)).end_ns for kind, message in last.values()]
        return first_ns, max(ends)

    def _messages(self) -> Iterator[tuple[str, str, Message]]:
        """Modality (or `label`), topic and undecoded message; channels of others are passed over."""
        schemas: dict[int, str] = {}
        channels: dict[int, tuple[str, str]] = {}
        for record in self._records():
            if isinstance(record, Schema):
                schemas[record.id] = record.name
            elif isinstance(record, Channel):
                channels[record.id] = (_MODALITY.get(schemas.get(record.schema_id, ""), ""), record.topic)
            elif isinstance(record, Message):
                modality, topic = channels[record.channel_id]
                if modality:
                    yield modality, topic, record

    def _described(self, metadata: dict[str, str]) -> About:
        try:
            return msgspec.json.decode(metadata["about"], type=About)
        except (msgspec.DecodeError, KeyError) as error:
            raise RecordingError(str(self.path), f"has a damaged description ({error})", "record it again") from error

    def _decode(self, modality: str, data: bytes) -> msgspec.Struct:
        try:
            return msgspec.json.decode(data, type=SCHEMAS[modality][1])
        except msgspec.DecodeError as error:
            raise RecordingError(str(self.path), f"has a damaged message ({error})", "record it again") from error

    def _records(self) -> Iterator[Any]:
        """Records up to the end or to the first damage, which is then told in `problem`."""
        try:
            with self.path.open("rb") as file:
                reader = StreamReader(file, validate_crcs=True)
                yield from reader.records
        except OSError as error:
            raise RecordingError(str(self.path), f"cannot be read ({error.strerror})", "check the path") from error
        except (McapError, struct.error, EOFError, ValueError, KeyError, RuntimeError) as error:
            self.problem = (
                f"is damaged or cut short ({str(error) or 'it ends too early'}); the part before that was read"
            )


def loop_span(first_ns: int, last_ns: int) -> int:
    """Length of one pass when a recording is played again and again: its whole seconds, at least one."""
    return max(1, (last_ns - first_ns) // NS) * NS


def replay_shift(begin_ns: int, origin_ns: int) -> int:
    """What stamps gain when a recording is played from `begin_ns`, at `origin_ns` or less than a second later.

    Whole seconds, so that windows cut the signal where they would have cut the original.
    """
    return -(-(origin_ns - begin_ns) // NS) * NS


def without_faults(stream: Iterable[Samples], labels: Sequence[Label]) -> Iterator[Samples]:
    """The samples that were captured while none of `labels` told of a fault: what normal running is learned from.

    >>> run = Samples("pump0", "series", 0, 10.0, np.zeros((10, 1), np.float32))
    >>> fault = Label(300_000_000, 500_000_000, "leak", fault=True)
    >>> [(part.start_ns / NS, len(part.data)) for part in without_faults([run], [fault])]
    [(0.0, 3), (0.5, 5)]
    """
    faults = [label for label in labels if label.fault]
    for samples in stream:
        parts = [samples]
        for fault in faults:
            if fault.sensor in ("", samples.sensor):
                parts = [rest for part in parts for rest in _outside(part, fault)]
        yield from parts


def _outside(samples: Samples, fault: Label) -> list[Samples]:
    """What was captured before and after a fault."""
    if fault.end_ns <= max(fault.start_ns, samples.start_ns) or fault.start_ns >= samples.end_ns:
        return [samples]
    rest = (samples.between(samples.start_ns, fault.start_ns), samples.between(fault.end_ns, samples.end_ns))
    return [part for part in rest if len(part.data)]


def _time(time_ns: int) -> Time:
    return Time(time_ns // NS, time_ns % NS)


def _ns(time: Time) -> int:
    return time.sec * NS + time.nsec


def _compress(frame: NDArray[np.generic], kind: Literal["jpeg", "png"]) -> tuple[bytes, str]:
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if kind == "jpeg" else [cv2.IMWRITE_PNG_COMPRESSION, 3]
    done, data = cv2.imencode(f".{kind}", cv2.cvtColor(frame.astype(np.uint8), cv2.COLOR_RGB2BGR), options)
    if not done:
        raise RecordingError("picture", f"cannot be written as {kind}", "record as the other kind")
    return bytes(data), kind


def _samples(sensor: str, modality: str, message: Any) -> Samples:
    start, flags = _ns(message.timestamp), frozenset(message.flags)
    if modality == "camera":
        picture = cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_COLOR)
        if picture is None:
            raise RecordingError(sensor, "has a picture that cannot be read", "record it again")
        frame = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)[None]
        return Samples(sensor, modality, start, message.rate_hz, frame, np.array([start], np.int64), flags)
    if modality == "microphone":
        sound = np.frombuffer(message.data, "<i2").astype(np.int16)
        return Samples(sensor, modality, start, float(message.sample_rate), sound, None, flags)
    rows = np.array([[np.nan if v is None else v for v in row] for row in message.values], np.float32)
    return Samples(sensor, modality, start, message.rate_hz, rows, None, flags)

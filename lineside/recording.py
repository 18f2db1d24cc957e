"""Recordings: raw samples with capture time, flags, labels and alarms in MCAP, readable in Foxglove.

What stands in them is lineside.channels' table. Windows are cut when a recording is read, by the code that cuts them
on the device. Chunks are small and go to disk as they fill, so that a cut in the middle of a write costs the last
second, not the file.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import msgspec
from mcap.exceptions import McapError
from mcap.records import Channel, Message, Metadata, Schema
from mcap.stream_reader import StreamReader
from mcap.writer import CompressionType, IndexType, Writer
from zstandard import ZstdError

from lineside.channels import KINDS, Block, ImageFormat, Label, SoundFormat, block, blocks, decoded, ends_ns
from lineside.clock import NS
from lineside.errors import RecordingError
from lineside.files import make_folder
from lineside.messages import Alarm
from lineside.windows import Samples

__all__ = ["About", "Label", "Recorder", "Recording", "loop_span", "replay_shift", "within_faults", "without_faults"]
# What reading a damaged file ends with.
DAMAGE = (McapError, ZstdError, struct.error, EOFError, ValueError, KeyError, RuntimeError)
CHUNK_BYTES = 256 * 1024


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What a recording says of itself; `sensors` maps sensor names to modalities.

    `length_s` and `hop_s` are the windows that suit it: events of one second, say, want a hop of one second.
    """

    station: str = ""
    source: str = ""
    sensors: dict[str, str] = {}
    length_s: float = 1.0
    hop_s: float = 0.5


class Recorder:
    """Writes samples, labels and alarms to an MCAP file, as a context manager.

    `image` is `jpeg` (quality 95, small) or `png` (exact); `sound` is `pcm`, which Foxglove plays, or `flac`, as exact
    and smaller. Raises RecordingError when the file cannot be made, OSError when it cannot be written.
    """

    def __init__(self, path: Path, about: About, image: ImageFormat = "jpeg", sound: SoundFormat = "pcm") -> None:
        self._image: ImageFormat = image
        self._sound: SoundFormat = sound
        self._channels: dict[str, int] = {}
        self._schemas: dict[str, int] = {}
        try:
            make_folder(path.parent)
            self._file: IO[bytes] = path.open("wb")
        except OSError as error:
            mend = "choose another place with --out"
            raise RecordingError(str(path), f"cannot be written ({error.strerror})", mend) from error
        self._writer = Writer(
            self._file, chunk_size=CHUNK_BYTES, compression=CompressionType.ZSTD, index_types=IndexType.ALL
        )
        self._writer.start(profile="", library="lineside")
        self._writer.add_metadata("lineside", {"about": msgspec.json.encode(about).decode()})

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def bytes(self) -> int:
        """Bytes in the file so far, without the chunk that fills just now."""
        return self._file.tell()

    def close(self) -> None:
        """Write the index, and wait until all of the file is on disk."""
        try:
            self._writer.finish()  # type: ignore[no-untyped-call]
            self._file.flush()
            os.fsync(self._file.fileno())
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Close the file as it is: without its index, which a reader of ours can do without."""
        with contextlib.suppress(OSError):  # what it holds back cannot be written either
            self._file.close()

    def write(self, run: Samples) -> None:
        """Append one run of samples, stamped with its capture time."""
        for made in blocks(run, self._image, self._sound):
            self.append(made)

    def label(self, label: Label) -> None:
        """Append one label; labels may come at any time, also after their interval."""
        self.append(block("/labels", label.start_ns, label.end_ns, label))

    def append(self, made: Block) -> None:
        """Append one message that is encoded already."""
        if made.topic not in self._channels:
            if made.schema not in self._schemas:
                about = {"title": made.schema, "type": "object", "properties": KINDS[made.schema].properties}
                written = self._writer.register_schema(made.schema, "jsonschema", json.dumps(about).encode())
                self._schemas[made.schema] = written
            self._channels[made.topic] = self._writer.register_channel(made.topic, "json", self._schemas[made.schema])
        self._writer.add_message(self._channels[made.topic], made.start_ns, made.data, made.start_ns)
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
        before: dict[str, Block] = {}
        for made in self.blocks():
            if not KINDS[made.schema].modality or wanted not in ("", made.topic):
                continue
            if made.start_ns < from_ns:
                before[made.topic] = made
                continue
            for held in filter(None, (before.pop(made.topic, None), made)):
                yield self._samples(held)

    def labels(self) -> list[Label]:
        """All labels, by start."""
        found = [self._decode(made) for made in self.blocks() if made.schema == "lineside.Label"]
        return sorted((m for m in found if isinstance(m, Label)), key=lambda label: label.start_ns)

    def alarms(self) -> list[Alarm]:
        """The changes of alarms that the file was made for, in the order in which they were written."""
        found = [self._decode(made) for made in self.blocks() if made.schema == "lineside.Alarm"]
        return [m for m in found if isinstance(m, Alarm)]

    def span_ns(self) -> tuple[int, int]:
        """Capture time of the first sample and just after the last one. Raises RecordingError when there is none.

        Only the last message of each sensor is decoded, and no picture, so that this is quick.
        """
        first_ns = 0
        last: dict[str, Block] = {}
        for made in self.blocks():
            if KINDS[made.schema].modality:
                first_ns = min(first_ns, made.start_ns) if last else made.start_ns
                last[made.topic] = made
        if not last:
            raise RecordingError(str(self.path), "holds no samples", "record it again")
        return first_ns, max(ends_ns(made.topic.lstrip("/"), self._decode(made)) for made in last.values())

    def blocks(self) -> Iterator[Block]:
        """All messages of ours, undecoded, so that their `end_ns` is not known and told as their start."""
        schemas: dict[int, str] = {}
        channels: dict[int, tuple[str, str]] = {}
        for record in self._records():
            if isinstance(record, Schema):
                schemas[record.id] = record.name
            elif isinstance(record, Channel):
                channels[record.id] = (schemas.get(record.schema_id, ""), record.topic)
            elif isinstance(record, Message):
                schema, topic = channels[record.channel_id]
                if schema in KINDS:
                    yield Block(topic, schema, record.log_time, record.log_time, record.data)

    def _described(self, metadata: dict[str, str]) -> About:
        try:
            return msgspec.json.decode(metadata["about"], type=About)
        except (msgspec.DecodeError, KeyError) as error:
            raise RecordingError(str(self.path), f"has a damaged description ({error})", "record it again") from error

    def _samples(self, made: Block) -> Samples:
        return decoded(made.topic.lstrip("/"), self._decode(made))

    def _decode(self, made: Block) -> msgspec.Struct:
        try:
            return msgspec.json.decode(made.data, type=KINDS[made.schema].payload)
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
        except DAMAGE as error:
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

    >>> import numpy as np
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


def within_faults(stream: Iterable[Samples], labels: Sequence[Label]) -> Iterator[Samples]:
    """The samples of all sensors that were captured while one of `labels` told of a fault that is confirmed.

    >>> import numpy as np
    >>> run = Samples("pump0", "series", 0, 10.0, np.zeros((10, 1), np.float32))
    >>> leak, hum = (Label(at, at + 200_000_000, "fault", fault=True) for at in (300_000_000, 400_000_000))
    >>> [(part.start_ns / NS, len(part.data)) for part in within_faults([run], [leak, hum])]
    [(0.3, 3)]
    """
    spans: list[tuple[int, int]] = []
    for label in sorted(
        (label for label in labels if label.fault and label.confirmed), key=lambda label: label.start_ns
    ):
        if spans and label.start_ns <= spans[-1][1]:
            spans[-1] = spans[-1][0], max(spans[-1][1], label.end_ns)
        else:
            spans.append((label.start_ns, label.end_ns))
    for samples in stream:
        for start_ns, end_ns in spans:
            if len((part := samples.between(start_ns, end_ns)).data):
                yield part


def _outside(samples: Samples, fault: Label) -> list[Samples]:
    """What was captured before and after a fault."""
    if fault.end_ns <= max(fault.start_ns, samples.start_ns) or fault.start_ns >= samples.end_ns:
        return [samples]
    rest = (samples.between(samples.start_ns, fault.start_ns), samples.between(fault.end_ns, samples.end_ns))
    return [part for part in rest if len(part.data)]

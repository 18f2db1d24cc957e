"""Samples from a capture process to its agent: the bytes through shared memory, a small header through a socket.

A run of samples stays in its place until the reader has given a credit for it: one byte on the way back. When there is
no place, the run is dropped and counted.
"""

from __future__ import annotations

import mmap
import socket
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from edge.config import SensorSettings
from edge.framing import send
from lineside.windows import Samples, Timing

MEMORY_BYTES = 64_000_000  # one picture of 20 megapixels, eight of full HD; pages that are never used cost nothing
CREDIT = b"\x01"


class Begin(msgspec.Struct, frozen=True, tag=True):
    """What a capture process is to do; `offset_ns` makes its clock that of the agent."""

    settings: SensorSettings
    base: str
    origin_ns: int
    offset_ns: int


class Run(msgspec.Struct, frozen=True, tag=True):
    """A run of samples (lineside.windows.Samples), whose data lie in the memory; `dropped` counts since the start."""

    start_ns: int
    rate_hz: float
    dtype: str
    shape: tuple[int, ...]
    place: int
    flags: tuple[str, ...]
    stamps_ns: tuple[int, ...] | None
    timing: tuple[int, float] | None
    dropped: int


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The sensor raised SensorError with these words."""

    reason: str
    mend: str


class Ended(msgspec.Struct, frozen=True, tag=True):
    """The source is finite and at its end."""


Sent = Begin | Run | Failed | Ended
DECODER = msgspec.msgpack.Decoder(Sent)


@dataclass
class Writer:
    """The capture process's end. `credited` may be called by another thread than `put`."""

    memory: mmap.mmap
    link: socket.socket
    dropped: int = 0
    _out: deque[tuple[int, int]] = field(default_factory=deque)  # place and end of each run that the reader still has

    def put(self, samples: Samples, dropped: int) -> None:
        """Hand over a run; `dropped` are the samples that the sensor itself has lost so far."""
        data = np.ascontiguousarray(samples.data)
        if (place := self._place(data.nbytes)) is None:
            self.dropped += len(data)
            return
        self.memory[place : place + data.nbytes] = data.tobytes()
        self._out.append((place, place + data.nbytes))
        timing = samples.timing
        stamps = None if samples.stamps_ns is None else tuple(samples.stamps_ns.tolist())
        head = Run(
            start_ns=samples.start_ns,
            rate_hz=samples.rate_hz,
            dtype=data.dtype.str,
            shape=data.shape,
            place=place,
            flags=tuple(sorted(samples.flags)),
            stamps_ns=stamps,
            timing=None if timing is None else (timing.offset_ns, timing.drift_ppm),
            dropped=dropped + self.dropped,
        )
        send(self.link, head)

    def credited(self, runs: int) -> None:
        """The reader has taken `runs` more."""
        for _ in range(min(runs, len(self._out))):
            self._out.popleft()

    def _place(self, count: int) -> int | None:
        """Where `count` bytes fit: after the newest run that is out, or before the oldest; None where they do not.

        With nothing out it is the beginning, so that a reader who keeps up never makes more of the memory real.
        """
        out = list(self._out)
        if not out:
            return 0 if count <= len(self.memory) else None
        oldest, end = out[0][0], out[-1][1]
        if end > oldest:
            if end + count <= len(self.memory):
                return end
            return 0 if count <= oldest else None
        return end if end + count <= oldest else None


def taken(memory: mmap.mmap, run: Run, settings: SensorSettings) -> Samples:
    """The samples of a run, copied out of the memory. Raises ValueError for a header that does not fit it."""
    kind, count = np.dtype(run.dtype), int(np.prod(run.shape))
    if run.place < 0 or min(run.shape, default=0) < 0 or run.place + count * kind.itemsize > len(memory):
        raise ValueError(f"a run beyond the memory: {run}")
    data: Any = np.frombuffer(memory, kind, count, run.place).reshape(run.shape).copy()
    return Samples(
        settings.name,
        settings.modality,
        run.start_ns,
        run.rate_hz,
        data,
        None if run.stamps_ns is None else np.array(run.stamps_ns, np.int64),
        frozenset(run.flags),
        None if run.timing is None else Timing(*run.timing),
    )

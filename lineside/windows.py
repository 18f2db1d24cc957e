"""Cut streams into windows and join windows into moments; trainer and device call the same functions.

Windows lie on a grid of whole hops since the Unix epoch, so that windows of different sensors pair by their start.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from lineside.clock import NS

MODALITIES = ("camera", "microphone", "series")


@dataclass(frozen=True, slots=True)
class Timing:
    """A source's own clock against ours: `offset_ns` is how far it has fallen behind since its first sample (since its
    last jump), `drift_ppm` how fast it does."""

    offset_ns: int
    drift_ppm: float


@dataclass(frozen=True, slots=True)
class Samples:
    """A run of raw samples of one sensor, in capture order.

    `data` is (n, height, width, 3) uint8 RGB for a camera, (n,) int16 for a microphone, (n, channels) float32 for
    a series. Cameras stamp every frame in `stamps_ns` (n,); the others are uniform from `start_ns` at `rate_hz`.
    `timing` is of a source that has a clock of its own, by which they were stamped.
    """

    sensor: str
    modality: str
    start_ns: int
    rate_hz: float
    data: NDArray[np.generic]
    stamps_ns: NDArray[np.int64] | None = None
    flags: frozenset[str] = frozenset()
    timing: Timing | None = None

    @property
    def end_ns(self) -> int:
        """Capture time just after the last sample."""
        if self.stamps_ns is not None and len(self.stamps_ns):
            return int(self.stamps_ns[-1]) + round(NS / self.rate_hz)
        return self.start_ns + round(len(self.data) * NS / self.rate_hz)

    def between(self, start_ns: int, end_ns: int) -> Samples:
        """The samples whose capture time t satisfies start_ns <= t < end_ns (a view, not a copy)."""
        if start_ns <= self.start_ns and self.end_ns <= end_ns:  # most runs lie inside their window
            return self
        if self.stamps_ns is not None:
            first, last = (int(i) for i in np.searchsorted(self.stamps_ns, [start_ns, end_ns]))
            start, stamps = start_ns, self.stamps_ns[first:last]
            if len(stamps):
                start = int(stamps[0])
            return Samples(self.sensor, self.modality, start, self.rate_hz, self.data[first:last], stamps, self.flags)
        first, last = (
            min(max(0, int(np.ceil((t - self.start_ns) * self.rate_hz / NS - 1e-6))), len(self.data))
            for t in (start_ns, end_ns)
        )
        start = self.start_ns + round(first * NS / self.rate_hz)
        return Samples(self.sensor, self.modality, start, self.rate_hz, self.data[first:last], None, self.flags)


class Frames(Sequence[NDArray[np.generic]]):
    """The pictures (n, height, width, channels) of one window, each left where it was captured.

    A second of 720p is 28 MB: to copy it for every window costs more than all that is done with it. `np.asarray` still
    gives one array to whoever wants it.

    >>> still = np.zeros((2, 4, 6, 3), np.uint8)
    >>> frames = Frames([still, still])
    >>> frames.shape, frames[-1].shape, len(frames[1:]), np.asarray(frames).shape
    ((4, 4, 6, 3), (4, 6, 3), 3, (4, 4, 6, 3))
    """

    def __init__(self, runs: Iterable[Iterable[NDArray[np.generic]]]) -> None:
        self._frames = [frame for run in runs for frame in run]

    @property
    def shape(self) -> tuple[int, ...]:
        """As of one array."""
        return len(self._frames), *(self._frames[0].shape if self._frames else ())

    def __len__(self) -> int:
        return len(self._frames)

    @overload
    def __getitem__(self, place: int) -> NDArray[np.generic]: ...

    @overload
    def __getitem__(self, place: slice) -> Frames: ...

    @overload
    def __getitem__(self, place: Any) -> NDArray[np.generic]: ...

    def __getitem__(self, place: Any) -> NDArray[np.generic] | Frames:
        if isinstance(place, slice):
            return Frames([self._frames[place]])
        return self._frames[place] if isinstance(place, (int, np.integer)) else np.asarray(self)[place]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[np.generic]:
        return np.asarray(np.stack(self._frames), dtype)


@dataclass(frozen=True, slots=True)
class Window:
    """One interval of one sensor: raw samples, when they were captured, and what is wrong with them.

    `start_ns`..`end_ns` is the interval on the grid; `captured_ns` is the mean capture time of its samples. Those of a
    camera may be `Frames`.
    """

    sensor: str
    modality: str
    start_ns: int
    end_ns: int
    rate_hz: float
    data: NDArray[np.generic] | Frames
    captured_ns: int
    flags: frozenset[str] = frozenset()

    @property
    def values(self) -> NDArray[np.generic]:
        """Its samples as one array."""
        return np.asarray(self.data)


@dataclass(frozen=True, slots=True)
class Moment:
    """The windows of all sensors that were present in one interval of one station."""

    start_ns: int
    end_ns: int
    windows: dict[str, Window]

    @property
    def skew_ns(self) -> int:
        """Largest distance between the mean capture times of two sensors of the moment."""
        times = [window.captured_ns for window in self.windows.values()]
        return max(times) - min(times) if times else 0


@dataclass
class Cutter:
    """Cuts one sensor's stream into windows of `length_ns`, one every `hop_ns`.

    >>> cutter = Cutter(length_ns=NS, hop_ns=NS // 2)
    >>> block = Samples("mic0", "microphone", 0, 100.0, np.zeros(150, np.int16))
    >>> [(w.start_ns / NS, len(w.data)) for w in cutter.push(block)]
    [(0.0, 100), (0.5, 100)]
    """

    length_ns: int
    hop_ns: int
    _buffer: deque[Samples] = field(default_factory=deque)
    _next_ns: int = -1
    _newest_ns: int = -1

    def push(self, samples: Samples) -> list[Window]:
        """Take the next run of samples; give the windows that it completes, oldest first.

        After a jump of the stream (forwards by more than a window, or backwards), or with another size of picture or
        number of channels, cutting starts anew on the grid; an interval without any sample gives no window.
        """
        if not len(samples.data):
            return []
        end_ns, newest = samples.end_ns, self._newest_ns if self._buffer else None
        changed = newest is not None and self._buffer[-1].data.shape[1:] != samples.data.shape[1:]
        if newest is None or changed or samples.start_ns > newest + self.length_ns or end_ns <= newest:
            self._buffer.clear()
            self._next_ns = -(-samples.start_ns // self.hop_ns) * self.hop_ns
        self._buffer.append(samples)
        self._newest_ns = end_ns
        windows = []
        while end_ns >= self._next_ns + self.length_ns:
            if (window := self._cut(self._next_ns)) is not None:
                windows.append(window)
            self._next_ns += self.hop_ns
            while len(self._buffer) > 1 and self._buffer[0].end_ns <= self._next_ns:
                self._buffer.popleft()
        return windows

    def _cut(self, start_ns: int) -> Window | None:
        end_ns = start_ns + self.length_ns
        parts = [part for s in self._buffer if len((part := s.between(start_ns, end_ns)).data)]
        if not parts:
            return None
        runs = [part.data for part in parts]
        data = Frames(runs) if parts[0].modality == "camera" else np.concatenate(runs)
        first = parts[0]
        flags = frozenset[str]().union(*(part.flags for part in parts))
        if len(data) < 0.9 * self.length_ns / NS * first.rate_hz - 1:
            flags |= {"gap"}
        middle = sum(_middle_ns(part) * len(part.data) for part in parts) // len(data)
        return Window(first.sensor, first.modality, start_ns, end_ns, first.rate_hz, data, middle, flags)


def _middle_ns(samples: Samples) -> int:
    """Mean capture time of a run."""
    if (stamps := samples.stamps_ns) is not None:
        first = int(stamps[0])  # a float has no room for nanoseconds since 1970
        return first if len(stamps) == 1 else first + int((stamps - first).mean())
    return samples.start_ns + round((len(samples.data) - 1) * NS / samples.rate_hz / 2)


@dataclass
class Moments:
    """Joins windows of the same interval; a sensor that stays away longer than `patience_ns` is left out.

    >>> def window(sensor, start_s):
    ...     return Window(sensor, "series", start_s * NS, (start_s + 1) * NS, 1.0, np.zeros((1, 1)), start_s * NS)
    >>> join = Moments(("a", "b"), patience_ns=2 * NS)
    >>> join.push(window("a", 0))
    []
    >>> [sorted(m.windows) for m in join.push(window("b", 0))]
    [['a', 'b']]
    """

    sensors: tuple[str, ...]
    patience_ns: int
    _pending: dict[int, dict[str, Window]] = field(default_factory=dict)
    _emitted_ns: int = -1

    def push(self, window: Window) -> list[Moment]:
        """Take one window; give the moments that are now complete or out of patience, oldest first.

        A window that comes after its moment was given out starts that moment no second time: it is dropped.
        """
        if window.start_ns < self._emitted_ns - 10 * self.patience_ns:  # the stream was set back: start anew
            self._pending.clear()
            self._emitted_ns = -1
        if window.start_ns > self._emitted_ns:
            self._pending.setdefault(window.start_ns, {})[window.sensor] = window
        return self.tick(window.start_ns)

    def tick(self, newest_ns: int) -> list[Moment]:
        """Give the moments that need wait no longer when the newest known interval starts at `newest_ns`."""
        ready = [
            start
            for start, windows in self._pending.items()
            if len(windows) == len(self.sensors) or start <= newest_ns - self.patience_ns
        ]
        last = max(ready, default=None)
        if last is None:
            return []
        moments = []
        for start in sorted(start for start in self._pending if start <= last):
            windows = self._pending.pop(start)
            end = next(iter(windows.values())).end_ns
            moments.append(Moment(start, end, {name: windows[name] for name in self.sensors if name in windows}))
        self._emitted_ns = last
        return moments

    def flush(self) -> list[Moment]:
        """Give everything that is left, for the end of a recording."""
        return self.tick(max(self._pending, default=-1) + self.patience_ns)


def moments(stream: Iterable[Samples], sensors: tuple[str, ...], length_ns: int, hop_ns: int) -> Iterator[Moment]:
    """Cut and join a whole stream of samples of `sensors` (a recording): what the trainer reads."""
    cutters = {name: Cutter(length_ns, hop_ns) for name in sensors}
    join = Moments(sensors, patience_ns=4 * length_ns)
    for samples in stream:
        if samples.sensor in cutters:
            for window in cutters[samples.sensor].push(samples):
                yield from join.push(window)
    yield from join.flush()

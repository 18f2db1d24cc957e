"""What every importer gives, and the few rules that they share."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lineside.clock import NS
from lineside.recording import About, Label
from lineside.windows import Samples

EPOCH_NS = 1_577_836_800 * NS  # 2020-01-01T00:00:00Z: where media without a time of their own begin
SOUND_HZ = 16_000
BLOCK = 1_600  # samples of sound in one message, as from a live microphone
MAX_WIDTH, MAX_FRAMES_HZ = 320, 10.0


@dataclass(frozen=True)
class Options:
    """What a person may ask of an import; 0 and empty leave it to the source."""

    rate_hz: float = 0.0
    split: str = ""
    limit: int = 0


@dataclass
class Import:
    """A foreign source: `stream` gives samples and labels, roughly in the order of time, and fills `warnings`.

    `length_s` is how much there will be, for a progress bar; 0 where it is not known.
    """

    about: About
    stream: Iterator[Samples | Label]
    warnings: list[str] = field(default_factory=list)
    length_s: float = 0.0


def merged(*streams: Iterable[Samples | Label]) -> Iterator[Samples | Label]:
    """Streams of several sensors as one, by start."""
    return heapq.merge(*streams, key=lambda item: item.start_ns)


def frame(sensor: str, stamp_ns: int, rate_hz: float, picture: NDArray[Any]) -> Samples:
    """One RGB picture (height, width, 3) as samples."""
    return Samples(sensor, "camera", stamp_ns, rate_hz, picture[None], np.array([stamp_ns], np.int64))


def size_within(width: int, height: int) -> tuple[int, int]:
    """Width and height scaled to at most MAX_WIDTH, even numbers.

    >>> size_within(1920, 1080), size_within(160, 121)
    ((320, 180), (160, 120))
    """
    scale = min(1.0, MAX_WIDTH / width)
    return max(2, round(width * scale / 2) * 2), max(2, int(height * scale / 2) * 2)


def resized(picture: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """The picture at (width, height), the same object where it is so already."""
    if picture.shape[1::-1] == size:
        return picture
    larger = size[0] > picture.shape[1]
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC if larger else cv2.INTER_AREA))

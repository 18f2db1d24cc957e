"""A folder of pictures, in the order of their names, with or without a sound file beside them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.foreign.base import EPOCH_NS, Import, Options, frame, merged, resized, size_within
from edge.foreign.media import SOUND_FILES, sound
from lineside.clock import NS
from lineside.errors import RecordingError
from lineside.recording import About
from lineside.windows import Samples

PICTURE_FILES = frozenset({".jpg", ".jpeg", ".png", ".bmp"})
RATE_HZ = 10.0


def folder(source: Path, options: Options) -> Import:
    """Pictures at `rate_hz` (10 when not given). A picture that cannot be read leaves its place in time empty."""
    paths = files(source, PICTURE_FILES)
    paths = paths[: options.limit or len(paths)]
    sounds = files(source, SOUND_FILES)
    warnings = [f"{path.name} is not used: one sound file is enough" for path in sounds[1:]]
    if not any(picture(path) is not None for path in paths):
        raise RecordingError(str(source), "has no picture that can be read", "give a folder of JPEG or PNG files")
    rate_hz = options.rate_hz or RATE_HZ
    streams: list[Iterator[Samples]] = [_pictures(paths, rate_hz, warnings)]
    heard = _heard(sounds[:1], warnings)
    sensors = {"cam0": "camera"} | ({"mic0": "microphone"} if heard is not None else {})
    streams += [heard] if heard is not None else []
    return Import(About(source=source.name, sensors=sensors), merged(*streams), warnings, len(paths) / rate_hz)


def files(folder: Path, kinds: frozenset[str]) -> list[Path]:
    """Files of these kinds, by name, with numbers in names counted as numbers: frame9 before frame10."""
    found = [path for path in folder.iterdir() if path.suffix.lower() in kinds and not path.name.startswith(".")]
    return sorted(
        found, key=lambda path: [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in _parts(path)]
    )


def picture(path: Path) -> NDArray[np.uint8] | None:
    """The RGB picture in a file; None when it cannot be read."""
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError:
        return None
    found: Any = cv2.imdecode(data, cv2.IMREAD_COLOR) if len(data) else None
    return None if found is None else np.asarray(cv2.cvtColor(found, cv2.COLOR_BGR2RGB), np.uint8)


def _parts(path: Path) -> list[str]:
    return [part for part in re.split(r"(\d+)", path.name) if part]


def _pictures(paths: list[Path], rate_hz: float, warnings: list[str]) -> Iterator[Samples]:
    size: tuple[int, int] | None = None
    for place, path in enumerate(paths):
        shown = picture(path)
        if shown is None:
            warnings.append(f"{path.name} cannot be read as a picture and is left out")
            continue
        size = size or size_within(shown.shape[1], shown.shape[0])
        yield frame("cam0", EPOCH_NS + round(place * NS / rate_hz), rate_hz, resized(shown, size))


def _heard(paths: list[Path], warnings: list[str]) -> Iterator[Samples] | None:
    """The stream of the sound file; None, with a warning, when there is none that can be read."""
    if not paths:
        warnings.append("no sound file beside the pictures: only the camera is imported")
        return None
    stream = sound(paths[0], warnings)
    try:
        first = next(stream, None)
    except (RecordingError, IndexError):
        first = None
    if first is None:
        warnings.append(f"{paths[0].name} cannot be read as sound: only the camera is imported")
        return None
    return _again(first, stream)


def _again(first: Samples, rest: Iterator[Samples]) -> Iterator[Samples]:
    yield first
    yield from rest

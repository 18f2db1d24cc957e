"""Video and sound files through PyAV: pictures of at most 320 pixels and 10 Hz, sound at 16 kHz mono.

Both follow the file's own time stamps, so that they stay as synchronous as they were recorded.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError

from edge.foreign.base import BLOCK, EPOCH_NS, MAX_FRAMES_HZ, SOUND_HZ, Import, Options, frame, merged, size_within
from edge.sensors.camera import Thinned
from lineside.clock import NS
from lineside.errors import RecordingError
from lineside.recording import About
from lineside.windows import Samples

VIDEO_FILES = frozenset({".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v", ".ts", ".mpg", ".3gp"})
SOUND_FILES = frozenset({".wav", ".flac", ".ogg", ".mp3", ".m4a", ".opus"})
JUMP_S = 0.05  # sound that is further off its time stamp than this starts anew there


def media(source: Path, options: Options) -> Import:
    """A video with or without sound, or a sound alone. Raises RecordingError when it is neither."""
    warnings: list[str] = []
    with _opened(source) as container:
        has_video = bool(container.streams.video)
        has_sound = bool(container.streams.audio)
        length_s = (container.duration or 0) / 1e6
    if not has_video and not has_sound:
        raise RecordingError(str(source), "holds neither pictures nor sound", "give a video or sound file")
    if not has_sound:
        warnings.append(f"{source.name} has no sound: only the camera is imported")
    rate_hz = min(options.rate_hz or MAX_FRAMES_HZ, MAX_FRAMES_HZ)
    streams = [pictures(source, rate_hz, warnings)] if has_video else []
    streams += [sound(source, warnings)] if has_sound else []
    sensors = ({"cam0": "camera"} if has_video else {}) | ({"mic0": "microphone"} if has_sound else {})
    return Import(About(source=source.name, sensors=sensors), merged(*streams), warnings, length_s)


def pictures(source: Path, most_hz: float, warnings: list[str]) -> Iterator[Samples]:
    """Pictures of the first video stream as `cam0`, upright, at their own times."""
    with _opened(source) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        rate_hz = min(most_hz, float(stream.average_rate or most_hz))
        thinned = Thinned(rate_hz)
        size: tuple[int, int] | None = None
        for picture, time_ns in _decoded(container, stream, source, warnings):
            if thinned.takes(time_ns):
                size = size or size_within(picture.width, picture.height)
                image = picture.reformat(*size, format="rgb24").to_ndarray()
                upright = np.rot90(image, round(getattr(picture, "rotation", 0) / 90) % 4)
                yield frame("cam0", EPOCH_NS + time_ns, rate_hz, np.ascontiguousarray(upright))


def sound(source: Path, warnings: list[str]) -> Iterator[Samples]:
    """Sound of the first audio stream as `mic0`, in blocks of 0.1 s; a hole in its time stamps stays a hole."""
    with _opened(source) as container:
        stream = container.streams.audio[0]
        resampler = av.AudioResampler(format="s16", layout="mono", rate=SOUND_HZ)
        start_ns, waiting, heard_s = 0, np.zeros(0, np.int16), 0.0
        for block, time_ns in _decoded(container, stream, source, warnings):
            if not heard_s or abs(time_ns / NS - heard_s) > JUMP_S:
                if len(waiting):
                    yield _block(start_ns, waiting)
                start_ns, waiting, heard_s = EPOCH_NS + time_ns, waiting[:0], time_ns / NS
            heard_s += block.samples / block.sample_rate
            waiting = np.concatenate([waiting, *_resampled(resampler, block)])
            while len(waiting) >= BLOCK:
                yield _block(start_ns, waiting[:BLOCK])
                start_ns, waiting = start_ns + BLOCK * NS // SOUND_HZ, waiting[BLOCK:]
        waiting = np.concatenate([waiting, *_resampled(resampler, None)])
        if len(waiting):
            yield _block(start_ns, waiting)


def _block(start_ns: int, sound: Any) -> Samples:
    return Samples("mic0", "microphone", start_ns, float(SOUND_HZ), sound)


def _resampled(resampler: Any, block: Any) -> list[Any]:
    if block is not None:
        block.pts = None  # the resampler would fill holes with silence of its own
    return [part.to_ndarray()[0] for part in resampler.resample(block)]


def _decoded(container: Any, stream: Any, source: Path, warnings: list[str]) -> Iterator[tuple[Any, int]]:
    """Frames of one stream, each with its time since the file's beginning; what cannot be decoded is passed over."""
    begin_s = (container.start_time or 0) / 1e6
    bad, last_ns = 0, -1
    try:
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except FFmpegError:
                bad += 1
                continue
            for one in frames:
                if one.time is not None:
                    time_ns = max(0, round((one.time - begin_s) * NS))
                    if time_ns > last_ns:
                        yield one, time_ns
                        last_ns = time_ns
    except FFmpegError as error:
        warnings.append(f"{source.name}: {stream.type} is damaged ({error.strerror}); the part before that is used")
    if bad:
        warnings.append(f"{source.name}: {bad} pieces of {stream.type} cannot be decoded and are left out")


def _opened(source: Path) -> Any:
    try:
        return av.open(str(source))
    except (FFmpegError, OSError) as error:
        reason = f"cannot be read as video or sound ({error.strerror})"
        raise RecordingError(str(source), reason, "give a file that a video player can play") from error

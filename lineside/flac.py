"""Sound as FLAC and back, bit for bit, through PyAV (RFC 9639)."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lineside.errors import RecordingError

MAX_RATE_HZ = 655_350  # RFC 9639, section 8.2: what a FLAC file can say of its rate
MD5 = slice(26, 42)  # of the samples, in the first metadata block (the same section)


def encode(sound: NDArray[np.int16], rate_hz: int) -> bytes:
    """A whole FLAC file, with the MD5 of its samples, of mono 16-bit sound (n,) with n > 0.

    >>> tone = np.arange(-800, 800, dtype=np.int16)
    >>> bool((decode(encode(tone, 16_000)) == tone).all())
    True
    """
    if not 0 < rate_hz <= MAX_RATE_HZ:
        raise RecordingError("sound", f"has {rate_hz} samples a second, too many for FLAC", "record it without FLAC")
    av, file = _pyav(), io.BytesIO()
    with av.open(file, "w", format="flac", options={"metadata_header_padding": "0"}) as container:
        stream = container.add_stream("flac", rate=rate_hz)
        stream.format, stream.layout = "s16", "mono"
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound[None], np.int16), format="s16", layout="mono")
        frame.rate = rate_hz
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def decode(data: bytes) -> NDArray[np.int16]:
    """The sound (n,) of a FLAC file that `encode` made. Raises RecordingError when it is none, or not whole."""
    av = _pyav()
    try:
        with av.open(io.BytesIO(data), format="flac") as container:
            blocks = [frame.to_ndarray()[0] for frame in container.decode(audio=0)]
    except (av.error.FFmpegError, ValueError, IndexError) as error:
        raise RecordingError("sound", f"is no FLAC that can be read ({error})", "record it again") from error
    sound = np.concatenate([np.empty(0, np.int16), *blocks])
    if hashlib.md5(sound.astype("<i2").tobytes(), usedforsecurity=False).digest() != data[MD5]:
        raise RecordingError(
            "sound", "is FLAC that is damaged: its samples are not those of its MD5", "record it again"
        )
    return sound


def _pyav() -> Any:
    try:
        import av
        import av.error
    except ImportError as error:
        raise RecordingError("sound", "is FLAC, which needs PyAV", "run `pip install av`") from error
    return av

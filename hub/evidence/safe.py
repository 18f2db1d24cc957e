"""Whether a recording from outside can be read within bounds, by its records alone: nothing in it is decompressed."""

from __future__ import annotations

from pathlib import Path

from mcap.records import Chunk
from mcap.stream_reader import StreamReader
from zstandard import ZstdError, frame_content_size

from lineside.errors import WireError
from lineside.recording import DAMAGE

# What sums over numbers that no device would write may end with: a rate of 0, a time beyond all times.
WILD = (*DAMAGE, ArithmeticError, IndexError, TypeError)
CHUNK_BYTES = 32 * 1024 * 1024  # a device's chunks have 256 KiB and the message that filled them
ALL_BYTES = 2_000_000_000  # the longest case of four cameras of 720p takes half of it


def check(path: Path) -> None:
    """Take a recording, or delete it. Raises WireError for one that would unpack into more than a device writes."""
    try:
        _check(path)
    except WireError:
        path.unlink(missing_ok=True)
        raise


def _check(path: Path) -> None:
    total = chunks = 0
    mend = "ask again; if it comes so again, look at the device itself"
    try:
        with path.open("rb") as file:
            for record in StreamReader(file, emit_chunks=True, record_size_limit=CHUNK_BYTES).records:
                if not isinstance(record, Chunk):
                    continue
                if record.compression not in ("", "zstd"):
                    raise WireError(path.name, f"has a chunk packed by {record.compression[:20]!r}", mend)
                told = frame_content_size(record.data) if record.compression else len(record.data)
                if not 0 <= told == record.uncompressed_size <= CHUNK_BYTES:
                    raise WireError(path.name, f"has a chunk that would unpack into {told:,} bytes", mend)
                total, chunks = total + told, chunks + 1
    except (*DAMAGE, ZstdError) as error:
        raise WireError(path.name, f"is no recording that can be read ({error})", mend) from error
    if not chunks or total > ALL_BYTES:
        raise WireError(path.name, f"would unpack into {total:,} bytes, {chunks} chunks", mend)

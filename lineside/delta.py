"""From one encoder file to another in as few bytes as what was learned: a delta, rebuilt bit for bit and checked.

Retrained weights share no runs of bytes with the old ones, so a byte patch saves nothing. What is small is the
difference of numbers that stand in the same place: zero for weights that did not move, a few steps for INT8 weights
under a scale that was kept. Tensors of the same name, type and size are therefore differenced as integers, modulo
their width (whatever the bits mean, the way back is exact), signs folded into the lowest bit, equal bytes of all
numbers side by side; everything else is spelled out, with the old file's own rest as a dictionary.

    8 bytes    magic
    4 bytes    length of the header, little-endian
    …          header: one zstd frame, msgpack of Header
    …          one zstd frame: all that is spelled out, then all differences
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from io import BytesIO

import msgspec
import numpy as np
import zstandard
from numpy.typing import NDArray

from lineside.errors import ReleaseError
from lineside.files import sha256
from lineside.onnx_graph import tensors
from lineside.targets import MAX_MODEL_BYTES

MAGIC = b"lsdelta1"
MAX_HEADER_BYTES = 1 << 22
PIECE = 1 << 18  # bytes of a tensor that are held beside both files
WINDOW_LOG = 20  # of the frame: what a device needs to unpack it
DICTIONARY = 1 << 22
LEVEL = 19
WIDTHS = (1, 2, 4, 8)


class Span(msgspec.Struct, frozen=True, array_like=True):
    """The next `spelled` bytes stand in the delta; then `length` bytes differ from the base's from `start` on.

    They are numbers of `width` bytes.
    """

    spelled: int
    start: int
    length: int
    width: int


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """Which file it is from and to (SHA-256, bytes), and how the new one is put together."""

    base: str
    base_bytes: int
    made: str
    made_bytes: int
    spans: list[Span]


def make(base: bytes, new: bytes) -> bytes:
    """The delta from one ONNX file to another. Raises ReleaseError (check `delta`) when one of them is none."""
    try:
        spans = _spans(memoryview(base), memoryview(new))
    except ValueError as error:
        raise _refused(f"one of both files is no ONNX ({error})") from error
    header = Header(base=sha256(base), base_bytes=len(base), made=sha256(new), made_bytes=len(new), spans=spans)
    told = zstandard.ZstdCompressor(level=LEVEL).compress(msgspec.msgpack.encode(header))
    how = zstandard.ZstdCompressionParameters.from_level(LEVEL, window_log=WINDOW_LOG)
    packer = zstandard.ZstdCompressor(dict_data=_dictionary(memoryview(base), spans), compression_params=how)
    body = packer.compress(b"".join(_body(memoryview(base), memoryview(new), spans)))
    return MAGIC + struct.pack("<I", len(told)) + told + body


def apply(base: bytes, delta: bytes, expected_sha256: str) -> bytes:
    """The file that `delta` makes of `base`; beside both at most a few PIECEs are held.

    Raises ReleaseError (check `delta`) for bytes that are no whole delta, are from another base or to another file
    than expected, or do not give what they promise.
    """
    header, body = _header(delta)
    if (header.base_bytes, header.base) != (len(base), sha256(base)):
        raise _refused("it is from another file")
    if header.made != expected_sha256:
        raise _refused(f"it is to {header.made}, and {expected_sha256} is wanted")
    try:
        made = _applied(memoryview(base), header, body)
    except (zstandard.ZstdError, ValueError, MemoryError) as error:
        raise _refused(f"it is damaged ({error})") from error
    if sha256(made) != header.made:
        raise _refused("it gives another file than it promises")
    return made


def _header(delta: bytes) -> tuple[Header, memoryview]:
    """Header and the frame behind it, with all sizes checked against each other."""
    start = len(MAGIC) + 4
    length = int.from_bytes(delta[len(MAGIC) : start], "little")
    if delta[: len(MAGIC)] != MAGIC or not 0 < length <= min(MAX_HEADER_BYTES, len(delta) - start):
        raise _refused("it is no delta")
    view = memoryview(delta)
    try:
        with _unpacker().stream_reader(view[start : start + length]) as stream:
            header = msgspec.msgpack.decode(stream.read(MAX_HEADER_BYTES), type=Header)
    except (zstandard.ZstdError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _refused(f"its header cannot be read ({error})") from error
    for span in header.spans:
        inside = 0 <= span.start <= header.base_bytes - span.length and span.length >= 0 <= span.spelled
        if not inside or span.length > PIECE or span.width not in WIDTHS or span.length % span.width:
            raise _refused(f"its header asks for {span}")
    if sum(span.spelled + span.length for span in header.spans) != header.made_bytes <= MAX_MODEL_BYTES:
        raise _refused(f"its parts are not {header.made_bytes} bytes")
    return header, view[start + length :]


def _applied(base: memoryview, header: Header, body: memoryview) -> bytes:
    made = BytesIO()
    with _unpacker(_dictionary(base, header.spans)).stream_reader(body) as stream:
        spelled = BytesIO(_read(stream, sum(span.spelled for span in header.spans)))
        for span in header.spans:
            made.write(spelled.read(span.spelled))
            made.write(_restored(base[span.start : span.start + span.length], _read(stream, span.length), span.width))
        if stream.read(1):
            raise ValueError("more comes than its header says")
    return made.getvalue()


def _unpacker(dictionary: zstandard.ZstdCompressionDict | None = None) -> zstandard.ZstdDecompressor:
    return zstandard.ZstdDecompressor(dict_data=dictionary, max_window_size=1 << WINDOW_LOG)


def _read(stream: zstandard.ZstdDecompressionReader, count: int) -> bytes:
    data = stream.read(count) if count else b""
    if len(data) != count:
        raise ValueError(f"{len(data)} bytes come where {count} were promised")
    return data


def _spans(base: memoryview, new: memoryview) -> list[Span]:
    """Tensors of the new file, in order and in pieces, each with one in the base: of its name, else equal."""
    named = {(one.name, one.data_type, one.end - one.start): one for one in tensors(base)}
    equal = {sha256(base[one.start : one.end]): one for one in tensors(base)}
    spans, at = [], 0
    for tensor in sorted(tensors(new), key=lambda one: one.start):
        old = named.get((tensor.name, tensor.data_type, tensor.end - tensor.start))
        old = old or equal.get(sha256(new[tensor.start : tensor.end]))
        if old is None or (tensor.end - tensor.start) % tensor.width:
            continue
        for offset in range(0, tensor.end - tensor.start, PIECE):
            length = min(PIECE, tensor.end - tensor.start - offset)
            spans.append(Span(tensor.start + offset - at, old.start + offset, length, tensor.width))
            at = tensor.start + offset + length
    return [*spans, Span(len(new) - at, 0, 0, 1)]


def _body(base: memoryview, new: memoryview, spans: Sequence[Span]) -> Iterator[bytes]:
    """What goes into the frame: first what is spelled out, then the differences."""
    starts, at = [], 0
    for span in spans:
        yield bytes(new[at : at + span.spelled])
        starts.append(at + span.spelled)
        at += span.spelled + span.length
    for span, start in zip(spans, starts, strict=True):
        yield _difference(base[span.start : span.start + span.length], new[start : start + span.length], span.width)


def _dictionary(base: memoryview, spans: Sequence[Span]) -> zstandard.ZstdCompressionDict:
    """What of the base stands in no span, up to DICTIONARY bytes of it from its end: cards and nodes hardly change."""
    parts, left, end = [], DICTIONARY, len(base)
    used = sorted((span.start, span.start + span.length) for span in spans if span.length)
    for start, stop in [*reversed(used), (0, 0)]:
        part = base[max(stop, end - left, 0) : end] if stop < end else base[:0]
        parts.append(bytes(part))
        left, end = left - len(part), min(end, start)
    return zstandard.ZstdCompressionDict(b"".join(reversed(parts)), dict_type=zstandard.DICT_TYPE_RAWCONTENT)


def _difference(old: memoryview, new: memoryview, width: int) -> bytes:
    """Differences of little-endian numbers of `width` bytes, signs in the lowest bit, equal bytes side by side.

    >>> _difference(memoryview(bytes([5, 5, 5])), memoryview(bytes([5, 6, 4])), 1)
    b'\\x00\\x02\\x01'
    """
    change = _numbers(new, width) - _numbers(old, width)
    folded = (change << 1) ^ (0 - (change >> (8 * width - 1)))
    return folded.astype(f"<u{width}").view(np.uint8).reshape(-1, width).T.tobytes()


def _restored(old: memoryview, difference: bytes, width: int) -> bytes:
    """The way back.

    >>> _restored(memoryview(bytes([5, 5, 5])), bytes([0, 2, 1]), 1)
    b'\\x05\\x06\\x04'
    """
    planes = np.frombuffer(difference, np.uint8).reshape(width, -1)
    folded = np.ascontiguousarray(planes.T).view(f"<u{width}").reshape(-1)
    change = (folded >> 1) ^ (0 - (folded & 1))
    return (_numbers(old, width) + change).astype(f"<u{width}").tobytes()


def _numbers(data: memoryview, width: int) -> NDArray[np.unsignedinteger]:
    return np.frombuffer(data, f"<u{width}")


def _refused(reason: str) -> ReleaseError:
    return ReleaseError("delta", "delta", reason, "the whole file is fetched instead")

"""The metadata of an ONNX file, read without ONNX: a walk over the protobuf fields of its outermost message.

ModelProto has `repeated StringStringEntryProto metadata_props = 14`, each with `key = 1` and `value = 2`
(onnx/onnx.proto). Everything else is stepped over, so that the cost does not depend on the size of the graph.
"""

from __future__ import annotations

from collections.abc import Iterator

from lineside.errors import ReleaseError

METADATA_PROPS, KEY, VALUE = 14, 1, 2
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def read(data: bytes, name: str) -> dict[str, str]:
    """The metadata properties of the ONNX file `name`, given its bytes.

    Raises ReleaseError (check `card`) for bytes that are no protobuf message, for text that is not UTF-8 and for a
    key that comes twice (two readers could see two cards).
    """
    found: dict[str, str] = {}
    try:
        for number, entry in _fields(memoryview(data)):
            if number == METADATA_PROPS and entry is not None:
                key, value = _entry(entry)
                if key in found:
                    raise ValueError(f"metadata key {key!r} comes twice")
                found[key] = value
    except ValueError as error:  # UnicodeDecodeError is one too
        mend = "export it with `lineside export build`, or copy the file again"
        raise ReleaseError("card", name, f"is no whole ONNX file ({error})", mend) from error
    return found


def _entry(entry: memoryview) -> tuple[str, str]:
    """Key and value of one property; protobuf lets the last of a repeated field win and leaves empty ones out."""
    texts = {number: bytes(text).decode() for number, text in _fields(entry) if text is not None}
    return texts.get(KEY, ""), texts.get(VALUE, "")


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview | None]]:
    """Number and content of each field of one message; None stands for a content that is no run of bytes."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        start = at
        if kind == VARINT:
            _, at = _varint(data, at)
        elif kind == BYTES:
            length, start = _varint(data, at)
            at = start + length
        elif kind in (FIXED64, FIXED32):
            at += 8 if kind == FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind} at byte {start}")
        if number == 0 or at > len(data):
            raise ValueError(f"field {number} at byte {start} does not end within {len(data)} bytes")
        yield number, data[start:at] if kind == BYTES else None


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A base-128 number of at most 64 bits, and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError(f"cut at byte {at}")
        byte, at = data[at], at + 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError(f"number of more than 10 bytes before byte {at}")

"""A walk over the fields of a protobuf message, without a schema and without copying: only places are given.

Protocol Buffers encoding: every field is a tag (number << 3 | wire type), then a varint, 4 or 8 bytes, or a length and
as many bytes (protobuf.dev, Encoding). Groups, which no ONNX file has, are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
WIDTHS = {FIXED64: 8, FIXED32: 4}


class Field(NamedTuple):
    """One field: its number, its wire type, and where its content stands."""

    number: int
    kind: int
    start: int
    end: int


def fields(data: memoryview, start: int = 0, end: int | None = None) -> Iterator[Field]:
    """The fields of the message in `data[start:end]`. Raises ValueError where there is none.

    >>> [tuple(field) for field in fields(memoryview(bytes([8, 1, 18, 2, 7, 7])))]
    [(1, 0, 1, 2), (2, 2, 4, 6)]
    """
    at, end = start, len(data) if end is None else end
    while at < end:
        tag, at = varint(data, at, end)
        number, kind = tag >> 3, tag & 7
        start = at
        if kind == VARINT:
            _, at = varint(data, at, end)
        elif kind == BYTES:
            length, start = varint(data, at, end)
            at = start + length
        elif kind in WIDTHS:
            at += WIDTHS[kind]
        else:
            raise ValueError(f"wire type {kind} at byte {start}")
        if number == 0 or at > end:
            raise ValueError(f"field {number} at byte {start} does not end within {end} bytes")
        yield Field(number, kind, start, at)


def varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    """A base-128 number of at most 64 bits, and the place after it. Raises ValueError.

    >>> varint(memoryview(bytes([0xAC, 2])), 0, 2)
    (300, 2)
    """
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise ValueError(f"cut at byte {at}")
        byte, at = data[at], at + 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError(f"number of more than 10 bytes before byte {at}")

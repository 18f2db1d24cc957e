"""Rows of an outbox file, read straight from its pages and its write-ahead log, however damaged the rest of it is.

SQLite refuses a whole file for one bad page of its head or tree. The rows lie in leaf pages that need neither: each is
parsed by itself, and what its checksum confirms is a row. Rows that were deleted before can come back so; the hub has
their numbers and stores each once.

Source: "Database File Format", https://www.sqlite.org/fileformat2.html, sections 1.5 (b-tree pages), 1.6 (overflow),
2.1 (records), 4 (write-ahead log).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from edge.shelf import PAGE_BYTES, About, Row
from lineside import wire

LEAF = 0x0D
MAX_RECORD = wire.MAX_BYTES + 100
LOG_HEAD, FRAME_HEAD = 32, 24
INTEGER_BYTES = (0, 1, 2, 3, 4, 6, 8)  # by serial type; 8 and 9 are the constants 0 and 1
Value = int | bytes | None
Page = Callable[[int], bytes]  # by number, from 1; empty where the file has none


def read(path: Path) -> Iterator[About | Row]:
    """Every row and every word about an epoch that is whole; pages in order of their number. Raises OSError.

    A row's place is as in the file. One page is in memory at a time, besides the log.
    """
    log_path = path.with_name(path.name + "-wal")
    log = log_path.read_bytes() if log_path.exists() else b""
    newer = logged(log)
    with path.open("rb") as file:
        pages = -(-file.seek(0, 2) // PAGE_BYTES)

        def page(number: int) -> bytes:
            if number in newer:
                return log[newer[number] : newer[number] + PAGE_BYTES]
            file.seek(max(number - 1, 0) * PAGE_BYTES)
            return file.read(PAGE_BYTES) if number > 0 else b""

        for number in range(1, max([pages, *newer]) + 1):
            yield from found_in(page(number), page)


def logged(log: bytes) -> dict[int, int]:
    """Where in the log the newest committed copy of each page begins.

    Frames of the log's present round carry its salt; those after the last commit never happened.
    """
    committed: dict[int, int] = {}
    open_: dict[int, int] = {}
    salt = log[LOG_HEAD + 8 : LOG_HEAD + 16]  # of the first frame: the log's own head may be what is damaged
    for at in range(LOG_HEAD, len(log) - FRAME_HEAD - PAGE_BYTES + 1, FRAME_HEAD + PAGE_BYTES):
        number, commit = struct.unpack_from(">II", log, at)
        if log[at + 8 : at + 16] != salt:
            break
        open_[number] = at + FRAME_HEAD
        if commit:
            committed.update(open_)
            open_.clear()
    return committed


def found_in(data: bytes, page: Page) -> Iterator[About | Row]:
    """What one page holds, where it is a leaf of a table of ours."""
    if len(data) < PAGE_BYTES or data[0] != LEAF:
        return
    cells = min(struct.unpack_from(">H", data, 3)[0], (PAGE_BYTES - 8) // 2)
    for (at,) in struct.iter_unpack(">H", data[8 : 8 + 2 * cells]):
        try:
            key, values = record(data, at, page)
            told = _told(key, values)
        except (IndexError, ValueError, struct.error):
            continue
        if told is not None:
            yield told


def _told(key: int, values: list[Value]) -> About | Row | None:
    """A row of one of our tables, if it is one and its checksum confirms it."""
    if len(values) == 6 and all(isinstance(value, int) for value in values[1:]):
        about = About(key, *values[1:5])  # type: ignore[arg-type]
        return about if about.sum == values[5] else None
    if (
        len(values) == 5
        and isinstance(values[1], bytes)
        and isinstance(values[2], int)
        and isinstance(values[4], bytes)
    ):
        row = Row(key, values[1].decode(), values[2], values[4])
        return row if row.sum == values[3] else None
    return None


def record(data: bytes, at: int, page: Page) -> tuple[int, list[Value]]:
    """Key and columns of the cell that begins at `at`. Raises IndexError, ValueError or struct.error for nonsense.

    >>> record(bytes([6, 9, 3, 1, 16, 7, 104, 105]), 0, lambda _: b"")
    (9, [7, b'hi'])
    """
    size, at = varint(data, at)
    if not 0 < size <= MAX_RECORD:
        raise ValueError(f"a record of {size} bytes is none of ours")
    key, at = varint(data, at)
    body = payload(data, at, size, page)
    head, at = varint(body, 0)
    types = []
    while at < head:
        kind, at = varint(body, at)
        types.append(kind)
    values: list[Value] = []
    for kind in types:
        length = INTEGER_BYTES[kind] if kind < 7 else 0 if kind < 12 else (kind - 12) // 2
        if at + length > len(body):
            raise ValueError("a column ends beyond its record")
        values.append(_value(kind, body[at : at + length]))
        at += length
    return key, values


def payload(data: bytes, at: int, size: int, page: Page) -> bytes:
    """A record's bytes, also where they run over into further pages."""
    most, least = PAGE_BYTES - 35, (PAGE_BYTES - 12) * 32 // 255 - 23
    if size <= most:
        return data[at : at + size]
    spill = least + (size - least) % (PAGE_BYTES - 4)
    local = spill if spill <= most else least
    parts, left = [data[at : at + local]], size - local
    (following,) = struct.unpack_from(">I", data, at + local)
    while left > 0 and following:
        more = page(following)
        (following,) = struct.unpack_from(">I", more, 0)
        parts.append(more[4 : 4 + min(left, PAGE_BYTES - 4)])
        left -= PAGE_BYTES - 4
    return b"".join(parts)


def varint(data: bytes, at: int) -> tuple[int, int]:
    """A variable-length integer (signed, 64 bits) and where the next thing begins.

    >>> varint(bytes([0x81, 0x00]), 0), varint(bytes([255] * 9), 0)
    ((128, 2), (-1, 9))
    """
    value = 0
    for count in range(9):
        byte = data[at + count]
        if count == 8:
            value = value << 8 | byte
            return (value - (1 << 64) if value >> 63 else value), at + 9
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + count + 1
    raise ValueError("unreachable: nine bytes always end a varint")


def _value(kind: int, data: bytes) -> Value:
    if kind == 0:
        return None
    if kind < 7:
        return int.from_bytes(data, "big", signed=True)
    if kind in {8, 9}:
        return kind - 8
    if kind < 12:
        raise ValueError(f"serial type {kind} is none of ours")
    return data

"""Scores and alarms as CSV (RFC 4180) or Parquet, written while they are read: in the same memory for any span.

Both have the same columns: those of the message (lineside.messages), of an alarm also its state and label. In CSV
a cell that is a table or a list is JSON, and beside each time in nanoseconds, which a spreadsheet would round, stands
the same in words (`start_ns`, `start_utc`; ISO 8601 to the microsecond).
"""

from __future__ import annotations

import csv
import io
import itertools
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from hub.alarms import Event
from lineside.errors import LinesideError
from lineside.messages import Alarm, Message, Score

if TYPE_CHECKING:
    import pyarrow

CSV_ROWS, PARQUET_ROWS = 500, 5000
Form = Literal["csv", "parquet"]
MEDIA: dict[Form, str] = {"csv": "text/csv; charset=utf-8", "parquet": "application/vnd.apache.parquet"}


@dataclass(frozen=True)
class Column:
    """One column: the type of its cells, and where a cell comes from."""

    kind: Any
    cell: Callable[[Any], Any]


def _fields(kind: type[msgspec.Struct], under: str = "", but: tuple[str, ...] = ()) -> dict[str, Column]:
    """A column a field, those that every message begins with first."""
    fields = [field for field in msgspec.structs.fields(kind) if field.name not in but]
    fields.sort(key=lambda field: field.name not in Message.__struct_fields__)
    return {field.name: Column(field.type, attrgetter(under + field.name)) for field in fields}


def _label(name: str) -> Callable[[Event], str]:
    """A part of people's last word on an alarm; empty where nobody said anything."""
    return lambda event: getattr(event.label, name, "")


SHEETS: dict[str, dict[str, Column]] = {
    "score": _fields(Score),
    "alarm": {
        **_fields(Alarm, "raised.", but=("state", "pictures", "like")),
        "state": Column(str, attrgetter("state")),
        "cleared_ns": Column(int, attrgetter("cleared_ns")),
        "acknowledged_by": Column(str, attrgetter("acknowledged_by")),
        "acknowledged_ns": Column(int, attrgetter("acknowledged_ns")),
        "label": Column(str, _label("word")),
        "fault": Column(str, _label("kind")),
        "labelled_by": Column(str, _label("who")),
    },
}


def write(kind: str, form: Form, found: Iterable[Score | Event]) -> Iterator[bytes]:
    """The file of all of `found`, piece by piece. Raises LinesideError at once where Parquet is not installed."""
    return (_csv if form == "csv" else _parquet)(SHEETS[kind], found)


def _csv(sheet: dict[str, Column], found: Iterable[Any]) -> Iterator[bytes]:
    sheet = {each: column for name, own in sheet.items() for each, column in _with_words(name, own).items()}

    def pieces() -> Iterator[bytes]:
        yield _lines([list(sheet)])
        for some in _batches(found, CSV_ROWS):
            yield _lines([[_text(column.cell(one)) for column in sheet.values()] for one in some])

    return pieces()


def _with_words(name: str, column: Column) -> dict[str, Column]:
    """A column, and that of its time in words where it is a time."""
    if not name.endswith("_ns"):
        return {name: column}
    return {name: column, f"{name.removesuffix('_ns')}_utc": Column(str, lambda one: _utc(column.cell(one)))}


def _utc(time_ns: int | None) -> str:
    """A wall-clock time in words; empty where there is none.

    >>> _utc(1_700_000_000_123_456_789), _utc(0)
    ('2023-11-14T22:13:20.123456Z', '')
    """
    if not time_ns:
        return ""
    moment = datetime.fromtimestamp(time_ns // 10**9, timezone.utc).replace(microsecond=time_ns % 10**9 // 1000)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _lines(rows: list[list[Any]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _text(cell: Any) -> Any:
    return msgspec.json.encode(cell).decode() if isinstance(cell, dict | list) else cell


def _parquet(sheet: dict[str, Column], found: Iterable[Any]) -> Iterator[bytes]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        mend = "take form=csv, or install lineside[export-parquet] beside the hub"
        raise LinesideError("parquet", "pyarrow is not installed", mend) from error
    schema = pa.schema([(name, _arrow(column.kind)) for name, column in sheet.items()])

    def pieces() -> Iterator[bytes]:
        sink = _Sink()
        with parquet.ParquetWriter(pa.PythonFile(sink, mode="w"), schema, compression="zstd") as writer:
            for some in _batches(found, PARQUET_ROWS):
                cells = [[_cell(column.cell(one)) for one in some] for column in sheet.values()]
                arrays = [pa.array(values, kind) for values, kind in zip(cells, schema.types, strict=True)]
                writer.write_table(pa.Table.from_arrays(arrays, schema=schema), row_group_size=PARQUET_ROWS)
                yield sink.taken()
        yield sink.taken()

    return pieces()


def _cell(cell: Any) -> Any:
    """Arrow takes a map as a list of pairs."""
    return list(cell.items()) if isinstance(cell, dict) else cell


def _arrow(kind: Any) -> pyarrow.DataType:
    """The column type of a field's type."""
    import pyarrow as pa

    plain = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    origin, inner = get_origin(kind), get_args(kind)
    if origin is dict:
        return pa.map_(_arrow(inner[0]), _arrow(inner[1]))
    if origin is list:
        return pa.list_(_arrow(inner[0]))
    if origin in (Annotated, types.UnionType, Union):  # of Annotated types `|` makes the older Union
        return _arrow(inner[0])
    return plain[str if origin is Literal else kind]


def _batches(found: Iterable[Any], size: int) -> Iterator[list[Any]]:
    rest = iter(found)
    while some := list(itertools.islice(rest, size)):
        yield some


class _Sink(io.RawIOBase):
    """Takes what a writer writes until somebody takes it away."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._told = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._told

    def write(self, data: Any) -> int:
        self._pieces.append(bytes(data))
        self._told += len(self._pieces[-1])
        return len(self._pieces[-1])

    def taken(self) -> bytes:
        """All that was written since it was taken last."""
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)

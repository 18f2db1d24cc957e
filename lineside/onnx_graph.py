"""What stands where in an ONNX file, without ONNX: constant tensors and nodes, as places in its bytes.

ModelProto has `graph = 7`; GraphProto `node = 1` and `initializer = 5`; NodeProto `input = 1`, `output = 2` and
`op_type = 4`; TensorProto `data_type = 2`, `name = 8` and `raw_data = 9` (onnx/onnx.proto).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lineside.protobuf import BYTES, VARINT, Field, fields

GRAPH, NODE, INITIALIZER = 7, 1, 5
INPUT, OUTPUT, OP_TYPE = 1, 2, 4
DATA_TYPE, NAME, RAW_DATA = 2, 8, 9
WIDTHS = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}  # bytes of one number
UINT8, INT8 = 2, 3


@dataclass(frozen=True)
class Tensor:
    """A constant: its numbers are `data[start:end]`, `data_type` (TensorProto.DataType) is the varint at `type_at`."""

    name: str
    data_type: int
    type_at: int
    start: int
    end: int

    @property
    def width(self) -> int:
        """Bytes of one number; 1 for a type that has none."""
        return WIDTHS.get(self.data_type, 1)


@dataclass(frozen=True)
class Node:
    """One operator with the names of what it takes and gives."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def tensors(data: memoryview) -> list[Tensor]:
    """The constants whose numbers stand as raw bytes, in the file's order. Raises ValueError when it is no protobuf."""
    return [found for field in _inside(data, INITIALIZER) if (found := _tensor(data, field)) is not None]


def nodes(data: memoryview) -> list[Node]:
    """The operators, in the file's order. Raises ValueError when it is no protobuf."""
    return [_node(data, field) for field in _inside(data, NODE)]


def _inside(data: memoryview, number: int) -> Iterator[Field]:
    for graph in fields(data):
        if graph.number == GRAPH and graph.kind == BYTES:
            yield from (
                field
                for field in fields(data, graph.start, graph.end)
                if field.number == number and field.kind == BYTES
            )


def _tensor(data: memoryview, place: Field) -> Tensor | None:
    found = {field.number: field for field in fields(data, place.start, place.end)}
    kind, raw = found.get(DATA_TYPE), found.get(RAW_DATA)
    if kind is None or raw is None or kind.kind != VARINT or raw.kind != BYTES or kind.end != kind.start + 1:
        return None
    name = found.get(NAME)
    text = _text(data, name) if name is not None else ""
    return Tensor(text, data[kind.start], kind.start, raw.start, raw.end)


def _node(data: memoryview, place: Field) -> Node:
    parts = [field for field in fields(data, place.start, place.end) if field.kind == BYTES]
    texts = {number: [_text(data, field) for field in parts if field.number == number] for number in (1, 2, 4)}
    return Node("".join(texts[OP_TYPE][-1:]), tuple(texts[INPUT]), tuple(texts[OUTPUT]))


def _text(data: memoryview, field: Field) -> str:
    return bytes(data[field.start : field.end]).decode()

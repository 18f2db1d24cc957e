"""The metadata of an ONNX file, read without ONNX: a walk over the protobuf fields of its outermost message.

ModelProto has `repeated StringStringEntryProto metadata_props = 14`, each with `key = 1` and `value = 2`
(onnx/onnx.proto). Everything else is stepped over, so that the cost does not depend on the size of the graph.
"""

from __future__ import annotations

from lineside.errors import ReleaseError
from lineside.protobuf import BYTES, Field, fields

METADATA_PROPS, KEY, VALUE = 14, 1, 2


def read(data: bytes, name: str) -> dict[str, str]:
    """The metadata properties of the ONNX file `name`, given its bytes.

    Raises ReleaseError (check `card`) for bytes that are no protobuf message, for text that is not UTF-8 and for a
    key that comes twice (two readers could see two cards).
    """
    found: dict[str, str] = {}
    try:
        for entry in fields(whole := memoryview(data)):
            if entry.number == METADATA_PROPS and entry.kind == BYTES:
                key, value = _entry(whole, entry)
                if key in found:
                    raise ValueError(f"metadata key {key!r} comes twice")
                found[key] = value
    except ValueError as error:  # UnicodeDecodeError is one too
        mend = "export it with `lineside export build`, or copy the file again"
        raise ReleaseError("card", name, f"is no whole ONNX file ({error})", mend) from error
    return found


def _entry(data: memoryview, entry: Field) -> tuple[str, str]:
    """Key and value of one property; protobuf lets the last of a repeated field win and leaves empty ones out."""
    inside = fields(data, entry.start, entry.end)
    texts = {one.number: bytes(data[one.start : one.end]).decode() for one in inside if one.kind == BYTES}
    return texts.get(KEY, ""), texts.get(VALUE, "")

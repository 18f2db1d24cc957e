"""The metadata walker beside ONNX's own reader, and against bytes that are no ONNX file."""

from __future__ import annotations

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from lineside import onnx_metadata, release
from lineside.errors import ReleaseError
from tests import tiny_encoder

FILE = tiny_encoder.model(tiny_encoder.card())


def test_the_card_of_a_real_file() -> None:
    expected = {entry.key: entry.value for entry in onnx.load_from_string(FILE).metadata_props}
    assert onnx_metadata.read(FILE, "camera-1.onnx") == expected
    assert release.from_metadata(expected, "camera-1.onnx") == tiny_encoder.card()


@given(st.dictionaries(st.text(max_size=20), st.text(max_size=300), max_size=8))
def test_it_reads_what_onnx_writes(metadata: dict[str, str]) -> None:
    model = helper.make_model(helper.make_graph([], "g", [], []))
    helper.set_model_props(model, metadata)
    assert onnx_metadata.read(model.SerializeToString(), "m") == metadata


def only_texts_or_a_refusal(data: bytes) -> None:
    check, texts = "card", []
    try:
        texts = [text for pair in onnx_metadata.read(data, "m.onnx").items() for text in pair]
    except ReleaseError as refused:
        check = refused.check
    assert check == "card"
    assert all(isinstance(text, str) for text in texts)


@settings(max_examples=500)
@given(st.binary(max_size=400))
def test_garbage_gives_texts_or_a_refusal(data: bytes) -> None:
    only_texts_or_a_refusal(data)


@settings(max_examples=300)
@given(st.integers(0, len(FILE) - 1), st.binary(min_size=1, max_size=4))
def test_damage_anywhere_gives_texts_or_a_refusal(at: int, put: bytes) -> None:
    only_texts_or_a_refusal(FILE[:at] + put + FILE[at + len(put) :])


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"\x72\x05\x0a\x01", "does not end"),  # field 14 of 5 bytes, 2 there
        (b"\x72" + b"\xff" * 9 + b"\x01", "does not end"),  # a length of 2**64 - 1
        (b"\xff" * 11, "more than 10 bytes"),
        (b"\x08", "cut at byte 1"),
        (b"\x0b", "wire type 3"),
        (b"\x00\x00", "field 0"),
        (b"\x72\x03\x0a\x01\xff", "utf-8"),
        (b"\x72\x03\x0a\x01k" * 2, "comes twice"),
    ],
)
def test_each_way_of_not_being_a_file_is_told(data: bytes, told: str) -> None:
    with pytest.raises(ReleaseError, match=told):
        onnx_metadata.read(data, "m.onnx")


def test_a_cut_file_has_no_card() -> None:
    with pytest.raises(ReleaseError) as refused:
        release.from_metadata(onnx_metadata.read(FILE[: len(FILE) // 2], "m.onnx"), "m.onnx")
    assert refused.value.check == "card"

"""Deltas: rebuilt bit for bit, small where little was learned, and refused by name whatever is wrong with them."""

from __future__ import annotations

import struct
import tracemalloc

import msgspec
import numpy as np
import onnx
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from deploy import deltas
from lineside import delta
from lineside.errors import ReleaseError
from lineside.files import sha256
from lineside.targets import Candidate, Pointer
from tests import tiny_encoder

TYPES = (np.float32, np.float16, np.int8, np.int64, np.uint8)


def model(tensors: dict[str, np.ndarray], note: str = "") -> bytes:
    initializers = [numpy_helper.from_array(values, name) for name, values in tensors.items()]
    made = helper.make_model(helper.make_graph([], "g", [], [], initializers))
    made.doc_string = note
    return made.SerializeToString()


def weights(seed: int = 0, **changes: np.ndarray) -> dict[str, np.ndarray]:
    chance = np.random.default_rng(seed)
    found = {f"w{k}": chance.normal(size=(64, 33)).astype(kind) for k, kind in enumerate(TYPES)}
    found["int8"] = chance.integers(-127, 128, (3, 333_333)).astype(np.int8)  # of more than one piece
    return {**found, **changes}


BASE = model(weights())
NEW = model(weights(w0=weights()["w0"] + 1e-4, extra=np.ones(5, np.float32)), "of another day")
DELTA = delta.make(BASE, NEW)


def refused(base: bytes, patch: bytes, wanted: str) -> str:
    with pytest.raises(ReleaseError) as found:
        delta.apply(base, patch, wanted)
    assert found.value.check == "delta"
    return str(found.value)


def test_what_did_not_move_costs_nothing() -> None:
    assert delta.apply(BASE, DELTA, sha256(NEW)) == NEW
    assert len(DELTA) < weights()["w0"].nbytes
    assert len(delta.make(BASE, BASE)) < 1000


def test_steps_of_a_few_weights_cost_bits() -> None:
    old = weights()["int8"]
    chance = np.random.default_rng(1)
    new = np.where(chance.random(old.shape) < 0.05, old + chance.integers(-1, 2, old.shape), old)
    made = model(weights(int8=new.astype(np.int8)))
    patch = delta.make(BASE, made)
    assert delta.apply(BASE, patch, sha256(made)) == made
    assert len(patch) < 0.07 * old.nbytes


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(TYPES), st.integers(0, 70), st.integers(0, 3)), max_size=5
    ),
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(TYPES), st.integers(0, 70), st.integers(0, 3)), max_size=5
    ),
    st.text(max_size=40),
)
def test_any_two_files_come_back_bit_for_bit(old: list, new: list, note: str) -> None:
    def made(rows: list, text: str) -> bytes:
        return model(
            {n: (np.random.default_rng(seed).normal(size=size) * 99).astype(kind) for n, kind, size, seed in rows}, text
        )

    base, wanted = made(old, ""), made(new, note)
    assert delta.apply(base, delta.make(base, wanted), sha256(wanted)) == wanted


def test_two_cards_of_a_real_file_too() -> None:
    base, wanted = (tiny_encoder.model(tiny_encoder.card("camera", version)) for version in (1, 2))
    patch = delta.make(base, wanted)
    assert delta.apply(base, patch, sha256(wanted)) == wanted
    assert len(patch) < 0.1 * len(wanted)


def test_another_base_or_another_file_is_refused() -> None:
    assert "from another file" in refused(NEW, DELTA, sha256(NEW))
    assert "is wanted" in refused(BASE, DELTA, sha256(BASE))
    assert "no delta" in refused(BASE, BASE, sha256(NEW))
    with pytest.raises(ReleaseError, match="no ONNX"):
        delta.make(BASE, b"\xff" * 99)


@pytest.mark.slow
@settings(max_examples=300)
@given(st.integers(0, len(DELTA) - 1), st.binary(max_size=12), st.integers(0, 40))
def test_a_changed_delta_is_refused_or_gives_the_file(at: int, put: bytes, gone: int) -> None:
    spoilt = DELTA[:at] + put + DELTA[at + gone :]
    try:
        made = delta.apply(BASE, spoilt, sha256(NEW))
    except ReleaseError as error:
        made = NEW if error.check == "delta" else b""
    assert made == NEW


@pytest.mark.slow
@settings(max_examples=300)
@given(st.binary(max_size=300))
def test_wild_bytes_are_refused(data: bytes) -> None:
    refused(BASE, data, sha256(NEW))
    refused(BASE, delta.MAGIC + data, sha256(NEW))


wild = st.integers(-(2**40), 2**40) | st.sampled_from([0, 1, 2, 4, 8, len(BASE), delta.PIECE])


@pytest.mark.slow
@settings(max_examples=300)
@given(st.lists(st.tuples(wild, wild, wild, wild), max_size=4), wild, st.binary(max_size=60))
def test_a_header_that_asks_for_anything_is_refused(spans: list, size: int, body: bytes) -> None:
    told = {"base": sha256(BASE), "base_bytes": len(BASE), "made": sha256(NEW), "made_bytes": size, "spans": spans}
    header = zstandard.compress(msgspec.msgpack.encode(told))
    refused(BASE, delta.MAGIC + struct.pack("<I", len(header)) + header + body, sha256(NEW))


@pytest.mark.slow
def test_applying_holds_both_files_and_little_more() -> None:
    chance = np.random.default_rng(5)
    old = {"w": chance.normal(size=4_000_000).astype(np.float32)}
    base, wanted = model(old), model({"w": old["w"] + chance.normal(size=4_000_000).astype(np.float32) * 1e-6})
    del old
    patch = delta.make(base, wanted)
    tracemalloc.start()
    try:
        delta.apply(base, patch, sha256(wanted))
        assert tracemalloc.get_traced_memory()[1] < 1.5 * len(wanted)  # the base itself comes on top of that
    finally:
        tracemalloc.stop()


def test_deltas_are_made_from_what_is_in_the_field_where_they_save_something() -> None:
    pointer = Pointer(version=5, targets={}, history=[1, 2, 3], candidate=Candidate(rollout="r", version=6, targets={}))
    assert deltas.in_field(pointer) == [5, 6, 3, 2]
    assert deltas.in_field(None) == []
    other = model({"w": np.ones(9)})
    found = deltas.towards("models/camera/camera-7.onnx", NEW, [BASE, NEW, other])
    assert list(found) == [f"models/camera/camera-7.from-{sha256(BASE)[:16]}.delta"]
    small = [tiny_encoder.model(tiny_encoder.card("camera", version)) for version in (1, 2)]
    assert not deltas.towards("models/camera/camera-2.onnx", small[1], small[:1])


def test_a_file_of_ours_is_read_by_onnx() -> None:
    assert onnx.load_from_string(delta.apply(BASE, DELTA, sha256(NEW))).doc_string == "of another day"

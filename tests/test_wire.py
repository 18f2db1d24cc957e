"""Messages and topics: what two parts must agree on."""

import contextlib
import re

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lineside import topics, wire
from lineside.errors import WireError
from lineside.messages import (
    Ack,
    Alarm,
    Command,
    Embedding,
    Embeddings,
    Health,
    Installed,
    Manifest,
    Message,
    Piece,
    Score,
    StationState,
    Tombstone,
)

HEAD = {"device": "edge-1", "epoch": 3, "seq": 7}
EXAMPLES = {
    "embedding": Embeddings(
        **HEAD, station="s", start_ns=1, end_ns=2, embeddings=[Embedding("cam0", "camera", "1", "s", b"\0" * 256)]
    ),
    "score": Score(
        **HEAD,
        station="s",
        start_ns=1,
        end_ns=2,
        evidence=1.0,
        p_value=0.3,
        limit=0.01,
        contributions={"cam0": 1.0},
        without={},
        agreements={},
        modalities={"cam0": "camera"},
        absent={"mic0": "silent"},
        versions={"camera": "1"},
        skew_ms=0.4,
    ),
    "alarm": Alarm(
        **HEAD,
        station="s",
        key="k",
        kind="sensor",
        state="raised",
        subject="mic0",
        top_sensor="mic0",
        top_modality="microphone",
        onset_ns=1,
        time_ns=2,
        p_value=1.0,
        evidence=0.0,
        contributions={},
        versions={},
        limits={},
        text="t",
        pictures={"mic0": b"\xff\xd8"},
    ),
    "health": Health(
        **HEAD,
        station="s",
        agent="0",
        time_ns=1,
        uptime_s=1.0,
        state="watching",
        sensors={},
        encoders={},
        windows=1,
        moments=1,
        scores=1,
        outbox_messages=0,
        outbox_bytes=0,
        dropped_messages=0,
        problems=[],
    ),
    "manifest": Manifest(
        **HEAD,
        station="s",
        time_ns=5,
        agent="0.1",
        encoders={"camera": Installed(version=2, sha256="a" * 64, precision="int8", since_ns=4, phase="probation")},
        key="b" * 64,
        signature="c" * 128,
    ),
    "tombstone": Tombstone(**HEAD, ranges=[(1, 4)], reason="outbox full", time_ns=5),
    "evidence": Piece(device="edge-1", recording="a.mcap", size=9, sha256="a" * 64, offset=4, data=b"\0\xff"),
    "ack": Ack(device="edge-1", epoch=3, ranges=[(1, 4), (6, 6)]),
    "state": StationState("product b", 7),
    "cmd": Command(id="1", op="rollback", args={"modality": "camera"}),
}


@pytest.mark.parametrize("kind", [kind for kind, row in topics.TOPICS.items() if row.payload])
def test_every_row_of_the_table_travels(kind):
    message = EXAMPLES[kind]
    assert wire.kind_of(message) == kind
    assert wire.decode(kind, wire.encode(message)) == message


@pytest.mark.parametrize("kind", [kind for kind, row in topics.TOPICS.items() if row.stored])
def test_every_stored_message_can_be_numbered(kind):
    message = EXAMPLES[kind]
    assert isinstance(message, Message)
    assert (again := wire.stamped(message, 9, 10)).epoch == 9
    assert again.seq == 10


def test_the_embeddings_of_camera_and_microphone_take_at_most_640_bytes():
    two = [Embedding(n, m, "12", "s-0123456789ab", bytes(256)) for n, m in [("cam0", "camera"), ("mic0", "microphone")]]
    head = {"device": "edge-1", "epoch": 2**60, "seq": 2**31}
    message = Embeddings(**head, station="press-1", start_ns=2**60, end_ns=2**60, embeddings=two)
    assert len(wire.encode(message)) <= 640


def test_a_newer_sender_may_add_fields_and_wrong_types_are_refused():
    raw = msgspec.json.decode(wire.encode(EXAMPLES["score"]))
    assert wire.decode("score", msgspec.json.encode({**raw, "news": 1})) == EXAMPLES["score"]
    with pytest.raises(WireError, match="not a score message"):
        wire.decode("score", msgspec.json.encode({**raw, "p_value": "low"}))


@given(st.sampled_from(sorted(k for k, row in topics.TOPICS.items() if row.payload)), st.binary(max_size=300))
def test_garbage_is_refused_and_never_crashes(kind, payload):
    with contextlib.suppress(WireError):
        assert isinstance(wire.decode(kind, payload), msgspec.Struct)


def test_oversized_payloads_are_refused_before_they_are_parsed():
    with pytest.raises(WireError, match="send at most"):
        wire.decode("score", b" " * (wire.MAX_BYTES + 1))


@given(hnp.arrays(np.float32, 128, elements=st.floats(-1, 1, width=32)))
def test_an_embedding_keeps_half_precision(vector):
    assert np.abs(wire.unpack(wire.pack(vector)) - vector).max() <= 2**-11


@pytest.mark.parametrize(
    "topic", ["", "a/b", "lineside/v1/l/d/nothing", "lineside/v1/l/d/score/more", "other/v1/l/d/score"]
)
def test_topics_that_are_not_ours_are_refused(topic):
    with pytest.raises(WireError):
        topics.parse(topic)


def test_names_and_filters_fit_the_table():
    assert topics.parse(topics.name("l", "d", "cmd", "update", "x")) == ("l", "d", "cmd", ("update", "x"))
    with pytest.raises(ValueError, match="no such topic"):
        topics.name("l", "d+", "score")
    with pytest.raises(ValueError, match="no such topic"):
        topics.name("l", "d", "cmd")


def test_a_device_may_touch_only_its_own_subtree():
    for access, pattern in topics.rules("device", "l", "d"):
        assert re.match(r"lineside/(v1|\+)/l/d/", pattern)
        assert access in {"read", "write", "readwrite"}
    assert ("write", "lineside/v1/l/d/score") in topics.rules("device", "l", "d")
    assert ("read", "lineside/v1/l/d/ack") in topics.rules("device", "l", "d")

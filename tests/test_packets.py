"""MQTT 5 by the socket buffer: what paho writes and what a broker sends, cut anywhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub import packets
from hub.packets import CONNACK, PINGREQ_BYTES, PUBACK, SUBACK, Publish, Word
from lineside.errors import WireError

MESSAGES = st.lists(
    st.tuples(st.binary(min_size=1, max_size=30), st.integers(0, 65_535), st.binary(max_size=400)), max_size=8
)


@given(MESSAGES, st.lists(st.integers(1, 50), min_size=1, max_size=20))
def test_a_stream_is_read_the_same_however_it_is_cut(said: list[tuple[bytes, int, bytes]], cuts: list[int]) -> None:
    stream = b"".join(packets.publish(topic, payload, packet) + PINGREQ_BYTES for topic, packet, payload in said)
    messages, words, left, at = [], 0, b"", 0
    while at < len(stream):
        step = cuts[at % len(cuts)]
        heard = packets.read(left + stream[at : at + step])
        messages, words, left, at = messages + heard.messages, words + len(heard.words), heard.left, at + step
    assert messages == [Publish(topic, packet, payload) for topic, packet, payload in said]
    assert (words, left) == (len(said), b"")


@given(st.binary(max_size=200))
def test_noise_is_read_or_refused_by_name(noise: bytes) -> None:
    try:
        heard = packets.read(noise)
    except WireError:
        return
    assert noise.endswith(heard.left)


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        (b"\x32\xff\xff\xff\xff\x01", "more than four bytes"),
        (b"\x32\xff\xff\xff\x7f", "packet of 268435455 bytes"),
        (b"\x32\x04\x00\x09ab", "before its properties"),
        (b"\x32\x06\x00\x01a\x00\x07\x05", "within its properties"),
    ],
)
def test_what_is_no_mqtt_is_refused(bad: bytes, named: str) -> None:
    with pytest.raises(WireError, match=named):
        packets.read(bad)


def test_properties_of_a_message_are_stepped_over() -> None:
    body = b"\x00\x01a" + b"\x00\x09" + b"\x05\x02\x00\x00\x00\x3c" + b"payload"  # message expiry of 60 s
    assert packets.read(b"\x32" + bytes([len(body)]) + body).messages == [Publish(b"a", 9, b"payload")]


def test_a_connack_says_how_much_the_broker_takes() -> None:
    assigned = b"\x12\x00\x03abc" + b"\x22\x00\x0a" + b"\x26\x00\x01k\x00\x01v" + b"\x25\x01"
    properties = assigned + b"\x21\x00\x14"
    assert packets.broker_takes(Word(CONNACK, b"\0\0" + bytes([len(properties)]) + properties)) == 20
    assert packets.broker_takes(Word(CONNACK, b"\0\0" + bytes([len(assigned)]) + assigned)) == 65_535
    with pytest.raises(WireError, match="0x7f"):
        packets.broker_takes(Word(CONNACK, b"\0\0\x02\x7f\x00"))


def test_refusals_are_seen() -> None:
    assert packets.reason(Word(CONNACK, b"\0\x87\0")) == 0x87
    assert (packets.reason(Word(PUBACK, b"\0\x01")), packets.reason(Word(PUBACK, b"\0\x01\x87"))) == (0, 0x87)
    assert packets.refused(Word(SUBACK, b"\0\x01\0\x01\x87\x01")) == 1

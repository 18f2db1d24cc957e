"""MQTT 5 packets as bytes: the ten that a hub needs, read by the socket buffer and not one by one. Pure.

Source: OASIS MQTT Version 5.0; the sections are named at each function. paho reads each packet with three calls of
recv and hands it through five functions, which is what bounds a hub on it (docs/decisions/0024-ingest.md).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from lineside.errors import WireError

CONNACK, PUBLISH, PUBACK, SUBACK, PINGRESP, DISCONNECT = 0x20, 0x30, 0x40, 0x90, 0xD0, 0xE0
PINGREQ_BYTES = b"\xc0\x00"
DISCONNECT_BYTES = b"\xe0\x00"
NAME, PASSWORD, CLEAN_START = 0x80, 0x40, 0x02
RECEIVE_MAXIMUM, MAXIMUM_PACKET_SIZE = 0x21, 0x27
MAX_PACKET = 2 * 1024 * 1024
FAILURE = 0x80  # reason codes from here on say that something was refused
_TAKEN = struct.Struct(">BBH")


class Publish(NamedTuple):
    """A message as it came; `packet` is the number under which the broker awaits our PUBACK, 0 at QoS 0."""

    topic: bytes
    packet: int
    payload: bytes


class Word(NamedTuple):
    """Any other packet: its type (upper four bits) and what follows the length."""

    type: int
    body: bytes

    @property
    def packet(self) -> int:
        """Packet number of a PUBACK or SUBACK."""
        return int.from_bytes(self.body[:2], "big")


@dataclass
class Heard:
    """What stood in a stretch of the stream, each list in the order of arrival; `left` is the beginning of a packet."""

    messages: list[Publish] = field(default_factory=list)
    words: list[Word] = field(default_factory=list)
    left: bytes = b""


def read(data: bytes) -> Heard:
    """All whole packets of `data` (sections 2.1 and 3.3). Raises WireError for what is not MQTT 5, or too long.

    >>> read(publish(b"a/b", b"hello", 7) + PINGREQ_BYTES[:1])
    Heard(messages=[Publish(topic=b'a/b', packet=7, payload=b'hello')], words=[], left=b'\\xc0')
    """
    heard, at, end = Heard(), 0, len(data)
    messages = heard.messages
    while at + 2 <= end:
        size, body = data[at + 1], at + 2
        if size & 0x80:
            size, body = _number(data, at + 1)
        if body == 0 or body + size > end:
            break
        kind, at = data[at], body + size
        if kind & 0xF0 == PUBLISH:
            messages.append(_publish(data, kind, body, at))
        else:
            heard.words.append(Word(kind & 0xF0, data[body:at]))
    heard.left = data[at:]
    return heard


def _publish(data: bytes, kind: int, at: int, end: int) -> Publish:
    topic_end = at + 2 + (data[at] << 8 | data[at + 1] if at + 2 <= end else 0)
    here, packet = topic_end, 0
    if kind & 0x06:
        here += 2
        packet = data[here - 2] << 8 | data[here - 1] if here <= end else 0
    if here >= end:
        raise WireError("MQTT", "a PUBLISH ends before its properties", "see the broker's log")
    properties, here = (data[here], here + 1) if data[here] < 0x80 else _number(data, here)
    if here == 0 or here + properties > end:
        raise WireError("MQTT", "a PUBLISH ends within its properties", "see the broker's log")
    return Publish(data[at + 2 : topic_end], packet, data[here + properties : end])


def _number(data: bytes, at: int) -> tuple[int, int]:
    """A variable byte integer (section 1.5.5) and where it ends; (0, 0) when it goes on beyond `data`."""
    value = 0
    for index, byte in enumerate(data[at : at + 4]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            if value > MAX_PACKET:
                raise WireError("MQTT", f"packet of {value} bytes", f"the hub takes {MAX_PACKET}")
            return value, at + index + 1
    if len(data) - at >= 4:
        raise WireError("MQTT", "a length of more than four bytes", "see the broker's log")
    return 0, 0


def connect(client: str, name: str, password: str | None, keep_alive_s: int, receive_maximum: int) -> bytes:
    """Section 3.1: a clean start, so that nothing is left of an earlier life.

    The broker sends at most `receive_maximum` messages that we have not acknowledged.
    """
    flags = CLEAN_START | (NAME if name else 0) | (PASSWORD if password is not None else 0)
    properties = struct.pack(">BHBI", RECEIVE_MAXIMUM, receive_maximum, MAXIMUM_PACKET_SIZE, MAX_PACKET)
    head = _text(b"MQTT") + struct.pack(">BBH", 5, flags, keep_alive_s) + _length(len(properties)) + properties
    who = _text(client.encode()) + (_text(name.encode()) if name else b"")
    return _packet(0x10, head + who + (_text(password.encode()) if password is not None else b""))


def subscribe(packet: int, filters: Iterable[str], qos: int = 1) -> bytes:
    """Section 3.8."""
    wanted = b"".join(_text(each.encode()) + bytes([qos]) for each in filters)
    return _packet(0x82, struct.pack(">HB", packet, 0) + wanted)


def publish(topic: bytes, payload: bytes, packet: int) -> bytes:
    """Section 3.3, at QoS 1, or at QoS 0 for packet number 0."""
    number = packet.to_bytes(2, "big") if packet else b""
    return _packet(PUBLISH | (2 if packet else 0), b"".join((_text(topic), number, b"\0", payload)))


def pubacks(taken: Sequence[Publish]) -> bytes:
    """Section 3.4, one for each message of QoS 1.

    >>> pubacks([Publish(b"a", 7, b""), Publish(b"a", 0, b"")])
    b'@\\x02\\x00\\x07'
    """
    return b"".join(_TAKEN.pack(PUBACK, 2, message.packet) for message in taken if message.packet)


def reason(word: Word) -> int:
    """The reason code of a CONNACK, PUBACK or DISCONNECT (sections 3.2.2, 3.4.2, 3.14.2); left out, it is success."""
    at = {CONNACK: 1, PUBACK: 2, DISCONNECT: 0}[word.type]
    return word.body[at] if len(word.body) > at else 0


def refused(word: Word) -> int:
    """How many filters a SUBACK refuses (section 3.9.3)."""
    properties, at = _number(word.body, 2)
    return sum(code >= FAILURE for code in word.body[at + properties :])


def broker_takes(word: Word) -> int:
    """The receive maximum of a CONNACK (section 3.2.2.3.3), the only one of its properties that binds us."""
    size, at = _number(word.body, 2)
    properties = word.body[at : at + size]
    while properties:
        if properties[0] == RECEIVE_MAXIMUM:
            return int.from_bytes(properties[1:3], "big")
        properties = properties[1 + _width(properties) :]
    return 65_535


def _width(properties: bytes) -> int:
    """Bytes of the first property's value, by the table of section 2.2.2.2."""
    kind = properties[0]
    if kind in (0x24, 0x25, 0x28, 0x29, 0x2A):
        return 1
    if kind in (0x13, 0x21, 0x22):
        return 2
    if kind in (0x11, 0x27):
        return 4
    if kind in (0x12, 0x15, 0x16, 0x1A, 0x1C, 0x1F):
        return 2 + int.from_bytes(properties[1:3], "big")
    if kind == 0x26:
        first = 2 + int.from_bytes(properties[1:3], "big")
        return first + 2 + int.from_bytes(properties[1 + first : 3 + first], "big")
    raise WireError("MQTT", f"a CONNACK has a property {kind:#x}", "see the broker's log")


def _text(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


def _packet(kind: int, body: bytes) -> bytes:
    return bytes([kind]) + _length(len(body)) + body


def _length(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])

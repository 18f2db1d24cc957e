"""A broker that takes everything, acknowledges it as a hub would, and keeps nothing.

`python -m edge.sink` prints its port and serves one device: `lineside edge bench` publishes to it, so that no plant's
broker hears of the bench. MQTT 5 (OASIS standard, sections 3.1 to 3.14), as much of it as edge.uplink speaks.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from lineside import topics, wire
from lineside.messages import Ack

CONNECT, PUBLISH, SUBSCRIBE, PINGREQ = 1, 3, 8, 12


@contextmanager
def running() -> Iterator[int]:
    """A sink in a process of its own; its port."""
    with subprocess.Popen([sys.executable, "-m", "edge.sink"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


def serve() -> None:
    """Serve one device on a free port of this machine until it goes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(server.getsockname()[1], flush=True)
        link, _ = server.accept()
    with link, link.makefile("rb") as stream:
        while head := stream.read(1):
            body = stream.read(_length(stream))
            link.sendall(answer(head[0], body))


def answer(head: int, body: bytes) -> bytes:
    """What a broker and a hub say to one packet: its first byte and what follows its length.

    >>> answer(0xC0, b"").hex()
    'd000'
    """
    kind = head >> 4
    if kind == CONNECT:
        return b"\x20\x03\x00\x00\x00"
    if kind == SUBSCRIBE:
        return b"\x90\x04" + body[:2] + b"\x00\x01"
    if kind == PINGREQ:
        return b"\xd0\x00"
    return _taken(head, body) if kind == PUBLISH else b""


def _taken(head: int, body: bytes) -> bytes:
    """PUBACK, and the hub's word that a message with a number is stored."""
    end = 2 + int.from_bytes(body[:2], "big")
    topic, packet = body[2:end].decode(), body[end : end + 2]
    puback = b"\x40\x02" + packet if head & 0b0110 else b""
    site, device, kind, _ = topics.parse(topic)
    if not topics.TOPICS[kind].stored:
        return puback
    properties = end + 2 if head & 0b0110 else end
    message = wire.decode(kind, body[properties + 1 + body[properties] :])
    ack = wire.encode(Ack(device=device, epoch=message.epoch, ranges=[(message.seq, message.seq)]))
    name = topics.name(site, device, "ack").encode()
    said = len(name).to_bytes(2, "big") + name + b"\x00" + ack
    return puback + b"\x30" + _varint(len(said)) + said


def _length(stream: BinaryIO) -> int:
    """The remaining length of a packet (section 1.5.5)."""
    value = shift = 0
    while byte := stream.read(1):
        value |= (byte[0] & 0x7F) << shift
        shift += 7
        if not byte[0] & 0x80:
            break
    return value


def _varint(value: int) -> bytes:
    out = bytearray()
    while True:
        value, low = value >> 7, value & 0x7F
        out.append(low | (0x80 if value else 0))
        if not value:
            return bytes(out)


if __name__ == "__main__":
    serve()

"""A relay between a device and its broker that reads along: MQTT packets of the client, and a CONNACK that can wait."""

from __future__ import annotations

import contextlib
import socket
import threading
from dataclasses import dataclass

CONNECT, PUBLISH, SUBSCRIBE = 1, 3, 8


@dataclass(frozen=True)
class Packet:
    """One packet of the client; `life` counts connections from 0."""

    life: int
    type: int
    flags: int
    body: bytes

    @property
    def topic(self) -> str:
        """Of a PUBLISH."""
        return self.body[2 : 2 + int.from_bytes(self.body[:2], "big")].decode()

    @property
    def payload(self) -> bytes:
        """Of a PUBLISH with QoS 1 and MQTT 5: after topic, packet id and properties (of fewer than 128 bytes)."""
        at = 2 + int.from_bytes(self.body[:2], "big") + 2
        return self.body[at + 1 + self.body[at] :]


class Tap:
    """`packets` is what the client has sent; while `open` is not set, nothing of the broker reaches it."""

    def __init__(self, port: int) -> None:
        self.packets: list[Packet] = []
        self.open = threading.Event()
        self.open.set()
        self.lives = 0
        self._broker = port
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def of(self, type_: int) -> list[Packet]:
        return [packet for packet in self.packets if packet.type == type_]

    def close(self) -> None:
        self._socket.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._socket.accept()
                try:
                    broker = socket.create_connection(("127.0.0.1", self._broker), 5)
                except OSError:
                    client.close()
                    continue
                broker.settimeout(None)
                life, self.lives = self.lives, self.lives + 1
                threading.Thread(target=self._up, args=(client, broker, life), daemon=True).start()
                threading.Thread(target=self._down, args=(broker, client), daemon=True).start()

    def _up(self, client: socket.socket, broker: socket.socket, life: int) -> None:
        left = b""
        with contextlib.suppress(OSError):
            while data := client.recv(65_536):
                left = self._read(left + data, life)
                broker.sendall(data)
        _end(client, broker)

    def _down(self, broker: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := broker.recv(65_536):
                self.open.wait()
                client.sendall(data)
        _end(client, broker)

    def _read(self, data: bytes, life: int) -> bytes:
        """Take whole packets off the front."""
        while len(data) >= 2:
            size, at = 0, 1
            while at < len(data) and at < 5:
                size |= (data[at] & 0x7F) << 7 * (at - 1)
                at += 1
                if data[at - 1] < 0x80:
                    break
            if data[at - 1] >= 0x80 or len(data) < at + size:
                break
            self.packets.append(Packet(life, data[0] >> 4, data[0] & 15, data[at : at + size]))
            data = data[at + size :]
        return data


def _end(*sockets: socket.socket) -> None:
    for each in sockets:
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()

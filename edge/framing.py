"""Between a process and its child: small messages through a socket, large data through memory without a name.

The memory stands nowhere in the file system, so that nothing of it can stay behind when both processes are killed.
"""

from __future__ import annotations

import os
import socket
import struct
import tempfile
from typing import TypeVar

import msgspec

HEAD = struct.Struct("<I")
MAX_HEAD = 1_000_000
T = TypeVar("T")


def send(link: socket.socket, message: msgspec.Struct) -> None:
    """One message, with its length before it. Raises OSError when the other side is gone."""
    head = msgspec.msgpack.encode(message)
    link.sendall(HEAD.pack(len(head)) + head)


def receive(link: socket.socket, decoder: msgspec.msgpack.Decoder[T]) -> T:
    """The next message. Raises EOFError at the end, TimeoutError by the socket's own timeout, OSError otherwise.

    Raises ValueError for bytes that are no message.
    """
    (length,) = HEAD.unpack(_exactly(link, HEAD.size))
    if length > MAX_HEAD:
        raise ValueError(f"a header of {length} bytes")
    return decoder.decode(_exactly(link, length))


def _exactly(link: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        if not (part := link.recv(count - len(data))):
            raise EOFError
        data += part
    return bytes(data)


def unnamed_memory(name: str, size: int) -> int:
    """A descriptor of `size` bytes of shared memory that no other process can find; `name` is for /proc alone.

    Pages that are never used cost nothing.
    """
    if hasattr(os, "memfd_create"):
        handle = os.memfd_create(name)
    else:  # not Linux
        with tempfile.TemporaryFile() as file:
            handle = os.dup(file.fileno())
    os.ftruncate(handle, size)
    return handle

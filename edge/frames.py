"""What the agent and the uplink process say to each other over a Unix socket: four bytes of length, then msgpack.

Three connections, each with one side that begins, so that no frame needs a number:

    outbox   the uplink asks (Places, Pending, Forget, Heard, Told, Said, Page, Next), the agent answers each
    news     the agent tells (Wake, Report), the uplink listens
    fetch    the agent asks for a file of the repository (Get), the uplink answers with its parts

Each begins with the uplink's Greeting and the agent's Done or Failed. What is no frame of ours is refused with
WireError, and its connection is closed: bytes after it cannot be trusted either.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import Any, Literal

import msgspec

from edge.outbox import Waiting
from edge.shelf import Lane
from lineside import wire
from lineside.errors import WireError
from lineside.messages import Command, Piece, StationState

PROTOCOL = 3
MAX_FRAME = wire.MAX_BYTES + 65_536  # one message, or many small ones
PART_BYTES = 65_536
PATIENCE_S = 5.0  # for the rest of a frame that has begun, in either direction
Role = Literal["outbox", "news", "fetch"]


class Frame(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Anything that is said; the tag is the class's name."""


class Greeting(Frame, frozen=True):
    """The uplink's first word on a connection."""

    role: Role
    device: str
    protocol: int = PROTOCOL


class Places(Frame, frozen=True):
    """Where do the oldest messages lie? Answered by Numbers."""

    limit: int
    lane: Lane


class Pending(Frame, frozen=True):
    """Which messages lie there? Answered by Rows, with as many as fit into a frame."""

    after: int
    limit: int
    lane: Lane


class Forget(Frame, frozen=True):
    """The hub has committed these. Answered by Done with how many that were."""

    epoch: int
    ranges: list[tuple[int, int]]


class Heard(Frame, frozen=True):
    """A request came. Answered by Done."""

    command: Command


class Told(Frame, frozen=True):
    """The station said what it is in. Answered by Done."""

    state: StationState


class Said(Frame, frozen=True):
    """The broker has this report. Answered by Done."""

    command: Command


class Page(Frame, frozen=True):
    """Somebody wants this page of the agent's metrics (edge.metrics.Pages). Answered by Rendered."""

    path: str
    accept: str


class Rendered(Frame, frozen=True):
    """The page, as HTTP gives it."""

    status: int
    kind: str
    body: bytes


class Next(Frame, frozen=True):
    """What is to be sent of recordings? Answered by Carried."""


class Carried(Frame, frozen=True):
    """The next piece of a recording, where there is one."""

    piece: Piece | None


class Numbers(Frame, frozen=True):
    """Places, ascending."""

    places: list[int]


class Rows(Frame, frozen=True):
    """Messages, in order of their places."""

    rows: list[Waiting]


class Done(Frame, frozen=True):
    """It was done."""

    count: int = 0


class Failed(Frame, frozen=True):
    """It was not, for this reason; `status` is that of HTTP, where there is one."""

    reason: str
    status: int = 0


class Wake(Frame, frozen=True):
    """The outbox has something new; also said now and then to show that the agent lives."""


class Report(Frame, frozen=True):
    """Publish this of a request."""

    command: Command


class Farewell(Frame, frozen=True):
    """The agent stops in order."""


class Get(Frame, frozen=True):
    """Bring this file of the repository, from this place on if you can."""

    url: str
    offset: int = 0


class Part(Frame, frozen=True):
    """The next bytes of it, and their place."""

    data: bytes
    at: int


FromUplink = Greeting | Places | Pending | Forget | Heard | Told | Said | Page | Next | Part | Done | Failed
FromAgent = Numbers | Rows | Rendered | Carried | Done | Failed | Wake | Report | Farewell | Get
Side = Literal["agent", "uplink"]
_DECODERS: dict[Side, msgspec.msgpack.Decoder[Any]] = {
    "uplink": msgspec.msgpack.Decoder(FromUplink),
    "agent": msgspec.msgpack.Decoder(FromAgent),
}
_LENGTH = struct.Struct(">I")


def encode(frame: Frame) -> bytes:
    """A frame with its length before it. Raises WireError for one that the other side would refuse.

    >>> encode(Wake())
    b'\\x00\\x00\\x00\\x06\\x91\\xa4Wake'
    """
    data = msgspec.msgpack.encode(frame)
    if len(data) > MAX_FRAME:
        raise WireError("frame", f"{type(frame).__name__} of {len(data)} bytes", f"send at most {MAX_FRAME}")
    return _LENGTH.pack(len(data)) + data


def length(head: bytes) -> int:
    """How many bytes follow these four. Raises WireError for more than a frame may have."""
    (size,) = _LENGTH.unpack(head)
    if not 0 < size <= MAX_FRAME:
        raise WireError("frame", f"length of {size} bytes", f"is it the other half of lineside? at most {MAX_FRAME}")
    return int(size)


def decode(data: bytes, sender: Side) -> Any:
    """The frame in `data` that this side has sent. Raises WireError for what it does not say."""
    try:
        return _DECODERS[sender].decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError("frame", f"is none of the {sender}'s ({error})", "run one version on both sides") from error


class Channel:
    """One connection; `sender` is who is at its other end. Used by one thread at a time in each direction.

    Sending and receiving raise OSError (TimeoutError where the other end is stuck) and WireError.
    """

    def __init__(self, connection: socket.socket, sender: Side) -> None:
        self._connection, self._sender = connection, sender

    def send(self, frame: Frame) -> None:
        """Say it, or raise within PATIENCE_S."""
        self._connection.settimeout(PATIENCE_S)
        self._connection.sendall(encode(frame))

    def receive(self, wait_s: float | None = None) -> Any:
        """The next frame; waits so long for its beginning, without end for None. Raises EOFError after the last one."""
        self._connection.settimeout(wait_s)
        first = self._connection.recv(_LENGTH.size)
        if not first:
            raise EOFError("the other end has closed the connection")
        self._connection.settimeout(PATIENCE_S)
        head = first + self._exactly(_LENGTH.size - len(first))
        return decode(self._exactly(length(head)), self._sender)

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            part = self._connection.recv(min(size - len(data), 1 << 18))
            if not part:
                raise EOFError("the other end closed the connection within a frame")
            data += part
        return bytes(data)

    def hear_out(self) -> None:
        """Wait for nothing more: `receive` gives what has come already, then raises EOFError. Linux."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RD)

    def close(self) -> None:
        """End it; a thread that waits in `receive` gets an error."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

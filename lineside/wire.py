"""Messages to bytes and back: JSON for what people read, msgpack arrays with float16 vectors for embeddings."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from lineside.errors import WireError
from lineside.messages import Message
from lineside.topics import TOPICS

_KINDS: dict[type, str] = {topic.payload: kind for kind, topic in TOPICS.items() if topic.payload is not None}
_DECODERS: dict[str, msgspec.json.Decoder[Any] | msgspec.msgpack.Decoder[Any]] = {
    kind: (msgspec.json.Decoder if topic.encoding == "json" else msgspec.msgpack.Decoder)(topic.payload)
    for kind, topic in TOPICS.items()
    if topic.payload is not None
}
MAX_BYTES = 1_000_000


def kind_of(message: msgspec.Struct) -> str:
    """The topic kind that a message travels under."""
    return _KINDS[type(message)]


def encode(message: msgspec.Struct) -> bytes:
    """The payload of one message.

    >>> from lineside.messages import Ack
    >>> encode(Ack(device="press-3", epoch=1, ranges=[(1, 4)]))
    b'{"device":"press-3","epoch":1,"ranges":[[1,4]]}'
    """
    json = TOPICS[kind_of(message)].encoding == "json"
    return msgspec.json.encode(message) if json else msgspec.msgpack.encode(message)


def decode(kind: str, payload: bytes) -> Any:
    """The message in a payload of one kind.

    Unknown fields are ignored (a newer sender), wrong types and oversized payloads raise WireError.
    """
    if len(payload) > MAX_BYTES:
        raise WireError(kind, f"payload of {len(payload)} bytes", f"send at most {MAX_BYTES}")
    try:
        return _DECODERS[kind].decode(payload)
    except msgspec.ValidationError as error:
        raise WireError(kind, f"payload is not a {kind} message ({error})", "update the older side") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError) as error:
        raise WireError(kind, f"payload is no {TOPICS[kind].encoding} ({error})", "mend what sends it") from error


def stamped(message: Message, epoch: int, seq: int) -> Message:
    """The same message with its place in the device's numbering."""
    return msgspec.structs.replace(message, epoch=epoch, seq=seq)


def pack(vector: NDArray[np.floating[Any]]) -> bytes:
    """An embedding (dim,) as float16, little-endian."""
    return np.asarray(vector, "<f2").tobytes()


def unpack(data: bytes) -> NDArray[np.float32]:
    """An embedding (dim,) float32 from its float16 bytes."""
    return np.frombuffer(data, "<f2").astype(np.float32)

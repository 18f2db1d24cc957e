"""One recording from a device: ask for some of it, take what comes, ask for the rest."""

from __future__ import annotations

import contextlib
import queue
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from hub.evidence.partial import Partial
from lineside import mqtt, topics, wire
from lineside.clock import Clock
from lineside.errors import BrokerError, LinesideError, WireError
from lineside.evidence import REQUEST_BYTES
from lineside.messages import Piece
from lineside.operator import Operator
from lineside.plant import PlantConfig

ANSWER_S, PIECE_S = 15.0, 10.0
WAITING = 64  # pieces that may wait here; what floods beyond them is dropped, and asked for again where it was wanted
STALLS, MOST_REQUESTS = 3, 5000
MOST_PIECES = 1000  # that are looked at of one request: a flood of others does not hold us for ever


class Refused(LinesideError):
    """A device said no; its reason is a whole sentence of its own."""

    def __str__(self) -> str:
        return self.reason


class Source(Protocol):
    """Where recordings come from: `ask` raises LinesideError with the reason, `pieces` gives what comes."""

    def ask(self, device: str, recording: str, offset: int) -> None: ...

    def pieces(self, device: str) -> contextlib.AbstractContextManager[queue.Queue[Piece]]: ...


class Line:
    """The devices of a plant, over its broker."""

    def __init__(self, plant: PlantConfig, base: Path, clock: Clock) -> None:
        self._plant, self._base, self._clock = plant, base, clock

    def ask(self, device: str, recording: str, offset: int) -> None:
        """Have the device send the next bytes. Raises BrokerError, or LinesideError with the device's own reason."""
        asked = {"recording": recording, "offset": str(offset)}
        with Operator(self._plant.connection("operator"), self._base, self._plant.site, self._clock) as operator:
            outcome = operator.ask([device], "evidence", asked, ANSWER_S)[0]
        if outcome.status == "silent":
            raise LinesideError(device, f"did not answer within {ANSWER_S:.0f} s", "is it online? ask again")
        if outcome.status == "failed":
            raise Refused(device, outcome.reason, "see the device's log")

    @contextmanager
    def pieces(self, device: str) -> Iterator[queue.Queue[Piece]]:
        """What the device sends of recordings while the block lasts. Raises BrokerError."""
        came: queue.Queue[Piece] = queue.Queue(WAITING)
        listening = threading.Event()

        def hear(payload: bytes) -> None:
            with contextlib.suppress(WireError, queue.Full):
                came.put_nowait(wire.decode("evidence", payload))

        connection, topic = self._plant.connection("hub"), topics.everything(self._plant.site, device, "evidence")
        client = mqtt.client(connection, f"hub-evidence-{secrets.token_hex(4)}", self._base)
        client.on_connect = lambda each, *_: each.subscribe(topic, qos=1)
        client.on_subscribe = lambda *_: listening.set()
        client.on_message = lambda _client, _data, message: hear(bytes(message.payload))
        mqtt.connect(client, connection)
        try:
            if not listening.wait(ANSWER_S):
                raise BrokerError("broker", f"no subscription within {ANSWER_S:.0f} s", "see the hub's log")
            yield came
        finally:
            client.disconnect()
            client.loop_stop()


def fetch(
    source: Source,
    device: str,
    partial: Partial,
    recording: str,
    gone: Callable[[], bool],
    patience_s: float = PIECE_S,
) -> None:
    """Bring a recording to its place, from where an earlier attempt ended. `gone`: whether to give up.

    Raises LinesideError (WireError, BrokerError) with the reason why it is not here; what has come stays.
    """
    with source.pieces(device) as came:
        stalls = asked = 0
        while stalls < STALLS and asked < MOST_REQUESTS and not gone():
            before = partial.offset
            source.ask(device, recording, before)
            if _taken(came, partial, gone, patience_s):
                return
            stalls, asked = 0 if partial.offset > before else stalls + 1, asked + 1
    if gone():
        raise LinesideError(recording, "was not brought to its end: the hub stops", "ask again")
    raise LinesideError(device, f"sends nothing more of {recording}", "is its connection too slow? ask again")


def _taken(came: queue.Queue[Piece], partial: Partial, gone: Callable[[], bool], patience_s: float) -> bool:
    """Take pieces until the device's answer to one request ends; whether the file is whole."""
    until = partial.offset + REQUEST_BYTES
    for _ in range(MOST_PIECES):
        try:
            if partial.take(came.get(timeout=patience_s)):
                return True
        except queue.Empty:
            break
        if gone():
            break
        if partial.offset >= until:
            break
    return False

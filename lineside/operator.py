"""The operator's side: ask devices over MQTT to do something, and see what they report.

A request is one retained message on a topic of its own whose status moves `init → executing → successful | failed`;
the asker owns `init` and clears the topic at the end, the device owns what is between (lineside.topics, `cmd`).
"""

from __future__ import annotations

import contextlib
import queue
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import paho.mqtt.client as paho

from lineside import topics, wire
from lineside.clock import NS, Clock
from lineside.errors import BrokerError, ReleaseError, WireError
from lineside.messages import Command, Health, Manifest, StationState
from lineside.mqtt import BrokerConfig, client, connect

ANSWER_S = 10.0
LISTEN_S = 1.5
KINDS = ("cmd", "health", "manifest", "status")


@dataclass(frozen=True)
class Outcome:
    """How a request ended on one device; `silent`: no final answer in time."""

    device: str
    status: Literal["successful", "failed", "silent"]
    reason: str = ""


@dataclass(frozen=True)
class Report:
    """What is retained of one device: `status` as in lineside.topics.STATUS, else `unknown` or `unreadable`.

    The manifest is as it came: whether it is signed is for the reader to look at (lineside.pins).
    """

    device: str
    status: str
    health: Health | None
    manifest: Manifest | None = None


class Operator:
    """The operator's connection to one line's broker, open as long as the `with` block."""

    def __init__(self, connection: BrokerConfig, base: Path, site: str, clock: Clock) -> None:
        self._connection, self._site, self._clock = connection, site, clock
        self._incoming: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self._settled = threading.Event()
        self._refusal = ""
        self._known: dict[str, Report] = {}
        self._client = client(connection, f"operator-{secrets.token_hex(4)}", base)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = lambda _client, _data, message: self._incoming.put(
            (message.topic, bytes(message.payload))
        )

    def __enter__(self) -> Operator:
        connect(self._client, self._connection)
        settled = self._settled.wait(ANSWER_S)
        if self._refusal or not settled:
            self.__exit__()
            told = self._refusal or f"no answer within {ANSWER_S:.0f} s"
            mend = f"check {self._connection.password_file} and that the hub runs with this plant file"
            raise BrokerError(f"broker {self._connection.host}:{self._connection.port}", told, mend)
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def ask(self, devices: Sequence[str], op: str, args: dict[str, str], timeout_s: float) -> list[Outcome]:
        """Send a request to devices and wait until each has ended it or `timeout_s` is over; one outcome a device."""
        deadline_ns = self._clock.now_ns() + round(timeout_s * NS)
        with self.requested(op, dict.fromkeys(devices, args)) as asked:
            ended = self._wait(asked, deadline_ns)
        return [ended.get(device, Outcome(device, "silent")) for device in devices]

    @contextlib.contextmanager
    def requested(self, op: str, args: Mapping[str, dict[str, str]]) -> Iterator[dict[str, str]]:
        """Requests, by device, that stand as long as the block: then they are taken back. Gives devices by topic."""
        made = {device: Command(id=secrets.token_hex(6), op=op, args=its) for device, its in args.items()}
        asked = {topics.name(self._site, device, "cmd", op, one.id): one for device, one in made.items()}
        try:
            self._publish({topic: wire.encode(request) for topic, request in asked.items()})
            yield dict(zip(asked, made, strict=True))
        finally:
            with contextlib.suppress(BrokerError):  # a broker that went away must not hide what came before
                self._publish(dict.fromkeys(asked, b""))  # empty and retained: nobody acts on this request later

    def tell_state(self, devices: Sequence[str], state: str) -> None:
        """Say that the stations of these devices are in `state` from now on; it is retained for a device that is away.

        Raises BrokerError when the broker does not take it.
        """
        told = wire.encode(StationState(state))
        self._publish({topics.name(self._site, device, "state"): told for device in devices})

    def survey(self, listen_s: float = LISTEN_S) -> dict[str, Report]:
        """What is known of every device of the line, after listening for `listen_s`.

        Raises BrokerError when the broker stays away: what was heard before need not be true any more.
        """
        self._clock.sleep(listen_s)
        deadline_ns = self._clock.now_ns() + round(ANSWER_S * NS)
        while not self._client.is_connected():
            if self._clock.now_ns() > deadline_ns:
                raise self._gone()
            self._clock.sleep(LISTEN_S)
        while not self._incoming.empty():
            self._note(*self._incoming.get())
        return dict(self._known)

    def _note(self, topic: str, payload: bytes) -> None:
        _, device, kind, _ = topics.parse(topic)
        old = self._known.get(device, Report(device, "unknown", None))
        if kind == "status":
            self._known[device] = replace(old, status=_status(payload))
        elif kind in ("health", "manifest") and payload:
            self._known[device] = _report(old, kind, payload)

    def _wait(self, asked: dict[str, str], deadline_ns: int) -> dict[str, Outcome]:
        ended: dict[str, Outcome] = {}
        while len(ended) < len(asked) and (left_ns := deadline_ns - self._clock.now_ns()) > 0:
            try:
                topic, payload = self._incoming.get(timeout=left_ns / NS)
            except queue.Empty:
                break
            if topic in asked and payload and (outcome := _outcome(asked[topic], payload)):
                ended[asked[topic]] = outcome
            self._note(topic, payload)
        return ended

    def _publish(self, messages: Mapping[str, bytes]) -> None:
        row = topics.TOPICS["cmd"]  # as all that an operator writes
        try:
            sent = [self._client.publish(topic, data, row.qos, row.retain) for topic, data in messages.items()]
            for one in sent:
                one.wait_for_publish(ANSWER_S)
            arrived = all(one.is_published() for one in sent)
        except (RuntimeError, ValueError):  # paho's words for a connection that is gone
            arrived = False
        if not arrived:
            raise self._gone()

    def _gone(self) -> BrokerError:
        place = f"broker {self._connection.host}:{self._connection.port}"
        return BrokerError(place, "went away", "see that the hub runs, then ask again")

    def _on_connect(self, made: paho.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self._refusal = f"refused user {self._connection.username!r} ({reason})"
            self._settled.set()
            return
        made.subscribe([(topics.everything(self._site, "+", kind), 1) for kind in KINDS])

    def _on_subscribe(self, _client: Any, _data: Any, _mid: int, reasons: list[Any], _properties: Any) -> None:
        if any(reason.is_failure for reason in reasons):
            self._refusal = f"does not let user {self._connection.username!r} listen to {', '.join(KINDS)}"
        self._settled.set()


def check(outcomes: Sequence[Outcome], op: str, mend: str) -> None:
    """Raise BrokerError naming the devices that stayed silent, ReleaseError (check `rollout`) for those that failed."""
    if silent := [outcome.device for outcome in outcomes if outcome.status == "silent"]:
        raise BrokerError(", ".join(silent), f"no final answer to {op!r} in time", mend)
    if failed := [outcome for outcome in outcomes if outcome.status == "failed"]:
        told = "; ".join(f"{outcome.device}: {outcome.reason}" for outcome in failed)
        raise ReleaseError("rollout", f"{op} on {', '.join(outcome.device for outcome in failed)}", told, mend)


def _outcome(device: str, payload: bytes) -> Outcome | None:
    """The end of a request that a payload tells of, if it does."""
    try:
        command: Command = wire.decode("cmd", payload)
    except WireError as error:
        return Outcome(device, "failed", str(error))
    return Outcome(device, command.status, command.reason) if command.status in ("successful", "failed") else None


def _report(old: Report, kind: str, payload: bytes) -> Report:
    """What is known with one more account of a device; one that we cannot read must not hide the others."""
    try:
        said = wire.decode(kind, payload)
    except WireError:
        return Report(old.device, "unreadable", None)
    if kind == "health":
        return replace(old, health=said)
    known = old.manifest  # a device sends again what was not stored: an old word may come after a newer one
    return old if known and (said.epoch, said.seq) < (known.epoch, known.seq) else replace(old, manifest=said)


def _status(payload: bytes) -> str:
    text = payload.decode(errors="replace")
    return text if text in topics.STATUS else "unknown"

"""The operator's side: ask devices over MQTT to do something, and see what they report.

A request is one retained message on a topic of its own whose status moves `init → executing → successful | failed`;
the asker owns `init` and clears the topic at the end, the device owns what is between (lineside.topics, `cmd`).
"""

from __future__ import annotations

import contextlib
import queue
import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import paho.mqtt.client as paho

from lineside import topics, wire
from lineside.clock import NS, Clock
from lineside.errors import BrokerError, ReleaseError, WireError
from lineside.messages import Command, Health, StationState
from lineside.mqtt import BrokerConfig, client, connect

ANSWER_S = 10.0
LISTEN_S = 1.5
KINDS = ("cmd", "health", "status")


@dataclass(frozen=True)
class Outcome:
    """How a request ended on one device; `silent`: no final answer in time."""

    device: str
    status: Literal["successful", "failed", "silent"]
    reason: str = ""


@dataclass(frozen=True)
class Report:
    """What is retained of one device: `status` as in lineside.topics.STATUS, else `unknown` or `unreadable`."""

    device: str
    status: str
    health: Health | None


class Operator:
    """The operator's connection to one line's broker, open as long as the `with` block."""

    def __init__(self, connection: BrokerConfig, base: Path, site: str, clock: Clock) -> None:
        self._connection, self._site, self._clock = connection, site, clock
        self._incoming: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self._settled = threading.Event()
        self._refusal = ""
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
        request = Command(id=secrets.token_hex(6), op=op, args=args)
        asked = {topics.name(self._site, device, "cmd", op, request.id): device for device in devices}
        try:
            for topic in asked:
                self._publish(topic, wire.encode(request))
            ended = self._wait(asked, self._clock.now_ns() + round(timeout_s * NS))
        finally:
            for topic in asked:
                with contextlib.suppress(BrokerError):  # a broker that went away must not hide what came before
                    self._publish(topic, b"")  # an empty retained message: nobody acts on this request later
        return [ended.get(device, Outcome(device, "silent")) for device in devices]

    def tell_state(self, devices: Sequence[str], state: str) -> None:
        """Say that the stations of these devices are in `state` from now on; it is retained for a device that is away.

        Raises BrokerError when the broker does not take it.
        """
        for device in devices:
            self._publish(topics.name(self._site, device, "state"), wire.encode(StationState(state)))

    def survey(self, listen_s: float = LISTEN_S) -> dict[str, Report]:
        """What is retained of every device of the line, after listening for `listen_s`."""
        self._clock.sleep(listen_s)
        found: dict[str, Report] = {}
        while not self._incoming.empty():
            topic, payload = self._incoming.get()
            _, device, kind, _ = topics.parse(topic)
            old = found.get(device, Report(device, "unknown", None))
            if kind == "status":
                found[device] = Report(device, _status(payload), old.health)
            elif kind == "health" and payload:
                found[device] = _report(device, old.status, payload)
        return found

    def _wait(self, asked: dict[str, str], deadline_ns: int) -> dict[str, Outcome]:
        ended: dict[str, Outcome] = {}
        while len(ended) < len(asked) and (left_ns := deadline_ns - self._clock.now_ns()) > 0:
            try:
                topic, payload = self._incoming.get(timeout=left_ns / NS)
            except queue.Empty:
                break
            if topic in asked and payload and (outcome := _outcome(asked[topic], payload)):
                ended[asked[topic]] = outcome
        return ended

    def _publish(self, topic: str, payload: bytes) -> None:
        row = topics.TOPICS["cmd"]  # as all that an operator writes
        try:
            sent = self._client.publish(topic, payload, qos=row.qos, retain=row.retain)
            sent.wait_for_publish(ANSWER_S)
            arrived = sent.is_published()
        except (RuntimeError, ValueError):  # paho's words for a connection that is gone
            arrived = False
        if not arrived:
            place = f"broker {self._connection.host}:{self._connection.port}"
            raise BrokerError(place, "went away during the request", "see that the hub runs, then ask again")

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


def _report(device: str, status: str, payload: bytes) -> Report:
    """One device's account; one that we cannot read must not hide the others."""
    try:
        return Report(device, status, wire.decode("health", payload))
    except WireError:
        return Report(device, "unreadable", None)


def _status(payload: bytes) -> str:
    text = payload.decode(errors="replace")
    return text if text in topics.STATUS else "unknown"

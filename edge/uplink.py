"""Sends what waits in the outbox, and forgets what the hub has committed."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from edge.config import DeviceConfig
from edge.outbox import Outbox
from lineside import mqtt, topics, wire
from lineside.clock import NS, Clock
from lineside.errors import WireError
from lineside.messages import Command, StationState

log = logging.getLogger(__name__)
REMEMBERED = 256  # ids of requests


class Uplink:
    """One MQTT connection of one device; reconnects by itself, and publishes only while connected.

    `on_command` is called from the network thread with each new command, `on_state` with each state that the station is
    said to be in; neither may block.
    """

    def __init__(
        self,
        config: DeviceConfig,
        base: Path,
        outbox: Outbox,
        clock: Clock,
        on_command: Callable[[Command], None],
        on_state: Callable[[StationState], None] = lambda _: None,
    ) -> None:
        device = config.device
        self._site, self._device = device.site, device.id
        self._config, self._outbox, self._clock = config, outbox, clock
        self._on_command, self._on_state = on_command, on_state
        self._cursor, self._progress_ns = 0, 0
        self._taken: deque[str] = deque(maxlen=REMEMBERED)
        self.connected = threading.Event()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._client = mqtt.client(config.broker, device.id, base, will=(self._topic("status"), "offline"))
        self._client.on_connect = self._connected
        self._client.on_disconnect = self._lost
        self._client.on_message = self._heard
        self._thread = threading.Thread(target=self._send, name="uplink", daemon=True)

    def start(self) -> None:
        """Begin to connect and send; returns at once."""
        mqtt.connect(self._client, self._config.broker, wait=False)
        self._thread.start()

    def stop(self) -> None:
        """Say `stopped`, leave the broker, end the threads."""
        self._stop.set()
        self._wake.set()
        self._thread.join(timeout=5)
        if self.connected.is_set():
            with contextlib.suppress(RuntimeError, ValueError):  # the broker went away just now: the will speaks
                self._client.publish(self._topic("status"), "stopped", qos=1, retain=True).wait_for_publish(2)
        self._client.disconnect()
        self._client.loop_stop()

    def wake(self) -> None:
        """Tell that the outbox has something new."""
        self._wake.set()

    def report(self, command: Command) -> None:
        """Publish a command's progress, retained, in place of the request."""
        self._client.publish(self._topic("cmd", command.op, command.id), wire.encode(command), qos=1, retain=True)

    def _topic(self, kind: str, *rest: str) -> str:
        return topics.name(self._site, self._device, kind, *rest)

    def _connected(self, client: paho.Client, _: Any, __: Any, reason: Any, ___: Any) -> None:
        if reason.is_failure:
            log.warning("broker refuses %s: %s; check [broker] username and password_file", self._device, reason)
            return
        options = SubscribeOptions(qos=1, noLocal=True)
        for kind in ("ack", "cmd", "state"):  # subscriptions end with the connection, so they are made anew here
            client.subscribe(topics.everything(self._site, self._device, kind), options=options)
        client.publish(self._topic("status"), "online", qos=1, retain=True)
        self._cursor, self._progress_ns = 0, self._clock.now_ns()
        self.connected.set()
        self._wake.set()

    def _lost(self, *_: Any) -> None:
        if self.connected.is_set() and not self._stop.is_set():
            log.warning("broker connection lost; scoring goes on, messages wait in the outbox")
        self.connected.clear()

    def _heard(self, _: paho.Client, __: Any, message: paho.MQTTMessage) -> None:
        if not message.payload:
            return  # an asker cleared its retained request
        try:
            kind, place = topics.parse(message.topic)[2:]
            heard = wire.decode(kind, bytes(message.payload))
            if kind == "cmd":
                self._asked(heard, place)
            elif kind == "state":
                self._on_state(heard)
            elif self._outbox.forget(heard.epoch, heard.ranges):
                self._progress_ns = self._clock.now_ns()
                self._wake.set()
        except (WireError, sqlite3.Error) as error:  # a full disk too: what could not be forgotten is sent again
            log.warning("%s", error)

    def _asked(self, command: Command, place: tuple[str, ...]) -> None:
        if place != (command.op, command.id):
            reason = f"holds the request {command.op!r} {command.id!r}"
            raise WireError("/".join(("cmd", *place)), reason, "ask on the request's own topic")
        # A request is retained until we report on it, so a new connection brings one that waits still a second time.
        if command.status == "init" and command.id not in self._taken:
            self._taken.append(command.id)
            self._on_command(command)

    def _send(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(timeout=0.25)
            self._wake.clear()
            if not self.connected.is_set():
                continue
            try:
                self._send_some()
            except sqlite3.Error as error:
                log.warning("outbox cannot be read (%s); trying again", error)
                self._stop.wait(1.0)

    def _send_some(self) -> None:
        window = self._config.outbox.window
        unanswered = self._outbox.waiting_until(self._cursor)
        if unanswered and self._clock.now_ns() - self._progress_ns > self._config.outbox.resend_s * NS:
            # The hub stored nothing of it, or its word was lost: send again from the oldest, it stores each once.
            self._cursor, unanswered, self._progress_ns = 0, 0, self._clock.now_ns()
        if not unanswered:
            self._progress_ns = self._clock.now_ns()
        for waiting in self._outbox.pending(self._cursor, window - unanswered):
            if not self.connected.is_set():
                return
            row = topics.TOPICS[waiting.kind]
            self._client.publish(self._topic(waiting.kind), waiting.payload, row.qos, row.retain, _expiry(row.retain))
            self._cursor = waiting.seq


def _expiry(retain: bool) -> Properties | None:
    """Live values should not wait at the broker for ever: the outbox sends them again if they were not stored."""
    if retain:
        return None
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.MessageExpiryInterval = 60
    return properties


def finished(command: Command, reason: str = "") -> Command:
    """The command's last status: successful without a reason, failed with one."""
    return msgspec.structs.replace(command, status="failed" if reason else "successful", reason=reason)

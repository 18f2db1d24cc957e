"""Sends what waits in the outbox, and forgets what the hub has committed."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from edge.config import DeviceConfig
from edge.lanes import Pace, Way
from edge.outbox import Waiting
from edge.requests import Requests
from edge.shelf import Lane
from lineside import mqtt, topics, wire
from lineside.clock import NS, Clock
from lineside.errors import WireError
from lineside.messages import Command, Piece, StationState
from lineside.ranges import Range

log = logging.getLogger(__name__)
UNREACHABLE = (sqlite3.Error, OSError)  # of the outbox: a bad disk, or an agent behind the socket that is away
ALARM_WINDOW = 64
PIECES = 4  # of recordings, that the broker has not taken yet: alarms wait behind no more than these
PATIENCE_S = 10.0


class Supply(Protocol):
    """Where messages wait: the outbox itself, or edge.courier, which asks the agent's. Raises one of UNREACHABLE."""

    def places(self, limit: int, lane: Lane) -> list[int]: ...

    def pending(self, after: int, limit: int, lane: Lane) -> list[Waiting]: ...

    def forget(self, epoch: int, ranges: Sequence[Range]) -> int: ...


class Uplink:
    """One MQTT connection of one device; reconnects by itself, and publishes only while connected.

    `on_command` is called from the network thread with each new command, `on_state` with each state that the station is
    said to be in, `on_said` from the sending thread when the broker has a report; none may block for long. `piece`
    gives what is to be sent of recordings when nothing else waits, raising as Supply does.
    """

    def __init__(
        self,
        config: DeviceConfig,
        base: Path,
        supply: Supply,
        clock: Clock,
        on_command: Callable[[Command], None],
        on_state: Callable[[StationState], None] = lambda _: None,
        on_said: Callable[[Command], None] = lambda _: None,
        piece: Callable[[], Piece | None] = lambda: None,
    ) -> None:
        device, bounds = config.device, config.outbox
        self._site, self._device, self._broker = device.site, device.id, config.broker
        self._supply, self._clock = supply, clock
        self._on_command, self._on_state, self._on_said = on_command, on_state, on_said
        self._piece = piece
        self._carried: set[int] = set()  # pieces under way, by paho's number
        pace = Pace(bounds.drain_per_s, clock.now_ns())
        self._ways = (
            Way("alarms", ALARM_WINDOW, bounds.resend_s, Pace(float(ALARM_WINDOW), clock.now_ns())),
            Way("rest", bounds.window, bounds.resend_s, pace),
        )
        self._published: deque[int] = deque()  # paho's numbers of what the broker has taken
        self._requests = Requests()
        self._reports: deque[Command] = deque()
        self._saying: dict[int, Command] = {}  # by paho's number
        self._away_ns, self._refusal = clock.now_ns(), ""
        self.connected = threading.Event()
        self._anew = threading.Event()
        self.rounds = 0  # of the sending thread: a sign of life
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._client = mqtt.client(config.broker, device.id, base, will=(self._topic("status"), "offline"))
        self._client.on_connect = self._connected
        self._client.on_disconnect = self._lost
        self._client.on_message = self._heard
        self._client.on_publish = lambda _client, _data, number, *_: self._taken(number)
        self._thread = threading.Thread(target=self._send, name="uplink", daemon=True)

    @property
    def problem(self) -> str:
        """Why nothing gets out; empty while something does, and for the first seconds."""
        if self.connected.is_set() or self._clock.now_ns() - self._away_ns < PATIENCE_S * NS:
            return ""
        place = f"{self._broker.host}:{self._broker.port}"
        reason = self._refusal or f"no connection to {place}; start it, or mend [broker] host and port"
        return f"broker: {reason}; messages wait in the outbox"

    @property
    def held(self) -> int:
        """Messages that the MQTT client has in memory, at most `window` and some alarms."""
        return sum(way.held for way in self._ways)

    def start(self) -> None:
        """Begin to connect and send; returns at once."""
        mqtt.connect(self._client, self._broker, wait=False)
        self._thread.start()

    def stop(self, word: Literal["stopped", "offline"] = "stopped") -> None:
        """Say that word, leave the broker, end the threads."""
        self._stop.set()
        self._wake.set()
        self._thread.join(timeout=5)
        if self.connected.is_set():
            self._send_reports()
            with contextlib.suppress(RuntimeError, ValueError):  # the broker went away just now: the will speaks
                self._client.publish(self._topic("status"), word, qos=1, retain=True).wait_for_publish(2)
        self._client.disconnect()
        self._client.loop_stop()

    def wake(self) -> None:
        """Tell that the outbox has something new."""
        self._wake.set()

    def report(self, command: Command) -> None:
        """Publish a command's progress, retained, in place of the request, as soon as there is a connection."""
        self._requests.said(command)
        self._reports.append(command)
        self._wake.set()

    def _topic(self, kind: str, *rest: str) -> str:
        return topics.name(self._site, self._device, kind, *rest)

    def _connected(self, client: paho.Client, _: Any, __: Any, reason: Any, ___: Any) -> None:
        if reason.is_failure:
            self._refusal = f"refuses {self._device}: {reason}; check [broker] username and password_file"
            log.warning("broker %s", self._refusal)
            return
        options = SubscribeOptions(qos=1, noLocal=True)
        for kind in ("ack", "cmd", "state"):  # subscriptions end with the connection, so they are made anew here
            client.subscribe(topics.everything(self._site, self._device, kind), options=options)
        client.publish(self._topic("status"), "online", qos=1, retain=True)
        self._refusal = ""
        self._anew.set()
        self.connected.set()
        self._wake.set()

    def _lost(self, *_: Any) -> None:
        if self.connected.is_set() and not self._stop.is_set():
            log.warning("broker connection lost; scoring goes on, messages wait in the outbox")
            self._away_ns = self._clock.now_ns()
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
            elif self._supply.forget(heard.epoch, heard.ranges):
                self._wake.set()
        except (WireError, *UNREACHABLE) as error:  # a full disk too: what could not be forgotten is sent again
            log.warning("%s", error)

    def _asked(self, command: Command, place: tuple[str, ...]) -> None:
        if place != (command.op, command.id):
            reason = f"holds the request {command.op!r} {command.id!r}"
            raise WireError("/".join(("cmd", *place)), reason, "ask on the request's own topic")
        if command.status != "init":
            return
        said = self._requests.take(command)
        if said is None:
            self._on_command(command)
        elif said.status != "init":
            self.report(said)

    def _send(self) -> None:
        while not self._stop.is_set():
            self.rounds += 1
            self._wake.wait(timeout=0.25)
            self._wake.clear()
            if not self.connected.is_set():
                continue
            try:
                self._note_published()
                self._send_reports()
                if not sum([self._send_some(way) for way in self._ways]):
                    self._send_pieces()
            except UNREACHABLE as error:
                log.warning("outbox cannot be read (%s); trying again", error)
                self._stop.wait(1.0)

    def _taken(self, number: int) -> None:
        """The broker has it; called from the network thread."""
        self._published.append(number)
        if number in self._carried:
            self._wake.set()

    def _note_published(self) -> None:
        anew = self._anew.is_set()
        self._anew.clear()
        numbers = [self._published.popleft() for _ in range(len(self._published))]
        for way in self._ways:
            for number in numbers:
                way.taken(number)
            if anew:
                way.again(self._clock.now_ns())
        for number in numbers:
            self._carried.discard(number)
            if (report := self._saying.pop(number, None)) is not None:
                self._on_said(report)

    def _send_reports(self) -> None:
        while self._reports:
            report = self._reports.popleft()
            topic = self._topic("cmd", report.op, report.id)
            self._saying[self._client.publish(topic, wire.encode(report), qos=1, retain=True).mid] = report

    def _send_some(self, way: Way) -> int:
        """Send what is due of one lane; how many that was."""
        places = self._supply.places(way.window, way.lane)
        due = way.due(places, self._clock.now_ns())
        if not due:
            return 0
        wanted, span = set(due), places.index(due[-1]) - places.index(due[0]) + 1
        for waiting in self._supply.pending(due[0] - 1, span, way.lane):
            if not self.connected.is_set():
                break
            if waiting.place in wanted:
                way.sent(waiting.place, self._publish(waiting), self._clock.now_ns())
        return len(due)

    def _send_pieces(self) -> None:
        """A few pieces of recordings, in a round in which nothing else was due."""
        while len(self._carried) < PIECES and (piece := self._piece()) is not None:
            expiry = _expiry(topics.TOPICS["evidence"].retain)
            sent = self._client.publish(self._topic("evidence"), wire.encode(piece), 1, False, expiry)
            self._carried.add(sent.mid)

    def _publish(self, waiting: Waiting) -> int:
        """Give it to paho, which keeps it until the broker has it, across lost connections and whatever it returns.

        Measured: 1060 publishes that gave `no connection` were all queued, and sent later.
        """
        row = topics.TOPICS[waiting.kind]
        topic, expiry = self._topic(waiting.kind), _expiry(row.retain)
        return self._client.publish(topic, waiting.payload, row.qos, row.retain, expiry).mid


def _expiry(retain: bool) -> Properties | None:
    """Live values should not wait at the broker for ever: the outbox sends them again if they were not stored."""
    if retain:
        return None
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.MessageExpiryInterval = 60
    return properties

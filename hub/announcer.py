"""Keeps what Home Assistant is told as it should be, and takes it away when it is switched off (hub.home_assistant)."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import paho.mqtt.client as paho
from sqlalchemy.exc import SQLAlchemyError

from hub import home_assistant
from hub.trouble import reason
from hub.watch import Line
from lineside import mqtt
from lineside.files import write_atomic
from lineside.plant import PlantConfig

LOG = logging.getLogger("hub.announcer")
LOOK_S, SENT_S = 1.0, 5.0


class Announcer:
    """Publishes in a thread of its own, once a second what has changed, until `stop`.

    The topics that it has written stand in a file of the state folder, so that a hub that was told to announce no
    longer, or has lost a device, knows what to take away.
    """

    def __init__(self, plant: PlantConfig, base: Path, look: Callable[[], Line]) -> None:
        self._site, self._on, self._look = plant.site, plant.hub.home_assistant, look
        self._file = base / plant.state / "home_assistant.json"
        self._said: dict[str, bytes | None] = dict.fromkeys(self._remembered())
        self._broker = plant.connection("hub")
        self._own = home_assistant.hub_topic(plant.site)
        name = f"hub-{plant.site}-ha-{secrets.token_hex(3)}"
        self._client = mqtt.client(self._broker, name, base, will=(self._own, "offline") if self._on else None)
        self._client.on_connect = self._on_connect
        self._client.on_message = self._on_birth
        self._anew, self._stopping = threading.Event(), threading.Event()
        self._blind = False
        self._thread = threading.Thread(target=self._run, name="announcer", daemon=True)

    def start(self) -> None:
        """Begin, unless there is nothing to announce and nothing to take away."""
        if self._on or self._said:
            mqtt.connect(self._client, self._broker, wait=False)
            self._thread.start()

    def stop(self) -> None:
        """Say that the hub is away, and leave. May be called twice."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _on_connect(self, client: paho.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            LOG.error("the broker refuses the hub: %s", reason)
        elif self._on:
            client.subscribe(home_assistant.BIRTH, 1)
            client.publish(self._own, "online", qos=1, retain=True)
            self._anew.set()

    def _on_birth(self, _client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        if message.payload == b"online":
            self._anew.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            if self._client.is_connected() and self._bring_up_to_date() and not self._on:
                break
            self._stopping.wait(LOOK_S)
        if self._on and self._client.is_connected():
            self._sent(self._client.publish(self._own, "offline", qos=1, retain=True))
        self._client.disconnect()
        self._client.loop_stop()

    def _bring_up_to_date(self) -> bool:
        """Publish what has changed; whether the broker has taken all of it."""
        if self._anew.is_set():
            self._anew.clear()
            self._said = dict.fromkeys(self._said)
        try:
            now = home_assistant.wanted(self._site, self._look()) if self._on else {}
        except SQLAlchemyError as error:
            if not self._blind:  # said once, not at each turn
                LOG.warning("Home Assistant hears nothing until the store can be read again (%s)", reason(error))
            self._blind = True
            return False
        self._blind = False
        known = set(self._said)
        if not set(now) <= known:  # written down before it is said: what was said is never forgotten
            self._remember(known | set(now))
        changed = home_assistant.changes(self._said, now)
        if not self._on and known:
            changed[self._own] = b""
        sent = [self._client.publish(topic, payload, qos=1, retain=True) for topic, payload in changed.items()]
        if not all(self._sent(one) for one in sent):
            self._said = dict.fromkeys(known | set(now))
            return False
        if not known <= set(now):
            self._remember(set(now))
        self._said = dict(now)
        return True

    def _sent(self, message: paho.MQTTMessageInfo) -> bool:
        """Whether the broker has taken it within SENT_S."""
        try:
            message.wait_for_publish(SENT_S)
            return message.is_published()
        except (ValueError, RuntimeError):  # paho's words for: not queued, connection lost
            return False

    def _remembered(self) -> list[str]:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=list[str])
        except FileNotFoundError:
            return []
        except msgspec.MsgspecError as error:
            LOG.warning("%s is not readable (%s): what it named is not taken away", self._file, error)
            return []

    def _remember(self, topics: set[str]) -> None:
        if topics:
            write_atomic(self._file, msgspec.json.encode(sorted(topics)))
        else:
            self._file.unlink(missing_ok=True)

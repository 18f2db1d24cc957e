"""What Home Assistant is told over MQTT: a device for each of the line's, its entities, and their state. Pure.

Form: https://www.home-assistant.io/integrations/mqtt/#device-discovery-payload. It reads only: no entity takes a
command.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from hub.watch import WORDS, Line, Station
from lineside import __version__, topics
from lineside.clock import NS
from lineside.messages import Health
from lineside.plant import HOME_ASSISTANT

ROOT = "homeassistant"
BIRTH = f"{ROOT}/status"  # where Home Assistant says that it has started
REPEAT_S, EXPIRE_S = 5, 15
SENSOR = re.compile(r"[A-Za-z0-9._-]{1,64}")  # a name becomes part of a template: what is none of these is left out


@dataclass(frozen=True)
class Entity:
    """One value of a device; `options` are what Home Assistant is told of it besides."""

    platform: str
    key: str
    name: str
    options: dict[str, Any]


PROBLEM = {"device_class": "problem"}
MEASURED = {"state_class": "measurement"}
WHOLE = (
    Entity("sensor", "word", "State", {"device_class": "enum", "options": list(WORDS)}),
    Entity("binary_sensor", "anomaly", "Anomaly", PROBLEM),
    Entity("binary_sensor", "drift", "Drift", PROBLEM),
    Entity(
        "sensor", "evidence", "Evidence", {"unit_of_measurement": "nat", "suggested_display_precision": 1, **MEASURED}
    ),
    Entity("sensor", "p_value", "p-value", {"suggested_display_precision": 4, **MEASURED}),
    Entity("sensor", "open_alarms", "Open alarms", MEASURED),
)


def rules(site: str) -> dict[str, list[tuple[str, str]]]:
    """What hub and Home Assistant may do on the line's broker for this, as (access, filter) rows."""
    own = f"{ROOT}/lineside/{site}/#"
    return {
        "hub": [("write", config_topic(site, "+")), ("write", own), ("read", BIRTH)],
        HOME_ASSISTANT: [
            ("read", f"{ROOT}/device/+/config"),
            ("read", own),
            ("read", topics.everything(site, "+", "status")),
            ("write", BIRTH),
        ],
    }


def config_topic(site: str, device: str) -> str:
    """Where a device is announced; `+` for the filter of all devices.

    >>> config_topic("line1", "press-3")
    'homeassistant/device/lineside_line1_press-3/config'
    """
    return f"{ROOT}/device/{'+' if device == '+' else object_id(site, device)}/config"


def object_id(site: str, device: str) -> str:
    """A device's name among all of Home Assistant's, which allows no dot."""
    return f"lineside_{site}_{device}".replace(".", "_")


def state_topic(site: str, device: str) -> str:
    """Where a device's values stand."""
    return f"{ROOT}/lineside/{site}/{device}/state"


def hub_topic(site: str) -> str:
    """Where the hub says whether it is there; the broker says so when it died."""
    return f"{ROOT}/lineside/{site}/status"


def wanted(site: str, line: Line) -> dict[str, bytes]:
    """Every retained message that shall stand on the broker for the line as it is now."""
    found = {}
    for station in line.stations:
        found[config_topic(site, station.device)] = msgspec.json.encode(discovery(site, station))
        found[state_topic(site, station.device)] = msgspec.json.encode(state(station, line.now_ns))
    return found


def changes(said: Mapping[str, bytes | None], now: Mapping[str, bytes]) -> dict[str, bytes]:
    """What must be published so that `now` stands where `said` did; None is what nobody remembers.

    >>> changes({"a": b"1", "b": b"2", "c": None}, {"a": b"1", "c": b"3"})
    {'b': b'', 'c': b'3'}
    """
    gone = {topic: b"" for topic in said if topic not in now}
    return gone | {topic: payload for topic, payload in now.items() if said.get(topic) != payload}


def discovery(site: str, station: Station) -> dict[str, Any]:
    """How a device and its entities are announced; entities of sensors come with its first health."""
    own = object_id(site, station.device)
    return {
        "device": {
            "identifiers": [own],
            "name": f"{site} {station.device}",
            "manufacturer": "lineside",
            "model": "edge agent",
            **({"sw_version": station.health.agent} if station.health else {}),
        },
        "origin": {"name": "lineside", "sw_version": __version__},
        "availability": [
            {
                "topic": topics.name(site, station.device, "status"),
                "value_template": "{{ 'online' if value == 'online' else 'offline' }}",
            },
            {"topic": hub_topic(site)},
        ],
        "availability_mode": "all",
        "state_topic": state_topic(site, station.device),
        "qos": 1,
        "components": {each.key: _component(own, each) for each in entities(station.health)},
    }


def _component(own: str, entity: Entity) -> dict[str, Any]:
    return {
        "platform": entity.platform,
        "unique_id": f"{own}_{entity.key}",
        "name": entity.name,
        "value_template": f"{{{{ value_json['{entity.key}'] }}}}",
        "expire_after": EXPIRE_S,
        **entity.options,
    }


def entities(health: Health | None) -> Iterator[Entity]:
    """The entities of a device whose newest health this is."""
    yield from WHOLE
    share = {"unit_of_measurement": "%", "suggested_display_precision": 0, **MEASURED}
    for name in _sensors(health):
        yield Entity("binary_sensor", f"{name}_problem", f"{name} problem", PROBLEM)
        yield Entity("sensor", f"{name}_contribution", f"{name} contribution", share)


def _sensors(health: Health | None) -> list[str]:
    return [name for name in sorted(health.sensors if health else ()) if SENSOR.fullmatch(name)]


def state(station: Station, now_ns: int) -> dict[str, Any]:
    """A device's values, by the keys of its entities; None, which Home Assistant shows as unknown, where not live.

    `at` (seconds) makes each REPEAT_S another message, so that a value that stays does not expire.
    """
    active: set[str] | None = {event.raised.kind for event in station.events if event.active} if station.live else None
    score = station.last.score if station.live and station.last else None
    found: dict[str, Any] = {
        "at": now_ns // NS // REPEAT_S * REPEAT_S,
        "word": station.word,
        "anomaly": _on(active, "anomaly"),
        "drift": _on(active, "drift"),
        "evidence": score.evidence if score else None,
        "p_value": score.p_value if score else None,
        "open_alarms": sum(event.state != "CLEARED_ACK" for event in station.events),
    }
    health = station.health
    for name in _sensors(health):
        assert health is not None
        problem, share = bool(health.sensors[name].problem), health.contributions.get(name)
        found[f"{name}_problem"] = ("ON" if problem else "OFF") if station.health_live else None
        found[f"{name}_contribution"] = 100 * share.share if share and station.health_live else None
    return found


def _on(active: set[str] | None, kind: str) -> str | None:
    return None if active is None else "ON" if kind in active else "OFF"

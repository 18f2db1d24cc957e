"""Which active alarms nobody needs to hear, because something else explains them. They are shown as such. Pure.

Suppression by design in ISA-18.2, inhibition in Alertmanager. Each rule is one line of a table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from hub.alarms import Event

AWAY = ("offline", "stopped")


@dataclass(frozen=True)
class Floor:
    """What is known besides the alarms: devices' last words, what live stations say of themselves, broken sensors.

    A device that has not spoken since the hub started is in neither table, and inhibits nothing.
    """

    presence: Mapping[str, str] = field(default_factory=dict)
    states: Mapping[str, str] = field(default_factory=dict)
    maintenance: Sequence[str] = ()
    broken: frozenset[tuple[str, str]] = frozenset()  # device, sensor


def _away(event: Event, floor: Floor) -> str:
    word = floor.presence.get(event.raised.device, "")
    return f"{event.raised.device} is {word}" if word in AWAY else ""


def _maintenance(event: Event, floor: Floor) -> str:
    state = floor.states.get(event.raised.device, "")
    return f"{event.raised.station} is in {state}" if state in floor.maintenance else ""


def _sensor(event: Event, floor: Floor) -> str:
    bad = [name for name in event.raised.subject.split("+") if (event.raised.device, name) in floor.broken]
    return f"{bad[0]} has a sensor alarm" if bad else ""


RULES: dict[str, tuple[Callable[[Event, Floor], str], ...]] = {
    "anomaly": (_away, _maintenance),
    "drift": (_away, _maintenance, _sensor),
    "device": (),
    "sensor": (),  # a broken sensor wants mending whatever the station does
}


def inhibited(events: Iterable[Event], floor: Floor) -> list[Event]:
    """Events with the reason why an active one calls nobody; the first rule that holds gives it."""
    events = list(events)
    broken = {(e.raised.device, e.raised.subject) for e in events if e.active and e.raised.kind == "sensor"}
    known = replace(floor, broken=frozenset(broken))
    return [replace(event, inhibited=told) if (told := _reason(event, known)) else event for event in events]


def _reason(event: Event, floor: Floor) -> str:
    if not event.active:
        return ""
    return next((told for rule in RULES[event.raised.kind] if (told := rule(event, floor))), "")

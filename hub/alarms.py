"""The alarm book: what devices reported and what people acknowledged, as events in one of four states. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from lineside.messages import Alarm

State = Literal["ACTIVE_UNACK", "ACTIVE_ACK", "CLEARED_UNACK", "CLEARED_ACK"]
STATES: dict[tuple[bool, bool], State] = {
    (True, False): "ACTIVE_UNACK",
    (True, True): "ACTIVE_ACK",
    (False, False): "CLEARED_UNACK",
    (False, True): "CLEARED_ACK",
}
URGENCY: tuple[State, ...] = ("ACTIVE_UNACK", "ACTIVE_ACK", "CLEARED_UNACK", "CLEARED_ACK")
Acknowledgements = Mapping[tuple[str, str], tuple[str, int]]


@dataclass(frozen=True)
class Event:
    """One alarm from raise to clear; `raised` is its first message (its only one, when the raise was lost)."""

    raised: Alarm
    state: State
    cleared_ns: int = 0
    acknowledged_by: str = ""
    acknowledged_ns: int = 0

    @property
    def active(self) -> bool:
        """Whether the condition still holds."""
        return self.state.startswith("ACTIVE")


def book(messages: Iterable[Alarm], acknowledgements: Acknowledgements) -> list[Event]:
    """One event for each (device, key), most urgent first, then newest first.

    Messages may come in any order and twice: the device's own numbering decides which word is the last.
    """
    by_key: dict[tuple[str, str], list[Alarm]] = {}
    for message in messages:
        by_key.setdefault((message.device, message.key), []).append(message)
    events = [_event(sorted(said, key=lambda m: (m.epoch, m.seq)), acknowledgements) for said in by_key.values()]
    return sorted(events, key=lambda event: (URGENCY.index(event.state), -event.raised.time_ns, event.raised.key))


def _event(said: list[Alarm], acknowledgements: Acknowledgements) -> Event:
    first = next((message for message in said if message.state == "raised"), said[0])
    last = said[-1]
    who, when = acknowledgements.get((first.device, first.key), ("", 0))
    active = last.state == "raised"
    return Event(first, STATES[active, bool(who)], 0 if active else last.time_ns, who, when)

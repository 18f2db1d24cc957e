"""The alarm book: what devices reported and what people did about it, as events in one of four states. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

from lineside.messages import Alarm, AlarmState

if TYPE_CHECKING:
    from hub.labels import Said

State = Literal["ACTIVE_UNACK", "ACTIVE_ACK", "CLEARED_UNACK", "CLEARED_ACK"]
STATES: dict[tuple[bool, bool], State] = {
    (True, False): "ACTIVE_UNACK",
    (True, True): "ACTIVE_ACK",
    (False, False): "CLEARED_UNACK",
    (False, True): "CLEARED_ACK",
}
URGENCY: tuple[State, ...] = ("ACTIVE_UNACK", "ACTIVE_ACK", "CLEARED_UNACK", "CLEARED_ACK")
QUIET = 1.5  # active ones that call nobody stand behind those that do, before what is over
Acknowledgements = Mapping[tuple[str, str], tuple[str, int]]
What = Literal["raise", "clear", "acknowledge", "silence", "unsilence", "notify", "notify_failed", "label"]
WORDS: dict[AlarmState, What] = {"raised": "raise", "cleared": "clear"}
FOREVER_NS = 2**63 - 1


@dataclass(frozen=True)
class Action:
    """One change: who did what when, and why; devices raise and clear, people and the hub do the rest.

    `subject` is an alarm's key, or for silences also what alarms name as their subject ("": the whole device). Of a
    notification `who` is the target.
    """

    time_ns: int
    who: str
    what: What
    device: str
    subject: str
    why: str = ""
    until_ns: int = 0


@dataclass(frozen=True)
class Event:
    """One alarm from raise to clear; `raised` is its first message (its only one, when the raise was lost).

    `later` are further raises of the same source soon after its clear: the event flaps. `silence` is what silences it
    now, `inhibited` says why nobody needs to hear it though it is active; one that is not `heard` was raised into a
    silence. `label` is people's last word on what it was, where it was read with that (hub.history).
    """

    raised: Alarm
    state: State
    cleared_ns: int = 0
    acknowledged_by: str = ""
    acknowledged_ns: int = 0
    later: tuple[Alarm, ...] = ()
    silence: Action | None = None
    inhibited: str = ""
    heard: bool = True
    label: Said | None = None

    @property
    def active(self) -> bool:
        """Whether the condition still holds."""
        return self.state.startswith("ACTIVE")

    @property
    def calls(self) -> bool:
        """Whether the condition holds and is neither silenced nor inhibited."""
        return self.active and self.silence is None and not self.inhibited

    @property
    def page(self) -> str:
        """Where the dashboard shows it."""
        return f"/alarm/{self.raised.device}/{quote(self.raised.key)}"

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys by which the device names it, one a raise."""
        return (self.raised.key, *(alarm.key for alarm in self.later))

    @property
    def raises_ns(self) -> tuple[int, ...]:
        """When it was raised, first and again."""
        return (self.raised.time_ns, *(alarm.time_ns for alarm in self.later))


def book(messages: Iterable[Alarm], acknowledgements: Acknowledgements) -> list[Event]:
    """One event for each (device, key), most urgent first, then newest first.

    Messages may come in any order and twice: the device's own numbering decides which word is the last.
    """
    by_key: dict[tuple[str, str], list[Alarm]] = {}
    for message in messages:
        by_key.setdefault((message.device, message.key), []).append(message)
    events = [_event(sorted(said, key=lambda m: (m.epoch, m.seq)), acknowledgements) for said in by_key.values()]
    return urgent_first(events)


def urgent_first(events: Iterable[Event]) -> list[Event]:
    """By urgency, then newest first."""

    def rank(event: Event) -> tuple[float, int, str]:
        quiet = event.active and not event.calls
        return (QUIET if quiet else URGENCY.index(event.state), -event.raised.time_ns, event.raised.key)

    return sorted(events, key=rank)


def history(messages: Iterable[Alarm], acknowledgements: Acknowledgements, actions: Iterable[Action]) -> list[Action]:
    """Every change of an event, oldest first: its messages, who saw it, and those `actions` that fell on it.

    Of a silence by subject that is one which began before the event was over and ended after its raise.
    """
    said = {(m.device, m.epoch, m.seq): m for m in messages}.values()
    keys = {(m.device, m.key) for m in said}
    first, newest = min(m.time_ns for m in said), max(said, key=lambda m: (m.epoch, m.seq))
    last = newest.time_ns if newest.state == "cleared" else FOREVER_NS
    told = [Action(m.time_ns, m.device, WORDS[m.state], m.device, m.key, m.text) for m in said]
    done = [
        a
        for a in actions
        if (a.device, a.subject) in keys or (a.time_ns <= last and first <= max(a.time_ns, a.until_ns))
    ]
    known = {(a.device, a.subject) for a in done if a.what == "acknowledge"}
    seen = [
        Action(when, who, "acknowledge", *key) for key, (who, when) in acknowledgements.items() if key in keys - known
    ]
    return sorted([*told, *seen, *done], key=lambda each: each.time_ns)


def _event(said: list[Alarm], acknowledgements: Acknowledgements) -> Event:
    first = next((message for message in said if message.state == "raised"), said[0])
    last = said[-1]
    who, when = acknowledgements.get((first.device, first.key), ("", 0))
    active = last.state == "raised"
    return Event(first, STATES[active, bool(who)], 0 if active else last.time_ns, who, when)

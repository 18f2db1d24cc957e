"""Who is told of which alarms now, from what was told before. Pure: groups and the book of actions in, notices out.

The first target is told once a group has had time to gather; each further one when the one before was told so long ago,
or could not be, and still nobody has acknowledged. Only the hub's own times decide that: a device's clock, or a backlog
that comes in late, skips no step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from hub.alarms import Action, Event
from hub.groups import Group
from hub.rates import HOUR_NS
from lineside.clock import NS
from lineside.messages import Alarm

Weight = Literal["info", "warning", "failure"]  # apprise's words
TOLD = ("notify", "notify_failed")


@dataclass(frozen=True)
class Terms:
    """The targets' names in their order, and how often they may be called (lineside.plant.AlarmRules)."""

    targets: tuple[str, ...]
    group_ns: int
    escalate_ns: int
    per_hour: int


@dataclass(frozen=True)
class Notice:
    """One message: to whom, of which group, and of which of its events (those that call for somebody)."""

    target: str
    group: Group
    events: tuple[Event, ...]

    @property
    def about(self) -> tuple[tuple[str, str], ...]:
        """Device and key of each event."""
        return tuple((event.raised.device, event.raised.key) for event in self.events)

    @property
    def weight(self) -> Weight:
        """A warning where nothing is wrong but what drifts or a sensor; else the line, or a device, has failed."""
        raised = [event.raised for event in self.events]
        mild = all(alarm.kind in ("drift", "sensor") or alarm.cause == "sensor" for alarm in raised)
        return "warning" if mild else "failure"


def due(
    groups: Iterable[Group], actions: Sequence[Action], now_ns: int, terms: Terms, *, quiet: bool = False
) -> tuple[list[Notice], int]:
    """What is to be sent now, and how many more are held back by the limit of an hour.

    Nothing is due in quiet hours; what still calls after them is.
    """
    told = [action for action in actions if action.what in TOLD]
    # Rows of one time are one message: one a row of its group's events.
    sent = Counter(each for each, _ in {(a.who, a.time_ns) for a in told if now_ns - a.time_ns < HOUR_NS})
    notices, held = [], 0
    for group in groups if not quiet else ():
        notice = _next(group, told, now_ns, terms)
        if notice is not None and sent[notice.target] < terms.per_hour:
            sent[notice.target] += 1
            notices.append(notice)
        elif notice is not None:
            held += 1
    return notices, held


def calling(group: Group) -> tuple[Event, ...]:
    """Events of a group that want somebody: active, not acknowledged, neither silenced nor inhibited."""
    return tuple(event for event in group.events if event.calls and not event.acknowledged_by)


def _next(group: Group, told: Sequence[Action], now_ns: int, terms: Terms) -> Notice | None:
    events = calling(group)
    if not events or any(event.acknowledged_by for event in group.events):  # somebody is at it
        return None
    own = {action.who: action for action in told if (action.device, action.subject) in group.members}
    target = next((name for name in terms.targets if name not in own), None)
    if target is None:
        return None
    place = terms.targets.index(target)
    if place == 0:
        waits = 0 <= now_ns - events[0].raised.time_ns < terms.group_ns
    else:
        last = own[terms.targets[place - 1]]
        waits = last.what == "notify" and now_ns - last.time_ns < terms.escalate_ns
    return None if waits else Notice(target, group, events)


def words(notice: Notice, site: str, url: str) -> tuple[str, str]:
    """Title and text of a message: of each alarm when it was raised, what it says and its page below `url`."""
    first, group = notice.events[0].raised, notice.group
    where = ", ".join(dict.fromkeys(event.raised.station for event in notice.events))
    kinds = ", ".join(sorted({event.raised.kind for event in notice.events}))
    cause = f", {first.cause} at fault" if first.cause in ("sensor", "process") else ""
    lines = [group.cause] if group.cause else []
    for event in notice.events:
        lines += [f"{_time(event.raised.time_ns)} {_said(event.raised)}", url + event.page]
    return f"{site} · {where}: {kinds}{cause}", "\n".join(lines)


def _said(alarm: Alarm) -> str:
    """An alarm's text, which may name its station by itself."""
    named = alarm.text.startswith((f"{alarm.station} ", f"{alarm.station}:"))
    return alarm.text if named else f"{alarm.station}: {alarm.text}"


def _time(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns / NS).astimezone().isoformat(timespec="seconds")

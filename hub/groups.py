"""Alarms that tell of one thing: several sensors of one station, or all stations of the line at once. Pure.

Onsets are compared, which devices tell by their own clocks. Limits:
- A group spans `group_s` from its first onset, so that a flood cannot chain into one; what takes longer to spread is
  two groups.
- Onsets of weak evidence that lasts are guesses, often early: such drift often stands alone.
- Unrelated alarms of n stations, each at random λ a second, meet within w seconds n·λⁿ·wⁿ⁻¹ times a second: those of
  two stations with one an hour each and w = 15 s, every fifth day. A common cause is a hint to look, not a finding.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from hub.alarms import Event

T = TypeVar("T")
# What all stations share, by the modality that is on top of every alarm; whatever else is OTHER.
SHARED = {"camera": "the light", "microphone": "noise in the hall"}
OTHER = "power, network or the material"


@dataclass(frozen=True)
class Group:
    """Events of one thing, first onset first; `cause` is what to look for where it struck every station at once."""

    events: tuple[Event, ...]
    cause: str = ""
    members: frozenset[tuple[str, str]] = field(init=False)  # device, key

    def __post_init__(self) -> None:
        keys = frozenset((event.raised.device, key) for event in self.events for key in event.keys)
        object.__setattr__(self, "members", keys)

    @property
    def onset_ns(self) -> int:
        """When the first one began."""
        return self.events[0].raised.onset_ns

    @property
    def name(self) -> str:
        """Device and key of the first one."""
        return f"{self.events[0].raised.device} {self.events[0].raised.key}"

    @property
    def stations(self) -> tuple[str, ...]:
        """Whose alarms they are."""
        return tuple(dict.fromkeys(event.raised.station for event in self.events))


def grouped(events: Iterable[Event], group_ns: int, devices: Collection[str]) -> list[Group]:
    """Every event in one group, newest group first; `devices` are those of the line that speak now.

    On one station, onsets within `group_ns` are one group. Groups of all devices (two at least) within `group_ns` are
    one group with a common cause.
    """
    by_station: dict[tuple[str, str], list[Event]] = defaultdict(list)
    for event in events:
        by_station[event.raised.device, event.raised.station].append(event)
    own = [Group(tuple(one)) for each in by_station.values() for one in _spans(each, _onset, group_ns)]
    found = [group for span in _spans(own, lambda group: group.onset_ns, group_ns) for group in _common(span, devices)]
    return sorted(found, key=lambda group: (-group.onset_ns, group.name))


def _onset(event: Event) -> int:
    return event.raised.onset_ns


def _spans(items: Iterable[T], onset: Callable[[T], int], span_ns: int) -> list[list[T]]:
    """Items in order of their onsets, cut where one lies more than `span_ns` after the first of its span."""
    spans: list[list[T]] = []
    for item in sorted(items, key=onset):
        if spans and onset(item) - onset(spans[-1][0]) <= span_ns:
            spans[-1].append(item)
        else:
            spans.append([item])
    return spans


def _common(span: list[Group], devices: Collection[str]) -> list[Group]:
    """One group of them all where every device is among them, else each by itself."""
    struck = {group.events[0].raised.device for group in span}
    if len(struck) < 2 or not struck.issuperset(devices):
        return span
    events = sorted((event for group in span for event in group.events), key=_onset)
    modalities = {event.raised.top_modality for event in events}
    told = SHARED.get(next(iter(modalities)), OTHER) if len(modalities) == 1 else OTHER
    return [Group(tuple(events), f"every station at once: look for a common cause ({told})")]

"""Silences: what an operator does not want to hear for a while. Each has an end, an author and a reason. Pure.

Called shelving in ISA-18.2, which asks that it ends by itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace

from hub.alarms import Action, Event
from lineside.clock import NS
from lineside.errors import LinesideError

MOST_NS = 7 * 24 * 3600 * NS


def silence(now_ns: int, device: str, subject: str, until_ns: int, who: str, why: str) -> Action:
    """The action that silences. Raises LinesideError for an end that is over already, or a week away."""
    if not now_ns < until_ns <= now_ns + MOST_NS:
        raise LinesideError("silence", "its end must lie ahead, at most seven days", "give another end")
    return Action(now_ns, who, "silence", device, subject, why, until_ns)


def spans(actions: Iterable[Action]) -> list[Action]:
    """Every silence with its real end: of one device and subject the next word ends the one before."""
    begun: dict[tuple[str, str], Action] = {}
    ended: list[Action] = []
    for action in sorted(actions, key=lambda each: each.time_ns):
        if action.what not in ("silence", "unsilence"):
            continue
        place = (action.device, action.subject)
        if (former := begun.pop(place, None)) is not None:
            ended.append(replace(former, until_ns=min(former.until_ns, action.time_ns)))
        if action.what == "silence":
            begun[place] = action
    return [*ended, *begun.values()]


def running(actions: Iterable[Action], now_ns: int) -> list[Action]:
    """The silences that hold now, what ends first before; whether an alarm is theirs or not."""
    holding = [each for each in spans(actions) if each.time_ns <= now_ns < each.until_ns]
    return sorted(holding, key=lambda each: (each.until_ns, each.device, each.subject))


def silenced(events: Iterable[Event], actions: Iterable[Action], now_ns: int) -> list[Event]:
    """Events with the silence that lasts longest of those that are theirs now; what is active stays active.

    A silence is of all alarms of its device, of those of a subject (a station, a sensor, a pair), or of one key.
    """
    by_place: dict[tuple[str, str], list[Action]] = defaultdict(list)
    for action in spans(actions):
        by_place[action.device, action.subject].append(action)
    return [_silenced(event, by_place, now_ns) for event in events]


def _silenced(event: Event, by_place: Mapping[tuple[str, str], list[Action]], now_ns: int) -> Event:
    subjects = {"", *event.keys, event.raised.subject}
    own = [each for subject in subjects for each in by_place.get((event.raised.device, subject), ())]
    if not own:
        return event
    longest = max((each for each in own if each.until_ns > now_ns), key=lambda each: each.until_ns, default=None)
    heard = not any(each.time_ns <= event.raised.time_ns < each.until_ns for each in own)
    return replace(event, silence=longest, heard=heard)

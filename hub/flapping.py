"""Alarms that come and go: what one source raises again and again is one event. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from hub.alarms import STATES, Acknowledgements, Action, Event


def join(events: Iterable[Event], hysteresis_ns: int, now_ns: int) -> list[Event]:
    """What one source raises again within `hysteresis_ns` of its clear is one event, which flaps.

    As under the off-delay of ISA-18.2 it stays active until it has been quiet for so long, and its acknowledgement
    holds. Another sensor on top makes it another event. A source raises once at a time: where its clear never came (a
    device was cut off and begun again), the next raise says that the former is over.
    """
    by_source: dict[tuple[str, str], list[Event]] = defaultdict(list)
    for event in sorted(events, key=lambda event: event.raised.time_ns):
        by_source[event.raised.device, source_of(event.raised.key)].append(event)
    joined = [run for own in by_source.values() for run in _runs(own, hysteresis_ns)]
    return [_held(run, hysteresis_ns, now_ns) for run in joined]


def source_of(key: str) -> str:
    """A key without the onset that ends it: what a device raises once at a time.

    >>> source_of("press-3/press/sensor/cam0/1700000000000000000"), source_of("k1")
    ('press-3/press/sensor/cam0/', 'k1')
    """
    head, slash, onset = key.rpartition("/")
    return head + slash if onset.isdigit() and head else key


def owed(events: Iterable[Event], acknowledgements: Acknowledgements) -> list[Action]:
    """Acknowledgements that hold for raises which came later, so that these do not stay open in the store."""
    return [
        Action(event.acknowledged_ns, event.acknowledged_by, "acknowledge", event.raised.device, key)
        for event in events
        if event.acknowledged_by
        for key in event.keys
        if (event.raised.device, key) not in acknowledgements
    ]


def _runs(own: Sequence[Event], hysteresis_ns: int) -> list[Event]:
    """Events of one source, oldest first, put together where they are one."""
    runs = [own[0]]
    for event in own[1:]:
        last = runs[-1]
        quiet_ns = event.raised.time_ns - (last.cleared_ns or last.raises_ns[-1])
        if quiet_ns <= hysteresis_ns and event.raised.top_sensor == last.raised.top_sensor:
            runs[-1] = _again(last, event)
            continue
        if last.active:
            runs[-1] = _in_state(last, False, event.raised.time_ns)
        runs.append(event)
    return runs


def _again(event: Event, next_: Event) -> Event:
    acknowledged = event if event.acknowledged_by else next_
    run = replace(
        event,
        later=(*event.later, next_.raised),
        acknowledged_by=acknowledged.acknowledged_by,
        acknowledged_ns=acknowledged.acknowledged_ns,
    )
    return _in_state(run, next_.active, next_.cleared_ns)


def _held(run: Event, hysteresis_ns: int, now_ns: int) -> Event:
    """What flaps is over only when it has been quiet for a while."""
    waits = run.later and not run.active and 0 <= now_ns - run.cleared_ns < hysteresis_ns
    return _in_state(run, True, 0) if waits else run


def _in_state(event: Event, active: bool, cleared_ns: int) -> Event:
    return replace(event, state=STATES[active, bool(event.acknowledged_by)], cleared_ns=cleared_ns)

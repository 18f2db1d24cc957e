"""How much a line asks of its operators, against EEMUA 191 and ISA-18.2. Pure.

An operator can deal with one alarm in ten minutes for long, and with two at most; more than ten in ten minutes are a
flood, which is over when fewer than five come in ten. An alarm that comes three times in a minute chatters; one that
has stood for a day is stale: nobody can act on it, so it is no alarm.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hub.alarms import Event
from lineside.clock import NS

MINUTE_NS, HOUR_NS = 60 * NS, 3600 * NS
DAY_NS = 24 * HOUR_NS
NORMS: tuple[tuple[float, str], ...] = ((6.0, "acceptable"), (12.0, "manageable"))  # per operator and hour
TOO_MANY = "too many"
FLOOD, FLOOD_OVER, FLOOD_NS = 10, 5, 10 * MINUTE_NS
CHATTERING = 3


@dataclass(frozen=True)
class Rates:
    """Alarms of the last hour (a whole event once, however it flaps), and what is wrong with the day's alarms.

    `per_operator` is a mean for each operator of the line, `mean` the same over the day; `stations` counts the last
    hour's by station; `floods` of the day are (begin, end), the end 0 while one lasts; `chattering` and `standing` are
    (device, key).
    """

    last_hour: int
    per_operator: float
    mean: float
    stations: dict[str, int]
    floods: tuple[tuple[int, int], ...]
    chattering: tuple[tuple[str, str], ...]
    standing: tuple[tuple[str, str], ...]

    @property
    def word(self) -> str:
        """What the norms say of the last hour."""
        return _judged(self.per_operator)[1]

    @property
    def flooded(self) -> bool:
        """Whether a flood lasts."""
        return any(not end for _, end in self.floods)

    @property
    def norm(self) -> float:
        """Alarms per operator and hour that the last hour is held against."""
        return _judged(self.per_operator)[0]

    @property
    def warnings(self) -> tuple[tuple[str, int], ...]:
        """What is wrong with the day's alarms: a phrase, and the number for its {n}."""
        told = {
            "a flood of alarms: look for one cause first": int(self.flooded),
            "{n} floods in a day": 0 if self.flooded else len(self.floods),
            "{n} chattering": len(self.chattering),
            "{n} standing for more than a day": len(self.standing),
        }
        return tuple((phrase, number) for phrase, number in told.items() if number)


def rates(events: Iterable[Event], now_ns: int, operators: int = 1) -> Rates:
    """Measure the joined events of a day (hub.flapping.join); those that were raised into a silence are not counted."""
    events = list(events)
    heard = [event for event in events if event.heard]
    times = sorted(t for event in heard if now_ns - DAY_NS < (t := event.raised.time_ns) <= now_ns)
    hour = [event for event in heard if now_ns - HOUR_NS < event.raised.time_ns <= now_ns]
    return Rates(
        last_hour=len(hour),
        per_operator=len(hour) / operators,
        mean=len(times) / 24 / operators,
        stations=dict(Counter(event.raised.station for event in hour).most_common()),
        floods=floods(times, now_ns),
        chattering=tuple(_name(event) for event in events if chatters(event.raises_ns)),
        standing=tuple(_name(e) for e in events if e.active and now_ns - e.raised.time_ns > DAY_NS),
    )


def floods(times: Sequence[int], now_ns: int) -> tuple[tuple[int, int], ...]:
    """Floods among alarms at sorted `times`: (begin, end), the end 0 while it lasts.

    >>> floods([second * NS for second in range(0, 110, 10)], now_ns=200 * NS)
    ((100000000000, 0),)
    """
    found: list[tuple[int, int]] = []
    recent: deque[int] = deque()
    begun = -1
    leaving = [(time + FLOOD_NS, False) for time in times if time + FLOOD_NS <= now_ns]
    for time, comes in sorted([*leaving, *((time, True) for time in times)]):
        if comes:
            recent.append(time)
        else:
            recent.popleft()
        if begun < 0 and len(recent) > FLOOD:
            begun = time
        elif begun >= 0 and len(recent) < FLOOD_OVER:
            found.append((begun, time))
            begun = -1
    return (*found, (begun, 0)) if begun >= 0 else tuple(found)


def chatters(times: Sequence[int]) -> bool:
    """Whether three of sorted times lie within a minute.

    >>> chatters([0, 20 * NS, 59 * NS]), chatters([0, 40 * NS, 80 * NS])
    (True, False)
    """
    return any(last - first < MINUTE_NS for first, last in zip(times, times[CHATTERING - 1 :], strict=False))


def _judged(per_hour: float) -> tuple[float, str]:
    """The norm that it keeps and its word; beyond the last one, that one."""
    return next(((norm, word) for norm, word in NORMS if per_hour <= norm), (NORMS[-1][0], TOO_MANY))


def _name(event: Event) -> tuple[str, str]:
    return event.raised.device, event.raised.key

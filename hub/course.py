"""The course of a station over a span: a bounded number of points, whatever the span.

Short spans are drawn from the scores, long ones from minutes: of kept scores (hub.overview), of those that went
(hub.minute_rows), and the scores of the last minutes, which have no row yet.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from hub.minutes import MINUTE_NS, Minute, minute, together
from hub.overview import Overview
from hub.store import Store
from lineside.clock import NS

MOST_SCORES = 20_000
TAIL_NS = 3 * MINUTE_NS


@dataclass(frozen=True)
class Span:
    """How far back, and how long a point is; `phrase` has {n}."""

    phrase: str
    number: int
    seconds: int
    step_s: int

    @property
    def points(self) -> int:
        """At most so many points."""
        return self.seconds // self.step_s + 1


SPANS: dict[str, Span] = {
    "10min": Span("{n} min", 10, 600, 1),
    "1h": Span("{n} h", 1, 3600, 10),
    "8h": Span("{n} h", 8, 28_800, 60),
    "1d": Span("{n} d", 1, 86_400, 300),
    "7d": Span("{n} d", 7, 604_800, 1800),
    "30d": Span("{n} d", 30, 2_592_000, 7200),
}


def course(store: Store, overview: Overview, device: str, span: Span, now_ns: int) -> list[Minute]:
    """Points of `span.step_s` each, oldest first; spans without data have none."""
    step_ns = span.step_s * NS
    since_ns = (now_ns - span.seconds * NS) // step_ns * step_ns
    if span.step_s * NS < MINUTE_NS:
        scores = store.scores(device, since_ns, MOST_SCORES)
        return points((_moment(minute(score), score.start_ns) for score in scores), step_ns)
    newest_ns = overview.newest_ns(device)  # its minute may not be whole yet
    whole_ns = newest_ns if now_ns - newest_ns < TAIL_NS else now_ns - TAIL_NS
    gone = store.score_minutes(device, since_ns, now_ns, step_ns)
    kept = overview.minutes(device, since_ns, whole_ns, step_ns)
    tail = [minute(score) for score in store.scores(device, whole_ns, MOST_SCORES)]
    return points([*gone, *kept, *tail], step_ns)


def points(parts: Iterable[Minute], step_ns: int) -> list[Minute]:
    """Parts put together by equal spans of time, in order.

    >>> parts = [Minute("d", "s", t, 1, p, 1.0, {}) for t, p in ((0, 0.5), (4, 0.1), (11, 0.9))]
    >>> [(point.start_ns, point.scores, point.p_value) for point in points(parts, 10)]
    [(0, 2, 0.1), (10, 1, 0.9)]
    """
    placed = (msgspec.structs.replace(part, station="", start_ns=part.start_ns // step_ns * step_ns) for part in parts)
    return sorted(together(placed).values(), key=lambda point: point.start_ns)


def _moment(one: Minute, start_ns: int) -> Minute:
    return msgspec.structs.replace(one, start_ns=start_ns)

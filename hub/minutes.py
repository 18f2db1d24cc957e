"""A minute of scores in one row: what stays when the scores themselves are kept no longer. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import msgspec

from lineside.clock import NS
from lineside.messages import Score

MINUTE_NS = 60 * NS
Place = tuple[str, str, int]


class Share(msgspec.Struct, frozen=True, array_like=True):
    """A sensor's mean contribution (nats) over the moments in which it was part of the fusion."""

    moments: int
    mean: float


class Minute(msgspec.Struct, frozen=True):
    """Scores of one station in one minute: how many, the least p-value, mean evidence (nats), shares by sensor."""

    device: str
    station: str
    start_ns: int
    scores: int
    p_value: float
    evidence: float
    contributions: dict[str, Share]

    @property
    def place(self) -> Place:
        """Whose minute, and which."""
        return self.device, self.station, self.start_ns


def minute(score: Score) -> Minute:
    """One score as a minute of its own."""
    shares = {sensor: Share(1, value) for sensor, value in score.contributions.items()}
    start_ns = score.start_ns - score.start_ns % MINUTE_NS
    return Minute(score.device, score.station, start_ns, 1, score.p_value, score.evidence, shares)


def together(parts: Iterable[Minute]) -> dict[Place, Minute]:
    """One row for each minute, whatever the order and the grouping of its parts.

    >>> early, late = Minute("d", "s", 0, 1, 0.5, 1.0, {"a": Share(1, 1.0)}), Minute("d", "s", 0, 3, 0.1, 2.0, {})
    >>> whole = together([early, late])["d", "s", 0]
    >>> whole.scores, whole.p_value, whole.evidence, whole.contributions
    (4, 0.1, 1.75, {'a': Share(moments=1, mean=1.0)})
    """
    places: dict[Place, list[Minute]] = defaultdict(list)
    for part in parts:
        places[part.place].append(part)
    return {place: _one(found) for place, found in places.items()}


def _one(parts: list[Minute]) -> Minute:
    scores = sum(part.scores for part in parts)
    shares = {
        sensor: _share([part.contributions[sensor] for part in parts if sensor in part.contributions])
        for sensor in sorted({sensor for part in parts for sensor in part.contributions})
    }
    return msgspec.structs.replace(
        parts[0],
        scores=scores,
        p_value=min(part.p_value for part in parts),
        evidence=sum(part.evidence * part.scores for part in parts) / scores,
        contributions=shares,
    )


def _share(shares: list[Share]) -> Share:
    moments = sum(share.moments for share in shares)
    return Share(moments, sum(share.mean * share.moments for share in shares) / moments)

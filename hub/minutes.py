"""A minute of scores in one row: what stays when scores are kept no longer, what long spans are drawn from. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import msgspec

from lineside.clock import NS
from lineside.messages import Score

MINUTE_NS = 60 * NS
Place = tuple[str, str, int]


class Share(msgspec.Struct, frozen=True, array_like=True):
    """A mean over the moments in which a sensor was part of the fusion: its contribution (nats), or a pair's cosine."""

    moments: int
    mean: float


class Minute(msgspec.Struct, frozen=True):
    """Scores of one station in one minute: how many, the least p-value, mean evidence (nats), shares by sensor.

    `limit` is the largest p-value that was anomalous (0: not known, an older hub kept none), `agreements` are mean
    cosines by pair.
    """

    device: str
    station: str
    start_ns: int
    scores: int
    p_value: float
    evidence: float
    contributions: dict[str, Share]
    limit: float = 0.0
    agreements: dict[str, Share] = {}

    @property
    def place(self) -> Place:
        """Whose minute, and which."""
        return self.device, self.station, self.start_ns


def minute(score: Score) -> Minute:
    """One score as a minute of its own."""
    shares = {sensor: Share(1, value) for sensor, value in score.contributions.items()}
    agreements = {pair: Share(1, value) for pair, value in score.agreements.items()}
    start_ns = score.start_ns - score.start_ns % MINUTE_NS
    return Minute(
        score.device, score.station, start_ns, 1, score.p_value, score.evidence, shares, score.limit, agreements
    )


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
    if len(parts) == 1:
        return parts[0]
    scores = sum(part.scores for part in parts)
    return msgspec.structs.replace(
        parts[0],
        scores=scores,
        p_value=min(part.p_value for part in parts),
        evidence=sum(part.evidence * part.scores for part in parts) / scores,
        contributions=_shares([part.contributions for part in parts]),
        limit=max(part.limit for part in parts),
        agreements=_shares([part.agreements for part in parts]),
    )


def _shares(parts: list[dict[str, Share]]) -> dict[str, Share]:
    """The same means over all parts, by name."""
    sums: dict[str, tuple[int, float]] = defaultdict(lambda: (0, 0.0))
    for part in parts:
        for name, share in part.items():
            moments, total = sums[name]
            sums[name] = (moments + share.moments, total + share.mean * share.moments)
    return {name: Share(moments, sums[name][1] / moments) for name, (moments, _) in sorted(sums.items())}

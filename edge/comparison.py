"""Two ensembles on the same moments: by how much the newer one differs, and whether that is beyond the limits. Pure.

Differences are paired: both judge the same moment, so that a fault of the process weighs on both alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from lineside.fusion import Judgement
from lineside.targets import Terms

LEAST_MOMENTS = 8  # before a limit is held to be exceeded
SURE, VERY_SURE = 1.645, 3.0  # standard errors: at the end of a phase, and while it lasts, when it is looked at often


@dataclass
class Paired:
    """The mean of differences, and how well it is known.

    >>> paired = Paired()
    >>> for difference in (1.0, 0.0, 1.0, 0.0):
    ...     paired.hear(difference)
    >>> paired.mean, round(paired.error(2.0), 3)
    (0.5, 0.408)
    """

    n: int = 0
    mean: float = 0.0
    _squares: float = 0.0

    def hear(self, difference: float) -> None:
        """Take one more (Welford's sums)."""
        self.n += 1
        step = difference - self.mean
        self.mean += step / self.n
        self._squares += step * (difference - self.mean)

    def error(self, overlap: float) -> float:
        """Standard error of the mean, where only every `overlap`-th difference is independent of those before."""
        return math.sqrt(self._squares / (self.n - 1) * overlap / self.n) if self.n > 1 else math.inf


@dataclass
class Comparison:
    """What was seen of `changed` modalities by the encoders before and by those after.

    `modalities` is by sensor; `p_limit` is the alarm's; windows of `overlap` hops share samples. A limit counts as
    exceeded when the difference is beyond it by so many standard errors: in a few moments one anomaly more is chance.
    """

    modalities: Mapping[str, str]
    changed: frozenset[str]
    p_limit: float
    overlap: float
    anomalies: Paired = field(default_factory=Paired)
    agreement: dict[str, Paired] = field(default_factory=dict)
    contribution: dict[str, Paired] = field(default_factory=dict)

    @property
    def moments(self) -> int:
        """Moments that both judged with a sensor of a changed modality."""
        return self.anomalies.n

    def hear(self, before: Judgement, after: Judgement) -> None:
        """Take one moment; one without any sensor of a changed modality says nothing."""
        sensors = [name for name in after.contributions if self.modalities[name] in self.changed]
        if not sensors:
            return
        self.anomalies.hear((after.p_value <= self.p_limit) - float(before.p_value <= self.p_limit))
        for pair in before.agreements.keys() & after.agreements.keys():
            if set(pair.split("+")) & {*sensors}:
                fall = before.agreements[pair] - after.agreements[pair]
                self.agreement.setdefault(pair, Paired()).hear(fall)
        for modality in {self.modalities[name] for name in sensors}:
            shift = self._share(after, modality) - self._share(before, modality)
            self.contribution.setdefault(modality, Paired()).hear(shift)

    @property
    def measured(self) -> dict[str, float]:
        """By the name of the limit (lineside.targets.Terms): of pairs and modalities the one that moved most."""
        if not self.moments:
            return {}
        return {
            "anomalies": self.anomalies.mean,
            "agreement": max((paired.mean for paired in self.agreement.values()), default=0.0),
            "contribution": max((abs(paired.mean) for paired in self.contribution.values()), default=0.0),
        }

    def breach(self, terms: Terms, sure: float) -> str:
        """Which limit is exceeded, at which value; empty while none is."""
        if self.moments < LEAST_MOMENTS:
            return ""
        rows = [("anomalies", "", self.anomalies.mean, self.anomalies)]
        rows += [("agreement", f" of {pair}", paired.mean, paired) for pair, paired in self.agreement.items()]
        rows += [("contribution", f" of {one}", abs(paired.mean), paired) for one, paired in self.contribution.items()]
        for name, of, value, paired in rows:
            limit: float = getattr(terms, name)
            if value - sure * paired.error(self.overlap) > limit:
                return f"{name}{of} is {value:.3f}, limit {limit:g} ({paired.n} moments)"
        return ""

    def _share(self, judged: Judgement, modality: str) -> float:
        """A modality's part of all that was said of a moment, for or against."""
        said = {name: abs(value) for name, value in judged.contributions.items()}
        own = sum(value for name, value in said.items() if self.modalities[name] == modality)
        return own / total if (total := sum(said.values())) else 0.0

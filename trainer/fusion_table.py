"""The held-out part, looked at once: a table of all ways to fuse, and gates and contributions of the chosen one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from trainer import fusion_gates
from trainer.adapt_plan import FusionGateSettings
from trainer.fused import Fused
from trainer.fusion_result import Result, Retained, Row, shares_of
from trainer.labelled import Labelled
from trainer.resampling import Resampling, interval, macro_f1
from trainer.ume import mean_of_probabilities
from trainer.ways import UME, Way

Floats = NDArray[np.float64]
PROBABILITIES = "UME, mean of probabilities"


@dataclass(frozen=True)
class Held:
    """The held-out part of labelled moments, with its resamples."""

    data: Labelled
    state: NDArray[np.int64]
    draws: Resampling

    @classmethod
    def of(cls, data: Labelled) -> Held:
        rows = data.rows["test"]
        return cls(data, data.state[rows], Resampling.of(data.groups[rows]))

    def row(self, name: str, sensors: Sequence[str], test: Tensor, val: Tensor, trained: int = 0) -> Row:
        """A line of the table from fused logits (n, C) of the held-out and of the validation part."""
        said = test.argmax(dim=1).numpy()
        right = (said == self.state).astype(np.float64)
        on_val = val.argmax(dim=1).numpy() == self.data.state[self.data.rows["val"]]
        low, high = interval(self.draws.means(right))
        f1 = macro_f1(self.state, said, len(self.data.names))
        return Row(name, list(sensors), len(said), float(right.mean()), low, high, f1, float(on_val.mean()), trained)


def measured(
    ways: Sequence[Way],
    chosen: Way,
    why: str,
    data: Labelled,
    limits: FusionGateSettings,
    frozen: Mapping[str, str],
    warnings: Sequence[str] = (),
) -> Result:
    """The table of all ways, of which UME of the registered models is the first; gates and shares of `chosen`."""
    held, own = Held.of(data), ways[0]
    said = chosen.models.say(data, "test")
    before, now = own.models.say(data, "test").right(held.state), said.right(held.state)
    best = fusion_gates.best_single(before)
    gained = chosen.right(said, held.state) - before[best]
    gates = [
        *fusion_gates.retention(now, before, held.draws, limits.retention_loss, limits.confidence),
        *fusion_gates.fusion_gain(gained + before[best], before, held.draws, limits.confidence),
    ]
    model = Fused(chosen.models, data.names, data.log_prior(), chosen.weights)
    return Result(
        chosen=chosen.name,
        why=why,
        best_single=best,
        gain=float(np.nanmean(gained)),
        gain_interval=interval(held.draws.means(gained)),
        table=[*_table(ways, chosen, held)],
        retention={sensor: _retained(now[sensor], before[sensor], held.draws) for sensor in now},
        contributions=shares_of(model.contributions(said), said.sensors),
        frozen=dict(frozen),
        gates=gates,
        warnings=list(warnings),
    )


def _retained(now: Floats, before: Floats, draws: Resampling) -> Retained:
    a, b = float(np.nanmean(now)), float(np.nanmean(before))
    return Retained(b, a, a / b if b else 1.0, *interval(fusion_gates.ratios(now, before, draws)))


def _table(ways: Sequence[Way], chosen: Way, held: Held) -> Iterator[Row]:
    """Each sensor alone and each subset, by UME and by the chosen way; then every way with all sensors."""
    own = ways[0]
    yield from _subsets("registered", own, held)
    if chosen.name != UME:
        yield from _subsets(chosen.name, chosen, held)
    both = [own.models.say(held.data, part) for part in ("test", "val")]
    mixed = [mean_of_probabilities(said.z, said.present) for said in both]
    yield held.row(PROBABILITIES, both[0].sensors, mixed[0], mixed[1])
    for way in ways:
        test, val = (way.logits(way.models.say(held.data, part)) for part in ("test", "val"))
        yield held.row(way.name, both[0].sensors, test, val, way.trained)


def _subsets(title: str, way: Way, held: Held) -> Iterator[Row]:
    """A row for each subset that leaves out a sensor: the fusion of the rest, over all held-out moments."""
    test, val = (way.models.say(held.data, part) for part in ("test", "val"))
    for size in range(1, len(test.sensors)):
        for members in combinations(test.sensors, size):
            fusions = [way.logits(said.only(frozenset(members))) for said in (test, val)]
            yield held.row(f"{title}: {' + '.join(members)}", members, fusions[0], fusions[1])

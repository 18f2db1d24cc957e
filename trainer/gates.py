"""The gates that a stage must pass before anything of it may leave, as one table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from lineside.release import Gate
from trainer.checkpoint import Change
from trainer.encoders import Encoders
from trainer.evaluate import FEW, Measured, ranks, recall_among
from trainer.plan import Plan


@dataclass(frozen=True)
class Evidence:
    """What the gates judge: the encoders, what changed of old ones, and what was measured on held-out moments.

    `bank` holds held-out features of earlier stages by `{stage}/{sensor}/{modality}`, (n, f+1) with a last column
    that is 1 where the window was present. `pairs` are the sensors that were trained together. `bases` are, of
    encoders with adapters, the identities of what these stand on: as it was, and as it is.
    """

    plan: Plan
    encoders: Encoders
    changes: Mapping[str, Change]
    drift: Mapping[str, float]
    bank: Mapping[str, Tensor]
    pairs: list[tuple[str, str]]
    measured: Measured
    bases: Mapping[str, tuple[str, str]] = field(default_factory=dict)


def embedding_drift(evidence: Evidence) -> list[Gate]:
    """Old embeddings moved by no more than the plan's budget, per modality."""
    limit = evidence.plan.protection.drift_budget
    return [Gate(f"embedding drift {name}", value, limit, True) for name, value in evidence.drift.items()]


def retention(evidence: Evidence) -> list[Gate]:
    """Held-out moments of earlier stages still find each other among few as well as before.

    One query is the grain: a loss of less than that is not one.
    """
    gates = []
    for a, b in bank_pairs(evidence.bank):
        kind_a, kind_b = (name.rpartition("/")[2] for name in (a, b))
        both = (evidence.bank[a][:, -1] > 0) & (evidence.bank[b][:, -1] > 0)
        if int(both.sum()) < 2:
            continue
        banks = evidence.bank[a][both], evidence.bank[b][both]
        then = [evidence.changes[kind].start for kind in (kind_a, kind_b)]
        now = [evidence.encoders[kind].head.weight for kind in (kind_a, kind_b)]
        old, new = (_mean_recall(banks, heads) for heads in (then, now))
        allowed = max(evidence.plan.gates.retention_loss, 1 / int(both.sum()))
        stage, sensor_a, _ = a.split("/")
        name = f"retention stage {stage} {sensor_a} + {b.split('/')[1]}"
        gates.append(Gate(name, new, old - allowed - 1e-9, False))
    return gates


def retrieval(evidence: Evidence) -> list[Gate]:
    """On held-out new moments, each sensor finds its partner among few others well above chance, both ways."""
    found = {(r.asked, r.answered): r for r in evidence.measured.retrieval}
    gates = []
    for a, b in [way for pair in evidence.pairs for way in (pair, pair[::-1])]:
        result = found.get((a, b))
        value, chance = (result.recall_1_few, result.chance_few) if result else (math.nan, math.nan)
        limit = min(1.0, evidence.plan.gates.retrieval_times_chance * chance)
        gates.append(Gate(f"retrieval {a} to {b}", value, limit, False))
    return gates


def spread(evidence: Evidence) -> list[Gate]:
    """Embeddings of different windows differ: the encoder has not collapsed to one point."""
    limit = evidence.plan.gates.spread
    return [Gate(f"spread {name}", value, limit, True) for name, value in evidence.measured.spread.items()]


def base_changed(evidence: Evidence) -> list[Gate]:
    """What adapters stand on is what it was, to the bit."""
    return [Gate(f"base changed {name}", float(was != now), 0.0, True) for name, (was, now) in evidence.bases.items()]


GATES: tuple[Callable[[Evidence], list[Gate]], ...] = (embedding_drift, retention, retrieval, spread, base_changed)


def judge(evidence: Evidence) -> list[Gate]:
    """Every gate of the table."""
    return [gate for row in GATES for gate in row(evidence)]


def bank_pairs(bank: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """Pairs of sensors of the same stage in the bank."""
    names = sorted(bank)
    return [(a, b) for i, a in enumerate(names) for b in names[i + 1 :] if a.split("/")[0] == b.split("/")[0]]


def _mean_recall(banks: tuple[Tensor, Tensor], heads: Sequence[Tensor]) -> float:
    za, zb = (_embed(bank, head) for bank, head in zip(banks, heads, strict=True))
    few = min(FEW, len(za))
    return (recall_among(ranks(za, zb), few) + recall_among(ranks(zb, za), few)) / 2


def _embed(bank: Tensor, head: Tensor) -> NDArray[np.float32]:
    z = bank.double() @ head.detach().double().cpu().T
    return np.asarray(functional.normalize(z, dim=1).to(torch.float32))

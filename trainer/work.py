"""What one stage is made from: its plan, its data, and the stage that it follows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lineside.errors import ConfigError
from lineside.files import sha256
from trainer.checkpoint import Stage, Tensors
from trainer.data import Dataset
from trainer.plan import Plan
from trainer.processes import ALONE, World


@dataclass(frozen=True)
class Parent:
    """The stage that this one follows."""

    stage: Stage
    tensors: Tensors


@dataclass(frozen=True)
class Work:
    """What one stage is made from: rows `learn` of the dataset are learned from, rows `held` measure."""

    plan: Plan
    dataset: Dataset
    learn: NDArray[np.int64]
    held: NDArray[np.int64]
    parent: Parent | None
    folder: Path
    where: torch.device
    epsilon: float
    world: World = ALONE

    @property
    def old(self) -> frozenset[str]:
        """Modalities that the parent knows."""
        return frozenset(self.parent.stage.prepare if self.parent else ())

    @property
    def identity(self) -> str:
        """Hash of plan, data and parent: what a half-trained stage goes on under."""
        name = self.parent.stage.name if self.parent else ""
        return sha256("\n".join((self.plan.sha256, self.dataset.sha256, name)).encode())

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The pairs of sensors that are trained: the plan's, or all with at least two common moments."""
        return trained_pairs(self.plan, self.dataset, self.learn)


def trained_pairs(plan: Plan, dataset: Dataset, learn: NDArray[np.int64]) -> list[tuple[str, str]]:
    """The pairs of sensors with at least two common moments to learn from, among those that the plan names if any.

    Raises ConfigError for a named pair of a sensor that the recordings do not have, or without common moments.
    """
    views = dataset.views
    met = [(a, b) for a, b in dataset.pairs() if (views[a].present[learn] & views[b].present[learn]).sum() >= 2]
    wanted = []
    for a, b in plan.pairs:
        for sensor in (a, b):
            if sensor not in views:
                told = f"pairs names {sensor}, which the recordings do not have"
                raise ConfigError("plan", told, f"they have {', '.join(sorted(views))}")
        if (a, b) not in met and (b, a) not in met:
            told = f"pairs names {a} and {b}, which have no two common moments to learn from"
            raise ConfigError("plan", told, "leave the pair out, or record both at once")
        wanted.append((a, b) if (a, b) in met else (b, a))
    return wanted or met


def modality_pairs(work: Work) -> list[tuple[str, str]]:
    """The trained pairs as pairs of modalities, each in order."""
    kinds = work.dataset.modalities
    named = [tuple(sorted((kinds[a], kinds[b]))) for a, b in work.pairs]
    return [(a, b) for a, b in named if a != b]

"""What adapting found: one table of every way to fuse, gates, and what each sensor contributes."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from lineside.release import Gate
from lineside.shapley import Decision


class Row(msgspec.Struct, frozen=True):
    """One line of the table: accuracy on the held-out part with its 95 % interval, and what choices were made by.

    `trained` counts the parameters that were trained on top of the registered models.
    """

    way: str
    sensors: list[str]
    moments: int
    accuracy: float
    low: float
    high: float
    macro_f1: float
    val_accuracy: float
    trained: int


class Retained(msgspec.Struct, frozen=True):
    """rho of one sensor: its accuracy inside the fused model over its registered one's, with its paired interval."""

    registered: float
    fused: float
    rho: float
    low: float
    high: float


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What was chosen and why; `gain` is the fused accuracy less the best single sensor's, with its paired interval.

    `frozen` holds the hash of every registered model's weights and buffers after all training, which was compared with
    its entry. `contributions` are exact Shapley values of the fused logits on the held-out part.
    """

    chosen: str
    why: str
    best_single: str
    gain: float
    gain_interval: tuple[float, float]
    table: list[Row]
    retention: dict[str, Retained]
    contributions: dict[str, dict[str, float]]
    frozen: dict[str, str]
    gates: list[Gate]
    warnings: list[str]

    @property
    def passed(self) -> bool:
        """Whether every gate let it through."""
        return all(gate.passed for gate in self.gates)


def shares_of(decisions: Sequence[Decision], sensors: Sequence[str]) -> dict[str, dict[str, float]]:
    """By sensor, over decisions that it took part in: mean contribution in nats, and its share of all magnitudes."""
    found = {sensor: [d.contributions[sensor] for d in decisions if sensor in d.contributions] for sensor in sensors}
    size = {sensor: float(np.mean(np.abs(values))) if values else 0.0 for sensor, values in found.items()}
    whole = sum(size.values()) or 1.0
    return {
        sensor: {"mean_nats": float(np.mean(values)) if values else 0.0, "share": size[sensor] / whole}
        for sensor, values in found.items()
    }

"""What each sensor contributed: exact Shapley values of two games, anomaly evidence and state logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from math import factorial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Key = TypeVar("Key")

P_LEAST = (
    1e-6  # below, a probability is a matter of calibration that no classifier has, and its logarithm says too much
)
MOST_SENSORS = 12  # 4096 coalitions


def of_evidence(singles: Mapping[str, float], pairs: Mapping[tuple[str, str], float]) -> dict[str, float]:
    """Shapley values of v(S) = sum of `singles` in S + sum of `pairs` inside S, in closed form.

    phi_m = e_m + half of the pair terms that m takes part in; they sum to v(all). Product words, section 2.

    >>> of_evidence({"cam0": 1.0, "mic0": 3.0}, {("cam0", "mic0"): 2.0})
    {'cam0': 2.0, 'mic0': 4.0}
    """
    return {
        name: value + sum(shared for pair, shared in pairs.items() if name in pair) / 2
        for name, value in singles.items()
    }


@dataclass(frozen=True)
class Decision:
    """The state that the sensors present name (class `label`), and what each of them said for it, in nats.

    `value` is v(A), how far all of them together moved the log-probability of `label` from its prior;
    `contributions` are exact Shapley values and sum to it; `solo` is v of one sensor alone, `loss` what would be lost
    without it; `coalitions` (2^M,) is v of each coalition, where bit k of the place stands for the k-th sensor.
    """

    label: int
    value: float
    contributions: dict[str, float]
    solo: dict[str, float]
    loss: dict[str, float]
    coalitions: Floats

    @property
    def cooperation(self) -> float:
        """v(A) less all that the sensors say alone: above 0 synergy, below 0 redundancy."""
        return self.value - sum(self.solo.values())

    def interactions(self) -> dict[tuple[str, str], float]:
        """Shapley interaction of each pair: above 0 they say more together, below 0 they say the same.

        sum over S without i, j of |S|! (M - |S| - 2)! / (M - 1)! * (v(S + ij) - v(S + i) - v(S + j) + v(S))
        (Grabisch and Roubens, 1999).
        """
        pairs = list(combinations(self.contributions, 2))
        return _named(pairs, _index(len(self.contributions), 2) @ self.coalitions)


def of_logits(logits: Mapping[str, Floats], log_prior: Floats, label: int | None = None) -> Decision:
    """Shapley values of v(S) = ln p_S(y) - ln prior(y), where p_S = softmax(log_prior + sum of the logits in S).

    `logits` (C,) are those of the sensors present, as they are summed in the fusion; who is absent is not in the game.
    `log_prior` (C,) need not be normalised. y is `label` where the truth is known, else the class that all sensors
    together name. Probabilities are taken to be P_LEAST or more. One matrix product over all coalitions, one softmax.
    (contribution.md, section 2; the value is the logarithmic score when a label is given.)

    Raises ValueError when logits or prior are not finite numbers of the same C classes, when there is no such class as
    `label`, and for more than MOST_SENSORS sensors.

    >>> said = of_logits({"cam0": np.array([2.0, 0.0]), "mic0": np.array([2.0, 0.0])}, np.zeros(2))
    >>> said.label, {name: round(nats, 3) for name, nats in said.contributions.items()}
    (0, {'cam0': 0.337, 'mic0': 0.337})
    >>> round(said.value, 3), round(said.solo["cam0"], 3), round(said.loss["cam0"], 3)
    (0.675, 0.566, 0.109)
    """
    rows = _checked(logits, log_prior)
    count = len(logits)
    fused = rows[0] + _coalitions(count) @ rows[1:]  # (2^M, C)
    named = int(fused[-1].argmax()) if label is None else label
    if not 0 <= named < len(log_prior):
        raise ValueError(f"there is no class {named} among {len(log_prior)}")
    top = fused.max(axis=1)
    log_p = fused[:, named] - top - np.log(np.exp(fused - top[:, None]).sum(axis=1))
    log_p = np.maximum(log_p, math.log(P_LEAST))
    values = log_p - log_p[0]
    alone = 1 << np.arange(count)
    return Decision(
        named,
        float(values[-1]),
        _named(logits, _index(count, 1) @ values),
        _named(logits, values[alone]),
        _named(logits, values[-1] - values[-1 - alone]),
        values,
    )


def exact(players: Collection[str], value: Callable[[frozenset[str]], float]) -> dict[str, float]:
    """Shapley values of any game by walking all coalitions (2^n calls of `value`); the slow oracle.

    phi_m = sum over S without m of |S|! (n - |S| - 1)! / n! * (v(S + m) - v(S)) (Shapley, 1953).
    """
    n = len(players)
    result = {}
    for player in players:
        others = [other for other in players if other != player]
        total = 0.0
        for size in range(n):
            weight = factorial(size) * factorial(n - size - 1) / factorial(n)
            for members in combinations(others, size):
                without = frozenset(members)
                total += weight * (value(without | {player}) - value(without))
        result[player] = total
    return result


def _checked(logits: Mapping[str, Floats], log_prior: Floats) -> Floats:
    """Prior and logits (1 + M, C), each row less its greatest: a constant says nothing, and must not cost precision."""
    if len(logits) > MOST_SENSORS:
        raise ValueError(f"{len(logits)} sensors have too many coalitions to walk: at most {MOST_SENSORS}")
    rows = {"the prior": log_prior, **logits}
    odd = [name for name, row in rows.items() if np.shape(row) != (len(log_prior),)]
    table = np.array([rows[name] for name in rows if name not in odd], np.float64)
    if odd or not np.isfinite(table).all():
        names = odd or [name for name, row in rows.items() if not np.isfinite(row).all()]
        raise ValueError(f"{', '.join(names)}: not {len(log_prior)} finite numbers, one a class")
    return np.asarray(table - table.max(axis=1, keepdims=True))


@cache
def _coalitions(count: int) -> Floats:
    """Who is in each coalition (2^count, count): bit k of the row's number is the k-th sensor."""
    return (np.arange(2**count)[:, None] >> np.arange(count) & 1).astype(np.float64)


@cache
def _index(count: int, order: int) -> Floats:
    """What each coalition's value counts for each group of `order` sensors (groups, 2^count): Shapley's index.

    A coalition with t of the group's sensors and s others has weight (-1)^(order - t) s! (count - s - order)! /
    (count - order + 1)!; groups are those of itertools.combinations.
    """
    groups = [np.isin(range(count), group) for group in combinations(range(count), order)]
    inside = np.array(groups, np.float64).reshape(len(groups), count) @ _coalitions(count).T
    others = (_coalitions(count).sum(axis=1) - inside).astype(int)
    weight = [
        factorial(s) * factorial(count - s - order) / factorial(count - order + 1) for s in range(count - order + 1)
    ]
    return np.asarray((-1.0) ** (order - inside) * np.array(weight)[others]) if groups else inside


def _named(names: Iterable[Key], values: Floats) -> dict[Key, float]:
    return dict(zip(names, values.tolist(), strict=True))

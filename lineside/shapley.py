"""What each sensor contributed: exact Shapley values."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from itertools import combinations
from math import factorial


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

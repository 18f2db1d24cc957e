"""Does an alarm at p <= alpha raise as many false alarms as it says?

`python -m bench.calibration [--json]` calibrates on normal windows of four laws and prints the realised false-alarm
rate over the target: mean over repetitions, and their 95th percentile in brackets. A threshold's realised rate is the
law's own survival function there, in closed form, so that repetitions differ by the calibration alone. Columns: the
empirical quantile; conformal, which refuses targets below 1 / (n + 1); `p_value` (conformal, and peaks over threshold
beyond it); and its upper confidence bound `p_upper`, of which the 95th percentile should be 1 or less.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lineside.conformal import Calibration

COUNTS, TARGETS = (2_000, 20_000), (1e-3, 1e-4, 1e-5)
REPETITIONS, SEED = 200, 4

Array = NDArray[np.float64]


class Law(NamedTuple):
    draw: Callable[[np.random.Generator, int], Array]
    survival: Callable[[float], float]


def normal_survival(x: float) -> float:
    """P(X > x) of the standard normal law.

    >>> round(normal_survival(1.959964), 6)
    0.025
    """
    return math.erfc(x / math.sqrt(2)) / 2


def t3_survival(x: float) -> float:
    """P(X > x) of Student's t with 3 degrees of freedom.

    >>> round(t3_survival(3.182446), 6), round(t3_survival(-3.182446), 6)
    (0.025, 0.975)
    """
    a = x / math.sqrt(3)
    return (math.atan2(1, a) - a / (1 + a * a)) / math.pi


def beta25_survival(x: float) -> float:
    """P(X > x) of beta(2, 5): at most one of six uniforms lies below x.

    >>> beta25_survival(0.5), beta25_survival(2.0)
    (0.109375, 0.0)
    """
    inside = min(max(x, 0.0), 1.0)
    return (1 - inside) ** 5 * (1 + 5 * inside)


LAWS = {
    "normal": Law(lambda rng, n: rng.standard_normal(n), normal_survival),
    "t(3)": Law(lambda rng, n: rng.standard_t(3, n), t3_survival),
    "lognormal": Law(lambda rng, n: rng.lognormal(size=n), lambda x: normal_survival(math.log(x))),
    "beta(2, 5)": Law(lambda rng, n: rng.beta(2, 5, n), beta25_survival),
}


def by_quantile(known: Calibration, target: float) -> float:
    return float(np.quantile(known.scores, 1 - target))


def by_conformal(known: Calibration, target: float) -> float | None:
    """The score above which the conformal p-value is at most `target`; None where none can be."""
    allowed = math.floor(target * (len(known.scores) + 1))
    return float(known.scores[-allowed]) if allowed else None


def by_p_value(known: Calibration, target: float) -> float:
    return threshold(known, known.p_value, target)


def by_p_upper(known: Calibration, target: float) -> float:
    return threshold(known, known.p_upper, target)


METHODS: dict[str, Callable[[Calibration, float], float | None]] = {
    "empirical quantile": by_quantile,
    "conformal": by_conformal,
    "p_value": by_p_value,
    "p_upper (95 %)": by_p_upper,
}


def threshold(known: Calibration, p: Callable[[float], float], target: float) -> float:
    """Where the falling function `p` of the score comes down to `target`, by bisection."""
    low, high = float(known.scores[-math.ceil(2 * target * len(known.scores)) - 1]), float(known.scores[-1])
    step = high - low
    while p(high) > target:
        low, high, step = high, high + step, 2 * step
    while high - low > 1e-5 * (1 + abs(high)):
        middle = (low + high) / 2
        low, high = (middle, high) if p(middle) > target else (low, middle)
    return high


class Row(NamedTuple):
    law: str
    normals: int
    target: float
    method: str
    mean: float | None
    p95: float | None


def measure(law: str, n: int, repetitions: int = REPETITIONS, seed: int = SEED) -> list[Row]:
    """Realised over target, one row for each target and method; None where a method refuses."""
    rng = np.random.default_rng([seed, n, list(LAWS).index(law)])
    known = [Calibration.fit(LAWS[law].draw(rng, n)) for _ in range(repetitions)]
    rows = []
    for target in TARGETS:
        for method, find in METHODS.items():
            at = [found for one in known if (found := find(one, target)) is not None]
            ratios = [LAWS[law].survival(score) / target for score in at]
            mean, p95 = (float(np.mean(ratios)), float(np.quantile(ratios, 0.95))) if ratios else (None, None)
            rows.append(Row(law, n, target, method, mean, p95))
    return rows


def table(rows: list[Row]) -> str:
    """Rows as Markdown, a column for each method."""
    lines = ["| law | normals | target | " + " | ".join(METHODS) + " |", "|---" * (3 + len(METHODS)) + "|"]
    for start in range(0, len(rows), len(METHODS)):
        of_methods = rows[start : start + len(METHODS)]
        cells = [f"{row.mean:.2f} ({row.p95:.2f})" if row.mean is not None else "refuses" for row in of_methods]
        first = of_methods[0]
        lines.append(f"| {first.law} | {first.normals} | {first.target:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print rows as JSON")
    parser.add_argument("--repetitions", type=int, default=REPETITIONS)
    chosen = parser.parse_args()
    rows = [row for n in COUNTS for law in LAWS for row in measure(law, n, chosen.repetitions)]
    print(json.dumps([row._asdict() for row in rows]) if chosen.json else table(rows))


if __name__ == "__main__":
    main()

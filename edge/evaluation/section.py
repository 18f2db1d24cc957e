"""What an evaluation found: a section of the report, as data. edge.evaluation.report prints and draws it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Cell = str | float | int | None  # None: does not apply


@dataclass(frozen=True)
class Table:
    """Rows under `columns`; `told` says above it what is counted, in which unit, on which split."""

    told: str
    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]]


@dataclass(frozen=True)
class Plot:
    """Lines of (x, y) by name over one pair of axes; `marks` are x of events, `limits` are y of thresholds, by name."""

    title: str
    x: str
    y: str
    lines: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
    marks: dict[str, float] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Goal:
    """A number that was to be reached: `least` or `most`; `measured` is what came out."""

    about: str
    measured: float
    least: float | None = None
    most: float | None = None

    @property
    def reached(self) -> bool:
        """Whether it is inside; not a number is outside.

        >>> Goal("AUROC", 0.9, least=0.85).reached, Goal("FAR", float("nan"), most=0.136).reached
        (True, False)
        """
        low = -np.inf if self.least is None else self.least
        high = np.inf if self.most is None else self.most
        return bool(low <= self.measured <= high)


@dataclass(frozen=True)
class Section:
    """One data set: what was done, in sentences; what was to be reached; tables and plots."""

    title: str
    told: str
    goals: list[Goal] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)

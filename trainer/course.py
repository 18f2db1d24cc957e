"""The course of nights as one picture: each stage beside the one before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trainer.diary import Night


def draw(course: Sequence[Night], path: Path) -> None:
    """Retrieval and AUROC of each stage beside its parent, on each night's own moments."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.6), layout="constrained")
    axes = figure.add_subplot()
    for name, colour in (("retrieval", "C0"), ("auroc", "C1")):
        for night in course:
            before, after = (getattr(night.beside[0], f"{name}_{when}") for when in ("before", "after"))
            if before is not None and after is not None:
                axes.plot([night.version - 0.3, night.version], [before, after], "o-", color=colour, markersize=4)
    axes.plot([], [], "o-", color="C0", label="retrieval among few")
    axes.plot([], [], "o-", color="C1", label="AUROC")
    versions = [night.version for night in course]
    axes.set(xlabel="stage: before, after", ylim=(0, 1.02), xlim=(min(versions) - 0.8, max(versions) + 0.5))
    axes.set_xticks(versions)
    axes.legend(loc="lower left")
    figure.savefig(path.with_suffix(".new.png"), dpi=110)
    path.with_suffix(".new.png").replace(path)

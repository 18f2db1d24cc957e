"""Sections as Markdown with pictures, as plain values for scripts, and as lines for a terminal."""

from __future__ import annotations

import io
import math
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edge.evaluation.section import Cell, Goal, Plot, Section, Table
from lineside.errors import ConfigError
from lineside.files import write_atomic

COLOURS = ("tab:red", "tab:purple", "tab:brown", "tab:gray")


def write(sections: Sequence[Section], path: Path, title: str, command: str, day: str) -> list[Path]:
    """Write the report `path` (Markdown) and its pictures beside it, in a folder of the same name; gives all paths.

    Raises ConfigError where matplotlib is missing.
    """
    shown: dict[int, str] = {}
    for section in sections:
        for number, plot in enumerate(section.plots):
            picture = path.with_suffix("") / f"{_slug(section.title)}-{number + 1}.png"
            picture.parent.mkdir(parents=True, exist_ok=True)
            draw([plot], picture)
            shown[id(plot)] = picture.relative_to(path.parent).as_posix()
    write_atomic(path, markdown(sections, title, command, day, shown).encode())
    return [path, *(path.parent / picture for picture in shown.values())]


def markdown(sections: Sequence[Section], title: str, command: str, day: str, pictures: dict[int, str]) -> str:
    """The report; `pictures` gives the file of each plot, by its id."""
    machine = f"{platform.machine()}, {platform.python_implementation()} {platform.python_version()}"
    lines = [f"# {title}", "", f"{day}, `{command}` on {machine}.", ""]
    goals = [(section.title, goal) for section in sections for goal in section.goals]
    if goals:
        lines += ["| data | goal | measured | reached |", "|---|---|---|---|"]
        lines += [f"| {name} | {_wanted(goal)} | {shown(goal.measured)} | {_reached(goal)} |" for name, goal in goals]
        lines += [""]
    for section in sections:
        lines += [f"## {section.title}", "", section.told, ""]
        for table in section.tables:
            lines += [table.told, "", *_table(table), ""]
        lines += [f"![{plot.title}]({pictures[id(plot)]})\n" for plot in section.plots if id(plot) in pictures]
    return "\n".join(lines)


def plain(sections: Sequence[Section]) -> list[dict[str, Any]]:
    """Goals and tables as plain values, for JSON; what is not a number is null."""

    def cell(value: Cell) -> Cell:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return [
        {
            "title": section.title,
            "goals": [{**asdict(g), "measured": cell(g.measured), "reached": g.reached} for g in section.goals],
            "tables": [
                {"told": t.told, "rows": [dict(zip(t.columns, map(cell, row), strict=True)) for row in t.rows]}
                for t in section.tables
            ],
        }
        for section in sections
    ]


def draw(plots: Sequence[Plot], path: Path) -> None:
    """Plots, one below the other, as a PNG. Raises ConfigError where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ConfigError("plots", "need matplotlib", "install lineside[evaluation]") from error
    figure = Figure(figsize=(9, 3.6 * len(plots)), layout="constrained")
    for plot, axes in zip(plots, figure.subplots(len(plots), squeeze=False)[:, 0], strict=True):
        for name, (x, y) in plot.lines.items():
            axes.plot(x, y, label=name, linewidth=1.1)
        for name, height in plot.limits.items():
            axes.axhline(height, color="black", linestyle="--", linewidth=0.9, label=name)
        for (name, at), colour in zip(plot.marks.items(), COLOURS * 8, strict=False):
            axes.axvline(at, color=colour, linestyle=":", linewidth=1.4, label=name)
        axes.set(title=plot.title, xlabel=plot.x, ylabel=plot.y)
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    write_atomic(path, buffer.getvalue())


def text(section: Section) -> str:
    """A section for a terminal: what was done, and its tables."""
    lines = [section.title, section.told]
    for table in section.tables:
        lines += ["", table.told, *_table(table)]
    return "\n".join(lines)


def shown(value: Cell) -> str:
    """One cell: a number to three digits, nothing for what does not apply.

    >>> shown(0.98765), shown(12), shown(None), shown(float("nan")), shown(1234.5)
    ('0.988', '12', '', '–', '1234')
    """
    if value is None:
        return ""
    if isinstance(value, float):
        if not math.isfinite(value):
            return "–"
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def _table(table: Table) -> list[str]:
    head = ["| " + " | ".join(table.columns) + " |", "|---" * len(table.columns) + "|"]
    return [*head, *("| " + " | ".join(map(shown, row)) + " |" for row in table.rows)]


def _wanted(goal: Goal) -> str:
    ends = [f"≥ {goal.least:g}" if goal.least is not None else "", f"≤ {goal.most:g}" if goal.most is not None else ""]
    return f"{goal.about} {' and '.join(filter(None, ends))}".strip()


def _reached(goal: Goal) -> str:
    return "yes" if goal.reached else "**no**"


def _slug(title: str) -> str:
    """A title as the name of a file.

    >>> _slug("SKAB: a pump")
    'skab-a-pump'
    """
    return re.sub(r"[^a-z0-9]+", "-", title.casefold()).strip("-")

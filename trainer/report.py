"""What `lineside train compare` found, as Markdown and as a picture."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # no screen is needed
from matplotlib import pyplot as plt

from lineside.files import write_atomic
from trainer.compare import Row, Run, summary
from trainer.methods import METHODS

HEAD = (
    "| method | final (std over seeds) | 95 % of test | of joint | BWT (std) | 95 % of test | forgetting | learned "
    "| worst / peak | drift | s | peak MiB | stored |"
)
OURS, BASELINE, JOINT = "tab:blue", "tab:gray", "tab:green"


def by_benchmark(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs by the benchmark that they are of."""
    return {name: [run for run in runs if run.benchmark == name] for name in dict.fromkeys(r.benchmark for r in runs)}


def rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The table as plain values, for JSON."""
    return [{name: round(v, 4) if isinstance(v, float) else v for name, v in asdict(r).items()} for r in summary(runs)]


def write(runs: Sequence[Run], folder: Path, name: str, command: str) -> dict[str, str]:
    """Write `{name}.md` and `{name}.png` into a folder; gives their paths."""
    found = by_benchmark(runs)
    text, picture = folder / f"{name}.md", folder / f"{name}.png"
    write_atomic(text, markdown(found, command).encode())
    draw(found, picture)
    return {"table": str(text), "plot": str(picture)}


def markdown(found: Mapping[str, Sequence[Run]], command: str) -> str:
    """A table a benchmark, then what every method is, then the scores stage by stage."""
    first = next(iter(found.values()))[0]
    seeds = sorted({run.seed for runs in found.values() for run in runs})
    lines = [
        f"# {command.rpartition('--benchmark ')[2].split()[0]}: methods compared",
        "",
        f"`{command}` on {platform.machine()}, {platform.python_implementation()} {platform.python_version()}, "
        f"one thread a run, seeds {', '.join(map(str, seeds))}, {first.epochs} epochs a stage, split `{first.split}`.",
        "",
    ]
    for name, runs in found.items():
        lines += [f"## {name}", "", HEAD, "|" + "---|" * 13, *(_line(row) for row in summary(runs)), ""]
    lines += ["## The methods", ""]
    used = [name for name in METHODS if any(run.method == name for runs in found.values() for run in runs)]
    lines += [f"- **{name}**{' (ours)' if METHODS[name].ours else ''}: {METHODS[name].about}." for name in used]
    lines += ["", "## Score of each task after each stage (mean over seeds)", ""]
    for name, runs in found.items():
        for method in used:
            mine = [run for run in runs if run.method == method]
            if mine:
                lines += [f"{name}, {method}:", "", *_stages(mine), ""]
    return "\n".join(lines)


def _line(row: Row) -> str:
    mark = "**" if METHODS[row.method].ours else ""
    return (
        f"| {mark}{row.method}{mark} | {row.final:.3f} ({row.final_std:.3f}) | {row.low:.3f}..{row.high:.3f} "
        f"| {row.of_joint:.3f} | {row.backward:+.3f} ({row.backward_std:.3f}) "
        f"| {row.backward_low:+.3f}..{row.backward_high:+.3f} | {row.forgetting:.3f} | {row.learned:.3f} "
        f"| {row.worst:.2f} | {row.drift:.2f} | {row.seconds:.0f} | {row.peak_mib:.0f} | {row.stored} |"
    )


def _stages(runs: Sequence[Run]) -> list[str]:
    width = len(runs[0].scores[-1])
    lines = ["| after |" + "".join(f" task {i + 1} |" for i in range(width)), "|" + "---|" * (width + 1)]
    for t in range(len(runs[0].scores)):
        values = [sum(run.scores[t][i] for run in runs) / len(runs) for i in range(len(runs[0].scores[t]))]
        cells = "".join(f" {value:.3f} |" for value in values) + " |" * (width - len(values))
        lines.append(f"| {t + 1} |{cells}")
    return lines


def draw(found: Mapping[str, Sequence[Run]], path: Path) -> None:
    """Final score and backward transfer of every method, one row of panels a benchmark."""
    figure, panels = plt.subplots(len(found), 2, figsize=(11, 4.2 * len(found)), squeeze=False, layout="constrained")
    for (name, runs), (left, right) in zip(found.items(), panels, strict=True):
        table = summary(runs)[::-1]
        names = [row.method for row in table]
        colours = [JOINT if METHODS[n].joint else OURS if METHODS[n].ours else BASELINE for n in names]
        left.barh(names, [row.final for row in table], xerr=[row.final_std for row in table], color=colours)
        left.set(title=f"{name}: mean of all tasks at the end", xlim=(0, 1))
        right.barh(names, [row.backward for row in table], xerr=[row.backward_std for row in table], color=colours)
        right.set(title="backward transfer", yticklabels=[])
        right.axvline(0, color="black", linewidth=0.8)
    figure.savefig(path, dpi=110)
    plt.close(figure)

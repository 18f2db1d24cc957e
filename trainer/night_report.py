"""What a person reads of a night: one Markdown file, and the same as JSON."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from lineside.errors import GateError
from lineside.evidence import Again
from lineside.files import write_atomic
from trainer import course
from trainer.desk import PROMOTE, Desk
from trainer.diary import Beside, Diary, Night
from trainer.night import minutes_of
from trainer.room import tidy

PLOT = "course.png"
SAID = {
    "": "stopped, and goes on by itself at the next start",
    "nothing new": "nothing to do",
    "too little": "too little that is new",
    "waits": "nothing was trained",
    "kept": "encoder files are written; nothing was released",
    "published": "signed and in the repository",
    "canary": "on its way to the first ring; what follows waits for approval",
    "refused": "REFUSED: nothing left",
    "stopped": "STOPPED: it takes a person",
}


def report(desk: Desk, diary: Diary, night: Night) -> None:
    """Write a night's report and the plot, make room, and run the plan's `report_command`."""
    folder = desk.folder / "reports"
    write_atomic(folder / f"{night.name}.json", msgspec.json.format(msgspec.json.encode(night), indent=2) + b"\n")
    if shown := [each for each in nights(folder) if each.beside]:
        course.draw(shown, folder / PLOT)
    path = folder / f"{night.name}.md"
    write_atomic(path, text(desk, night, plotted=bool(shown)).encode())
    tidy(desk, diary, night)
    desk.tell(f"{path}: {headline(night)}")
    if desk.plan.report_command:
        done = subprocess.run([*desk.plan.report_command, str(path)], check=False)
        if done.returncode:
            desk.tell(f"report_command ended with {done.returncode}")


def headline(night: Night) -> str:
    """One line: what came of it, and why."""
    about = f"stage {night.version}: " if night.version else ""
    return f"{about}{SAID[night.outcome]}{f' ({night.reason})' if night.reason else ''}"


def text(desk: Desk, night: Night, *, plotted: bool = False) -> str:
    """The report, as Markdown."""
    parts = [f"# Night of {night.name}", headline(night), _next(desk, night), _new(night)]
    parts += [_table(("gate", "value", "limit", "passed"), _gates(night)), _table(BESIDE, map(_beside, night.beside))]
    parts += [_table(("labelled alarm", "said", "this stage"), map(_again, night.again))]
    parts += [_list("Drift of old embeddings, relative", (f"{name}: {v:.2g}" for name, v in night.drift.items()))]
    parts += [_list("Certified on", [night.certify_on, night.faulty] if night.stage else [])]
    parts += [_list("Encoder files", (f"`{file}`" for file in night.files)), _list("Notes", night.notes)]
    parts += [f"![course]({PLOT})"] if plotted else []
    return "\n\n".join(part for part in parts if part) + "\n"


BESIDE = ("beside", "retrieval before", "after", "AUROC before", "after, normal as it was")


def nights(folder: Path) -> list[Night]:
    """All nights that have a report, oldest first."""
    return [msgspec.json.decode(file.read_bytes(), type=Night) for file in sorted(folder.glob("*.json"))]


def _next(desk: Desk, night: Night) -> str:
    """What a person is asked to do, if anything."""
    own = str(desk.place(desk.plan.plant))
    if night.outcome in ("canary", "published"):
        words = PROMOTE if night.outcome == "canary" else PROMOTE.replace("promote", "start")
        chosen = " ".join(f"--modality={modality}" for modality in night.modalities)
        return f"Waits for approval: `{words.format(plant=own, modalities=chosen)}`"
    if night.outcome not in ("refused", "stopped") or not night.version:
        return ""
    failed = [f"`{gate.name}` is {gate.value:.4g}, limit {gate.limit:.4g}" for gate in night.gates if not gate.passed]
    if night.code != GateError.exit_code or not failed:
        return "When that is mended, go on from there: `lineside train nightly --again`"
    waive = f'lineside export waive {desk.stage(night.version)} --gate "…" --reason "…" --by "…"'
    answer = f"To answer for it: `{waive}`, then `lineside train nightly --again`; else more recordings will be tried."
    return "\n\n".join([_list("Failed", failed), answer])


def _new(night: Night) -> str:
    total = ", ".join(f"{minutes:g} min of {name}" for name, minutes in minutes_of(night.learn).items())
    rows = [(found.path, _minutes(found.minutes), found.problem or "whole") for found in night.learn]
    table = _table(("new recording", "minutes", "read"), rows)
    return f"New: {len(rows)} recordings, {total}\n\n{table}" if rows else ""


def _minutes(minutes: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in minutes.items())


def _gates(night: Night) -> list[Sequence[str]]:
    sides = {True: "at most", False: "at least"}
    return [
        (g.name, f"{g.value:.4g}", f"{sides[g.at_most]} {g.limit:.4g}", "yes" if g.passed else "NO")
        for g in night.gates
    ]


def _beside(row: Beside) -> Sequence[str]:
    found = (row.retrieval_before, row.retrieval_after, row.auroc_before, row.auroc_after)
    return row.against, *("–" if value is None else f"{value:.3f}" for value in found)


def _again(row: Again) -> Sequence[str]:
    told = {True: "raises it", False: "does not raise it", None: row.why}[row.raised]
    return f"`{row.key}`", f"real: {row.kind}" if row.real else "not real", told


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if len(lines) > 2 else ""


def _list(title: str, lines: Iterable[str]) -> str:
    told = [f"- {line}" for line in lines if line]
    return "\n".join([f"{title}:", "", *told]) if told else ""

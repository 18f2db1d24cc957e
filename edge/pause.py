"""What a rollback of one modality costs a line that runs: seconds, windows lost, and how long anybody waited.

The samples are made up and come in real time; all else is the device's own.
"""

from __future__ import annotations

import itertools
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import msgspec

from edge.changeover import Changeover
from edge.config import DeviceConfig
from edge.encoder import Encoder
from edge.pipeline import Pipeline
from edge.rollout import Rollout
from edge.slots import Slots
from edge.trial import Trial, prepare
from lineside.cli import tell
from lineside.clock import NS, SystemClock
from lineside.errors import ReleaseError
from lineside.files import sha256
from lineside.messages import Embeddings


class Line(msgspec.Struct, frozen=True):
    """One modality meanwhile: windows embedded, windows missing among them, the longest time between two (seconds)."""

    windows: int
    lost: int
    longest_s: float


class Rollback(msgspec.Struct, frozen=True):
    """`seconds` is from the command until the old encoder is in use, `first_s` until a window that it embedded.

    `ready_s` is how long after its start the device took until a rollback need not learn anything, judging meanwhile;
    `moments` are those of normal running, `hop_s` is between two windows.
    """

    modality: str
    versions: tuple[str, str]
    moments: int
    hop_s: float
    ready_s: float
    seconds: float
    first_s: float
    lines: dict[str, Line]


class _Window(NamedTuple):
    at: float
    start_ns: int
    version: str


@dataclass
class _Seen:
    """When which windows were embedded, by modality, and by which version."""

    rows: dict[str, list[_Window]] = field(default_factory=dict)

    def hear(self, messages: Sequence[object]) -> None:
        now = perf_counter()
        for message in messages:
            if isinstance(message, Embeddings):
                for one in message.embeddings:
                    self.rows.setdefault(one.modality, []).append(_Window(now, message.start_ns, one.version))

    def line(self, modality: str, hop_s: float) -> Line:
        rows = self.rows[modality]
        whole = round((rows[-1].start_ns - rows[0].start_ns) / (hop_s * NS)) + 1
        longest = max(after.at - before.at for before, after in itertools.pairwise(rows))
        return Line(len(rows), whole - len(rows), longest)


def measure(config: DeviceConfig | None, files: Sequence[Path], newer: Path, moments: int, seconds: float) -> Rollback:
    """Run a device with `newer` in use and the encoder of its modality in `files` before it, and take that back."""
    with tempfile.TemporaryDirectory(prefix="lineside-rollback-") as folder:
        trial = prepare(files, Path(folder), config)
        tell("normal running is being learned")
        learned = trial.commission(moments)
        modality = _install(trial, newer)
        clock = SystemClock()
        pipeline = Pipeline(trial.config)
        slots = Slots(trial.base / trial.config.device.state_dir, clock)
        changeover = Changeover(trial.config, trial.base, pipeline, slots, None)
        rollout = Rollout(changeover, None, clock)
        changeover.begin()
        rollout.started()
        newest, seen, done = changeover.ensemble.versions[modality], _Seen(), dict[str, float]()
        chores = threading.Thread(target=_chores, args=(rollout, modality, seconds, done), daemon=True)
        chores.start()
        _watch(trial, pipeline, seen, chores, seconds / 2)
        older = changeover.ensemble.versions[modality]
        begun, hop_s = done["began"], trial.config.windows.hop_s
        first = next(row.at for row in seen.rows[modality] if row.at > begun and row.version == older)
        lines = {name: seen.line(name, hop_s) for name in sorted(seen.rows)}
        took = done["ready"], done["ended"] - begun, first - begun
        return Rollback(modality, (newest, older), len(learned.moments), hop_s, *took, lines)


def _install(trial: Trial, newer: Path) -> str:
    """Put this encoder in use over the one that is; its modality. Raises ReleaseError for the same version."""
    data, card = newer.read_bytes(), Encoder.load(newer).card
    older = trial.encoders[card.modality].card
    if card.version == older.version:
        raise ReleaseError("version", newer.name, f"is version {card.version}, as the other", "give another version")
    slots = Slots(trial.base / trial.config.device.state_dir, SystemClock())
    slots.stage(card.modality, data, version=card.version, expected_sha256=sha256(data), target=newer.name)
    slots.switch(card.modality)
    return card.modality


def _chores(rollout: Rollout, modality: str, seconds: float, done: dict[str, float]) -> None:
    """What the agent's chores do: get ready, wait a while, roll back on a command."""
    clock, began = SystemClock(), perf_counter()
    while not rollout.quiet:
        rollout.step()
        clock.sleep(0.05)
    done["ready"] = perf_counter() - began
    clock.sleep(seconds / 2)
    done["began"] = perf_counter()
    rollout.rollback(modality)
    done["ended"] = perf_counter()


def _watch(trial: Trial, pipeline: Pipeline, seen: _Seen, chores: threading.Thread, after_s: float) -> None:
    """Push samples as they would come, until the chores are done and for a while after."""
    clock, began, first_ns, ended = SystemClock(), perf_counter(), 0, 0.0
    for samples in trial.samples():
        first_ns = first_ns or samples.start_ns
        clock.sleep(began + (samples.start_ns - first_ns) / NS - perf_counter())
        seen.hear(pipeline.push(samples))
        if not chores.is_alive():
            ended = ended or perf_counter()
            if perf_counter() - ended > after_s:
                return
        tell(f"{perf_counter() - began:.0f} s")


def table(found: Rollback) -> str:
    """The rollback as Markdown."""
    newest, older = found.versions
    lines = [
        f"{found.modality}-{newest} back to {found.modality}-{older}, {found.moments} moments of normal running: "
        f"{found.seconds:.2f} s, first window by it after {found.first_s:.2f} s; "
        f"ready for it {found.ready_s:.1f} s after the start",
        "",
        "| modality | windows | lost | longest between two (s) | hop (s) |",
        "|---" * 5 + "|",
    ]
    for name, line in found.lines.items():
        lines.append(f"| {name} | {line.windows} | {line.lost} | {line.longest_s:.2f} | {found.hop_s:g} |")
    return "\n".join(lines)

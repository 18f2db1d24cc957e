"""Two finished stages that share a modality: what meets in them, and the pools and pairs of recordings, embedded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lineside.errors import ConfigError
from trainer import checkpoint
from trainer.align import Matched
from trainer.attach_plan import AttachPlan
from trainer.data import Dataset, read
from trainer.evaluate import embed
from trainer.plan import RecordingPart, WindowSettings, place
from trainer.progress import Progress, silent
from trainer.quadruples import Memories
from trainer.work import Parent

CHOOSE_SHARE = 0.2  # of the pairs, the last in time: they choose the upper bound's map
FEWEST_RECORDINGS = 8  # to be resampled whole; else stretches of recordings are
STRETCH_WINDOWS = 10


@dataclass(frozen=True)
class Spaces:
    """Leaf and base, and the modalities that matter."""

    leaf: Parent
    base: Parent
    newcomer: str
    overlap: str
    partner: str

    @property
    def windows(self) -> WindowSettings:
        """Those of both."""
        return self.base.stage.windows


def spaces(plan: AttachPlan, folder: Path) -> Spaces:
    """Load both stages of a plan that lies in `folder`, and say what meets through what.

    Raises ConfigError where they do not overlap, do not know the newcomer or the partner, or cut other windows, and
    GateError for a stage that failed.
    """
    leaf, base = (_space(place(path, folder)) for path in (plan.leaf, plan.base))
    in_leaf, in_base = set(leaf.stage.prepare), set(base.stage.prepare)
    if plan.newcomer not in in_leaf:
        told = f"the leaf {leaf.stage.name} knows {_names(in_leaf)}, not {plan.newcomer}"
        raise ConfigError("newcomer", told, "give the stage that was trained with it as `leaf`")
    if plan.newcomer in in_base:
        told = f"the base {base.stage.name} knows {plan.newcomer} already"
        raise ConfigError("newcomer", told, "train a further stage of the base instead")
    overlap = _one("overlap", plan.overlap, (in_leaf & in_base) - {plan.newcomer}, _no_overlap(in_leaf, in_base))
    partner = _one("partner", plan.partner, in_base - {overlap}, f"the base knows {overlap} alone")
    cuts = {(stage.windows.length_s, stage.windows.hop_s) for stage in (leaf.stage, base.stage)}
    if len(cuts) > 1:
        told = " and ".join(f"{length:g} s every {hop:g} s" for length, hop in sorted(cuts))
        raise ConfigError("leaf", f"its windows are not the base's: {told}", "train it again with the base's [windows]")
    return Spaces(leaf, base, plan.newcomer, overlap, partner)


def _space(folder: Path) -> Parent:
    stage = checkpoint.load_stage(folder)
    checkpoint.must_pass(stage, folder)
    return Parent(stage, checkpoint.load_tensors(folder, stage))


def _one(key: str, wanted: str, known: set[str], none: str) -> str:
    """The one of `known` that the plan means."""
    if not known:
        mend = "record a sensor that both stages share, and train both with it; without one, nothing can be attached"
        raise ConfigError(key, none, mend)
    if wanted and wanted not in known:
        raise ConfigError(key, f"{wanted} is not one that could be it", f"choose of: {_names(known)}")
    if not wanted and len(known) > 1:
        raise ConfigError(key, f"there are several: {_names(known)}", f"say which with `{key}`")
    return wanted or next(iter(known))


def _no_overlap(in_leaf: set[str], in_base: set[str]) -> str:
    return f"leaf ({_names(in_leaf)}) and base ({_names(in_base)}) have no modality in common"


def _names(names: set[str]) -> str:
    return ", ".join(sorted(names))


@dataclass(frozen=True)
class Pools:
    """Prepared windows of the pools: newcomer, partner, and the overlap as the leaf and as the base prepares it."""

    m: NDArray[np.generic]
    c: NDArray[np.generic]
    o_leaf: NDArray[np.generic]
    o_base: NDArray[np.generic]

    def embedded(self, known: Spaces) -> Memories:
        """What the two spaces make of them: the newcomer by the leaf, the partner by the base, the overlap by both."""
        leaf, base = known.leaf.tensors.encoders, known.base.tensors.encoders
        return Memories(
            m=torch.from_numpy(embed(leaf[known.newcomer], self.m)),
            o_leaf=torch.from_numpy(embed(leaf[known.overlap], self.o_leaf)),
            o_base=torch.from_numpy(embed(base[known.overlap], self.o_base)),
            c=torch.from_numpy(embed(base[known.partner], self.c)),
        )


def pools(plan: AttachPlan, known: Spaces, folder: Path, progress: Progress = silent) -> Pools:
    """Read the pools; row by row, both spaces get the same windows of the overlap.

    Raises ConfigError when they cut other moments, and what trainer.data.read raises.
    """
    newcomers = _read(known.leaf, known.newcomer, plan.newcomers, folder, progress)
    partners = _read(known.base, known.partner, plan.partners, folder, progress)
    by_leaf, by_base = (
        _read(each, known.overlap, plan.overlaps, folder, progress) for each in (known.leaf, known.base)
    )
    if not np.array_equal(by_leaf.start_ns, by_base.start_ns):
        told = "leaf and base cut different moments of the overlap's recordings"
        raise ConfigError("overlaps", told, "train both stages with the same [windows]")
    both = [view.present & by_base.views[sensor].present for sensor, view in by_leaf.views.items()]
    o_leaf, o_base = (
        np.concatenate([dataset.views[sensor].inputs[rows] for sensor, rows in zip(by_leaf.views, both, strict=True)])
        for dataset in (by_leaf, by_base)
    )
    m, c = (
        dataset.of_modality(name, np.arange(len(dataset)))
        for name, dataset in ((known.newcomer, newcomers), (known.partner, partners))
    )
    return Pools(m, c, o_leaf, o_base)


def _read(space: Parent, modality: str, parts: list[RecordingPart], folder: Path, progress: Progress) -> Dataset:
    return read(parts, folder, space.stage.windows, space.stage.prepare, progress, only={modality})


def matched(
    known: Spaces, parts: list[RecordingPart], folder: Path, progress: Progress = silent
) -> tuple[Matched, list[NDArray[np.int64]]]:
    """Newcomer and partner of recordings that hold both, embedded; which rows come first and which last in time.

    Raises ConfigError where no moment has both.
    """
    specs = {**known.base.stage.prepare, known.newcomer: known.leaf.stage.prepare[known.newcomer]}
    dataset = read(parts, folder, known.windows, specs, progress, only={known.newcomer, known.partner})
    m, c, at = [], [], []
    for a in (view for view in dataset.views.values() if view.modality == known.newcomer):
        for b in (view for view in dataset.views.values() if view.modality == known.partner):
            at.append(np.flatnonzero(a.present & b.present))
            m.append(embed(known.leaf.tensors.encoders[known.newcomer], a.inputs[at[-1]]))
            c.append(embed(known.base.tensors.encoders[known.partner], b.inputs[at[-1]]))
    if not sum(len(rows) for rows in at):
        told = f"has no moment with both {known.newcomer} and {known.partner}"
        raise ConfigError(parts[0].path, told, "give a recording of both at once, or leave it out of the plan")
    rows = np.concatenate(at)
    made = Matched(torch.from_numpy(np.concatenate(m)), torch.from_numpy(np.concatenate(c)), groups(dataset)[rows])
    return made, [np.flatnonzero(np.isin(rows, part)) for part in dataset.split(CHOOSE_SHARE)]


def groups(dataset: Dataset) -> NDArray[np.int64]:
    """What is resampled together: recordings, or stretches of ten windows' length where they are fewer than eight."""
    if len(np.unique(dataset.recording)) >= FEWEST_RECORDINGS:
        return dataset.recording
    stretch = dataset.start_ns // (STRETCH_WINDOWS * dataset.length_ns)
    return np.unique(np.stack([dataset.recording, stretch]), axis=1, return_inverse=True)[1].reshape(-1)


@dataclass(frozen=True)
class Evidence:
    """Pairs that only measure (`held`), and those from which the upper bound is learned and chosen, if any."""

    held: Matched
    learn: Matched | None = None
    choose: Matched | None = None


def evidence(plan: AttachPlan, known: Spaces, folder: Path, progress: Progress = silent) -> Evidence | None:
    """The pairs that the plan names; None where it names none to measure on."""
    if not plan.hold_out:
        return None
    held, _ = matched(known, plan.hold_out, folder, progress)
    if not plan.paired:
        return Evidence(held)
    pairs, (first, last) = matched(known, plan.paired, folder, progress)
    return Evidence(held, pairs[first], pairs[last])

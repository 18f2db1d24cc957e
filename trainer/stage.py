"""One stage from plan to proven checkpoint: read, train, remember, prove, judge, save."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lineside import features
from lineside.clock import NS, Clock
from lineside.errors import ConfigError, RecordingError
from lineside.features import Prepare
from lineside.files import sha256
from lineside.release import Certificate
from trainer import certificate, checkpoint, evaluate, gates, loop, projection
from trainer.checkpoint import Change, Counters, Stage, Tensors
from trainer.data import Dataset, read
from trainer.encoders import Encoders
from trainer.plan import Plan, WindowSettings, place
from trainer.progress import Progress, silent

FEWEST_MOMENTS, BANK_ROWS, CALIBRATION_ROWS = 8, 256, 128


@dataclass(frozen=True)
class Parent:
    """The stage that this one follows."""

    stage: Stage
    tensors: Tensors


def run_stage(
    plan: Plan, base: Path, clock: Clock, progress: Progress = silent, max_steps: int | None = None
) -> Stage | None:
    """Train the stage of a plan that lies in folder `base`, or go on where it stopped; None when `max_steps` stops it.

    A finished stage of the same plan, parent and recordings is given back as it is. A stage whose gates fail is
    saved as failed: look at `Stage.passed`. Raises ConfigError and RecordingError.
    """
    folder = place(plan.out, base)
    parent = load_parent(plan, base)
    specs = wanted_specs(plan, parent)
    dataset = read(plan.recordings, base, wanted_windows(plan, parent), specs, progress)
    identity = sha256("\n".join((plan.sha256, dataset.sha256, parent.stage.name if parent else "")).encode())
    if (folder / checkpoint.STAGE).exists():
        return _finished(folder, plan, dataset, parent)
    learn, held = dataset.split(plan.held_out)
    _enough(plan, dataset, learn)

    encoders = start(plan, dataset, parent, learn).to(loop.device())
    protections = protect(plan, dataset, parent, encoders)
    done = loop.train(
        encoders, dataset, learn, plan, protections, folder, identity, clock, progress, max_steps=max_steps
    )
    if not done:
        return None

    tensors = remember(plan, dataset, parent, encoders, learn)
    measured = evaluate.measure(encoders, dataset, held)
    encoders.cpu()
    proof = prove(plan, parent, tensors, measured, trained_pairs(dataset, learn))
    tensors.bank |= bank(proof.stage, dataset, encoders, held)
    files = checkpoint.save_tensors(folder, tensors)
    prepare = {**(parent.stage.prepare if parent else {}), **dataset.specs}
    stage = Stage(
        stage=proof.stage,
        parent=proof.parent,
        space=parent.stage.space if parent else f"s-{files[checkpoint.WEIGHTS][:12]}",
        plan=plan,
        plan_sha256=plan.sha256,
        data_sha256=dataset.sha256,
        files=files,
        prepare=prepare,
        prepare_sha256=checkpoint.fingerprints(prepare),
        sensors={**(parent.stage.sensors if parent else {}), **dataset.modalities},
        windows=WindowSettings(length_s=dataset.length_ns / NS, hop_s=dataset.hop_ns / NS),
        counters=Counters(
            len(dataset), len(learn), len(held), plan.epochs * (len(learn) // min(plan.batch, len(learn)))
        ),
        bad_windows=dataset.bad,
        warnings=dataset.warnings,
        capacity={name: protection.capacity for name, protection in protections.items()},
        metrics=measured,
        certificate=proof,
    )
    checkpoint.save_stage(folder, stage)
    return stage


def load_parent(plan: Plan, base: Path) -> Parent | None:
    """The parent stage, which must have passed its gates and have the plan's dimension."""
    if not plan.parent:
        return None
    folder = place(plan.parent, base)
    stage = checkpoint.load_stage(folder)
    checkpoint.must_pass(stage, folder)
    if stage.plan.dim != plan.dim:
        told = f"dim is {plan.dim}, but the parent's embeddings have {stage.plan.dim}"
        raise ConfigError("plan", told, f"set dim = {stage.plan.dim}, or leave out `parent`")
    return Parent(stage, checkpoint.load_tensors(folder, stage))


def wanted_specs(plan: Plan, parent: Parent | None) -> dict[str, Prepare]:
    """Preparations that are fixed before reading: the parent's, and the plan's for new modalities."""
    asked = {features.modality(spec): spec for spec in plan.prepare}
    known = parent.stage.prepare if parent else {}
    for modality in asked.keys() & known.keys():
        if asked[modality] != known[modality]:
            told = f"[[prepare]] for {modality} is not what the parent's encoder was trained with"
            raise ConfigError("plan", told, "leave it out, or start a new first stage")
    return {**asked, **known}


def wanted_windows(plan: Plan, parent: Parent | None) -> WindowSettings:
    """The plan's windows; where it says nothing, the parent's."""
    if parent is None:
        return plan.windows
    was = parent.stage.windows
    return WindowSettings(length_s=plan.windows.length_s or was.length_s, hop_s=plan.windows.hop_s or was.hop_s)


def start(plan: Plan, dataset: Dataset, parent: Parent | None, learn: NDArray[np.int64]) -> Encoders:
    """Encoders as they stand before the first step: old trunks frozen, new ones fresh and fitted to their data."""
    torch.manual_seed(plan.seed)
    old = parent.stage.prepare if parent else {}
    encoders = checkpoint.build({**old, **dataset.specs}, plan.dim)
    if parent:
        encoders.load_state_dict(parent.tensors.encoders.state_dict(), strict=not (dataset.specs.keys() - old.keys()))
    for modality in encoders:
        encoder = encoders[modality]
        if modality in old:
            encoder.freeze_trunk()
            encoder.head.requires_grad_(modality in dataset.specs)
        else:
            encoder.fit(torch.from_numpy(dataset.of_modality(modality, learn)))
    return encoders


def protect(
    plan: Plan, dataset: Dataset, parent: Parent | None, encoders: Encoders
) -> dict[str, projection.Protection]:
    """Protection of every old head that this stage moves."""
    if parent is None:
        return {}
    return {
        modality: projection.protect(
            parent.tensors.encoders[modality].head.weight,
            parent.tensors.seen[modality],
            plan.protection.epsilon,
            plan.protection.drift_budget,
        )
        for modality in encoders
        if modality in parent.stage.prepare and modality in dataset.specs
    }


def remember(
    plan: Plan, dataset: Dataset, parent: Parent | None, encoders: Encoders, learn: NDArray[np.int64]
) -> Tensors:
    """What later stages need of this one: second moments over all stages, the heads' start, calibration windows."""
    old = parent.tensors if parent else Tensors(encoders)
    tensors = Tensors(encoders, dict(old.seen), {}, dict(old.bank), dict(old.calibration))
    for modality, before in old.seen.items():
        tensors.changes[modality] = Change(old.encoders[modality].head.weight.detach().double().clone(), before)
    for modality in dataset.specs:
        windows = dataset.of_modality(modality, learn)
        x = torch.from_numpy(evaluate.embed(encoders[modality], windows, with_head=False))
        seen = old.seen.get(modality, projection.nothing_seen(x.shape[1]))
        tensors.seen[modality] = seen.joined(x)
        tensors.calibration[modality] = _calibration(old.calibration.get(modality), torch.from_numpy(windows))
    return tensors


def _calibration(old: Tensor | None, new: Tensor) -> Tensor:
    """At most 128 windows, spread evenly over the stages' own."""
    if old is None:
        return _thinned(new, CALIBRATION_ROWS)
    fresh = _thinned(new, CALIBRATION_ROWS // 2)
    return torch.cat([_thinned(old, CALIBRATION_ROWS - len(fresh)), fresh])


def _thinned(rows: Tensor, most: int) -> Tensor:
    return rows[torch.linspace(0, len(rows) - 1, min(most, len(rows))).round().long()]


def trained_pairs(dataset: Dataset, learn: NDArray[np.int64]) -> list[tuple[str, str]]:
    """The pairs of sensors with at least two common moments to learn from."""
    views = dataset.views
    return [(a, b) for a, b in dataset.pairs() if (views[a].present[learn] & views[b].present[learn]).sum() >= 2]


def prove(
    plan: Plan,
    parent: Parent | None,
    tensors: Tensors,
    measured: evaluate.Measured,
    pairs: list[tuple[str, str]],
) -> Certificate:
    """The certificate of a trained stage, its gates judged."""
    embeddings, similarities = drifts(tensors)
    evidence = gates.Evidence(plan, tensors.encoders, tensors.changes, embeddings, tensors.bank, pairs, measured)
    return Certificate(
        stage=parent.stage.stage + 1 if parent else 1,
        parent=parent.stage.name if parent else "",
        embedding_drift=embeddings,
        similarity_drift=similarities,
        gates=gates.judge(evidence),
    )


def drifts(tensors: Tensors) -> tuple[dict[str, float], dict[str, float]]:
    """Embedding drift per old modality and similarity drift per pair of them, from stored second moments."""
    changes = tensors.changes
    now = {name: tensors.encoders[name].head.weight.detach().double().cpu() for name in changes}
    embeddings = {
        name: certificate.embedding_drift(change.start, now[name], change.seen.second)
        for name, change in changes.items()
    }
    names = sorted(changes)
    similarities = {
        f"{a}+{b}": certificate.similarity_drift(
            (changes[a].start, changes[b].start),
            (now[a], now[b]),
            (changes[a].seen.second, changes[b].seen.second),
        )
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    }
    return embeddings, similarities


def bank(number: int, dataset: Dataset, encoders: Encoders, held: NDArray[np.int64]) -> dict[str, Tensor]:
    """Features of at most 256 held-out moments, float16, a last column of ones where the window was present."""
    rows = held[np.linspace(0, len(held) - 1, min(BANK_ROWS, len(held))).round().astype(int)]
    stored = {}
    for sensor, view in dataset.views.items():
        present = view.present[rows]
        x = evaluate.embed(encoders[view.modality], view.inputs[rows[present]], with_head=False)
        kept = np.zeros((len(rows), x.shape[1] + 1), np.float16)
        kept[present] = np.concatenate([x, np.ones((len(x), 1), np.float32)], axis=1)
        stored[f"{number}/{sensor}/{view.modality}"] = torch.from_numpy(kept)
    return stored


def _finished(folder: Path, plan: Plan, dataset: Dataset, parent: Parent | None) -> Stage:
    stage = checkpoint.load_stage(folder)
    is_parent = parent.stage.name if parent else ""
    if (stage.plan_sha256, stage.data_sha256, stage.parent) != (plan.sha256, dataset.sha256, is_parent):
        told = "holds a finished stage of another plan, parent or recording"
        raise ConfigError(str(folder), told, "choose another `out`, or delete this folder to begin anew")
    return stage


def _enough(plan: Plan, dataset: Dataset, learn: NDArray[np.int64]) -> None:
    if len(learn) < FEWEST_MOMENTS:
        told = f"gives {len(learn)} moments to learn from, at least {FEWEST_MOMENTS} are needed"
        raise RecordingError(plan.recordings[0].path, told, "record longer, or lower `held_out`")
    for modality in dataset.specs:
        if not len(dataset.of_modality(modality, learn)):
            told = f"has good {modality} windows only among those held out"
            raise RecordingError(plan.recordings[0].path, told, "record longer")
    if not plan.defects.wanted and not trained_pairs(dataset, learn):
        told = "has no two sensors with common moments, and the plan learns without defects"
        raise RecordingError(plan.recordings[0].path, told, "set [defects] together = 1.0 or record a second sensor")

"""One stage from plan to proven checkpoint: read, train, remember, prove, judge, save."""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from msgspec import structs

from lineside import features
from lineside.clock import NS, Clock
from lineside.errors import ConfigError, GateError, RecordingError
from lineside.features import Prepare
from lineside.release import Certificate, Gate
from trainer import certificate, checkpoint, evaluate, gates, layers, loop
from trainer.begin import KEEPS, course_of, start, told_before
from trainer.checkpoint import Adapters, Counters, Stage, Tensors
from trainer.data import Dataset, read
from trainer.encoders import Encoders
from trainer.ledger import StageRow
from trainer.memory import bank, ledger_of, remember, solve
from trainer.plan import Plan, WindowSettings, place
from trainer.processes import ALONE, World, own_norms
from trainer.progress import Progress, silent, unheard
from trainer.solved import Sums
from trainer.work import Parent, Work, modality_pairs, trained_pairs

FEWEST_MOMENTS = 8
EPSILONS = (1e-4, 1e-3, 1e-2, 3e-2, 0.1, 0.3)


def run_stage(
    plan: Plan,
    base: Path,
    clock: Clock,
    progress: Progress = silent,
    max_steps: int | None = None,
    world: World = ALONE,
    tell: Callable[[str], None] = unheard,
) -> Stage | None:
    """Train the stage of a plan that lies in folder `base`, or go on where it stopped; None when `max_steps` stops it.

    A finished stage of the same plan, parent and recordings is given back as it is. `tell` hears each warning before
    training begins. A stage whose gates fail is saved as failed: look at `Stage.passed`. Raises ConfigError,
    RecordingError and, when the loss is no number any more, GateError.
    """
    folder = place(plan.out, base)
    parent = load_parent(plan, base)
    specs = wanted_specs(plan, parent)
    dataset = read(plan.recordings, base, wanted_windows(plan, parent), specs, progress)
    if (folder / checkpoint.STAGE).exists():
        return _finished(folder, plan, dataset, parent)
    learn, held = dataset.split(plan.held_out)
    work = Work(plan, dataset, learn, held, parent, folder, loop.device(world), plan.protection.epsilon, world)
    _enough(work)
    done = learn_stage(roomy(work, clock, progress), clock, progress, max_steps, tell)
    return done.stage if done else None


def learn_stage(
    work: Work,
    clock: Clock,
    progress: Progress = silent,
    max_steps: int | None = None,
    tell: Callable[[str], None] = unheard,
) -> Parent | None:
    """Train, remember, prove, judge and save one stage: what the next one follows; None when `max_steps` stops it."""
    encoders = start(work)
    course, protections = course_of(work, encoders)
    warnings = [*work.dataset.warnings, *told_before(work, course, protections)]
    for warning in warnings:
        tell(warning)
    in_steps = work.plan.heads.fit == "steps" or any(encoders[name].moves != "head" for name in work.dataset.specs)
    trained = loop.train(course, work.folder, work.identity, clock, progress, max_steps) if in_steps else {}
    if trained is None:
        return None
    own_norms(encoders)
    _not_diverged(encoders, course.steps - 1)
    tensors = replace(remember(work, encoders, course), optimiser=trained)
    if work.plan.heads.fit == "moments":
        solve(work, tensors, protections)
    measured = evaluate.measure(encoders, work.dataset, work.held)
    rows = ledger_of(work, encoders, course) if in_steps else []
    encoders.cpu()
    proof = prove(work, tensors, measured)
    tensors.bank |= bank(proof.stage, work.dataset, encoders, work.held)
    capacity = {name: protection.capacity for name, protection in protections.items()}
    steps = course.steps if in_steps else 0
    stage = described(work, tensors, proof, measured, Known(warnings, capacity, steps, rows))
    if work.world.first:
        stage = checkpoint.save(work.folder, stage, tensors)
    return Parent(stage, tensors)


@dataclass(frozen=True)
class Known:
    """What was learned of a stage on the way."""

    warnings: list[str]
    capacity: dict[str, float]
    steps: int
    ledger: list[StageRow]


def described(work: Work, tensors: Tensors, proof: Certificate, measured: evaluate.Measured, known: Known) -> Stage:
    """stage.json, but for the hashes that saving gives."""
    plan, dataset, before = work.plan, work.dataset, work.parent.stage if work.parent else None
    return Stage(
        stage=proof.stage,
        parent=proof.parent,
        space=before.space if before else "",
        plan=plan,
        plan_sha256=plan.sha256,
        data_sha256=dataset.sha256,
        files={},
        prepare={**(before.prepare if before else {}), **dataset.specs},
        prepare_sha256={},
        sensors={**(before.sensors if before else {}), **dataset.modalities},
        widths={name: encoder.width for name, encoder in tensors.encoders.items()},
        pairs=sorted({*(before.pairs if before else []), *modality_pairs(work)}),
        labels=list(tensors.sums.labels),
        replay=tensors.replay.keys if tensors.replay else [],
        windows=WindowSettings(length_s=dataset.length_ns / NS, hop_s=dataset.hop_ns / NS),
        counters=Counters(len(dataset), len(work.learn), len(work.held), known.steps),
        bad_windows=dataset.bad,
        warnings=known.warnings,
        epsilon=work.epsilon,
        capacity=known.capacity,
        metrics=measured,
        certificate=proof,
        ledger=[*(before.ledger if before else []), *known.ledger],
        adapters=adapters_of(tensors.encoders, before.prepare if before else {}),
    )


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


def roomy(work: Work, clock: Clock, progress: Progress = silent) -> Work:
    """With the smallest epsilon that leaves room to learn: a check on held-out moments, never on anything later.

    Room is enough when retrieval of what is new reaches `plasticity` of what an unprotected stage reaches. Nothing
    changes when the plan does not ask for the check, or there is nothing to protect, or no pair to measure it on.
    """
    wanted = work.plan.protection.plasticity
    if not wanted or work.parent is None or work.plan.protection.rule not in KEEPS:
        return work
    free = replaced(work.plan, rule="none", plasticity=0.0)
    target = wanted * learned(replace(work, plan=free), clock, progress)
    if math.isnan(target):
        return work
    for epsilon in EPSILONS[:-1]:
        if learned(replace(work, epsilon=epsilon), clock, progress) >= target:
            return replace(work, epsilon=epsilon)
    return replace(work, epsilon=EPSILONS[-1])


def learned(work: Work, clock: Clock, progress: Progress) -> float:
    """Mean recall@1 among few of all pairs, both ways, on held-out moments after a trial of this stage."""
    with tempfile.TemporaryDirectory() as folder:
        trial = learn_stage(replace(work, folder=Path(folder), world=ALONE), clock, progress)
    assert trial is not None
    found = [result.recall_1_few for result in trial.stage.metrics.retrieval]
    return sum(found) / len(found) if found else math.nan


def replaced(plan: Plan, **protection: object) -> Plan:
    """The plan with other settings of protection."""
    return structs.replace(plan, protection=structs.replace(plan.protection, **protection))


def prove(work: Work, tensors: Tensors, measured: evaluate.Measured) -> Certificate:
    """The certificate of a trained stage, its gates judged."""
    embeddings, similarities = drifts(tensors)
    bases = bases_of(work, tensors.encoders)
    evidence = gates.Evidence(
        work.plan, tensors.encoders, tensors.changes, embeddings, tensors.bank, work.pairs, measured, bases
    )
    return Certificate(
        stage=work.parent.stage.stage + 1 if work.parent else 1,
        parent=work.parent.stage.name if work.parent else "",
        embedding_drift=embeddings,
        similarity_drift=similarities,
        gates=[_numbered(gate) for gate in gates.judge(evidence)],
    )


def adapters_of(encoders: Encoders, specs: Mapping[str, Prepare]) -> dict[str, Adapters]:
    """Rank of each encoder's adapters, and what they stand on; nothing of encoders without."""
    return {
        name: Adapters(encoder.rank, checkpoint.identity(specs[name], encoder.base()))
        for name, encoder in encoders.items()
        if encoder.rank
    }


def bases_of(work: Work, encoders: Encoders) -> dict[str, tuple[str, str]]:
    """Of encoders whose adapters learned, the identity of what these stand on: as the parent had it, and as it is."""
    if work.parent is None:
        return {}
    before = work.parent.stage
    was = checkpoint.identities(before, work.parent.tensors.encoders)
    was |= {name: each.base for name, each in before.adapters.items()}
    now = adapters_of(encoders, before.prepare)
    return {name: (was[name], each.base) for name, each in now.items() if encoders[name].moves == "adapters"}


def _numbered(gate: Gate) -> Gate:
    """The gate, failed by a number where there was nothing to measure: JSON has no NaN."""
    return gate if math.isfinite(gate.value) else structs.replace(gate, value=sys.float_info.max * gate.at_most)


def drifts(tensors: Tensors) -> tuple[dict[str, float], dict[str, float]]:
    """Embedding drift per old modality and similarity drift per pair of them, from stored second moments.

    Where a trunk moved too, `{modality} trunk` is the largest relative change of one of its layers' outputs.
    """
    changes = tensors.changes
    now = {name: tensors.encoders[name].head.weight.detach().double().cpu() for name in changes}
    embeddings = {
        name: certificate.embedding_drift(change.start, now[name], change.seen.second)
        for name, change in changes.items()
    }
    for name, change in tensors.layer_changes.items():
        if change.starts:  # else nothing is known of what they saw, and a drift of 0 would be a lie
            moved = layers.drift(change.starts, tensors.encoders[name].trunk, change.seen)
            embeddings[f"{name} trunk"] = max(moved.values())
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


def _finished(folder: Path, plan: Plan, dataset: Dataset, parent: Parent | None) -> Stage:
    stage = checkpoint.load_stage(folder)
    is_parent = parent.stage.name if parent else ""
    if (stage.plan_sha256, stage.data_sha256, stage.parent) != (plan.sha256, dataset.sha256, is_parent):
        told = "holds a finished stage of another plan, parent or recording"
        raise ConfigError(str(folder), told, "choose another `out`, or delete this folder to begin anew")
    return stage


def _not_diverged(encoders: Encoders, step: int) -> None:
    """Weights whose norm is no number make embeddings of zeros, at which the loss stays finite."""
    for name, weight in encoders.named_parameters():
        if not bool(torch.isfinite(torch.linalg.vector_norm(weight.detach()))):
            mend = "lower learning_rate, and choose another `out` or delete this folder to begin anew"
            raise GateError(f"step {step}", f"{name} has grown until its norm is no number", mend)


def _enough(work: Work) -> None:
    plan, dataset, learn, before = work.plan, work.dataset, work.learn, work.parent.stage if work.parent else None
    if len(learn) < FEWEST_MOMENTS:
        told = f"gives {len(learn)} moments to learn from, at least {FEWEST_MOMENTS} are needed"
        raise RecordingError(plan.recordings[0].path, told, "record longer, or lower `held_out`")
    for modality in dataset.specs:
        if not len(dataset.of_modality(modality, learn)):
            told = f"has good {modality} windows only among those held out"
            raise RecordingError(plan.recordings[0].path, told, "record longer")
        if modality not in work.old and len(dataset.of_modality(modality, learn)) < 2:
            told = f"has a single good {modality} window to learn from, which has no deviation to be scaled by"
            raise RecordingError(plan.recordings[0].path, told, "record longer")
    for sensor, modality in dataset.modalities.items():
        if before and before.sensors.get(sensor, modality) != modality:
            told = f"calls {sensor} a {modality}, the parent a {before.sensors[sensor]}"
            raise RecordingError(plan.recordings[0].path, told, "give the sensors different names")
    pairs = trained_pairs(plan, dataset, learn)
    names = set(dataset.labels[learn].tolist() if len(dataset.labels) else []) - {""}
    if plan.losses.labels and not names:
        told = "carries no labels of normal running, and the plan wants to learn by labels"
        raise RecordingError(plan.recordings[0].path, told, "set [losses] labels = false, or label the recording")
    sums = work.parent.tensors.sums if work.parent else Sums()
    if plan.heads.fit == "moments" and sums.begun and plan.losses.labels != bool(sums.by_label):
        ways = "pairs", "labels"
        told = f"solves heads by {ways[plan.losses.labels]}, but the parent kept sums of {ways[not plan.losses.labels]}"
        mend = f"set [losses] labels = {str(not plan.losses.labels).lower()}, as in the stages before"
        raise ConfigError("plan", told, mend)
    if plan.heads.fit == "moments" and plan.losses.labels:
        known = names.union(before.labels if before else ())
        if len(known) > plan.dim:
            told = f"{len(known)} labels of all stages need as many dimensions, embeddings have {plan.dim}"
            raise ConfigError("plan", told, f"set dim = {len(known)} from the first stage on, or use fewer labels")
    if plan.heads.fit == "moments" and not plan.losses.labels and not modality_pairs(work):
        told = "has no two sensors of different kinds with common moments, from which heads are to be solved"
        raise RecordingError(plan.recordings[0].path, told, 'set [heads] fit = "steps", or record a second sensor')
    if plan.heads.fit == "steps" and not plan.defects.wanted and not plan.losses.within and not pairs:
        told = "has no two sensors with common moments, and the plan learns without defects"
        raise RecordingError(plan.recordings[0].path, told, "set [defects] together = 1.0 or record a second sensor")

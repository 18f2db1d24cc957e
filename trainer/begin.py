"""How a stage begins: encoders as they stand, the rule that keeps what they know, and what a person is told before."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from lineside.errors import ConfigError
from trainer import branches, checkpoint, guide, layers, ledger, projection, rules
from trainer.encoders import Encoder, Encoders
from trainer.loop import Course
from trainer.plan import Plan
from trainer.processes import share_norms
from trainer.projection import Protection
from trainer.rules import Rule
from trainer.work import Parent, Work

EXHAUSTED = 0.99
KEEPS = frozenset({"hold", "rotate"})  # rules under which old embeddings stay, so that batch norm must not move


def start(work: Work) -> Encoders:
    """Encoders as they stand before the first step: old ones let move what the plan says, new ones fresh and fitted."""
    torch.manual_seed(work.plan.seed)
    plan, dataset, parent = work.plan, work.dataset, work.parent
    specs = {**(parent.stage.prepare if parent else {}), **dataset.specs}
    fresh = {name: plan.encoders.width if plan.encoders.trunk == "fixed" else 0 for name in dataset.specs}
    ranks = {name: each.rank for name, each in parent.stage.adapters.items()} if parent else {}
    encoders = checkpoint.build(specs, plan.dim, {**fresh, **(parent.stage.widths if parent else {})}, ranks)
    if parent:
        encoders.load_state_dict(parent.tensors.encoders.state_dict(), strict=not (dataset.specs.keys() - work.old))
    for modality in encoders:
        encoder = encoders[modality]
        if modality not in work.old:
            encoder.fit(torch.from_numpy(dataset.of_modality(modality, work.learn)))
        elif modality in dataset.specs:
            fit_branches(encoder, modality, plan)
            encoder.let_move(plan.encoders.moves(modality), norms_learn=plan.protection.rule not in KEEPS)
        else:
            encoder.let_move("head", norms_learn=False)
            encoder.head.requires_grad_(False)
        if encoder.norms_learn:
            share_norms(encoder, work.world)
    return encoders.to(work.where)


def fit_branches(encoder: Encoder, modality: str, plan: Plan) -> None:
    """Give an old encoder the branches that the plan wants to learn, or take in those that it has if its trunk moves.

    Raises ConfigError where no branch can stand, and for a rank that is not that of the branches it has.
    """
    moves, rank = plan.encoders.moves(modality), plan.encoders.rank
    if moves in ("last", "all"):
        encoder.merge()
    if moves != "adapters" or encoder.rank == rank:
        return
    if encoder.rank:
        told = f"encoders.rank is {rank}, but the parent's {modality} carries adapters of rank {encoder.rank}"
        raise ConfigError("plan", told, f"set rank = {encoder.rank}: they go on learning")
    if not branches.places(encoder.trunk):
        told = f"{modality} has no layer that adapters could stand beside: its trunk does not learn"
        raise ConfigError("plan", told, f'set encoders.move = "head" for {modality}')
    encoder.adapt(rank)


def course_of(work: Work, encoders: Encoders) -> tuple[Course, dict[str, Protection]]:
    """What the loop needs, and the protection of every old head that this stage moves."""
    plan, parent = work.plan, work.parent
    dataset, replayed = work.dataset, np.zeros(0, np.int64)
    if parent and parent.tensors.replay:
        dataset = dataset.joined(parent.tensors.replay.dataset(dataset))
        replayed = np.arange(len(work.dataset), len(dataset))
    rule, protections = rule_of(work, encoders)
    lambdas = {name: lambda_of(work, name) for name in work.old}
    old = parent.tensors.encoders if parent else None
    guided = guide.guide(plan, encoders, old, dataset, lambdas, work.world)
    held = frozenset(protections) if plan.protection.rule == "hold" else frozenset()
    moments = parent.tensors.optimiser if parent and plan.optimiser == "continued" else {}
    course = Course(plan, dataset, work.learn, replayed, work.pairs, encoders, rule, guided, held, work.world, moments)
    return course, protections


def rule_of(work: Work, encoders: Encoders) -> tuple[Rule, dict[str, Protection]]:
    """The rule of the plan, ready for the loop, and the protections of heads that it has."""
    settings, parent = work.plan.protection, work.parent
    if parent is None or settings.rule == "none":
        return rules.Free(), {}
    if settings.rule in ("published", "ewc") and not remembers(parent, settings.rule):
        told = f'protection.rule = "{settings.rule}" needs what the parent remembered for it, and it remembered nothing'
        raise ConfigError("plan", told, f'train the parent with [protection] rule = "{settings.rule}", or set "hold"')
    if settings.rule == "published":
        return rules.Published.of(encoders, parent.tensors.rule), {}
    if settings.rule == "ewc":
        return rules.Ewc.of(encoders, parent.tensors.rule, settings.strength), {}
    moved = [name for name in encoders if name in work.old and name in work.dataset.specs]
    heads = {
        name: projection.protect(
            encoders[name].head.weight, parent.tensors.seen[name], work.epsilon, settings.drift_budget
        )
        for name in moved
        if encoders[name].moves != "adapters"
    }
    trunks = {name: trunk_protections(work, encoders, name) for name in moved if encoders[name].moves != "head"}
    if settings.rule == "rotate" and work.plan.heads.fit == "steps":  # what is solved is not stepped
        return rules.Rotated(encoders, heads, trunks, None, settings.every), heads
    if settings.sides == "dual":
        weights = {name: encoders[name].head.weight for name in work.old}
        kept = projection.products(weights, parent.tensors.seen, parent.stage.pairs, list(heads), work.epsilon)
        return rules.Held(encoders, {}, trunks, kept, settings.every), heads
    return rules.Held(encoders, heads, trunks, None, settings.every), heads


def remembers(parent: Parent, rule: str) -> bool:
    """Whether the parent kept what the reference's rule (second moments) or ewc (Fisher information) needs."""
    begin = {"published": "published/", "ewc": "fisher/"}[rule]
    return any(name.startswith(begin) for name in parent.tensors.rule)


def trunk_protections(work: Work, encoders: Encoders, modality: str) -> dict[str, layers.LayerProtection]:
    """Protection of each layer of an old trunk that may move. Raises ConfigError when the parent kept no moments."""
    assert work.parent is not None
    trunk = encoders[modality].trunk
    names = layers.protectable(trunk, encoders[modality].moves)
    seen = work.parent.tensors.layers.get(modality, {})
    if missing := [name for name in names if name not in seen]:
        told = f"encoders.move wants {modality}'s {missing[0]} to move, but the parent kept no moments of its inputs"
        mend = f'train the parent with [encoders] move = "{encoders[modality].moves}" and a rule of "hold" or "rotate"'
        raise ConfigError("plan", told, mend)
    moments = {name: seen[name] for name in names}
    if encoders[modality].moves == "adapters":
        fresh = not work.parent.tensors.encoders[modality].rank
        return layers.protect_branches(trunk, moments, work.epsilon, fresh)
    return layers.protect_layers(trunk, moments, work.epsilon)


def told_before(work: Work, course: Course, protections: Mapping[str, Protection]) -> list[str]:
    """What a person should know before training: absent modalities, exhausted capacity, clamped lambdas, labels."""
    told = [
        f"{name}: not in this stage's recordings; its encoder stays as it is"
        for name in sorted(work.old - work.dataset.specs.keys())
    ]
    full = [name for name, protection in protections.items() if protection.capacity >= EXHAUSTED]
    for name, trunk in (course.rule.trunks if isinstance(course.rule, rules.Held) else {}).items():
        held = {layer: each for layer, each in trunk.items() if not layer.endswith(branches.PARTS[1])}
        full += [f"{name} {layer}" for layer in layers.exhausted(held, EXHAUSTED)]  # where B is full, A still learns
    if full:
        mend = "raise protection.epsilon, or set protection.plasticity = 0.97 to have it chosen"
        told.append(f"{', '.join(full)}: capacity exhausted, hardly anything new can be learned; {mend}")
    before = work.parent.stage.ledger if work.parent else []
    for name in sorted(work.old):
        if (count := ledger.clamped_stages([row for row in before if row.modality == name])) > 2:
            told.append(f"{name}: the weight of distillation was clamped for {count} stages; see [distill] floor, cap")
    return told


def lambda_of(work: Work, modality: str) -> float:
    """Weight of relation distillation for one modality in this stage, from the logged losses of earlier ones."""
    settings = work.plan.distill
    if not settings.kappa or work.parent is None:
        return 1.0
    past = [row for row in work.parent.stage.ledger if row.modality == modality]
    return ledger.adaptive_lambda(past, settings.kappa, settings.floor, settings.cap)

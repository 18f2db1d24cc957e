"""What the previous stage still teaches while a new one is trained: teachers, queues, and relations to keep.

The old encoders and the momentum teacher see the very windows that the student sees. Where a plan says
`[teacher] cached`, the old encoders have seen every window once before, unchanged, and cost nothing a step.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from trainer import evaluate, layers, teacher
from trainer.data import Dataset
from trainer.encoders import Encoders
from trainer.losses import Seen, pair_loss
from trainer.plan import BackwardSettings, DistillSettings, Plan
from trainer.processes import World, share_norms
from trainer.supervised import cross_relation_distillation, relation_distillation
from trainer.teacher import Follower, Queue

Inputs = dict[str, tuple[str, Tensor, Tensor]]  # by sensor: modality, changed windows (n, *shape), present (batch,)


@dataclass
class Guide:
    """`old` are the previous stage's encoders by modality, `momentum` those of the compatible teacher.

    `quick` is `old` with its batch norms folded into convolutions, since it embeds every batch and never moves.
    `weights` is lambda by modality (trainer.ledger.adaptive_lambda); `cache` holds the old embeddings of all moments
    (moments, dim) by sensor.
    """

    plan: Plan
    old: Encoders
    quick: Encoders
    world: World
    momentum: Encoders | None = None
    queues: dict[str, Queue] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    cache: dict[str, Tensor] = field(default_factory=dict)
    _followers: dict[str, Follower] = field(default_factory=dict)

    def follow(self, encoders: Encoders) -> None:
        """Move the momentum teacher by one step: called before it embeds."""
        if self.momentum is None:
            return
        settings = self.plan.teacher
        for name, encoder in encoders.items():
            known = self.old.get(name)
            if name not in self._followers:
                self._followers[name] = Follower(self.momentum[name], encoder, known)
            share = settings.momentum if known is not None else settings.first_momentum
            self._followers[name].step(share, settings.pull)

    def terms(
        self, seen: Mapping[str, Seen], inputs: Inputs, ids: Tensor, pairs: Sequence[tuple[str, str]]
    ) -> dict[str, Tensor]:
        """Every term of this batch by name; pushes the teacher's embeddings into their queues."""
        found: dict[str, Tensor] = {}
        old = self._old(inputs, ids)
        if self.plan.teacher.wanted:
            momentum = {} if self.momentum is None else embedded(self.momentum, inputs, self.plan, self.world)
            found |= teacher.teacher_loss(seen, momentum, old, pairs, self.queues, self.plan.teacher, ids)
            teacher.remember(self.queues, momentum, ids)
        if self.plan.distill.wanted:
            lambdas = {sensor: self.weights.get(inputs[sensor][0], 1.0) for sensor in seen}
            found |= distilled(seen, old, pairs, self.plan.distill, lambdas)
        if self.plan.backward.weight:
            found |= backward(seen, old, pairs, self.plan.backward)
        return found

    def _old(self, inputs: Inputs, ids: Tensor) -> dict[str, Seen]:
        plan = self.plan
        wanted = plan.teacher.cross or plan.teacher.same or plan.distill.wanted or plan.backward.weight
        if not wanted:
            return {}
        known = {sensor: each for sensor, each in inputs.items() if each[0] in self.old}
        if not self.plan.teacher.cached:
            return embedded(self.quick, known, self.plan, self.world)
        everywhere = {sensor: self.world.gather(present) for sensor, (_, _, present) in known.items()}
        return {sensor: Seen(self.cache[sensor][ids], present) for sensor, present in everywhere.items()}

    def remember_all(self, dataset: Dataset) -> None:
        """Embed every window with the previous stage, once."""
        for sensor, view in dataset.views.items():
            if view.modality in self.old:
                z = np.zeros((len(dataset), self.plan.dim), np.float32)
                z[view.present] = evaluate.embed(self.old[view.modality], view.inputs[view.present])
                self.cache[sensor] = torch.from_numpy(z).to(self.old[view.modality].head.weight.device)

    def state(self) -> dict[str, Tensor]:
        """Teacher and queues as tensors, for the checkpoint."""
        held: dict[str, Tensor] = {}
        if self.momentum is not None:
            held |= {f"momentum/{name}": tensor for name, tensor in self.momentum.state_dict().items()}
        for sensor, queue in self.queues.items():
            held |= {f"queue/{sensor}/{name}": tensor for name, tensor in queue.state().items()}
        return held

    def restore(self, held: Mapping[str, Tensor]) -> None:
        """Go on from `state`."""
        if self.momentum is not None:
            begin = "momentum/"
            self.momentum.load_state_dict(
                {name.removeprefix(begin): tensor for name, tensor in held.items() if name.startswith(begin)}
            )
        for sensor in self.queues:
            begin = f"queue/{sensor}/"
            rows = {name.removeprefix(begin): tensor for name, tensor in held.items() if name.startswith(begin)}
            self.queues[sensor] = Queue.restore(rows)


def distilled(
    seen: Mapping[str, Seen],
    old: Mapping[str, Seen],
    pairs: Sequence[tuple[str, str]],
    settings: DistillSettings,
    lambdas: Mapping[str, float],
) -> dict[str, Tensor]:
    """Weighted relation distillation by name: within each sensor that `old` knows, and across each such pair."""
    soft = settings.temperature, settings.teacher_temperature
    found: dict[str, Tensor | None] = {}
    for sensor in seen if settings.weight else ():  # in this order: that of a set differs between processes
        if sensor in old:
            here, weight = seen[sensor].present, settings.weight * lambdas[sensor]
            found[f"distill {sensor}"] = _times(
                weight, relation_distillation(seen[sensor].z[here], old[sensor].z[here], *soft)
            )
    for a, b in pairs if settings.across else ():
        if a in seen and b in seen and a in old and b in old:
            here, weight = seen[a].present & seen[b].present, settings.across * (lambdas[a] + lambdas[b]) / 2
            rows = (each[here] for each in (seen[a].z, seen[b].z, old[a].z, old[b].z))
            found[f"across {a}+{b}"] = _times(weight, cross_relation_distillation(*rows, *soft))
    return {name: term for name, term in found.items() if term is not None}


def backward(
    seen: Mapping[str, Seen],
    old: Mapping[str, Seen],
    pairs: Sequence[tuple[str, str]],
    settings: BackwardSettings,
) -> dict[str, Tensor]:
    """Contrast of new with old embeddings by name: each sensor that `old` knows with itself, and each way of a pair.

    Old embeddings are constants: only the new side learns.
    """
    ways = [(a, b) for pair in pairs for a, b in (pair, pair[::-1])] + [(a, a) for a in seen]
    found: dict[str, Tensor | None] = {}
    for a, b in ways:
        if a in seen and b in old:
            term = pair_loss(seen[a], old[b], settings.temperature)
            found[f"backward {a}>{b}"] = _times(settings.weight, term)
    return {name: term for name, term in found.items() if term is not None}


def _times(weight: float, term: Tensor | None) -> Tensor | None:
    return None if term is None else weight * term


def guide(
    plan: Plan, encoders: Encoders, old: Encoders | None, dataset: Dataset, lambdas: dict[str, float], world: World
) -> Guide | None:
    """The guide that a plan asks for; None when it asks for none, or there is nothing old to teach."""
    if not plan.teacher.wanted and (old is None or not (plan.distill.wanted or plan.backward.weight)):
        return None
    # Copies of the student, which still is what it begins with: rotated heads have other parameters than plain ones.
    before = teacher.teacher_of(Encoders({name: encoders[name] for name in old or ()}))
    quick = copy.deepcopy(before)
    layers.fold(quick)
    share_norms(before, world)  # the same names as the student's
    built = Guide(plan, before, quick, world, weights=lambdas)
    if plan.teacher.contrast:
        built.momentum = teacher.teacher_of(encoders)
        built.queues = {sensor: Queue(plan.teacher.queue, plan.dim) for sensor in dataset.views}
    if plan.teacher.cached:
        built.remember_all(dataset)
    return built


def embedded(encoders: Encoders, inputs: Inputs, plan: Plan, world: World) -> dict[str, Seen]:
    """Embeddings (batch, dim) of all processes by sensor, without a gradient, zeros where the window is absent."""
    found = {}
    for sensor, (modality, windows, present) in inputs.items():
        with torch.inference_mode(), autocast(plan, windows):
            z = encoders[modality](windows)
        with torch.no_grad():  # a copy, as what is made in inference mode may not enter a loss
            found[sensor] = Seen(world.gather(spread_out(z.float().clone(), present)), world.gather(present))
    return found


def autocast(plan: Plan, windows: Tensor) -> torch.autocast:
    """bfloat16 inside encoders where the plan asks for it; losses are of float32 embeddings."""
    return torch.autocast(windows.device.type, torch.bfloat16, enabled=plan.precision == "bfloat16")


def spread_out(z: Tensor, present: Tensor) -> Tensor:
    """Embeddings (…, present, dim) to (…, batch, dim), zeros where a window is absent."""
    filled = z.new_zeros(*z.shape[:-2], len(present), z.shape[-1])
    filled[..., present, :] = z
    return filled

"""The training loop, read from top to bottom.

All chance comes from (seed, epoch) and (seed, step, moment), so that a stage stopped anywhere goes on to the same bits,
and however many processes share a batch, each window is changed in the same way.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lineside import features
from lineside.clock import NS, Clock
from lineside.errors import GateError
from trainer import checkpoint
from trainer.data import Dataset
from trainer.defects import defective, weakly
from trainer.encoders import Encoders
from trainer.guide import Guide, Inputs, autocast, spread_out
from trainer.losses import Kinds, Seen, sensor_losses, total
from trainer.plan import Plan
from trainer.processes import ALONE, World
from trainer.progress import Progress
from trainer.rules import Rule

WARM_UP_SHARE, LAST_RATE, LARGEST_GRADIENT = 0.05, 0.02, 1.0
DEFECTS_EACH = 2
COLUMNS = ["step", "epoch", "loss", "terms", "learning_rate", "seconds"]


@dataclass(frozen=True)
class Course:
    """All that one stage's training works with.

    `dataset` holds the new moments, of which `learn` are learned from, and after them the `replayed` ones. Heads in
    `held` go faster than others: little of them can move. `moments` are what the parent's optimiser knew, if it is to
    go on from there (trainer.checkpoint.stepped).
    """

    plan: Plan
    dataset: Dataset
    learn: NDArray[np.int64]
    replayed: NDArray[np.int64]
    pairs: Sequence[tuple[str, str]]
    encoders: Encoders
    rule: Rule
    guide: Guide | None = None
    held: frozenset[str] = frozenset()
    world: World = ALONE
    moments: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def batch(self) -> int:
        """New moments a step."""
        return min(self.plan.batch, len(self.learn))

    @property
    def per_epoch(self) -> int:
        return len(self.learn) // self.batch

    @property
    def steps(self) -> int:
        """Steps of the whole stage."""
        return self.plan.epochs * self.per_epoch


@dataclass(frozen=True)
class Batch:
    """What one step learns from: rows of the dataset, and this process's share of them as `look` shows it."""

    step: int
    rows: NDArray[np.int64]
    inputs: Inputs
    defects: dict[str, Tensor]


def device(world: World) -> torch.device:
    """The accelerator if there is one (each process its own); all cores otherwise. Deterministic on either."""
    if world.size == 1:
        torch.set_num_threads(os.cpu_count() or 1)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    return torch.device("cuda", world.local) if torch.cuda.is_available() else torch.device("cpu")


def train(
    course: Course,
    folder: Path,
    identity: str,
    clock: Clock,
    progress: Progress,
    max_steps: int | None = None,
) -> dict[str, Tensor] | None:
    """Train a course to its end, going on from `folder` if it holds a half-trained stage.

    Gives what the optimiser knows of the weights at the end; None when `max_steps` stopped it half trained. Raises
    GateError when the loss is no number any more.
    """
    plan, encoders, guide, steps = course.plan, course.encoders, course.guide, course.steps
    optimiser = optimiser_of(encoders, plan, course.held)
    checkpoint.step_on(encoders, optimiser, course.moments)
    first = checkpoint.resume(folder, identity, encoders, optimiser, guide)
    last = steps if max_steps is None else min(steps, max_steps)
    log = checkpoint.read_log(folder, first) or [COLUMNS]
    encoders.train()
    began = clock.now_ns()
    for batch in ahead(course, range(first, last)):
        step = batch.step
        epoch, place = divmod(step, course.per_epoch)
        loss, terms = one_step(course, optimiser, batch)
        told = " ".join(f"{name.replace(' ', ':')}={value.item():.4f}" for name, value in terms.items())
        value, rate = math.nan if loss is None else loss.item(), learning_rate(plan.learning_rate, step, steps)
        seconds = (clock.now_ns() - began) / NS
        log.append([str(step), str(epoch), f"{value:.5f}", told, f"{rate:.2e}", f"{seconds:.2f}"])
        progress("training steps", step + 1, steps)
        if course.world.first and (place == course.per_epoch - 1 or step + 1 == last):
            checkpoint.save_progress(folder, identity, step + 1, encoders, optimiser, guide, log)
    encoders.eval()
    if last < steps:
        return None
    known = checkpoint.stepped(encoders, optimiser)  # before weights are given other names
    course.rule.finish()
    return known


def one_step(course: Course, optimiser: torch.optim.Optimizer, batch: Batch) -> tuple[Tensor | None, dict[str, Tensor]]:
    """Teacher, loss, gradient, optimiser, and the weights back onto what they may be; the loss and its terms."""
    if course.guide is not None:
        course.guide.follow(course.encoders)
    step, terms = batch.step, step_terms(course, batch)
    loss, penalty = total(terms, weights_of(course.plan)), course.rule.penalty()
    if loss is not None:
        _finite(loss, step, terms)
        optimiser.zero_grad()
        torch.autograd.backward(loss if penalty is None else loss + penalty / course.world.size)
        course.world.sum_gradients(course.encoders)
        course.rule.project()
        nn.utils.clip_grad_norm_(course.encoders.parameters(), LARGEST_GRADIENT)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(course.plan.learning_rate, step, course.steps) * group["pace"]
        optimiser.step()
    course.rule.hold(step, last=step + 1 == course.steps)
    return loss, terms


def step_terms(course: Course, batch: Batch) -> dict[str, Tensor]:
    """Every term of the loss of one step, by name, over the batches of all processes."""
    seen = embed(course, batch.inputs, batch.defects)
    kinds = kinds_of(course, batch.rows, next(course.encoders.parameters()).device)
    settings = course.plan.losses
    terms = sensor_losses(
        seen, course.pairs, course.plan.temperature, course.plan.defects, kinds, within=settings.within > 0
    )
    if course.guide is not None:
        ids = torch.from_numpy(batch.rows).to(next(course.encoders.parameters()).device)
        terms |= course.guide.terms(seen, batch.inputs, ids, course.pairs)
    return terms


def ahead(course: Course, steps: Iterable[int]) -> Iterator[Batch]:
    """The batch of each step, made while the step before it learns.

    Changing windows is the work of one core, which learning leaves free; batches depend on their step alone.
    """
    with ThreadPoolExecutor(1, "batches") as maker:
        coming: Future[Batch] | None = None
        for step in steps:
            made, coming = coming, maker.submit(batch_of, course, step)
            if made is not None:
                yield made.result()
        if coming is not None:
            yield coming.result()


def batch_of(course: Course, step: int) -> Batch:
    """New moments in the order of the step's epoch, and beside them some of those that are replayed."""
    epoch, place = divmod(step, course.per_epoch)
    order = np.random.default_rng([course.plan.seed, 0, epoch]).permutation(course.learn)
    rows = order[place * course.batch : (place + 1) * course.batch]
    if len(course.replayed):
        again = min(len(course.replayed), round(course.plan.replay.share * len(rows)))
        drawn = np.random.default_rng([course.plan.seed, 2, step]).choice(course.replayed, again, replace=False)
        rows = np.concatenate([rows, drawn])
    rows = course.world.order(rows)
    return Batch(step, rows, *look(course, rows, step))


def look(course: Course, rows: NDArray[np.int64], step: int) -> tuple[Inputs, dict[str, Tensor]]:
    """One batch of moments as this process sees its share: each sensor's present windows, harmlessly changed.

    The second part, by sensor, is (1 + defects, present, *shape): the windows after another harmless change, and with
    defects; empty where the plan learns without them.
    """
    plan, dataset = course.plan, course.dataset
    where = next(course.encoders.parameters()).device
    mine = course.world.share(rows)
    inputs: Inputs = {}
    defects: dict[str, Tensor] = {}
    for sensor, view in dataset.views.items():
        if not view.present[rows].any():
            continue
        kind = features.modality(dataset.specs[view.modality])
        here = mine[view.present[mine]]
        windows = torch.from_numpy(view.inputs[here]).to(where)  # (present, *shape)
        chance = chances(plan.seed, sensor, step, here)
        inputs[sensor] = view.modality, weakly(kind, windows, chance), torch.from_numpy(view.present[mine]).to(where)
        if plan.defects.wanted:
            again = weakly(kind, windows, chance)
            defects[sensor] = torch.stack([again, *(defective(kind, windows, chance) for _ in range(DEFECTS_EACH))])
    return inputs, defects


def chances(seed: int, sensor: str, step: int, rows: NDArray[np.int64]) -> list[np.random.Generator]:
    """A generator for each window; another for each sensor, or they would be matched by how they were changed."""
    which = int.from_bytes(sensor.encode(), "little")
    return [np.random.default_rng([seed, 1, which, step, int(row)]) for row in rows]


def embed(course: Course, inputs: Inputs, defects: Mapping[str, Tensor]) -> dict[str, Seen]:
    """Embeddings of the whole batch, gathered over processes, with the gradient of this one's share."""
    seen = {}
    for sensor, (modality, windows, present) in inputs.items():
        encoder, more = course.encoders[modality], defects.get(sensor)
        looks = windows if more is None else torch.cat([windows, more.flatten(0, 1)])
        if course.world.size == 1 and encoder.training and encoder.norms_learn and len(looks) < 2:
            continue  # batch norm needs two
        with autocast(course.plan, looks):
            z = encoder(looks)  # (looks * present, dim)
        filled = spread_out(z.float().reshape(-1, len(windows), z.shape[1]), present)  # (looks, batch, dim)
        z_all, *others = (course.world.gather(each) for each in filled)
        everywhere = course.world.gather(present)
        if others:
            seen[sensor] = Seen(z_all, everywhere, others[0], torch.stack(others[1:]))
        else:
            seen[sensor] = Seen(z_all, everywhere)
    return seen


def weights_of(plan: Plan) -> dict[str, float]:
    """Weight of each group of terms (trainer.losses.total); what is not named here has its weight in it."""
    return {"pair": plan.losses.contrast, "within": plan.losses.within}


def kinds_of(course: Course, rows: NDArray[np.int64], where: torch.device) -> Kinds | None:
    """What labels say of a batch; None when the plan learns without them."""
    if not course.plan.losses.labels:
        return None
    names = course.dataset.labels[rows]
    _, numbers = np.unique(names, return_inverse=True)
    labels = torch.from_numpy(np.where(names == "", -1, numbers)).to(where)
    new = rows < len(course.dataset) - len(course.replayed)
    anchors = torch.from_numpy(new | course.plan.losses.old_anchors).to(where)
    return Kinds(labels, anchors)


def optimiser_of(encoders: Encoders, plan: Plan, held: frozenset[str]) -> torch.optim.Optimizer:
    """AdamW over what may move; only whole weights of convolutions decay, never heads, scales or shifts.

    Held heads go faster: nothing but the few directions left to them can move, and no further than the budget.
    """
    quick = {id(weight) for modality in held for weight in encoders[modality].head.parameters()}
    moving = [(name, weight) for name, weight in encoders.named_parameters() if weight.requires_grad]
    decaying = [weight for name, weight in moving if weight.ndim > 1 and ".head." not in name]
    others = [weight for name, weight in moving if weight.ndim <= 1 or (".head." in name and id(weight) not in quick)]
    heads = [weight for _, weight in moving if id(weight) in quick]
    groups = [(decaying, 0.01, 1.0), (others, 0.0, 1.0), (heads, 0.0, plan.protection.pace)]
    return torch.optim.AdamW(
        [{"params": params, "weight_decay": decay, "pace": pace} for params, decay, pace in groups if params],
        lr=plan.learning_rate,
    )


def learning_rate(top: float, step: int, steps: int) -> float:
    """A short linear rise, then half a cosine down to 2 % of `top`.

    >>> [round(learning_rate(1.0, step, 100), 2) for step in (0, 4, 50, 99)]
    [0.2, 1.0, 0.53, 0.02]
    """
    warm = max(1, round(WARM_UP_SHARE * steps))
    if step < warm:
        return top * (step + 1) / warm
    done = (step - warm + 1) / max(1, steps - warm)
    return top * (LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * done)) / 2)


def _finite(loss: Tensor, step: int, terms: Mapping[str, Tensor]) -> None:
    if not bool(torch.isfinite(loss)):
        bad = ", ".join(name for name, term in terms.items() if not bool(torch.isfinite(term)))
        mend = "lower learning_rate, or raise the temperatures; the stage can go on from its last epoch"
        raise GateError(f"step {step}", f"the loss is no number ({bad})", mend)

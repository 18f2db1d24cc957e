"""Training of what attaches a space: one loop for the projector, the C-MCR baseline and the paired upper bound."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from msgspec import structs
from numpy.typing import NDArray
from torch import Tensor, nn

from lineside.errors import ConfigError, GateError
from trainer import checkpoint
from trainer.attach_plan import FEWEST, AttachPlan
from trainer.encoders import unit
from trainer.loop import learning_rate
from trainer.matching import Queries, asked
from trainer.progress import Progress, silent
from trainer.projector import METHODS, CMcr, ExMcr, Projector, contrast
from trainer.quadruples import Lookup, Memories, Retriever, must_not_collapse, quadruples

Loss = Callable[[Tensor, torch.Generator], Tensor]
MAPS: dict[str, Callable[[int, int, AttachPlan], nn.Module]] = {
    "projector": lambda leaf, base, plan: Projector(leaf, base, plan.projector.hidden, plan.projector.norm),
    "linear": lambda leaf, base, plan: nn.Linear(leaf, base),
}
SHARES = (1.0, 0.25)


@dataclass(frozen=True)
class Matched:
    """Windows of newcomer (n, d_leaf) and partner (n, d_base) that were recorded at once; `groups` (n,) go together."""

    m: Tensor
    c: Tensor
    groups: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.m)

    def __getitem__(self, rows: NDArray[np.int64]) -> Matched:
        return Matched(self.m[rows], self.c[rows], self.groups[rows])


def itself(z: Tensor) -> Tensor:
    """The map of a side that is not projected."""
    return z


@dataclass(frozen=True)
class Way:
    """How newcomer and partner come together: a map of each to unit rows of one space; `name` says what was done."""

    name: str
    newcomer: Callable[[Tensor], Tensor]
    partner: Callable[[Tensor], Tensor] = itself


@dataclass(frozen=True)
class Half:
    """Where a half-trained model lies, and under which identity it goes on."""

    folder: Path
    identity: str


@dataclass(frozen=True)
class Course:
    """What is stepped through: `steps` batches of `count` rows, in an order of each epoch's own."""

    name: str
    plan: AttachPlan
    count: int
    steps: int
    loss: Loss

    @property
    def batch(self) -> int:
        """Rows a step."""
        return min(self.plan.batch, self.count)

    @property
    def per_epoch(self) -> int:
        """Steps in which all rows are seen, but for a rest."""
        return self.count // self.batch

    def rows(self, step: int) -> Tensor:
        """The rows of one step."""
        epoch, place = divmod(step, self.per_epoch)
        order = np.random.default_rng([self.plan.seed, epoch]).permutation(self.count)
        return torch.from_numpy(order[place * self.batch : (place + 1) * self.batch])


def steps_of(plan: AttachPlan, count: int) -> int:
    """Steps of a plan's epochs over `count` rows."""
    return plan.epochs * (count // min(plan.batch, count))


def align(
    plan: AttachPlan, known: Memories, half: Half | None = None, progress: Progress = silent
) -> tuple[ExMcr | CMcr, list[Lookup]]:
    """Train the plan's method on quadruples of the pools; with it, how their retrieval went.

    Raises ConfigError for pools too small for the norm, GateError when retrieval has collapsed or the loss diverges.
    """
    enough(plan, known)
    torch.manual_seed(plan.seed)
    model = METHODS[plan.method](known.m.shape[1], known.c.shape[1], plan.projector.hidden, plan.projector.norm)
    ask = Retriever(plan.tau1, plan.renormalise)
    made = quadruples(ask, known, model.kinds)
    lookups = ask.told()
    limits = plan.retrieval
    must_not_collapse(lookups, limits.flat, limits.one_hot, limits.distinct)

    def loss(rows: Tensor, chance: torch.Generator) -> Tensor:
        batch = made[rows].each(lambda x: noisy(x, plan.noise, chance))
        return model.loss(batch, plan.tau2, plan.weight)

    fit(model, Course(plan.method, plan, len(made), steps_of(plan, len(made)), loss), half, progress)
    return model, lookups


def baseline(plan: AttachPlan, known: Memories, progress: Progress = silent) -> CMcr:
    """C-MCR on the same pools. It moves the base's side too: its heads live here and reach no file."""
    other = {"method": "c-mcr", "noise": plan.baseline_noise}
    model, _ = align(structs.replace(plan, **other), known, None, progress)
    assert isinstance(model, CMcr)
    return model


def enough(plan: AttachPlan, known: Memories) -> None:
    """Raises ConfigError for a pool or a batch of fewer rows than the projector's norm needs."""
    norm = plan.projector.norm
    sizes = {"newcomers": len(known.m), "overlaps": len(known.o_leaf), "partners": len(known.c), "batch": plan.batch}
    for name, size in sizes.items():
        if size < FEWEST[norm]:
            told = f"{size} rows, and a projector with {norm} norm needs {FEWEST[norm]}"
            other = 'or set [projector] norm = "layer", a declared deviation' if norm == "batch" else "or raise batch"
            raise ConfigError(name, told, f"record longer, {other}")


def noisy(x: Tensor, length: float, chance: torch.Generator) -> Tensor:
    """Unit rows with Gaussian noise of about this length, sigma = length / sqrt(d), of unit length again."""
    if not length:
        return x
    return unit(x + torch.randn(x.shape, generator=chance) * (length / x.shape[1] ** 0.5))


def fit(model: nn.Module, course: Course, half: Half | None = None, progress: Progress = silent) -> None:
    """Step `model` through a course, and leave it in evaluation, where rows do not meet.

    Goes on from `half` if a run of the same identity stopped there. Raises GateError when the loss is no number.
    """
    optimiser = torch.optim.AdamW(model.parameters(), lr=course.plan.learning_rate)
    first = checkpoint.resume(half.folder, half.identity, model, optimiser, None) if half else 0
    model.train()
    for step in range(first, course.steps):
        value = course.loss(course.rows(step), torch.Generator().manual_seed(course.plan.seed * 1_000_003 + step))
        if not bool(torch.isfinite(value)):
            raise GateError(f"step {step}", "the loss is no number", "lower learning_rate, or raise tau2")
        optimiser.zero_grad()
        torch.autograd.backward(value)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(course.plan.learning_rate, step, course.steps)
        optimiser.step()
        if (step + 1) % course.per_epoch == 0 or step + 1 == course.steps:
            progress(f"steps of {course.name}", step + 1, course.steps)
            if half:
                checkpoint.save_progress(half.folder, half.identity, step + 1, model, optimiser, None, [])
    model.eval()


def upper_bound(plan: AttachPlan, learn: Matched, choose: Matched, steps: int, progress: Progress = silent) -> Way:
    """What pairs would have given: projector or linear map, for `steps` of InfoNCE or a quarter; the best on `choose`.

    Fewer steps are tried because a bound that has overfitted its pairs would flatter what is compared with it.
    """
    enough_pairs(plan, learn, choose)
    found = []
    for name, share in itertools.product(MAPS, SHARES):
        torch.manual_seed(plan.seed)
        model = MAPS[name](learn.m.shape[1], learn.c.shape[1], plan)

        def loss(rows: Tensor, _: torch.Generator, model: nn.Module = model) -> Tensor:
            return contrast(unit(model(learn.m[rows])), learn.c[rows], plan.tau2)

        made = Way(f"{name}, {round(share * steps)} steps", lambda m, model=model: unit(model(m)))  # type: ignore[misc]
        fit(model, Course(made.name, plan, len(learn), round(share * steps), loss), None, progress)
        found.append((float(matched_by(choose, made).scores["recall_few"].mean()), made))
    return max(found, key=lambda each: each[0])[1]


def enough_pairs(plan: AttachPlan, learn: Matched, choose: Matched) -> None:
    """Raises ConfigError for pairs too few to train the upper bound on, or to choose by."""
    for name, part, fewest in (("learn from", learn, FEWEST[plan.projector.norm]), ("choose by", choose, 2)):
        if len(part) < fewest:
            told = f"gives {len(part)} pairs to {name}, at least {fewest} are needed"
            raise ConfigError("paired", told, "record longer, or leave `paired` out: no bound is printed then")


def matched_by(held: Matched, way: Way) -> Queries:
    """How held-out pairs find each other on this way."""
    with torch.no_grad():
        return asked(way.newcomer(held.m).numpy(), way.partner(held.c).numpy(), held.groups)

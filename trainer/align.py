"""Training of what attaches a space: one loop for the projector, the C-MCR baseline and the paired upper bound."""

from __future__ import annotations

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
BOUNDS = ("projector", "linear")


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


@dataclass(frozen=True)
class Half:
    """Where a half-trained model lies, and under which identity it goes on."""

    folder: Path
    identity: str


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

    fit(model, len(made), loss, plan, half, progress)
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


def fit(
    model: nn.Module, count: int, loss: Loss, plan: AttachPlan, half: Half | None = None, progress: Progress = silent
) -> None:
    """Step `model` over `count` rows by the plan's schedule, and leave it in evaluation, where rows do not meet.

    Goes on from `half` if a run of the same identity stopped there. Raises GateError when the loss is no number.
    """
    batch = min(plan.batch, count)
    per_epoch = count // batch
    steps = plan.epochs * per_epoch
    optimiser = torch.optim.AdamW(model.parameters(), lr=plan.learning_rate)
    first = checkpoint.resume(half.folder, half.identity, model, optimiser, None) if half else 0
    model.train()
    for step in range(first, steps):
        epoch, place = divmod(step, per_epoch)
        order = np.random.default_rng([plan.seed, epoch]).permutation(count)
        rows = torch.from_numpy(order[place * batch : (place + 1) * batch])
        value = loss(rows, torch.Generator().manual_seed(plan.seed * 1_000_003 + step))
        if not bool(torch.isfinite(value)):
            raise GateError(f"step {step}", "the loss is no number", "lower learning_rate, or raise tau2")
        optimiser.zero_grad()
        torch.autograd.backward(value)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(plan.learning_rate, step, steps)
        optimiser.step()
        if place == per_epoch - 1:
            progress(f"epochs of {type(model).__name__}", epoch + 1, plan.epochs)
            if half:
                checkpoint.save_progress(half.folder, half.identity, step + 1, model, optimiser, None, [])
    model.eval()


def upper_bound(
    plan: AttachPlan, learn: Matched, choose: Matched, progress: Progress = silent
) -> tuple[nn.Module, str]:
    """What pairs would have given: the projector or a linear map, trained by InfoNCE; the better one on `choose`."""
    enough_pairs(plan, learn, choose)
    tried: dict[str, tuple[float, nn.Module]] = {}
    for name in BOUNDS:
        torch.manual_seed(plan.seed)
        leaf, base = learn.m.shape[1], learn.c.shape[1]
        if name == "projector":
            model: nn.Module = Projector(leaf, base, plan.projector.hidden, plan.projector.norm)
        else:
            model = nn.Linear(leaf, base)

        def loss(rows: Tensor, _: torch.Generator, model: nn.Module = model) -> Tensor:
            return contrast(unit(model(learn.m[rows])), learn.c[rows], plan.tau2)

        fit(model, len(learn), loss, plan, None, progress)
        found = matched_by(choose, lambda m, model=model: unit(model(m)))  # type: ignore[misc]
        tried[name] = float(found.scores["recall_few"].mean()), model
    best = max(tried, key=lambda name: tried[name][0])
    return tried[best][1], best


def enough_pairs(plan: AttachPlan, learn: Matched, choose: Matched) -> None:
    """Raises ConfigError for pairs too few to train the upper bound on, or to choose by."""
    for name, part, fewest in (("learn from", learn, FEWEST[plan.projector.norm]), ("choose by", choose, 2)):
        if len(part) < fewest:
            told = f"gives {len(part)} pairs to {name}, at least {fewest} are needed"
            raise ConfigError("paired", told, "record longer, or leave `paired` out: no bound is printed then")


def matched_by(
    held: Matched, newcomer: Callable[[Tensor], Tensor], partner: Callable[[Tensor], Tensor] = lambda c: c
) -> Queries:
    """How held-out pairs find each other through these maps."""
    with torch.no_grad():
        return asked(newcomer(held.m).numpy(), partner(held.c).numpy(), held.groups)

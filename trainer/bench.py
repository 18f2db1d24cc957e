"""What protection costs: one training step of two heads with and without it, interleaved in one run."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from lineside.clock import Clock
from trainer import published
from trainer.projection import Protection, nothing_seen, protect, rotate

RANK, EVERY, OLD = 128, 8, 2_000
Heads = list[nn.Linear]
Extra = Callable[[Heads, int], None]


def measure(clock: Clock, dim: int = 512, batch: int = 64, rounds: int = 60) -> dict[str, float]:
    """Median time of a step of each way over the median of a plain one; `violation` is the held heads' own.

    `dense` is the published rule: two dense products on the gradient of each head. `violation` is the largest change
    of an old embedding relative to the largest old embedding, after all steps of `held every 8`.
    """
    torch.manual_seed(1)
    old = torch.randn(OLD, RANK - 1) @ torch.randn(RANK - 1, dim - 1)
    new = [torch.randn(batch, dim) for _ in range(2)]
    start = [nn.Linear(dim, dim, bias=False) for _ in range(2)]
    protections = [protect(head.weight, nothing_seen(dim - 1).joined(old), 1e-12) for head in start]
    dense = [(p.directions @ p.directions.T).float() for p in protections]
    quick = [protection.like(head.weight) for protection, head in zip(protections, start, strict=True)]
    every = torch.eye(dim)

    def gradients(heads: Heads, step: int) -> None:
        for head, inputs in zip(heads, dense, strict=True):
            assert head.weight.grad is not None
            head.weight.grad.copy_(published.project(head.weight.grad, every, inputs))

    def held(heads: Heads, step: int) -> None:
        if (step + 1) % EVERY == 0:
            _hold(heads, quick)

    ways: dict[str, tuple[Heads, Extra | None, Extra | None]] = {
        "plain": (copy.deepcopy(start), None, None),
        "dense": (copy.deepcopy(start), gradients, None),
        "held every step": (copy.deepcopy(start), None, lambda heads, step: _hold(heads, quick)),
        "held every 8": (copy.deepcopy(start), None, held),
        "rotated": (_rotated(copy.deepcopy(start), protections), None, None),
    }
    steppers = {name: torch.optim.AdamW([p for h in way[0] for p in h.parameters()]) for name, way in ways.items()}
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for step in range(rounds * EVERY):
        for name, (heads, before, after) in ways.items():
            began = clock.now_ns()
            _step(heads, new, steppers[name], step, before, after)
            spent[name].append((clock.now_ns() - began) / 1e6)
    blocks = {
        name: [sum(times[k : k + EVERY]) for k in range(EVERY, len(times), EVERY)] for name, times in spent.items()
    }
    plain = statistics.median(blocks["plain"])
    ratios = {name: round(statistics.median(sums) / plain, 3) for name, sums in blocks.items()}
    x = torch.cat([old, torch.ones(OLD, 1)], dim=1).double()
    was = x @ protections[0].start.T
    moved = x @ (ways["held every 8"][0][0].weight.detach().double() - protections[0].start).T
    return {**ratios, "plain_ms": round(plain / EVERY, 3), "violation": float(moved.abs().max() / was.abs().max())}


def _step(
    heads: Heads,
    inputs: list[Tensor],
    stepper: torch.optim.Optimizer,
    step: int,
    before: Extra | None,
    after: Extra | None,
) -> None:
    stepper.zero_grad()
    a, b = (functional.normalize(head(x), dim=1) for head, x in zip(heads, inputs, strict=True))
    functional.cross_entropy(a @ b.T / 0.1, torch.arange(len(a))).backward()
    if before:
        before(heads, step)
    stepper.step()
    if after:
        after(heads, step)


def _hold(heads: Heads, protections: list[Protection]) -> None:
    for head, protection in zip(heads, protections, strict=True):
        protection.hold(head.weight)


def _rotated(heads: Heads, protections: list[Protection]) -> Heads:
    for head, protection in zip(heads, protections, strict=True):
        rotate(head, protection)
    return heads

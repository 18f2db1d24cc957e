"""How exactly old embeddings stay: heads that learn something else for hundreds of steps, protected in each way.

Old inputs are noise-free and of low rank, new ones use every direction, the optimiser is AdamW with weight decay. The
published rule projects gradients, which such an optimiser carries out of the allowed space again (dns.md, section 7).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.certificate import embedding_drift, similarity_drift
from trainer.losses import info_nce
from trainer.projection import Moments, homogeneous, nothing_seen, products, protect, rotate
from trainer.published import project, projector
from trainer.rules import PUBLISHED_THRESHOLD

OLD, NEW, FEATURES, DIM, RANK, STEPS, RATE, DECAY = 400, 64, 48, 24, 12, 300, 1e-2, 1e-2
PAIR = ("a", "b")
NO_DRIFT = 1e-6  # relative; float32 rounds at a tenth of it


@dataclass(frozen=True)
class Line:
    """Two heads of a pair, the homogeneous inputs (n, f+1) that they saw before, and those that they are to learn."""

    heads: dict[str, nn.Linear]
    old: dict[str, Tensor]
    new: dict[str, Tensor]

    @staticmethod
    def drawn(dtype: torch.dtype) -> Line:
        """The same line for every way, in the precision asked for."""
        chance = torch.Generator().manual_seed(1)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=chance, dtype=torch.float64)

        old = {name: homogeneous(normal(OLD, RANK) @ normal(RANK, FEATURES)) for name in PAIR}
        new = {name: homogeneous(normal(NEW, FEATURES)).to(dtype) for name in PAIR}
        heads = {name: nn.Linear(FEATURES + 1, DIM, bias=False, dtype=dtype) for name in PAIR}
        with torch.no_grad():
            for head in heads.values():
                head.weight.copy_(normal(DIM, FEATURES + 1) / FEATURES**0.5)
        return Line(heads, old, new)

    def seen(self, name: str) -> Moments:
        """Second moments of the old inputs."""
        return nothing_seen(FEATURES).joined(self.old[name][:, :-1])

    def embedded(self) -> dict[str, Tensor]:
        """Embeddings (n, dim) of the old inputs before normalisation, reckoned in float64."""
        return {name: self.old[name] @ self.heads[name].weight.detach().double().T for name in PAIR}

    def gradients(self) -> dict[str, Tensor]:
        """Gradients of the heads' weights, to be changed in place."""
        found = {name: head.weight.grad for name, head in self.heads.items()}
        return {name: gradient for name, gradient in found.items() if gradient is not None}


Turn = Callable[[], None]


def nothing() -> None:
    """What plain training does before and after a step of the optimiser."""


def held(line: Line) -> tuple[Turn, Turn]:
    """Weights are put back after each step."""
    protections = {name: protect(head.weight, line.seen(name), 0.0) for name, head in line.heads.items()}

    def after() -> None:
        for name, protection in protections.items():
            protection.hold(line.heads[name].weight)

    return nothing, after


def rotated(line: Line) -> tuple[Turn, Turn]:
    """The optimiser sees free directions alone."""
    for name, head in line.heads.items():
        rotate(head, protect(head.weight, line.seen(name), 0.0))
    return nothing, nothing


def dual(line: Line) -> tuple[Turn, Turn]:
    """Inner products are kept, each head in its turn."""
    weights = {name: head.weight for name, head in line.heads.items()}
    kept = products(weights, {name: line.seen(name) for name in PAIR}, [PAIR], PAIR, 0.0)
    return nothing, lambda: kept.hold(weights)


def published(line: Line) -> tuple[Turn, Turn]:
    """The reference's rule: gradients are projected, the optimiser then steps. Its output side is the identity (D1)."""
    inputs = {name: projector(line.seen(name).second, PUBLISHED_THRESHOLD) for name in PAIR}

    def before() -> None:
        for name, gradient in line.gradients().items():
            every = torch.eye(DIM, dtype=gradient.dtype)
            gradient.copy_(project(gradient, every, inputs[name].to(gradient)))

    return before, nothing


WAYS: dict[str, tuple[torch.dtype, Callable[[Line], tuple[Turn, Turn]]]] = {
    "held": (torch.float64, held),
    "rotated": (torch.float64, rotated),
    "dual": (torch.float64, dual),
    "held, float32": (torch.float32, held),
    "rotated, float32": (torch.float32, rotated),
    "published": (torch.float64, published),
    "plain": (torch.float64, lambda line: (nothing, nothing)),
}


def measure_exactness() -> dict[str, dict[str, float]]:
    """By way of protection: the largest change of an old embedding and of an old similarity, each over the largest.

    `certificate` is the largest relative error of the drifts told from second moments (trainer.certificate) against
    those over all old inputs; `told of nothing` the largest drift told where there is none, the root of rounding.
    `moved` is how far the heads have come, relative to their norm.
    """
    return {name: _measured(dtype, way) for name, (dtype, way) in WAYS.items()}


def _measured(dtype: torch.dtype, way: Callable[[Line], tuple[Turn, Turn]]) -> dict[str, float]:
    line = Line.drawn(dtype)
    was, start = line.embedded(), {name: head.weight.detach().double().clone() for name, head in line.heads.items()}
    before, after = way(line)
    optimiser = torch.optim.AdamW(
        [w for head in line.heads.values() for w in head.parameters()], RATE, weight_decay=DECAY
    )
    for _ in range(STEPS):
        optimiser.zero_grad()
        a, b = (nn.functional.normalize(head(line.new[name]), dim=1) for name, head in line.heads.items())
        torch.autograd.backward(info_nce(a, b, None, 0.2) + info_nce(b, a, None, 0.2))
        before()
        optimiser.step()
        after()
    now = {name: head.weight.detach().double() for name, head in line.heads.items()}
    return {
        "embedding": max(_relative(line.embedded()[name], was[name]) for name in PAIR),
        "similarity": _relative(_products(line.embedded()), _products(was)),
        **_certificate(line, start, now, was),
        "moved": max(float((now[name] - start[name]).norm() / start[name].norm()) for name in PAIR),
    }


def _products(embedded: dict[str, Tensor]) -> Tensor:
    return embedded["a"] @ embedded["b"].T


def _relative(now: Tensor, was: Tensor) -> float:
    return float((now - was).abs().max() / was.abs().max())


def _certificate(
    line: Line, start: dict[str, Tensor], now: dict[str, Tensor], was: dict[str, Tensor]
) -> dict[str, float]:
    """Told drifts against brute force over all old inputs."""
    seen = {name: line.seen(name).second for name in PAIR}
    moved = line.embedded()
    both = (start["a"], start["b"]), (now["a"], now["b"]), (seen["a"], seen["b"])
    drifts = [(similarity_drift(*both), _products(moved), _products(was))]
    drifts += [(embedding_drift(start[name], now[name], seen[name]), moved[name], was[name]) for name in PAIR]
    pairs = [(told, float((x - y).norm() / y.norm())) for told, x, y in drifts]
    real = [abs(told - true) / true for told, true in pairs if true > NO_DRIFT]
    none = [told for told, true in pairs if true <= NO_DRIFT]
    return ({"certificate": max(real)} if real else {}) | ({"told of nothing": max(none)} if none else {})

"""Heads that may move only where the past never looked: null-space projection of the weights.

Every few steps of the optimiser, and before a weight leaves, W <- W - U U^T (W - W_start) V V^T, where V spans the
input directions that hold all but a share epsilon of the old inputs' power; along the others the head may move as far
as the drift budget goes. It is the weight that is projected, not the gradient: adaptive optimisers rescale gradients
element by element and would leave the allowed space (dns.md, sections 7 and 8). One-sided (U U^T = I) unless told
otherwise, so that the embedding of every protected input stays, and with it every cosine; dual-sided, where U spans
what old partners look like, keeps inner products with them alone, and only while these stay (dns.md, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrize import ParametrizationList

from trainer.certificate import root

NUMERICAL_FLOOR = 1e-10
SPENDABLE = 0.9  # of the drift budget; the rest is for rounding
TURNS, KEPT = 3, 1e-10  # of Products: rounds before it gives in, and the relative error that is rounding


@dataclass(frozen=True)
class Moments:
    """Uncentred second moment (f+1, f+1) of a head's homogeneous inputs [x; 1] in float64, and how many it is of."""

    second: Tensor
    count: int

    def joined(self, features: Tensor) -> Moments:
        """With the inputs (n, f) of one more batch: the plain mean over all samples ever seen of this modality."""
        x = homogeneous(features)
        count = self.count + len(x)
        second = (self.second * self.count + x.T @ x) / max(1, count)
        return Moments((second + second.T) / 2, count)


def nothing_seen(features: int) -> Moments:
    """The moments of a modality that has not been seen."""
    return Moments(torch.zeros(features + 1, features + 1, dtype=torch.float64), 0)


def homogeneous(features: Tensor) -> Tensor:
    """(n, f) to (n, f+1) float64 with a last column of ones, on the CPU."""
    x = features.detach().double().cpu()
    return torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], dim=1)


def basis(second: Tensor, epsilon: float) -> Tensor:
    """Orthonormal directions (d, k) to protect: the fewest that hold 1 - epsilon of the trace.

    The threshold is a share, so it does not depend on the scale of the features; directions of rounding noise
    (below 1e-10 * d of the largest eigenvalue) are never protected.
    """
    values, vectors = torch.linalg.eigh((second + second.T) / 2)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    total = values.sum()
    if total <= 0:
        return vectors[:, :0]
    wanted = int(torch.searchsorted(values.cumsum(0), (1 - epsilon) * total)) + 1
    real = int((values > NUMERICAL_FLOOR * len(values) * values[0]).sum())
    return vectors[:, : min(wanted, real)]


@dataclass(frozen=True)
class Protection:
    """Holds one head to its start on the protected directions, and its drift on the others to a budget.

    Build it with `protect`, in float64. `budget` bounds ||D rest||, the RMS change of old embeddings by the
    displacement D.
    """

    start: Tensor  # (dim, f+1)
    directions: Tensor  # (f+1, k)
    rest: Tensor  # (f+1, r), a factor of the old inputs' second moment outside what is held
    budget: float = math.inf
    outputs: Tensor | None = None  # (dim, k'), the partners' directions; None: all, one-sided

    def like(self, weight: Tensor) -> Protection:
        """The same in the precision and on the device of `weight`: quick, and exact to that precision's rounding."""
        outputs = None if self.outputs is None else self.outputs.to(weight)
        start, directions, rest = (x.to(weight) for x in (self.start, self.directions, self.rest))
        return Protection(start, directions, rest, self.budget, outputs)

    def hold(self, weight: nn.Parameter) -> None:
        """Put `weight` (dim, f+1) back onto the allowed set, exactly at any cadence and under any optimiser.

        Its displacement D becomes the nearest that changes nothing protected, D - U U^T D V V^T. In place where
        `weight` has the precision of the protection: two thin products, and a third only where there is a budget.
        """
        with torch.no_grad():
            now = weight.to(self.start)
            inside = torch.addmm(self._kept, now, self.directions, beta=-1)  # the displacement's part in V
            if self.outputs is not None:
                inside = self.outputs @ (self.outputs.T @ inside)
            now.addmm_(inside, self.directions.T, alpha=-1)
            if math.isfinite(self.budget):
                moved = now - self.start
                drift = float(torch.linalg.norm(moved @ self.rest))
                if drift > self.budget:
                    now.copy_(self.start + moved * (self.budget / drift))  # drift is linear in the displacement
            weight.copy_(now)

    @cached_property
    def _kept(self) -> Tensor:
        """What protected directions must be mapped to (dim, k)."""
        return self.start @ self.directions

    @property
    def capacity(self) -> float:
        """Share k/d of the directions that are protected: at 1 nothing new can be learned."""
        return self.directions.shape[1] / self.directions.shape[0]


def protect(
    weight: Tensor, seen: Moments, epsilon: float, drift_budget: float = math.inf, partners: Tensor | None = None
) -> Protection:
    """Protect what `weight` (dim, f+1) makes of the inputs seen so far.

    `drift_budget` is relative to the RMS of the old embeddings; nine tenths of it may be used. With `partners`, the
    second moment (dim, dim) of what old partners' heads made of theirs, only inner products with these are protected.
    """
    start = weight.detach().double().cpu().clone()
    directions, factor = basis(seen.second, epsilon), root(seen.second)
    rest = factor if partners is not None else factor - directions @ (directions.T @ factor)
    rest = rest[:, rest.norm(dim=0) > 1e-12 * factor.norm()]
    budget = SPENDABLE * drift_budget * float(torch.linalg.norm(start @ factor)) if seen.count else math.inf
    outputs = None if partners is None else basis(partners, epsilon)
    return Protection(start, directions, rest, budget, outputs)


@dataclass(frozen=True)
class Products:
    """Holds inner products of old inputs between heads of recurring pairs, in turn: each head against the others' now.

    Protecting each head against its partner's start is exact to first order alone; the product of both displacements
    is free. In turn it is not: (W_a V_a)^T (W_b V_b) = K, the start's, is linear in W_a for the W_b of this moment,
    then in W_b (dns.md, section 8.14). Norms still move: it keeps dot products, not cosines. Build it with `products`.

    A head with several partners may be asked for more than its dimensions can give. Where turns do not end in K, all
    moving heads of pairs go back to their start on the protected directions, which is one-sided and exact.
    """

    starts: dict[str, Tensor]  # (dim, f+1) by modality
    directions: dict[str, Tensor]  # V (f+1, k)
    pairs: tuple[tuple[str, str], ...]
    moving: tuple[str, ...]

    def hold(self, weights: Mapping[str, nn.Parameter]) -> None:
        """Put the heads, each in its turn, onto the nearest weights that keep the products."""
        with torch.no_grad():
            now = {name: weights[name].to(start) for name, start in self.starts.items()}
            held = [name for name in self.moving if self._partners(name)]
            for _ in range(TURNS):
                for name in held:
                    now[name] = self._held(name, now)
                if self._kept(now):
                    break
            else:
                for name in held:
                    v = self.directions[name]
                    now[name] = now[name] - (now[name] - self.starts[name]) @ v @ v.T
            for name in held:
                weights[name].copy_(now[name])

    def _partners(self, name: str) -> list[str]:
        return [b if a == name else a for a, b in self.pairs if name in (a, b)]

    def _kept(self, now: Mapping[str, Tensor]) -> bool:
        for a, b in self.pairs:
            va, vb = self.directions[a], self.directions[b]
            wanted = (self.starts[a] @ va).T @ (self.starts[b] @ vb)
            if torch.linalg.norm((now[a] @ va).T @ (now[b] @ vb) - wanted) > KEPT * torch.linalg.norm(wanted):
                return False
        return True

    def _held(self, name: str, now: Mapping[str, Tensor]) -> Tensor:
        partners, v = self._partners(name), self.directions[name]
        seen = torch.cat([now[other] @ self.directions[other] for other in partners], dim=1)  # (dim, k)
        before = torch.cat([self.starts[other] @ self.directions[other] for other in partners], dim=1)
        wanted = before.T @ (self.starts[name] @ v)  # (k, own k): what seen^T W V has to be
        lacking = wanted - seen.T @ (now[name] @ v)
        return now[name] + torch.linalg.lstsq(seen.T, lacking, driver="gelsd").solution @ v.T


def products(
    weights: Mapping[str, Tensor],
    seen: Mapping[str, Moments],
    pairs: Sequence[tuple[str, str]],
    moving: Sequence[str],
    epsilon: float,
) -> Products:
    """Protect what heads (dim, f+1) made of each other's old inputs, `pairs` being those that were trained together.

    Only those `moving` are put back; the others are taken to stand still.
    """
    starts = {name: weight.detach().double().cpu().clone() for name, weight in weights.items()}
    directions = {name: basis(seen[name].second, epsilon) for name in starts}
    return Products(starts, directions, tuple(pairs), tuple(moving))


class Rotated(nn.Module):
    """A head's weight as start + X N^T, N (f+1, r) spanning all that is not protected: the optimiser sees X (dim, r).

    Exact under any optimiser without a projection, its state is smaller, and weight decay draws X to 0, which is the
    weight to its start (dns.md, section 8.1). One-sided. Use it through torch.nn.utils.parametrize:

    >>> head = nn.Linear(2, 1, bias=False)
    >>> seen = Moments(torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64)), 1)
    >>> rotate(head, protect(head.weight, seen, 0.0)).original.shape
    torch.Size([1, 1])
    """

    def __init__(self, protection: Protection, like: Tensor) -> None:
        super().__init__()
        self.start: Tensor
        self.free: Tensor
        self.rest: Tensor
        self.budget = protection.budget
        q = torch.linalg.qr(protection.directions, mode="complete").Q
        self.register_buffer("start", protection.start.to(like))
        free = q[:, protection.directions.shape[1] :]
        self.register_buffer("free", free.to(like))
        self.register_buffer("rest", (free.T @ protection.rest).to(like), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.start + x @ self.free.T

    def right_inverse(self, weight: Tensor) -> Tensor:
        return (weight - self.start) @ self.free

    @torch.no_grad()
    def hold(self, x: Tensor) -> None:
        """Shorten X, in place, where the head has drifted further than the budget of its protection."""
        drift = float(torch.linalg.norm(x @ self.rest))
        if drift > self.budget:
            x *= self.budget / drift


def rotate(head: nn.Module, protection: Protection) -> ParametrizationList:
    """Let `head.weight` move in its free directions alone, until `parametrize.remove_parametrizations`."""
    parametrize.register_parametrization(head, "weight", Rotated(protection, head.weight))
    return cast(ParametrizationList, head.parametrizations.weight)

"""What is trained to attach a space: the decoupled projector of Ex-MCR, C-MCR's two heads, and how they are folded.

Ex-MCR (exmcr.md, section 2.2) projects the leaf alone: f_l closes the gap between the leaf's modalities, f_m brings the
leaf into the base. C-MCR projects both sides, so that the base's space changes; it is here to be compared with.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from trainer.encoders import unit
from trainer.losses import info_nce
from trainer.quadruples import Quadruples

Norm = Literal["batch", "layer"]
NORMS: dict[str, type[nn.BatchNorm1d] | type[nn.LayerNorm]] = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


def block(inputs: int, hidden: int, outputs: int, norm: Norm) -> nn.Sequential:
    """Linear, norm, ReLU, linear, norm; weights by Xavier."""
    made = NORMS[norm]
    first, second = nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)
    for linear in (first, second):
        nn.init.xavier_uniform_(linear.weight)
    return nn.Sequential(first, made(hidden), nn.ReLU(), second, made(outputs))


class Projector(nn.Module):
    """f_l (square, the identity but for its bias at the start), then f_m (two blocks): leaf (n, a) to base (n, b).

    2,369,024 parameters at a = b = 512 and a hidden width of 1024, as the authors' (exmcr.md, 2.2).
    """

    def __init__(self, leaf: int, base: int, hidden: int, norm: Norm = "batch") -> None:
        super().__init__()
        self.f_l = nn.Linear(leaf, leaf)
        nn.init.eye_(self.f_l.weight)
        self.f_m = nn.Sequential(*block(leaf, hidden, base, norm), *block(base, hidden, base, norm))

    def forward(self, m: Tensor) -> Tensor:
        """The newcomer's path, (n, b) of unit length."""
        return unit(self.f_m(self.f_l(m)))

    def overlap(self, o: Tensor) -> Tensor:
        """The overlap's path, which skips f_l."""
        return unit(self.f_m(o))


def contrast(x: Tensor, y: Tensor, tau: float) -> Tensor:
    """Symmetric InfoNCE of matched unit rows (n, d): a scalar, log n where all are equally alike.

    >>> round(contrast(torch.ones(4, 1), torch.ones(4, 1), 0.05).item(), 4)  # log 4
    1.3863
    """
    return (info_nce(x, y, None, tau) + info_nce(y, x, None, tau)) / 2


def distance(x: Tensor, y: Tensor) -> Tensor:
    """Mean Euclidean distance of matched rows: it pulls, and has no negatives.

    >>> distance(torch.zeros(2, 2), torch.tensor([[3.0, 4.0], [0.0, 0.0]])).item()
    2.5
    """
    mean: Tensor = torch.linalg.vector_norm(x - y, dim=1).mean()
    return mean


class ExMcr(nn.Module):
    """Only the leaf is projected: what the base gives is taken as it is, and no gradient reaches it."""

    kinds = "moc"

    def __init__(self, leaf: int, base: int, hidden: int, norm: Norm) -> None:
        super().__init__()
        self.projector = Projector(leaf, base, hidden, norm)

    def loss(self, q: Quadruples, tau: float, weight: float) -> Tensor:
        """The mean contrast of all four pairs between leaf and base, and `weight` times the gap within the leaf."""
        o_base, c = q.o_base.detach(), q.c.detach()
        m, o = self.projector(q.m), self.projector.overlap(q.o_leaf)
        between = torch.stack([contrast(x, y, tau) for x in (m, o) for y in (c, o_base)]).mean()
        return between + weight * distance(self.projector.f_l(q.m), q.o_leaf)

    def newcomer(self, m: Tensor) -> Tensor:
        """The newcomer in the shared space."""
        projected: Tensor = self.projector(m)
        return projected

    def partner(self, c: Tensor) -> Tensor:
        """The base in the shared space: itself."""
        return c

    def folded(self) -> tuple[nn.Sequential, nn.Sequential | None]:
        """Head of the newcomer, and of the base: none."""
        return fold([self.projector.f_l, *self.projector.f_m]), None


class CMcr(nn.Module):
    """One block a side, both sides projected (exmcr.md, 2.2 and 2.3): where newcomer and base meet is a new space."""

    kinds = "o"

    def __init__(self, leaf: int, base: int, hidden: int, norm: Norm) -> None:
        super().__init__()
        self.leaf, self.base = block(leaf, hidden, base, norm), block(base, hidden, base, norm)

    def loss(self, q: Quadruples, tau: float, weight: float) -> Tensor:
        """Contrast of overlap with overlap and newcomer with partner, and the gap within both sides."""
        m, o, c = self.newcomer(q.m), unit(self.leaf(q.o_leaf)), self.partner(q.c)
        o_base = self.partner(q.o_base)
        gap = (distance(o, m) + distance(o_base, c)) / 2
        return contrast(o, o_base, tau) + contrast(m, c, tau) + weight * gap

    def newcomer(self, m: Tensor) -> Tensor:
        """The newcomer in the new space."""
        return unit(self.leaf(m))

    def partner(self, c: Tensor) -> Tensor:
        """The base's embeddings in the new space."""
        return unit(self.base(c))

    def folded(self) -> tuple[nn.Sequential, nn.Sequential | None]:
        """Head of the newcomer, and that through which the base has to go as well."""
        return fold(list(self.leaf)), fold(list(self.base))


METHODS: dict[str, type[ExMcr] | type[CMcr]] = {"ex-mcr": ExMcr, "c-mcr": CMcr}


class Unit(nn.Module):
    """Rows of length 1."""

    def forward(self, x: Tensor) -> Tensor:
        return unit(x)


def fold(layers: Sequence[nn.Module]) -> nn.Sequential:
    """The same map as it runs: batch norm and neighbouring linear layers become one, unit rows at the end.

    Batch norm is affine once trained, so that Ex-MCR's nine layers become three linear ones with two ReLU between
    (exmcr.md, section 4). Layer norm is not, and stays. Reckoned in double precision.
    """
    kind = next(weight.dtype for layer in layers for weight in layer.parameters())
    made: list[nn.Module] = []
    for layer in layers:
        one = _affine(copy.deepcopy(layer).double())
        if isinstance(one, nn.Linear) and made and isinstance(made[-1], nn.Linear):
            made[-1] = _product(one, made[-1])
        else:
            made.append(one)
    return nn.Sequential(*made, Unit()).to(kind).requires_grad_(False).eval()


def _affine(layer: nn.Module) -> nn.Module:
    """A batch norm as the linear layer that it is in evaluation; others as they are."""
    if not isinstance(layer, nn.BatchNorm1d):
        return layer
    assert layer.running_mean is not None
    assert layer.running_var is not None  # both are kept
    scale = layer.weight / torch.sqrt(layer.running_var + layer.eps)
    return _linear(torch.diag(scale), layer.bias - layer.running_mean * scale)


def _product(second: nn.Linear, first: nn.Linear) -> nn.Linear:
    """`first`, then `second`, as one layer."""
    return _linear(second.weight @ first.weight, second.weight @ first.bias + second.bias)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
    with torch.no_grad():
        made.weight.copy_(weight)
        made.bias.copy_(bias)
    return made

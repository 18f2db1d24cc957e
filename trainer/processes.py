"""One process or many (torchrun): embeddings are gathered, so that every process sees the loss of the whole batch.

Each process embeds its share of a batch's moments and gathers everybody's embeddings; all reckon the same loss, each
sends the gradient through its own rows, and the sum over processes is one process's gradient. No loss has to know of
processes, and the number of them changes nothing but rounding.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


@dataclass(frozen=True)
class World:
    """Which process this is, of how many; `local` is its number on this machine."""

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether it is this process that writes and speaks."""
        return self.rank == 0

    def order(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of a batch in the order in which `gather` gives them; a rest that cannot be shared out is left."""
        rows = rows[: len(rows) // self.size * self.size]
        return np.concatenate([rows[rank :: self.size] for rank in range(self.size)])

    def share(self, ordered: NDArray[np.int64]) -> NDArray[np.int64]:
        """This process's part of ordered rows."""
        each = len(ordered) // self.size
        return ordered[self.rank * each : (self.rank + 1) * each]

    def gather(self, x: Tensor) -> Tensor:
        """The rows (n, …) of all processes, (size * n, …); gradient flows to this process's own."""
        return x if self.size == 1 else _Gathered.apply(x, self)  # type: ignore[no-any-return]

    def sum_gradients(self, module: nn.Module) -> None:
        """Add up the gradients of all processes: one message for all parameters."""
        if self.size == 1:
            return
        held = [weight.grad for weight in module.parameters() if weight.grad is not None]
        flat = torch.cat([grad.flatten() for grad in held])
        dist.all_reduce(flat)
        for grad, total in zip(held, flat.split([grad.numel() for grad in held]), strict=True):
            grad.copy_(total.view_as(grad))


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, world: World) -> Tensor:  # type: ignore[override]
        ctx.rows = slice(world.rank * len(x), (world.rank + 1) * len(x))
        parts = [torch.empty_like(x) for _ in range(world.size)]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient[ctx.rows], None


class SharedBatchNorm(nn.Module):
    """Batch norm over the batches of all processes, CPU or GPU, with the parameters and buffers of a plain one."""

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d, world: World) -> None:
        super().__init__()
        self.world, self.eps, self.pace = world, norm.eps, norm.momentum or 0.1
        self.plain = [norm]  # in a list, so that it is no submodule and all names stay
        self.running_mean: Tensor
        self.running_var: Tensor
        self.num_batches_tracked: Tensor
        self.weight, self.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers():
            self.register_buffer(name, buffer)
        self.training = norm.training

    def train(self, mode: bool = True) -> SharedBatchNorm:
        self.plain[0].train(mode)
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.plain[0](x)  # type: ignore[no-any-return]
        axes = [0, *range(2, x.ndim)]
        local = x.double()
        counted = local.new_full((x.shape[1],), x.numel() // x.shape[1])  # processes may hold unequal shares
        sums = all_reduce(torch.stack([local.sum(dim=axes), (local * local).sum(dim=axes), counted]))  # differentiable
        count = sums[2, 0].detach()
        mean = sums[0] / count
        variance = sums[1] / count - mean**2
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(self.running_mean), self.pace)
            self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var), self.pace)
        shape = (1, -1, *(1 for _ in x.shape[2:]))
        scale = self.weight.double() * torch.rsqrt(variance + self.eps)
        return ((local - mean.view(shape)) * scale.view(shape) + self.bias.double().view(shape)).to(x)


def share_norms(module: nn.Module, world: World) -> None:
    """Let every batch norm of `module` see the batches of all processes, until `own_norms`."""
    if world.size == 1:
        return
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            setattr(module, name, SharedBatchNorm(child, world))
        else:
            share_norms(child, world)


def own_norms(module: nn.Module) -> None:
    """Undo `share_norms`: plain modules are what is saved and exported."""
    for name, child in list(module.named_children()):
        if isinstance(child, SharedBatchNorm):
            setattr(module, name, child.plain[0])
        else:
            own_norms(child)


ALONE = World()


@contextmanager
def joined() -> Iterator[World]:
    """This process's place among those that torchrun started; alone where none did."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield World(dist.get_rank(), size, int(os.environ.get("LOCAL_RANK", "0")))
    finally:
        dist.destroy_process_group()

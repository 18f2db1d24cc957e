"""Low-rank branches beside frozen convolutions: y = W x + B A x (LoRA: Hu et al., ICLR 2022).

A stage that learns in adapters leaves every weight of an encoder as it was, and what it learned stays a branch of its
own up to the device: an update is then little more than A and B. Branches stand beside every convolution that mixes
channels. A (rank, C_in, *kernel) sees what the convolution sees, B (C_out, rank, 1, ...) begins at zero, so that
nothing changes before the first step.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

PARTS = ("lora_a", "lora_b")
Convolution: TypeAlias = nn.Conv1d | nn.Conv2d


class _Branch(nn.Module):
    """What a convolution of either kind gets: its base's weights under their own names, and the branch."""

    def __init__(self, base: Convolution, rank: int) -> None:
        super().__init__(**_arguments(base))
        self.load_state_dict(base.state_dict())
        kind = nn.Conv2d if isinstance(base, nn.Conv2d) else nn.Conv1d
        self.lora_a = kind(**{**_arguments(base), "out_channels": rank, "bias": False})
        self.lora_b = kind(rank, base.out_channels, 1, bias=False)
        nn.init.zeros_(self.lora_b.weight)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = super().forward(x) + self.lora_b(self.lora_a(x))
        return made


class Branched1d(_Branch, nn.Conv1d):
    """A convolution over time with a branch."""


class Branched2d(_Branch, nn.Conv2d):
    """A convolution over a picture with a branch."""


Branched: TypeAlias = Branched1d | Branched2d


def places(trunk: nn.Module) -> list[str]:
    """Names of the convolutions that a branch may stand beside.

    >>> places(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Conv2d(4, 8, 1)))
    ['0', '3']
    """
    return [
        name
        for name, layer in trunk.named_modules()
        if isinstance(layer, Convolution) and layer.groups == 1 and not is_part(name)
    ]


def is_part(name: str) -> bool:
    """Whether a layer of this name belongs to a branch."""
    return name.rpartition(".")[2] in PARTS


def insert(trunk: nn.Module, rank: int) -> None:
    """Put a fresh branch beside each convolution that mixes channels."""
    for name in places(trunk):
        layer = trunk.get_submodule(name)
        assert isinstance(layer, Convolution)
        kind = Branched2d if isinstance(layer, nn.Conv2d) else Branched1d
        _put(trunk, name, kind(layer, rank).to(layer.weight.device))


def find(trunk: nn.Module) -> dict[str, Branched]:
    """The convolutions that have a branch, by name."""
    return {name: layer for name, layer in trunk.named_modules() if isinstance(layer, Branched)}


def let_learn(trunk: nn.Module) -> None:
    """From now on the branches learn, and nothing else in the trunk does."""
    trunk.requires_grad_(False)
    for layer in find(trunk).values():
        layer.lora_a.requires_grad_(True)
        layer.lora_b.requires_grad_(True)


def drop(trunk: nn.Module) -> None:
    """Take the branches away: the convolutions are what they were before."""
    for name, layer in find(trunk).items():
        _put(trunk, name, _plain(layer, layer.weight.detach()))


def merge(trunk: nn.Module) -> None:
    """Take the branches into the weights: the same function, to rounding, of weights that have moved."""
    for name, layer in find(trunk).items():
        _put(trunk, name, _plain(layer, whole(layer)))


def whole(layer: Branched) -> Tensor:
    """The weight W + B A of the one convolution that computes the same."""
    up, down = layer.lora_b.weight.detach().flatten(1), layer.lora_a.weight.detach()
    return layer.weight.detach() + (up @ down.flatten(1)).reshape(layer.weight.shape)


def fold(layer: Branched, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> Branched:
    """A copy with the batch norm behind it taken in: W to the very bits that it gives without a branch, and B."""
    made: Branched = fuse_conv_bn_eval(layer, norm)
    assert norm.running_var is not None
    scale = (1.0 if norm.weight is None else norm.weight) * torch.rsqrt(norm.running_var + norm.eps)
    with torch.no_grad():
        made.lora_b.weight *= scale.reshape(-1, *[1] * (made.lora_b.weight.ndim - 1))
    return made


def _arguments(layer: Convolution) -> dict[str, Any]:
    """What another convolution of the same shape is made with."""
    names = "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "padding_mode"
    return {**{name: getattr(layer, name) for name in names}, "bias": layer.bias is not None}


def _plain(layer: Branched, weight: Tensor) -> Convolution:
    made = (nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.Conv1d)(**_arguments(layer))
    made.load_state_dict({"weight": weight} if layer.bias is None else {"weight": weight, "bias": layer.bias})
    return made.to(weight.device).train(layer.training)


def _put(root: nn.Module, path: str, module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):  # as in a trunk of pictures: channels innermost
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module)

"""Trunks that go on learning without forgetting: every layer held to its start on the inputs it saw of old windows.

The second moment of what each linear or convolution layer took in (patches of a picture, one moment a group) says
which input directions old windows use; after an optimiser step the layer's displacement is projected off them, as in
trainer.projection, and one-sided: what a layer makes of old inputs stays, so the next layer's old inputs stay, up to
the trunk's end. That chain is exact where all used directions are protected and batch norm is frozen; what epsilon
leaves out compounds from layer to layer (dns.md, section 8.11), so measure the trunk's outputs as well as `drift`.

A stage goes: `let_move` and `freeze_norms`, then `protect_layers`, `exhausted`, `hold_all` after optimiser steps,
`drift` for its certificate, and at its end `gather` with what earlier stages gathered. Gather always for the widest
scope that a later stage may want: a layer whose old inputs were not all seen can never move again.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from trainer import branches
from trainer.branches import Branched
from trainer.certificate import root
from trainer.plan import Moves
from trainer.projection import basis

Layer: TypeAlias = nn.Linear | nn.Conv1d | nn.Conv2d

NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm, nn.LayerNorm),
)
MOST_VALUES = 2**19  # of unfolded patches held at once, 4 MB: a batch is taken in parts that fit a cache
LAST = 2  # dense layers that scope "last" moves


def protectable(trunk: nn.Module, scope: Moves) -> list[str]:
    """Names of the layers that may move under a scope, in the order in which the trunk defines them.

    "head": none, only the head outside the trunk moves. "all": every nn.Linear, nn.Conv1d and nn.Conv2d. "last": from
    the last but one layer with groups == 1 on, so the last two that mix channels, and depthwise ones beside them.
    "adapters": those with a low-rank branch (trainer.branches), which moves in their place.

    >>> depthwise = nn.Conv1d(4, 4, 3, groups=4)
    >>> trunk = nn.Sequential(nn.Conv1d(2, 4, 1), nn.Conv1d(4, 4, 1), nn.ReLU(), depthwise, nn.Conv1d(4, 9, 1))
    >>> protectable(trunk, "head"), protectable(trunk, "last"), protectable(trunk, "all")
    ([], ['1', '3', '4'], ['0', '1', '3', '4'])
    """
    if scope == "adapters":
        return list(branches.find(trunk))
    layers = {
        name: module
        for name, module in trunk.named_modules()
        if isinstance(module, Layer) and not branches.is_part(name)
    }
    names = list(layers)
    dense = [i for i, name in enumerate(names) if _groups(layers[name]) == 1]
    first = {"head": len(names), "last": dense[-LAST:][0] if dense else 0, "all": 0}
    return names[first[scope] :]


def let_move(trunk: nn.Module, names: Iterable[str]) -> None:
    """From now on these layers learn, and nothing else in the trunk does."""
    trunk.requires_grad_(False)
    for name in names:
        _layer(trunk, name).requires_grad_(True)


def freeze_norms(trunk: nn.Module) -> None:
    """From now on normalisation is a fixed map: neither its statistics nor its scale and shift learn.

    Call `keep_norms` after every `train()` of the trunk. Raises ValueError for batch norm that keeps no statistics:
    what it makes of an old window depends on its neighbours, and nothing can hold that.
    """
    for name, module in trunk.named_modules():
        if isinstance(module, NORMS):
            if isinstance(module, NORMS[:4]) and module.running_mean is None:
                raise ValueError(f"{name or 'trunk'}: batch norm without running statistics cannot be frozen")
            module.requires_grad_(False)
    keep_norms(trunk)


def keep_norms(trunk: nn.Module) -> None:
    """Bring normalisation back to its frozen statistics, which `train()` had set moving."""
    for module in trunk.modules():
        if isinstance(module, NORMS):
            module.eval()


@dataclass(frozen=True)
class LayerMoments:
    """Uncentred second moment of a layer's inputs, one (d, d) a group, in float64, and how many patches it is of.

    A patch is what one output position sees: a row of a linear layer's input, in_channels / groups * kernel values
    of a convolution's, in the order of the flattened weight, and a last 1 where the layer has a bias.
    """

    second: Tensor  # (groups, d, d)
    count: int

    def joined(self, other: LayerMoments) -> LayerMoments:
        """The plain mean over all patches of both. Raises ValueError when they are of different layers."""
        if self.second.shape != other.second.shape:
            raise ValueError(f"moments {tuple(self.second.shape)} and {tuple(other.second.shape)} are of two layers")
        count = self.count + other.count
        second = (self.second * self.count + other.second * other.count) / max(1, count)
        return LayerMoments((second + second.mT) / 2, count)


def unseen(layer: Layer) -> LayerMoments:
    """The moments of a layer that has seen nothing."""
    groups, _, d = matrix(layer).shape
    return LayerMoments(torch.zeros(groups, d, d, dtype=torch.float64), 0)


def gather(
    trunk: nn.Module,
    windows: Iterable[Tensor],
    names: Iterable[str],
    earlier: Mapping[str, LayerMoments] | None = None,
    most_patches: int | None = None,
) -> dict[str, LayerMoments]:
    """Second moments of what each named layer sees while batches of windows (n, *shape) pass through the trunk.

    The trunk runs as it will on the device, in eval mode, and is left in the mode it had. With `earlier`, the mean is
    over what was seen then too; protected layers see of old windows what they saw then. Every patch counts, unless
    `most_patches` says how many of each window to draw, which is quicker and protects only what was drawn.

    Raises ValueError for a name that is no layer, a layer that no window reached (its weight is used in another way
    and would go unprotected), and a layer that `earlier` stages did not gather (old inputs would be missing).
    """
    layers = {name: _layer(trunk, name) for name in names}
    if missing := sorted(layers.keys() - earlier.keys()) if earlier else []:
        raise ValueError(f"{', '.join(missing)}: earlier stages did not gather what this sees; leave it unmoved")
    seen = {name: unseen(layer) for name, layer in layers.items()}
    if not layers:
        return seen

    def look(name: str, layer: Layer, inputs: tuple[Tensor, ...]) -> None:
        for part in torch.split(inputs[0].detach(), _windows_at_once(layer, inputs[0])):
            seen[name] = seen[name].joined(_moments(layer, part, most_patches, seed=seen[name].count))

    with _watched(trunk, {name: (layer, partial(look, name)) for name, layer in layers.items()}):
        batches = 0
        for batch in windows:
            trunk(batch.to(next(trunk.parameters()).device))
            batches += 1
    if never := [name for name, moments in seen.items() if batches and not moments.count]:
        raise ValueError(f"{', '.join(never)}: never called, so what it sees is unknown; leave it unmoved")
    return {name: earlier[name].joined(moments) if earlier else moments for name, moments in seen.items()}


@contextmanager
def _watched(trunk: nn.Module, looks: Mapping[str, tuple[Layer, partial[None]]]) -> Iterator[None]:
    """The trunk in eval mode without gradients, each layer's look called with its input; all as it was afterwards."""
    modes = [(module, module.training) for module in trunk.modules()]
    hooks = [layer.register_forward_pre_hook(look) for layer, look in looks.values()]
    try:
        with torch.no_grad():
            trunk.eval()
            yield
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training


def _moments(layer: Layer, inputs: Tensor, most: int | None, seed: int) -> LayerMoments:
    x = patches(layer, inputs)  # (n, groups, d, positions)
    if most is not None and most < x.shape[3]:
        chance = torch.Generator().manual_seed(seed)  # other positions in every part, the same in every run
        x = x[..., torch.randperm(x.shape[3], generator=chance)[:most].to(x.device)]
    x = x.double().permute(1, 2, 0, 3).flatten(2)  # (groups, d, n * positions)
    if layer.bias is not None:
        x = functional.pad(x, (0, 0, 0, 1), value=1.0)
    count = x.shape[2]
    return LayerMoments((x @ x.mT).cpu() / max(1, count), count)


def patches(layer: Layer, inputs: Tensor) -> Tensor:
    """What each output position of `layer` sees of a batch, (n, groups, d, positions), without the bias's 1.

    >>> patches(nn.Conv1d(1, 1, 3, stride=2, padding=1), torch.arange(4.0).reshape(1, 1, 4))[0, 0].T
    tensor([[0., 0., 1.],
            [1., 2., 3.]])
    """
    n = len(inputs)
    if isinstance(layer, nn.Linear):
        return inputs.reshape(n, -1, 1, layer.in_features).permute(0, 2, 3, 1)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = functional.pad(inputs, _borders(layer), mode)
    kernel, stride, dilation = layer.kernel_size, layer.stride, layer.dilation
    if isinstance(layer, nn.Conv1d):  # a picture of height 1
        x, kernel, stride, dilation = x.unsqueeze(2), (1, *kernel), (1, *stride), (1, *dilation)
    x = functional.unfold(x, kernel, dilation=dilation, stride=stride)
    return x.reshape(n, layer.groups, -1, x.shape[2])


def _borders(layer: nn.Conv1d | nn.Conv2d) -> list[int]:
    """What the layer's padding adds before and after each axis, the last axis first."""
    borders: list[int] = []
    for axis in reversed(range(len(layer.kernel_size))):
        if isinstance(layer.padding, str):
            more = layer.dilation[axis] * (layer.kernel_size[axis] - 1) if layer.padding == "same" else 0
            borders += [more // 2, more - more // 2]
        else:
            borders += [layer.padding[axis], layer.padding[axis]]
    return borders


def _windows_at_once(layer: Layer, inputs: Tensor) -> int:
    each = inputs[0].numel()
    if not isinstance(layer, nn.Linear):
        each = each * math.prod(layer.kernel_size) // math.prod(layer.stride)
    return max(1, MOST_VALUES // max(1, each))


def fold(module: nn.Module) -> nn.Module:
    """Fold each batch norm into the convolution before it, everywhere inside `module` (in evaluation mode)."""
    for child in module.children():
        fold(child)
    if isinstance(module, nn.Sequential):
        names = list(module._modules)
        for before, after in itertools.pairwise(names):
            convolution, norm = module[int(before)], module[int(after)]
            if isinstance(convolution, (nn.Conv1d, nn.Conv2d)) and isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
                fused = branches.fold if isinstance(convolution, Branched) else fuse_conv_bn_eval
                module[int(before)] = fused(convolution, norm)  # type: ignore[arg-type]
                module[int(after)] = nn.Identity()
    return module


@dataclass(frozen=True)
class LayerProtection:
    """Holds one layer's weight and bias to their start on the protected input directions, each group on its own.

    Build it with `protect_layers`, in float64.
    """

    start: Tensor  # (groups, out / groups, d)
    directions: Tensor  # (groups, d, k): those protected or, where these are fewer, those free; padded with zeros
    spans_free: bool
    ranks: tuple[int, ...]  # protected directions of each group

    def like(self, weight: Tensor) -> LayerProtection:
        """The same in the precision and on the device of `weight`: quick, and exact to that precision's rounding."""
        return replace(self, start=self.start.to(weight), directions=self.directions.to(weight))

    def allowed(self, displacement: Tensor) -> Tensor:
        """The nearest displacement (groups, out / groups, d) that changes nothing protected: two thin products."""
        inside = displacement @ self.directions
        if self.spans_free:
            return inside @ self.directions.mT
        return torch.baddbmm(displacement, inside, self.directions.mT, alpha=-1)

    def hold(self, layer: Layer) -> None:
        """Put `layer` back onto the allowed set, exactly at any cadence and under any optimiser."""
        with torch.no_grad():
            held = self.start + self.allowed(matrix(layer).to(self.start) - self.start)
            if layer.bias is not None:
                layer.bias.copy_(held[..., -1].flatten())
                held = held[..., :-1]
            layer.weight.copy_(held.reshape(layer.weight.shape))

    @property
    def capacity(self) -> float:
        """Share k/d of the directions that are protected, over all groups: at 1 nothing new can be learned."""
        groups, d, _ = self.directions.shape
        return sum(self.ranks) / (groups * d)


def protect_layers(trunk: nn.Module, moments: Mapping[str, LayerMoments], epsilon: float) -> dict[str, LayerProtection]:
    """Protect what each layer in `moments` makes of the inputs seen so far; one that saw nothing is left free.

    Raises ValueError when moments are of another layer's shape, a name is no layer, or two layers share one weight.
    """
    layers = {name: _layer(trunk, name) for name in moments}
    if len({id(layer.weight) for layer in layers.values()}) < len(layers):
        raise ValueError("two layers share one weight, which cannot be held to both")
    return {name: _protection(name, layer, moments[name], epsilon) for name, layer in layers.items()}


def protect_branches(
    trunk: nn.Module, moments: Mapping[str, LayerMoments], epsilon: float, fresh: bool
) -> dict[str, LayerProtection]:
    """Protect what each named convolution and its branch make of the inputs seen so far: B A adds nothing to it.

    A `fresh` branch sees of a window only what no protected direction holds: its A is moved there, and B is free. One
    that has learned before keeps what A makes of old inputs, and what B makes of that. The protections are of
    `{name}.lora_a` and `{name}.lora_b`, for `hold_all`.
    """
    found = {}
    for name, layer in branches.find(trunk).items():
        if name not in moments:
            continue
        path, down = f"{name}.{branches.PARTS[0]}", matrix(layer.lora_a).double().cpu()
        second = moments[name].second[:, : down.shape[2], : down.shape[2]]  # without the bias's 1
        held = _protection(path, layer.lora_a, LayerMoments(second, moments[name].count), epsilon)
        if fresh:
            held = replace(held, start=held.allowed(down))
            held.hold(layer.lora_a)
        else:
            sees = LayerMoments(down @ second @ down.mT, moments[name].count)
            up = f"{name}.{branches.PARTS[1]}"
            found[up] = _protection(up, layer.lora_b, sees, epsilon)
        found[path] = held
    return found


def _protection(name: str, layer: Layer, seen: LayerMoments, epsilon: float) -> LayerProtection:
    start = matrix(layer).double().cpu().clone()
    groups, _, d = start.shape
    if seen.second.shape != (groups, d, d):
        raise ValueError(f"{name}: moments {tuple(seen.second.shape)} for a layer that needs {(groups, d, d)}")
    spans = [basis(second, epsilon) for second in seen.second]
    ranks = tuple(span.shape[1] for span in spans)
    # The thinner side is the cheaper one. With nothing free it is empty, and the weight stays bit for bit, where
    # D - D V V^T would leave rounding for the optimiser to build on.
    spans_free = d - min(ranks) <= max(ranks)
    if spans_free:
        spans = [torch.linalg.qr(span, mode="complete").Q[:, span.shape[1] :] for span in spans]
    widest = max(span.shape[1] for span in spans)
    padded = [functional.pad(span, (0, widest - span.shape[1])) for span in spans]
    return LayerProtection(start, torch.stack(padded), spans_free, ranks)


def quick(trunk: nn.Module, protections: Mapping[str, LayerProtection]) -> dict[str, LayerProtection]:
    """All of them in the precision and on the device of their layers: for the training loop."""
    return {name: each.like(_layer(trunk, name).weight) for name, each in protections.items()}


def hold_all(trunk: nn.Module, protections: Mapping[str, LayerProtection]) -> None:
    """Put every protected layer of `trunk` back onto its allowed set."""
    for name, protection in protections.items():
        protection.hold(_layer(trunk, name))


def exhausted(protections: Mapping[str, LayerProtection], limit: float = 0.99) -> list[str]:
    """Names of the layers that can hardly learn any more: the share of protected directions has reached `limit`."""
    return [name for name, protection in protections.items() if protection.capacity >= limit]


def matrices(trunk: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """The weights of these layers as they stand, float64 (groups, out / groups, d), for `drift`."""
    return {name: matrix(_layer(trunk, name)).double().cpu().clone() for name in names}


def drift(before: Mapping[str, Tensor], trunk: nn.Module, moments: Mapping[str, LayerMoments]) -> dict[str, float]:
    """Relative RMS change of each layer's outputs for the inputs in `moments`: sqrt(tr(D C D^T)) / sqrt(tr(W C W^T)).

    `before` are the layers' `matrices` as they were, `trunk` holds them now. One layer at a time, as if those below it
    had not moved; 0 for a layer that has not moved, inf where outputs that were all zero have.
    """
    drifts = {}
    for name, old in before.items():
        seen, new = moments[name], matrix(_layer(trunk, name)).double().cpu()
        factor = torch.stack([root(second) for second in seen.second])  # norms of factors: no digits lost in a trace
        moved, was = (float(torch.linalg.vector_norm(x @ factor)) for x in (new - old, old))
        drifts[name] = moved / was if was else math.inf * moved if moved else 0.0
    return drifts


def to_tensors(prefix: str, moments: Mapping[str, LayerMoments]) -> dict[str, Tensor]:
    """Moments as flat tensors for safetensors, `prefix/layer/second` and `prefix/layer/count`; copies, no two alike.

    The same moments may stand twice in a file, before and after a stage; safetensors refuses shared memory.
    """
    flat: dict[str, Tensor] = {}
    for name, seen in moments.items():
        flat |= {f"{prefix}/{name}/second": seen.second.clone(), f"{prefix}/{name}/count": torch.tensor(seen.count)}
    return flat


def from_tensors(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, LayerMoments]:
    """What `to_tensors` wrote under `prefix`, among any other tensors; empty where there is nothing."""
    begin, end = f"{prefix}/", "/second"
    names = [
        key.removeprefix(begin).removesuffix(end) for key in tensors if key.startswith(begin) and key.endswith(end)
    ]
    return {name: LayerMoments(tensors[f"{begin}{name}{end}"], int(tensors[f"{begin}{name}/count"])) for name in names}


def matrix(layer: Layer) -> Tensor:
    """Weight of `layer` as (groups, out / groups, d), flattened like its patches, its bias the last column.

    Of a convolution with a branch, that of the one convolution that computes the same.
    """
    groups = _groups(layer)
    weight = branches.whole(layer) if isinstance(layer, Branched) else layer.weight.detach()
    flat = weight.reshape(groups, len(weight) // groups, -1)
    if layer.bias is None:
        return flat
    return torch.cat([flat, layer.bias.detach().reshape(groups, -1, 1)], dim=2)


def _groups(layer: Layer) -> int:
    return 1 if isinstance(layer, nn.Linear) else layer.groups


def _layer(trunk: nn.Module, name: str) -> Layer:
    """The layer of that name. Raises ValueError when there is none that can be held."""
    try:
        module = trunk.get_submodule(name)
    except AttributeError:
        module = None
    if not isinstance(module, Layer) or not isinstance(module.weight, nn.Parameter):
        raise ValueError(f"{name}: no linear or convolution layer with a weight of its own")
    return module

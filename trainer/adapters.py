"""Low-rank adapters on a frozen classifier (LoRA: Hu et al., ICLR 2022), through the `peft` library.

y = W x + scale * B A x; A is drawn (Kaiming), B begins at zero, so that nothing changes before the first step. Where:
every convolution of the trunk that mixes channels. peft wants the rank to be divisible by a convolution's groups, and
cannot merge what it adds to one with groups, so depthwise convolutions stay as they are. A model on features of a
frozen backbone has no such layer in its trunk, and its head is adapted; otherwise heads stay frozen.

Convolutions: A (rank, C_in, *kernel), B (C_out, rank, 1, ...), so that the true rank is at most `rank` (minLoRA's
convention; loralib's reaches rank * kernel). An adapter file is safetensors of these, by layer, and says in its header
which base it was trained on. Nothing is ever subtracted: to take an adapter back is to drop it.

This is the only file that needs peft.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import msgspec
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save as pack
from torch import Tensor, nn

from lineside.errors import ConfigError
from lineside.files import sha256
from trainer import classifier
from trainer.classifier import Classifier
from trainer.layers import protectable
from trainer.plan import Moves

CONVENTION = "y = W x + scale * B A x; convolutions: A (rank, C_in, *kernel), B (C_out, rank, 1, ...)"
TRAIN = "train it with `lineside train adapt`"
WRAPPED, PARTS = ".base_layer", ("lora_A", "lora_B")


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What an adapter file says of itself in its header."""

    modality: str
    stage: str
    base_sha256: str
    rank: int
    scale: float
    layers: list[str]
    convention: str = CONVENTION


def places(model: Classifier, where: Moves) -> list[str]:
    """Names of the layers that are adapted.

    >>> from lineside.features import FeaturesPrepare, SeriesPrepare
    >>> places(Classifier(SeriesPrepare(channels=1, samples=64), 2), "last")
    ['trunk.body.6', 'trunk.body.9']
    >>> places(Classifier(FeaturesPrepare(width=8, backbone="ab" * 32), 2), "all")
    ['head']
    """
    layers = {name: model.trunk.get_submodule(name) for name in protectable(model.trunk, where)}
    return [f"trunk.{name}" for name, layer in layers.items() if getattr(layer, "groups", 1) == 1] or ["head"]


def insert(model: Classifier, about: About) -> None:
    """Give a model a fresh adapter, and let nothing else of it learn.

    Raises ConfigError when it carries one already, or is not the base that the adapter is of.
    """
    thing = f"adapter {about.stage} of {about.modality}"
    if carried := stage_of(model):
        told = f"the model already carries adapter {carried}, and two adapters are not stacked"
        raise ConfigError(thing, told, "take the registered model, and give it one adapter")
    if (found := base_sha256(model)) != about.base_sha256:
        told = f"was made for base {about.base_sha256[:12]}, this one is {found[:12]}"
        raise ConfigError(thing, told, TRAIN)
    if missing := set(about.layers) - {name for name, _ in model.named_modules()}:
        raise ConfigError(thing, f"wants layers that the model does not have ({', '.join(sorted(missing))})", TRAIN)
    alpha = about.scale * about.rank
    config = LoraConfig(r=about.rank, lora_alpha=alpha, target_modules=about.layers, lora_dropout=0.0)  # type: ignore[arg-type]
    inject_adapter_in_model(config, model, adapter_name=about.stage)
    model.requires_grad_(False)  # biases and scales of normalisation too: only the pairs learn
    for name, weight in model.named_parameters():
        weight.requires_grad_(_is_pair(name))
    model.eval()


def stage_of(model: nn.Module) -> str:
    """The name of the adapter that a model carries, "" for none."""
    names = {name for module in model.modules() if isinstance(module, LoraLayer) for name in module.lora_A}
    return ", ".join(sorted(names))


def base_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Weights and buffers of the base below an adapter, by the names that they have without one."""
    return {n.replace(WRAPPED, ""): t for n, t in classifier.tensors(model).items() if not _is_pair(n)}


def base_sha256(model: nn.Module) -> str:
    """Hash of the base's weights and buffers: that of its file, as long as nothing of it has moved."""
    return sha256(pack(base_tensors(model)))


def pairs(model: nn.Module) -> dict[str, Tensor]:
    """The adapter's own tensors, `{layer}.lora_A.weight`."""
    stage = stage_of(model)
    found = {name: tensor for name, tensor in classifier.tensors(model).items() if _is_pair(name)}
    return {name.replace(f".{stage}.", "."): tensor for name, tensor in found.items()}


def to_bytes(model: nn.Module, about: About) -> bytes:
    """The adapter file."""
    return pack(pairs(model), {"about": msgspec.json.encode(about).decode()})


def from_bytes(model: Classifier, data: bytes, stored: Mapping[str, Tensor], path: Path, modality: str) -> About:
    """Give a model the adapter of a file whose hash was checked; `stored` are its tensors.

    Raises ConfigError when the file is no adapter, is of another modality or another base, when the model carries one
    already, and when a tensor is missing, unknown or of another shape: it would silently be no adapter at all.
    """
    about = _about(data, path)
    if about.modality != modality:
        raise ConfigError(str(path), f"is an adapter of {about.modality}, not of {modality}", TRAIN)
    insert(model, about)
    own = pairs(model)
    wrong = sorted(own.keys() ^ stored.keys()) or [name for name in own if own[name].shape != stored[name].shape]
    if wrong:
        told = f"does not fit its base ({', '.join(wrong[:3])} missing, unknown or of other shape)"
        raise ConfigError(str(path), told, TRAIN)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if _is_pair(name):
                weight.copy_(stored[name.replace(f".{about.stage}.", ".")])
    model.requires_grad_(False)
    return about


def remove(model: Classifier) -> None:
    """Drop the adapter: the base's own layers stand where they stood, untouched."""
    for name, layer in _adapted(model).items():
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, layer.get_base_layer())


def merged(model: Classifier) -> Classifier:
    """A copy whose weights are W + scale * B A, as fast as the base; the model itself stays as it is."""
    whole = copy.deepcopy(model)
    for layer in _adapted(whole).values():
        layer.merge()
    remove(whole)
    return whole


def _adapted(model: nn.Module) -> dict[str, LoraLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def _is_pair(name: str) -> bool:
    return any(part in name.split(".") for part in PARTS)


def _about(data: bytes, path: Path) -> About:
    """The header of a safetensors file: eight bytes of its length, then JSON."""
    try:
        header = msgspec.json.decode(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return msgspec.json.decode(header["__metadata__"]["about"], type=About)
    except (msgspec.DecodeError, KeyError, TypeError) as error:
        raise ConfigError(str(path), f"is no adapter file ({error})", TRAIN) from error

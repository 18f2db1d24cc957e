"""The folder of a fused model: fused.json, one immutable base file a modality, one adapter file a modality and stage.

To roll one modality back is to choose another adapter file, or none: the base is never written again, and the other
modalities' logits do not change, since fusion is a mean of logits.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lineside import shapley
from lineside.errors import ConfigError, GateError
from lineside.features import Prepare
from lineside.files import sha256, write_atomic
from trainer import classifier, registry
from trainer.classifier import Classifier
from trainer.fusion_result import Result
from trainer.joint import Models, Said
from trainer.ume import mean_of_logits, shares

DESCRIPTION = "fused.json"
AGAIN = "make it again with `lineside train adapt`"


class AdapterFile(msgspec.Struct, frozen=True):
    """An adapter of one modality and stage."""

    file: str
    sha256: str
    stage: str
    rank: int


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """One modality of a fused model: its base, its adapter if it has one, and its temperature.

    `registered_sha256` is the registered model that it must not fall behind: the base itself, unless that was trained
    jointly. `adapters` holds one at most: a list, so that two can be told and refused.
    """

    base: str
    base_sha256: str
    registered_sha256: str
    prepare: Prepare
    temperature: float
    adapters: list[AdapterFile]


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """fused.json; `weights` are those of the mean of logits, by sensor."""

    stage: str
    names: list[str]
    log_prior: list[float]
    sensors: dict[str, str]
    weights: dict[str, float]
    members: dict[str, Member]
    plan_sha256: str
    result: Result


@dataclass(frozen=True)
class Fused:
    """A fused model at work."""

    models: Models
    names: tuple[str, ...]
    log_prior: NDArray[np.float64]
    weights: Mapping[str, float]

    def logits(self, said: Said) -> Tensor:
        """Fused logits (n, C) of the sensors present; zeros where there is none."""
        return mean_of_logits(said.z, said.present, self._weights(said))

    def contributions(self, said: Said) -> list[shapley.Decision]:
        """Exact Shapley values of each moment's decision, by the device's own code (contribution.md, section 2).

        A sensor's logits are summed as in the fused mean of all who are present, less the prior that each of them has
        learned: with w_m (z_m - ln prior), prior and all sensors together give the fused softmax. A coalition keeps
        these weights, as on the device. Moments without any sensor are left out.
        """
        weighted = shares(said.z, said.present, self._weights(said))  # (sensors, n)
        ratios = weighted.double()[:, :, None] * (said.z.double() - torch.from_numpy(self.log_prior))
        return [
            shapley.of_logits(
                {said.sensors[m]: ratios[m, k].numpy() for m in torch.nonzero(said.present[:, k])[:, 0].tolist()},
                self.log_prior,
            )
            for k in torch.nonzero(said.present.any(dim=0))[:, 0].tolist()
        ]

    def _weights(self, said: Said) -> Tensor:
        return torch.tensor([self.weights[sensor] for sensor in said.sensors])


def save(folder: Path, about: Description, files: Mapping[str, bytes]) -> None:
    """Write a fused model: what it is made of first, the description last."""
    for name, data in files.items():
        write_atomic(folder / name, data)
    write_atomic(folder / DESCRIPTION, msgspec.json.format(msgspec.json.encode(about), indent=2) + b"\n")


def read(folder: Path) -> Description:
    """The description of a fused model. Raises ConfigError when there is none."""
    path = folder / DESCRIPTION
    try:
        return msgspec.json.decode(path.read_bytes(), type=Description)
    except OSError as error:
        raise ConfigError(str(folder), "is no fused model (it has no fused.json)", AGAIN) from error
    except msgspec.DecodeError as error:
        raise ConfigError(str(path), f"cannot be read ({error})", AGAIN) from error


def load(folder: Path, without: Collection[str] = ()) -> Fused:
    """A fused model as it stands in a folder; modalities in `without` are rolled back to their base.

    Raises ConfigError for a file that is missing or of another hash, tensors that do not fit, an adapter of another
    base or modality, and two adapters of one modality.
    """
    about = read(folder)
    if unknown := set(without) - about.members.keys():
        raise ConfigError(str(folder), f"has no {', '.join(sorted(unknown))} to roll back", "see its fused.json")
    models = {
        modality: _member(folder, modality, member, len(about.names), modality not in without)
        for modality, member in about.members.items()
    }
    temperatures = {modality: member.temperature for modality, member in about.members.items()}
    return Fused(Models(models, temperatures), tuple(about.names), np.array(about.log_prior), about.weights)


def must_pass(about: Description, folder: Path) -> None:
    """Raises GateError naming the first failed gate, its number and its limit."""
    for gate in about.result.gates:
        if not gate.passed:
            told = f"gate `{gate.name}` is {gate.value:.4g}, must be at least {gate.limit:.4g}"
            mend = "label and record more, so that it is known more surely, or leave out the sensor that draws it down"
            raise GateError(str(folder), told, mend)


def adapter_file(modality: str, stage: str, data: bytes, rank: int) -> AdapterFile:
    """How an adapter's file is called and known."""
    return AdapterFile(f"{modality}-adapter-{stage}.safetensors", sha256(data), stage, rank)


def low_rank() -> ModuleType:
    """trainer.adapters, imported when it is wanted: it alone needs peft, which takes seconds to import.

    Raises ConfigError where peft is not installed.
    """
    try:
        from trainer import adapters
    except ModuleNotFoundError as error:
        told = f"low-rank adapters need the peft library ({error})"
        raise ConfigError("peft", told, "install lineside[adapt], or set ranks = [] in [lora]") from error
    return adapters


def _member(folder: Path, modality: str, member: Member, classes: int, adapted: bool) -> Classifier:
    where = f"{modality} in {folder}"
    if len(member.adapters) > 1:
        told = f"names {len(member.adapters)} adapters ({', '.join(a.file for a in member.adapters)}), one is the most"
        raise ConfigError(where, f"{told}: two adapters are not stacked", "keep the one of the stage that is wanted")
    with torch.random.fork_rng():  # fresh weights are drawn, and then replaced
        model = Classifier(member.prepare, classes)
    _, stored = registry.stored_tensors(folder / member.base, member.base_sha256, AGAIN)
    classifier.load(model, stored, where)
    for adapter in member.adapters if adapted else []:
        path = folder / adapter.file
        data, pairs = registry.stored_tensors(path, adapter.sha256, AGAIN)
        low_rank().from_bytes(model, data, pairs, path, modality)
    return registry.frozen(model)

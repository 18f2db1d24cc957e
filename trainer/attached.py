"""An attached sensor: the file of its folded head, and the use of it. Deleting the file detaches it.

One safetensors file, `newcomer.{layer}.weight` and `.bias` (and `base.…` of C-MCR, which projects both sides), whose
metadata `about` holds the JSON of `About`. The head turns the leaf's embeddings into the base's.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as parse
from safetensors.torch import save as pack
from torch import Tensor, nn

from lineside.errors import ConfigError
from lineside.files import write_atomic
from lineside.release import Gate
from trainer.checkpoint import WEIGHTS, Stage
from trainer.encoders import Encoder, Head, unit
from trainer.matching import Found
from trainer.projector import METHODS, Norm
from trainer.quadruples import Lookup


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What pairs that nobody trained on say: by way of attaching and score (trainer.matching), and the gap.

    `rows` holds `zero-pair`, and where they were asked for `upper bound` and `c-mcr`; `bound` says which map the bound
    is, `of_bound` the share of its score above chance that is reached. `gap` is the distance of the means of newcomer
    and overlap in the leaf, before and after f_l (NaN is written as -1: C-MCR has no f_l).
    """

    windows: int = 0
    groups: int = 0
    rows: dict[str, dict[str, Found]] = msgspec.field(default_factory=dict)
    bound: str = ""
    of_bound: dict[str, Found] = msgspec.field(default_factory=dict)
    gap_before: float = 0.0
    gap_after: float = -1.0


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What a head says of itself; `dims` are those of leaf, hidden layer and base, `tensors` is the hash of its own.

    `space` is the base's, `base_encoders` what its encoders are known by (trainer.checkpoint.identities), `base_sha256`
    and `leaf_sha256` are those of the stages' weights, `base_print` that of the base's parameters and buffers, before
    and after alike where the gate `base changed` holds.
    """

    newcomer: str
    overlap: str
    partner: str
    space: str
    base_encoders: dict[str, str]
    method: str
    norm: Norm
    dims: tuple[int, int, int]
    base_sha256: str
    leaf_sha256: str
    plan_sha256: str
    data_sha256: str
    seed: int
    retrieval: list[Lookup]
    measured: Measured
    gates: list[Gate]
    base_print: str
    tensors: str = ""

    @property
    def passed(self) -> bool:
        """Whether every gate let it through."""
        return all(gate.passed for gate in self.gates)


def hash_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of tensors, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        x = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}".encode() + x.numpy().tobytes())
    return digest.hexdigest()


def write(path: Path, about: About, newcomer: nn.Sequential, base: nn.Sequential | None) -> About:
    """Write a head whole; gives what it says of itself, with the hash of its tensors."""
    tensors = {f"newcomer.{name}": x.contiguous() for name, x in newcomer.state_dict().items()}
    tensors |= {f"base.{name}": x.contiguous() for name, x in (base.state_dict() if base else {}).items()}
    about = msgspec.structs.replace(about, tensors=hash_of(tensors))
    write_atomic(path, pack(tensors, {"about": msgspec.json.encode(about).decode()}))
    return about


def read_about(path: Path) -> About:
    """What a head's file says of itself. Raises ConfigError when it is missing, damaged or no head."""
    return _read(path)[0]


@dataclass(frozen=True)
class Attached:
    """A newcomer in the base's space: `head` maps the leaf's unit embeddings there, `base_head` is C-MCR's."""

    about: About
    head: nn.Sequential
    base_head: nn.Sequential | None

    @classmethod
    def load(cls, path: Path, leaf: Stage, base: Stage | None = None) -> Attached:
        """The head of a file, for the two stages that it was trained for; no base where none is used beside it.

        Raises ConfigError when the file is missing or damaged, lacks a weight or has one too many, or was trained for
        another leaf or base.
        """
        about, tensors = _read(path)
        sides = [("leaf", about.leaf_sha256, about.dims[0], leaf), ("base", about.base_sha256, about.dims[2], base)]
        for name, wanted, dim, stage in sides:
            if stage is not None:
                _belongs(path, name, stage, wanted, dim)
        with torch.random.fork_rng():
            made = METHODS[about.method](*_sizes(about), about.norm)
        heads = dict(zip(("newcomer", "base"), made.folded(), strict=True))
        known = {name: head for name, head in heads.items() if head is not None}
        _fill(path, known, tensors)
        return cls(about, known["newcomer"], known.get("base"))

    def embed(self, z: NDArray[np.float32]) -> NDArray[np.float32]:
        """The leaf's embeddings of the newcomer (n, d_leaf) in the base's space: (n, d_base), of unit length."""
        with torch.no_grad():
            return np.asarray(self.head(unit(torch.from_numpy(z))).numpy(), np.float32)

    def partner(self, z: NDArray[np.float32]) -> NDArray[np.float32]:
        """The base's embeddings where they meet the newcomer's: themselves, unless C-MCR projected them too."""
        if self.base_head is None:
            return z
        with torch.no_grad():
            return np.asarray(self.base_head(torch.from_numpy(z)).numpy(), np.float32)

    def encoder(self, leaf: Encoder) -> Encoder:
        """The leaf's encoder of the newcomer as one of the base's space: windows in, (n, d_base) out.

        Raises ConfigError for C-MCR, whose space is not the base's.
        """
        if self.base_head is not None:
            told = "was attached by C-MCR, which projects the base as well"
            raise ConfigError(self.about.newcomer, told, 'attach it with method = "ex-mcr"')
        made = copy.deepcopy(leaf)
        made.head = AttachedHead(leaf.head, self.head)
        return made.eval()


class AttachedHead(Head):
    """A leaf's head with the folded head behind it."""

    def __init__(self, head: Head, after: nn.Sequential) -> None:
        super().__init__(head.weight.shape[1] - 1, head.weight.shape[0])
        self.load_state_dict(head.state_dict())
        self.after = copy.deepcopy(after)

    @property
    def dim(self) -> int:
        """Width of what comes out."""
        return int([layer for layer in self.after if isinstance(layer, nn.Linear)][-1].out_features)

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.after(unit(super().forward(x)))
        return projected


def _belongs(path: Path, side: str, stage: Stage, wanted: str, dim: int) -> None:
    """Raises ConfigError for a stage that a head was not trained for."""
    if stage.files[WEIGHTS] != wanted:
        told = f"was trained for a {side} of hash {wanted[:12]}, this one is {stage.files[WEIGHTS][:12]}"
        raise ConfigError(str(path), told, f"give the {side} stage it belongs to, or attach anew")
    if stage.plan.dim != dim:
        told = f"is for a {side} of {dim} dimensions, {stage.name} has {stage.plan.dim}"
        raise ConfigError(str(path), told, "attach anew with `lineside train attach`")


def _sizes(about: About) -> tuple[int, int, int]:
    """Widths of leaf, base and hidden layer, as a method takes them."""
    leaf, hidden, base = about.dims
    return leaf, base, hidden


def _fill(path: Path, heads: Mapping[str, nn.Sequential], tensors: Mapping[str, Tensor]) -> None:
    """Give heads their weights, all of them and no others."""
    wanted = {f"{side}.{name}": x.shape for side, head in heads.items() for name, x in head.state_dict().items()}
    found = {name: x.shape for name, x in tensors.items()}
    if wanted != found:
        wrong = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
        told = f"its tensors do not fit its method: {', '.join(wrong[:4])}"
        raise ConfigError(str(path), told, "attach anew with `lineside train attach`")
    for side, head in heads.items():
        head.load_state_dict({name: tensors[f"{side}.{name}"] for name in head.state_dict()})


def _read(path: Path) -> tuple[About, dict[str, Tensor]]:
    again = "attach anew with `lineside train attach`"
    try:
        data = path.read_bytes()
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        tensors = parse(data)
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read ({error})", "check the path") from error
    except SafetensorError as error:
        raise ConfigError(str(path), f"is damaged or no safetensors file ({error})", again) from error
    try:
        about = msgspec.json.decode(metadata.get("about", ""), type=About)
    except msgspec.DecodeError as error:
        raise ConfigError(str(path), f"is no head of an attached sensor ({error})", again) from error
    if hash_of(tensors) != about.tensors:
        raise ConfigError(str(path), "is damaged: its weights are not those that were written", again)
    return about, tensors

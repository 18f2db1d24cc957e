"""The plan of an attachment: one TOML file that says which spaces meet, through what, on which pools."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from lineside.config import Config
from lineside.files import sha256
from trainer.plan import RecordingPart
from trainer.projector import Norm

FEWEST = {"batch": 32, "layer": 8}  # rows of a pool and of a batch: below, a norm's statistics say nothing


class ProjectorSettings(Config, frozen=True):
    """Hidden width of the projector's blocks, and their norm.

    `layer` is a declared deviation from Ex-MCR for pools too small for batch norm: its head cannot be folded whole.
    """

    hidden: int = 1024
    norm: Norm = "batch"

    def __post_init__(self) -> None:
        if self.hidden < 2:
            raise ValueError("hidden must be at least 2")


class RetrievalSettings(Config, frozen=True):
    """Limits beyond which soft retrieval has collapsed (trainer.quadruples.Lookup); 1.0, 1.0 and 1.0 never judge."""

    flat: float = 0.98
    one_hot: float = 0.99
    distinct: float = 1.1

    def __post_init__(self) -> None:
        if not 0 < self.flat <= 1 or not 0 < self.one_hot <= 1 or self.distinct < 1:
            raise ValueError("flat and one_hot must lie in 0..1, distinct be at least 1")


class AttachPlan(Config, frozen=True):
    """One attachment. `out` is the head's file, `base` and `leaf` stage folders; paths start from the plan's folder.

    `overlap` and `partner` may be left out where there is one choice. Pools are recordings or feature files, of which
    only the pool's own modality is read: `overlaps` are embedded by both spaces, `newcomers` by the leaf, `partners` by
    the base, and no moment of theirs is matched with another. `hold_out` holds newcomer and partner at once: the
    attachment is measured on it; so does `paired`, on which the upper bound is trained, its last fifth choosing how.

    `noise` is the length of Gaussian noise on unit rows (sigma = noise / sqrt(d)), C-MCR's augmentation;
    `baseline_noise` that of the C-MCR baseline, 0.57 as in the one public run (exmcr.md, section 2.1).
    """

    out: str
    base: str
    leaf: str
    newcomer: str
    overlaps: list[RecordingPart]
    newcomers: list[RecordingPart]
    partners: list[RecordingPart]
    hold_out: list[RecordingPart] = msgspec.field(default_factory=list)
    paired: list[RecordingPart] = msgspec.field(default_factory=list)
    overlap: str = ""
    partner: str = ""
    method: Literal["ex-mcr", "c-mcr"] = "ex-mcr"
    seed: int = 1
    epochs: int = 36
    batch: int = 256
    learning_rate: float = 1e-3
    tau1: float = 0.01
    tau2: float = 0.05
    weight: float = msgspec.field(default=0.1, name="lambda")
    noise: float = 0.0
    baseline_noise: float = 0.57
    renormalise: bool = True
    projector: ProjectorSettings = ProjectorSettings()
    retrieval: RetrievalSettings = RetrievalSettings()

    def __post_init__(self) -> None:
        if not (self.overlaps and self.newcomers and self.partners):
            raise ValueError("overlaps, newcomers and partners must each name at least one recording")
        if self.epochs < 1 or self.batch < 2:
            raise ValueError("epochs must be at least 1, batch at least 2")
        for name in ("learning_rate", "tau1", "tau2"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0 and finite")
        if min(self.weight, self.noise, self.baseline_noise) < 0:
            raise ValueError("lambda, noise and baseline_noise must be at least 0")
        if not self.out.endswith(".safetensors"):
            raise ValueError("out must end in .safetensors: it is one file")

    @property
    def sha256(self) -> str:
        """Hash of everything the plan says."""
        return sha256(msgspec.json.encode(self, order="sorted"))

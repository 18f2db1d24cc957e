"""The plans of `lineside train register` and `adapt`: what is learned from labels, and what must hold."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from lineside.config import Config
from lineside.features import Prepare, modality
from lineside.files import sha256
from trainer.plan import RecordingPart, WindowSettings


class LabelledPlan(Config, frozen=True):
    """What both plans say. Relative paths start from the plan's own folder.

    `recordings` are labelled MCAP recordings or feature files. Of each label's time in each recording the last share
    `held_out` measures and is used for nothing else, the share `validation` before it chooses, the rest is learned
    from; moments that reach over a cut are left out. With `faults`, labels of faults name states too. `modalities`
    leaves out all others; empty takes all.
    """

    registry: str
    recordings: list[RecordingPart]
    modalities: list[str] = msgspec.field(default_factory=list)
    faults: bool = True
    validation: float = 0.2
    held_out: float = 0.2
    seed: int = 1
    epochs: int = 20
    batch: int = 64
    learning_rate: float = 5e-3
    windows: WindowSettings = WindowSettings()

    def __post_init__(self) -> None:
        if not self.recordings:
            raise ValueError("at least one recording is needed")
        if self.validation <= 0 or self.held_out <= 0 or self.validation + self.held_out >= 1:
            raise ValueError("validation and held_out must be above 0 and leave something to learn from")
        if self.epochs < 1 or self.batch < 4 or not 0 < self.learning_rate < math.inf:
            raise ValueError("epochs must be at least 1, batch at least 4, learning_rate above 0 and finite")

    @property
    def sha256(self) -> str:
        """Hash of everything the plan says."""
        return sha256(msgspec.json.encode(self, order="sorted"))


class RegisterPlan(LabelledPlan, frozen=True):
    """Stand-alone classifiers of the labels, one a modality, for the registry."""

    prepare: list[Prepare] = msgspec.field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        kinds = [modality(spec) for spec in self.prepare]
        if len(set(kinds)) != len(kinds):
            raise ValueError("two [[prepare]] tables for one modality")


class LoraSettings(Config, frozen=True):
    """Low-rank adapters (ume-mmlora.md, 2.2): every rank of the sweep, of each modality alone and of all.

    `scale` is alpha / rank, the same for all ranks. `layers` says where: every layer of a trunk that mixes channels, or
    the last two. No ranks leave MMLoRA out.
    """

    ranks: list[int] = msgspec.field(default_factory=lambda: [2, 4, 8, 16])
    scale: float = 2.0
    layers: Literal["last", "all"] = "all"

    def __post_init__(self) -> None:
        if any(rank < 1 for rank in self.ranks) or len(set(self.ranks)) != len(self.ranks):
            raise ValueError("ranks must be at least 1, each named once")
        if not 0 < self.scale < math.inf:
            raise ValueError("scale must be above 0 and finite")


class UmtSettings(Config, frozen=True):
    """Joint training with features distilled from the registered models (ume-mmlora.md, 2.3). 0 epochs leave it out."""

    epochs: int = 16
    strength: float = 10.0
    learning_rate: float = 5e-3

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.strength < 0 or not 0 < self.learning_rate < math.inf:
            raise ValueError("epochs and strength must be at least 0, learning_rate above 0 and finite")


class FusionGateSettings(Config, frozen=True):
    """What a sensor may lose of its registered strength, and how surely (trainer.fusion_gates)."""

    retention_loss: float = 0.01
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if not 0 <= self.retention_loss < 1 or not 0.5 < self.confidence < 1:
            raise ValueError("retention_loss must lie in 0..1, confidence between 0.5 and 1")


class AdaptPlan(LabelledPlan, frozen=True, kw_only=True):
    """A fusion of registered models: `epochs` and `learning_rate` are those of each cell of the sweep.

    `stage` names the adapters. In joint training each sensor of a moment is dropped with probability `drop`, never the
    last one, so that every subset of sensors has been seen.
    """

    out: str
    stage: str = "1"
    epochs: int = 3
    learning_rate: float = 1e-3
    drop: float = 0.3
    lora: LoraSettings = LoraSettings()
    umt: UmtSettings = UmtSettings()
    gates: FusionGateSettings = FusionGateSettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.drop < 1:
            raise ValueError("drop must be at least 0 and below 1")
        if not self.stage.isalnum():  # it becomes part of names of files and of tensors
            raise ValueError("stage must be of letters and digits")

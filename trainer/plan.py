"""The plan of one stage: one TOML file that says what is learned, from which recordings, and what must hold."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import msgspec

from lineside.config import Config
from lineside.features import Prepare, modality
from lineside.files import sha256


def _refuse_unless(holds: bool, name: str, wanted: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {wanted}")


class RecordingPart(Config, frozen=True):
    """A recording, or the part of it between two times from its first sample; `to_s = 0` means to its end.

    A folder stands for every recording in it: `lineside hub labels` names the one of labelled alarms.
    """

    path: str
    from_s: float = 0.0
    to_s: float = 0.0

    def __post_init__(self) -> None:
        if self.from_s < 0 or (self.to_s and self.to_s <= self.from_s):
            raise ValueError("from_s must be at least 0 and to_s above it (or 0, the end)")


class WindowSettings(Config, frozen=True):
    """Length and hop of windows in seconds; 0 takes what the first recording says of itself."""

    length_s: float = 0.0
    hop_s: float = 0.0

    def __post_init__(self) -> None:
        if self.length_s < 0 or self.hop_s < 0 or (self.length_s and self.hop_s > self.length_s):
            raise ValueError("length_s and hop_s must not be below 0, and hop_s at most length_s")


Moves = Literal["head", "last", "all", "adapters"]
Rules = Literal["hold", "rotate", "published", "ewc", "none"]


class EncoderSettings(Config, frozen=True):
    """What encoders are made of, and what of an old one may still move.

    `trunk` is `learned` (convolutions) or `fixed` (`width` random features of a coarse look); a first stage chooses.
    `move` says for all modalities, or for each in a table, whether a later stage moves an old encoder's head alone,
    its trunk's last two layers too, or all of it; layers of a trunk are then protected as heads are. `adapters` move
    nothing old at all, its head neither, but low-rank branches of `rank` beside its convolutions (trainer.branches):
    what leaves for a device is then little more than these.
    """

    trunk: Literal["learned", "fixed"] = "learned"
    width: int = 2048
    move: Moves | dict[str, Moves] = "head"
    rank: int = 1

    def __post_init__(self) -> None:
        if self.width < 16:
            raise ValueError("width must be at least 16")
        if self.rank < 1:
            raise ValueError("rank must be at least 1")

    def moves(self, modality: str) -> Moves:
        """What may move of one modality's old encoder."""
        return self.move.get(modality, "head") if isinstance(self.move, dict) else self.move


class HeadSettings(Config, frozen=True):
    """How heads are fitted: in `steps`, by gradient, or solved from second `moments` (trainer.solved).

    `ridge` is relative to the inputs' mean power; each window enters the moments in `looks` harmless changes.
    """

    fit: Literal["steps", "moments"] = "steps"
    ridge: float = 1e-3
    looks: int = 1

    def __post_init__(self) -> None:
        if self.ridge <= 0 or self.looks < 1:
            raise ValueError("ridge must be above 0 and looks at least 1")


class LossSettings(Config, frozen=True):
    """Weight of the contrast between sensors, and whether the recordings' labels say what belongs together.

    With `labels`, every window of a moment's label is a right answer, not the moment's own alone: right where a label
    names a kind of event, wrong where it names a whole recording (all its moments would be drawn to one point).
    `within` weighs supervised contrast among each sensor's own windows, and goes with `labels`. `old_anchors` lets
    replayed moments ask too; otherwise they are only answers (Co2L's asymmetry).
    """

    contrast: float = 1.0
    labels: bool = False
    within: float = 0.0
    old_anchors: bool = True

    def __post_init__(self) -> None:
        if min(self.contrast, self.within) < 0:
            raise ValueError("contrast and within must be at least 0")
        if self.within and not self.labels:
            raise ValueError("within is contrast by labels: set labels = true, or within = 0")


class TeacherSettings(Config, frozen=True):
    """Compatible momentum contrast and topology preservation (ctp.md; trainer.teacher). Weights of 0 leave a part out.

    The momentum teacher keeps `momentum` of itself a step; of the rest `pull` is drawn to the previous stage. In a
    first stage it keeps `first_momentum` and nothing pulls. `soft` mixes its similarities into the hard targets.
    `cached` embeds the stage's windows with the previous stage once, unchanged, instead of every changed batch.
    """

    contrast: float = 0.0
    cross: float = 0.0
    same: float = 0.0
    momentum: float = 0.9
    pull: float = 0.5
    first_momentum: float = 0.995
    queue: int = 1024
    temperature: float = 0.07
    teacher_temperature: float = 0.07
    soft: float = 0.0
    cached: bool = False

    def __post_init__(self) -> None:
        _refuse_unless(0 <= self.momentum < 1, "momentum", "at least 0 and below 1 (at 1 the teacher never moves)")
        _refuse_unless(0 <= self.first_momentum < 1, "first_momentum", "at least 0 and below 1")
        for name in ("pull", "soft"):
            _refuse_unless(0 <= getattr(self, name) <= 1, name, "between 0 and 1: it is a share")
        for name in ("contrast", "cross", "same"):
            _refuse_unless(0 <= getattr(self, name) < math.inf, name, "at least 0 and finite; 0 leaves the term out")
        for name in ("temperature", "teacher_temperature"):
            _refuse_unless(0 < getattr(self, name) < math.inf, name, "above 0 and finite; 0.07 is usual")
        _refuse_unless(self.queue >= 0, "queue", "a whole number; 0 keeps none")

    @property
    def wanted(self) -> bool:
        """Whether any part has a weight."""
        return max(self.contrast, self.cross, self.same) > 0


class DistillSettings(Config, frozen=True):
    """Relation distillation from the previous stage (cila.md, 2.2), with a weight that follows the logged losses.

    `weight` is of relations within each sensor, `across` of those between the sensors of a pair. Each is multiplied by
    lambda of the modality (the mean of both): 1 in the second stage, then
    clip(kappa * sum of past distillation / sum of past contrast, floor, cap). `kappa = 0` keeps it at 1.
    """

    weight: float = 0.0
    across: float = 0.0
    temperature: float = 0.2
    teacher_temperature: float = 0.01
    kappa: float = 0.0
    floor: float = 1.0
    cap: float = 10.0

    def __post_init__(self) -> None:
        if min(self.weight, self.across, self.kappa) < 0 or min(self.temperature, self.teacher_temperature) <= 0:
            raise ValueError("weight, across and kappa must be at least 0, temperatures above 0")
        if not 0 < self.floor <= self.cap:
            raise ValueError("floor must be above 0 and at most cap")

    @property
    def wanted(self) -> bool:
        """Whether any relation is kept."""
        return max(self.weight, self.across) > 0


class BackwardSettings(Config, frozen=True):
    """Training new encoders to be found by, and to find, what old ones left: InfoNCE of each pair of sensors in which
    one side's embeddings are the previous stage's, and of each sensor with its own old embeddings (Shen et al.,
    Towards backward-compatible representation learning, CVPR 2020, section 3.2, with old embeddings for its old
    classifier). `weight` of 0 leaves it out.
    """

    weight: float = 0.0
    temperature: float = 0.2

    def __post_init__(self) -> None:
        _refuse_unless(0 <= self.weight < math.inf, "weight", "at least 0 and finite; 0 leaves the term out")
        _refuse_unless(0 < self.temperature < math.inf, "temperature", "above 0 and finite")


class ReplaySettings(Config, frozen=True):
    """At most `size` moments of all stages are kept whole and shown again: `share` of a batch as many. 0 keeps none."""

    size: int = 0
    share: float = 0.5

    def __post_init__(self) -> None:
        if self.size < 0 or not 0 < self.share <= 4:
            raise ValueError("size must be at least 0, share above 0 and at most 4")


class ProtectionSettings(Config, frozen=True):
    """What a later stage may move: the directions that hold 1 - `epsilon` of the old inputs' power stay untouched.

    `rule` is how: with `rotate` the optimiser sees only the free directions of a head; `hold` lets it step anywhere and
    puts the head back after each `every` steps and at the stage's end, as both do with trunks; `published` projects
    gradients as the reference does; `ewc` draws weights to where they were by their Fisher information, times
    `strength`; `none` protects nothing. With `sides = "dual"` only inner products with old partners are protected, in
    turn for each head of a pair, not every embedding.

    `drift_budget` is the largest relative RMS change of an old modality's embeddings that passes. Heads under `hold`
    learn `pace` times as fast as the rest, as so little of them can move and no further than the budget: without one,
    set 1. A `plasticity` above 0 chooses epsilon: the smallest of 1e-4 … 0.3 with which held-out retrieval of what is
    new reaches that share of an unprotected stage's.
    """

    rule: Rules = "rotate"
    sides: Literal["one", "dual"] = "one"
    epsilon: float = 1e-3
    plasticity: float = 0.0
    drift_budget: float = 0.05
    every: int = 1
    pace: float = 5.0
    strength: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon < 1 or self.drift_budget <= 0 or self.every < 1:
            raise ValueError("epsilon must be at least 0 and below 1, drift_budget above 0, every at least 1")
        if not 0 <= self.plasticity <= 1 or self.strength < 0:
            raise ValueError("plasticity must lie in 0..1, strength (of ewc) be at least 0")
        if self.pace <= 0:
            raise ValueError("pace must be above 0")
        if self.sides == "dual" and self.rule != "hold":
            raise ValueError('sides = "dual" goes with rule = "hold"')


class GateSettings(Config, frozen=True):
    """Limits of the gates (see trainer.gates)."""

    retrieval_times_chance: float = 2.0
    spread: float = 0.98
    retention_loss: float = 0.01


class DefectSettings(Config, frozen=True):
    """How strongly synthetic defects teach (trainer.losses.defect_loss); both 0: none are made.

    `own` holds a window to itself against defects; `together` draws all normal windows together against them. The
    default suits a line that goes through few states again and again; one where no window is like another (separate
    events) wants `own = 1.0` and `together = 0.6`, or its embeddings are drawn to one point. A batch in which no two
    sensors meet is held to itself alone (trainer.losses.alone_loss), whatever the two are.
    """

    own: float = 0.0
    together: float = 1.0

    def __post_init__(self) -> None:
        if self.own < 0 or self.together < 0:
            raise ValueError("own and together must be at least 0")

    @property
    def wanted(self) -> bool:
        """Whether defects are made at all."""
        return self.own > 0 or self.together > 0


class Plan(Config, frozen=True):
    """One stage. `out` and `parent` are stage folders; relative paths start from the plan's own folder.

    `recordings` are MCAP recordings or feature files. `pairs` names the sensors that are contrasted; none: all with
    common moments. A `continued` optimiser goes on from the parent's moments of weights that still have their shape.
    """

    out: str
    recordings: list[RecordingPart]
    parent: str = ""
    seed: int = 1
    epochs: int = 12
    batch: int = 32
    learning_rate: float = 2e-3
    temperature: float = 0.2
    dim: int = 128
    held_out: float = 0.2
    precision: Literal["float32", "bfloat16"] = "float32"
    optimiser: Literal["fresh", "continued"] = "fresh"
    pairs: list[tuple[str, str]] = msgspec.field(default_factory=list)
    windows: WindowSettings = WindowSettings()
    encoders: EncoderSettings = EncoderSettings()
    heads: HeadSettings = HeadSettings()
    losses: LossSettings = LossSettings()
    teacher: TeacherSettings = TeacherSettings()
    distill: DistillSettings = DistillSettings()
    backward: BackwardSettings = BackwardSettings()
    replay: ReplaySettings = ReplaySettings()
    defects: DefectSettings = DefectSettings()
    protection: ProtectionSettings = ProtectionSettings()
    gates: GateSettings = GateSettings()
    prepare: list[Prepare] = msgspec.field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.recordings:
            raise ValueError("at least one recording is needed")
        if self.epochs < 1 or self.batch < 4 or self.dim < 2:
            raise ValueError("epochs must be at least 1, batch at least 4, dim at least 2")
        if self.learning_rate <= 0 or self.temperature <= 0 or not 0 < self.held_out < 1:
            raise ValueError("learning_rate and temperature must be above 0, held_out between 0 and 1")
        if self.heads.fit == "moments" and self.protection.rule in ("published", "ewc"):
            raise ValueError('heads.fit = "moments" goes with protection.rule = "rotate", "hold" or "none"')
        if self.heads.fit == "moments" and self.backward.weight:
            raise ValueError('heads.fit = "moments" solves heads, no loss teaches them: set [backward] weight = 0')
        moved = self.encoders.move
        if self.heads.fit == "moments" and "adapters" in (moved.values() if isinstance(moved, dict) else [moved]):
            raise ValueError('heads.fit = "moments" solves heads, which adapters leave as they are: set fit = "steps"')
        kinds = [modality(spec) for spec in self.prepare]
        if len(set(kinds)) != len(kinds):
            raise ValueError("two [[prepare]] tables for one modality")

    @property
    def sha256(self) -> str:
        """Hash of everything the plan says: a half-trained stage goes on only under the same one."""
        return sha256(msgspec.json.encode(self, order="sorted"))


def place(path: str, base: Path) -> Path:
    """A path of the plan, seen from the folder `base` in which the plan lies."""
    return (base / Path(path).expanduser()).resolve()

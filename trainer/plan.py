"""The plan of one stage: one TOML file that says what is learned, from which recordings, and what must hold."""

from __future__ import annotations

from pathlib import Path

import msgspec

from lineside.config import Config
from lineside.features import Prepare, modality
from lineside.files import sha256


class RecordingPart(Config, frozen=True):
    """A recording, or the part of it between two times from its first sample; `to_s = 0` means to its end."""

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


class ProtectionSettings(Config, frozen=True):
    """What a later stage may move: the directions that hold 1 - `epsilon` of the old inputs' power stay untouched.

    `drift_budget` is the largest relative RMS change of an old modality's embeddings that passes. Heads are put back
    onto what they may be after each `every` steps, and at the stage's end: more rarely is quicker, and learns a little
    less of what is new.
    """

    epsilon: float = 1e-3
    drift_budget: float = 0.05
    every: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon < 1 or self.drift_budget <= 0 or self.every < 1:
            raise ValueError("epsilon must be at least 0 and below 1, drift_budget above 0, every at least 1")


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
    """One stage. `out` and `parent` are stage folders; relative paths start from the plan's own folder."""

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
    windows: WindowSettings = WindowSettings()
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

"""What the nightly loop remembers: one file, written whole, so that a night that was cut goes on where it was."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from lineside.errors import ConfigError
from lineside.evidence import Again
from lineside.files import write_atomic
from lineside.release import Gate
from trainer.new_recordings import Found, Glance

Step = Literal["look", "train", "certify", "export", "labels", "publish", "rollout"]
Outcome = Literal["", "nothing new", "too little", "waits", "kept", "published", "canary", "refused", "stopped"]


class Beside(msgspec.Struct, frozen=True, kw_only=True):
    """A new stage beside an old one on the same moments: 0 to 1; retrieval is None for a line of one sensor."""

    against: str
    retrieval_before: float | None
    retrieval_after: float | None
    auroc_before: float
    auroc_after: float


class Night(msgspec.Struct, frozen=True, kw_only=True):
    """One night from its first look to its report; `step` is what comes next, `version` that of the new stage.

    `learn` is what the stage learns from, `key` stands for all that decides what comes out of it. `code` is the exit
    code (lineside.errors) of the command that ended it, 0 when it came through. `again` is what the stage makes of
    labelled alarms.
    """

    name: str
    step: Step
    outcome: Outcome = ""
    reason: str = ""
    code: int = 0
    version: int = 0
    parent: int = 0
    key: str = ""
    learn: list[Found] = []
    certify_on: str = ""
    faulty: str = ""
    against: list[int] = []
    modalities: list[str] = []
    files: list[str] = []
    stage: str = ""
    gates: list[Gate] = []
    drift: dict[str, float] = {}
    beside: list[Beside] = []
    again: list[Again] = []
    notes: list[str] = []

    @property
    def open(self) -> bool:
        """Whether it has still something to do."""
        return not self.outcome


class Diary(msgspec.Struct, frozen=True, kw_only=True):
    """All nights so far, as far as the next one must know.

    `learned` and `parents` are by stage number; `tried` has the number of the stage that a key gave; `refused` are
    those that may not be followed. `night` is the one in progress, `ended` the last that a person may take up again.
    """

    seen: dict[str, Glance] = {}
    learned: dict[int, list[str]] = {}
    parents: dict[int, int] = {}
    tried: dict[str, int] = {}
    refused: list[int] = []
    night: Night | None = None
    ended: Night | None = None

    def line(self, stage: int) -> list[int]:
        """A stage and those before it, newest first.

        >>> Diary(parents={3: 2, 2: 1}).line(3)
        [3, 2, 1]
        """
        line = [stage]
        while before := self.parents.get(line[-1], 0):
            line.append(before)
        return line

    def known_to(self, stage: int) -> set[str]:
        """The content of every recording that a stage or one before it learned from."""
        return {content for each in self.line(stage) for content in self.learned.get(each, [])}


def load(file: Path) -> Diary:
    """The diary; an empty one where there is none. Raises ConfigError when it is damaged."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=Diary)
    except FileNotFoundError:
        return Diary()
    except msgspec.DecodeError as error:
        mend = "restore it from a backup, or move it away: then every recording counts as new"
        raise ConfigError(str(file), f"is damaged ({error})", mend) from error


def save(file: Path, diary: Diary) -> None:
    """Write it whole."""
    write_atomic(file, msgspec.json.format(msgspec.json.encode(diary), indent=1) + b"\n")

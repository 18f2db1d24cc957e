"""Where nights work: their folders, and the commands of other parts, each with a night's own words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from lineside.clock import Clock
from lineside.errors import LinesideError
from lineside.targets import Pointer
from trainer.children import Answer, Call
from trainer.diary import Night
from trainer.night_plan import NightPlan

# What deploy is asked for, word by word: {plant}, {files} and {modalities} stand for a night's own.
POINTERS = ("deploy", "pointers", "--config", "{plant}")
STATUS = ("deploy", "status", "--config", "{plant}")
PUBLISH = ("deploy", "publish", "--config", "{plant}", "{files}")
ROLLOUT = ("deploy", "rollout", "start", "--config", "{plant}", "{modalities}", "--no-wait")
PROMOTE = "lineside deploy rollout promote --config {plant} {modalities}"


@dataclass(frozen=True)
class Desk:
    """Where nights work: the plan, the folder that its paths start from, and what acts."""

    plan: NightPlan
    base: Path
    call: Call
    clock: Clock
    tell: Callable[[str], None] = lambda _: None

    @property
    def folder(self) -> Path:
        """Stages, nights, reports and the diary."""
        return self.place(self.plan.folder)

    def place(self, path: str) -> Path:
        return (self.base / path).resolve()

    def stage(self, version: int) -> Path:
        """The folder of the stage whose encoders have this version."""
        return self.folder / "stages" / str(version)

    def work(self, night: Night) -> Path:
        """The folder of one night."""
        return self.folder / "nights" / night.name

    def filled(self, night: Night, words: Sequence[str]) -> list[str]:
        """Words of a command with what stands for a night's own."""
        given = {
            "{plant}": [str(self.place(self.plan.plant))],
            "{files}": night.files,
            "{modalities}": [f"--modality={modality}" for modality in night.modalities],
        }
        return [part for word in words for part in given.get(word, [word])]

    def ask(self, night: Night, words: Sequence[str]) -> Answer:
        """Run a command for a night, to its end."""
        whole = self.filled(night, words)
        self.tell(f"lineside {' '.join(whole)}")
        return self.call(whole, self.work(night) / "log.txt")

    def pointers(self, night: Night) -> dict[str, Pointer]:
        """What each modality points at; nothing without a plant. Raises LinesideError."""
        if not self.plan.plant:
            return {}
        answer = self.ask(night, POINTERS)
        if answer.code:
            raise LinesideError("the repository", answer.said, "mend that, and start the night again")
        return msgspec.convert(answer.told, dict[str, Pointer])

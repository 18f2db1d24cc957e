"""What the table of power cuts is made of; the rows stand in the files beside this one."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

OLD, NEW = "old", "new"


@dataclass(frozen=True)
class Scene:
    """Work that is cut: `base` is the folder as it was before, of which every strike gets a copy.

    `act` does the work in a copy. `judge` opens what a cut left in a copy as a restart would, and says whether it is
    OLD or NEW; it raises where it is neither, or where something is gone that `act` had said (see `say`) was kept.
    `again` is what is done next: it must succeed, and leave the same files as without any cut.
    """

    base: Path
    act: Callable[[Path], object]
    judge: Callable[[Path, list[str]], str]
    again: Callable[[Path], object]


@dataclass(frozen=True)
class Row:
    """One line of the table; `scene` takes an empty folder."""

    name: str
    holds: str
    scene: Callable[[Path], AbstractContextManager[Scene]]


@dataclass
class Tally:
    """How many cuts left the old, the new, or neither."""

    old: int = 0
    new: int = 0
    neither: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        return self.old + self.new + len(self.neither)

    def add(self, verdict: str, where: str) -> None:
        if verdict == OLD:
            self.old += 1
        elif verdict == NEW:
            self.new += 1
        else:
            self.neither.append(f"{where}: {verdict}")


@dataclass
class Found:
    """What a row showed.

    `heaped` is the most that cut after cut left behind in one folder, bytes; `left` is the most that is still there
    after the next run, `strays` what of it has no name of its own that the next write of the same file takes again.
    """

    killed: Tally = field(default_factory=Tally)
    lost: Tally = field(default_factory=Tally)
    heaped: int = 0
    left: int = 0
    strays: list[str] = field(default_factory=list)

    @property
    def broken(self) -> list[str]:
        return [*self.killed.neither, *self.lost.neither, *self.strays]


def said_in(folder: Path) -> Path:
    """Where `say` notes what was promised to somebody outside of `folder`: a cut does not take that back."""
    return folder.with_name(folder.name + ".said")


def say(folder: Path, text: str) -> None:
    """Promise something to the world outside: from here on it must hold, whatever is cut."""
    handle = os.open(said_in(folder), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(handle, f"{text}\n".encode())
    os.close(handle)

"""What the table of faults is made of; the rows stand in the files beside this one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Found:
    """What one fault did. `lost` and `duplicated` count messages at the hub, declared drops apart; `back_s` is how long
    after the fault all was as before; None where it does not apply. `broken` says what did not hold."""

    lost: int | None = None
    duplicated: int | None = None
    back_s: float | None = None
    told: str = ""
    broken: str = ""


@dataclass(frozen=True)
class Fault:
    """A row: `holds` is what must hold, `within_s` until when all must be as before.

    `run` takes an empty folder and how often to strike; `strikes` is how often the printed table does it. Slow ones
    need a whole plant.
    """

    name: str
    holds: str
    run: Callable[[Path, int], Found]
    within_s: float | None = None
    strikes: int = 1
    slow: bool = True

    def kept(self, found: Found) -> str:
        """Empty when it held, else what did not."""
        if found.broken:
            return found.broken
        if found.lost or found.duplicated:
            return f"{found.lost} lost, {found.duplicated} duplicated"
        if self.within_s is not None and (found.back_s is None or found.back_s > self.within_s):
            return f"back after {found.back_s} s, not {self.within_s:g}"
        return ""

"""The file of the nightly loop: what it looks for, what it trains by, and how far it may go by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from lineside import config
from lineside.config import Config
from lineside.errors import ConfigError
from lineside.windows import MODALITIES
from trainer.plan import Plan

OURS = ("out", "parent", "recordings")


class NightPlan(Config, frozen=True):
    """One line's loop. Relative paths start from this file's folder.

    `plan` is a plan of `lineside train stage` without `out`, `parent` and recordings. `recordings` are folders of MCAP
    files; those in `labelled` folders show besides what faults look like. A stage wants so many new `minutes` of each
    modality that is named. It is certified on `certify_on`; without one the newest new recording is held back for that.

    `release` says how far a night goes: `none` (encoder files), `publish` (signed, in the repository), `canary` (on
    the first ring; what follows waits for approval). A file that changed within `settled_min` is still being copied.
    The newest `keep_stages` stages stay, with those in the field; `keep_nights` nights and their reports.
    `report_command` is run with the report's path as its last word.
    """

    plan: str
    recordings: list[str]
    labelled: list[str] = msgspec.field(default_factory=list)
    minutes: dict[str, float] = msgspec.field(default_factory=dict)
    certify_on: str = ""
    folder: str = "nightly"
    plant: str = ""
    release: Literal["none", "publish", "canary"] = "none"
    precision: str = "all"
    settled_min: float = 10.0
    keep_stages: int = 5
    keep_nights: int = 400
    report_command: list[str] = msgspec.field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.recordings:
            raise ValueError("recordings must name at least one folder")
        if unknown := set(self.minutes) - set(MODALITIES):
            raise ValueError(f"minutes of {unknown.pop()!r}: known are {', '.join(MODALITIES)}")
        if self.release != "none" and not self.plant:
            raise ValueError(f'release = "{self.release}" needs the plant file: plant = "plant/plant.toml"')
        if min(self.settled_min, *self.minutes.values(), 0) < 0 or min(self.keep_stages, self.keep_nights) < 1:
            raise ValueError("settled_min and minutes must be at least 0, keep_stages and keep_nights at least 1")


def stage_plan(template: Path, out: Path, parent: Path, recordings: list[str]) -> str:
    """The plan of one night's stage, as TOML: the template's own lines with what this night says.

    Raises ConfigError where the template says it already, or is no plan.
    """
    try:
        text = template.read_text(encoding="utf-8")
    except OSError as error:
        mend = "give the path of a plan of `lineside train stage`"
        raise ConfigError(str(template), f"cannot be read ({error.strerror})", mend) from error
    head = f"out = {_quoted(str(out))}\nparent = {_quoted(str(parent))}\n"
    parts = "".join(f"\n[[recordings]]\npath = {_quoted(path)}\n" for path in recordings)
    _refuse_ours(text, template)
    config.loads(whole := f"{head}{text}\n{parts}", Plan, str(template))
    return whole


def _refuse_ours(text: str, template: Path) -> None:
    try:
        said = msgspec.toml.decode(text)
    except msgspec.DecodeError as error:
        raise ConfigError(str(template), f"is not TOML ({error})", "mend the syntax at that line") from error
    if twice := [key for key in OURS if key in said]:
        raise ConfigError(str(template), f"says {twice[0]!r}, which each night says itself", "leave it out")


def _quoted(text: str) -> str:
    """A string of TOML; JSON's are."""
    return msgspec.json.encode(text).decode()

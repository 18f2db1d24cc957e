"""Room on the disk: what of stages, nights and reports stays."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from trainer.desk import Desk
from trainer.diary import Diary, Night


def tidy(desk: Desk, diary: Diary, night: Night) -> None:
    """Keep the newest stages, those that a device may run, and the newest nights; take the rest away, whole.

    What devices run is known once a stage was certified beside it; without that only refused stages go.
    """
    stages, keep = desk.stage(1).parent, desk.plan.keep_stages
    numbers = sorted(int(each.name) for each in stages.glob("*") if each.name.isdecimal())
    in_use = {night.parent, night.version, *night.against}
    gone = set(numbers[:-keep]) - in_use if night.files and not night.open else set(numbers[:-keep]) & {*diary.refused}
    _remove(desk.stage(number) for number in gone)
    _remove(sorted((desk.folder / "nights").glob("2*"))[: -max(keep, 1)])
    reports = sorted((desk.folder / "reports").glob("2*"))
    for old in reports[: -2 * desk.plan.keep_nights]:
        old.unlink()


def _remove(folders: Iterable[Path]) -> None:
    """Delete folders so that a cut leaves none that looks whole."""
    for folder in folders:
        folder.rename(folder.with_name(f".gone-{folder.name}"))
        for gone in folder.parent.glob(".gone-*"):
            shutil.rmtree(gone)

"""Faults of the table, struck once or a few times: all that need no plant, and some of those that do.

`make faults` strikes with all of them, as often as the table says.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.rows import ROWS
from tests.faults.storage import Unavailable
from tests.faults.table import Fault

FEW = 3
PLANTS = {
    "agent killed",
    "uplink process killed",
    "capture process hangs (SIGSTOP)",
    "network camera unplugged",
    "wall clock set +1 h",
    "disk of the state folder full",
    "pages of the outbox damaged, agent running",
}
QUICK = {"silent microphone"}
MARKS = {name: [] for name in QUICK} | {"network camera unplugged": [pytest.mark.slow, pytest.mark.alone]}
WANTED = [row for row in ROWS if not row.slow or row.name in PLANTS]


@pytest.mark.parametrize(
    "fault",
    [pytest.param(row, marks=MARKS.get(row.name, [pytest.mark.slow])) for row in WANTED],
    ids=[row.name for row in WANTED],
)
def test_what_must_hold_holds(fault: Fault, tmp_path: Path) -> None:
    try:
        found = fault.run(tmp_path, min(fault.strikes, FEW))
    except Unavailable as error:
        pytest.skip(str(error))
    assert fault.kept(found) == ""


def test_there_are_thirty_and_each_has_a_name_of_its_own() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS) >= 30
    assert {row.name for row in ROWS} >= PLANTS | QUICK

"""Strike a device with every fault of the table, as often as it says, and print what held: `make faults`.

Exit code 6 when something did not hold.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.rows import ROWS
from tests.faults.storage import Unavailable
from tests.faults.table import Fault, Found

COLUMNS = ("fault", "what must hold", "lost", "twice", "back after (s)", "within", "struck", "held")


def main() -> None:
    """One row of Markdown each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], help="rows whose name has this in it (again for more)")
    parser.add_argument("--strikes", type=int, default=0, help="at most so often (0: as often as the table says)")
    asked = parser.parse_args()
    wanted = [row for row in ROWS if not asked.only or any(part in row.name for part in asked.only)]
    print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
    failed, unavailable, begun = 0, 0, time.monotonic()
    for number, row in enumerate(wanted, start=1):
        print(f"\r{number}/{len(wanted)} {row.name} …\033[K", end="", file=sys.stderr, flush=True)
        strikes = min(row.strikes, asked.strikes or row.strikes)
        with tempfile.TemporaryDirectory() as folder:
            try:
                found = row.run(Path(folder), strikes)
                broken = row.kept(found)
            except Unavailable as error:
                unavailable += 1
                found, broken = Found(told=str(error)), "not run"
            except Exception as error:  # noqa: BLE001 - the table goes on with the next row
                found, broken = Found(), f"{type(error).__name__}: {error}"
        failed += bool(broken) and broken != "not run"
        print("\r\033[K", end="", file=sys.stderr)
        print(line(row, found, strikes, broken), flush=True)
    print(f"\n{len(wanted)} faults, {failed} did not hold, {unavailable} not run, {time.monotonic() - begun:.0f} s")
    sys.exit(6 if failed else 0)


def line(row: Fault, found: Found, strikes: int, broken: str) -> str:
    """A row as Markdown."""

    def cell(value: float | None) -> str:
        return "" if value is None else f"{value:g}"

    back_s = None if found.back_s is None else round(found.back_s, 1)
    told = f"{strikes} x" if not found.told else f"{strikes} x ({found.told})"
    cells = (
        row.name,
        row.holds,
        cell(found.lost),
        cell(found.duplicated),
        cell(back_s),
        cell(row.within_s),
        told,
        broken or "yes",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()

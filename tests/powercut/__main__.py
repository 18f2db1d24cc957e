"""Kill every piece of work of the table at each call that changes the disk, cut the power after each, and print what a
restart found: `make powercut`.

Exit code 6 when something did not hold.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.powercut.rows import ROWS
from tests.powercut.strike import strike
from tests.powercut.table import Found, Row, Tally
from tests.powercut.trace import Unavailable

COLUMNS = ("work", *("kill points", "old", "new", "neither"), *("states after a power cut", "old", "new", "neither"))
BYTES = ("left behind, heaped up (bytes)", "after the next run (bytes)")


def main() -> None:
    """One row of Markdown each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], help="rows whose name has this in it (again for more)")
    parser.add_argument("--most", type=int, default=sys.maxsize, help="at most so many kills and cuts of each row")
    asked = parser.parse_args()
    wanted = [row for row in ROWS if not asked.only or any(part in row.name for part in asked.only)]
    columns = (*COLUMNS, *BYTES)
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    broken: list[str] = []
    begun = time.monotonic()
    for row in wanted:
        with tempfile.TemporaryDirectory() as folder:
            try:
                found = strike(row, Path(folder).resolve(), asked.most, tell)
            except Unavailable as error:
                sys.exit(f"not run: {error}")
        tell("")
        print(line(row, found), flush=True)
        broken += [f"{row.name}: {told}" for told in found.broken]
    print(f"\n{len(wanted)} rows, {len(broken)} cuts did not hold, {time.monotonic() - begun:.0f} s")
    for told in broken[:40]:
        print(told)
    sys.exit(6 if broken else 0)


def line(row: Row, found: Found) -> str:
    """A row as Markdown."""

    def cells(tally: Tally) -> tuple[int, int, int, int]:
        return tally.count, tally.old, tally.new, len(tally.neither)

    every = (row.name, *cells(found.killed), *cells(found.lost), found.heaped, found.left)
    return f"| {' | '.join(map(str, every))} |"


def tell(text: str) -> None:
    """One line that is written over."""
    if sys.stderr.isatty():
        print(f"\r{text}\033[K", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

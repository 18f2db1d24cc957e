"""Room on the disk that the outbox keeps for the day when somebody else has filled it.

SQLite on a full disk cannot even delete: a deletion is written to its log, and the log cannot be emptied into a file
that cannot grow. Measured on a tmpfs without it: from the first refusal on, no alarm was stored any more.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

BYTES = 2 << 20  # the log (edge.shelf.LOG_PAGES), and the growth of the file that it may hold


class Reserve:
    """A file of `BYTES` that is given back when nothing else is left."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def keep(self) -> bool:
        """Set it aside, where there is room for twice as much; whether it is there."""
        if not self._path.exists() and shutil.disk_usage(self._path.parent).free >= 2 * BYTES:
            with contextlib.suppress(OSError), self._path.open("wb") as file:  # another time, then
                os.posix_fallocate(file.fileno(), 0, BYTES)
        return self._path.exists()

    def release(self) -> None:
        """Give it back to the disk."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

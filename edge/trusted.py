"""python-tuf's client, but what it has verified is on disk before it goes on, and a power cut leaves no stray files.

python-tuf (7.0.1, `_persist_file`) renames a temporary file of random name without fsync. After a power cut the newest
timestamp may be an empty file then: the client would believe the shipped root alone and take an older state of the
repository for news, and each cut would leave a file more. Its own way to write is the only thing replaced here; that
it still goes this way is held by the power cuts of tests/powercut.
"""

from __future__ import annotations

from pathlib import Path

from tuf.ngclient import Updater

from lineside.files import write_atomic


class Client(Updater):
    """Metadata that was accepted stays accepted: older metadata is refused also after a power cut."""

    def _persist_file(self, filename: str, data: bytes) -> None:
        write_atomic(Path(filename), data)

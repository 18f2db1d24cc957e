"""What releases make of labelled alarms, as the trainer wrote it into the repository (lineside.evidence.Replayed)."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from lineside.evidence import REPLAYED, Again, Replayed

LOG = logging.getLogger("hub.replays")
MOST_BYTES = 5_000_000


class Replays:
    """Reads a file again only when it has changed."""

    def __init__(self, repository: Path) -> None:
        self._folder = repository / REPLAYED
        self._seen: tuple[Path, int] | None = None
        self._found: Replayed | None = None

    def newest(self) -> Replayed | None:
        """Of the highest version; None where there is none, or it cannot be read."""
        files = [file for file in self._folder.glob("*.json") if file.stem.isdecimal()]
        if not files:
            return None
        newest = max(files, key=lambda file: int(file.stem))
        about = newest.stat()
        if self._seen != (newest, about.st_mtime_ns):
            self._found = _read(newest) if about.st_size <= MOST_BYTES else None
            self._seen = newest, about.st_mtime_ns
        return self._found

    def of(self, device: str, keys: tuple[str, ...]) -> tuple[Replayed, Again] | None:
        """What the newest version makes of one alarm."""
        found = self.newest()
        if found is None:
            return None
        mine = next((each for each in found.alarms if each.device == device and each.key in keys), None)
        return (found, mine) if mine else None


def _read(file: Path) -> Replayed | None:
    try:
        return msgspec.json.decode(file.read_bytes(), type=Replayed)
    except (OSError, msgspec.DecodeError) as error:
        LOG.warning("%s cannot be read: %s", file, error)
        return None

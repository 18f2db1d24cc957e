"""Rollouts' records in the plant's state folder, one JSON file each; one process at a time changes them.

{state}/rollouts/{rollout}.json
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from lineside.errors import LinesideError, ReleaseError
from lineside.files import make_folder, write_atomic
from lineside.rollout_record import Record


@dataclass(frozen=True)
class Records:
    """All rollouts that a plant has had."""

    folder: Path

    def all(self) -> list[Record]:
        """Every record, oldest first."""
        found = [self._read(path) for path in self.folder.glob("*.json")]
        return sorted(found, key=lambda record: (record.events[0].time_ns, record.rollout))

    def running(self, modality: str = "") -> list[Record]:
        """Those that have not ended, of one modality where it is named."""
        return [one for one in self.all() if not one.ended and (not modality or modality in one.versions)]

    def chosen(self, modality: str = "") -> Record:
        """The one rollout that is under way. Raises ReleaseError (check `rollout`) when none is, or several are."""
        match self.running(modality):
            case [record]:
                return record
            case []:
                mend = "begin one with `lineside deploy rollout start`"
                raise ReleaseError("rollout", modality or "rollout", "none is under way", mend)
            case several:
                told = f"{len(several)} are under way ({', '.join(one.name for one in several)})"
                raise ReleaseError("rollout", "rollout", told, "name one with --modality")

    def last(self, modality: str = "") -> Record | None:
        """The one under way, else the latest."""
        those = [one for one in self.all() if not modality or modality in one.versions]
        return next((one for one in reversed(those) if not one.ended), those[-1] if those else None)

    def read(self, rollout: str) -> Record:
        """The record of a rollout as it is now."""
        return self._read(self._path(rollout))

    def write(self, record: Record) -> None:
        """Keep a record."""
        write_atomic(self._path(record.rollout), msgspec.json.format(msgspec.json.encode(record)))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other commands on this machine waiting."""
        make_folder(self.folder)
        with (self.folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _path(self, rollout: str) -> Path:
        return self.folder / f"{rollout}.json"

    def _read(self, path: Path) -> Record:
        try:
            return msgspec.json.decode(path.read_bytes(), type=Record)
        except (OSError, msgspec.DecodeError) as error:
            raise LinesideError(
                str(path), f"cannot be read ({error})", "restore it from a backup, or delete it"
            ) from error


def apart(records: Records, modalities: Sequence[str]) -> None:
    """Raise ReleaseError (check `rollout`) when a rollout of one of these modalities is under way."""
    for modality in modalities:
        if under_way := records.running(modality):
            told = f"a rollout of {under_way[0].name} is under way"
            raise ReleaseError("rollout", modality, told, "wait for its end, or `lineside deploy rollout abort` it")

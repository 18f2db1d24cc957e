"""A folder of recordings of bounded size: the oldest go first, and a file is there when it is whole."""

from __future__ import annotations

import os
from pathlib import Path

from lineside.channels import Block, block
from lineside.errors import RecordingError
from lineside.evidence import labels
from lineside.files import sync_folder
from lineside.messages import Alarm
from lineside.recording import CHUNK_BYTES, About, Recorder, Recording

PART, MENDED = ".part", ".mended"
INDEX_BYTES = 128  # of the index that closes a file, a message: measured 94 where each is a chunk of its own
CLOSING_BYTES = 64 * 1024 + CHUNK_BYTES  # what else closing may add: labels, schemas, and the chunk that fills


class BoundedFolder:
    """Writes one file at a time, under a hidden name until it is whole; `name` is its own, empty while none is open.

    The folder never holds more than `max_bytes`. Every method raises OSError when the disk refuses.
    """

    def __init__(self, folder: Path, about: About, max_bytes: int) -> None:
        self.folder, self._about, self._max_bytes = folder, about, max_bytes
        self.name = ""
        self._recorder: Recorder | None = None
        self._alarms: list[Alarm] = []
        self._start_ns = self._end_ns = self._messages = self._others = 0

    @property
    def bytes(self) -> int:
        """What the file that is being written will take at most when it is closed now."""
        if self._recorder is None:
            return 0
        return self._recorder.bytes + CLOSING_BYTES + INDEX_BYTES * self._messages

    def tidy(self) -> None:
        """Finish what a killed process left half written, and keep to the bound; for the start."""
        if not self.folder.is_dir():
            return
        for half in self.folder.glob(f".*{MENDED}"):
            half.unlink()
        for part in sorted(self.folder.glob(f".*{PART}")):
            self._mend(part)
        self._trim(0)

    def begin(self, name: str, start_ns: int) -> None:
        """Open a file for what was captured from `start_ns` on; one that is open is finished before."""
        self.finish()
        self.name = self._free_name(name)
        self._recorder = self._open(self._part(self.name))
        self._alarms, self._messages = [], 0
        self._start_ns = self._end_ns = start_ns
        self._trim(self.bytes)

    def append(self, made: Block) -> bool:
        """Append to the open file; False where it would be too much though every other file has gone."""
        assert self._recorder is not None
        coming = self.bytes + len(made.data)
        if coming + self._others > self._max_bytes and not self._trim(coming):
            return False
        self._recorder.append(made)
        self._messages += 1
        self._end_ns = max(self._end_ns, made.end_ns)
        return True

    def note(self, alarm: Alarm) -> None:
        """Append the change of an alarm."""
        if self.append(_noted(alarm, self._start_ns)):
            self._alarms.append(alarm)

    def finish(self) -> None:
        """Label what the alarms said, close the file and give it its name."""
        if self._recorder is None:
            return
        recorder, name, self._recorder, self.name = self._recorder, self.name, None, ""
        for label in labels(self._alarms, self._about.sensors, self._start_ns, self._end_ns).values():
            recorder.label(label)
        recorder.close()
        os.replace(self._part(name), self.folder / name)
        sync_folder(self.folder)

    def abandon(self) -> None:
        """Give up the open file, for when the disk refuses to take the rest."""
        if self._recorder is not None:
            self._recorder.abandon()
            self._part(self.name).unlink(missing_ok=True)
        self._recorder, self.name = None, ""

    def _part(self, name: str) -> Path:
        return self.folder / f".{name}{PART}"

    def _open(self, path: Path) -> Recorder:
        return Recorder(path, self._about, sound="flac")

    def _free_name(self, name: str) -> str:
        """The name, with a number where a file of that name is there: it was closed early, or time was set back."""
        stem, number = name.removesuffix(".mcap"), 1
        while (self.folder / name).exists():
            number += 1
            name = f"{stem}-{number}.mcap"
        return name

    def _trim(self, coming: int) -> bool:
        """Delete the oldest files until `coming` bytes fit beside the rest; False where that cannot be."""
        files = [(file, file.stat().st_size) for file in recordings(self.folder)]
        self._others = sum(size for _, size in files)
        for file, size in files:
            if self._others + coming <= self._max_bytes:
                return True
            file.unlink()
            self._others -= size
        return self._others + coming <= self._max_bytes

    def _mend(self, part: Path) -> None:
        """A whole file of what can be read of a half one; nothing of one that holds no sample."""
        name = part.name.removeprefix(".").removesuffix(PART)
        try:
            self._copy(Recording(part), part.with_suffix(MENDED))
        except RecordingError:
            part.unlink()
            return
        os.replace(part.with_suffix(MENDED), self.folder / self._free_name(name))
        part.unlink()
        sync_folder(self.folder)

    def _copy(self, half: Recording, path: Path) -> None:
        start_ns, end_ns = half.span_ns()
        said = labels(half.alarms(), half.about.sensors, start_ns, end_ns).values()
        with Recorder(path, half.about) as whole:
            for made in half.blocks():
                if made.schema != "lineside.Label":  # made anew: the last may be missing
                    whole.append(made)
            for label in said:
                whole.label(label)


def recordings(folder: Path) -> list[Path]:
    """The whole files of a folder, oldest first: their names begin with their time."""
    return sorted(file for file in folder.glob("*.mcap") if not file.name.startswith(".")) if folder.is_dir() else []


def _noted(alarm: Alarm, start_ns: int) -> Block:
    """An alarm as a message of a file that begins at `start_ns`; its small pictures are in there as they were taken."""
    at_ns = max(alarm.time_ns, start_ns)
    return block("/alarms", at_ns, at_ns, alarm.plain())

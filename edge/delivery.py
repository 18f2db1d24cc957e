"""Recordings of alarms on their way to the hub, which asked for them: piece by piece, after everything else.

Nothing is kept of what was asked: a request names where in the file to go on, and ends after REQUEST_BYTES. Whatever is
lost on the way (a killed process, a cut connection), the hub asks for again.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from edge.archive import EVIDENCE
from edge.bounded_folder import PART, recordings
from edge.config import DeviceConfig
from edge.lanes import Pace
from lineside.clock import Clock
from lineside.errors import LinesideError
from lineside.evidence import PIECE_BYTES, REQUEST_BYTES
from lineside.messages import Piece

log = logging.getLogger(__name__)
REQUESTS = 8
READ_BYTES = 1 << 20


@dataclass(frozen=True)
class _Wanted:
    """What is still to be sent of one request."""

    path: Path
    size: int
    sha256: str
    at: int
    end: int


class Delivery:
    """Give it requests from one thread and take pieces from another."""

    def __init__(self, config: DeviceConfig, state: Path, clock: Clock) -> None:
        self._device, self._settings, self._clock = config.device.id, config.evidence, clock
        self._folder = state / EVIDENCE
        self._pace = Pace(config.evidence.send_kb_s * 1000, clock.now_ns())
        self._wanted: deque[_Wanted] = deque()
        self._hashed: tuple[str, int, int, str] = ("", 0, 0, "")  # name, size, time and hash of the last file
        self._lock = threading.Lock()

    def ask(self, recording: str, offset: str) -> None:
        """Send the next REQUEST_BYTES of a recording from `offset` on; a request for the same file is replaced.

        Raises LinesideError where the device file does not allow it, and for what is not there.
        """
        if self._settings.send != "request":
            raise LinesideError(self._device, "does not send recordings", 'set [evidence] send = "request" there')
        path = next((file for file in recordings(self._folder) if file.name == recording), None)
        if path is None:
            raise self._missing(recording)
        size, sha256 = self._about(path)
        if not offset.isdecimal() or not int(offset) < size:
            raise LinesideError(recording, f"has {size} bytes, none at {offset[:20]!r}", "ask from 0 on")
        at = int(offset)
        wanted = _Wanted(path, size, sha256, at, min(size, at + REQUEST_BYTES))
        with self._lock:
            others = [each for each in self._wanted if each.path != path]
            if len(others) >= REQUESTS:
                raise LinesideError(self._device, "has too many requests for recordings", "ask again later")
            self._wanted = deque([*others, wanted])

    def piece(self) -> Piece | None:
        """The next piece; None while nothing was asked for, or the pace does not allow more. Never raises."""
        with self._lock:
            if not self._wanted or self._pace.allowed(self._clock.now_ns()) <= 0:
                return None
            wanted = self._wanted.popleft()
            data = self._read(wanted)
            if data is None:
                return None
            self._pace.spend(len(data))
            if (at := wanted.at + len(data)) < wanted.end:
                rest = _Wanted(wanted.path, wanted.size, wanted.sha256, at, wanted.end)
                self._wanted.appendleft(rest)
        return Piece(
            device=self._device,
            recording=wanted.path.name,
            size=wanted.size,
            sha256=wanted.sha256,
            offset=wanted.at,
            data=data,
        )

    def _read(self, wanted: _Wanted) -> bytes | None:
        """The bytes, None where the file has gone meanwhile: the oldest do, and the hub is told when it asks again."""
        try:
            with wanted.path.open("rb") as file:
                file.seek(wanted.at)
                return file.read(min(PIECE_BYTES, wanted.end - wanted.at)) or None
        except OSError as error:
            log.warning("%s cannot be sent: %s", wanted.path.name, error)
            return None

    def _missing(self, recording: str) -> LinesideError:
        if any(half.name == f".{recording}{PART}" for half in self._folder.glob(f".*{PART}")):
            return LinesideError(recording, "is still being written", "ask again in some seconds")
        told = "is not on the device (any more): the oldest go first"
        return LinesideError(recording, told, "give [evidence] max_mb more room there")

    def _about(self, path: Path) -> tuple[int, str]:
        """Size and hash of a file, which is never changed once it has its name."""
        about = path.stat()
        if self._hashed[:3] != (path.name, about.st_size, about.st_mtime_ns):
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while data := file.read(READ_BYTES):
                    digest.update(data)
            self._hashed = path.name, about.st_size, about.st_mtime_ns, digest.hexdigest()
        return about.st_size, self._hashed[3]

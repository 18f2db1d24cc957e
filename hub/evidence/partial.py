"""A recording that comes in pieces: written as they come, checked by its hash before anybody reads it."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import msgspec

from lineside.errors import WireError
from lineside.files import make_folder, sync_folder, write_atomic
from lineside.messages import Piece

READ_BYTES = 1 << 20


class About(msgspec.Struct, frozen=True):
    """What the first piece said of the whole file."""

    size: int
    sha256: str


class Partial:
    """What has come of one recording stands beside its later place, so that a hub that was stopped goes on there."""

    def __init__(self, path: Path, device: str, most_bytes: int) -> None:
        self._path, self._device, self._most = path, device, most_bytes
        self._part, self._note = path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.about")
        self._about = self._known()

    @property
    def offset(self) -> int:
        """How many bytes are here, in order."""
        return self._part.stat().st_size if self._about is not None and self._part.exists() else 0

    @property
    def share(self) -> float:
        """How much of the file is here, 0 to 1."""
        return self.offset / self._about.size if self._about else 0.0

    def take(self, piece: Piece) -> bool:
        """Append the piece that comes next, pass over any other; whether the file is now whole and in its place.

        Raises WireError for one that does not belong here, is too large, or whose whole is not what its hash says: what
        has come is then thrown away. Raises OSError when the disk refuses.
        """
        if (piece.device, piece.recording) != (self._device, self._path.name):
            return False
        about = About(piece.size, piece.sha256)
        if self._about is None:
            self._begin(about)
        elif about != self._about:
            self.discard()
            raise WireError(piece.recording, "is another file now than it was", "ask for it again")
        if piece.offset != self.offset or not piece.data:
            return False
        if piece.offset + len(piece.data) > piece.size:
            self.discard()
            raise WireError(piece.recording, "has more bytes than it said", "ask for it again")
        with self._part.open("ab") as file:
            file.write(piece.data)
        return self.offset == piece.size and self._finished(about)

    def discard(self) -> None:
        """Forget what has come."""
        self._part.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)
        self._about = None

    def _begin(self, about: About) -> None:
        if not 0 < about.size <= self._most:
            told = f"has {about.size:,} bytes, at most {self._most:,} are taken"
            raise WireError(self._path.name, told, "raise [hub] evidence_file_mb, or copy it by hand")
        if not re.fullmatch(r"[0-9a-f]{64}", about.sha256):
            raise WireError(self._path.name, "names no SHA-256", "update the device")
        make_folder(self._path.parent)
        self._part.unlink(missing_ok=True)
        os.close(os.open(self._part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        write_atomic(self._note, msgspec.json.encode(about), mode=0o600)
        self._about = about

    def _finished(self, about: About) -> bool:
        digest = hashlib.sha256()
        with self._part.open("rb") as file:
            while data := file.read(READ_BYTES):
                digest.update(data)
            os.fsync(file.fileno())
        if digest.hexdigest() != about.sha256:
            self.discard()
            raise WireError(self._path.name, "is not what its SHA-256 says", "ask for it again")
        os.replace(self._part, self._path)
        self._note.unlink(missing_ok=True)
        sync_folder(self._path.parent)
        return True

    def _known(self) -> About | None:
        try:
            return msgspec.json.decode(self._note.read_bytes(), type=About)
        except (OSError, msgspec.DecodeError):
            return None

"""What runtimes made of encoder files, kept from start to start, with our own note beside it.

    {folder}/{key}/note.json      what it was made of, and the hash of each file (Note); written last
    {folder}/{key}/…              engines; nothing at all where a session was only tried

The key is a hash of all that an engine depends on. Nothing is handed to a runtime but files whose hash is noted: an
engine is code, and half of one has crashed more than one runtime.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

import msgspec

from lineside.clock import NS, Clock
from lineside.errors import ReleaseError
from lineside.files import sha256, write_atomic

NOTE = "note.json"


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """`model` is the SHA-256 of the encoder file, empty for what serves all; `about` what else it depends on."""

    model: str
    about: str
    files: dict[str, str]
    made_ns: int
    seconds: float = 0.0


class Engines:
    """The folder of one device. One process at a time changes it."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder, self._clock = folder, clock

    def place(self, model: str, about: str) -> Path:
        """Where what is made of the encoder with this hash belongs.

        >>> from lineside.clock import SimulatedClock
        >>> engines = Engines(Path("engines"), SimulatedClock())
        >>> engines.place("ab", "TensorRT 10.3") == engines.place("ab", "TensorRT 10.4")
        False
        """
        return self._folder / sha256(msgspec.json.encode([model, about]))

    def whole(self, model: str, about: str) -> bool:
        """Whether it was made, and is still just what was noted."""
        place = self.place(model, about)
        try:
            note = msgspec.json.decode((place / NOTE).read_bytes(), type=Note)
            return (note.model, note.about, note.files) == (model, about, _hashes(place))
        except (OSError, msgspec.DecodeError):
            return False

    def begin(self, model: str, about: str) -> Path:
        """An empty place to make it in. Raises ReleaseError (check `storage`)."""
        place = self.place(model, about)
        try:
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True, mode=0o700)
        except OSError as error:
            raise _storage(place, error) from error
        return place

    def note(self, model: str, about: str, since_ns: int) -> None:
        """It is made, since `since_ns`: note the files as they are now. Raises ReleaseError (check `storage`)."""
        place, now = self.place(model, about), self._clock.now_ns()
        try:
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
            seconds = (now - since_ns) / NS
            note = Note(model=model, about=about, files=_hashes(place), made_ns=now, seconds=seconds)
            write_atomic(place / NOTE, msgspec.json.encode(note))
        except OSError as error:
            raise _storage(place, error) from error

    def prune(self, models: Collection[str], abouts: Collection[str]) -> None:
        """Drop what belongs to no encoder of `models`; what serves all encoders stays where `abouts` still name it."""
        for place in self._folder.glob("*/"):
            try:
                note = msgspec.json.decode((place / NOTE).read_bytes(), type=Note)
            except (OSError, msgspec.DecodeError):
                note = Note(model="", about="", files={}, made_ns=0)  # it was never made whole
            if not (note.model in models if note.model else note.about in abouts):
                shutil.rmtree(place, ignore_errors=True)


def _hashes(place: Path) -> dict[str, str]:
    """Of every file below, the note itself left out."""
    files = (path for path in place.rglob("*") if path.is_file() and path != place / NOTE)
    return {str(path.relative_to(place)): sha256(path.read_bytes()) for path in sorted(files)}


def _storage(place: Path, error: OSError) -> ReleaseError:
    return ReleaseError("storage", str(place), f"cannot be written ({error.strerror})", "free the disk of state_dir")

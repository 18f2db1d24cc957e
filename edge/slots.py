"""Two places per modality for an encoder: one in use, one to fall back to; changed by one rename.

    {state_dir}/slots/{modality}/a/encoder.onnx      the file, checked against its hash before anybody parses it
    {state_dir}/slots/{modality}/a/slot.json         what it is (Note)
    {state_dir}/slots/{modality}/b/…
    {state_dir}/slots/{modality}/current             relative symlink to `a` or `b`

A staged encoder is not `accepted` until `switch`: nothing runs it or falls back to it before. A process that is
killed anywhere leaves the old encoder or the new one in use, whole.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path

import msgspec

from lineside.clock import Clock
from lineside.errors import ReleaseError
from lineside.files import make_folder, sha256, sync_folder, write_atomic

NAMES = ("a", "b")
REFETCH = "it is fetched again with the next update"


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """What stands beside an encoder in its slot."""

    version: int
    sha256: str
    target: str
    installed_ns: int
    accepted: bool


@dataclass(frozen=True)
class Slot:
    """An encoder on this device whose bytes had the noted hash when we looked; `target` is its name when signed."""

    modality: str
    name: str
    path: Path
    version: int
    sha256: str
    target: str
    installed_ns: int
    accepted: bool


class Slots:
    """The slots of one device. One process at a time changes them; its threads may."""

    def __init__(self, state_dir: Path, clock: Clock) -> None:
        self._folder = state_dir / "slots"
        self._clock = clock
        self._lock = threading.RLock()  # which slot is free must not change while one is written

    def current(self, modality: str) -> Slot | None:
        """The encoder to run: the linked slot, or the other one when that is damaged; None when neither will do."""
        return self._look(modality)[0]

    def problem(self, modality: str) -> str:
        """What is wrong with a modality's slots, with its mend; empty when the linked one is whole or none was made."""
        return self._look(modality)[1]

    def previous(self, modality: str) -> Slot | None:
        """The encoder that `rollback` would go to."""
        spare = self.spare(modality)
        return spare if spare and spare.accepted else None

    def spare(self, modality: str) -> Slot | None:
        """What the slot that is not in use holds, whole: an earlier encoder, or a staged one."""
        return self._read(modality, self._free(modality))[0]

    def holds(self, modality: str, digest: str) -> bool:
        """Whether one of the slots has the encoder with this SHA-256, whole."""
        return any(slot and slot.sha256 == digest for slot in (self.current(modality), self.spare(modality)))

    def stage(self, modality: str, data: bytes, *, version: int, expected_sha256: str, target: str) -> Slot:
        """Write an encoder into the slot that is not in use, in place of the previous one; nothing is switched.

        Raises ReleaseError (check `hash`) when `data` is something else than expected, (`storage`) when the disk
        does not take it.
        """
        if sha256(data) != expected_sha256:
            raise ReleaseError("hash", target, "the bytes are not those that were signed", "fetch it again")
        with self._lock:
            return self._stage(modality, data, version, expected_sha256, target)

    def _stage(self, modality: str, data: bytes, version: int, expected_sha256: str, target: str) -> Slot:
        folder = self._folder / modality / self._free(modality)
        note = Note(
            version=version,
            sha256=expected_sha256,
            target=target,
            installed_ns=self._clock.now_ns(),
            accepted=False,
        )
        try:
            make_folder(folder)
            (folder / "slot.json").unlink(missing_ok=True)  # from here to the last line the slot counts as empty
            sync_folder(folder)
            write_atomic(folder / "encoder.onnx", data)
            write_atomic(folder / "slot.json", msgspec.json.encode(note))
        except OSError as error:
            mend = "free some space; the running encoder stays"
            raise ReleaseError("storage", str(folder), f"cannot be written ({error.strerror})", mend) from error
        return _slot(modality, folder, note)

    def switch(self, modality: str) -> Slot:
        """Put the staged encoder in use, and keep the one that was as previous.

        Raises ReleaseError (`missing` or `hash`) when the other slot holds nothing whole; nothing is changed then.
        """
        with self._lock:
            slot = self._other(modality, "nothing is staged", "fetch a release first")
            if not slot.accepted:
                self._mark(slot, accepted=True)
            self._link(modality, slot.name)
            return _slot(modality, slot.path.parent, self._note(slot.path.parent))

    def rollback(self, modality: str) -> Slot:
        """Put the previous encoder back in use; the one that was in use becomes the previous one.

        Raises ReleaseError (`missing` or `hash`) when there is none; the running encoder stays.
        """
        with self._lock:
            slot = self._other(modality, "there is no previous version here", "publish the version that you want")
            if not slot.accepted:
                told, mend = (
                    f"version {slot.version} in the other slot was never in use",
                    "publish the one that you want",
                )
                raise ReleaseError("missing", f"slot {slot.name} of {modality}", told, mend)
            self._link(modality, slot.name)
            return slot

    def reject(self, modality: str) -> None:
        """Nobody shall fall back to what the slot that is not in use holds, until it is switched to again."""
        with self._lock:
            if (slot := self.previous(modality)) is not None:
                self._mark(slot, accepted=False)

    def _mark(self, slot: Slot, accepted: bool) -> None:
        note = msgspec.convert(slot, Note, from_attributes=True)
        marked = msgspec.structs.replace(note, accepted=accepted)
        write_atomic(slot.path.parent / "slot.json", msgspec.json.encode(marked))

    def _other(self, modality: str, nothing: str, mend: str) -> Slot:
        name = self._free(modality)
        slot, problem = self._read(modality, name)
        if slot is None:
            check = "hash" if problem else "missing"
            raise ReleaseError(check, f"slot {name} of {modality}", problem or nothing, mend)
        return slot

    def _free(self, modality: str) -> str:
        used = self.current(modality)
        return NAMES[0] if used is None or used.name == NAMES[1] else NAMES[1]

    def _look(self, modality: str) -> tuple[Slot | None, str]:
        linked = self._linked(modality)
        if not linked:
            return None, ""
        slot, problem = self._read(modality, linked)
        if slot and slot.accepted:
            return slot, ""
        told = f"slot {linked} of {modality}: {problem or 'what it holds was never accepted'}"
        fallback = self._read(modality, NAMES[1 - NAMES.index(linked)])[0]
        if fallback and fallback.accepted:
            return fallback, f"{told}; version {fallback.version} of the other slot runs instead, {REFETCH}"
        return None, f"{told}; the other slot cannot stand in, {REFETCH}"

    def _linked(self, modality: str) -> str:
        try:
            name = os.readlink(self._folder / modality / "current")
        except OSError:
            return ""
        return name if name in NAMES else ""

    def _link(self, modality: str, name: str) -> None:
        folder = self._folder / modality
        fresh = folder / ".current.new"
        fresh.unlink(missing_ok=True)
        os.symlink(name, fresh)
        os.replace(fresh, folder / "current")
        sync_folder(folder)

    def _read(self, modality: str, name: str) -> tuple[Slot | None, str]:
        """A slot and what is wrong with it; an empty one is (None, "")."""
        folder = self._folder / modality / name
        try:
            note = self._note(folder)
            if sha256((folder / "encoder.onnx").read_bytes()) != note.sha256:
                return None, "encoder.onnx has another hash than noted (damaged on disk)"
        except FileNotFoundError as error:
            return None, "encoder.onnx is gone" if Path(error.filename).name == "encoder.onnx" else ""
        except (OSError, msgspec.DecodeError) as error:
            return None, f"cannot be read ({error})"
        return _slot(modality, folder, note), ""

    def _note(self, folder: Path) -> Note:
        return msgspec.json.decode((folder / "slot.json").read_bytes(), type=Note)


def _slot(modality: str, folder: Path, note: Note) -> Slot:
    return Slot(
        modality=modality,
        name=folder.name,
        path=folder / "encoder.onnx",
        version=note.version,
        sha256=note.sha256,
        target=note.target,
        installed_ns=note.installed_ns,
        accepted=note.accepted,
    )

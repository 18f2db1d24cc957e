"""What lies in a folder: as it is, and as it may be put there."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

# SQLite's shared memory is no part of the database: it is emptied by whoever opens it first.
NOT_FILES = ("-shm",)


@dataclass(frozen=True)
class Entry:
    """What a tree has at a path: bytes of a file, the target of a link, or None for a folder."""

    data: bytes | None = None
    link: str = ""
    mode: int = 0


Tree = dict[str, Entry]


def read(folder: Path) -> Tree:
    """What a folder has."""
    found: Tree = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = Entry(link=os.readlink(path))
        elif path.is_dir():
            found[name] = Entry()
        elif not name.endswith(NOT_FILES):
            found[name] = Entry(path.read_bytes(), mode=path.stat().st_mode & 0o777)
    return found


def write(tree: Tree, folder: Path) -> None:
    """Put a tree into an empty folder."""
    folder.mkdir()
    for path, entry in sorted(tree.items()):
        place = folder / path
        if entry.link:
            os.symlink(entry.link, place)
        elif entry.data is None:
            place.mkdir()
        else:
            place.write_bytes(entry.data)
            place.chmod(entry.mode)


def look(folder: Path) -> dict[str, int | str]:
    """What lies in a folder: path to length, -1 for a folder, the target of a link. Chance in names is left out."""
    return outline(read(folder))


def outline(tree: Tree) -> dict[str, int | str]:
    """The same of a tree."""
    return {
        re.sub(r"\btmp[a-z0-9_]{8}\b", "tmp", path): entry.link or (-1 if entry.data is None else len(entry.data))
        for path, entry in tree.items()
    }


def fingerprint(tree: Tree, said: list[str]) -> bytes:
    """The same for the same state."""
    told = hashlib.sha256(repr(said).encode())
    for path, entry in sorted(tree.items()):
        told.update(f"{path}\0{entry.link}\0{entry.mode}\0{entry.data is None}\0".encode())
        told.update(hashlib.sha256(entry.data or b"").digest())
    return told.digest()

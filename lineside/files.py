"""Files that are either the old ones or the new ones, never half."""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
from pathlib import Path


def write_atomic(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write `data` to `path` so that after a power cut the file is whole: the old one or the new one.

    Temporary file in the same folder, fsync, rename, fsync of the folder. The temporary file has one name for each
    `path`: what a cut leaves is overwritten by the next write, so that it never heaps up. Writers of the same path wait
    for each other, also those of other processes. Raises OSError.
    """
    make_folder(path.parent)
    fresh = path.with_name(f".{path.name}.new")
    with os.fdopen(_alone(fresh), "wb") as file:
        try:
            file.truncate()
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
            os.replace(fresh, path)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
    sync_folder(path.parent)


def _alone(path: Path) -> int:
    """The file at `path`, made where there is none, open and locked: until it is closed or renamed, it is ours."""
    while True:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        except FileNotFoundError:
            pass  # whoever held the lock has renamed it since
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def make_private(path: Path) -> None:
    """Make an empty file that its owner alone reads; its group too where the folder hands its group on (setgid).

    From a file that is there already, what everybody else may do with it is taken. Raises OSError.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o007:
            path.chmod(mode & ~0o007)
        return
    try:
        if path.parent.stat().st_mode & stat.S_ISGID:
            os.fchmod(handle, 0o660)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Make a folder, with those above it, so that a power cut does not take them away with all that is put in them."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(data: bytes | memoryview) -> str:
    """Hexadecimal SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()

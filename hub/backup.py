"""Copies of the SQLite store, taken while it is written and put back whole."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

import sqlalchemy as sa

from hub.tables import METADATA
from lineside.errors import ConfigError
from lineside.files import sync_folder


def sqlite_file(url: sa.URL) -> Path:
    """The file of a SQLite URL. Raises ConfigError, naming the right tool, for another database."""
    if url.get_backend_name() != "sqlite":
        place = url.render_as_string(hide_password=True)
        raise ConfigError("hub.database", f"{place} has its own tools", "use pg_dump and pg_restore")
    return Path(str(url.database))


def backup(source: Path, target: Path) -> int:
    """Copy a store that may be in use to `target`, whole or not at all; gives the bytes written.

    Raises ConfigError when there is no store or `target` cannot be written.
    """
    if not source.exists():
        raise ConfigError(str(source), "is not there yet", "start the hub once, or mend [hub] database")
    half = target.with_name(f".{target.name}.half")
    try:
        with contextlib.closing(sqlite3.connect(source)) as live, contextlib.closing(sqlite3.connect(half)) as copy:
            live.backup(copy)
        with half.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(half, target)
    except (OSError, sqlite3.Error) as error:
        raise ConfigError(str(target), f"cannot be written ({error})", "choose another --out") from error
    finally:
        half.unlink(missing_ok=True)
    sync_folder(target.resolve().parent)
    return target.stat().st_size


def restore(source: Path, target: Path) -> Path | None:
    """Put a backup in the place of a store; the store that was there stays beside it, and its path is given.

    Raises ConfigError for a file that is no whole store of ours. The hub must not run: hold `hub.lock.only_one`.
    """
    _require_whole(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(f".{target.name}.restored")
    backup(source, new)
    kept = None
    if target.exists():
        kept = target.with_name(f"{target.name}.before-restore")
        backup(target, kept)  # with what still stood in its write-ahead log
    for suffix in ("-wal", "-shm"):
        target.with_name(target.name + suffix).unlink(missing_ok=True)
    os.replace(new, target)
    sync_folder(target.parent)
    return kept


def _require_whole(path: Path) -> None:
    mend = "give a file made by `lineside hub backup`"
    if not path.exists():
        raise ConfigError(str(path), "is not there", mend)
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            found = database.execute("PRAGMA integrity_check").fetchone()[0]
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.Error as error:
        raise ConfigError(str(path), f"is no whole SQLite file ({error})", mend) from error
    if found != "ok" or not set(METADATA.tables) <= tables:
        raise ConfigError(str(path), "is no whole store of a hub", mend)

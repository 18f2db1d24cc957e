"""Copies of a store that is a file of SQLite."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

import sqlalchemy as sa

from lineside.errors import ConfigError
from lineside.files import make_private, sync_folder


def copy(url: sa.URL, target: Path) -> None:
    """As hub.backup.Way.copy, by SQLite's own way of copying while others write."""
    source = Path(str(url.database))
    if not source.exists():
        raise ConfigError(str(source), "is not there yet", "start the hub once, or mend [hub] database")
    _copy(source, target)


def tables(source: Path) -> dict[str, set[str]]:
    """As hub.backup.Way.tables; every page of the file is read, and must be sound."""
    mend = "give a file made by `lineside hub backup`"
    try:
        with contextlib.closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True)) as database:
            found = database.execute("PRAGMA integrity_check").fetchone()[0]
            listed = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
            names = [name for (name,) in database.execute(listed)]
            columns = {name: {row[1] for row in database.execute(f'PRAGMA table_info("{name}")')} for name in names}
    except sqlite3.Error as error:
        raise ConfigError(str(source), f"is no whole SQLite file ({error})", mend) from error
    if found != "ok":
        raise ConfigError(str(source), f"is no whole SQLite file ({found})", mend)
    return columns


def keep(url: sa.URL, folder: Path) -> Path | None:
    """As hub.backup.Way.keep: beside the store, whatever `folder` is."""
    store = Path(str(url.database))
    return store.with_name(f"{store.name}.before-restore") if store.exists() else None


def put_back(source: Path, url: sa.URL) -> None:
    """As hub.backup.Way.put_back."""
    target = Path(str(url.database))
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(f".{target.name}.restored")
    try:
        _copy(source, new)
        for suffix in ("-wal", "-shm"):  # of the store that goes; all that they held was kept
            target.with_name(target.name + suffix).unlink(missing_ok=True)
        os.replace(new, target)
    finally:
        new.unlink(missing_ok=True)
    sync_folder(target.parent)


def _copy(source: Path, target: Path) -> None:
    try:
        target.unlink(missing_ok=True)
        make_private(target)
        with contextlib.closing(sqlite3.connect(source)) as live, contextlib.closing(sqlite3.connect(target)) as made:
            live.backup(made)
        with target.open("rb") as file:
            os.fsync(file.fileno())
    except (OSError, sqlite3.Error) as error:
        raise ConfigError(str(target), f"cannot be written ({error})", "choose another place") from error

"""Copies of the hub's store, taken while it is written and put back whole.

Beside each copy lies its hash, as `sha256sum` writes it; a copy without its hash, or of a newer schema, is not put
back. What is done to a file of SQLite or a server of PostgreSQL is theirs (hub.backup_sqlite, hub.backup_postgres).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import sqlalchemy as sa

# The hub imports every room that has tables of its own, so that METADATA knows them all.
import hub.line  # noqa: F401
from hub import backup_postgres, backup_sqlite
from hub.tables import KEPT, METADATA
from lineside.errors import ConfigError
from lineside.files import sync_folder, write_atomic

Tables = Mapping[str, set[str]]  # names of tables to names of their columns
VERSION_TABLE = "alembic_version"  # of the migrations
MEND = "give a file made by `lineside hub backup`"


class Way(Protocol):
    """How it is done for one kind of database; every function raises ConfigError."""

    def copy(self, url: sa.URL, target: Path) -> None:
        """Copy a store that may be in use."""

    def tables(self, source: Path) -> Tables:
        """What a copy holds."""

    def keep(self, url: sa.URL, folder: Path) -> Path | None:
        """Where the store that is there shall be kept, None where there is none."""

    def put_back(self, source: Path, url: sa.URL) -> None:
        """Put a copy in the place of the store, whole or not at all."""


WAYS: dict[str, Way] = {"sqlite": backup_sqlite, "postgresql": backup_postgres}


def backup(url: sa.URL, target: Path, *, force: bool = False) -> int:
    """Copy a store that may be in use to `target`, whole or not at all, and its hash beside it; gives its bytes.

    Others cannot read it. Raises ConfigError when there is no store, when it holds what is not the hub's, or `target`
    cannot be written or, without `force`, is there already.
    """
    if target.exists() and not force:
        raise ConfigError(str(target), "is there already", "choose another --out, or overwrite it with --force")
    half = _half(target)
    try:
        _copy(url, half)
        _name(half, target)
    except OSError as error:
        raise ConfigError(str(target), f"cannot be written ({error})", "choose another --out") from error
    finally:
        half.unlink(missing_ok=True)
    return target.stat().st_size


def restore(source: Path, url: sa.URL, folder: Path) -> Path | None:
    """Put a backup in the place of a store; the store that was there is kept, and its path is given.

    It is kept beside a store that is a file, else in `folder`. Raises ConfigError for a file that is no whole store of
    ours, or of a newer hub. The hub must not run: hold `lineside.lock.only_one`.
    """
    way = WAYS[url.get_backend_name()]
    _require_hash(source)
    found = way.tables(source)
    if lost := {kept.table.name for kept in KEPT.values()} - set(found):
        raise ConfigError(str(source), f"is no store of a hub: it has no table {min(lost)!r}", MEND)
    _require_known(found, str(source))
    if (kept := way.keep(url, folder)) is None:
        way.put_back(source, url)
        return None
    kept.parent.mkdir(parents=True, exist_ok=True)
    half = _half(kept)
    try:
        _copy(url, half)
        way.put_back(source, url)
        _name(half, kept)  # only now: `source` may be what an earlier restore kept under this name
    finally:
        half.unlink(missing_ok=True)
    return kept


def hash_file(path: Path) -> Path:
    """Where the hash of a backup stands."""
    return path.with_name(f"{path.name}.sha256")


def _half(target: Path) -> Path:
    return target.with_name(f".{target.name}.half")


def _copy(url: sa.URL, half: Path) -> None:
    way = WAYS[url.get_backend_name()]
    way.copy(url, half)
    _require_known(way.tables(half), url.render_as_string(hide_password=True))


def _name(half: Path, target: Path) -> None:
    digest = _sha256(half)
    os.replace(half, target)
    sync_folder(target.resolve().parent)
    write_atomic(hash_file(target), f"{digest}  {target.name}\n".encode())


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while some := file.read(2**20):
            digest.update(some)
        os.fsync(file.fileno())
    return digest.hexdigest()


def _require_hash(source: Path) -> None:
    try:
        told = hash_file(source).read_text().split()
        found = _sha256(source)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(source), f"it or its hash cannot be read ({error})", MEND) from error
    if told[:1] != [found]:
        raise ConfigError(str(source), f"its SHA-256 is not the one in {hash_file(source).name}", "use another copy")


def _require_known(found: Tables, place: str) -> None:
    """Raise ConfigError, naming the first table or column that this hub does not know.

    >>> _require_known({"scores": {"device", "colour"}}, "line1.db")
    Traceback (most recent call last):
    lineside.errors.ConfigError: line1.db: was made by a newer lineside, or shared: scores.colour is not ...
    """
    for name, columns in sorted(found.items()):
        if name == VERSION_TABLE:
            continue
        table = METADATA.tables.get(name)
        strange = columns - set(table.columns.keys()) if table is not None else {""}
        if strange:
            what = f"{name}.{min(strange)}".rstrip(".")
            mend = "update the hub; a database belongs to one hub alone"
            raise ConfigError(place, f"was made by a newer lineside, or shared: {what} is not known", mend)

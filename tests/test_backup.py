"""Backups of the store on SQLite and on a real PostgreSQL: whole, with their hash, of a schema that the hub knows."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from hub import backup, backup_postgres
from hub.accounts import Accounts
from hub.store import Store, database_url
from hub.tables import METADATA
from lineside.clock import SystemClock
from lineside.errors import ConfigError
from tests.test_store import kept, score

ROOT = Path(__file__).parent.parent


def change(url: sa.URL, *statements: str) -> None:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(sa.text(statement))


def fill(url: sa.URL, first: int, last: int) -> None:
    store = Store(url)
    store.add([kept(score(seq), seq) for seq in range(first, last + 1)])
    Accounts(store.engine, SystemClock()).note("sato", "rollback", "press-3", f"row {last}")
    store.close()


def stored(url: sa.URL) -> list[int]:
    store = Store(url)
    found = [one.seq for one in store.scores("press-3")]
    store.close()
    return found


def noted(url: sa.URL) -> list[str]:
    store = Store(url)
    accounts = Accounts(store.engine, SystemClock())
    accounts.note("sato", "looked", "", "")  # its number must not be one that is taken
    found = [row.outcome for row in accounts.audit()]
    store.close()
    return found


def test_a_store_in_use_is_copied_and_put_back(database: sa.URL, tmp_path: Path) -> None:
    fill(database, 1, 50)
    using = Store(database)
    assert len(using.scores("press-3")) == 50
    copy = tmp_path / "copy.db"
    assert backup.backup(database, copy) == copy.stat().st_size
    using.close()
    fill(database, 51, 60)
    old = backup.restore(copy, database, tmp_path / "state")
    assert stored(database) == list(range(1, 51))
    assert noted(database) == ["", "row 50"]
    assert old is not None
    newer = backup.restore(old, database, tmp_path / "state")
    assert stored(database) == list(range(1, 61))
    assert newer == old  # what was kept is again what was there before
    assert not list(tmp_path.rglob("*.half"))


def test_a_backup_comes_back_where_there_is_nothing(database: sa.URL, tmp_path: Path) -> None:
    fill(database, 1, 5)
    backup.backup(database, tmp_path / "copy.db")
    if database.get_backend_name() == "sqlite":
        Path(str(database.database)).unlink()
    else:
        change(database, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    assert backup.restore(tmp_path / "copy.db", database, tmp_path) is None
    assert stored(database) == [1, 2, 3, 4, 5]


def test_a_backup_is_no_others_to_read_and_overwrites_nothing(database: sa.URL, tmp_path: Path) -> None:
    fill(database, 1, 5)
    copy = tmp_path / "copy.db"
    backup.backup(database, copy)
    assert copy.stat().st_mode & 0o777 == 0o600
    before = copy.read_bytes()
    fill(database, 6, 9)
    with pytest.raises(ConfigError, match=r"copy\.db: is there already; choose another --out, or .*--force"):
        backup.backup(database, copy)
    assert copy.read_bytes() == before
    backup.backup(database, copy, force=True)
    assert copy.read_bytes() != before
    backup.restore(copy, database, tmp_path)
    assert stored(database) == list(range(1, 10))
    secret = [path for path in tmp_path.iterdir() if path.is_file() and path.suffix != ".sha256"]
    assert [path.name for path in secret if path.stat().st_mode & 0o077] == []


@pytest.mark.parametrize(("folder_mode", "mode"), [(0o750, 0o600), (0o2770, 0o660)])
def test_the_store_is_no_others_to_read(tmp_path: Path, folder_mode: int, mode: int) -> None:
    folder = tmp_path / "plant"
    folder.mkdir()
    folder.chmod(folder_mode)
    url = database_url("sqlite:///hub.db", folder)
    fill(url, 1, 2)
    using = Store(url)
    assert len(using.scores("press-3")) == 2
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == {
        name: mode for name in ("hub.db", "hub.db-wal", "hub.db-shm")
    }
    using.close()
    (folder / "hub.db").chmod(0o644)  # as an older lineside left it
    Store(url).close()
    assert (folder / "hub.db").stat().st_mode & 0o007 == 0


def test_the_hash_is_one_that_sha256sum_checks(database: sa.URL, tmp_path: Path) -> None:
    fill(database, 1, 5)
    backup.backup(database, tmp_path / "copy.db")
    checked = subprocess.run(
        ["sha256sum", "--check", "copy.db.sha256"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout) == (0, "copy.db: OK\n")


@pytest.mark.parametrize("harm", ["flipped", "cut", "no hash", "another's hash", "missing"])
def test_a_copy_that_is_not_as_it_was_is_refused(database: sa.URL, tmp_path: Path, harm: str) -> None:
    fill(database, 1, 5)
    copy = tmp_path / "copy.db"
    backup.backup(database, copy)
    data = bytearray(copy.read_bytes())
    if harm == "flipped":
        data[len(data) // 2] ^= 1
        copy.write_bytes(data)
    elif harm == "cut":
        copy.write_bytes(data[: len(data) // 2])
    elif harm == "no hash":
        backup.hash_file(copy).unlink()
    elif harm == "another's hash":
        backup.hash_file(copy).write_text("0" * 64 + "  copy.db\n")
    else:
        copy.unlink()
    with pytest.raises(ConfigError, match=r"copy\.db: (its SHA-256 is not|it or its hash cannot be read)"):
        backup.restore(copy, database, tmp_path)
    assert stored(database) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("ALTER TABLE scores ADD COLUMN colour INTEGER", "scores.colour"),
        ("CREATE TABLE moods (x INTEGER)", "moods"),
    ],
)
def test_a_backup_of_a_newer_schema_is_refused_by_name(
    database: sa.URL, tmp_path: Path, statement: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(database, 1, 5)
    change(database, statement)
    with pytest.raises(ConfigError, match=rf"newer lineside, or shared: {named} is not known; update the hub"):
        backup.backup(database, tmp_path / "own.db")
    assert not (tmp_path / "own.db").exists()
    with monkeypatch.context() as newer:
        newer.setattr(backup, "_require_known", lambda *_: None)  # a newer hub knows it
        backup.backup(database, tmp_path / "newer.db")
    with pytest.raises(ConfigError, match=rf"newer\.db: was made by a newer lineside, or shared: {named}"):
        backup.restore(tmp_path / "newer.db", database, tmp_path)
    assert stored(database) == [1, 2, 3, 4, 5]


def test_what_migrations_keep_for_themselves_is_no_newer_schema(database: sa.URL, tmp_path: Path) -> None:
    fill(database, 1, 5)
    change(database, "CREATE TABLE IF NOT EXISTS alembic_version (version_num VARCHAR(32) NOT NULL)")
    backup.backup(database, tmp_path / "copy.db")
    backup.restore(tmp_path / "copy.db", database, tmp_path)
    assert stored(database) == [1, 2, 3, 4, 5]


def with_hash(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    backup.hash_file(path).write_text(f"{hashlib.sha256(data).hexdigest()}  {path.name}\n")
    return path


def test_what_is_no_store_is_refused(database: sa.URL, tmp_path: Path) -> None:
    fill(database, 1, 5)
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE t (x)")
    other.close()
    for data in (b"no database at all", (tmp_path / "other.db").read_bytes()):
        with pytest.raises(ConfigError):
            backup.restore(with_hash(tmp_path / "given.db", data), database, tmp_path)
    assert stored(database) == [1, 2, 3, 4, 5]


def test_a_place_that_cannot_be_written_is_told(database: sa.URL, tmp_path: Path) -> None:
    fill(database, 1, 2)
    with pytest.raises(ConfigError):
        backup.backup(database, tmp_path / "missing" / "copy.db")


@pytest.mark.slow
def test_a_restore_waits_for_no_other_hub(postgres: str, tmp_path: Path) -> None:
    url = database_url(postgres, tmp_path)
    fill(url, 1, 5)
    backup.backup(url, tmp_path / "copy.db")
    other = Store(url)
    other.scores("press-3")
    with pytest.raises(ConfigError, match=r"1 others use .* stop every hub"):
        backup.restore(tmp_path / "copy.db", url, tmp_path)
    other.close()
    backup.restore(tmp_path / "copy.db", url, tmp_path)
    change(url, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")


@pytest.mark.slow
def test_a_restore_that_fails_half_way_leaves_the_store_as_it_was(postgres: str, tmp_path: Path) -> None:
    url = database_url(postgres, tmp_path)
    fill(url, 1, 5)
    backup.backup(url, tmp_path / "copy.db")
    fill(url, 6, 8)
    change(url, "CREATE VIEW public.audit_number_seq_view AS SELECT 1", "CREATE SEQUENCE public.taken")
    change(url, "ALTER TABLE scores RENAME CONSTRAINT scores_pkey TO other", "CREATE TABLE t (a int)")
    change(url, "ALTER TABLE t ADD CONSTRAINT scores_pkey PRIMARY KEY (a)")  # in the way of the script's own
    with pytest.raises(ConfigError, match=r"psql: failed: .*already exists.* the store is as it was"):
        backup_postgres.put_back(tmp_path / "copy.db", url)
    assert stored(url) == list(range(1, 9))
    change(url, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")


def test_the_password_is_in_no_command_line(tmp_path: Path) -> None:
    url = database_url("postgresql://plant:geheim@127.0.0.1:1/none?connect_timeout=2", tmp_path)
    assert backup_postgres._place(url) == "postgresql://plant@127.0.0.1:1/none?connect_timeout=2"
    with pytest.raises(ConfigError) as caught:
        backup.backup(url, tmp_path / "copy.db")
    assert "geheim" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_missing_program_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backup_postgres, "DEBIAN", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="pg_dump: is not installed; apt-get install postgresql-client"):
        backup.backup(database_url("postgresql://plant@db/line1", tmp_path), tmp_path / "copy.db")


@pytest.mark.slow
def test_every_table_of_the_hub_is_known_to_restore() -> None:
    """The command alone imports what declares them: in a process of its own, as a person starts it."""
    code = "import hub.backup, hub.tables, json; print(json.dumps(sorted(hub.tables.METADATA.tables)))"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    import hub.dashboard.server  # noqa: F401 # and everything that a running hub imports

    assert json.loads(told.stdout) == sorted(METADATA.tables)


@pytest.mark.slow
def test_the_commands(tmp_path: Path) -> None:
    (tmp_path / "plant.toml").write_text('site = "line1"\ndevices = []\n')
    fill(database_url("sqlite:///hub.db", tmp_path), 1, 3)

    def command(*words: str) -> dict[str, str]:
        asked = [sys.executable, "-m", "hub", *words, "--config", str(tmp_path / "plant.toml"), "--json"]
        done = subprocess.run(asked, cwd=ROOT, env={**os.environ}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    assert command("backup", "--out", str(tmp_path / "copy.db"))["backup"] == str(tmp_path / "copy.db")
    assert command("restore", str(tmp_path / "copy.db"))["kept"] == str(tmp_path / "hub.db.before-restore")
    assert (tmp_path / "hub.db.before-restore.sha256").exists()

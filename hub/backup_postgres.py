"""Copies of a store on a PostgreSQL server, by its own pg_dump, pg_restore and psql as our children."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import sqlalchemy as sa

from hub.tables import METADATA
from hub.trouble import reason
from lineside.clock import SystemClock
from lineside.errors import ConfigError
from lineside.files import make_private

DEBIAN = Path("/usr/lib/postgresql")  # where Debian keeps the programs of each version
# A column, or a key: as pg_dump writes a table, one a line, with four spaces before it.
TABLE = re.compile(r'^CREATE TABLE (?:\w+|"[^"]+")\.(\w+|"[^"]+") \($(.*?)^\);$', re.MULTILINE | re.DOTALL)
COLUMN = re.compile(r'^    (?!CONSTRAINT )(\w+|"[^"]+") ', re.MULTILINE)
ENDING_TRIES = 30


def copy(url: sa.URL, target: Path) -> None:
    """As hub.backup.Way.copy: one snapshot of the whole database, compressed."""
    program("pg_dump")  # before there is a file
    target.unlink(missing_ok=True)
    make_private(target)
    _run("pg_dump", ["--format=custom", "--no-password", f"--file={target}", _place(url)], url)


def tables(source: Path) -> dict[str, set[str]]:
    """As hub.backup.Way.tables, from what pg_restore says of the file.

    >>> script = 'CREATE TABLE public.scores (\\n    device text NOT NULL,\\n    "limit" bigint\\n);\\n'
    >>> {name: sorted(columns) for name, columns in _declared(script).items()}
    {'scores': ['device', 'limit']}
    """
    return _declared(_run("pg_restore", ["--schema-only", "--file=-", str(source)]))


def keep(url: sa.URL, folder: Path) -> Path | None:
    """As hub.backup.Way.keep."""
    with _connected(url) as connection:
        return folder / f"{url.database}.before-restore" if sa.inspect(connection).get_table_names() else None


def put_back(source: Path, url: sa.URL) -> None:
    """As hub.backup.Way.put_back, in one transaction, in the place of all tables of the hub.

    Refuses while others use the database: another hub would go on to write into what was put back.
    """
    _require_alone(url)
    gone = ", ".join(f'public."{name}"' for name in sorted({*METADATA.tables, "alembic_version", *tables(source)}))
    with tempfile.TemporaryDirectory(prefix="lineside-restore-") as folder:
        script = Path(folder) / "script.sql"
        # In a file, for psql would take the end of a pipe that broke for the end of the script.
        _run("pg_restore", ["--no-owner", "--no-privileges", f"--file={script}", str(source)])
        once = ["--no-psqlrc", "--quiet", "--no-password", "--single-transaction", "--set=ON_ERROR_STOP=1"]
        drop = f"DROP TABLE IF EXISTS {gone} CASCADE"
        _run("psql", [*once, f"--command={drop}", f"--file={script}", _place(url)], url)


def _declared(script: str) -> dict[str, set[str]]:
    return {
        name.strip('"'): {column.strip('"') for column in COLUMN.findall(inside)}
        for name, inside in TABLE.findall(script)
    }


def _require_alone(url: sa.URL) -> None:
    """A session that was just closed takes the server a moment to end."""
    clock = SystemClock()
    for _ in range(ENDING_TRIES):
        if not (others := _others(url)):
            return
        clock.sleep(0.1)
    place = url.render_as_string(hide_password=True)
    raise ConfigError("hub.database", f"{others} others use {place}", "stop every hub and close its other sessions")


def _others(url: sa.URL) -> int:
    asked = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    with _connected(url) as connection:
        count: int = connection.execute(sa.text(f"{asked} AND backend_type = 'client backend'")).scalar_one()
    return count


def _connected(url: sa.URL) -> sa.Connection:
    try:
        return sa.create_engine(url, poolclass=sa.NullPool).connect()
    except sa.exc.SQLAlchemyError as error:
        place = url.render_as_string(hide_password=True)
        raise ConfigError("hub.database", f"{place} cannot be opened ({reason(error)})", "mend the URL") from error


def _place(url: sa.URL) -> str:
    """libpq's name of the database, without the password, which argv would show to everybody on the machine."""
    named = sa.URL.create("postgresql", url.username, None, url.host, url.port, url.database, url.query)
    return named.render_as_string()


def _run(name: str, arguments: list[str], url: sa.URL | None = None) -> str:
    """What a program of PostgreSQL prints. Raises ConfigError with its last words where it fails."""
    password = {"PGPASSWORD": str(url.password)} if url is not None and url.password else {}
    command = [program(name), *arguments]
    done = subprocess.run(
        command, env={**os.environ, **password, "LC_ALL": "C"}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = (done.stderr.strip() or f"ended with {done.returncode}").splitlines()[-1]
        raise ConfigError(name, f"failed: {said.removeprefix(f'{name}: ')}", "mend that; the store is as it was")
    return done.stdout


def program(name: str) -> str:
    """Where a program of PostgreSQL lies, of the newest version. Raises ConfigError where it is not installed."""
    versions = sorted(DEBIAN.glob("*/bin"), key=lambda folder: float(folder.parent.name), reverse=True)
    found = shutil.which(name, path=os.pathsep.join([*map(str, versions), os.environ.get("PATH", "")]))
    if found is None:
        raise ConfigError(name, "is not installed", "apt-get install postgresql-client")
    return found

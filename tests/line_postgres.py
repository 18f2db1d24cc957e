"""A PostgreSQL server of a test's own, in a temporary folder, as the user `postgres` where the test is root."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.line_port import free_port

POSTGRES = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/usr/lib/postgresql"))


@contextlib.contextmanager
def server() -> Iterator[str]:
    """The URL of a running server; skips the test where PostgreSQL is not installed."""
    if not (POSTGRES / "initdb").exists():
        pytest.skip(f"PostgreSQL is not installed ({POSTGRES})")
    account = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
    as_user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}
    folder = Path(tempfile.mkdtemp(prefix="lineside-pg-"))
    if account:
        os.chown(folder, account.pw_uid, account.pw_gid)
    make = [POSTGRES / "initdb", "-D", folder / "data", "-A", "trust", "-U", "plant"]
    subprocess.run(make, cwd=folder, check=True, capture_output=True, **as_user)
    port = free_port()
    running = subprocess.Popen(
        [POSTGRES / "postgres", "-D", folder / "data", "-h", "127.0.0.1", "-p", str(port), "-k", folder],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **as_user,
    )
    deadline = time.monotonic() + 120
    ready = [POSTGRES / "pg_isready", "-h", "127.0.0.1", "-p", str(port)]
    while subprocess.run(ready, check=False, capture_output=True).returncode:
        assert time.monotonic() < deadline, "PostgreSQL does not start"
        time.sleep(0.1)
    try:
        yield f"postgresql://plant@127.0.0.1:{port}/postgres"
    finally:
        running.send_signal(signal.SIGINT)  # ends sessions too; at SIGTERM it would wait for them
        running.wait(60)
        shutil.rmtree(folder)


def empty(url: str) -> None:
    """Take everything out of the database."""
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        connection.execute(sa.text("DROP SCHEMA public CASCADE; CREATE SCHEMA public"))
    engine.dispose()

"""One process at a time on one state folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from lineside.errors import ConfigError


@contextlib.contextmanager
def only_one(folder: Path, who: str, *, with_children: bool = False) -> Iterator[None]:
    """Hold a folder as `who` (hub, night): it is free again when this process has ended, however it ends.

    `with_children`: and those that it started with `close_fds=False`, for they hold the same open file (flock(2)).
    Raises ConfigError when another one holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{who}.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(str(folder), f"another {who} uses this state folder", "stop it first") from error
        os.set_inheritable(handle.fileno(), with_children)
        yield

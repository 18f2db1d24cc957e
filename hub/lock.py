"""One hub at a time on one state folder."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from lineside.errors import ConfigError


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold a plant's state folder: one hub at a time, and no restore under a running hub. Raises ConfigError."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "hub.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(str(folder), "another hub uses this state folder", "stop it first") from error
        yield

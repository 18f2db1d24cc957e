"""Kill -9 at a chosen step: work is done in a child that ends before its n-th change of the disk."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

CHANGES = {"os.rename", "os.symlink", "os.remove", "os.mkdir", "os.chmod", "tempfile.mkstemp"}


def before_step(step: int, work: Callable[[], object]) -> bool:
    """Whether the child was ended; False when it got through all its work, with less changes than `step`."""
    child = os.fork()
    if child == 0:
        left = step

        def count(event: str, args: tuple[object, ...]) -> None:
            nonlocal left
            writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
            if event in CHANGES or writes:
                left -= 1
                if left < 0:
                    os._exit(9)

        try:
            sys.addaudithook(count)
            work()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9), "the work itself failed"
    return status == 9

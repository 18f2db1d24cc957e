"""The calls with which a piece of work changes the disk, seen by strace, and its end at any one of them.

The work runs in a fork of this process, so that nothing has to be imported again; strace takes hold of it before it
begins. A kill is strace's own fault injection: SIGKILL on entry to the call, which then does not happen.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CHANGING = (
    *("write", "pwrite64", "writev", "pwritev", "pwritev2", "ftruncate", "truncate", "fallocate", "copy_file_range"),
    *("fsync", "fdatasync", "sync", "syncfs", "rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir"),
    *("symlink", "symlinkat", "link", "linkat", "mkdir", "mkdirat", "chmod", "fchmod", "fchmodat", "sendfile"),
)
FOLLOWED = ("openat", "close", "lseek", "dup", "dup2", "dup3", "fcntl", *CHANGING)
ATTACH_S = 60.0
_LINE = re.compile(r"(\d+) +(\w+)\((.*)\) += (-?\d+|\?)")
_BEGUN = re.compile(r"(\d+) +(\w+)\((.*) <unfinished \.\.\.>")
_ENDED = re.compile(r"(\d+) +<\.\.\. (\w+) resumed>(.*)\) += (-?\d+|\?)")
_ARGUMENT = re.compile(r'\s*(\[.*\]|"[^"]*"|[^,]+)')


class Unavailable(Exception):
    """This machine does not let us trace."""


@dataclass(frozen=True)
class Call:
    """One system call: its number among those of its name, its arguments as strace writes them, what it gave."""

    name: str
    number: int
    arguments: tuple[str, ...]
    result: int

    def text(self, index: int) -> bytes:
        """A string argument, which strace wrote as hexadecimal escapes."""
        return unescaped(self.arguments[index])


def unescaped(text: str) -> bytes:
    r"""The bytes of a string of strace -xx.

    >>> unescaped('"\\x68\\x69"')
    b'hi'
    """
    return bytes.fromhex(text.strip('"').replace("\\x", ""))


def need_strace() -> None:
    """Raises Unavailable where strace is missing or may not trace."""
    if shutil.which("strace") is None:
        raise Unavailable("strace is not installed (Debian: apt-get install strace)")
    tried = subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, check=False)
    if tried.returncode:
        raise Unavailable(f"strace may not trace here ({tried.stderr.decode().strip()})")


def record(work: Callable[[], object], log: Path) -> list[Call]:
    """Do the work, and give every call that changed the disk, with those that tell which file each is of."""
    status = _traced(work, ["-xx", "-s", str(1 << 28), "-e", f"trace={','.join(FOLLOWED)}"], log)
    assert status == 0, "the work itself failed"
    return parse(log.read_text())


def kill(work: Callable[[], object], at: Call, log: Path) -> bool:
    """Do the work up to this call, and end it there; whether it came so far."""
    wanted = ["-e", f"trace={at.name}", "-e", f"inject={at.name}:signal=KILL:when={at.number}"]
    status = _traced(work, wanted, log)
    assert status in (0, -signal.SIGKILL), "the work itself failed"
    return status != 0


def parse(log: str) -> list[Call]:
    """The calls of strace's log. Only the first thread may change the disk: calls are counted by thread."""
    calls, begun, counts = [], {}, Counter[str]()
    first = log.split(maxsplit=1)[0] if log else ""
    for line in log.splitlines():
        if part := _BEGUN.match(line):
            begun[part[1]] = part[3]
            continue
        if whole := _ENDED.match(line):
            thread, name, rest, result = whole.groups()
            rest = begun.pop(thread) + rest
        elif whole := _LINE.match(line):
            thread, name, rest, result = whole.groups()
        else:
            continue
        if thread != first:
            assert name not in CHANGING or name in ("write", "writev"), f"another thread of the work calls {name}"
            continue
        counts[name] += 1
        arguments = tuple(_ARGUMENT.findall(rest))
        calls.append(Call(name, counts[name], arguments, -1 if result == "?" else int(result)))
    return calls


def _traced(work: Callable[[], object], options: list[str], log: Path) -> int:
    """Do the work in a child under strace; how the child ended."""
    child = os.fork()
    if child == 0:
        _be_traced(work)
    os.waitid(os.P_PID, child, os.WSTOPPED | os.WNOWAIT)
    command = ["strace", "-f", "-qq", "-e", "signal=none", "-o", str(log), *options, "-p", str(child)]
    strace = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        _await_tracer(child, strace)
        os.kill(child, signal.SIGCONT)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        strace.wait()
    finally:
        strace.kill()
        strace.wait()
        assert strace.stderr is not None
        strace.stderr.close()
    return status


def _be_traced(work: Callable[[], object]) -> None:
    logging.disable()
    try:
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(0.01)  # strace takes hold, then asks for every call: it must have asked
        work()
        os._exit(0)
    except BaseException:  # noqa: BLE001 - the end of a process
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def _await_tracer(child: int, strace: subprocess.Popen[bytes]) -> None:
    """Wait until strace holds the stopped child."""
    deadline = time.monotonic() + ATTACH_S
    while "\nTracerPid:\t0\n" in Path(f"/proc/{child}/status").read_text():
        if strace.poll() is not None or time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            assert strace.stderr is not None
            raise Unavailable(f"strace did not take hold ({strace.stderr.read().decode().strip()})")
        time.sleep(0.001)

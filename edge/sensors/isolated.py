"""A sensor in a process of its own, which can be killed whatever its driver does."""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from edge.config import SensorSettings
from edge.framing import receive, send, unnamed_memory
from edge.sensors.shared import CREDIT, DECODER, MEMORY_BYTES, Begin, Ended, Failed, Run, taken
from lineside.clock import Clock, offset_ns
from lineside.errors import SensorError
from lineside.windows import Samples

START_S = 15.0  # a process begins, a camera's library is loaded, the device is opened, all on a slow disk
GRACE_S = 3.0  # beyond the stall that the sensor itself notices
END_S = 2.0


class Isolated:
    """Runs another sensor (edge.sensors.table.open_sensor) in a child process and gives on what it captures.

    A child that is silent for `stall_s` and a little more is killed. Raises SensorError with the child's own words, or
    with what became of it. `close` kills it.
    """

    def __init__(self, settings: SensorSettings, clock: Clock, origin_ns: int, base: Path) -> None:
        self._settings, self._clock, self._origin_ns, self._base = settings, clock, origin_ns, base
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        self.dropped = 0

    @property
    def pid(self) -> int | None:
        """The child's process number; None before it begins."""
        return self._process.pid if self._process else None

    def samples(self) -> Iterator[Samples]:
        handle = unnamed_memory("lineside-samples", MEMORY_BYTES)
        ours, theirs = socket.socketpair()
        with contextlib.closing(ours), mmap.mmap(handle, MEMORY_BYTES) as memory:
            with contextlib.closing(theirs):
                command = [sys.executable, "-m", "edge.sensors.child", str(handle), str(theirs.fileno())]
                try:
                    self._process = subprocess.Popen(
                        command, stdin=subprocess.DEVNULL, pass_fds=(handle, theirs.fileno())
                    )
                except OSError as error:
                    mend = "free memory or processes"
                    raise self._error(f"cannot begin its capture process ({error.strerror})", mend) from error
                finally:
                    os.close(handle)
            try:
                yield from self._received(ours, memory)
            finally:
                self._end()

    def close(self) -> None:
        self._closed = True
        if self._process is not None:
            self._process.kill()

    def _received(self, link: socket.socket, memory: mmap.mmap) -> Iterator[Samples]:
        stall_s = self._settings.stall_s
        link.settimeout(2 * stall_s + START_S)
        try:
            send(link, Begin(self._settings, str(self._base), self._origin_ns, offset_ns(self._clock)))
            while not self._closed:
                message = receive(link, DECODER)
                if isinstance(message, Run):
                    samples = taken(memory, message, self._settings)
                    with contextlib.suppress(BrokenPipeError):  # it has ended: its last words come next
                        link.sendall(CREDIT)
                    self.dropped = message.dropped
                    link.settimeout(stall_s + GRACE_S)
                    yield samples
                elif isinstance(message, Failed):
                    raise self._error(message.reason, message.mend)
                elif isinstance(message, Ended):
                    return
        except TimeoutError:
            told = f"its capture process gave nothing for {link.gettimeout():g} s and was killed"
            raise self._error(told, "its driver hangs: check cable and power; it is opened again") from None
        except (EOFError, OSError, ValueError) as error:
            if not self._closed:
                raise self._error(self._ending(), "see the log; it begins again by itself") from error

    def _error(self, reason: str, mend: str) -> SensorError:
        return SensorError(self._settings.name, reason, mend)

    def _ending(self) -> str:
        """What became of the child."""
        assert self._process is not None
        try:
            code = self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            return "its capture process closed its line"
        return f"its capture process ended ({f'signal {-code}' if code < 0 else f'exit {code}'})"

    def _end(self) -> None:
        """Kill the child and wait, but not for ever: one that hangs in the kernel is reaped when it comes out."""
        assert self._process is not None
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)

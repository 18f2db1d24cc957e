"""An encoder in a process of its own, which can be killed whatever its runtime does.

The child is `python -m edge.encoder_child`. Windows and what comes of them lie in memory that both share; requests
alternate with answers, each within a time limit.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge.framing import receive, send, unnamed_memory
from edge.runtimes import Place, Runtime
from lineside.errors import ReleaseError

MEMORY_BYTES = 64_000_000  # what is asked and what comes of it; pages that are never used cost nothing
END_S = 2.0
AGAIN = "see the log; choose another [device] runtime if it stays so"


class Begin(msgspec.Struct, frozen=True, tag=True):
    """What a child is to do: prepare a file (`make`) and end, or open a session and answer."""

    runtime: str
    place: Place
    make: bool


class Progress(msgspec.Struct, frozen=True, tag=True):
    """How far it has come."""

    told: str


class Ready(msgspec.Struct, frozen=True, tag=True):
    """It has prepared, or opened: what really executes, and how many windows it takes at once."""

    provider: str = ""
    batch: int = 1


class Array(msgspec.Struct, frozen=True, array_like=True):
    """Where an array lies in the memory."""

    place: int
    shape: tuple[int, ...]
    dtype: str

    def of(self, memory: mmap.mmap) -> NDArray[Any]:
        """A copy of it. Raises ValueError when it does not fit the memory."""
        kind, count = np.dtype(self.dtype), int(np.prod(self.shape))
        if min(self.place, *self.shape) < 0 or self.place + count * kind.itemsize > len(memory):
            raise ValueError(f"an array beyond the memory: {self}")
        return np.frombuffer(memory, kind, count, self.place).reshape(self.shape).copy()


class Ask(msgspec.Struct, frozen=True, tag=True):
    """A batch of windows, and which outputs are wanted."""

    window: Array
    wanted: tuple[str, ...]


class Answer(msgspec.Struct, frozen=True, tag=True):
    """The outputs."""

    made: tuple[Array, ...]


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The child raised ReleaseError (check `runtime`) with these words, or could not run the windows."""

    reason: str
    mend: str


ToChild = Begin | Ask
FromChild = Progress | Ready | Answer | Failed
TO_CHILD: msgspec.msgpack.Decoder[ToChild] = msgspec.msgpack.Decoder(ToChild)
FROM_CHILD: msgspec.msgpack.Decoder[FromChild] = msgspec.msgpack.Decoder(FromChild)
T = TypeVar("T", bound=msgspec.Struct)


def put(memory: mmap.mmap, arrays: Sequence[NDArray[Any]]) -> tuple[Array, ...]:
    """Lay arrays into the memory, one behind the other. Raises ValueError when they do not fit."""
    at, laid = 0, []
    for array in arrays:
        if at + array.nbytes > len(memory):
            raise ValueError(f"{array.nbytes} bytes do not fit into {len(memory)}")
        memory[at : at + array.nbytes] = np.ascontiguousarray(array).tobytes()
        laid.append(Array(at, array.shape, array.dtype.str))
        at += array.nbytes
    return tuple(laid)


class EncoderProcess:
    """One child. Whatever it does, each call ends within its time limit, or raises ReleaseError (check `runtime`).

    `name` is the encoder's, for errors. The child ends with the last reference to this; one thread at a time uses it.
    """

    def __init__(self, name: str, runtime: Runtime, place: Place) -> None:
        self._name, self._runtime, self._place = name, runtime, place
        handle = unnamed_memory("lineside-encoder", MEMORY_BYTES)
        self._link, theirs = socket.socketpair()
        self._memory = mmap.mmap(handle, MEMORY_BYTES)
        command = [sys.executable, "-m", "edge.encoder_child", str(handle), str(theirs.fileno())]
        try:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(handle, theirs.fileno()))
        except OSError as error:
            self._link.close()
            raise self._error(f"its process cannot begin ({error.strerror})", "free memory or processes") from error
        finally:
            os.close(handle)
            theirs.close()
        self._finalizer = weakref.finalize(self, _end, self._process, self._link)

    @property
    def pid(self) -> int:
        """The child's process number."""
        return self._process.pid

    def make(self, tell: Callable[[str], None]) -> None:
        """Let it prepare the file, and end."""
        try:
            self._request(Begin(self._runtime.name, self._place, make=True), Ready, self._runtime.patience_s, tell)
        finally:
            self.end()

    def open(self, patience_s: float) -> Ready:
        """Let it open a session."""
        return self._request(Begin(self._runtime.name, self._place, make=False), Ready, patience_s)

    def run(self, wanted: Sequence[str], window: NDArray[Any], patience_s: float) -> list[NDArray[Any]]:
        """The outputs of one batch. Raises ValueError for one that is too large for the memory."""
        ask = Ask(put(self._memory, [window])[0], tuple(wanted))
        answer = self._request(ask, Answer, patience_s)
        return [array.of(self._memory) for array in answer.made]

    def end(self) -> None:
        """Kill it and wait, but not for ever: one that hangs in the kernel is reaped when it comes out."""
        self._finalizer()

    def _request(
        self, message: ToChild, kind: type[T], patience_s: float, tell: Callable[[str], None] = lambda _: None
    ) -> T:
        until = monotonic() + patience_s
        try:
            self._link.settimeout(patience_s)
            send(self._link, message)
            while isinstance(answer := receive(self._link, FROM_CHILD), Progress):
                tell(answer.told)
                self._link.settimeout(max(0.001, until - monotonic()))
        except TimeoutError:
            self.end()
            raise self._error(f"its process gave no answer for {patience_s:g} s and was killed", AGAIN) from None
        except (EOFError, OSError, ValueError) as error:
            told = self._ending()
            self.end()
            raise self._error(told, AGAIN) from error
        if isinstance(answer, Failed):
            raise self._error(answer.reason, answer.mend)
        if not isinstance(answer, kind):
            self.end()
            raise self._error(f"its process answered {type(answer).__name__}, not {kind.__name__}", AGAIN)
        return answer

    def _ending(self) -> str:
        """What became of the child."""
        try:
            code = self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            return "its process closed its line"
        return f"its process ended ({f'signal {-code}' if code < 0 else f'exit {code}'})"

    def _error(self, reason: str, mend: str) -> ReleaseError:
        return ReleaseError("runtime", self._name, reason, mend)


def _end(process: subprocess.Popen[bytes], link: socket.socket) -> None:
    link.close()
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(END_S)

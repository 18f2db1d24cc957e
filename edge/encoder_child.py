"""An encoder's process: prepares one file, or answers for it until the agent is gone. `python -m edge.encoder_child`.

It is killed without asking when no answer comes: whatever hangs or crashes in a runtime does so here.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import signal
import socket
import sys

from edge.encoder_process import (
    MEMORY_BYTES,
    TO_CHILD,
    Answer,
    Ask,
    Begin,
    Failed,
    FromChild,
    Progress,
    Ready,
    put,
)
from edge.framing import receive, send
from edge.runtimes import RUNTIMES, Opened, Runtime
from lineside.errors import ReleaseError

BUILDING_NICENESS = 10  # an engine takes minutes of all cores: the line is judged meanwhile


def main() -> None:
    """Begin as told on the socket that the two arguments, descriptors of memory and socket, name."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches us too, but the agent decides
    memory = mmap.mmap(int(sys.argv[1]), MEMORY_BYTES)
    link = socket.socket(fileno=int(sys.argv[2]))
    begin = receive(link, TO_CHILD)
    assert isinstance(begin, Begin)
    runtime = RUNTIMES[begin.runtime]
    try:
        if begin.make:
            _make(runtime, begin, link)
        else:
            _serve(runtime.open(begin.place), link, memory)
    except ReleaseError as error:
        send(link, _failed(error))


def _failed(error: ReleaseError) -> Failed:
    return Failed(error.told, error.mend)


def _make(runtime: Runtime, begin: Begin, link: socket.socket) -> None:
    with contextlib.suppress(OSError):  # where that is not allowed it is only less polite
        os.nice(BUILDING_NICENESS)
    runtime.make(begin.place, lambda told: send(link, Progress(told)))
    send(link, Ready())


def _serve(opened: Opened, link: socket.socket, memory: mmap.mmap) -> None:
    send(link, Ready(opened.provider, opened.batch))
    while True:
        ask = receive(link, TO_CHILD)
        assert isinstance(ask, Ask)
        send(link, _answer(opened, ask, memory))


def _answer(opened: Opened, ask: Ask, memory: mmap.mmap) -> FromChild:
    try:
        return Answer(put(memory, opened.run(ask.wanted, {"window": ask.window.of(memory)})))
    except ReleaseError as error:
        return _failed(error)


if __name__ == "__main__":
    code = 0
    try:
        main()
    except (OSError, EOFError):
        pass  # the agent is gone, or needs us no more
    except Exception:
        logging.exception("an encoder's process failed")
        code = 1
    sys.stderr.flush()
    os._exit(code)  # what hangs in a driver would keep an ordinary exit waiting

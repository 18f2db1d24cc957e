"""Processes of our own: a restart is one, and runtimes that started threads cannot be forked again."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import logging
import os
import signal
import socketserver
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, told to nobody."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass


def in_child(work: Callable[[], str]) -> str:
    """What the work gives, or its error as a sentence."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        logging.disable()
        try:
            told = work()
        except BaseException as error:  # noqa: BLE001 - told to the parent
            at = traceback.extract_tb(error.__traceback__)[-1]
            told = f"{type(error).__name__} in {Path(at.filename).name}:{at.lineno}: {error}"
        os.write(writing, json.dumps(told[:2000]).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return str(json.loads(said)) if said else "the process died"


def done_in_child(work: Callable[[], object]) -> None:
    """Do the work. Raises AssertionError with its error."""

    def through() -> str:
        work()
        return ""

    if told := in_child(through):
        raise AssertionError(told)


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a web server on a folder."""
    handler = functools.partial(Quiet, directory=str(folder))
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        child = os.fork()
        if child == 0:
            server.serve_forever()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)

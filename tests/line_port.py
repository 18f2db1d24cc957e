"""Ports for what tests start: two workers never look at the same ones, nor does the system give these to anybody."""

import contextlib
import itertools
import os
import socket

BLOCK = 1_000
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
FIRST = 20_000 + BLOCK * WORKER  # below those that are given to who asks for any: ip_local_port_range of ip(7)
NUMBERS = itertools.count(os.getpid())


def free_port() -> int:
    """A TCP port on loopback that nobody listens on now, another one each time."""
    while True:
        port = FIRST + next(NUMBERS) % BLOCK
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port

"""Tells the service manager what edge.watchdog decides: sd_notify(3) over a datagram socket, without a dependency."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Iterable, Mapping

from edge.watchdog import Signs, Watchdog
from lineside.clock import NS, Clock

log = logging.getLogger(__name__)
LOOKS = 10  # in a watchdog period
LOOK_S = 1.0  # at the latest, for the status


def send(address: str, lines: Iterable[str]) -> None:
    """One datagram to NOTIFY_SOCKET; `@` begins the name of an abstract socket. Raises OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.connect(f"\0{address[1:]}" if address.startswith("@") else address)
        sender.sendall("\n".join(lines).encode())


def watchdog_ns(environment: Mapping[str, str]) -> int:
    """How often the service manager wants a sign of life from this process; 0: not at all."""
    ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(environment.get("WATCHDOG_USEC", "0")) * 1000 if ours else 0


def keep_told(signs: Callable[[], Signs], environment: Mapping[str, str], clock: Clock, stop: threading.Event) -> None:
    """Tell the service manager how the process is until `stop` is set, in a thread of its own; returns at once.

    Nothing happens where there is no service manager. A process that hangs is not fed, and ended by SIGABRT.
    """
    if address := environment.get("NOTIFY_SOCKET", ""):
        watchdog = Watchdog(watchdog_ns(environment))
        threading.Thread(target=_tell, args=(address, watchdog, signs, clock, stop), name="notify", daemon=True).start()


def _tell(address: str, watchdog: Watchdog, signs: Callable[[], Signs], clock: Clock, stop: threading.Event) -> None:
    every_s = min(LOOK_S, watchdog.period_ns / NS / LOOKS or LOOK_S)
    while not stop.wait(every_s):
        late = watchdog.late
        watchdog, lines = watchdog.look(signs(), clock.now_ns())
        if watchdog.late and not late:
            log.error("no progress in %s: the watchdog is about to end the process", ", ".join(watchdog.late))
        if lines:
            _try(address, lines)
    _try(address, ["STOPPING=1"])


def _try(address: str, lines: list[str]) -> None:
    """The judging goes on where the service manager cannot be reached: it will then act by itself."""
    try:
        send(address, lines)
    except OSError as error:
        log.warning("the service manager cannot be told %s (%s)", lines[0], error)

"""How long somebody who gave wrong passwords has to wait: doubled with each one, by name and by address. Pure."""

from __future__ import annotations

import threading
from collections import OrderedDict

from lineside.clock import NS, Clock

FREE, LONGEST_S, REMEMBERED = 5, 900.0, 10_000


class Throttle:
    """After FREE wrong passwords for a name, or from an address, each further one doubles the wait, from one second.

    At most REMEMBERED names and addresses are kept: the oldest give way.

    >>> from lineside.clock import SimulatedClock
    >>> throttle = Throttle(SimulatedClock(0))
    >>> for _ in range(7):
    ...     throttle.failed("mori", "10.0.0.7")
    >>> throttle.wait_s("mori", "10.0.0.9"), throttle.wait_s("sato", "10.0.0.9")
    (2.0, 0.0)
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._wrong: OrderedDict[tuple[str, str], tuple[int, int]] = OrderedDict()
        self._lock = threading.Lock()

    def wait_s(self, name: str, address: str) -> float:
        """Seconds until the next try of this name from this address counts; 0 when it may be now."""
        with self._lock:
            until = max(self._wrong.get(key, (0, 0))[1] for key in _keys(name, address))
        return max(0.0, (until - self._clock.now_ns()) / NS)

    def failed(self, name: str, address: str) -> None:
        """A wrong password."""
        with self._lock:
            for key in _keys(name, address):
                count = self._wrong.pop(key, (0, 0))[0] + 1
                wait_s = min(2.0 ** (count - FREE - 1), LONGEST_S) if count > FREE else 0.0
                self._wrong[key] = (count, self._clock.now_ns() + round(wait_s * NS))
            while len(self._wrong) > REMEMBERED:
                self._wrong.popitem(last=False)

    def well(self, name: str, address: str) -> None:
        """The right password: nothing is held against either any more."""
        with self._lock:
            for key in _keys(name, address):
                self._wrong.pop(key, None)


def _keys(name: str, address: str) -> tuple[tuple[str, str], tuple[str, str]]:
    return ("name", name), ("address", address)

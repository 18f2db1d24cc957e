"""What the service manager is told of a process: that it is ready, how it is, and that every stage of it still moves.

Pure: signs of life and the clock go in, lines of sd_notify(3) come out (edge.notify sends them).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

EXTEND_S = 30  # how much longer the start may take, counted from each time that we ask


@dataclass(frozen=True)
class Signs:
    """Signs of life: how often each stage has gone round, and what to show in `systemctl status`.

    `busy` are stages in work that is known to take long, for a time that is bounded by whoever declares it (an engine
    that is built, a recording that is learned from, a sensor that is opened): such a stage need not go round. `rounds`
    leaves out a stage that has come to its end.
    """

    rounds: Mapping[str, int]
    busy: frozenset[str] = frozenset()
    status: str = ""


@dataclass(frozen=True)
class Watchdog:
    """What the service manager knows. `period_ns` is its WATCHDOG_USEC, 0 where it asks for no signs of life.

    A process is ready once every stage went round at least once. From then on it is fed when half of the period has
    passed and each stage moved since it was fed last: one that only says that it lives proves nothing. `late` are the
    stages for which the process will be ended soon.

    >>> NS = 1_000_000_000
    >>> dog, told = Watchdog(period_ns=20 * NS).look(Signs({"judge": 1}), now_ns=0)
    >>> told
    ['READY=1']
    >>> dog.look(Signs({"judge": 2}), now_ns=10 * NS)[1]
    ['WATCHDOG=1']
    >>> dog, told = dog.look(Signs({"judge": 1}), now_ns=15 * NS)
    >>> told, dog.late
    ([], ('judge',))
    """

    period_ns: int
    ready: bool = False
    status: str = ""
    late: tuple[str, ...] = ()
    fed_ns: int = 0
    _rounds: Mapping[str, int] = field(default_factory=dict)

    def look(self, signs: Signs, now_ns: int) -> tuple[Watchdog, list[str]]:
        """Take the signs of life of this moment; give what is known from now on, and the lines to send."""
        known, lines = self, []
        if (status := " ".join(signs.status.split())) != self.status:  # a line of it must not become one of ours
            known, lines = replace(known, status=status), [f"STATUS={status}"]
        if not self.ready and all(signs.rounds.values()):
            return known._fed(signs, now_ns), ["READY=1", *lines]
        if not self.ready:
            return known, [*lines, f"EXTEND_TIMEOUT_USEC={EXTEND_S * 1_000_000}"] if signs.busy else lines
        waited_ns, still = now_ns - self.fed_ns, self._still(signs)
        if self.period_ns and 2 * waited_ns >= self.period_ns and not still:
            return known._fed(signs, now_ns), [*lines, "WATCHDOG=1"]
        return replace(known, late=still if self.period_ns and 4 * waited_ns >= 3 * self.period_ns else ()), lines

    def _still(self, signs: Signs) -> tuple[str, ...]:
        """The stages that did not move since the process was fed."""
        unmoved = (stage for stage, rounds in signs.rounds.items() if rounds == self._rounds.get(stage))
        return tuple(stage for stage in unmoved if stage not in signs.busy)

    def _fed(self, signs: Signs, now_ns: int) -> Watchdog:
        return replace(self, ready=True, late=(), fed_ns=now_ns, _rounds=dict(signs.rounds))

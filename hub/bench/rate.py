"""How many messages a second a hub takes, beside the plain consumer, in turns on the same broker."""

from __future__ import annotations

import statistics
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from hub.bench.line import Line, cpu_s, publish, running, sent
from hub.bench.publisher import Sent
from lineside.clock import Clock

DEVICES = 8


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """Medians over the turns; `ratio` is of the hub to the plain consumer, turn by turn.

    `hub_us` and `plain_us` are processor time a message, which hardly depends on what else the machine does.
    """

    messages: int
    turns: int
    hub_per_s: float
    plain_per_s: float
    ratio: float
    hub_us: float
    plain_us: float
    lost: int
    stored_twice: int


@dataclass(frozen=True)
class Run:
    """What publishers said, and the consumer's processor time in microseconds a message."""

    sent: Sent
    us: float

    @property
    def per_s(self) -> float:
        return self.sent.acknowledged / self.sent.seconds


def measure(messages: int, turns: int, folder: Path, clock: Clock, tell: Callable[[str], None]) -> Rate:
    """Each turn is `messages` messages to the hub and as many to the plain consumer, each with a new database."""
    pairs: list[tuple[Run, Run]] = []
    rows = 0
    for turn in range(turns):
        line = Line(folder / f"turn{turn}", DEVICES, clock)
        try:
            tell(f"turn {turn + 1} of {turns}: hub")
            hub = _run(line, line.hub(), messages)
            rows += line.stored()
            tell(f"turn {turn + 1} of {turns}: plain consumer")
            pairs.append((hub, _run(line, line.plain(line.folder / "plain.db"), messages)))
        finally:
            line.stop()
    acknowledged = sum(hub.sent.acknowledged for hub, _ in pairs)
    return Rate(
        messages=messages,
        turns=turns,
        hub_per_s=round(statistics.median(hub.per_s for hub, _ in pairs)),
        plain_per_s=round(statistics.median(plain.per_s for _, plain in pairs)),
        ratio=round(statistics.median(hub.per_s / plain.per_s for hub, plain in pairs), 2),
        hub_us=round(statistics.median(hub.us for hub, _ in pairs), 1),
        plain_us=round(statistics.median(plain.us for _, plain in pairs), 1),
        lost=sum(hub.sent.lost for hub, _ in pairs) + max(0, acknowledged - rows),
        stored_twice=max(0, rows - acknowledged),
    )


def _run(line: Line, consumer: subprocess.Popen[str], messages: int) -> Run:
    with running(consumer):
        before_s = cpu_s(consumer.pid)
        told = sent(publish(line.spec(messages // DEVICES)))
        return Run(told, (cpu_s(consumer.pid) - before_s) / max(1, told.acknowledged) * 1e6)

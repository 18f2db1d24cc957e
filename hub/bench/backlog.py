"""Devices that come back after days without a hub, beside devices that were never away."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import msgspec

from hub.bench.line import Line, publish, running, sent
from lineside.clock import Clock

LATE, LIVE = 40, 8
LIVE_PER_S = 1000.0
# As devices do it unless told otherwise ([outbox] window, drain_per_s, resend_s).
WINDOW, DRAIN_PER_S, RESEND_S = 512, 200.0, 5.0
PATIENCE_S = 3600.0


class Backlog(msgspec.Struct, frozen=True, kw_only=True):
    """How fast the old messages came in, and what the new ones waited for the hub's word meanwhile (milliseconds)."""

    rows: int
    seconds: float
    drained_per_s: float
    live_per_s: float
    times_live: float
    live_p50_ms: float
    live_p99_ms: float
    lost: int


def measure(rows: int, folder: Path, clock: Clock, tell: Callable[[str], None]) -> Backlog:
    """Forty devices send `rows` old messages at the pace of an outbox, eight send new ones, 1000 a second together."""
    line = Line(folder, LATE + LIVE, clock)
    try:
        with running(line.hub()):
            tell(f"draining {rows:,} rows")
            outbox = {"window": WINDOW, "resend_s": RESEND_S, "patience_s": PATIENCE_S}
            new_ones = line.spec(10**9, line.devices[LATE:])
            live = publish(msgspec.structs.replace(new_ones, rate=LIVE_PER_S / LIVE, **outbox))
            old_ones = line.spec(rows // LATE, line.devices[:LATE])
            drained = sent(publish(msgspec.structs.replace(old_ones, rate=DRAIN_PER_S, **outbox)))
            live.send_signal(signal.SIGTERM)
            new = sent(live)
            lost = drained.lost + new.lost
        lost += max(0, drained.acknowledged + new.acknowledged - line.stored())
    finally:
        line.stop()
    per_s, live_per_s = drained.acknowledged / drained.seconds, new.acknowledged / new.seconds
    return Backlog(
        rows=drained.acknowledged,
        seconds=drained.seconds,
        drained_per_s=round(per_s),
        live_per_s=round(live_per_s),
        times_live=round(per_s / live_per_s, 1),
        live_p50_ms=new.p50_ms,
        live_p99_ms=new.p99_ms,
        lost=lost,
    )

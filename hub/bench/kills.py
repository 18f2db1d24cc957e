"""kill -9 of the hub under load, again and again: what was acknowledged must be there, once."""

from __future__ import annotations

import contextlib
import random
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path

import msgspec

from hub.bench.line import Line, publish, running, sent
from lineside.clock import Clock

DEVICES = 4
PER_S = 2000.0
LIVES_S = (0.1, 1.0)  # how long a hub lives once it listens
PATIENCE_S = 7200.0


class Kills(msgspec.Struct, frozen=True, kw_only=True):
    """What stood in the database in the end, against what devices were told is in it."""

    kills: int
    acknowledged: int
    lost: int
    stored_twice: int
    resent: int
    integrity: str


def measure(kills: int, folder: Path, clock: Clock, tell: Callable[[str], None]) -> Kills:
    """Devices send throughout, and again what is not acknowledged within a second."""
    line, chance = Line(folder, DEVICES, clock), random.Random(8)
    spec = msgspec.structs.replace(line.spec(10**9), rate=PER_S / DEVICES, resend_s=1.0, patience_s=PATIENCE_S)
    try:
        devices = publish(spec)
        for number in range(kills):
            tell(f"kill {number + 1} of {kills}")
            hub = line.hub()
            clock.sleep(chance.uniform(*LIVES_S))
            hub.kill()
            hub.wait()
        with running(line.hub()):
            devices.send_signal(signal.SIGTERM)  # no more new ones
            told = sent(devices)
    finally:
        line.stop()
    with contextlib.closing(sqlite3.connect(line.database)) as database:
        integrity = database.execute("PRAGMA integrity_check").fetchone()[0]
        there = "SELECT count(*), count(DISTINCT device || '/' || epoch || '/' || seq) FROM scores"
        rows, distinct = database.execute(there).fetchone()
    return Kills(
        kills=kills,
        acknowledged=told.acknowledged,
        lost=told.lost + max(0, told.acknowledged - distinct),
        stored_twice=rows - distinct,
        resent=told.resent,
        integrity=integrity,
    )

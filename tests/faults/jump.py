"""Runs `lineside …` on a machine whose wall clock is set by some hours after a while: `tests.faults.jump HOURS ARGS…`.

Setting the real clock would strike everybody on this machine.
"""

from __future__ import annotations

import sys
import time

AFTER_S = 12.0

if __name__ == "__main__":
    hours, begun, real = float(sys.argv[1]), time.monotonic(), time.time_ns

    def jumped() -> int:
        """Nanoseconds since the epoch, as this machine would tell them."""
        return real() + (round(hours * 3_600e9) if time.monotonic() - begun > AFTER_S else 0)

    time.time_ns = jumped
    sys.argv = ["lineside", *sys.argv[2:]]
    from lineside.cli import main

    main()

"""What is left of the time that metadata was signed for. Pure: told at the plant, and by a device of what it saw last.

Signed metadata of The Update Framework says when it ends, not when it began; the plant adds for how long it was signed.
"""

from __future__ import annotations

from typing import Literal

FIELD = "x-lineside-days"  # beside `expires` in the signed part; other clients pass over it
WARN_SHARE = 0.5
ALARM_SHARE = 0.1
Level = Literal["fresh", "warning", "alarm"]


def level(left_days: float, whole_days: float) -> Level:
    """Half of its time gone is a warning, nine tenths of it (or all) an alarm.

    >>> level(4, 7), level(3, 7), level(0.5, 7), level(-1, 7)
    ('fresh', 'warning', 'alarm', 'alarm')
    """
    if left_days <= ALARM_SHARE * whole_days:
        return "alarm"
    return "warning" if left_days < WARN_SHARE * whole_days else "fresh"

"""The hours of the day in which a device may change its encoders."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

from lineside.clock import NS


@dataclass(frozen=True)
class Hours:
    """From `start` up to `end`, in minutes since midnight of the device's local time; over midnight where end <= start.

    >>> night = Hours.parse("22:00-05:00")
    >>> night.cover(23 * 60), night.cover(4 * 60 + 59), night.cover(5 * 60)
    (True, True, False)
    """

    start: int
    end: int

    @classmethod
    def parse(cls, text: str) -> Hours | None:
        """Hours as a person writes them; None for the whole day, which is "". Raises ValueError."""
        if not text:
            return None
        found = re.fullmatch(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)", text)
        if found is None:
            raise ValueError(f'{text!r} are no hours: write them as "22:00-05:00"')
        first, second, third, fourth = (int(part) for part in found.groups())
        return cls(first * 60 + second, third * 60 + fourth)

    def cover(self, minute: int) -> bool:
        """Whether this minute of a day is among them."""
        if self.start < self.end:
            return self.start <= minute < self.end
        return minute >= self.start or minute < self.end


def minute_of(time_ns: int) -> int:
    """Minutes since midnight, in the local time of this machine."""
    local = datetime.fromtimestamp(time_ns / NS).astimezone()
    return local.hour * 60 + local.minute

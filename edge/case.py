"""Which seconds of a station belong to which alarm, and what they are called. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import datetime, timezone

from edge.config import EvidenceSettings
from lineside.clock import NS
from lineside.messages import Alarm

LONGEST = 4  # times the seconds around one alarm: as long as a file may grow that several alarms share
LATE_NS = NS  # by which samples of one sensor may come after those of another


@dataclass(frozen=True)
class Case:
    """One evidence file: all that was captured from `start_ns` until `end_ns`."""

    name: str
    start_ns: int
    end_ns: int

    @classmethod
    def of(cls, alarm: Alarm, settings: EvidenceSettings) -> Case:
        """The seconds around an alarm that was raised just now, which says nothing of how long it lasts."""
        what = re.sub(r"[^\w.-]+", "-", f"{alarm.kind}-{alarm.subject}")[:40]
        start_ns = alarm.time_ns - round(settings.before_s * NS)
        return cls(f"{stamp(alarm.time_ns)}-{what}.mcap", start_ns, alarm.time_ns + round(settings.after_s * NS))

    def joined(self, alarm: Alarm, settings: EvidenceSettings) -> Case | None:
        """This case with the seconds around another alarm in it; None where it would grow too long by them."""
        other = Case.of(alarm, settings)
        end_ns = max(self.end_ns, other.end_ns)
        longest_ns = LONGEST * round((settings.before_s + settings.after_s) * NS)
        return replace(self, end_ns=end_ns) if end_ns - self.start_ns <= longest_ns else None

    def over(self, now_ns: int) -> bool:
        """Whether nothing more of these seconds is to come."""
        return now_ns >= self.end_ns + LATE_NS


def stamp(time_ns: int) -> str:
    """A moment as the beginning of a file's name, UTC, so that names sort by time.

    >>> stamp(1_700_000_000_250_000_000)
    '20231114T221320.250Z'
    """
    when = datetime.fromtimestamp(time_ns // NS, timezone.utc)
    return f"{when:%Y%m%dT%H%M%S}.{time_ns % NS // 1_000_000:03d}Z"

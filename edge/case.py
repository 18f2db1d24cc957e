"""Which seconds of a station belong to which alarm, and what they are called. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timezone

from edge.config import EvidenceSettings
from lineside.channels import Label
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


def labels(alarms: Iterable[Alarm], sensors: Iterable[str], start_ns: int, end_ns: int) -> list[Label]:
    """What the changes of alarms in a file say of its seconds: not normal, but not confirmed either.

    An alarm of one of `sensors` is of that sensor alone. What was not cleared in the file lasts to its end.
    """
    found: dict[str, Label] = {}
    for alarm in alarms:
        if alarm.key not in found:
            sensor = alarm.subject if alarm.subject in sensors else ""
            told = f"alarm: {alarm.kind} of {alarm.subject}"
            found[alarm.key] = Label(max(alarm.onset_ns, start_ns), end_ns, told, sensor, fault=True, confirmed=False)
        if alarm.state == "cleared":
            found[alarm.key] = _ended(found[alarm.key], alarm.time_ns)
    return list(found.values())


def _ended(label: Label, end_ns: int) -> Label:
    return Label(label.start_ns, max(label.start_ns, end_ns), label.label, label.sensor, label.fault, label.confirmed)

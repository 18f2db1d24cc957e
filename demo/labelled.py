"""Faults that a recording has labels for: which of them the demo waits for, and when the replay comes to them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from lineside.clock import NS
from lineside.recording import Label, Recording

LEAST_MOMENTS = 12  # of a fault that an alarm with hysteresis can answer to
CALM_S = 20.0  # of running between two faults, for the first one's alarm to clear
LEAD_S = 45.0  # of the recording before the first fault: the agent starts and commissions meanwhile
MOST_S = 180.0  # from the first fault to the last one that is waited for


@dataclass(frozen=True)
class Labelled:
    """The faults to wait for in a recording of `span_ns` (whole seconds) from `first_ns`, played in a loop."""

    faults: tuple[Label, ...] = ()
    first_ns: int = 0
    span_ns: int = NS

    @classmethod
    def of(cls, path: Path, hop_s: float) -> Labelled:
        """The first fault of each name that lasts long enough for an alarm and has calm before it."""
        recording = Recording(path)
        first_ns, last_ns = recording.span_ns()
        faults = _joined([label for label in recording.labels() if label.fault])
        calm = faults[:1] + [b for a, b in pairwise(faults) if b.start_ns - a.end_ns >= CALM_S * NS]
        found: dict[str, Label] = {}
        for fault in calm:
            if fault.end_ns - fault.start_ns >= LEAST_MOMENTS * hop_s * NS:
                found.setdefault(fault.label, fault)
        kept = list(found.values())
        soon = tuple(fault for fault in kept if fault.start_ns - kept[0].start_ns <= MOST_S * NS)
        return cls(soon, first_ns, max(1, (last_ns - first_ns) // NS) * NS)

    @property
    def from_s(self) -> float:
        """Seconds into the recording where the replay begins: before the first fault, round the loop if need be."""
        if not self.faults:
            return 0.0
        lead_ns = self.faults[0].start_ns - self.first_ns - round(LEAD_S * NS)
        return float(lead_ns % self.span_ns // NS)

    def next_ns(self, fault: Label, started_ns: int, now_ns: int) -> int:
        """When a fault begins next, by the clock of a device whose agent began to replay at `started_ns`."""
        begin_ns = self.first_ns + round(self.from_s * NS)
        shift_ns = -(-(started_ns - begin_ns) // NS) * NS
        first_pass = 0 if fault.start_ns >= begin_ns else 1
        passes = max(first_pass, -(-(now_ns - fault.start_ns - shift_ns) // self.span_ns))
        return fault.start_ns + shift_ns + passes * self.span_ns


def _joined(faults: list[Label]) -> list[Label]:
    """Labels of one fault that touch, as one."""
    joined: list[Label] = []
    for fault in faults:
        last = joined[-1] if joined else None
        if last and (last.label, last.sensor) == (fault.label, fault.sensor) and last.end_ns >= fault.start_ns:
            end_ns = max(last.end_ns, fault.end_ns)
            joined[-1] = Label(last.start_ns, end_ns, last.label, last.sensor, fault=True)
        else:
            joined.append(fault)
    return joined

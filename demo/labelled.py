"""Faults that a recording has labels for: which of them the demo waits for, and when the replay comes to them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lineside.clock import NS
from lineside.recording import Label, Recording, loop_span, replay_shift

LEAST_MOMENTS = 12  # of a fault that an alarm with hysteresis can answer to
CALM_S = 60.0  # of normal running around a fault: an alarm for weak evidence takes most of a minute to clear
LEAD_S = 45.0  # of the recording before the first fault: the agent starts and commissions meanwhile
MOST_S = 240.0  # from the first fault to the last one that is waited for


@dataclass(frozen=True)
class Labelled:
    """A recording of `span_ns` (whole seconds) from `first_ns`, played in a loop.

    `faults` are those to wait for, `times` all intervals (start, end) that some label calls faulty, none overlapping.
    """

    first_ns: int = 0
    span_ns: int = NS
    times: tuple[tuple[int, int], ...] = ()
    faults: tuple[Label, ...] = ()

    @classmethod
    def of(cls, path: Path, hop_s: float) -> Labelled:
        """The first fault of each name that lasts long enough for an alarm and has calm around it."""
        recording = Recording(path)
        first_ns, last_ns = recording.span_ns()
        span_ns = loop_span(first_ns, last_ns)
        labels = [
            Label(max(label.start_ns, first_ns), min(label.end_ns, first_ns + span_ns), label.label, label.sensor)
            for label in recording.labels()
            if label.fault and label.start_ns < min(label.end_ns, first_ns + span_ns) and label.end_ns > first_ns
        ]
        found: dict[str, Label] = {}
        for time in _union(labels, round(CALM_S * NS)):
            names = {(label.label, label.sensor) for label in labels if time[0] <= label.start_ns < time[1]}
            if len(names) == 1 and time[1] - time[0] >= LEAST_MOMENTS * hop_s * NS:
                ((name, sensor),) = names
                found.setdefault(name, Label(*time, name, sensor, fault=True))
        faults = list(found.values())
        soon = tuple(fault for fault in faults if fault.start_ns - faults[0].start_ns <= MOST_S * NS)
        return cls(first_ns, span_ns, tuple(_union(labels, 0)), soon)

    @property
    def normal_s(self) -> float:
        """Seconds of normal running."""
        return (self.span_ns - sum(end - start for start, end in self.times)) / NS

    def cut_s(self, share: float) -> float:
        """The second of the recording by which `share` of its normal running has passed."""
        left_ns, at_ns = round(share * self.normal_s * NS), self.first_ns
        for start, end in self.times:
            if at_ns + left_ns <= start:
                break
            left_ns, at_ns = left_ns - (start - at_ns), end
        return round((at_ns + left_ns - self.first_ns) / NS, 1)

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
        moved_ns = fault.start_ns + replay_shift(begin_ns, started_ns)
        first_pass = 0 if fault.start_ns >= begin_ns else 1
        return moved_ns + max(first_pass, -(-(now_ns - moved_ns) // self.span_ns)) * self.span_ns


def _union(labels: list[Label], gap_ns: int) -> list[tuple[int, int]]:
    """Intervals that the labels cover, in order; those less than `gap_ns` apart are one."""
    joined: list[tuple[int, int]] = []
    for label in sorted(labels, key=lambda label: label.start_ns):
        if joined and label.start_ns - joined[-1][1] <= gap_ns:
            joined[-1] = (joined[-1][0], max(joined[-1][1], label.end_ns))
        else:
            joined.append((label.start_ns, label.end_ns))
    return joined

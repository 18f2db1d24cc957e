"""When a frame was taken: by its driver, by its stream's own time, else by its arrival."""

from __future__ import annotations

from dataclasses import dataclass, field

from edge.sensors.timeline import Timeline
from lineside.clock import NS
from lineside.windows import Timing

AGE_NS = 2 * NS  # what a frame may take from a driver to us
MOST_PPM = 1000.0  # beyond that a stream's own time is made up (by a frame counter, say)


@dataclass
class Stamps:
    """Gives each frame of one source a time of ours; times rise, and are never after the frame's arrival.

    A V4L2 driver (`driver`) stamps frames on the machine's monotonic clock: their age is known. A stream's time is of a
    clock of its own, placed by its arrivals (edge.sensors.timeline); it is believed once it has gone like a clock for
    some time. Until then, and without any time of its own, a frame was taken `latency_ns` before it arrived.
    """

    driver: bool
    latency_ns: int = 0
    _line: Timeline = field(default_factory=Timeline)
    _own_ns: int = 0
    _last_ns: int = 0

    @property
    def timing(self) -> Timing | None:
        """How the stream's clock lies against ours; None while it has none that is believed."""
        timing = self._line.timing
        return timing if self._line.fitted and abs(timing.drift_ppm) <= MOST_PPM else None

    def place(self, own_ns: int, now_ns: int, monotonic_ns: int) -> int:
        """The time of a frame that came at `now_ns` on our clock, `monotonic_ns` on the machine's.

        `own_ns` is what its source stamped it with, 0 where it does not.
        """
        stamp_ns = min(self._placed(own_ns, now_ns, monotonic_ns), now_ns - self.latency_ns)
        self._own_ns = own_ns
        self._last_ns = max(stamp_ns, self._last_ns + 1)
        return self._last_ns

    def _placed(self, own_ns: int, now_ns: int, monotonic_ns: int) -> int:
        arrived_ns = now_ns - self.latency_ns
        if own_ns <= self._own_ns:  # it stands still or was set back: this frame has no time of its own
            return arrived_ns
        if self.driver:
            age_ns = monotonic_ns - own_ns
            return now_ns - age_ns if 0 <= age_ns < AGE_NS else arrived_ns
        stamp_ns, _ = self._line.place(own_ns, arrived_ns)
        return stamp_ns if self.timing else arrived_ns

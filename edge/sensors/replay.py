"""A sensor of a recording, played again as if it were live."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from edge.config import SensorSettings
from edge.sensors.pace import Pace
from lineside.clock import NS, Clock
from lineside.errors import RecordingError, SensorError
from lineside.recording import Recording, loop_span, replay_shift
from lineside.windows import Samples


class Replay:
    """One sensor of an MCAP recording at the pace of the clock.

    Stamps are moved by whole seconds (lineside.recording.replay_shift), and the recording's first sample (or the one at
    `from_s`) lies in the second from `origin_ns` on: sensors with one origin and one `from_s` stay aligned. With
    `loop`, each pass lasts the recording's whole seconds, and what is beyond them is left out: the joint has no hole.
    """

    def __init__(self, settings: SensorSettings, clock: Clock, origin_ns: int, base: Path) -> None:
        self._settings, self._origin_ns = settings, origin_ns
        self._path = base / settings.device
        self._recorded = settings.recorded or settings.name
        self._pace = Pace(clock)
        self.dropped = 0

    def samples(self) -> Iterator[Samples]:
        try:
            yield from self._played(Recording(self._path))
        except RecordingError as error:
            raise SensorError(self._settings.name, f"{error.thing} {error.reason}", error.mend) from error

    def close(self) -> None:
        self._pace.close()

    def _played(self, recording: Recording) -> Iterator[Samples]:
        first_ns, last_ns = recording.span_ns()
        span_ns = loop_span(first_ns, last_ns)
        end_ns = first_ns + span_ns if self._settings.loop else last_ns
        begin_ns = first_ns + round(self._settings.from_s * NS)
        if begin_ns >= end_ns:
            reason = (
                f"{self._path} lasts {(end_ns - first_ns) / NS:g} s, it cannot begin at {self._settings.from_s:g} s"
            )
            raise SensorError(self._settings.name, reason, "lower from_s in [[sensors]]")
        shift_ns = replay_shift(begin_ns, self._origin_ns)
        while not self._pace.closed:
            found = False
            for samples in recording.samples(self._recorded, begin_ns):
                found = True
                yield from self._paced(samples.between(begin_ns, end_ns), shift_ns)
                if self._pace.closed:
                    return
            if not found:
                raise self._absent(recording)
            if not self._settings.loop:
                return
            begin_ns, shift_ns = first_ns, shift_ns + span_ns

    def _paced(self, samples: Samples, shift_ns: int) -> Iterator[Samples]:
        moved = self._moved(samples, shift_ns)
        if len(moved.data) and self._pace.wait(moved.end_ns if moved.stamps_ns is None else moved.start_ns):
            yield moved

    def _moved(self, samples: Samples, shift_ns: int) -> Samples:
        if samples.modality != self._settings.modality:
            mend = f"set modality = {samples.modality!r}, or `recorded` to another sensor"
            raise SensorError(self._settings.name, f"{self._recorded} in {self._path} is a {samples.modality}", mend)
        stamps = None if samples.stamps_ns is None else samples.stamps_ns + shift_ns
        start_ns = samples.start_ns + shift_ns
        return replace(samples, sensor=self._settings.name, start_ns=start_ns, stamps_ns=stamps)

    def _absent(self, recording: Recording) -> SensorError:
        known = ", ".join(sorted(recording.about.sensors)) or "none"
        reason = f"{self._path} has no sensor {self._recorded!r}"
        return SensorError(self._settings.name, reason, f"set `recorded` to one of: {known}")

"""What the device keeps of its own senses: seconds around alarms, and everything where that is switched on."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from edge.bounded_folder import BoundedFolder
from edge.case import Case, stamp
from edge.config import DeviceConfig
from edge.ring import Ring
from lineside.channels import Block, blocks
from lineside.clock import NS, Clock
from lineside.errors import RecordingError
from lineside.messages import Alarm
from lineside.recording import About
from lineside.windows import Samples

log = logging.getLogger(__name__)
EVIDENCE, RECORDINGS = "evidence", "recordings"  # folders of state_dir
LATE_S = 5.0  # an alarm is told that much after its moment at most, while samples go on
ROLL_NS, ROLL_BYTES = 600 * NS, 256_000_000  # how long a recording of everything may grow before the next is begun
ROLL_SHARE = 4  # and which part of all that may be kept, so that the oldest part can go
AGAIN = 1.1  # times what is kept free: so much must be free before writing begins again
RETRY_NS = 5 * NS


def free_bytes(folder: Path) -> int:
    """What the disk of a folder has left for us."""
    return shutil.disk_usage(folder).free


class Archive:
    """Takes what happens, in its order, and writes it down; for one thread.

    `problem` says why nothing is written at present, empty while all is well. `recording` switches the recording of
    everything. The ring goes on while the disk refuses.
    """

    def __init__(
        self, config: DeviceConfig, state: Path, clock: Clock, free: Callable[[Path], int] = free_bytes
    ) -> None:
        settings = config.evidence
        about = About(
            station=config.device.station,
            source=config.device.id,
            sensors={sensor.name: sensor.modality for sensor in config.sensors},
            length_s=config.windows.length_s,
            hop_s=config.windows.hop_s,
        )
        self._around, self._keep_free = settings.around, config.keep_free_bytes
        self._state, self._clock, self._free = state, clock, free
        span_s = settings.before_s + config.windows.length_s + LATE_S
        self._ring = Ring(round(span_s * NS), round(settings.memory_mb * 1e6))
        self._cases = BoundedFolder(state / EVIDENCE, about, round(settings.max_mb * 1e6))
        self._all = BoundedFolder(state / RECORDINGS, about, round(settings.max_mb_all * 1e6))
        self._roll_bytes = min(ROLL_BYTES, round(settings.max_mb_all * 1e6 / ROLL_SHARE))
        self._case: Case | None = None
        self._said: list[Alarm] = []  # that stand in the case
        self._active: dict[str, Alarm] = {}
        self._began_ns = self._retry_ns = 0
        self._low = self._tidied = False
        self.recording = False
        self.problem = ""

    def take(self, samples: Samples) -> None:
        """The next run of samples of a sensor, as captured. Raises RecordingError for what cannot be encoded."""
        for made in blocks(samples, sound="flac"):
            if self._around:
                self._ring.push(made)
            self._write(partial(self._take, made))

    def hear(self, alarm: Alarm, case: Case | None) -> None:
        """The change of an alarm; it stands in `case`, which may be new, or longer than it was."""
        if case is not None:
            if self._case is None or case.name != self._case.name:
                self._write(self._cases.finish)
                self._said = [*self._active.values()]
            self._case = case
            self._said.append(alarm)
        if alarm.state == "cleared":
            self._active.pop(alarm.key, None)
        elif alarm.kind != "drift":  # drift stands until a person has looked, for days: not all of them are a fault
            self._active[alarm.key] = alarm
        self._write(partial(self._note, alarm))

    def close_case(self) -> None:
        """The seconds of the last case are over."""
        self._case = None
        self._write(self._cases.finish)

    def record(self, on: bool) -> None:
        """Switch the recording of everything."""
        self.recording = on
        self._write(self._all.finish)

    def look(self) -> None:
        """Notice a full disk, or one that is no longer full, while nothing happens."""
        self._write(lambda: None)

    def close(self) -> None:
        """Finish what is open, at the end."""
        self._write(self._finish)

    def _take(self, made: Block) -> None:
        case = self._case
        if case is not None and made.end_ns > case.start_ns and made.start_ns < case.end_ns:
            if not self._cases.name:
                self._begin_case(case)  # with this block, which the ring has already
            elif not self._cases.append(made):
                log.warning("evidence of %s is cut: [evidence] max_mb is too small for it", case.name)
                self._cases.finish()
                self._case = None
        if self.recording:
            self._record(made)

    def _begin_case(self, case: Case) -> None:
        """Open the case's file with what the ring has of it."""
        self._cases.begin(case.name, case.start_ns)
        for alarm in self._said:
            self._cases.note(alarm)
        for made in self._ring.within(case.start_ns, case.end_ns):
            self._cases.append(made)

    def _record(self, made: Block) -> None:
        full = self._all.bytes >= self._roll_bytes or made.start_ns >= self._began_ns + ROLL_NS
        if full or not self._all.name or not self._all.append(made):
            self._all.begin(f"{stamp(made.start_ns)}.mcap", made.start_ns)
            self._began_ns = made.start_ns
            for alarm in self._active.values():
                self._all.note(alarm)
            self._all.append(made)

    def _note(self, alarm: Alarm) -> None:
        if self._cases.name:
            self._cases.note(alarm)
        elif self._case is not None:
            self._begin_case(self._case)
        if self._all.name:
            self._all.note(alarm)

    def _finish(self) -> None:
        self._cases.finish()
        self._all.finish()

    def _write(self, work: Callable[[], None]) -> None:
        """Do it where the disk lets us; otherwise say why not, and try again with what comes later."""
        if self._clock.now_ns() < self._retry_ns:
            return
        try:
            if not self._has_room():
                return
            if not self._tidied:
                self._cases.tidy()
                self._all.tidy()
                self._tidied = True
            work()
            self.problem = ""
        except (OSError, RecordingError) as error:
            self._cases.abandon()
            self._all.abandon()
            self._retry_ns = self._clock.now_ns() + RETRY_NS
            self._tell(f"evidence: cannot be written ({error}); look at the disk of state_dir")

    def _has_room(self) -> bool:
        free = self._free(self._state)
        if free >= self._keep_free * (AGAIN if self._low else 1.0):
            self._low = False
            return True
        if not self._low:
            self._low = True
            self._finish()
        told = f"the disk has {free / 1e6:.0f} MB free, {self._keep_free / 1e6:.0f} MB are kept for alarms"
        self._tell(f"evidence: stopped, {told}; free the disk of state_dir")
        return False

    def _tell(self, problem: str) -> None:
        if not self.problem:
            log.error("%s", problem)
        self.problem = problem

"""What was seen and heard around alarms, kept on the device's own disk by a thread that judging never waits for."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import msgspec

from edge.archive import Archive, free_bytes
from edge.backlog import Backlog, Work
from edge.case import Case
from edge.config import DeviceConfig
from lineside.clock import NS, Clock
from lineside.errors import LinesideError
from lineside.files import write_atomic
from lineside.messages import Alarm, Message
from lineside.windows import Samples

log = logging.getLogger(__name__)
BACKLOG_BYTES = 64_000_000  # two seconds of a 720p camera: a disk that takes longer makes gaps in the evidence
TOLD_NS = 60 * NS  # for how long something that has passed stands in health


class Switch(msgspec.Struct, frozen=True):
    """What an operator said of recording everything, and what the device file said then; once it differs, it rules."""

    on: bool
    record_all: bool


class Evidence:
    """Give it every run of samples and every message, from one thread; it decides at once and writes later.

    `recording` is whether everything is recorded; `dropped` counts runs of samples that the thread was too slow for.
    """

    def __init__(
        self, config: DeviceConfig, state: Path, clock: Clock, free: Callable[[Path], int] = free_bytes
    ) -> None:
        self._config, self._settings, self._clock = config, config.evidence, clock
        self._switch = state / "record.json"
        self._archive = Archive(config, state, clock, free)
        self._backlog = Backlog(BACKLOG_BYTES)
        self._case: Case | None = None
        self._newest_ns = 0
        self._dropped_ns = self._failed_ns = -TOLD_NS
        self._failed = ""
        self.recording = self._switched()
        self._thread = threading.Thread(target=self._run, name="evidence", daemon=True)

    def start(self) -> None:
        """Begin to write; files that a killed process left are finished first."""
        self._put(partial(self._archive.record, self.recording))
        self._thread.start()

    def stop(self) -> None:
        """Finish the files, some seconds long at most."""
        self._backlog.end()
        self._thread.join(timeout=10)

    def take(self, samples: Samples) -> None:
        """One run of samples, as it is judged."""
        if not (self._settings.around or self.recording):
            return
        self._newest_ns = max(self._newest_ns, samples.end_ns)
        self._put(partial(self._archive.take, samples), samples.data.nbytes)
        self.tick(self._newest_ns)

    def tick(self, now_ns: int) -> None:
        """Let time pass, by the newest samples or, where none come, by the clock."""
        if self._case is not None and self._case.over(now_ns):
            self._case = None
            self._put(self._archive.close_case)

    def hear(self, messages: Iterable[Message]) -> list[Message]:
        """The messages, each raised alarm with the name of the file that keeps what was around it."""
        return [self._kept(message) if isinstance(message, Alarm) else message for message in messages]

    def record(self, on: bool) -> None:
        """Switch the recording of everything, until the next word or until record_all of the device file changes.

        Raises LinesideError where the device file does not allow it, OSError where it cannot be remembered.
        """
        if on and not self._settings.max_mb_all:
            raise LinesideError(
                self._config.device.id, "may not record everything", "set [evidence] max_mb_all above 0"
            )
        write_atomic(self._switch, msgspec.json.encode(Switch(on, self._settings.record_all)))
        self.recording = on
        self._put(partial(self._archive.record, on))

    @property
    def dropped(self) -> int:
        """Runs of samples that are missing from the evidence."""
        return self._backlog.dropped

    @property
    def problem(self) -> str:
        """Why evidence is not kept, or has gaps; empty while all is well."""
        now = self._clock.now_ns()
        if self._archive.problem:
            return self._archive.problem
        if now - self._failed_ns < TOLD_NS:
            return f"evidence: {self._failed}"
        if now - self._dropped_ns < TOLD_NS:
            return f"evidence: {self.dropped} runs of samples are missing in it; the disk or the machine is too slow"
        return ""

    def _kept(self, alarm: Alarm) -> Alarm:
        if not self._settings.around:
            self._put(partial(self._archive.hear, alarm, None))  # a recording of everything tells of it too
            return alarm
        if alarm.state == "raised":
            joined = self._case.joined(alarm, self._settings) if self._case else None
            self._case = joined or Case.of(alarm, self._settings)
        self._put(partial(self._archive.hear, alarm, self._case))
        if alarm.state != "raised" or self._archive.problem or self._case is None:
            return alarm
        return msgspec.structs.replace(alarm, recording=self._case.name)

    def _put(self, work: Work, size: int = 0) -> None:
        if not self._backlog.put(work, size):
            self._dropped_ns = self._clock.now_ns()

    def _switched(self) -> bool:
        said = self._settings.record_all
        try:
            switch = msgspec.json.decode(self._switch.read_bytes(), type=Switch)
        except FileNotFoundError:
            return said
        except (OSError, msgspec.DecodeError) as error:
            log.warning("%s: %s; the device file says whether everything is recorded", self._switch, error)
            return said
        return switch.on if switch.record_all == said and self._settings.max_mb_all else said

    def _run(self) -> None:
        while not self._backlog.done:
            self._do(self._backlog.take(1.0) or self._archive.look)
        self._do(self._archive.close)

    def _do(self, work: Work) -> None:
        try:
            work()
        except Exception as error:
            # the top of a thread: evidence of the next alarm must be kept whatever went wrong with this one
            if str(error) != self._failed:
                log.exception("evidence")
            self._failed, self._failed_ns = str(error), self._clock.now_ns()

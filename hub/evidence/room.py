"""The recordings of alarms that the hub has, those on their way, and why others are not here."""

from __future__ import annotations

import logging
import queue
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from hub.chore import Chore
from hub.evidence import fetch, safe, view
from hub.evidence.partial import Partial
from lineside.clock import NS, Clock
from lineside.errors import LinesideError, WireError
from lineside.evidence import NAME
from lineside.messages import Alarm
from lineside.plant import HubSettings

LOG = logging.getLogger("hub.evidence")
DAY_NS = 86_400 * NS
MOST_WAITING = 32
EVERY_S = 600.0
YOUNG_NS, AGAIN_S = 180 * NS, 4.0  # the device writes for some seconds after an alarm; so long we ask it again
Word = Literal["here", "coming", "asked", "none", "missing", "off"]


class Told(msgspec.Struct, frozen=True):
    """How a recording stands: `share` of it has come; `reason` says why it is not here, empty while nobody asked."""

    word: Word
    reason: str = ""
    share: float = 0.0


class Evidence(Chore):
    """One folder a device. Everything may be called from any thread; one recording is fetched at a time."""

    def __init__(
        self,
        settings: HubSettings,
        folder: Path,
        source: fetch.Source,
        presence: Callable[[str], str],
        clock: Clock,
        arrived: Callable[[str, str], None] = lambda _device, _recording: None,
    ) -> None:
        """`presence` gives a device's last word on its status topic; `arrived` is called after a recording came."""
        super().__init__()
        self._settings, self._folder, self._source, self._presence = settings, folder, source, presence
        self._clock, self._arrived = clock, arrived
        self._asked: queue.Queue[Alarm] = queue.Queue(MOST_WAITING)
        self._coming: dict[tuple[str, str], Partial | None] = {}
        self._refused: dict[tuple[str, str], str] = {}
        self._swept_ns = 0

    def path(self, device: str, recording: str) -> Path:
        """Where a recording lies, or would. Raises LinesideError for what is no name of one."""
        return place(self._folder, device, recording)

    def here(self, alarm: Alarm) -> Path | None:
        """The recording of an alarm, if the hub has it."""
        return found(self._folder, alarm)

    def told(self, alarm: Alarm) -> Told:
        """How the recording of an alarm stands."""
        if not alarm.recording:
            return Told("none", "the device keeps no recording of it ([evidence] before_s, after_s)")
        if self.here(alarm) is not None:
            return Told("here", share=1.0)
        place = (alarm.device, alarm.recording)
        if not self._settings.evidence:
            return Told("off", "this hub asks for no recordings ([hub] evidence)")
        if place in self._coming:
            partial = self._coming[place]
            return Told("coming" if partial else "asked", self._refused.get(place, ""), partial.share if partial else 0)
        return Told("missing", self._refused.get(place, ""))

    def ask(self, alarm: Alarm) -> None:
        """Have the device send the recording of an alarm. Raises LinesideError with the reason where that cannot be."""
        told = self.told(alarm)
        if told.word in ("none", "off"):
            raise LinesideError(alarm.key, told.reason, "the setting decides")
        if told.word != "missing":
            return
        self.path(alarm.device, alarm.recording)  # a device names files; only such names
        if (word := self._presence(alarm.device)) != "online":
            self._refused[alarm.device, alarm.recording] = f"{alarm.device} is {word or 'not known'} now"
            raise LinesideError(alarm.device, f"is {word or 'not known'} now", "ask again when it is online")
        try:
            self._coming[alarm.device, alarm.recording] = None
            self._asked.put_nowait(alarm)
        except queue.Full:
            del self._coming[alarm.device, alarm.recording]
            raise LinesideError("evidence", f"{MOST_WAITING} recordings are asked for", "ask again later") from None

    def sweep(self) -> None:
        """Forget what was kept long enough, and the oldest beyond the bound."""
        files = sorted((time_of(file), file) for file in self._folder.glob("*/*") if file.is_file())
        for cut in self._folder.glob(f"*/.*{view.MAKING}"):  # of a hub that was killed, or one that is being made
            if time_of(cut) < self._clock.now_ns() - 3600 * NS:
                shutil.rmtree(cut, ignore_errors=True)
        before_ns = self._clock.now_ns() - round(self._settings.keep_days.evidence * DAY_NS)
        room = round(self._settings.evidence_mb * 1e6) - sum(_size(file) for _, file in files)
        for time_ns, file in files:
            if time_ns >= before_ns and room >= 0:
                break
            room += _size(file)
            LOG.info("recording %s/%s goes", file.parent.name, file.name)
            file.unlink(missing_ok=True)
            shutil.rmtree(view.folder_of(file), ignore_errors=True)

    def turn(self) -> float:
        """Fetch what is asked for, or forget what is old; what `stop` cuts goes on when it is asked for again."""
        try:
            alarm = self._asked.get(timeout=0.5)
        except queue.Empty:
            self._sometimes()
            return 0.0
        try:
            self._fetch(alarm)
        finally:
            self._coming.pop((alarm.device, alarm.recording), None)
        return 0.0

    def _sometimes(self) -> None:
        if self._clock.now_ns() - self._swept_ns >= EVERY_S * NS:
            self._swept_ns = self._clock.now_ns()
            self._guarded(self.sweep)

    def _fetch(self, alarm: Alarm) -> None:
        """Until it is here, or the reason why not will not pass by itself."""
        place, path = (alarm.device, alarm.recording), self.path(alarm.device, alarm.recording)
        partial = Partial(path, alarm.device, round(self._settings.evidence_file_mb * 1e6))
        self._coming[place] = partial
        while not self.stopping.is_set():
            try:
                fetch.fetch(self._source, alarm.device, partial, alarm.recording, self.stopping.is_set)
                safe.check(path)
                self._refused.pop(place, None)
                self._guarded(self.sweep)
                self._guarded(lambda: self._arrived(*place))
                return
            except (LinesideError, OSError) as error:
                self._refused[place] = str(error)
                LOG.warning("recording %s of %s: %s", alarm.recording, alarm.device, error)
                young = self._clock.now_ns() - alarm.time_ns < YOUNG_NS
                if isinstance(error, WireError) or not young or self.stopping.wait(AGAIN_S):
                    return

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except (LinesideError, OSError) as error:
            LOG.error("%s", error)


def place(folder: Path, device: str, recording: str) -> Path:
    """Where a recording lies below `folder`. Raises LinesideError for names that a device may not give."""
    if not re.fullmatch(NAME, recording) or not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,62}", device):
        raise LinesideError(f"recording {recording[:80]!r}", "is no recording of an alarm", "see the alarm")
    return folder / device / recording


def found(folder: Path, alarm: Alarm) -> Path | None:
    """The recording of an alarm below `folder`, if it is there."""
    try:
        path = place(folder, alarm.device, alarm.recording)
    except LinesideError:
        return None
    return path if path.is_file() else None


def time_of(path: Path) -> int:
    """When it was last changed, ns; 0 where it has gone meanwhile."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _size(file: Path) -> int:
    """Bytes of a recording and of what was made of it to be shown."""
    return file.stat().st_size + sum(each.stat().st_size for each in view.folder_of(file).glob("*"))

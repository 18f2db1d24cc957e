"""The labelled set: recordings of alarms with what people said of them, in the form that training reads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from hub.evidence.safe import WILD
from hub.labels import Labels, Said
from lineside.errors import RecordingError
from lineside.evidence import INDEX, NORMAL, Labelled, labelled_in
from lineside.evidence import labels as spans
from lineside.files import make_folder, sync_folder, write_atomic
from lineside.messages import Alarm
from lineside.recording import Label, Recorder, Recording

FAULT = "fault"  # a real one of which nobody said what it was


class LabelledSet:
    """A folder of recordings, `INDEX` beside them; every change writes whole files."""

    def __init__(
        self, folder: Path, labels: Labels, alarm: Callable[[str], Alarm | None], here: Callable[[Alarm], Path | None]
    ) -> None:
        """`alarm` gives the first word of an alarm by key, `here` its recording where the hub has it."""
        self.folder, self._labels, self._alarm, self._here = folder, labels, alarm, here
        self._lock = threading.Lock()

    def rows(self) -> list[Labelled]:
        """All that people said and did not withdraw, oldest first, each with its recording in the folder."""
        latest = sorted(self._labels.latest().values(), key=lambda said: said.time_ns)
        known = {(row.key, row.recording): row for row in labelled_in(self.folder)}
        return [self._row(said, known) for said in latest]

    def renew(self, device: str, recording: str) -> None:
        """Write the recording anew, with what is said now of the alarms in it; one with no label goes.

        A label whose recording is not at the hub stands in the list alone. Raises RecordingError or OSError.
        """
        with self._lock:
            said = {key: each for (of, key), each in self._labels.latest().items() if of == device}
            alarms = {key: self._alarm(key) for key in said}
            mine = {key: said[key] for key, alarm in alarms.items() if alarm and alarm.recording == recording}
            out = self.folder / name(device, recording)
            source = next((path for key in mine if (told := alarms[key]) and (path := self._here(told))), None)
            make_folder(self.folder)
            if mine and (source or out.is_file()):
                write(source or out, out, mine)
            elif not mine:
                out.unlink(missing_ok=True)
            write_atomic(self.folder / INDEX, msgspec.json.format(msgspec.json.encode(self.rows()), indent=1) + b"\n")

    def renew_all(self) -> None:
        """As `renew`, for every recording of which anything is said. Raises RecordingError or OSError."""
        alarms = [alarm for said in self._labels.latest().values() if (alarm := self._alarm(said.key))]
        for device, recording in sorted({(alarm.device, alarm.recording) for alarm in alarms}):
            self.renew(device, recording)

    def _row(self, said: Said, known: Mapping[tuple[str, str], Labelled]) -> Labelled:
        alarm = self._alarm(said.key)
        row = Labelled(
            device=said.device,
            key=said.key,
            real=said.word == "real",
            kind=(said.kind or FAULT) if said.word == "real" else "",
            who=said.who,
            time_ns=said.time_ns,
            why=said.why,
        )
        if alarm is None:
            return row
        row = msgspec.structs.replace(row, alarm=alarm.kind, versions=alarm.versions, limits=alarm.limits)
        path = self.folder / name(said.device, alarm.recording)
        if not alarm.recording or not path.is_file():
            return row
        # What an alarm's seconds are never changes, and a set of years is not read anew for each label.
        span = known.get((said.key, path.name)) or _spans(Recording(path)).get(said.key)
        if span is None:
            return row
        return msgspec.structs.replace(row, recording=path.name, start_ns=span.start_ns, end_ns=span.end_ns)


def name(device: str, recording: str) -> str:
    """What a recording is called in the set, where those of all devices lie together.

    >>> name("edge-1", "20231114T221325.000Z-anomaly-press.mcap")
    'edge-1-20231114T221325.000Z-anomaly-press.mcap'
    """
    return f"{device}-{recording}"


def write(source: Path, out: Path, said: Mapping[str, Said]) -> None:
    """Copy a recording with the labels that people gave, confirmed, in place of what its alarms said by themselves.

    A real fault has its kind as label; what was not real is confirmed normal. An alarm of which nobody said anything
    stays unconfirmed. Raises RecordingError for a recording that cannot be read whole.
    """
    try:
        _write(source, out, said)
    except WILD as error:
        raise RecordingError(str(source), f"cannot be copied ({error})", "look at the device that sent it") from error


def _write(source: Path, out: Path, said: Mapping[str, Said]) -> None:
    recording = Recording(source)
    found = {key: _told(label, said[key]) if key in said else label for key, label in _spans(recording).items()}
    part = out.with_name(f".{out.name}.part")
    with Recorder(part, recording.about) as recorder:
        for made in recording.blocks():
            if made.schema != "lineside.Label":
                recorder.append(made)
        for label in found.values():
            recorder.label(label)
    if recording.problem:
        part.unlink()
        raise RecordingError(str(source), recording.problem, "ask the device for it again")
    os.replace(part, out)
    sync_folder(out.parent)


def _spans(recording: Recording) -> dict[str, Label]:
    """The seconds of each alarm in a recording, by key."""
    return spans(recording.alarms(), recording.about.sensors, *recording.span_ns())


def _told(label: Label, said: Said) -> Label:
    real = said.word == "real"
    return msgspec.structs.replace(label, label=(said.kind or FAULT) if real else NORMAL, fault=real, confirmed=True)

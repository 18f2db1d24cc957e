"""Conducts a rollout: listens to devices, keeps its record, and makes the signed repository follow it.

A change of the record is written first and the repository follows: what a kill leaves, the next command does (`heal`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from deploy import rollout
from deploy.repository import Repository
from lineside.clock import NS, Clock
from lineside.operator import Operator, Report
from lineside.pins import Pins
from lineside.rollout_progress import AWAY, Progress, Seen, engaged, progress
from lineside.rollout_record import Record
from lineside.rollout_records import Records
from lineside.targets import Candidate

LISTEN_S = 1.0
IDLE_S = 2.0
BACK_S = 60.0
RETAINED_S = 1.5  # after which what the broker had retained has come


class Row(msgspec.Struct, frozen=True):
    """How far one device is."""

    device: str
    progress: Progress
    told: str


@dataclass(frozen=True)
class Conductor:
    """What a rollout is conducted with; `devices` are the plant's."""

    devices: list[str]
    records: Records
    repository: Repository
    operator: Operator
    pins: Pins
    clock: Clock

    def seen(self, listen_s: float = LISTEN_S) -> dict[str, Seen]:
        """What devices say of themselves, after listening for `listen_s`."""
        return {device: see(self.pins, report) for device, report in self.operator.survey(listen_s).items()}

    def begin(self, record: Record) -> Record:
        """Open the first ring of a new rollout.

        Raises ReleaseError when its versions are refused, beside each other or beside what runs; then nothing is begun.
        """
        seen, now_ns = self.seen(RETAINED_S), self.clock.now_ns()
        record = rollout.look(rollout.begin(record, self.devices, now_ns), seen, self.devices, now_ns)
        with self.records.alone():
            self._follow(record)  # first, because it may be refused; an offer without a record is taken back (`heal`)
            self.records.write(record)
        return record

    def heal(self) -> None:
        """Finish what a command that was killed has left: the repository says what the record of its rollout says."""
        with self.records.alone():
            known = {record.rollout: record for record in self.records.all()}
            offered = {one.candidate.rollout for one in self.repository.pointed().values() if one.candidate}
            for name in offered - set(known):
                self.repository.settle(name, taken=False)
            for record in known.values():
                if record.rollout in offered or not record.ended:
                    self._follow(record)

    def change(self, name: str, how: Callable[[Record, int], Record]) -> Record:
        """Change a record by `how`, which gets it and the time; the repository follows."""
        with self.records.alone():
            before = self.records.read(name)
            after = how(before, self.clock.now_ns())
            if after != before:
                self.records.write(after)
            self._follow(after)
        return after

    def step(self, name: str, listen_s: float = LISTEN_S) -> Record:
        """One look at all devices and what follows from it."""
        seen = self.seen(listen_s)
        return self.change(name, lambda record, now_ns: rollout.look(record, seen, self.devices, now_ns))

    def run(self, name: str, until: Callable[[Record], bool], show: Callable[[Record, list[Row]], None]) -> Record:
        """Look again and again until the rollout is there or has ended; devices of an opened ring are told at once."""
        with Following(self, name) as following:
            record = following.look(RETAINED_S)
            while not (until(record) or record.ended):
                record = following.look()
                show(record, self.rows(record))
        return self.settled(record) if record.state == "aborted" else record

    def follow(self, stopped: Callable[[], bool], tell: Callable[[Record, str], None]) -> None:
        """Look at every rollout that is under way, those that begin later too, until `stopped`.

        `tell` gets each event of a record that came meanwhile, whoever brought it about.
        """
        following: dict[str, Following] = {}
        self.seen(RETAINED_S)
        try:
            while not stopped():
                for record in self.records.running():
                    if record.rollout not in following:
                        following[record.rollout] = Following(self, record.rollout)
                for name, one in list(following.items()):
                    record = one.look()
                    for text in one.news(record):
                        tell(record, text)
                    if record.ended:
                        following.pop(name).close()
                    if record.state == "aborted":
                        self.settled(record)
                if not following:
                    self.clock.sleep(IDLE_S)
        finally:
            for one in following.values():
                one.close()

    def settled(self, record: Record, wait_s: float = BACK_S) -> Record:
        """Tell devices that a rollout was aborted, and wait until those that are online have gone back.

        All that could have begun are told: one may have looked just before, and not have said so yet.
        """
        end_ns, seen = self.clock.now_ns() + round(wait_s * NS), self.seen()
        with self.told(record, [one for one in record.members(self.devices) if seen.get(one, AWAY).online]):
            while self._engaged(record, self.seen()) and self.clock.now_ns() < end_ns:
                pass
        return record

    def rows(self, record: Record) -> list[Row]:
        """How far each device is that the open rings take."""
        seen, now = self.seen(0.0), self.clock.now_ns()
        return [
            Row(device, *progress(record, device, seen.get(device, AWAY), now))
            for device in record.members(self.devices)
        ]

    def _follow(self, record: Record) -> None:
        """Make the repository say what the record says; nothing is signed when it does already."""
        offered = {modality: pointed.candidate for modality, pointed in self.repository.pointed().items()}
        ours = {modality for modality, one in offered.items() if one and one.rollout == record.rollout}
        if record.ended and ours:
            self.repository.settle(record.rollout, taken=record.state == "finished")
        elif not record.ended and not all(
            _says(record, modality, offered.get(modality)) for modality in record.versions
        ):
            self.repository.offer(record.versions, record.candidate())

    def to_tell(self, record: Record) -> list[str]:
        """Devices of the open rings that are there and do not have the version yet."""
        return [row.device for row in self.rows(record) if row.progress == "busy"] if record.state == "open" else []

    def told(self, record: Record, devices: list[str]) -> contextlib.AbstractContextManager[object]:
        """A request to look into the repository now, which stands while somebody waits for what comes of it."""
        seen = self.seen(0.0)
        asked = {device: {"modality": self._modality(record, seen.get(device, AWAY))} for device in devices}
        return self.operator.requested("update", asked)

    def _modality(self, record: Record, seen: Seen) -> str:
        """The modality to ask a device for: one that it has; those of one rollout are changed together."""
        mine = [modality for modality in sorted(record.versions) if modality in seen.encoders]
        return next(iter(mine), min(record.versions))

    def _engaged(self, record: Record, seen: dict[str, Seen]) -> bool:
        return any(engaged(record, seen.get(one, AWAY)) for one in record.members(self.devices))


def _says(record: Record, modality: str, offered: Candidate | None) -> bool:
    """Whether what stands signed is what the record says."""
    if offered is None or offered.version != record.versions[modality]:
        return False
    return msgspec.structs.replace(offered, version=0, targets={}) == record.candidate()


def see(pins: Pins, report: Report) -> Seen:
    """What counts of a device's report: a manifest that its own key has signed."""
    manifest = report.manifest
    refused = pins.problem(report.device, manifest) if manifest else "has sent no manifest yet"
    encoders = manifest.encoders if manifest and not refused else {}
    problems = {text.partition(":")[0]: text for text in (report.health.problems if report.health else [])}
    return Seen(report.status == "online", encoders, refused, problems)


class Following:
    """One rollout that is looked at again and again; devices of the ring that is open stand told, as long as it is."""

    def __init__(self, conductor: Conductor, name: str) -> None:
        self._conductor, self._name = conductor, name
        self._requests, self._asked = contextlib.ExitStack(), set[str]()
        first = conductor.records.read(name)
        self._place, self._heard = (first.ring, first.state), len(first.events) - 1

    def __enter__(self) -> Following:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def look(self, listen_s: float = LISTEN_S) -> Record:
        """One look, and a word to devices that are to have a look themselves."""
        record = self._conductor.step(self._name, listen_s)
        if (place := (record.ring, record.state)) != self._place:
            self.close()
            self._place = place
        new = [device for device in self._conductor.to_tell(record) if device not in self._asked]
        self._requests.enter_context(self._conductor.told(record, new))
        self._asked.update(new)
        return record

    def news(self, record: Record) -> list[str]:
        """What happened since this was asked before; the first time, how it stood when it was first looked at."""
        new, self._heard = record.events[self._heard :], len(record.events)
        return [event.text for event in new]

    def close(self) -> None:
        """Take the requests back."""
        self._requests.close()
        self._asked.clear()

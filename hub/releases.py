"""What runs where, and how far each rollout is: from devices' signed manifests and the records that deploy keeps.

The hub has no key: it shows what deploy does, and acts on devices' own disks only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hub.watch import Line, Station
from lineside.errors import LinesideError
from lineside.messages import EncoderHealth, Installed, Manifest
from lineside.rollout_progress import AWAY, Progress, Seen, progress
from lineside.rollout_record import Record
from lineside.rollout_records import Records

ENDED_SHOWN = 3

Doubt = Callable[[str, Manifest], str]


@dataclass(frozen=True)
class Runs:
    """One modality on one device by its manifest and its health; `doubt` says why the manifest is not believed."""

    device: str
    presence: str
    modality: str
    installed: Installed | None
    encoder: EncoderHealth | None
    doubt: str


@dataclass(frozen=True)
class Far:
    """How far one device is in a rollout."""

    device: str
    progress: Progress
    told: str


@dataclass(frozen=True)
class Rollout:
    """A rollout and the devices that its open rings take."""

    record: Record
    devices: tuple[Far, ...]


@dataclass(frozen=True)
class Releases:
    """Everything for one page; `trouble` is why the records of rollouts cannot be read."""

    runs: tuple[Runs, ...]
    rollouts: tuple[Rollout, ...]
    trouble: str = ""


def look(line: Line, manifests: Mapping[str, Manifest], doubt: Doubt, records: Records, now_ns: int) -> Releases:
    """Put together what is known now; rollouts under way first, then the latest that have ended."""
    stations = sorted(line.stations, key=lambda each: each.device)
    seen = {each.device: _seen(each, manifests.get(each.device), doubt) for each in stations}
    runs = [one for each in stations for one in _runs(each, manifests.get(each.device), seen[each.device].refused)]
    try:
        every = records.all()
    except LinesideError as error:
        return Releases(tuple(runs), (), str(error))
    ended = [record for record in every if record.ended][-ENDED_SHOWN:]
    shown = [*(record for record in every if not record.ended), *reversed(ended)]
    devices = [each.device for each in stations]
    return Releases(tuple(runs), tuple(_rollout(record, devices, seen, now_ns) for record in shown))


def latest(
    manifests: Callable[[str, int], Sequence[Manifest]], devices: Sequence[str], now_ns: int
) -> dict[str, Manifest]:
    """Each device's newest word on its encoders; what a clock that runs ahead has said of the future comes last."""
    found = {device: manifests(device, now_ns)[-1:] for device in devices}
    return {device: told[0] for device, told in found.items() if told}


def _rollout(record: Record, devices: Sequence[str], seen: Mapping[str, Seen], now_ns: int) -> Rollout:
    members = record.members(devices)
    return Rollout(record, tuple(Far(each, *progress(record, each, seen.get(each, AWAY), now_ns)) for each in members))


def _seen(station: Station, manifest: Manifest | None, doubt: Doubt) -> Seen:
    """As deploy's own look, of what the hub has stored."""
    refused = doubt(station.device, manifest) if manifest else "has sent no manifest yet"
    encoders = manifest.encoders if manifest and not refused else {}
    problems = {text.partition(":")[0]: text for text in (station.health.problems if station.health else [])}
    return Seen(station.presence == "online", encoders, refused, problems)


def _runs(station: Station, manifest: Manifest | None, doubt: str) -> list[Runs]:
    installed = manifest.encoders if manifest else {}
    encoders = station.health.encoders if station.health else {}
    return [
        Runs(station.device, station.presence, name, installed.get(name), encoders.get(name), doubt)
        for name in sorted({*installed, *encoders})
    ]

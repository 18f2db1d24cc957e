"""What ran when: the encoders of a device at one moment, from what it said of itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Protocol

import msgspec

from lineside.clock import NS
from lineside.errors import LinesideError
from lineside.messages import Alarm, Installed, Manifest


class Ran(msgspec.Struct, frozen=True, kw_only=True):
    """The encoder of one modality that a device ran at a moment: since when, and when it said so (its own clock, ns).

    `verified` is whether that is signed by the device's kept key; `doubt` says why not. `alarm_version` is what the
    alarm that was asked for says itself, "" without one.
    """

    device: str
    modality: str
    version: int
    sha256: str
    precision: str
    since_ns: int
    told_ns: int
    rollout: str
    verified: bool
    doubt: str
    alarm_version: str = ""

    @property
    def line(self) -> str:
        """The row for people."""
        alarm = f"; the alarm says version {self.alarm_version}" if self.alarm_version else ""
        name = f"{self.modality}-{self.version} {self.precision} {self.sha256}"
        return f"{self.device}  {name}  since {_time(self.since_ns)}; {self.doubt or 'verified'}{alarm}"


class Words(Protocol):
    """Where what devices said is kept (hub.store.Store)."""

    def manifests(self, device: str, at_ns: int) -> list[Manifest]: ...

    def alarm(self, key: str) -> Alarm | None: ...


Doubt = Callable[[str, Manifest], str]


def ran(device: str, manifests: Sequence[Manifest], at_ns: int, doubt: Doubt) -> list[Ran]:
    """What ran at `at_ns`, by modality, from all that a device said.

    Its last word before the moment counts, unless the first one after it says that something had run since earlier: a
    manifest is sent at a change, so it may come a moment after it. A doubted word never replaces a verified one.
    Raises LinesideError when nothing is known.
    """
    told = sorted(manifests, key=lambda one: (one.time_ns, one.epoch, one.seq))
    before = [one for one in told if one.time_ns <= at_ns][-1:]
    after = [one for one in told if one.time_ns > at_ns][:1]
    found: dict[str, Ran] = {}
    for manifest in [*before, *after]:
        doubted = doubt(device, manifest)
        for modality, one in manifest.encoders.items():
            row, known = _row(device, modality, manifest, one, doubted), found.get(modality)
            better = known is None or (one.since_ns >= known.since_ns and (row.verified or not known.verified))
            if one.since_ns <= at_ns and better:
                found[modality] = row
    if not found:
        first = f"its first word is of {_time(told[0].time_ns)}" if told else "it never sent a manifest"
        raise LinesideError(device, f"what ran at {_time(at_ns)} is not known: {first}", "ask for a later time")
    return [found[modality] for modality in sorted(found)]


def look_up(words: Words, doubt: Doubt, *, device: str = "", at_ns: int = 0, alarm: str = "") -> list[Ran]:
    """What ran on a device at a moment; or at an alarm's onset, beside the versions that the alarm itself says.

    Raises LinesideError when nothing is known, or no such alarm.
    """
    if not alarm:
        return ran(device, words.manifests(device, at_ns), at_ns, doubt)
    told = words.alarm(alarm)
    if told is None:
        raise LinesideError(alarm, "no such alarm is stored", "see the keys in /api/alarms")
    rows = ran(told.device, words.manifests(told.device, told.onset_ns), told.onset_ns, doubt)
    return [msgspec.structs.replace(row, alarm_version=told.versions.get(row.modality, "")) for row in rows]


def moment_ns(text: str) -> int:
    """A time as a person writes it, ISO 8601; without an offset it is this machine's own. Raises LinesideError.

    >>> moment_ns("2026-11-23T10:00Z")
    1795428000000000000
    """
    try:
        at = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError as error:
        raise LinesideError("--at", f"{text!r} is no time ({error})", "write it as 2026-11-23T10:00") from error
    return int(at.astimezone().timestamp()) * NS


def _row(device: str, modality: str, manifest: Manifest, one: Installed, doubted: str) -> Ran:
    return Ran(
        device=device,
        modality=modality,
        version=one.version,
        sha256=one.sha256,
        precision=one.precision,
        since_ns=one.since_ns,
        told_ns=manifest.time_ns,
        rollout=one.rollout,
        verified=not doubted,
        doubt=doubted,
    )


def _time(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns / NS).astimezone().isoformat(timespec="seconds")

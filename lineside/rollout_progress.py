"""How far a device is in a rollout, by what it says of itself. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from lineside.clock import NS
from lineside.messages import Installed
from lineside.rollout_record import Record

Progress = Literal["done", "busy", "away", "failed", "without"]


@dataclass(frozen=True)
class Seen:
    """What is known of a device now: `encoders` of its manifest where that is verified, else `refused` says why not.

    `problems` are those of its health, by subject (`mic0`).
    """

    online: bool = False
    encoders: Mapping[str, Installed] = field(default_factory=dict)
    refused: str = ""
    problems: Mapping[str, str] = field(default_factory=dict)


AWAY = Seen()


def progress(record: Record, device: str, seen: Seen, now_ns: int) -> tuple[Progress, str]:
    """How far a device is, and what there is to say of it; `without`: it has no such modality."""
    mine = {modality: one for modality, one in seen.encoders.items() if modality in record.versions}
    asked = [one for one in mine.values() if one.rollout == record.rollout]
    if failed := [one.reason or "failed" for one in asked if one.phase == "failed"]:
        return "failed", failed[0]
    if took(record, seen):
        return _watched(record, device, seen, now_ns)
    if not seen.online:
        return "away", "offline; it catches up when it comes back"
    if seen.encoders and not mine:
        return "without", f"has no {' or '.join(sorted(record.versions))}"
    return "busy", seen.refused or next((_phase(one) for one in asked if one.phase != "steady"), "not begun")


def took(record: Record, seen: Seen) -> bool:
    """Whether a device says that it runs the version for good, in each modality of the rollout that it has."""
    mine = {modality: one for modality, one in seen.encoders.items() if modality in record.versions}
    return bool(mine) and all(
        (one.rollout, one.phase) == (record.rollout, "steady")
        and one.version == one.candidate == record.versions[modality]
        for modality, one in mine.items()
    )


def engaged(record: Record, seen: Seen) -> bool:
    """Whether a device that is online runs the version of a rollout, or is on the way to it."""
    return seen.online and any(
        one.rollout == record.rollout
        and (one.version == record.versions.get(modality) or one.phase not in ("steady", "failed"))
        for modality, one in seen.encoders.items()
    )


def _phase(one: Installed) -> str:
    return f"{one.phase}{f': {one.reason}' if one.reason else ''}"


def _watched(record: Record, device: str, seen: Seen, now_ns: int) -> tuple[Progress, str]:
    """A device that has it is done, unless a problem that it did not have before has lasted."""
    lasting = record.policy.unwell_s * NS
    for subject, since_ns in record.unwell.get(device, {}).items():
        if now_ns - since_ns >= lasting:
            return "failed", f"unwell since it has it: {seen.problems.get(subject, subject)}"
    return "done", ""

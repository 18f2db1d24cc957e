"""The record of one rollout: what is brought, to whom in which rings, by what rules, and what has happened so far."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import msgspec

from lineside.plant import RolloutSettings
from lineside.targets import Candidate, Terms

State = Literal["open", "soaking", "approval", "paused", "finished", "aborted"]
ENDED = ("finished", "aborted")


class Ring(msgspec.Struct, frozen=True, kw_only=True):
    """Whom a ring takes, beside all rings before it: devices by name, and a percentage of all by lot."""

    devices: list[str] = []
    percent: float = 0.0


class Event(msgspec.Struct, frozen=True):
    """What happened in a rollout, and when."""

    time_ns: int
    text: str


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What decides over promotion and abort, as in lineside.plant.RolloutSettings; times in seconds."""

    approve: bool
    soak_s: float
    failures: float
    away: float
    ring_s: float
    patience_s: float
    unwell_s: float


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of one rollout: versions by modality, its rings, which of them is open (`ring`, from 0).

    `since_ns` is when the present state began (less what a pause took). `known` are the subjects of the problems that
    a device had before it had the version, `unwell` those that it has since, with the time that they were seen first.
    """

    rollout: str
    versions: dict[str, int]
    rings: list[Ring]
    policy: Policy
    terms: Terms
    state: State
    since_ns: int
    ring: int = 0
    paused_in: State = "open"
    paused_after_ns: int = 0
    reason: str = ""
    known: dict[str, list[str]] = {}
    unwell: dict[str, dict[str, int]] = {}
    events: list[Event] = []

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in ENDED

    @property
    def name(self) -> str:
        """What it brings, `camera-3 + microphone-2`."""
        return " + ".join(f"{modality}-{version}" for modality, version in sorted(self.versions.items()))

    def candidate(self, ring: int | None = None) -> Candidate:
        """What signed metadata is to say of it while a ring, by default the open one, is open; version and targets
        are each modality's own.
        """
        at = self.rings[self.ring if ring is None else ring]
        return Candidate(
            rollout=self.rollout,
            version=0,
            targets={},
            devices=at.devices,
            percent=at.percent,
            paused=self.state == "paused",
            terms=self.terms,
        )

    def members(self, devices: Collection[str], ring: int | None = None) -> list[str]:
        """The devices that the rings up to and with one, by default the open one, take."""
        candidate = self.candidate(ring)
        return [device for device in devices if candidate.takes(device)]

    def fresh(self, devices: Collection[str]) -> list[str]:
        """The devices that the open ring takes and no ring before it."""
        before = self.members(devices, self.ring - 1) if self.ring else []
        return [device for device in self.members(devices) if device not in before]


def policy(settings: RolloutSettings, approve: bool, soak_min: float) -> Policy:
    """The plant's policy, with what a rollout may say for itself."""
    return Policy(
        approve=approve,
        soak_s=soak_min * 60,
        failures=settings.failures,
        away=settings.away,
        ring_s=settings.ring_h * 3600,
        patience_s=settings.patience_h * 3600,
        unwell_s=settings.unwell_min * 60,
    )


def rings(canary: Sequence[str], percents: Sequence[float]) -> list[Ring]:
    """The canary's ring, where there is one, and one for each percentage; each keeps the devices of those before.

    >>> rings(["edge-1"], [50, 100])[0].devices, [ring.percent for ring in rings(["edge-1"], [50, 100])]
    (['edge-1'], [0.0, 50, 100])
    """
    named = list(canary)
    first = [Ring(devices=named)] if named else []
    return [*first, *(Ring(devices=named, percent=percent) for percent in percents)]

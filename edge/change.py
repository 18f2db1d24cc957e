"""How a device takes other encoders, phase by phase: what it has seen goes in, what it does next comes out. Pure.

    waiting → fetching → building → proving → shadow → probation → steady
       any of them, on a refusal, a breach, a cancel or its time limit → failed

Modalities of one rollout are one change: proven and switched together, and taken back together.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from lineside.clock import NS
from lineside.messages import Command, Phase
from lineside.targets import Terms

NEXT: dict[Phase, Phase] = {
    "waiting": "fetching",
    "fetching": "building",
    "building": "proving",
    "proving": "shadow",
    "shadow": "probation",
    "probation": "steady",
}
ENDED: tuple[Phase, ...] = ("steady", "failed")
MOST_STARTS = 3  # of the agent, while a change is in progress
Action = Literal["", "switch", "commit", "back"]


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What the signed repository wants a device to run for one modality.

    With a `rollout` it is that rollout's candidate and has to keep its `terms`; without one it is what all devices run.
    """

    modality: str
    version: int
    sha256: str
    target: str
    rollout: str = ""
    paused: bool = False
    terms: Terms = Terms()


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """Encoders on their way, by modality. `since_ns` is when the phase began, `reason` why it waits or failed.

    `starts` counts the starts of the agent after it had begun; `commands` are those who wait for its end. One that is
    `withdrawn` failed in nothing: the plant wants something else by now.
    """

    choices: dict[str, Choice]
    since_ns: int
    phase: Phase = "waiting"
    starts: int = 0
    reason: str = ""
    measured: dict[str, float] = {}
    commands: list[Command] = []
    withdrawn: bool = False

    @property
    def rollout(self) -> str:
        """The rollout that it belongs to; empty for what all devices run."""
        return next(iter(self.choices.values())).rollout

    @property
    def terms(self) -> Terms:
        """What it has to prove."""
        return next(iter(self.choices.values())).terms

    @property
    def paused(self) -> bool:
        """Whether it must not begin."""
        return any(choice.paused for choice in self.choices.values())


@dataclass(frozen=True)
class Waits:
    """The phase goes on. `held` by the plant or by the hour, its time limit does not run."""

    reason: str = ""
    held: bool = False


@dataclass(frozen=True)
class Done:
    """The phase has come to its end."""

    measured: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Broken:
    """It must not go on: refused, a limit exceeded, cancelled by a person, or `withdrawn` by the plant."""

    reason: str
    measured: Mapping[str, float] = field(default_factory=dict)
    withdrawn: bool = False


@dataclass(frozen=True)
class Stale:
    """What was proven is beside other encoders than those that run by now."""


Outcome = Waits | Done | Broken | Stale


def advance(change: Change, outcome: Outcome, now_ns: int) -> tuple[Change, Action]:
    """The change after what its phase came to, and what is to be done for it.

    `switch` puts the new encoders in use, `commit` keeps them, `back` puts those before in use again.

    >>> asked = Choice(modality="camera", version=2, sha256="ab", target="models/camera/camera-2.onnx")
    >>> change = Change(choices={"camera": asked}, since_ns=0, phase="shadow")
    >>> change, action = advance(change, Done({"anomalies": 0.0}), 5)
    >>> change.phase, action
    ('probation', 'switch')
    >>> change, action = advance(change, Waits("cam0 is out"), 5 + 4000 * NS)
    >>> change.phase, action, change.reason
    ('failed', 'back', 'probation took longer than 3600 s: cam0 is out')
    """
    if isinstance(outcome, Waits):
        late = not outcome.held and now_ns - change.since_ns > change.terms.patience_s * NS
        if late:
            told = f"{change.phase} took longer than {change.terms.patience_s:g} s"
            return _broken(change, Broken(f"{told}: {outcome.reason}" if outcome.reason else told), now_ns)
        since_ns = now_ns if outcome.held else change.since_ns
        return msgspec.structs.replace(change, reason=outcome.reason, since_ns=since_ns), ""
    if isinstance(outcome, Broken):
        return _broken(change, outcome, now_ns)
    if isinstance(outcome, Stale):
        return _enter(change, "fetching", now_ns), ""
    following = NEXT[change.phase]
    action: Action = {"probation": "switch", "steady": "commit"}.get(following, "")  # type: ignore[assignment]
    return _enter(change, following, now_ns, outcome.measured), action


def restarted(change: Change, now_ns: int) -> tuple[Change, Action]:
    """The change after the agent started anew: what was not in use yet begins again, probation begins anew.

    One during which the agent starts more than MOST_STARTS times is given up: its encoders may be what ends it.
    """
    if change.phase in ENDED:
        return change, ""
    if change.phase == "waiting":
        return msgspec.structs.replace(change, since_ns=now_ns), ""
    starts = change.starts + 1
    if starts > MOST_STARTS:
        told = f"the agent was started {starts} times during {change.phase}, limit {MOST_STARTS}"
        return _broken(change, Broken(told, change.measured), now_ns)
    phase: Phase = "probation" if change.phase == "probation" else "waiting"
    return msgspec.structs.replace(change, phase=phase, since_ns=now_ns, starts=starts, reason=""), ""


def _enter(change: Change, phase: Phase, now_ns: int, measured: Mapping[str, float] | None = None) -> Change:
    measured = change.measured | dict(measured or {})
    return msgspec.structs.replace(change, phase=phase, since_ns=now_ns, reason="", measured=measured)


def _broken(change: Change, broken: Broken, now_ns: int) -> tuple[Change, Action]:
    failed = _enter(change, "failed", now_ns, broken.measured)
    action: Action = "back" if change.phase == "probation" else ""
    return msgspec.structs.replace(failed, reason=broken.reason, withdrawn=broken.withdrawn), action


@dataclass(frozen=True)
class Running:
    """What runs for one modality, and what the device could go back to (SHA-256; empty: nothing)."""

    sha256: str
    previous: str = ""


@dataclass(frozen=True)
class Plan:
    """Modalities that go back to their other slot at once, and sets that are to be changed together, in order."""

    back: tuple[str, ...]
    sets: tuple[dict[str, Choice], ...]


def plan(
    choices: Mapping[str, Choice],
    running: Mapping[str, Running],
    declined: Mapping[str, str],
    asked: Collection[str] = (),
) -> Plan:
    """What follows from what the repository wants.

    What all devices run, and what ran here before, needs no proof again: after an abort or a step back the device goes
    there at once. `declined` is by SHA-256 the rollout under which it was; `asked` are modalities that a person asked
    for: then what was declined outside any rollout is tried again.

    >>> old, new = "aa", Choice(modality="camera", version=2, sha256="bb", target="", rollout="7f")
    >>> plan({"camera": new}, {"camera": Running(old)}, {}).sets == ({"camera": new},)
    True
    >>> plan({"camera": new}, {"camera": Running(old)}, {"bb": "7f"}).sets
    ()
    """
    wanted = {
        modality: choice
        for modality, choice in choices.items()
        if choice.sha256 != running[modality].sha256 and not declines(declined, choice, modality in asked)
    }
    back = tuple(m for m, choice in wanted.items() if not choice.rollout and choice.sha256 == running[m].previous)
    sets: dict[str, dict[str, Choice]] = {}
    for modality, choice in wanted.items():
        if modality not in back:
            sets.setdefault(choice.rollout, {})[modality] = choice
    return Plan(back, tuple(sets[rollout] for rollout in sorted(sets, reverse=True)))  # rollouts before what is ""


def declines(declined: Mapping[str, str], choice: Choice, asked: bool) -> bool:
    """Whether the device no more takes this by itself: a candidate until there is a new rollout of it."""
    under = declined.get(choice.sha256)
    if under is None:
        return False
    return under == choice.rollout if choice.rollout else not (asked and not under)


def still_wanted(change: Change, choices: Mapping[str, Choice]) -> tuple[Change, str]:
    """The change with what its candidates say now; and why it is cancelled, empty while all of it is still wanted.

    A rollout that came to its end meanwhile wants the same files, without terms: those that it began with hold.
    """
    known = dict(change.choices)
    for modality, choice in change.choices.items():
        now = choices.get(modality)
        if now is not None and now.sha256 != choice.sha256:
            return change, f"cancelled: {modality}-{choice.version} is no more what this device is to run"
        if now is not None and now.rollout == choice.rollout:
            known[modality] = now
    return msgspec.structs.replace(change, choices=known), ""

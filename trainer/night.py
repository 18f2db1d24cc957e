"""What a night decides, from what it found alone: is there enough to learn, from which stage on, and what proves it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from lineside.files import sha256
from lineside.fusion import MIN_MOMENTS
from lineside.targets import Pointer
from trainer.new_recordings import Found

FEWEST_TO_CERTIFY = 5 * MIN_MOMENTS  # a third of them teaches what is normal, and some have flags


@dataclass(frozen=True)
class Decision:
    """What to learn from and to certify on, or why not tonight."""

    learn: tuple[Found, ...] = ()
    certify_on: str = ""
    why_not: str = ""


def decide(new: Sequence[Found], minutes: Mapping[str, float], certify_on: str = "") -> Decision:
    """Whether what is new is enough for a stage: so many minutes of each named modality.

    Where nothing is given to certify on, the newest recording that has every modality and is long enough is held back
    for that (the next night learns from it); a single recording serves for both, judged by what its stage holds out.
    """
    if not new:
        return Decision(why_not="no recording is new")
    held, why_not = ("", "") if certify_on or len(new) == 1 else _held_back(new)
    learn = tuple(found for found in new if found.path != held)
    have = minutes_of(learn)
    for modality, wanted in minutes.items():
        if (there := have.get(modality, 0.0)) < wanted:
            beside = ", besides the recording to certify on" if held else ""
            return Decision(why_not=f"{there:.1f} new minutes of {modality}{beside}, {wanted:g} are wanted")
    return Decision(why_not=why_not) if why_not else Decision(learn, certify_on or held or new[0].path)


def minutes_of(recordings: Iterable[Found]) -> dict[str, float]:
    """Minutes by modality in all of them."""
    total: dict[str, float] = {}
    for found in recordings:
        for modality, minutes in found.minutes.items():
            total[modality] = round(total.get(modality, 0.0) + minutes, 2)
    return total


def _held_back(new: Sequence[Found]) -> tuple[str, str]:
    """The path to hold back, and why there is none."""
    every = {modality for found in new for modality, minutes in found.minutes.items() if minutes}
    fit = [found for found in new if found.moments >= FEWEST_TO_CERTIFY and all(found.minutes.get(m) for m in every)]
    if fit:
        return max(fit, key=lambda found: found.end_ns).path, ""
    told = f"no new recording has {', '.join(sorted(every))} for {FEWEST_TO_CERTIFY} moments, to certify on"
    return "", f"{told}; name one in certify_on"


def faulty(labelled: Iterable[Found]) -> str:
    """The newest recording that shows faults, before it any that is long enough to certify on; empty for none.

    Recordings of single alarms show some seconds of a fault each: they are judged one by one (trainer.alarms_again).
    """
    shown = [found for found in labelled if found.faults]
    return max(shown, key=lambda found: (found.moments >= FEWEST_TO_CERTIFY, found.end_ns)).path if shown else ""


def in_field(pointers: Mapping[str, Pointer], rows: Iterable[Mapping[str, object]]) -> set[int]:
    """Versions that a device may run beside a new one: what modalities point at, and what devices say they have.

    >>> on = Pointer(version=3, targets={}, history=[1, 2])
    >>> in_field({"camera": on}, [{"running": "2", "previous": "1"}, {"running": "", "previous": ""}])
    {1, 2, 3}
    """
    told = {str(row.get(name, "")) for row in rows for name in ("running", "previous")}
    return pointed_at(pointers) | {int(version) for version in told if version.isdecimal()}


def pointed_at(pointers: Mapping[str, Pointer]) -> set[int]:
    """Versions that modalities point at, or are on their way to."""
    on_way = {pointer.candidate.version for pointer in pointers.values() if pointer.candidate}
    return {pointer.version for pointer in pointers.values()} | on_way


def on_its_way(pointers: Mapping[str, Pointer]) -> str:
    """The rollout that is not at its end, in words; empty where there is none."""
    way = [f"{name}-{pointer.candidate.version}" for name, pointer in pointers.items() if pointer.candidate]
    return ", ".join(sorted(way))


def parent_of(good: Iterable[int], pointers: Mapping[str, Pointer]) -> int:
    """The stage to go on from: the newest good one that is in use; before anything is, the newest good one. 0: none.

    What was aborted or taken back by hand is no parent, and what it learned from counts as new again.
    """
    good = set(good)
    return max(good & pointed_at(pointers) or good, default=0)


def key_of(template: str, parent: int, learn: Iterable[Found]) -> str:
    """What stands for all that decides what comes out of a stage: the same again would come to the same."""
    said = (template, parent, [found.sha256 for found in learn])
    return sha256(msgspec.json.encode(said))[:16]

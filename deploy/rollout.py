"""A rollout, ring by ring: what its record says, what devices tell, and what follows from both. Pure.

    open ──► soaking ──► approval ──► (next ring) open …
                └─► the last ring's end: finished          paused ◄──► any of them; any of them ──► aborted

`open`: the devices of the ring are taking the version. `soaking`: they have it and are watched. `approval`: a person
is waited for. Each has a time limit, and `abort` ends each. The repository is made to follow the record.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import msgspec

from lineside.clock import NS
from lineside.errors import ReleaseError
from lineside.rollout_progress import AWAY, Progress, Seen, progress, took
from lineside.rollout_record import Event, Record, Ring, State

NAMED = 5  # devices that a sentence names


def begin(record: Record, devices: Collection[str], now_ns: int) -> Record:
    """A record whose first ring is open now; rings that would add none of the plant's devices are left out."""
    kept, before = [], set[str]()
    for number, ring in enumerate(record.rings):
        if added := set(record.members(devices, number)) - before:
            kept.append(ring)
            before |= added
    if not kept:
        raise ReleaseError("rollout", record.name, "its rings take no device of the plant", "give --percent or --all")
    return _into(msgspec.structs.replace(record, rings=kept), "open", now_ns, _opened(kept, 0))


def look(record: Record, seen: Mapping[str, Seen], devices: Collection[str], now_ns: int) -> Record:
    """The record after one look at all devices of the plant: as it was, a step further, or aborted with the reason."""
    if record.ended:
        return record
    record = _watch(record, seen, devices, now_ns)
    far = {one: progress(record, one, seen.get(one, AWAY), now_ns) for one in record.members(devices)}
    if breach := _breach(record, far, now_ns):
        return abort(record, breach, now_ns)
    if record.state == "open" and _complete(record, far, devices, now_ns):
        text = f"ring {record.ring + 1} has it, watched for {_span(record.policy.soak_s)}"
        record = _into(record, "soaking", now_ns, text)
    if record.state == "soaking" and _over(record, record.policy.soak_s, now_ns):
        return _soaked(record, now_ns)
    return record


def promote(record: Record, now_ns: int) -> Record:
    """A person's word that the next ring may come. Raises ReleaseError (check `rollout`) when it is not its turn."""
    if record.state not in ("approval", "soaking"):
        told = f"is {record.state} in ring {record.ring + 1} of {len(record.rings)}"
        raise ReleaseError("rollout", record.name, told, "see `lineside deploy rollout status`")
    return _next(record, now_ns)


def pause(record: Record, now_ns: int) -> Record:
    """No device begins until `resume`; those under way go on. Raises ReleaseError (check `rollout`) when it ended."""
    if record.state == "paused":
        return record
    _check_running(record)
    paused = msgspec.structs.replace(record, paused_in=record.state, paused_after_ns=now_ns - record.since_ns)
    return _into(paused, "paused", now_ns, "paused")


def resume(record: Record, now_ns: int) -> Record:
    """Go on where it was paused; the pause counts for no time limit. Raises ReleaseError (check `rollout`)."""
    if record.state != "paused":
        raise ReleaseError("rollout", record.name, f"is not paused but {record.state}", "nothing is to be done")
    return _into(record, record.paused_in, now_ns - record.paused_after_ns, "resumed", at_ns=now_ns)


def abort(record: Record, reason: str, now_ns: int) -> Record:
    """Take it back: devices return to what they ran before. Raises ReleaseError (check `rollout`) when it ended."""
    _check_running(record)
    return _into(msgspec.structs.replace(record, reason=reason), "aborted", now_ns, f"aborted: {reason}")


def _soaked(record: Record, now_ns: int) -> Record:
    if record.ring + 1 == len(record.rings):
        return _into(record, "finished", now_ns, "finished: every device is to run it")
    if record.policy.approve:
        return _into(record, "approval", now_ns, f"ring {record.ring + 1} is well, the next one waits for a person")
    return _next(record, now_ns)


def _next(record: Record, now_ns: int) -> Record:
    if record.ring + 1 == len(record.rings):
        return _into(record, "finished", now_ns, "finished: every device is to run it")
    ring = record.ring + 1
    return _into(msgspec.structs.replace(record, ring=ring), "open", now_ns, _opened(record.rings, ring))


def _into(record: Record, state: State, since_ns: int, text: str, at_ns: int | None = None) -> Record:
    event = Event(since_ns if at_ns is None else at_ns, text)
    return msgspec.structs.replace(record, state=state, since_ns=since_ns, events=[*record.events, event])


def _check_running(record: Record) -> None:
    if record.ended:
        raise ReleaseError("rollout", record.name, f"is {record.state} already", "start another one")


def _opened(those: Sequence[Ring], ring: int) -> str:
    whom = [*those[ring].devices, *([f"{those[ring].percent:g} %"] if those[ring].percent else [])]
    return f"ring {ring + 1} of {len(those)} opened: {', '.join(whom)}"


def _watch(record: Record, seen: Mapping[str, Seen], devices: Collection[str], now_ns: int) -> Record:
    """Note which problems devices have before they have the version, and since when they have others after it."""
    known, unwell = dict(record.known), {}
    for device in record.members(devices):
        now = seen.get(device, AWAY)
        if not took(record, now):
            known[device] = sorted(now.problems) if now.online else known.get(device, [])
        else:
            earlier = record.unwell.get(device, {})
            news = set(now.problems) - set(known.get(device, []))
            unwell[device] = {subject: earlier.get(subject, now_ns) for subject in sorted(news)}
    return msgspec.structs.replace(
        record,
        known={device: subjects for device, subjects in known.items() if subjects},
        unwell={device: subjects for device, subjects in unwell.items() if subjects},
    )


def _breach(record: Record, far: Mapping[str, tuple[Progress, str]], now_ns: int) -> str:
    """Why a rollout may not go on; empty when it may."""
    failed = [f"{device}: {why}" for device, (how, why) in far.items() if how == "failed"]
    late = _late(record, now_ns)
    if len(failed) > record.policy.failures * len(far):
        return f"{len(failed)} of {len(far)} devices failed ({_named(failed)})"
    if record.state in ("approval", "paused"):
        limit_s = record.policy.patience_s
        return f"{record.state} for more than {_span(limit_s)}" if _over(record, limit_s, now_ns) else ""
    busy = [f"{device}: {why}" for device, (how, why) in far.items() if how == "busy"]
    if late and len(failed) + len(busy) > record.policy.failures * len(far):
        return f"ring {record.ring + 1} was not done after {_span(record.policy.ring_s)} ({_named([*failed, *busy])})"
    if late and not any(how == "done" for how, _ in far.values()):
        return f"no device took it within {_span(record.policy.ring_s)}"
    return ""


def _complete(record: Record, far: Mapping[str, tuple[Progress, str]], devices: Collection[str], now_ns: int) -> bool:
    """Whether the open ring is done: somebody has it, nobody is at it and few enough are away, or time is up."""
    fresh = [far[device][0] for device in record.fresh(devices)]
    away_ok = fresh.count("away") <= math.floor(record.policy.away * len(fresh))
    settled = ("busy" not in fresh and away_ok) or _late(record, now_ns)
    return settled and any(how == "done" for how, _ in far.values())


def _late(record: Record, now_ns: int) -> bool:
    return record.state == "open" and _over(record, record.policy.ring_s, now_ns)


def _over(record: Record, seconds: float, now_ns: int) -> bool:
    return now_ns - record.since_ns >= seconds * NS


def _named(those: Sequence[str]) -> str:
    more = len(those) - NAMED
    return "; ".join(those[:NAMED]) + (f"; and {more} more" if more > 0 else "")


def _span(seconds: float) -> str:
    """A length of time for people.

    >>> _span(90), _span(5400), _span(604800)
    ('90 s', '90 min', '168 h')
    """
    if seconds < 600:
        return f"{seconds:g} s"
    return f"{seconds / 60:g} min" if seconds < 36_000 else f"{seconds / 3600:g} h"

"""Deltas to a new encoder file from those that devices may have, where they save something."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lineside import delta, targets
from lineside.files import sha256
from lineside.targets import Pointer

WORTH = 0.7  # of the whole file: above that a delta is not published
SAVES = 1 << 17  # bytes, at least: each one is a target more to sign and to keep, and a request more
BEFORE = 2


def in_field(pointer: Pointer | None) -> list[int]:
    """The versions of a modality that devices may run: pointed at, on their way, and the last ones before.

    >>> in_field(Pointer(version=4, targets={}, history=[1, 2, 3]))
    [4, 3, 2]
    """
    if pointer is None:
        return []
    on_its_way = [pointer.candidate.version] if pointer.candidate else []
    return list(dict.fromkeys([pointer.version, *on_its_way, *reversed(pointer.history[-BEFORE:])]))


def towards(name: str, new: bytes, bases: Iterable[bytes]) -> Mapping[str, bytes]:
    """The deltas to the encoder file of target `name` from each of `bases`, by target name."""
    made = {targets.delta_name(name, sha256(base)): delta.make(base, new) for base in bases if base != new}
    return {target: patch for target, patch in made.items() if len(patch) < min(WORTH * len(new), len(new) - SAVES)}

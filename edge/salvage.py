"""A damaged outbox file becomes a new one: what could be read of it, under a new epoch, with tombstones for the rest.

The numbers of the old epoch are not given again. What a damaged file says about itself may be old, and a message with a
number that the hub has seen would be taken for a repetition and lost without a word.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from edge import pages
from edge.shelf import SHIFT, About, Row, Shelf
from lineside import wire
from lineside.errors import WireError
from lineside.files import sync_folder
from lineside.messages import Tombstone
from lineside.ranges import Range, merge, subtract

RANGES = 4096  # most in one tombstone, some 70 kB: the hub refuses what is larger than wire.MAX_BYTES


@dataclass(frozen=True)
class Saved:
    """How many messages were saved, and how many are known to be lost."""

    rows: int
    lost: int


@dataclass
class Survey:
    """What a damaged file holds: epochs as far as they are told, numbers found, the newest time of storing."""

    abouts: dict[int, About] = field(default_factory=dict)
    numbers: dict[int, list[int]] = field(default_factory=dict)
    ran_ns: int = 0

    def epochs(self) -> list[int]:
        """All that were heard of, newest first."""
        return sorted({*self.abouts, *self.numbers}, reverse=True)

    def lost(self, epoch: int) -> list[Range]:
        """Numbers that were given and not found; those below `first_seq` the hub has acknowledged."""
        found = self.numbers.get(epoch, [])
        about = self.abouts.get(epoch) or About(epoch, last_seq=max(found), first_seq=min(found))
        first, last = min([about.first_seq, *found]), max([about.last_seq, *found])
        return subtract([(first, last)], merge((seq, seq) for seq in found)) if first <= last else []


def tombstones(
    device: str, ranges: Iterable[Range], reason: str, time_ns: int, of_epoch: int = 0
) -> Iterator[Tombstone]:
    """As many tombstones as these numbers need; none for none."""
    merged = merge(ranges)
    for at in range(0, len(merged), RANGES):
        part = merged[at : at + RANGES]
        yield Tombstone(device=device, ranges=part, reason=reason, time_ns=time_ns, of_epoch=of_epoch)


def rebuild(damaged: Path, new: Path, device: str, now_ns: int) -> Saved:
    """Write what can be read of `damaged` and its log to `new`, which is on disk at return.

    Raises OSError, sqlite3.Error.
    """
    new.unlink(missing_ok=True)
    survey = _survey(damaged)
    shelf = Shelf(new, build=True)
    try:
        with shelf.transaction():
            lost = _fill(shelf, damaged, survey, device, now_ns)
    finally:
        shelf.close()
    with new.open("rb") as file:
        os.fsync(file.fileno())
    return Saved(sum(map(len, survey.numbers.values())), lost)


def swap(path: Path, new: Path) -> Path:
    """Put the damaged file aside, in the place of an earlier one, and the new one in its place; where it lies now."""
    aside = path.with_name(path.stem + ".damaged" + path.suffix)
    for end in ("-wal", "-shm"):  # else SQLite would play the old log into the new file
        path.with_name(path.name + end).unlink(missing_ok=True)
    os.replace(path, aside)
    os.replace(new, path)
    sync_folder(path.parent)
    return aside


def _survey(damaged: Path) -> Survey:
    survey = Survey()
    numbers: dict[int, set[int]] = {}
    for found in pages.read(damaged):
        if isinstance(found, About):
            known = survey.abouts.get(found.epoch, found)
            survey.abouts[found.epoch] = max(known, found, key=lambda about: (about.last_seq, about.first_seq))
            survey.ran_ns = max(survey.ran_ns, found.ran_ns)
        elif (place := _place(found)) is not None:
            numbers.setdefault(place[0], set()).add(place[1])
            survey.ran_ns = max(survey.ran_ns, found.stored_ns)
    survey.numbers = {epoch: sorted(seqs) for epoch, seqs in numbers.items()}
    return survey


def _fill(shelf: Shelf, damaged: Path, survey: Survey, device: str, now_ns: int) -> int:
    """Rows, epochs and tombstones; how many messages are lost."""
    shifts = {epoch: (1 + i) * SHIFT for i, epoch in enumerate(survey.epochs())}
    for found in pages.read(damaged):
        if isinstance(found, Row) and (place := _place(found)) is not None:
            row = Row(place[1] - shifts[place[0]], found.kind, found.stored_ns, found.payload)
            shelf.add([row], replace=True)
    epoch, seq, count = max([now_ns, *(old + 1 for old in shifts)]), 0, 0
    for old, shift in shifts.items():
        lost, found_seqs = survey.lost(old), survey.numbers.get(old, [])
        count += sum(last - first + 1 for first, last in lost)
        last_seq = max([last for _, last in lost] + found_seqs, default=0)
        shelf.note(About(old, shift, last_seq, min(found_seqs, default=last_seq + 1), survey.ran_ns))
        for tombstone in tombstones(device, lost, "damaged", now_ns, of_epoch=old):
            seq += 1
            shelf.add([Row(seq, "tombstone", survey.ran_ns, wire.encode(wire.stamped(tombstone, epoch, seq)))])
    shelf.note(About(epoch, last_seq=seq, ran_ns=survey.ran_ns))
    return count


def _place(row: Row) -> tuple[int, int] | None:
    """Epoch and number that a message carries; None where it is no message of ours."""
    try:
        message = wire.decode(row.kind, row.payload)
    except WireError:
        return None
    return (message.epoch, message.seq) if 0 < message.seq <= SHIFT else None

"""Which of the encoders that a device holds may run together when it starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from edge.encoder import Encoder
from edge.ensemble import admit_all
from edge.slots import Slot
from lineside.errors import ReleaseError


@dataclass(frozen=True)
class Started:
    """Encoders by modality with their slots; `problem` says why they are not all the newest, empty when they are."""

    encoders: dict[str, Encoder]
    slots: dict[str, Slot]
    problem: str = ""


def newest(places: Mapping[str, Sequence[Slot]], load: Callable[[Slot], Encoder], window_s: float = 0.0) -> Started:
    """The mix with the fewest steps back that loads, passes its self-tests and is covered by a certificate.

    `places` are the slots to choose from by modality, the wanted one first: a power cut between the switches of a set,
    or a file that this runtime no more takes, leaves some that do not go together. `window_s` is as in `admit`. Raises
    the ReleaseError of the wanted mix when there is no other.
    """
    loaded: dict[Slot, Encoder | ReleaseError] = {}

    def ready(slot: Slot) -> Encoder:
        if slot not in loaded:
            try:
                loaded[slot] = load(slot)
            except ReleaseError as error:
                loaded[slot] = error
        found = loaded[slot]
        if isinstance(found, ReleaseError):
            raise found
        return found

    refused: list[ReleaseError] = []
    for chosen in sorted(product(*places.values()), key=lambda mix: _age(mix, places)):
        try:
            encoders = admit_all({slot.modality: ready(slot) for slot in chosen}, {}, window_s)
        except ReleaseError as error:
            refused.append(error)
            continue
        slots = {slot.modality: slot for slot in chosen}
        return Started(encoders, slots, _stepped_back(slots, places, refused))
    raise refused[0]


def _age(mix: Sequence[Slot], places: Mapping[str, Sequence[Slot]]) -> tuple[int, int]:
    """Steps back, and of as many the one that keeps what was installed last."""
    return sum(places[slot.modality].index(slot) for slot in mix), -max(slot.installed_ns for slot in mix)


def _stepped_back(slots: Mapping[str, Slot], places: Mapping[str, Sequence[Slot]], refused: list[ReleaseError]) -> str:
    older = [f"{m}-{slot.version}" for m, slot in slots.items() if slot != places[m][0]]
    return f"{refused[0]}; {', '.join(older)} of the other slot runs instead" if older else ""

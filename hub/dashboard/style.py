"""How things look: one table for modalities, one for alarm states; the colours themselves stand in assets/line.css."""

from __future__ import annotations

import functools
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

BUTTON = "#1d4ed8"
ASSETS = Path(__file__).parent / "assets"
SMALLEST_P = 1e-12
ROOM_FOR_WORDS = 30  # hundredths of a bar


@dataclass(frozen=True)
class Look:
    """An icon and a colour (charts cannot read the style sheet's variables)."""

    icon: str
    colour: str


MODALITIES: dict[str, Look] = {
    "camera": Look("videocam", "#3b8bee"),
    "microphone": Look("mic", "#f07c1b"),
    "series": Look("show_chart", "#27ab60"),
}
OTHER = "#7b8794"
# Further sensors of one modality keep its hue and grow paler.
PALER = ("", "b8", "80", "58")


@dataclass(frozen=True)
class EventLook:
    """How one of the four alarm states is shown; `text` is a phrase."""

    text: str
    icon: str
    tone: str
    solid: bool


EVENTS: dict[str, EventLook] = {
    "ACTIVE_UNACK": EventLook("active, not acknowledged", "notifications_active", "bad", solid=True),
    "ACTIVE_ACK": EventLook("active, acknowledged", "notifications", "bad", solid=False),
    "CLEARED_UNACK": EventLook("over, not acknowledged", "visibility", "warn", solid=False),
    "CLEARED_ACK": EventLook("over, acknowledged", "done_all", "off", solid=False),
}
CAUSES = {"sensor": "sensor at fault", "process": "process at fault", "undecided": "cause undecided"}
# Also phrases.
KINDS = {"anomaly": "monitor_heart", "drift": "trending_down", "sensor": "sensors_off", "device": "cloud_off"}


def colours(modalities: dict[str, str]) -> dict[str, str]:
    """A colour for each sensor of a `sensor -> modality` table, ordered by modality; those of none come last, grey.

    >>> colours({"mic0": "microphone", "cam0": "camera", "cam1": "camera"})
    {'cam0': '#3b8bee', 'cam1': '#3b8beeb8', 'mic0': '#f07c1b'}
    """
    chosen: dict[str, str] = {}
    for modality, look in MODALITIES.items():
        for index, sensor in enumerate(sorted(name for name, kind in modalities.items() if kind == modality)):
            chosen[sensor] = look.colour + PALER[min(index, len(PALER) - 1)]
    return {**chosen, **dict.fromkeys(sorted(set(modalities) - set(chosen)), OTHER)}


def modality_class(kind: str) -> str:
    """The style sheet's class for a modality."""
    return f"m-{kind}" if kind in MODALITIES else "m-other"


def log_p(p_value: float) -> float:
    """-log10 p, bounded: what pages call the score.

    >>> log_p(0.01), log_p(0.0)
    (2.0, 12.0)
    """
    return -math.log10(max(p_value, SMALLEST_P))


@functools.cache
def asset(name: str) -> str:
    """The address of a file of ours, another one when it has changed: browsers keep it for an hour."""
    digest = hashlib.sha256((ASSETS / name).read_bytes()).hexdigest()
    return f"/assets/{name}?{digest[:8]}"

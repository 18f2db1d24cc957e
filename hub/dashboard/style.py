"""How things look: one table for modalities, one for alarm states; the colours themselves stand in assets/line.css."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from lineside.clock import NS

BUTTON = "#2563eb"
ASSETS = Path(__file__).parent / "assets"


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
# Further sensors of one modality keep its hue and grow paler.
PALER = ("", "b8", "80", "58")


@dataclass(frozen=True)
class EventLook:
    """How one of the four alarm states is shown."""

    icon: str
    tone: str
    solid: bool


EVENTS: dict[str, EventLook] = {
    "ACTIVE_UNACK": EventLook("notifications_active", "bad", solid=True),
    "ACTIVE_ACK": EventLook("notifications", "bad", solid=False),
    "CLEARED_UNACK": EventLook("visibility", "warn", solid=False),
    "CLEARED_ACK": EventLook("done_all", "off", solid=False),
}
CAUSES = {"sensor": "sensor at fault", "process": "process at fault", "undecided": "cause undecided"}
KINDS = {"anomaly": "monitor_heart", "drift": "trending_down", "sensor": "sensors_off", "device": "cloud_off"}


def colours(modalities: dict[str, str]) -> dict[str, str]:
    """A colour for each sensor of a `sensor -> modality` table, ordered by modality.

    >>> colours({"mic0": "microphone", "cam0": "camera", "cam1": "camera"})
    {'cam0': '#3b8bee', 'cam1': '#3b8beeb8', 'mic0': '#f07c1b'}
    """
    chosen: dict[str, str] = {}
    for modality, look in MODALITIES.items():
        for index, sensor in enumerate(sorted(name for name, kind in modalities.items() if kind == modality)):
            chosen[sensor] = look.colour + PALER[min(index, len(PALER) - 1)]
    return chosen


def clock_text(time_ns: int) -> str:
    """Local time of day."""
    return datetime.fromtimestamp(time_ns / NS).strftime("%H:%M:%S")

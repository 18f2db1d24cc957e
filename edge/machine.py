"""What a Linux machine tells of itself without privileges: its clock, its temperatures and frequencies, who runs.

Each reading is empty or None where the machine does not tell. `root` stands for `/`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
UNSYNCHRONISED = 5  # TIME_ERROR of adjtimex(2)
TIMEX_LONGS = 32  # more than struct timex has
MAX_ERROR = 3  # its place in longs: modes, offset, freq, maxerror (microseconds)


@dataclass(frozen=True)
class Heat:
    """One thermal zone."""

    name: str
    celsius: float


@dataclass(frozen=True)
class Frequency:
    """A processor's or another part's clock, now and at most."""

    name: str
    now_hz: float
    most_hz: float


def synchronised() -> tuple[bool, float] | None:
    """Whether the kernel takes its clock to be synchronised, and how far off it may be at most, in seconds."""
    timex = (ctypes.c_long * TIMEX_LONGS)()
    try:
        state = ctypes.CDLL(None).adjtimex(timex)
    except (AttributeError, OSError):  # no Linux
        return None
    return None if state < 0 else (state != UNSYNCHRONISED, timex[MAX_ERROR] / 1e6)


def heats(root: Path = ROOT) -> list[Heat]:
    """Temperatures by zone (Documentation/driver-api/thermal/sysfs-api, `temp` in thousandths of a degree)."""
    found = []
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        if (value := _number(zone / "temp")) is not None:
            found.append(Heat(_text(zone / "type") or zone.name, value / 1000))
    return found


def frequencies(root: Path = ROOT) -> list[Frequency]:
    """Clocks of processors (cpufreq, kHz) and of what else scales (devfreq, Hz: Jetson's GPU and memory)."""
    found = []
    for folder in sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq")):
        now, most = _number(folder / "scaling_cur_freq"), _number(folder / "cpuinfo_max_freq")
        if now and most:
            found.append(Frequency(folder.parent.name, now * 1e3, most * 1e3))
    for folder in sorted((root / "sys/class/devfreq").glob("*")):
        now, most = _number(folder / "cur_freq"), _number(folder / "max_freq")
        if now and most:
            found.append(Frequency(folder.name, now, most))
    return found


def opened_by(path: Path, root: Path = ROOT) -> int | None:
    """A process that has a file open; of processes of other users only root can tell."""
    wanted = path.resolve()
    for folder in (root / "proc").glob("[0-9]*/fd"):
        with contextlib.suppress(OSError):  # it ended, or is somebody else's
            if any(os.readlink(link) == str(wanted) for link in folder.iterdir()):
                return int(folder.parent.name)
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _number(path: Path) -> float | None:
    try:
        return float(_text(path))
    except ValueError:
        return None

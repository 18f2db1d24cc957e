"""What stations say of their sensors, and of what they watch for besides."""

from __future__ import annotations

from collections.abc import Sequence

from nicegui import ui

from hub.dashboard.language import NONE, Language
from hub.dashboard.parts import Table, modality, said, tag
from hub.watch import Station
from lineside.messages import Health, SensorHealth


class Sensors:
    """Every sensor: what it is, how it is, and the mend when it is not well."""

    def __init__(self, t: Language, device: str = "") -> None:
        """`device`: all rows are of this one, which is not told again."""
        self._t, self._alone = t, bool(device)
        words = ["Sensor", "Device", "State", "Rate", "Clock", "Restarts", "Windows", "Lost samples", "Problem"]
        shown = [word for word in words if not (self._alone and word == "Device")]
        widths = f"minmax(150px, auto) {'auto ' * (len(shown) - 2)} minmax(180px, 2fr)"
        self._table = Table(t("Sensors"), [t(word) for word in shown], widths)

    def show(self, stations: Sequence[Station]) -> None:
        """Rebuild the table when something in it changed."""
        rows = [
            (station.device, station.health_live, name, sensor)
            for station in stations
            for name, sensor in sorted(station.health.sensors.items() if station.health else ())
        ]
        self._table.show(rows, self._row)

    def _row(self, device: str, live: bool, name: str, sensor: SensorHealth) -> None:
        t = self._t
        modality(sensor.modality, f"{name} ({t(sensor.modality)})")
        if not self._alone:
            ui.label(device)
        well = not sensor.flags and not sensor.problem
        flags = ", ".join(t(flag) for flag in sensor.flags) or t("problem")
        word, icon, tone = (t("ok"), "check", "good") if well else (flags, "warning", "warn")
        tag(*((word, icon, tone) if live else (t("not known now"), "cloud_off", "off")))
        for text in (_rate(t, sensor), _clock(t, sensor), t.number(sensor.restarts), t.number(sensor.windows)):
            ui.label(text).classes("l-mono")
        ui.label(t.number(sensor.dropped_samples)).classes("l-mono")
        said(t, sensor.problem or NONE, "l-soft" if well else "")


def _rate(t: Language, sensor: SensorHealth) -> str:
    return f"{t.number(sensor.rate_hz, 1)} Hz" if sensor.rate_hz else NONE


def _clock(t: Language, sensor: SensorHealth) -> str:
    """How far a sensor's own clock is off, and how fast it drifts."""
    if sensor.offset_ms is None:
        return NONE
    drift = f", {t.number(sensor.drift_ppm)} ppm" if sensor.drift_ppm is not None else ""
    return f"{t.number(sensor.offset_ms, 1)} ms{drift}"


class Watching:
    """What each device watches for besides: slow change, what its sensors say of late, which faults they would see."""

    WIDTHS = "auto minmax(140px, 1fr) auto minmax(200px, 2fr) minmax(160px, 2fr)"

    def __init__(self, t: Language) -> None:
        self._t = t
        words = ("Device", "Slow change", "Shares of evidence", "Faults that would be seen", "Problems")
        self._table = Table(t("Watching"), [t(word) for word in words], self.WIDTHS)

    def show(self, stations: Sequence[Station]) -> None:
        """Rebuild the table when something in it changed."""
        rows = [
            (each.device, each.health_live, each.health.drift, shares(self._t, each.health), seen, told)
            for each in stations
            if each.health is not None
            for seen in [tuple(each.health.sensitivity)]
            for told in [tuple(one for one in (each.health.degraded, *each.health.problems) if one)]
        ]
        self._table.show(rows, self._row)

    def _row(
        self, device: str, live: bool, drift: str, said_: str, seen: tuple[str, ...], problems: tuple[str, ...]
    ) -> None:
        t = self._t
        ui.label(device)
        said(t, drift or NONE) if live else ui.label(t("not known now"))
        ui.label(said_ or NONE).classes("l-mono")
        said(t, "; ".join(seen) or NONE, "l-soft")
        said(t, "; ".join(problems) or NONE, "" if problems else "l-soft")


def shares(t: Language, health: Health) -> str:
    """How much each sensor has said of late, in hundredths."""
    return ", ".join(f"{name} {t.number(100 * one.share)} %" for name, one in sorted(health.contributions.items()))

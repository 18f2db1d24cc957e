"""The encoder version of each modality on each device, with the way back."""

from __future__ import annotations

from functools import partial

from nicegui import ui

from hub.dashboard import controls, parts
from hub.dashboard.language import NONE
from hub.dashboard.visit import Visit
from hub.watch import Line
from lineside.messages import EncoderHealth


class Encoders:
    """Of one device, or of all."""

    WIDTHS = "minmax(120px, auto) auto auto auto auto minmax(150px, auto)"

    def __init__(self, visit: Visit, device: str = "") -> None:
        self._visit, self._device, t = visit, device, visit.t
        head = [t(word) for word in ("Modality", "Device", "Version", "Previous", "Runs on")]
        self._table = parts.Table(t("Encoders"), [*head, ""], self.WIDTHS)

    def show(self, line: Line) -> None:
        """Rebuild the table when a version, a provider or a presence changed."""
        rows = [
            (station.device, station.presence, name, encoder)
            for station in sorted(line.stations, key=lambda each: each.device)
            if self._device in ("", station.device)
            for name, encoder in sorted(station.health.encoders.items() if station.health else ())
        ]
        self._table.show(rows, self._row)

    def _row(self, device: str, presence: str, name: str, encoder: EncoderHealth) -> None:
        t = self._visit.t
        parts.modality(name, t(name))
        parts.presence(t, device, presence)
        ui.label(encoder.version).classes("l-mono l-strong")
        ui.label(encoder.previous or NONE).classes("l-mono l-soft")
        ui.label(encoder.provider.removesuffix("ExecutionProvider")).classes("l-soft")
        with ui.element("div"):
            back = partial(controls.roll_back, self._visit, device, name, encoder)
            made = parts.button(t("Roll back"), "undo", back)
            made.props["aria-label"] = t("Roll back {modality} of {device}", modality=t(name), device=device)
            made.set_enabled(bool(encoder.previous) and presence == "online")
            controls.only(self._visit, "rollback", made)

"""Which encoder version runs where, and the way back."""

from __future__ import annotations

from functools import partial

from fastapi import Request
from nicegui import ui

from hub.dashboard import controls, parts, shell
from hub.dashboard.language import NONE
from hub.dashboard.parts import Table, modality, tag
from hub.dashboard.visit import Visit
from hub.line import Hub
from hub.watch import Line
from lineside.messages import EncoderHealth


def mount(hub: Hub) -> None:
    """Add the page."""

    @ui.page("/releases")
    def releases_page(request: Request) -> None:
        shell.show(Visit.of(hub, request), "Releases", ReleasesView)


class ReleasesView:
    """One open page."""

    def __init__(self, visit: Visit) -> None:
        self._visit, t = visit, visit.t
        head = [t(word) for word in ("Modality", "Device", "Version", "Previous", "Runs on", "Device is")]
        widths = "minmax(120px, auto) auto auto auto auto auto minmax(150px, auto)"
        self._table = Table(t("Encoders"), [*head, ""], widths)

    def show(self, line: Line) -> None:
        """Rebuild the table when a version, a provider or a presence changed."""
        rows = [
            (station.device, station.presence, name, encoder)
            for station in sorted(line.stations, key=lambda each: each.device)
            for name, encoder in sorted(station.health.encoders.items() if station.health else ())
        ]
        self._table.show(rows, self._row)

    def _row(self, device: str, presence: str, name: str, encoder: EncoderHealth) -> None:
        t = self._visit.t
        modality(name, t(name))
        ui.label(device)
        ui.label(encoder.version).classes("l-mono l-strong")
        ui.label(encoder.previous or NONE).classes("l-mono l-soft")
        ui.label(encoder.provider.removesuffix("ExecutionProvider")).classes("l-soft")
        tag(t(presence), *(("cloud_done", "good") if presence == "online" else ("cloud_off", "off")))
        with ui.element("div"):
            back = partial(controls.roll_back, self._visit, device, name, encoder)
            made = parts.button(t("Roll back"), "undo", back)
            made.set_enabled(bool(encoder.previous) and presence == "online")

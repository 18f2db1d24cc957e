"""One station: its course over a span, what is open, agreement and drift, its sensors and encoders."""

from __future__ import annotations

from fastapi import Request
from nicegui import ui

from hub.dashboard import controls, parts, shell
from hub.dashboard.charts import LIVE, Charts
from hub.dashboard.drifts import Drifts
from hub.dashboard.encoders import Encoders
from hub.dashboard.open_groups import OpenGroups
from hub.dashboard.sensors import Sensors, Watching
from hub.dashboard.silences_card import SilencesCard
from hub.dashboard.tiles import Tile
from hub.dashboard.visit import Visit
from hub.line import Hub
from hub.watch import Line


def mount(hub: Hub) -> None:
    """Add the page."""

    @ui.page("/station/{device}")
    def station_page(request: Request, device: str, span: str = LIVE) -> None:
        visit = Visit.of(hub, request)
        if device in hub.devices():
            shell.show(visit, "Line", lambda visit: StationView(visit, device, span), title=device)
        else:
            shell.show(visit, "Line", lambda visit: Unknown(visit, device), title=device)


class StationView:
    """One open page."""

    def __init__(self, visit: Visit, device: str, span: str) -> None:
        self._device, t = device, visit.t
        with ui.element("div").classes("l-row"):
            parts.link(t("Back to the line"), "/", "arrow_back", "l-button l-outline")
        self._tile = Tile(t, device, link=False)
        self._silences = SilencesCard(visit, device)
        self._open = OpenGroups(visit, device)
        self._charts = Charts(visit, device, span)
        with self._charts.grid:
            self._drifts = Drifts(t)
        self._encoders = Encoders(visit, device)
        self._tables = (Sensors(t), Watching(t))
        if visit.hub.plant.hub.demo:
            controls.fault_panel(visit, device)

    def show(self, line: Line) -> None:
        """Bring every part up to date."""
        if (station := line.station(self._device)) is None:
            return
        self._tile.show(line, station)
        self._silences.show(line)
        self._open.show(line)
        self._charts.show(line, station)
        self._drifts.show(station)
        self._encoders.show(line)
        for table in self._tables:
            table.show(station)


class Unknown:
    """What a page says of a device that there is not."""

    def __init__(self, visit: Visit, device: str) -> None:
        ui.context.client.status_code = 404
        parts.heading(visit.t("no device {device} is known here", device=device[:64]))
        with ui.element("div"):
            parts.link(visit.t("Back to the line"), "/", "arrow_back", "l-button l-outline")

    def show(self, line: Line) -> None:
        """Nothing changes."""

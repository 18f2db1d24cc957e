"""One station: its score against its limit over time, who contributes, how its sensors are."""

from __future__ import annotations

from fastapi import Request
from nicegui import ui

from hub.dashboard import controls, shell
from hub.dashboard.charts import Charts
from hub.dashboard.sensors import Sensors, Watching
from hub.dashboard.tiles import Tile
from hub.dashboard.visit import Visit
from hub.line import Hub
from hub.watch import Line


def mount(hub: Hub) -> None:
    """Add the page."""

    @ui.page("/station/{device}")
    def station_page(request: Request, device: str) -> None:
        shell.show(Visit.of(hub, request), "Line", lambda visit: StationView(visit, device), title=device)


class StationView:
    """One open page."""

    def __init__(self, visit: Visit, device: str) -> None:
        self._device = device
        self._tile = Tile(visit.t, device)
        if visit.hub.plant.hub.demo:
            controls.fault_panel(visit, lambda: device)
        self._charts = Charts(visit)
        self._tables = (Sensors(visit.t), Watching(visit.t))

    def show(self, line: Line) -> None:
        """Bring every part up to date."""
        if (station := line.station(self._device)) is None:
            return
        self._tile.show(line, station)
        self._charts.show(line, station)
        for table in self._tables:
            table.show([station])

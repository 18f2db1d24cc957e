"""Every device: how it is, what it says of itself, and the mend when something is not well."""

from __future__ import annotations

from fastapi import Request
from nicegui import ui

from hub.dashboard import shell
from hub.dashboard.sensors import Sensors, Watching
from hub.dashboard.visit import Visit
from hub.line import Hub
from hub.watch import Line


def mount(hub: Hub) -> None:
    """Add the page."""

    @ui.page("/fleet")
    def fleet_page(request: Request) -> None:
        shell.show(Visit.of(hub, request), "Fleet", FleetView)


class FleetView:
    """One open page."""

    def __init__(self, visit: Visit) -> None:
        self._parts = (Sensors(visit.t), Watching(visit.t))

    def show(self, line: Line) -> None:
        """Bring every part up to date."""
        stations = sorted(line.stations, key=lambda each: each.device)
        for part in self._parts:
            part.show(stations)

"""The line: every station as a tile, worst first; what is open, by group; the rate of alarms against the norms."""

from __future__ import annotations

from fastapi import Request
from nicegui import ui

from hub.dashboard import controls, shell
from hub.dashboard.open_groups import OpenGroups
from hub.dashboard.rates_card import RatesCard
from hub.dashboard.silences_card import SilencesCard
from hub.dashboard.tiles import Tiles
from hub.dashboard.visit import Visit
from hub.line import Hub
from hub.watch import Line


def mount(hub: Hub) -> None:
    """Add the page."""

    @ui.page("/")
    def line_page(request: Request) -> None:
        shell.show(Visit.of(hub, request), "Line", LineView)


class LineView:
    """One open page."""

    def __init__(self, visit: Visit) -> None:
        self._parts = (Tiles(visit), SilencesCard(visit), OpenGroups(visit), RatesCard(visit))
        if visit.hub.plant.hub.demo and visit.hub.plant.devices:
            controls.fault_panel(visit, visit.hub.plant.devices[0])

    def show(self, line: Line) -> None:
        """Bring every part up to date."""
        for part in self._parts:
            part.show(line)

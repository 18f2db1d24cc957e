"""The alarms of the last day and all that are open, one by one."""

from __future__ import annotations

from datetime import datetime, timedelta

from fastapi import Request
from nicegui import ui

from hub.dashboard import parts, shell
from hub.dashboard.events import Events
from hub.dashboard.learned_card import LearnedCard
from hub.dashboard.rates_card import RatesCard
from hub.dashboard.silences_card import SilencesCard
from hub.dashboard.visit import Visit
from hub.line import Hub
from hub.watch import Line
from lineside.clock import NS


def mount(hub: Hub) -> None:
    """Add the page."""

    @ui.page("/alarms")
    def alarms_page(request: Request) -> None:
        shell.show(Visit.of(hub, request), "Alarms", AlarmsView)


class AlarmsView:
    """One open page."""

    def __init__(self, visit: Visit) -> None:
        self._parts = (SilencesCard(visit), RatesCard(visit), LearnedCard(visit), Events(visit))
        yesterday = datetime.fromtimestamp(visit.hub.clock.now_ns() / NS).date() - timedelta(days=1)
        with ui.element("div"):
            parts.link(visit.t("Alarms of another day"), f"/alarms/{yesterday}", "event", "l-button l-outline")

    def show(self, line: Line) -> None:
        """Bring every part up to date."""
        for part in self._parts:
            part.show(line)

"""The line page: one look of the hub, shown twice a second."""

from __future__ import annotations

from fastapi import Request
from nicegui import app, run, ui

from hub.alarms import Event
from hub.dashboard import controls, style
from hub.dashboard.charts import Charts
from hub.dashboard.events import Events
from hub.dashboard.gate import Visitor
from hub.dashboard.panels import Encoders, Header, Sensors, Tile, Watching
from hub.line import Hub
from hub.watch import Line
from lineside.messages import EncoderHealth

TICK_S = 0.5


def mount(hub: Hub) -> None:
    """Add the page and its assets, all of them local: a plant has no way to a CDN."""
    app.add_static_files("/assets", style.ASSETS)

    @ui.page("/")
    def line_page(request: Request) -> None:
        ui.add_head_html('<link rel="stylesheet" href="/assets/line.css"><script src="/assets/live.js"></script>')
        ui.colors(primary=style.BUTTON)
        page = Page(hub, Visitor.of(request))
        ui.timer(TICK_S, page.tick)


class Page:
    """One open page; which device's charts it shows is its own."""

    def __init__(self, hub: Hub, visitor: Visitor) -> None:
        self._hub, self._visitor = hub, visitor
        self._chosen = ""
        self._tiles: dict[str, Tile] = {}
        self._order: list[str] = []
        self._header = Header(hub, visitor.who if hub.plant.hub.login else None)
        self._row = ui.element("div").classes("l-tiles")
        if hub.plant.hub.demo:
            controls.fault_panel(hub, visitor, lambda: self._chosen)
        self._charts = Charts(hub)
        self._events = Events(self._acknowledge, self._silence, hub.plant.alarms.shift_hours)
        with ui.element("div").classes("l-two"):
            self._sensors = Sensors()
            self._encoders = Encoders(self._roll_back)
        self._watching = Watching()
        self._show(hub.look())

    async def tick(self) -> None:
        """Look in a thread, so that a slow database holds up no other page."""
        if (line := await run.io_bound(self._hub.look)) is not None:
            self._show(line)

    def _show(self, line: Line) -> None:
        self._header.show(line)
        self._show_tiles(line)
        self._charts.show(line, line.station(self._chosen))
        self._events.show(line)
        self._sensors.show(line)
        self._encoders.show(line)
        self._watching.show(line)

    def _show_tiles(self, line: Line) -> None:
        """Worst station first; without a choice of the operator's the worst one is on the charts."""
        order = [station.device for station in line.stations]
        self._chosen = self._chosen or order[0]
        for device in order:
            if device not in self._tiles:
                with self._row:
                    self._tiles[device] = Tile(device, self._choose)
        for place, station in enumerate(line.stations):
            self._tiles[station.device].show(line, station, chosen=station.device == self._chosen)
            if order != self._order:
                self._tiles[station.device].move(place)
        self._order = order

    def _choose(self, device: str) -> None:
        self._chosen = device

    def _acknowledge(self, event: Event) -> None:
        controls.acknowledge(self._hub, self._visitor, event)
        self._show(self._hub.look())

    def _silence(self, event: Event, minutes: float) -> None:
        controls.silence(self._hub, self._visitor, event, minutes)
        self._show(self._hub.look())

    async def _roll_back(self, device: str, modality: str, encoder: EncoderHealth) -> None:
        await controls.roll_back(self._hub, self._visitor, device, modality, encoder)

"""The silences that hold now, as a card: they mute alarms that are yet to come, so each can be seen and ended."""

from __future__ import annotations

from nicegui import ui

from hub.dashboard import parts
from hub.dashboard.silencing import named_in, running
from hub.dashboard.visit import Visit
from hub.watch import Line


class SilencesCard:
    """One row a silence; not drawn while there is none."""

    def __init__(self, visit: Visit, device: str = "") -> None:
        """`device`: only its own."""
        self._visit, self._device = visit, device
        with ui.element("section").classes("l-card") as self._card:
            parts.heading(visit.t("Silenced now"))
            self._list = ui.element("div").classes("l-what")
        self._card.set_visibility(False)
        self._shown: object = []

    def show(self, line: Line) -> None:
        """Drawn anew only when one began or ended."""
        own = [each for each in line.silences if self._device in ("", each.device)]
        now = [(each, named_in(self._visit.t, line, each)) for each in own]
        if now == self._shown:
            return
        self._shown = now
        self._card.set_visibility(bool(own))
        self._list.clear()
        with self._list:
            for silence in own:
                with ui.element("div").classes("l-row"):
                    running(self._visit, line, silence)

"""The fleet: every device with what its keeper asks first, what signatures end when, the hub's own numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from nicegui import run, ui

from hub.dashboard import parts, shell
from hub.dashboard.expiries_card import ExpiriesCard
from hub.dashboard.fleet_rows import Row, rows
from hub.dashboard.hub_card import HubCard
from hub.dashboard.language import NONE
from hub.dashboard.visit import Visit
from hub.line import Hub
from hub.watch import SEVERITY, WORDS, Line

EXPIRIES_S = 60.0


def mount(hub: Hub) -> None:
    """Add the page."""

    @ui.page("/fleet")
    def fleet_page(request: Request) -> None:
        shell.show(Visit.of(hub, request), "Fleet", FleetView)


class FleetView:
    """One open page."""

    def __init__(self, visit: Visit) -> None:
        self._visit = visit
        self._devices = Devices(visit)
        with ui.element("div").classes("l-two") as self._place:
            self._expiries, self._hub = ExpiriesCard(visit), HubCard(visit)
        ui.timer(EXPIRIES_S, self._look, immediate=True)

    def show(self, line: Line) -> None:
        """Bring every part up to date."""
        self._devices.show(line)
        self._hub.show(line)

    async def _look(self) -> None:
        """Files are read in a thread."""
        found = await run.io_bound(self._visit.hub.expiries)
        if found is not None and not self._place.is_deleted:  # whoever looked may have left meanwhile
            self._expiries.show(found)


@dataclass(frozen=True)
class Sorting:
    """One column: its head, and what rows are ordered by."""

    head: str
    by: Callable[[Row], Any]


COLUMNS = (
    Sorting("Device", lambda row: row.device),
    Sorting("State", lambda row: (SEVERITY.index(row.word), row.device)),
    Sorting("Last seen", lambda row: row.seen_ns),
    Sorting("Outbox", lambda row: -row.waiting),
    Sorting("Skew of sensors", lambda row: -(row.skew_ms or 0.0)),
    Sorting("Runs on", lambda row: row.providers),
    Sorting("Agent", lambda row: row.agent),
    Sorting("Problems", lambda row: (-len(row.problems), row.device)),
)


class Devices:
    """The table: a head sorts, the field filters by device and station, the button leaves what has problems."""

    WIDTHS = "minmax(150px, auto) auto auto auto auto auto auto minmax(180px, 2fr)"

    def __init__(self, visit: Visit) -> None:
        self._visit, self._t = visit, visit.t
        self._by, self._reverse, self._only = 1, False, False
        self._shown: object = None
        with ui.column().classes("l-card"):
            with ui.element("div").classes("l-row"):
                parts.heading(self._t("Devices"))
                self._filter = ui.input(label=self._t("Filter by device or station")).props("outlined clearable")
                self._filter.classes("l-field")
                self._button = parts.button(self._t("Only with problems"), "filter_alt", self._toggle)
                self._count = ui.label("").classes("l-soft")
            self._grid = parts.grid(self.WIDTHS)

    def show(self, line: Line) -> None:
        """Drawn anew only when something changed."""
        every = rows(self._t, line)
        text = (self._filter.value or "").strip().lower()
        left = [row for row in every if text in f"{row.device} {row.station}".lower() and (row.ill or not self._only)]
        left.sort(key=COLUMNS[self._by].by, reverse=self._reverse)
        state = (left, self._by, self._reverse)
        if state != self._shown:
            self._shown = state
            self._draw(left)
        self._count.text = self._t("{n} of {all} devices", n=len(left), all=len(every))

    def _draw(self, left: list[Row]) -> None:
        self._grid.clear()
        with self._grid:
            for at, column in enumerate(COLUMNS):
                icon = ("arrow_drop_down" if self._reverse else "arrow_drop_up") if at == self._by else "unfold_more"
                made = parts.button(self._t(column.head), icon, lambda at=at: self._sort(at), "flat")  # type: ignore[misc]
                made.classes("l-th l-sort")
                if at == self._by:
                    made.props["aria-pressed"] = "true"
            for row in left:
                self._row(row)

    def _row(self, row: Row) -> None:
        t, word = self._t, WORDS[row.word]
        parts.link(row.device, f"/station/{row.device}", "", "l-cell-link")
        parts.tag(t(word.text), word.icon, word.tone)
        ui.label(row.seen).classes("" if row.live else "l-soft")
        ui.label(row.outbox).classes("l-mono" if row.health_live else "l-mono l-soft")
        ui.label(NONE if row.skew_ms is None else f"{t.number(row.skew_ms, 1)} ms").classes("l-mono")
        ui.label(row.providers or NONE).classes("" if row.health_live else "l-soft")
        ui.label(row.agent or NONE).classes("l-mono" if row.health_live else "l-mono l-soft")
        with ui.element("div").classes("l-cell-list"):
            for problem in row.problems:
                parts.said(t, problem)
            if not row.problems:
                ui.label(NONE).classes("l-soft")

    def _sort(self, at: int) -> None:
        self._reverse = not self._reverse if at == self._by else False
        self._by = at
        self.show(self._visit.hub.look())

    def _toggle(self) -> None:
        self._only = not self._only
        self._button.classes(remove="l-outline l-solid").classes("l-solid" if self._only else "l-outline")
        self._button.props["aria-pressed"] = "true" if self._only else "false"
        self.show(self._visit.hub.look())

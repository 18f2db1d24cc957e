"""Stations as tiles, worst first: the word large, the newest score, who contributes, how long ago."""

from __future__ import annotations

from nicegui import ui

from hub.dashboard import parts, style
from hub.dashboard.language import NONE, Language
from hub.dashboard.silencing import named_in, until
from hub.dashboard.visit import Visit
from hub.watch import WORDS, Line, Station
from lineside.clock import NS


class Tiles:
    """All stations; a tile is a link to its station."""

    def __init__(self, visit: Visit) -> None:
        self._visit = visit
        self._tiles: dict[str, Tile] = {}
        self._order: list[str] = []
        self._grid = ui.element("div").classes("l-tiles")

    def show(self, line: Line) -> None:
        """Bring every tile up to date, and to its place."""
        order = [station.device for station in line.stations]
        for device in order:
            if device not in self._tiles:
                with self._grid:
                    self._tiles[device] = Tile(self._visit.t, device)
        for place, station in enumerate(line.stations):
            self._tiles[station.device].show(line, station)
            if order != self._order:
                self._tiles[station.device].move(place)
        self._order = order


class Tile:
    """One station."""

    def __init__(self, t: Language, device: str, *, link: bool = True) -> None:
        self._t = t
        with ui.element("a" if link else "div").classes("l-tile") as self._tile:
            if link:
                self._tile.props["href"] = f"/station/{device}"
            with ui.element("div").classes("l-tile-top"):
                self._icon = ui.icon("help")
                with ui.element("div").classes("l-who"):
                    self._word = ui.label("").classes("l-word").mark("word")
                    self._station = ui.label(device).classes("l-station")
                self._score = _stat(t("score"))
            self._bar = parts.ShareBar(t, "small")
            with ui.element("div").classes("l-tile-foot"):
                self._when = ui.label("").classes("l-soft")
                self._open = ui.label("").classes("l-soft l-open")
            with ui.element("div").classes("l-tag tone-off") as self._silenced:
                ui.icon("notifications_paused")
                self._silences = ui.label("")

    def move(self, place: int) -> None:
        """Stand at this place in the grid."""
        self._tile.move(target_index=place)

    def show(self, line: Line, station: Station) -> None:
        """A score that is not live is greyed and says since when."""
        t, word, last = self._t, WORDS[station.word], station.last
        self._tile.classes(replace=f"l-tile tone-{word.tone} {'' if station.live else 'l-stale'}")
        self._icon.set_name(word.icon)
        self._word.text = t(word.text)
        self._station.text = f"{station.name} · {station.device}" if station.name else station.device
        number, limit = self._score
        number.text = t.number(style.log_p(last.score.p_value), 1) if last else NONE
        limit.text = t("limit {limit}", limit=t.number(style.log_p(last.score.limit), 1)) if last else t("no limit")
        self._when.text = when(t, line, station)
        waiting = sum(event.state != "CLEARED_ACK" for event in station.events)
        self._open.text = _waiting(t, waiting)
        silences = [each for each in line.silences if each.device == station.device]
        self._silenced.set_visibility(bool(silences))
        self._silences.text = ", ".join(f"{named_in(t, line, each)}: {until(t, line, each)}" for each in silences)
        shares = (dict(last.score.contributions), last.score.modalities) if last and station.live else ({}, {})
        self._bar.show(*shares)


def _waiting(t: Language, count: int) -> str:
    """How many alarms are open."""
    if count == 1:
        return t("1 open alarm")
    return t("{n} open alarms", n=count) if count else t("no open alarm")


def _stat(name: str) -> tuple[ui.label, ui.label]:
    """A number with its name above and a line below; gives both."""
    with ui.element("div").classes("l-stat"):
        ui.label(name).classes("l-soft")
        number = ui.label("").classes("l-number")
        below = ui.label("").classes("l-soft")
    return number, below


def when(t: Language, line: Line, station: Station) -> str:
    """How the device is, and how old what is shown of it."""
    state = station.health.state if station.health and station.health_live else ""
    presence = t.joined(t(station.presence), t(state) if state else "")
    if station.last is None:
        return t.joined(presence, t("no data yet"))
    if not station.live:
        since = t.moment(station.last.seen_ns, line.now_ns)
        return t.joined(presence, t("no data since {time}", time=since))
    age_s = max(0.0, (line.now_ns - station.last.score.end_ns) / NS)
    return t.joined(presence, t("{span} ago", span=t.span(age_s)))

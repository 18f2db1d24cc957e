"""The parts of the page that are words: header, tiles, sensors, encoders."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from nicegui import ui

from hub.accounts import Who
from hub.dashboard import style
from hub.dashboard.charts import log_p
from hub.line import Hub
from hub.watch import WORDS, Line, Station
from lineside.messages import EncoderHealth, Health, SensorHealth


class Header:
    """Site, time, broker and the hub's own numbers."""

    def __init__(self, hub: Hub, who: Who | None) -> None:
        """`who` is whoever logged in, None where nobody has to."""
        self._dark = ui.dark_mode(None)
        with ui.row().classes("l-head"):
            ui.label("lineside").classes("l-brand")
            with ui.element("div").classes("l-chip"):
                ui.icon("factory")
                ui.label(hub.plant.site).classes("font-bold")
            with ui.element("div").classes("l-chip"):
                self._broker_icon = ui.icon("hub")
                self._broker = ui.label("")
            with ui.element("div").classes("l-chip"):
                ui.icon("storage")
                self._numbers = ui.label("")
            ui.space()
            self._clock = ui.label("").classes("l-clock")
            ui.button(icon="contrast", on_click=self._toggle).props("flat round").classes("l-touch")
            if who is not None:
                with ui.element("form").props('method="post" action="/logout"'):
                    ui.button(f"{who.name} · {who.role}", icon="logout").props("flat no-caps type=submit").classes(
                        "l-touch"
                    )

    def show(self, line: Line) -> None:
        """Bring the header up to date."""
        self._clock.text = style.clock_text(line.now_ns)
        self._broker.text = "broker connected" if line.broker else "broker away"
        self._broker_icon.props(f"color={'positive' if line.broker else 'negative'}")
        parts = [f"{line.ingest['stored']:,} stored"]
        parts += [f"{line.ingest[name]:,} {told}" for name, told in TOLD.items() if line.ingest[name]]
        self._numbers.text = " · ".join(parts)

    def _toggle(self) -> None:
        self._dark.value = not self._dark.value


TOLD = {
    "waiting": "waiting",
    "duplicates": "sent twice",
    "refused": "refused",
    "queue_full": "put off",
    "commit_failed": "not committed",
}


class Tile:
    """One station: its word large, its newest score, how long ago."""

    def __init__(self, device: str, choose: Callable[[str], None]) -> None:
        with ui.element("div").classes("l-tile") as self._tile:
            self._icon = ui.icon("help").classes("text-6xl")
            with ui.column().classes("l-who gap-0"):
                self._word = ui.label("").classes("l-word").mark("word")
                self._station = ui.label(device).classes("l-station")
                self._when = ui.label("").classes("l-soft")
            with ui.column().classes("l-stat") as self._score:
                self._value = ui.label("").classes("l-number")
                self._limit = ui.label("").classes("l-soft")
            with ui.column().classes("l-stat"):
                self._open = ui.label("").classes("l-number")
                ui.label("open alarms").classes("l-soft")
            with ui.column().classes("l-stat"):
                self._outbox = ui.label("").classes("l-number")
                ui.label("in outbox").classes("l-soft")
        self._tile.on("click", lambda: choose(device))

    def move(self, place: int) -> None:
        """Stand at this place in the row."""
        self._tile.move(target_index=place)

    def show(self, line: Line, station: Station, *, chosen: bool) -> None:
        """Bring the tile up to date; a score that is not live is greyed and says since when."""
        word = WORDS[station.word]
        self._tile.classes(replace=f"l-tile tone-{word.tone} {'chosen' if chosen else ''}")
        self._icon.set_name(word.icon)
        self._word.text = word.text
        self._station.text = f"{station.name} · {station.device}" if station.name else station.device
        self._open.text = str(sum(event.state != "CLEARED_ACK" for event in station.events))
        self._outbox.text = f"{station.health.outbox_messages:,}" if station.health else "–"
        self._score.classes(remove="l-stale") if station.live else self._score.classes("l-stale")
        last = station.last
        self._value.text = f"{log_p(last.score.p_value):.1f}" if last else "–"
        self._limit.text = f"score · limit {log_p(last.score.limit):.1f}" if last else "score"
        self._when.text = _when(line, station)


def _when(line: Line, station: Station) -> str:
    state = f"{station.presence} · {station.health.state}" if station.health else station.presence
    if station.last is None:
        return f"{state} · no data yet"
    if not station.live:
        return f"{state} · no data since {style.clock_text(station.last.seen_ns)}"
    return f"{state} · {(line.now_ns - station.last.score.end_ns) / 1e9:.1f} s ago"


class Table:
    """A card of rows under a head, drawn anew only when a row changed."""

    def __init__(self, title: str, head: tuple[str, ...], widths: str) -> None:
        self._head = head
        with ui.column().classes("l-card"):
            ui.label(title).classes("l-title")
            self._grid = ui.element("div").classes("l-grid").style(f"grid-template-columns: {widths}")
        self._shown: object = None

    def show(self, rows: Sequence[tuple[Any, ...]], draw: Callable[..., None]) -> None:
        """Draw each row by `draw(*row)`, which makes one element a column."""
        if rows == self._shown:
            return
        self._shown = rows
        self._grid.clear()
        with self._grid:
            for word in self._head:
                ui.label(word).classes("l-th")
            for row in rows:
                draw(*row)


class Sensors:
    """Every sensor of every device: what it is, how it is, and the mend when it is not well."""

    HEAD = ("Sensor", "Device", "State", "Windows", "Lost samples", "Problem")
    WIDTHS = "minmax(120px, auto) auto auto auto auto minmax(180px, 2fr)"

    def __init__(self) -> None:
        self._table = Table("Sensors", self.HEAD, self.WIDTHS)

    def show(self, line: Line) -> None:
        """Rebuild the table when something in it changed."""
        rows = [
            (station.device, station.health_live, name, sensor)
            for station in sorted(line.stations, key=lambda each: each.device)
            for name, sensor in sorted(station.health.sensors.items() if station.health else ())
        ]
        self._table.show(rows, _sensor_row)


def _sensor_row(device: str, live: bool, name: str, sensor: SensorHealth) -> None:
    modality(sensor.modality, name)
    ui.label(device)
    well = not sensor.flags and not sensor.problem
    word, icon, tone = ("ok", "check", "good") if well else (", ".join(sensor.flags) or "problem", "warning", "warn")
    tag(*((word, icon, tone) if live else ("not known now", "cloud_off", "off")))
    ui.label(f"{sensor.windows:,}").classes("l-mono")
    ui.label(f"{sensor.dropped_samples:,}").classes("l-mono")
    ui.label(sensor.problem or "–").classes("l-soft" if well else "")


class Watching:
    """What each device watches for besides: slow change, what its sensors say of late, which faults they would see."""

    HEAD = ("Device", "Slow change", "Shares of evidence", "Faults that would be seen", "Problems")
    WIDTHS = "auto minmax(140px, 1fr) auto minmax(200px, 2fr) minmax(160px, 2fr)"

    def __init__(self) -> None:
        self._table = Table("Watching", self.HEAD, self.WIDTHS)

    def show(self, line: Line) -> None:
        """Rebuild the table when something in it changed."""
        rows = [
            (each.device, each.health_live, each.health.drift, shares(each.health), seen, told)
            for each in sorted(line.stations, key=lambda each: each.device)
            if each.health is not None
            for seen in [tuple(each.health.sensitivity)]
            for told in [tuple(one for one in (each.health.degraded, *each.health.problems) if one)]
        ]
        self._table.show(rows, _watching_row)


def shares(health: Health) -> str:
    """How much each sensor has said of late, in hundredths."""
    return ", ".join(f"{name} {one.share:.0%}" for name, one in sorted(health.contributions.items()))


def _watching_row(
    device: str, live: bool, drift: str, said: str, seen: tuple[str, ...], problems: tuple[str, ...]
) -> None:
    ui.label(device)
    ui.label((drift or "–") if live else "not known now")
    ui.label(said or "–").classes("l-mono")
    ui.label("; ".join(seen) or "–").classes("l-soft")
    ui.label("; ".join(problems) or "–").classes("" if problems else "l-soft")


class Encoders:
    """The encoder version of each modality on each device, with the way back."""

    HEAD = ("Modality", "Device", "Version", "Previous", "Runs on", "Device is", "")
    WIDTHS = "minmax(120px, auto) auto auto auto auto auto minmax(130px, auto)"

    def __init__(self, roll_back: Callable[[str, str, EncoderHealth], Awaitable[None]]) -> None:
        self._roll_back = roll_back
        self._table = Table("Encoders", self.HEAD, self.WIDTHS)

    def show(self, line: Line) -> None:
        """Rebuild the table when a version, a provider or a presence changed."""
        rows = [
            (station.device, station.presence, name, encoder)
            for station in sorted(line.stations, key=lambda each: each.device)
            for name, encoder in sorted(station.health.encoders.items() if station.health else ())
        ]
        self._table.show(rows, self._row)

    def _row(self, device: str, presence: str, name: str, encoder: EncoderHealth) -> None:
        modality(name, name)
        ui.label(device)
        ui.label(encoder.version).classes("l-mono font-bold")
        ui.label(encoder.previous or "–").classes("l-mono l-soft")
        ui.label(encoder.provider.removesuffix("ExecutionProvider")).classes("l-soft")
        tag(presence, *(("cloud_done", "good") if presence == "online" else ("cloud_off", "off")))
        with ui.element("div"):
            button = ui.button("Roll back", icon="undo", on_click=lambda: self._roll_back(device, name, encoder))
            button.props("outline no-caps").classes("l-touch")
            button.set_enabled(bool(encoder.previous) and presence == "online")


def modality(kind: str, text: str) -> None:
    """A modality's icon in its colour, with words beside it."""
    with ui.element("div").classes(f"l-mod m-{kind}"):
        ui.icon(style.MODALITIES[kind].icon if kind in style.MODALITIES else "sensors").classes("text-xl")
        ui.label(text)


def tag(text: str, icon: str, tone: str, *, solid: bool = False) -> None:
    """A state in words, icon and colour."""
    with ui.element("div"), ui.element("div").classes(f"l-tag tone-{tone} {'solid' if solid else ''}"):
        ui.icon(icon)
        ui.label(text)

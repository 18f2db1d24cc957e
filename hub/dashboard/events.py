"""The alarms: what, when, why, with evidence, and a button large enough for a glove."""

from __future__ import annotations

import base64
from collections.abc import Callable

from nicegui import ui

from hub.alarms import Event
from hub.dashboard import style
from hub.dashboard.charts import log_p, share_bar
from hub.dashboard.panels import modality, tag
from hub.watch import Line

SHOWN = 20


class Events:
    """Open alarms first, then the last day's history."""

    def __init__(self, acknowledge: Callable[[Event], None]) -> None:
        self._acknowledge = acknowledge
        with ui.column().classes("l-card"):
            with ui.row().classes("items-center gap-3"):
                ui.label("Alarms").classes("l-title")
                self._told = ui.label("").classes("l-soft")
            self._list = ui.column().classes("w-full gap-0")
        self._shown: tuple[Event, ...] | None = None

    def show(self, line: Line) -> None:
        """Rebuild the list when an alarm or an acknowledgement came."""
        if line.events == self._shown:
            return
        self._shown = line.events
        active = sum(event.active for event in line.events)
        self._told.text = f"{active} active · {len(line.events)} in the last 24 h" if line.events else "none"
        sensors = {each.device: each.health.sensors for each in line.stations if each.health}
        self._list.clear()
        with self._list:
            for event in line.events[:SHOWN]:
                own = sensors.get(event.raised.device, {})
                self._event(event, {name: sensor.modality for name, sensor in own.items()})

    def _event(self, event: Event, modalities: dict[str, str]) -> None:
        look = style.EVENTS[event.state]
        closed = "closed" if event.state == "CLEARED_ACK" else ""
        with ui.element("div").classes(f"l-event tone-{look.tone} {closed}"):
            _times(event)
            _what(event)
            _why(event, modalities)
            with ui.row().classes("gap-2"):
                for sensor, picture in sorted(event.raised.pictures.items()):
                    data = base64.b64encode(picture).decode()
                    ui.element("img").props(f'src="data:image/jpeg;base64,{data}"').tooltip(sensor)
            with ui.column().classes("gap-2 items-end"):
                tag(event.state, look.icon, look.tone, solid=look.solid)
                if not event.acknowledged_by:
                    button = ui.button("Acknowledge", icon="check", on_click=lambda: self._acknowledge(event))
                    button.props("unelevated no-caps").classes("l-touch w-full")
                else:
                    when = style.clock_text(event.acknowledged_ns)
                    ui.label(f"seen {when} · {event.acknowledged_by}").classes("l-soft")


def _times(event: Event) -> None:
    with ui.column().classes("gap-0"):
        ui.label(style.clock_text(event.raised.time_ns)).classes("text-xl font-bold")
        ui.label(f"→ {style.clock_text(event.cleared_ns)}" if event.cleared_ns else "still there").classes("l-soft")


def _what(event: Event) -> None:
    alarm = event.raised
    with ui.column().classes("gap-1"):
        with ui.row().classes("items-center gap-3"):
            ui.icon(style.KINDS[alarm.kind]).classes("text-xl")
            ui.label(f"{alarm.station} · {alarm.kind}").classes("font-bold text-base")
            modality(alarm.top_modality, f"{alarm.top_sensor} ({alarm.top_modality})")
            if alarm.cause:
                ui.label(style.CAUSES[alarm.cause]).classes("font-bold")
        ui.label(alarm.text).classes("l-soft")


def _why(event: Event, modalities: dict[str, str]) -> None:
    """Contributions when the alarm was raised; a sensor alarm has none."""
    alarm = event.raised
    with ui.column().classes("gap-1"):
        if alarm.contributions:
            known = {**modalities, alarm.top_sensor: alarm.top_modality}
            share_bar(ui.element("div").classes("l-bar small"), alarm.contributions, known)
            ui.label(f"score {log_p(alarm.p_value):.1f} · evidence {alarm.evidence:.1f} nats").classes("l-soft")

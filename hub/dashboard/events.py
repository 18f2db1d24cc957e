"""The alarms: what, when, why, with evidence, and a button large enough for a glove."""

from __future__ import annotations

import base64
from collections.abc import Callable

from nicegui import ui

from hub.alarms import Event
from hub.dashboard import style
from hub.dashboard.charts import log_p, share_bar
from hub.dashboard.panels import modality, tag
from hub.groups import Group
from hub.watch import Line

SHOWN = 20


class Events:
    """Open alarms first, then the last day's history."""

    def __init__(
        self, acknowledge: Callable[[Event], None], silence: Callable[[Event, float], None], shift_hours: float
    ) -> None:
        """`silence` is for minutes from now, 0 ends it."""
        self._acknowledge, self._silence = acknowledge, silence
        self._spans = {"10 min": 10.0, "1 h": 60.0, f"shift ({shift_hours:g} h)": shift_hours * 60}
        with ui.column().classes("l-card"):
            with ui.row().classes("items-center gap-3"):
                ui.label("Alarms").classes("l-title")
                self._told = ui.label("").classes("l-soft")
            self._rates = ui.label("").classes("l-soft").mark("rates")
            self._list = ui.column().classes("w-full gap-0")
        self._shown: object = None

    def show(self, line: Line) -> None:
        """Rebuild the list when an alarm or an action came."""
        if line.rates is not None:
            untold = [f"{line.notices['failed']} messages could not be sent"] if line.notices.get("failed") else []
            self._rates.text = " · ".join([line.rates.text, *line.rates.warnings, *untold])
        if (line.events, line.groups) == self._shown:
            return
        self._shown = (line.events, line.groups)
        active = sum(event.active for event in line.events)
        self._told.text = f"{active} active · {len(line.events)} in the last 24 h" if line.events else "none"
        groups = {key: group for group in line.groups for key in group.members}
        sensors = {each.device: each.health.sensors for each in line.stations if each.health}
        self._list.clear()
        with self._list:
            for event in line.events[:SHOWN]:
                own = sensors.get(event.raised.device, {})
                group = groups[event.raised.device, event.raised.key]
                self._event(event, group, {name: sensor.modality for name, sensor in own.items()})

    def _event(self, event: Event, group: Group, modalities: dict[str, str]) -> None:
        look = style.EVENTS[event.state]
        closed = "closed" if event.state == "CLEARED_ACK" else ""
        with ui.element("div").classes(f"l-event tone-{look.tone} {closed}"):
            _times(event)
            _what(event, group)
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
                if event.active:
                    self._silencing(event)

    def _silencing(self, event: Event) -> None:
        """Who silenced it until when, or the choice for how long."""
        if event.silence is not None:
            until = style.clock_text(event.silence.until_ns)
            tag(f"silenced until {until}", "notifications_paused", "off")
            ui.label(f"by {event.silence.who}").classes("l-soft")
            button = ui.button("Hear again", icon="notifications", on_click=lambda: self._silence(event, 0.0))
            button.props("outline no-caps").classes("l-touch w-full")
            return
        with ui.dropdown_button("Silence", icon="notifications_paused", auto_close=True) as choice:
            for text, minutes in self._spans.items():
                item = ui.item(text, on_click=lambda span=minutes: self._silence(event, span))
                item.classes("l-touch items-center")
        choice.props("outline no-caps").classes("l-touch w-full")


def _times(event: Event) -> None:
    with ui.column().classes("gap-0"):
        ui.label(style.clock_text(event.raised.time_ns)).classes("text-xl font-bold")
        ui.label(f"→ {style.clock_text(event.cleared_ns)}" if event.cleared_ns else "still there").classes("l-soft")


def _what(event: Event, group: Group) -> None:
    alarm = event.raised
    raises, others = len(event.raises_ns), len(group.events) - 1
    told = {
        event.inhibited and f"inhibited: {event.inhibited}": "block",
        f"raised {raises} times, it flaps" if raises > 1 else "": "autorenew",
        f"one of {others + 1} that began together" if others else "": "workspaces",
        group.cause: "account_tree",
    }
    with ui.column().classes("gap-1"):
        with ui.row().classes("items-center gap-3"):
            ui.icon(style.KINDS[alarm.kind]).classes("text-xl")
            ui.label(f"{alarm.station} · {alarm.kind}").classes("font-bold text-base")
            modality(alarm.top_modality, f"{alarm.top_sensor} ({alarm.top_modality})")
            if alarm.cause:
                ui.label(style.CAUSES[alarm.cause]).classes("font-bold")
        ui.label(alarm.text).classes("l-soft")
        for text, icon in told.items():
            if text:
                tag(text, icon, "off")


def _why(event: Event, modalities: dict[str, str]) -> None:
    """Contributions when the alarm was raised; a sensor alarm has none."""
    alarm = event.raised
    with ui.column().classes("gap-1"):
        if alarm.contributions:
            known = {**modalities, alarm.top_sensor: alarm.top_modality}
            share_bar(ui.element("div").classes("l-bar small"), alarm.contributions, known)
            ui.label(f"score {log_p(alarm.p_value):.1f} · evidence {alarm.evidence:.1f} nats").classes("l-soft")

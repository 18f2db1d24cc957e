"""The alarms one by one: what, when, why, with evidence, and buttons large enough for a glove."""

from __future__ import annotations

from nicegui import ui

from hub.alarms import Event
from hub.dashboard import controls, parts, style
from hub.dashboard.open_groups import address
from hub.dashboard.parts import modality, tag
from hub.dashboard.silencing import silencing
from hub.dashboard.visit import Visit
from hub.groups import Group
from hub.watch import Line

SHOWN = 50


class Events:
    """Open alarms first, then the last day's history."""

    def __init__(self, visit: Visit) -> None:
        self._visit = visit
        with ui.column().classes("l-card"):
            self._told = ui.label("").classes("l-soft")
            self._list = ui.element("div").classes("l-list")
        self._shown: object = None

    def show(self, line: Line) -> None:
        """Rebuild the list when an alarm or an action came."""
        if (line.events, line.groups) == self._shown:
            return
        self._shown = (line.events, line.groups)
        t, active = self._visit.t, sum(event.active for event in line.events)
        self._told.text = t("{active} active · {n} in the last 24 h", active=active, n=len(line.events))
        groups = {key: group for group in line.groups for key in group.members}
        sensors = {each.device: each.health.sensors for each in line.stations if each.health}
        self._list.clear()
        with self._list:
            for event in line.events[:SHOWN]:
                own = sensors.get(event.raised.device, {})
                group = groups[event.raised.device, event.raised.key]
                self._event(line, event, group, {name: sensor.modality for name, sensor in own.items()})
            if (more := len(line.events) - SHOWN) > 0:
                ui.label(t("{n} more are in the read API: /api/v1/alarms", n=more)).classes("l-soft")

    def _event(self, line: Line, event: Event, group: Group, modalities: dict[str, str]) -> None:
        t, look = self._visit.t, style.EVENTS[event.state]
        closed = "closed" if event.state == "CLEARED_ACK" else ""
        with ui.element("article").classes(f"l-event tone-{look.tone} {closed}"):
            self._times(line, event)
            self._what(event, group)
            self._why(event, modalities)
            with ui.element("div").classes("l-pictures"):
                for sensor, picture in sorted(event.raised.pictures.items()):
                    parts.picture(picture, sensor)
            with ui.element("div").classes("l-acts"):
                tag(t(look.text), look.icon, look.tone, solid=look.solid)
                if not event.acknowledged_by:
                    seen = parts.button(
                        t("Acknowledge"), "check", lambda: controls.acknowledge(self._visit, [event]), look="solid"
                    )
                    controls.only(self._visit, "acknowledge", seen)
                else:
                    when = t.moment(event.acknowledged_ns, line.now_ns)
                    ui.label(t("seen {time} · {who}", time=when, who=event.acknowledged_by)).classes("l-soft")
                if event.active:
                    silencing(self._visit, line, event)
                parts.link(t("Open"), address(event), "arrow_forward", "l-button l-outline")

    def _times(self, line: Line, event: Event) -> None:
        t = self._visit.t
        with ui.element("div"):
            ui.label(t.moment(event.raised.time_ns, line.now_ns)).classes("l-strong l-large")
            over = t("until {time}", time=t.moment(event.cleared_ns, line.now_ns))
            ui.label(over if event.cleared_ns else t("still there")).classes("l-soft")

    def _what(self, event: Event, group: Group) -> None:
        t, alarm = self._visit.t, event.raised
        raises, others = len(event.raises_ns), len(group.events) - 1
        told = {
            t("inhibited: {reason}", reason=t.sentence(event.inhibited)) if event.inhibited else "": "block",
            t("raised {n} times, it flaps", n=raises) if raises > 1 else "": "autorenew",
            t("one of {n} that began together", n=others + 1) if others else "": "workspaces",
            t.sentence(group.cause): "account_tree",
        }
        with ui.element("div").classes("l-what"):
            with ui.element("div").classes("l-row"):
                ui.icon(style.KINDS[alarm.kind]).classes("l-large")
                ui.label(f"{alarm.station} · {t(alarm.kind)}").classes("l-strong")
                if alarm.top_sensor:
                    modality(alarm.top_modality, f"{alarm.top_sensor} ({t(alarm.top_modality)})")
                if alarm.cause:
                    ui.label(t(style.CAUSES[alarm.cause])).classes("l-strong")
            parts.said(t, alarm.text, "l-soft")
            for text, icon in told.items():
                if text:
                    tag(text, icon, "off")

    def _why(self, event: Event, modalities: dict[str, str]) -> None:
        """Contributions when the alarm was raised; a sensor alarm has none."""
        t, alarm = self._visit.t, event.raised
        with ui.element("div"):
            if alarm.contributions:
                known = {**modalities, alarm.top_sensor: alarm.top_modality}
                parts.ShareBar(t, "small").show(alarm.contributions, known)
                score, nats = t.number(style.log_p(alarm.p_value), 1), t.number(alarm.evidence, 1)
                ui.label(t("score {score} · evidence {nats} nats", score=score, nats=nats)).classes("l-soft")

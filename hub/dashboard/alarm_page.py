"""One alarm: what it was, why, what it looked and sounded like, and what people do about it and say of it."""

from __future__ import annotations

from fastapi import Request
from nicegui import run, ui

from hub.alarms import Event
from hub.dashboard import alarm_facts, parts, recording_files, shell, style
from hub.dashboard.label_card import LabelCard
from hub.dashboard.recording_card import RecordingCard
from hub.dashboard.visit import Visit
from hub.line import Hub
from hub.watch import Line
from lineside.errors import LinesideError


def mount(hub: Hub) -> None:
    """Add the page, and the files of recordings that it shows."""
    recording_files.mount(hub)

    @ui.page("/alarm/{device}/{key:path}")
    def alarm_page(request: Request, device: str, key: str) -> None:
        visit = Visit.of(hub, request)
        try:
            event = hub.desk.event(device, key)
        except LinesideError as error:
            reason = error.reason
            shell.show(visit, "Alarms", lambda visit: Nothing(visit, reason))
            return
        shell.show(visit, "Alarms", lambda visit: AlarmView(visit, event), title=event.raised.station)


class Nothing:
    """Where no such alarm is known."""

    def __init__(self, visit: Visit, reason: str) -> None:
        t = visit.t
        with ui.element("section").classes("l-card"):
            parts.heading(t("No such alarm is known here"))
            parts.said(t, reason, "l-soft")
            parts.link(t("Alarms"), "/alarms", "arrow_back")

    def show(self, line: Line) -> None:
        """Nothing changes."""


class AlarmView:
    """One open page; `event` is how the alarm stood when it was opened."""

    def __init__(self, visit: Visit, event: Event) -> None:
        self._visit, self._event = visit, event
        sheet, script = style.asset("alarm.css"), style.asset("alarm.js")
        ui.add_head_html(f'<link rel="stylesheet" href="{sheet}"><script src="{script}"></script>')
        self._head = ui.element("section").classes("l-card")
        self._label = LabelCard(visit)
        with ui.element("div").classes("l-alarm"):
            with ui.element("div"):
                self._recording = RecordingCard(visit, event)
                self._done = ui.element("div").classes("l-what")
            self._facts = ui.element("div")
        self._modalities: dict[str, str] = {event.raised.top_sensor: event.raised.top_modality}
        self._shown: object = None
        self._gathered: object = None

    def show(self, line: Line) -> None:
        """Bring it up to date."""
        mine = [e for e in line.events if e.raised.device == self._event.raised.device]
        event = next((e for e in mine if self._event.raised.key in e.keys), self._event)
        station = line.station(event.raised.device)
        if station is not None and station.health is not None:
            self._modalities |= {name: sensor.modality for name, sensor in station.health.sensors.items()}
        if event != self._shown:
            self._shown = self._event = event
            self._show_head(line, event)
        self._label.show(line, event)
        self._recording.show()
        now = (event, self._visit.hub.news)
        if now != self._gathered:
            self._gathered = now
            with self._facts:
                ui.timer(0.01, self._gather, once=True)

    def _show_head(self, line: Line, event: Event) -> None:
        t, alarm, look = self._visit.t, event.raised, style.EVENTS[event.state]
        self._head.clear()
        with self._head:
            with ui.element("div").classes("l-row"):
                parts.tag(t(look.text), look.icon, look.tone, solid=look.solid)
                ui.icon(style.KINDS[alarm.kind]).classes("l-large")
                ui.label(f"{alarm.station} · {t(alarm.kind)}").classes("l-strong l-large")
                if alarm.top_sensor:
                    parts.modality(alarm.top_modality, f"{alarm.top_sensor} ({t(alarm.top_modality)})")
                ui.label(t.moment(alarm.time_ns, line.now_ns)).classes("l-strong l-large")
                over = t("until {time}", time=t.moment(event.cleared_ns, line.now_ns))
                ui.label(over if event.cleared_ns else t("still there")).classes("l-soft")
                score, nats = t.number(style.log_p(alarm.p_value), 1), t.number(alarm.evidence, 1)
                if alarm.contributions:
                    ui.label(t("score {score} · evidence {nats} nats", score=score, nats=nats)).classes("l-soft")
            parts.said(t, alarm_facts.split_cause(alarm.text)[0])
            if len(event.raises_ns) > 1:
                parts.tag(t("raised {n} times, it flaps", n=len(event.raises_ns)), "autorenew", "off")
            if event.inhibited:
                parts.tag(t("inhibited: {reason}", reason=t.sentence(event.inhibited)), "block", "off")

    async def _gather(self) -> None:
        """In a thread, so that a slow database holds up no other page."""
        visit, event = self._visit, self._event
        facts = await run.io_bound(alarm_facts.gather, visit.hub, event)
        if facts is None:  # the hub is stopping
            return
        t, alarm, now_ns = visit.t, event.raised, visit.hub.clock.now_ns()
        known = {**self._modalities, **(facts.score.modalities if facts.score else {})}
        self._facts.clear()
        with self._facts:
            alarm_facts.contributions(t, alarm, facts.score, known)
            alarm_facts.cause(t, alarm)
            alarm_facts.normal(t, alarm, known, now_ns)
            alarm_facts.like(t, facts.like, known, now_ns)
            alarm_facts.in_force(visit, facts, alarm)
        self._done.clear()
        with self._done:
            alarm_facts.history(t, facts.history, now_ns)

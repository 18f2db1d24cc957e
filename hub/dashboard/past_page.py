"""The alarms of one day, however long ago, as each stands now; the page of an alarm opens from there."""

from __future__ import annotations

from datetime import date, datetime, timedelta

from fastapi import Request
from nicegui import run, ui

from hub.alarms import Event
from hub.dashboard import parts, shell, style
from hub.dashboard.open_groups import address
from hub.dashboard.visit import Visit
from hub.history import History, Span
from hub.line import Hub
from hub.watch import Line
from lineside.clock import NS

MOST = 200


def mount(hub: Hub) -> None:
    """Add the page."""

    @ui.page("/alarms/{day}")
    def past_page(request: Request, day: str) -> None:
        visit = Visit.of(hub, request)
        try:
            wanted = date.fromisoformat(day)
        except ValueError:
            wanted = datetime.fromtimestamp(hub.clock.now_ns() / NS).date()
        shell.show(visit, "Alarms", lambda visit: PastView(visit, wanted), title=wanted.isoformat())


class PastView:
    """One open page."""

    def __init__(self, visit: Visit, day: date) -> None:
        self._visit, self._day = visit, day
        t = visit.t
        with ui.element("div").classes("l-row"):
            parts.link(t("Alarms of the last day"), "/alarms", "arrow_back", "l-button l-outline")
            parts.link(t("the day before"), _page(day - timedelta(days=1)), "chevron_left", "l-button l-outline")
            chosen = ui.input(value=day.isoformat()).props(f'type=date outlined aria-label="{t("Day")}"')
            chosen.on_value_change(lambda change: ui.navigate.to(f"/alarms/{change.value}") if change.value else None)
            parts.link(t("the day after"), _page(day + timedelta(days=1)), "chevron_right", "l-button l-outline")
        with ui.element("section").classes("l-card"):
            self._told = ui.label(t("The alarms are being looked up …")).classes("l-soft")
            self._list = ui.element("div").classes("l-list")
        ui.timer(0.01, self._gather, once=True)

    def show(self, line: Line) -> None:
        """A day that is over changes by what people do alone, which the page of an alarm shows."""

    async def _gather(self) -> None:
        """In a thread, so that a slow database holds up no other page."""
        hub, t = self._visit.hub, self._visit.t
        span = span_of(self._day)
        found = await run.io_bound(lambda: History(hub.store.engine).alarms(span, MOST + 1))
        if found is None:  # the hub is stopping
            return
        shown, day = [event for _, event in found[:MOST]], t.day(span.since_ns)
        phrase = "Alarms on {day}: {n}"
        if len(found) > MOST:
            phrase = "The first {n} alarms on {day}; all of them are in /api/v1/export/alarms"
        self._told.text = t(phrase, n=len(shown), day=day)
        with self._list:
            for event in shown:
                self._event(event)

    def _event(self, event: Event) -> None:
        t, look, alarm = self._visit.t, style.EVENTS[event.state], event.raised
        closed = "closed" if event.state == "CLEARED_ACK" else ""
        with ui.element("article").classes(f"l-event tone-{look.tone} {closed}"):
            with ui.element("div"):
                ui.label(t.clock(alarm.time_ns)).classes("l-strong l-large")
                over = t("until {time}", time=t.moment(event.cleared_ns, alarm.time_ns))
                ui.label(over if event.cleared_ns else t("still there")).classes("l-soft")
            with ui.element("div").classes("l-what"):
                with ui.element("div").classes("l-row"):
                    ui.icon(style.KINDS[alarm.kind]).classes("l-large")
                    ui.label(f"{alarm.station} · {t(alarm.kind)}").classes("l-strong")
                    if alarm.top_sensor:
                        parts.modality(alarm.top_modality, f"{alarm.top_sensor} ({t(alarm.top_modality)})")
                parts.said(t, alarm.text, "l-soft")
            with ui.element("div").classes("l-acts"):
                parts.tag(t(look.text), look.icon, look.tone, solid=look.solid)
                if event.acknowledged_by:
                    when = t.moment(event.acknowledged_ns, alarm.time_ns)
                    ui.label(t("seen {time} · {who}", time=when, who=event.acknowledged_by)).classes("l-soft")
                if event.label:
                    parts.label(t, event.label)
                parts.link(t("Open"), address(event), "arrow_forward", "l-button l-outline")


def span_of(day: date) -> Span:
    """From midnight to midnight at the plant."""
    since, until = (datetime(one.year, one.month, one.day).timestamp() for one in (day, day + timedelta(days=1)))
    return Span(since_ns=max(0, round(since * NS)), until_ns=max(0, round(until * NS)))


def _page(day: date) -> str:
    return f"/alarms/{day.isoformat()}"

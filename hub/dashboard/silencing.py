"""Who silenced an alarm until when, or the choice for how long."""

from __future__ import annotations

from nicegui import ui

from hub.alarms import Event
from hub.dashboard import controls, parts
from hub.dashboard.visit import Visit
from hub.watch import Line


def silencing(visit: Visit, line: Line, event: Event) -> None:
    """Draw it where elements are drawn now."""
    t = visit.t
    if event.silence is not None:
        until = t.moment(event.silence.until_ns, line.now_ns)
        parts.tag(t("silenced until {time}", time=until), "notifications_paused", "off")
        ui.label(t("by {who}", who=event.silence.who)).classes("l-soft")
        parts.button(t("Hear again"), "notifications", lambda: controls.silence(visit, event, 0.0))
        return
    shift_hours = visit.hub.plant.alarms.shift_hours
    spans = {10.0: ("{n} min", 10), 60.0: ("{n} h", 1), shift_hours * 60: ("shift ({n} h)", shift_hours)}
    with parts.button(t("Silence"), "notifications_paused"), ui.menu().props("auto-close").classes("l-menu"):
        for minutes, (phrase, number) in spans.items():
            choice = ui.item(on_click=lambda span=minutes: controls.silence(visit, event, span))
            with choice.classes("l-choice"):
                ui.label(t(phrase, n=f"{number:g}"))

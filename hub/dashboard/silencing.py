"""Silences on the pages: what runs and who began it, a button that ends it, and the choice of a new one."""

from __future__ import annotations

from collections.abc import Callable

from nicegui import ui

from hub.alarms import Action, Event
from hub.dashboard import controls, parts
from hub.dashboard.language import Language
from hub.dashboard.visit import Visit
from hub.watch import Line


def silencing(visit: Visit, line: Line, event: Event, why: Callable[[], str] = str) -> None:
    """Draw who silenced an alarm until when, or the choice for how long; `why` gives the reason when it is touched."""
    t, alarm = visit.t, event.raised
    if event.silence is not None:
        running(visit, line, event.silence, why)
        return
    shift_hours = visit.hub.plant.alarms.shift_hours
    spans = {10.0: ("{n} min", 10), 60.0: ("{n} h", 1), shift_hours * 60: ("shift ({n} h)", shift_hours)}
    with (
        controls.only(visit, "silence", parts.button(t("Silence"), "notifications_paused")),
        ui.menu().props("auto-close").classes("l-menu"),
    ):
        whole = named(t, alarm.device, alarm.subject, alarm.station)
        ui.label(t("Silences {what}, new ones too, for:", what=whole)).classes("l-choice l-soft")
        for minutes, (phrase, number) in spans.items():
            choice = ui.item(on_click=lambda span=minutes: controls.silence(visit, event, span, why()))
            with choice.classes("l-choice"):
                ui.label(t(phrase, n=f"{number:g}"))


def running(visit: Visit, line: Line, silence: Action, why: Callable[[], str] = str) -> None:
    """Draw a silence that holds now: until when, of what, who began it and why, and the button that ends it."""
    t = visit.t
    parts.tag(until(t, line, silence), "notifications_paused", "off")
    ui.label(t.joined(named_in(t, line, silence), t("by {who}", who=silence.who), silence.why)).classes("l-soft")
    hear = parts.button(t("Hear again"), "notifications", lambda: controls.hear(visit, silence, why()))
    controls.only(visit, "silence", hear)


def until(t: Language, line: Line, silence: Action) -> str:
    """Until when."""
    return t("silenced until {time}", time=t.moment(silence.until_ns, line.now_ns))


def named_in(t: Language, line: Line, silence: Action) -> str:
    """What a silence is of; the line knows the station of its device."""
    station = line.station(silence.device)
    return named(t, silence.device, silence.subject, station.name if station else "")


def named(t: Language, device: str, subject: str, station: str) -> str:
    """What a silence of a subject is of (lineside.messages.Alarm.subject).

    >>> [named(Language("en"), "press-3", subject, "press 3") for subject in ("", "press 3", "mic0")]
    ['all alarms of press-3', 'all anomalies of press 3', 'all alarms of mic0 (press-3)']
    """
    if subject and subject == station:
        return t("all anomalies of {station}", station=station)
    if subject == device:
        return t("the alarm that {device} is away", device=device)
    return t("all alarms of {name}", name=f"{subject} ({device})" if subject else device)

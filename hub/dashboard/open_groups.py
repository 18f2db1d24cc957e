"""What is open, by what it tells of: one row a group, with one touch to acknowledge all of it."""

from __future__ import annotations

from collections.abc import Iterable

from nicegui import ui

from hub.alarms import Event
from hub.dashboard import controls, parts, style
from hub.dashboard.visit import Visit
from hub.groups import Group
from hub.watch import Line

SHOWN = 8


class OpenGroups:
    """Groups with an event that is active or not acknowledged, what calls first.

    A row is drawn anew only when its own group changed: in a flood each alarm must be seen at once.
    """

    def __init__(self, visit: Visit, device: str = "") -> None:
        """`device`: only what has to do with it."""
        self._visit, self._device, t = visit, device, visit.t
        with ui.column().classes("l-card"):
            parts.heading(t("Open alarms"))
            self._list = ui.element("div").classes("l-list")
            self._none = parts.tag(t("no open alarm"), "check_circle", "good")
            self._more = parts.link("", "/alarms", "arrow_forward")
        with self._more:
            self._more_text = ui.label("")
        self._rows: dict[str, tuple[ui.element, Group]] = {}
        self._shown: object = None

    def show(self, line: Line) -> None:
        """Drawn anew only where an alarm or an action came."""
        groups = open_first(line.groups, self._device)
        if groups == self._shown:
            return
        self._shown, shown = groups, groups[:SHOWN]
        kept = {group.name: group for group in shown}
        for name in [name for name, (_, group) in self._rows.items() if kept.get(name) != group]:
            self._rows.pop(name)[0].delete()
        for place, group in enumerate(shown):
            if group.name not in self._rows:
                with self._list:
                    self._rows[group.name] = (self._group(line, group), group)
            self._rows[group.name][0].move(target_index=place)
        self._none.set_visibility(not groups)
        self._more.set_visibility(len(groups) > SHOWN)
        self._more_text.text = self._visit.t("{n} more", n=len(groups) - SHOWN)

    def _group(self, line: Line, group: Group) -> ui.element:
        visit, t = self._visit, self._visit.t
        event = lead(group)
        alarm, look = event.raised, style.EVENTS[event.state]
        waiting = [each for each in group.events if not each.acknowledged_by]
        with ui.element("div").classes(f"l-open-row tone-{look.tone}") as row:
            parts.tag(t(look.text), look.icon, look.tone, solid=look.solid)
            ui.label(t.moment(alarm.time_ns, line.now_ns)).classes("l-strong")
            with ui.element("div").classes("l-what"):
                with ui.element("div").classes("l-row"):
                    ui.icon(style.KINDS[alarm.kind]).classes("l-large")
                    ui.label(t.joined(", ".join(group.stations), t(alarm.kind))).classes("l-strong")
                    if alarm.top_sensor:
                        parts.modality(alarm.top_modality, f"{alarm.top_sensor} ({t(alarm.top_modality)})")
                    if alarm.cause:
                        ui.label(t(style.CAUSES[alarm.cause])).classes("l-strong")
                told = t.joined(
                    t.sentence(group.cause),
                    t("{n} alarms that began together", n=len(group.events)) if len(group.events) > 1 else "",
                    t("inhibited: {reason}", reason=t.sentence(event.inhibited)) if event.inhibited else "",
                )
                ui.label(told).classes("l-soft").set_visibility(bool(told))
            with ui.element("div").classes("l-actions"):
                if waiting:
                    words = t("Acknowledge") if len(waiting) == 1 else t("Acknowledge {n}", n=len(waiting))
                    seen = parts.button(words, "check", lambda: controls.acknowledge(visit, waiting), "solid")
                    controls.only(visit, "acknowledge", seen)
                parts.link(t("Open"), address(event), "arrow_forward", "l-button l-outline")
        return row


def address(event: Event) -> str:
    """Where an alarm has its page."""
    return event.page


def open_first(groups: Iterable[Group], device: str = "") -> list[Group]:
    """Groups that want somebody: those that call first, then newest first."""
    own = [group for group in groups if not device or any(event.raised.device == device for event in group.events)]
    found = [group for group in own if any(event.state != "CLEARED_ACK" for event in group.events)]
    return sorted(found, key=lambda group: not any(event.calls for event in group.events))


def lead(group: Group) -> Event:
    """The event that speaks for its group: the first that calls, else that is open."""
    ranked = sorted(group.events, key=lambda event: (not event.calls, event.state == "CLEARED_ACK"))
    return ranked[0]

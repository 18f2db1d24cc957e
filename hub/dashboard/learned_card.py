"""How many alarms people called real or not, and what the newest release makes of them."""

from __future__ import annotations

from nicegui import ui

from hub.dashboard import parts
from hub.dashboard.visit import Visit
from hub.watch import Line
from lineside.clock import NS

AGAIN_NS = 5 * NS


class LearnedCard:
    """Looked up when somebody acted here, and now and then; not drawn while nobody ever said anything."""

    def __init__(self, visit: Visit) -> None:
        self._visit = visit
        with ui.element("section").classes("l-card") as self._card:
            parts.heading(visit.t("What labels changed"))
            self._said = ui.label("")
            self._changed = ui.label("").classes("l-soft")
        self._heard: object = None

    def show(self, line: Line) -> None:
        """Bring it up to date."""
        hub, t = self._visit.hub, self._visit.t
        heard = (hub.news, line.now_ns // AGAIN_NS)
        if heard == self._heard:
            return
        self._heard = heard
        labels = hub.desk.labels.latest().values()
        real = sum(each.word == "real" for each in labels)
        self._card.set_visibility(bool(labels))
        self._said.text = t("{real} alarms were called real, {other} not real", real=real, other=len(labels) - real)
        self._changed.text = self._release()

    def _release(self) -> str:
        found, t = self._visit.hub.replays.newest(), self._visit.t
        if found is None:
            return t("no release was made since")
        kept, real, gone, other, unknown = found.counts
        told = t(
            "Version {n} raises {kept} of {real} real ones again, and {gone} of {other} that were not real no longer",
            n=found.version,
            kept=kept,
            real=real,
            gone=gone,
            other=other,
        )
        return t.joined(told, t("{n} cannot be told", n=unknown) if unknown else "")

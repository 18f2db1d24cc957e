"""What people may do about one alarm, and say of it: buttons of one touch, and a choice of kinds of faults."""

from __future__ import annotations

from functools import partial

from nicegui import ui

from hub.alarms import Event
from hub.dashboard import controls, parts
from hub.dashboard.silencing import silencing
from hub.dashboard.visit import Visit
from hub.labels import KIND_MAX, Said, Word
from hub.watch import Line
from lineside.clock import NS

AGAIN_NS = 5 * NS  # how often it is looked what was said at another hub


class LabelCard:
    """Acknowledge, silence, real, not real, which fault; and what was said last."""

    def __init__(self, visit: Visit) -> None:
        self._visit, t = visit, visit.t
        with ui.element("section").classes("l-card"):
            self._box = ui.element("div").classes("l-say")
            with ui.element("div").classes("l-say"):
                self._why = ui.input(t("Why (if you want to say)")).props("outlined").classes("l-input")
            self._said = ui.element("div").classes("l-say")
        self._heard: object = None
        self._shown: object = None

    def show(self, line: Line, event: Event) -> None:
        """Drawn anew only when somebody acted, or the alarm is over."""
        labels, alarm = self._visit.hub.desk.labels, event.raised
        heard = (event.state, event.silence, event.acknowledged_by, self._visit.hub.news, line.now_ns // AGAIN_NS)
        if heard == self._heard:
            return
        self._heard = heard
        said = next(reversed(labels.of(alarm.device, alarm.key)), None)
        now = (*heard[:3], said)
        if now == self._shown:
            return
        self._shown, kinds = now, labels.kinds()
        self._box.clear()
        with self._box:
            self._acts(line, event)
            if event.raised.kind == "device":
                return  # that it is away is no finding that anybody could judge
            self._words(event, said, kinds)
        self._said.clear()
        with self._said:
            self._last(line, event, said)

    def _acts(self, line: Line, event: Event) -> None:
        visit, t = self._visit, self._visit.t
        if not event.acknowledged_by:
            seen = partial(self._acknowledge, event)
            controls.only(visit, "acknowledge", parts.button(t("Acknowledge"), "check", seen, look="solid"))
        else:
            when = t.moment(event.acknowledged_ns, line.now_ns)
            ui.label(t("seen {time} · {who}", time=when, who=event.acknowledged_by)).classes("l-soft")
        if event.active or event.silence is not None:
            silencing(visit, line, event, self._reason)

    def _words(self, event: Event, said: Said | None, kinds: list[str]) -> None:
        t, word = self._visit.t, said.word if said else ""
        real = parts.button(t("Real"), "report", partial(self._say, event, "real"))
        other = parts.button(t("Not real"), "thumb_down", partial(self._say, event, "not real"))
        for made, of in ((real, "real"), (other, "not real")):
            controls.only(self._visit, "label", made)
            made.props["aria-pressed"] = "true" if word == of else "false"
            if word == of:
                made.classes(replace="l-button l-solid")
        which = parts.button(t("Which fault"), "category")
        with controls.only(self._visit, "label", which), ui.menu().classes("l-menu") as menu:
            for kind in kinds:
                choice = ui.item(on_click=partial(self._say, event, "real", kind))
                with choice.props("v-close-popup").classes("l-choice"):
                    ui.label(kind)
            with ui.element("div").classes("l-choice"):
                named = ui.input(t("Another one")).props(f"outlined maxlength={KIND_MAX}")

                async def name() -> None:
                    menu.close()
                    said = " ".join((named.value or "").split())
                    known = {kind.casefold(): kind for kind in kinds}  # one fault, however it is spelled
                    await self._say(event, "real", known.get(said.casefold(), said))

                parts.button(t("Say so"), "check", name, look="solid")

    def _last(self, line: Line, event: Event, said: Said | None) -> None:
        t = self._visit.t
        if said is None or not said.stands:
            ui.label(t("Nobody said yet what it was.")).classes("l-soft")
            return
        parts.label(t, said)
        told = t("said by {who}, {time}", who=said.who, time=t.moment(said.time_ns, line.now_ns))
        ui.label(t.joined(told, said.why)).classes("l-soft")
        back = parts.button(t("Take it back"), "undo", partial(self._say, event, "withdrawn"), look="flat")
        controls.only(self._visit, "label", back)

    async def _say(self, event: Event, word: Word, kind: str = "") -> None:
        await controls.label(self._visit, event, word, kind, self._reason())

    def _acknowledge(self, event: Event) -> None:
        controls.acknowledge(self._visit, [event], self._reason())

    def _reason(self) -> str:
        """What stands in the field, which is of one act and then empty."""
        why, self._why.value = (self._why.value or "").strip(), ""
        return why

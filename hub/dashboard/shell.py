"""What is around every page: navigation, clock, broker, language, appearance, and the word when the hub is not heard.

A page is a module with `mount(hub)`, listed in hub.dashboard.server.PAGES:

    def mount(hub: Hub) -> None:
        @ui.page("/fleet")
        def fleet(request: Request) -> None:
            shell.show(Visit.of(hub, request), "Fleet", Fleet)

where `Fleet(visit)` draws itself into the page and `show(line)` brings it up to date.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from nicegui import run, ui
from sqlalchemy.exc import SQLAlchemyError

from hub.dashboard import parts, style
from hub.dashboard.language import LANGUAGES
from hub.dashboard.visit import THEMES, Visit
from hub.line import Hub
from hub.watch import Line
from lineside.clock import NS

CHECK_S, SHOW_NS = 0.05, NS // 2
DARK = {"auto": None, "light": False, "dark": True}
BROKER = {True: "broker connected", False: "broker away", None: "not known now"}
BLIND = "The hub cannot read its store: what you see is old."
TROUBLES: dict[str, Callable[[Line], bool]] = {
    "The hub does not hear the broker: what devices say now is missing here.": lambda line: not line.broker,
    "The hub cannot write to its store: messages wait on the devices.": lambda line: bool(line.store),
}
QUASAR = {"en": "en-US", "ja": "ja"}


class View(Protocol):
    """The content of an open page."""

    def show(self, line: Line) -> None: ...


@dataclass(frozen=True)
class Place:
    """One entry of the navigation."""

    path: str
    name: str
    icon: str


PLACES = (
    Place("/", "Line", "precision_manufacturing"),
    Place("/alarms", "Alarms", "notifications"),
    Place("/releases", "Releases", "system_update_alt"),
    Place("/fleet", "Fleet", "developer_board"),
)


def show(visit: Visit, name: str, make: Callable[[Visit], View], *, title: str = "") -> None:
    """Draw a page and keep it up to date; `name` is the entry of the navigation that it belongs to."""
    header = begin(visit, name, title or visit.t(name))
    with ui.element("div").classes("l-content") as content:
        view = make(visit)
    live = _Live(visit.hub, header, view, content)
    live.show(visit.hub.look())
    ui.timer(CHECK_S, live.check)


def begin(visit: Visit, name: str, title: str) -> Header:
    """What is around a page."""
    _dress(visit, title)
    return Header(visit, name)


def _dress(visit: Visit, title: str) -> None:
    """Language, colours and assets, all of them the hub's own: a plant has no way to a CDN."""
    client = ui.context.client
    client.title = f"{title} · {visit.hub.plant.site} · lineside"
    client.page = copy.copy(client.page)  # of all visitors' page one that is this visitor's
    client.page.language, client.page.dark = QUASAR[visit.t.code], DARK[visit.theme]  # type: ignore[assignment]
    told = {
        "lost": visit.t("No connection to the hub since {time}. What you see is old."),
        "back": visit.t("The connection to the hub is back."),
    }
    ui.add_head_html(
        f'<link rel="stylesheet" href="{style.asset("line.css")}"><script src="{style.asset("shell.js")}"></script>'
        f'<script src="{style.asset("live.js")}"></script><script>lineside.watch({json.dumps(told)})</script>'
    )
    ui.colors(primary=style.BUTTON)


class _Live:
    """Shows the line twice a second, and at once when an alarm came in or somebody acted on one."""

    def __init__(self, hub: Hub, header: Header, view: View, content: ui.element) -> None:
        self._hub, self._header, self._view, self._content = hub, header, view, content
        self._news, self._shown_ns = -1, 0

    async def check(self) -> None:
        """Look in a thread, so that a slow database holds up no other page."""
        news, now_ns = self._hub.news, self._hub.clock.now_ns()
        if news == self._news and now_ns - self._shown_ns < SHOW_NS:
            return
        self._news, self._shown_ns = news, now_ns
        try:
            line: Line | str | None = await run.io_bound(self._hub.look)
        except SQLAlchemyError:  # it may be over with the next look; meanwhile nothing old is shown as new
            line = BLIND
        if line is None or self._content.is_deleted:  # the hub is stopping, or whoever looked has left meanwhile
            return
        if isinstance(line, str):
            self._header.blind()
            self._content.classes("l-old")
            return
        self._content.classes(remove="l-old")
        self.show(line)

    def show(self, line: Line) -> None:
        self._header.show(line)
        self._view.show(line)


class Header:
    """The bar on top of every page, and below it what is wrong with the hub itself."""

    def __init__(self, visit: Visit, name: str) -> None:
        self._visit = visit
        with ui.element("header").classes("l-head"):
            with ui.element("div").classes("l-brand"):
                ui.label("lineside")
                ui.label(visit.hub.plant.site).classes("l-site")
            self._calling = self._navigation(name)
            ui.space()
            self._broker = ui.element("div").classes("l-broker")
            self._clock = ui.label("").classes("l-clock")
            self._choices()
        self._trouble = ui.element("div").classes("l-banners")
        self._shown: object = None

    def show(self, line: Line) -> None:
        """Bring the header up to date."""
        t = self._visit.t
        self._clock.text = t.clock(line.now_ns)
        calling = sum(event.calls for event in line.events)
        self._calling.text = str(calling)
        self._calling.set_visibility(calling > 0)
        self._state(line.broker, _troubles(line))

    def blind(self) -> None:
        """Say that nothing can be known now."""
        self._state(None, (BLIND,))

    def _state(self, broker: bool | None, troubles: tuple[str, ...]) -> None:
        if (broker, troubles) == self._shown:
            return
        self._shown, t = (broker, troubles), self._visit.t
        self._broker.clear()
        with self._broker:
            parts.tag(t(BROKER[broker]), "hub", {True: "good", False: "bad", None: "off"}[broker])
        self._trouble.clear()
        with self._trouble:
            for trouble in troubles:
                with ui.element("div").classes("l-banner tone-bad").props("role=alert"):
                    ui.icon("warning")
                    ui.label(t(trouble))

    def _navigation(self, name: str) -> ui.label:
        """Links to every page; gives the number beside the alarms."""
        t = self._visit.t
        with ui.element("nav").classes("l-nav") as nav:
            nav.props["aria-label"] = t("Pages")
            for place in PLACES:
                here = place.name == name
                made = parts.link(t(place.name), place.path, place.icon, f"l-place {'here' if here else ''}")
                if here:
                    made.props["aria-current"] = "page"
                if place.path == "/alarms":
                    with made:
                        calling = ui.label("").classes("l-badge")
                        calling.set_visibility(False)
        return calling

    def _choices(self) -> None:
        visit, t = self._visit, self._visit.t
        other = "en" if t.code == "ja" else "ja"
        parts.link(LANGUAGES[other], visit.link(language=other), "translate").props["lang"] = other  # type: ignore[index]
        with parts.icon_button("contrast", t("Appearance")), ui.menu().classes("l-menu"):
            for theme, name in THEMES.items():
                icon = "radio_button_checked" if theme == visit.theme else "radio_button_unchecked"
                parts.link(t(name), visit.link(theme=theme), icon, "l-choice")
        if visit.hub.plant.hub.login:
            who = visit.visitor.who
            with ui.element("form").props('method="post" action="/logout"'):
                leave = parts.button(f"{who.name} · {t(who.role)}", "logout", look="flat").props("type=submit")
                leave.props["title"] = t("Log out")


def _troubles(line: Line) -> tuple[str, ...]:
    """What keeps the hub from knowing its line."""
    return tuple(phrase for phrase, is_so in TROUBLES.items() if is_so(line))

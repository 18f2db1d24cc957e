"""One visit of somebody to a page: who it is, in which language, light or dark."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlencode

from fastapi import FastAPI, Request
from starlette.requests import HTTPConnection
from starlette.responses import RedirectResponse, Response

from hub.dashboard import language
from hub.dashboard.gate import Visitor, inside
from hub.dashboard.language import LANGUAGES, Language, language_of
from hub.line import Hub

Theme = Literal["auto", "light", "dark"]
THEMES: dict[Theme, str] = {"auto": "As the device", "light": "Light", "dark": "Dark"}
COOKIE = "lineside_theme"
PATH = "/look"
YEAR_S = 365 * 86_400


@dataclass(frozen=True)
class Visit:
    """What a page needs to know; `t("…")` is a phrase in the visitor's language."""

    hub: Hub
    visitor: Visitor
    t: Language
    theme: Theme = "auto"
    path: str = "/"

    @classmethod
    def of(cls, hub: Hub, request: Request) -> Visit:
        """The visit that a request begins."""
        return cls(hub, Visitor.of(request), language_of(request), theme_of(request), request.url.path)

    def link(self, **chosen: str) -> str:
        """Where to go to see this page in another language or theme."""
        return f"{PATH}?{urlencode({**chosen, 'next': self.path})}"


def theme_of(connection: HTTPConnection) -> Theme:
    """What the visitor has chosen, else as the device has it."""
    chosen = connection.cookies.get(COOKIE)
    return next((theme for theme in THEMES if theme == chosen), "auto")


def mount(app: FastAPI, *, secure: bool) -> None:
    """Add the route that keeps a choice in a cookie; it changes nothing else, so it needs no login."""

    @app.get(PATH, include_in_schema=False)
    def choose(request: Request) -> Response:
        asked = request.query_params
        answer = RedirectResponse(inside(asked.get("next", "/")), 303)
        for name, value, known in (
            (language.COOKIE, asked.get("language", ""), LANGUAGES),
            (COOKIE, asked.get("theme", ""), THEMES),
        ):
            if value in known:
                answer.set_cookie(name, value, max_age=YEAR_S, httponly=True, secure=secure, samesite="lax")
        return answer

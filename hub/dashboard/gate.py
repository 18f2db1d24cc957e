"""The one door of the web server: nobody passes without a session, no other site acts in a visitor's name.

An ASGI application around all others, so that no page, route or socket can be forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from hub.accounts import Accounts, Who
from lineside.errors import AccessError
from lineside.plant import HubSettings, is_loopback

COOKIE = "lineside_session"
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
# What needs no login: whether the hub is well, the login itself, a choice of language, signed releases for devices, and
# files that are in every copy of lineside.
OPEN = ("/healthz", "/login", "/look", "/repository/", "/assets/", "/_nicegui/")
LOCAL = Who("operator", "engineer")  # where no login is asked for, whoever is on this machine
# Pages may load nothing from elsewhere: a plant has no way out. NiceGUI's own scripts and styles are inline, and Vue
# compiles its templates in the browser.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
}


class Gate:
    """`accounts` None: no login is asked for, which the plant file allows on loopback only."""

    def __init__(self, app: ASGIApp, settings: HubSettings, accounts: Accounts | None) -> None:
        self._app, self._settings, self._accounts = app, settings, accounts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass with `scope["state"]["who"]` set, or answer it."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        answer = self._foreign(scope, connection.headers)
        if answer is None:
            answer = await self._stopped(scope, connection)
        if answer is None:
            await self._app(scope, receive, _hardened(send))
        elif scope["type"] == "websocket":
            await receive()  # `websocket.connect`, which must be taken before it is answered
            await send({"type": "websocket.close", "code": 1008, "reason": "not logged in here"})
        else:
            await answer(scope, receive, _hardened(send))

    async def _stopped(self, scope: Scope, connection: HTTPConnection) -> Response | None:
        """Note who it is; the answer for somebody who may not pass."""
        who = None
        try:
            who = await self._who(connection)
            answer = None if who else _login(scope, connection)
        except SQLAlchemyError:  # a browser tries again by itself
            told = {"error": "the hub cannot read its store, where sessions are; its log says more"}
            answer = JSONResponse(told, 503, {"Refresh": "5", "Retry-After": "5"})
        scope.setdefault("state", {}).update(who=who, accounts=self._accounts)
        return None if _is_open(connection.url.path) else answer

    async def _who(self, connection: HTTPConnection) -> Who | None:
        if self._accounts is None:
            return LOCAL
        token = token_of(connection)
        return await run_in_threadpool(self._accounts.who, token) if token else None

    def _foreign(self, scope: Scope, headers: Headers) -> Response | None:
        """Refuse what another site lets a visitor's browser ask (CSRF), or asks by a name that is not ours.

        The second is DNS rebinding: a page of somebody else whose name was made to point at this machine.
        """
        host = headers.get("host", "")
        name = urlsplit(f"//{host}").hostname or ""
        if is_loopback(self._settings.host) and not (is_loopback(name) or name in self._settings.names):
            told = f"this hub does not answer as {name!r}; add it to [hub] names of the plant file"
            return JSONResponse({"error": told}, 421)
        origin = headers.get("origin")
        acts = scope["type"] == "websocket" or scope["method"] not in SAFE
        if acts and origin is not None and urlsplit(origin).netloc != host:
            return JSONResponse({"error": f"a page of {origin} may not act here"}, 403)
        return None


def token_of(connection: HTTPConnection) -> str:
    """The session's token: a browser's cookie, or a program's `Authorization: Bearer …`."""
    scheme, _, token = connection.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else connection.cookies.get(COOKIE, "")


@dataclass(frozen=True)
class Visitor:
    """Somebody before an open page, for as long as the session lasts."""

    who: Who
    _accounts: Accounts | None
    _token: str

    @classmethod
    def of(cls, request: Request) -> Visitor:
        """Who a request is from: the gate has let nobody else through."""
        accounts: Accounts | None = request.state.accounts
        return cls(request.state.who, accounts, token_of(request))

    def must(self, action: str) -> Who:
        """Who acts. Raises AccessError where the session has ended since, or the role is not enough."""
        who = self._accounts.who(self._token) if self._accounts else self.who
        if who is None:
            raise AccessError(self.who.name, "the session has ended", "log in again")
        who.must(action)
        return who


def inside(path: str) -> str:
    """Where to go next: a path of ours, never another site.

    >>> inside("/station/press-3"), inside("//evil.example"), inside("https://evil.example"), inside("/\\\\evil")
    ('/station/press-3', '/', '/', '/')
    """
    return path if path.startswith("/") and not path.startswith("//") and "\\" not in path else "/"


def _is_open(path: str) -> bool:
    return any(path == one or (one.endswith("/") and path.startswith(one)) for one in OPEN)


def _login(scope: Scope, connection: HTTPConnection) -> Response:
    path = connection.url.path
    wants_page = scope["type"] == "http" and "text/html" in connection.headers.get("accept", "")
    if wants_page and not path.startswith("/api/"):
        return RedirectResponse(f"/login?next={quote(path)}", 303)
    return JSONResponse({"error": "log in at /login, or send a token: Authorization: Bearer …"}, 401)


def _hardened(send: Send) -> Send:
    async def sending(message: Any) -> None:
        if message["type"] == "http.response.start":
            given = {name.lower() for name, _ in message.get("headers", [])}
            more = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
            message["headers"] = [*message.get("headers", []), *(one for one in more if one[0] not in given)]
        await send(message)

    return sending

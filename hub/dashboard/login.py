"""The login: a plain page without scripts, in English and Japanese."""

from __future__ import annotations

from html import escape

from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, RedirectResponse, Response

from hub.accounts import Accounts
from hub.dashboard.gate import COOKIE, inside, token_of
from hub.dashboard.language import language_of
from hub.dashboard.visit import theme_of
from lineside.errors import AccessError

PAGE = """<!doctype html>
<html lang="{language}" class="{theme}"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>lineside · {title}</title><link rel="stylesheet" href="/assets/login.css"></head>
<body><form method="post" action="/login">
<h1>lineside <small>{site}</small></h1>{told}
<input type="hidden" name="next" value="{next}">
<label>{name}<input name="name" autocomplete="username" required autofocus value="{typed}"></label>
<label>{password}<input name="password" type="password" autocomplete="current-password" required></label>
<button type="submit">{title}</button>
</form></body></html>
"""


def mount(app: FastAPI, site: str, accounts: Accounts, *, secure: bool, hours: float) -> None:
    """Add /login and /logout; `secure` is whether the cookie travels over HTTPS only."""

    @app.get("/login", include_in_schema=False)
    def ask(request: Request) -> Response:
        return _page(request, site, inside(request.query_params.get("next", "/")))

    @app.post("/login", include_in_schema=False)
    async def enter(request: Request) -> Response:
        form = await request.form(max_files=0, max_fields=3)
        name, password = str(form.get("name", "")), str(form.get("password", ""))
        goal = inside(str(form.get("next", "/")))
        address = request.client.host if request.client else ""
        try:
            token = await run_in_threadpool(accounts.enter, name, password, address)
        except AccessError as error:
            return _page(request, site, goal, name, error)
        answer = RedirectResponse(goal, 303)
        age_s = round(hours * 3600)
        answer.set_cookie(COOKIE, token, max_age=age_s, httponly=True, secure=secure, samesite="lax")
        return answer

    @app.post("/logout", include_in_schema=False)
    async def leave(request: Request) -> Response:
        await run_in_threadpool(accounts.leave, token_of(request))
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(COOKIE)
        return answer


def _page(request: Request, site: str, goal: str, typed: str = "", error: AccessError | None = None) -> Response:
    t = language_of(request)
    waits = error is not None and "wait" in error.reason
    told = f'<p role="alert">{escape(str(error) if waits else t("Name or password is wrong."))}</p>' if error else ""
    filled = {
        "language": t.code,
        "theme": theme_of(request),
        "title": t("Log in"),
        "name": t("Name"),
        "password": t("Password"),
        "site": escape(site),
        "next": escape(goal),
        "typed": escape(typed[:64]),
        "told": told,
    }
    return HTMLResponse(PAGE.format(**filled), 429 if waits else 401 if error else 200)

"""The pages for what went wrong: an address where nothing is, and a page that cannot be shown now."""

from __future__ import annotations

from nicegui import Client, ui
from nicegui import app as nicegui_app
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hub.dashboard import parts, shell
from hub.dashboard.visit import Visit
from hub.line import Hub
from hub.watch import Line

AGAIN_S = 5


def mount(hub: Hub) -> None:
    """Show them in place of NiceGUI's own."""

    @nicegui_app.exception_handler(404)
    async def missing(request: Request, _error: Exception) -> Response:
        if "text/html" not in request.headers.get("accept", ""):
            return JSONResponse({"error": f"nothing is at {request.url.path}"}, 404)
        with Client(ui.page(""), request=request) as client:
            visit = Visit.of(hub, request)
            try:
                hub.look()  # before anything is drawn; what the page shows is this look
            except SQLAlchemyError as error:
                _failed(visit, error)
            else:
                shell.show(visit, "", Missing, title=visit.t("Nothing is here"))
            return client.build_response(request, 404)

    @nicegui_app.on_page_exception
    def failed(error: Exception) -> None:
        request = ui.context.client.request
        assert request is not None  # a page is built for one
        _failed(Visit.of(hub, request), error)


class Missing:
    """What an address says where nothing is."""

    def __init__(self, visit: Visit) -> None:
        with ui.element("section").classes("l-card"):
            parts.heading(visit.t("Nothing is here"))
            ui.label(visit.t("There is no page {path}.", path=visit.path[:200])).classes("l-soft")
            parts.link(visit.t("Back to the line"), "/", "arrow_back")

    def show(self, line: Line) -> None:
        """Nothing changes."""


def _failed(visit: Visit, error: Exception) -> None:
    """Say so, and try again by itself: what is wrong with a store may be over soon."""
    header, t = shell.begin(visit, "", visit.t("This page cannot be shown now")), visit.t
    if isinstance(error, SQLAlchemyError):
        header.blind()
    ui.add_head_html(f'<meta http-equiv="refresh" content="{AGAIN_S}">')
    with ui.element("div").classes("l-content"), ui.element("section").classes("l-card"):
        parts.heading(t("This page cannot be shown now"))
        ui.label(t("It is tried again every {n} s; the hub's log says more.", n=AGAIN_S)).classes("l-soft")

"""The hub's read API, version 1, under /api/v1; `openapi.json` beside it says all of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import msgspec
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import StreamingResponse
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

from hub import export
from hub.dashboard.answers import AlarmEvent, Device, Gap, Page, Refused, Status, documented, schemas, told
from hub.dashboard.gate import COOKIE
from hub.history import History, Place, Span
from hub.line import Hub
from hub.tables import INT64_MAX
from hub.trouble import reason
from lineside.errors import LinesideError

TITLE, ABOUT = (
    "lineside hub",
    "What a line's hub has stored. Times are nanoseconds since 1970 (UTC), pages oldest first.",
)
NAME = "[a-z0-9][a-z0-9._-]{0,62}"
DOORS = {
    "token": {"type": "http", "scheme": "bearer", "description": "From `lineside hub user token NAME`."},
    "session": {"type": "apiKey", "in": "cookie", "name": COOKIE, "description": "What a browser has after the login."},
}
T = TypeVar("T")

DeviceName = Annotated[str, Query(pattern=f"^{NAME}$", description="A device; /devices lists them.")]
AnyDevice = Annotated[str, Query(pattern=f"^({NAME})?$", description="Empty: every one.")]
Since = Annotated[int, Query(ge=0, le=INT64_MAX, description="Not before.")]
Until = Annotated[int, Query(ge=0, le=INT64_MAX, description="Before.")]
Limit = Annotated[int, Query(ge=1, le=5000, description="At most so many.")]
Cursor = Annotated[str, Query(pattern=f"^({Place.PATTERN})?$", max_length=400, description="`next` of a page.")]


def application(hub: Hub) -> FastAPI:
    """The API as an application of its own, so that its errors and its document are its own."""
    v1 = FastAPI(title=TITLE, docs_url=None, redoc_url=None)
    history = History(hub.store.engine)
    _mount_now(v1, hub)
    _mount_moments(v1, hub, history)
    _mount_words(v1, history)
    _mount_export(v1, history)
    v1.add_exception_handler(RequestValidationError, _not_valid)
    v1.add_exception_handler(HTTPException, _not_here)
    v1.add_exception_handler(SQLAlchemyError, _not_now)
    v1.openapi = lambda: _document(v1, login=hub.plant.hub.login)  # type: ignore[method-assign] # as FastAPI's documentation asks for
    return v1


def _mount_now(v1: FastAPI, hub: Hub) -> None:
    @v1.get("/status", response_class=Response, responses=documented("Status", "The hub."))
    def status() -> Response:
        """How the hub is and what it has stored."""
        line = hub.look()
        return told(Status(hub.plant.site, line.now_ns, line.broker, hub.store.counts(), line.ingest))

    @v1.get("/devices", response_class=Response, responses=documented("Devices", "Worst first."))
    def devices() -> Response:
        """Every device as it stands now, worst first; always one page."""
        return told(Page([Device.of(station) for station in hub.look().stations]))

    @v1.get("/gaps", response_class=Response, responses=documented("Gaps", "What never came.", [422]))
    def gaps(device: DeviceName) -> Response:
        """Sequence numbers that never came and that no tombstone accounts for; always one page."""
        found = hub.store.gaps(device)
        return told(Page([Gap(epoch, *lost) for epoch, ranges in found.items() for lost in ranges]))


def _mount_moments(v1: FastAPI, hub: Hub, history: History) -> None:
    @v1.get("/scores", response_class=Response, responses=documented("Scores", "A page of scores.", [422]))
    def scores(
        device: DeviceName, since_ns: Since = 0, until_ns: Until = INT64_MAX, cursor: Cursor = "", limit: Limit = 500
    ) -> Response:
        """Scores of moments that began in a span."""
        span = _span(device, since_ns, until_ns, cursor)
        return told(_page(limit, lambda more: history.page("score", span, more)))

    @v1.get("/windows", response_class=Response, responses=documented("Windows", "A page of times.", [422]))
    def windows(
        device: DeviceName,
        modality: Annotated[str, Query(pattern=f"^{NAME}$")],
        since_ns: Since = 0,
        until_ns: Until = INT64_MAX,
        cursor: Cursor = "",
        limit: Limit = 500,
    ) -> Response:
        """start_ns of every stored embedding of a modality: what proves that no window was lost."""
        span = _span(device, since_ns, until_ns, cursor)
        return told(_page(limit, lambda more: history.windows(modality, span, more)))


def _mount_words(v1: FastAPI, history: History) -> None:
    @v1.get("/alarms", response_class=Response, responses=documented("Alarms", "A page of alarms.", [422]))
    def alarms(
        device: AnyDevice = "",
        since_ns: Since = 0,
        until_ns: Until = INT64_MAX,
        cursor: Cursor = "",
        limit: Limit = 500,
    ) -> Response:
        """Alarms that were raised in a span, each as it stands now."""
        span = _span(device, since_ns, until_ns, cursor)
        page = _page(limit, lambda more: history.alarms(span, more))
        return told(Page([AlarmEvent.of(event) for event in page.items], page.next))

    @v1.get("/health", response_class=Response, responses=documented("Healths", "A page of health.", [422]))
    def health(
        device: DeviceName, since_ns: Since = 0, until_ns: Until = INT64_MAX, cursor: Cursor = "", limit: Limit = 500
    ) -> Response:
        """What a device said of itself in a span."""
        span = _span(device, since_ns, until_ns, cursor)
        return told(_page(limit, lambda more: history.page("health", span, more)))

    @v1.get("/manifests", response_class=Response, responses=documented("Manifests", "A page of manifests.", [422]))
    def manifests(
        device: DeviceName, since_ns: Since = 0, until_ns: Until = INT64_MAX, cursor: Cursor = "", limit: Limit = 500
    ) -> Response:
        """What a device signed that it runs, at each change in a span."""
        span = _span(device, since_ns, until_ns, cursor)
        return told(_page(limit, lambda more: history.page("manifest", span, more)))


def _mount_export(v1: FastAPI, history: History) -> None:
    files = {
        "text/csv": {"schema": {"type": "string"}},
        export.MEDIA["parquet"]: {"schema": {"type": "string", "format": "binary"}},
    }
    answers = documented("Refused", "The file.", [422, 501])
    answers[200] = {"description": "The file, of any length.", "content": files}

    @v1.get("/export/scores", response_class=Response, responses=answers)
    def scores(
        device: DeviceName, form: export.Form = "csv", since_ns: Since = 0, until_ns: Until = INT64_MAX
    ) -> Response:
        """All scores of a device in a span, as CSV or Parquet."""
        return _file(history, "score", form, Span(device, since_ns, until_ns))

    @v1.get("/export/alarms", response_class=Response, responses=answers)
    def alarms(
        device: AnyDevice = "", form: export.Form = "csv", since_ns: Since = 0, until_ns: Until = INT64_MAX
    ) -> Response:
        """All alarms that were raised in a span, as CSV or Parquet."""
        return _file(history, "alarm", form, Span(device, since_ns, until_ns))


def _file(history: History, kind: str, form: export.Form, span: Span) -> Response:
    try:
        pieces = export.write(kind, form, history.every(kind, span))
    except LinesideError as error:
        return told(Refused.of("not-installed", error), 501)
    name = f"{kind}s-{span.device or 'all'}.{form}"
    return StreamingResponse(
        pieces, media_type=export.MEDIA[form], headers={"Content-Disposition": f'attachment; filename="{name}"'}
    )


def _span(device: str, since_ns: int, until_ns: int, cursor: str) -> Span:
    return Span(device, since_ns, until_ns, Place.parse(cursor) if cursor else None)


def _page(limit: int, find: Callable[[int], list[tuple[Place, T]]]) -> Page[T]:
    """One more than asked for is looked up: it tells whether there is a next page."""
    found = find(limit + 1)
    following = found[limit - 1][0].text if len(found) > limit else ""
    return Page([one for _, one in found[:limit]], following)


def _not_valid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return told(Refused("parameter", ".".join(map(str, first["loc"][1:])), first["msg"], "see openapi.json"), 422)


def _not_here(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    names = {404: "no-such-path", 405: "no-such-method"}
    refused = Refused(
        names.get(error.status_code, "refused"), request.url.path, str(error.detail).lower(), "see openapi.json"
    )
    answer = told(refused, error.status_code)
    answer.headers.update(error.headers or {})
    return answer


def _not_now(_request: Request, error: Exception) -> Response:
    assert isinstance(error, SQLAlchemyError)
    return told(Refused("store", "hub.database", reason(error), "ask again; the hub's log says more"), 503)


def _document(v1: FastAPI, *, login: bool) -> dict[str, Any]:
    """The routes as FastAPI knows them, with our own types as their answers; with `login` also what lets in."""
    if v1.openapi_schema is None:
        made = get_openapi(title=TITLE, version="1", description=ABOUT, routes=v1.routes)
        components = made.setdefault("components", {})
        components["schemas"] = schemas()
        if login:
            components["securitySchemes"] = DOORS
            made["security"] = [{name: []} for name in DOORS]
        v1.openapi_schema = msgspec.to_builtins(made)
    return v1.openapi_schema or {}

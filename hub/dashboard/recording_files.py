"""The files of a recording's view, and the recording itself, for who may see them."""

from __future__ import annotations

import re

from fastapi import Request
from nicegui import app
from starlette.responses import FileResponse, JSONResponse, Response

from hub.dashboard.gate import Visitor
from hub.evidence import view
from hub.line import Hub
from lineside.errors import AccessError, LinesideError

PATH = "/evidence"
WHOLE = "recording.mcap"
MEDIA = {".jpg": "image/jpeg", ".png": "image/png", ".wav": "audio/wav", ".mcap": "application/octet-stream"}
HEADERS = {"Cache-Control": "private, max-age=3600", "Content-Security-Policy": "default-src 'none'; sandbox"}


def mount(hub: Hub) -> None:
    """Add the route: nothing but files of a view, under their own names and types."""

    @app.get(PATH + "/{device}/{recording}/{name}", include_in_schema=False)
    def file(request: Request, device: str, recording: str, name: str) -> Response:
        try:
            Visitor.of(request).must("evidence")
            path = hub.evidence.path(device, recording)
        except AccessError as error:
            return JSONResponse({"error": str(error)}, 403)
        except LinesideError as error:
            return JSONResponse({"error": str(error)}, 404)
        wanted = path if name == WHOLE else view.folder_of(path) / name
        if not (name == WHOLE or re.fullmatch(view.FILE, name)) or not wanted.is_file():
            return JSONResponse({"error": f"{name[:80]!r} is not there"}, 404)
        download = f"{device}-{recording}" if name == WHOLE else None
        return FileResponse(wanted, media_type=MEDIA[wanted.suffix], headers=HEADERS, filename=download)

"""One web server for pages, API and repository, on a socket that was bound before anything else was started."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI
from nicegui import ui

from hub.dashboard import api, page
from hub.line import Hub
from lineside.errors import LinesideError

LEAVE_S = 2


def build(hub: Hub) -> FastAPI:
    """The application of one hub. NiceGUI keeps one per process, so build it once."""
    app = FastAPI(title="lineside hub", docs_url=None, redoc_url=None)
    api.mount(app, hub)
    page.mount(hub)
    # No gzip: devices read the repository through this server and check every length.
    ui.run_with(app, title=f"lineside · {hub.plant.site}", favicon="📈", dark=None, gzip_middleware_factory=None)
    return app


def serve(app: FastAPI, bound: socket.socket, stop: threading.Event, on_ready: Callable[[], None]) -> None:
    """Serve in a thread until `stop` is set; `on_ready` is called once requests are answered.

    Raises LinesideError when the server ends by itself.
    In a thread because uvicorn in the main one would take the signals for itself and end the process with them.
    """
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=LEAVE_S))
    serving = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, name="dashboard", daemon=True)
    serving.start()
    while not server.started and serving.is_alive():
        stop.wait(0.02)
    if server.started:
        on_ready()
    while serving.is_alive() and not stop.wait(0.2):
        pass
    if not stop.is_set():
        raise LinesideError("dashboard", "the web server ended by itself", "see the lines above, start the hub again")
    server.should_exit = True
    serving.join()

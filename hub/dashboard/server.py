"""One web server for pages, API and repository, on a socket that was bound before anything else was started."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from nicegui import app as nicegui_app
from nicegui import ui

from hub.dashboard import (
    alarm_page,
    alarms_page,
    api,
    fleet_page,
    line_page,
    login,
    mishap,
    past_page,
    releases_page,
    station_page,
    style,
    visit,
)
from hub.dashboard.gate import Gate
from hub.line import Hub
from lineside.errors import ConfigError, LinesideError

LEAVE_S = 2
PAGES: tuple[Callable[[Hub], None], ...] = (
    line_page.mount,
    station_page.mount,
    alarms_page.mount,
    alarm_page.mount,
    past_page.mount,
    releases_page.mount,
    fleet_page.mount,
)


@dataclass(frozen=True)
class Tls:
    """Certificate (with its chain) and key, PEM."""

    cert: Path
    key: Path

    def usable(self) -> tuple[str, str]:
        """Both paths. Raises ConfigError for files that are no pair."""
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.cert, self.key)
        except (OSError, ssl.SSLError) as error:
            told = f"cannot be used with {self.key} ({error})"
            raise ConfigError(str(self.cert), told, "give a PEM certificate and its unencrypted key") from error
        return str(self.cert), str(self.key)


def build(hub: Hub) -> FastAPI:
    """The application of one hub. NiceGUI keeps one per process, so build it once."""
    app = FastAPI(openapi_url=None)  # the read API has a document of its own
    api.mount(app, hub)
    nicegui_app.add_static_files("/assets", style.ASSETS)
    for mount in (*PAGES, mishap.mount):
        mount(hub)
    settings, accounts = hub.plant.hub, hub.accounts if hub.plant.hub.login else None
    secure = bool(settings.cert_file)
    visit.mount(app, secure=secure)
    if accounts is not None:
        login.mount(app, hub.plant.site, accounts, secure=secure, hours=settings.session_hours)
    app.add_middleware(Gate, settings=settings, accounts=accounts)
    # No gzip: devices read the repository through this server and check every length.
    # No Tailwind: it would compile styles in the browser at every page; assets/line.css has all there are.
    title = f"lineside · {hub.plant.site}"
    ui.run_with(app, title=title, favicon="📈", dark=None, tailwind=False, gzip_middleware_factory=None)
    return app


def serve(
    app: FastAPI, bound: socket.socket, stop: threading.Event, on_ready: Callable[[], None], tls: Tls | None = None
) -> None:
    """Serve in a thread until `stop` is set; `on_ready` is called once requests are answered.

    Raises ConfigError for a certificate or key that cannot be used, LinesideError when the server ends by itself.
    In a thread because uvicorn in the main one would take the signals for itself and end the process with them.
    """
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=LEAVE_S, server_header=False)
    if tls is not None:
        config.ssl_certfile, config.ssl_keyfile = tls.usable()
    server = uvicorn.Server(config)
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

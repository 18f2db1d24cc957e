"""Which encoder version runs where, how far a rollout is, and the way back."""

from __future__ import annotations

from fastapi import Request
from nicegui import ui

from hub.dashboard import shell
from hub.dashboard.encoders import Encoders
from hub.dashboard.visit import Visit
from hub.line import Hub
from hub.watch import Line


def mount(hub: Hub) -> None:
    """Add the page."""

    @ui.page("/releases")
    def releases_page(request: Request) -> None:
        shell.show(Visit.of(hub, request), "Releases", ReleasesView)


class ReleasesView:
    """One open page."""

    def __init__(self, visit: Visit) -> None:
        self._encoders = Encoders(visit)

    def show(self, line: Line) -> None:
        """Bring every part up to date."""
        self._encoders.show(line)

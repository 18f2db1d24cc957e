"""Which encoder version runs where, how far each rollout is, and the way back."""

from __future__ import annotations

import shlex

from fastapi import Request
from nicegui import run, ui
from sqlalchemy.exc import SQLAlchemyError

from hub.dashboard import parts, shell
from hub.dashboard.rollouts import Rollouts
from hub.dashboard.versions import Versions
from hub.dashboard.visit import Visit
from hub.line import Hub
from hub.watch import Line

EVERY_S = 2.0


def mount(hub: Hub) -> None:
    """Add the page."""

    @ui.page("/releases")
    def releases_page(request: Request) -> None:
        shell.show(Visit.of(hub, request), "Releases", ReleasesView)


class ReleasesView:
    """One open page; it looks by itself, for what it shows is read from files."""

    def __init__(self, visit: Visit) -> None:
        self._visit, t = visit, visit.t
        self._trouble = ui.element("div").classes("l-banner tone-bad")
        with self._trouble:
            ui.icon("warning")
            self._reason = ui.label("")
        self._trouble.set_visibility(False)
        self._rollouts, self._versions = Rollouts(visit), Versions(visit)
        with ui.column().classes("l-card"):
            parts.heading(t("Roll back on every device"))
            ui.label(t("Needs the key of the modality, which the hub does not have. Where it lies, run:")).classes(
                "l-soft"
            )
            for modality in visit.hub.plant.modalities:
                parts.command(t, command(visit, "rollback", modality))
        ui.timer(EVERY_S, self.look)

    def show(self, line: Line) -> None:
        """What a look at the line knows is on the other pages."""

    async def look(self) -> None:
        """Read in a thread, and show what changed."""
        try:
            found = await run.io_bound(self._visit.hub.releases)
        except SQLAlchemyError:  # the shell says so
            return
        if found is None or self._trouble.is_deleted:  # the hub is stopping, or whoever looked has left meanwhile
            return
        self._trouble.set_visibility(bool(found.trouble))
        self._reason.text = found.trouble
        self._rollouts.show(found)
        self._versions.show(found)


def command(visit: Visit, action: str, modality: str) -> str:
    """What to type on the machine that has the keys."""
    return shlex.join(["lineside", "deploy", *action.split(), "--config", visit.hub.config, "--modality", modality])

"""Versions per device and modality, as devices have signed them, with the way back."""

from __future__ import annotations

from functools import partial

from nicegui import ui

from hub.dashboard import controls, parts
from hub.dashboard.language import NONE
from hub.dashboard.visit import Visit
from hub.releases import Releases, Runs
from lineside.messages import Installed

PHASES: dict[str, tuple[str, str]] = {
    "steady": ("check_circle", "good"),
    "waiting": ("hourglass_top", "busy"),
    "fetching": ("download", "busy"),
    "building": ("build", "busy"),
    "proving": ("fact_check", "busy"),
    "shadow": ("content_copy", "busy"),
    "probation": ("pending", "busy"),
    "failed": ("error", "bad"),
}


class Versions:
    """One row a device and modality."""

    WIDTHS = "minmax(170px, auto) auto auto auto auto minmax(160px, 2fr) minmax(150px, auto)"

    def __init__(self, visit: Visit) -> None:
        self._visit, t = visit, visit.t
        head = [t(word) for word in ("Device", "Modality", "Version", "Previous", "Since", "Phase")]
        self._table = parts.Table(
            t("Versions"), [*head, ""], self.WIDTHS, empty=t("no device has told its versions yet")
        )
        self._now_ns = 0

    def show(self, found: Releases) -> None:
        """Rebuild the table when a version, a phase or a presence changed."""
        self._now_ns = self._visit.hub.clock.now_ns()
        self._table.show([(one,) for one in found.runs], self._row)

    def _row(self, one: Runs) -> None:
        t, installed, encoder = self._visit.t, one.installed, one.encoder
        parts.presence(t, one.device, one.presence)
        parts.modality(one.modality, t(one.modality))
        version = f"{installed.version} {installed.precision}" if installed else encoder.version if encoder else NONE
        ui.label(version).classes("l-mono l-strong")
        previous = str(installed.previous_version or "") if installed else encoder.previous if encoder else ""
        ui.label(previous or NONE).classes("l-mono l-soft")
        ui.label(t.moment(installed.since_ns, self._now_ns) if installed else NONE).classes("l-soft")
        with ui.element("div").classes("l-row"):
            self._phase(one, installed)
        with ui.element("div"):
            if encoder is not None:
                back = partial(controls.roll_back, self._visit, one.device, one.modality, encoder)
                made = parts.button(t("Roll back"), "undo", back)
                told = t("Roll back {modality} of {device}", modality=t(one.modality), device=one.device)
                made.props["aria-label"] = told
                made.set_enabled(bool(encoder.previous) and one.presence == "online")

    def _phase(self, one: Runs, installed: Installed | None) -> None:
        """How far it is with a candidate, and whether its word is believed."""
        t = self._visit.t
        if installed is not None:
            parts.tag(t(installed.phase), *PHASES[installed.phase])
            if installed.phase not in ("steady", "failed"):
                ui.label(t("version {version}", version=installed.candidate)).classes("l-soft")
            if installed.reason:
                parts.said(t, installed.reason, "l-soft")
        if one.doubt:
            parts.tag(t("not verified"), "gpp_maybe", "warn")
            parts.said(t, one.doubt, "l-soft")
        elif installed is not None:
            parts.tag(t("signed"), "verified_user", "good")

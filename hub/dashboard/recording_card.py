"""What a device saw and heard around an alarm: pictures, sound, its spectrogram and series under one time cursor."""

from __future__ import annotations

import json
from typing import Any

from nicegui import run, ui

from hub.alarms import Event
from hub.dashboard import controls, parts, recording_files
from hub.dashboard.visit import Visit
from hub.evidence import view
from hub.evidence.room import Told
from hub.evidence.view import View
from lineside.clock import NS
from lineside.errors import LinesideError


class RecordingCard:
    """Asks for the recording, tells how it comes, shows it; small pictures of the alarm itself until then."""

    def __init__(self, visit: Visit, event: Event) -> None:
        self._visit, self._event = visit, event
        with ui.element("section").classes("l-card"):
            parts.heading(visit.t("What it saw and heard"))
            self._box = ui.element("div").classes("l-what")
        self._shown: Told | None = None

    def show(self) -> None:
        """Drawn anew only when the recording stands otherwise."""
        told = self._visit.hub.evidence.told(self._event.raised)
        if told == self._shown:
            return
        fresh, self._shown = self._shown is None or self._shown.word != told.word, told
        if told.word == "here" and not fresh:
            return
        self._box.clear()
        with self._box:
            if told.word == "here" and self._visit.visitor.who.may("evidence"):
                ui.label(self._visit.t("The recording is being opened …")).classes("l-soft")
                ui.timer(0.01, self._open, once=True)
            else:
                self._absent(told)

    def _absent(self, told: Told) -> None:
        visit, t = self._visit, self._visit.t
        self._small()
        if told.word == "here":
            ui.label(t("Your role does not open recordings; ask an operator.")).classes("l-soft")
            return
        words = {
            "coming": t("The recording is on its way: {n} %", n=round(100 * told.share)),
            "asked": t("The recording was asked for."),
            "none": t("The device keeps no recording of this alarm."),
            "off": t("This hub asks devices for no recordings; [hub] evidence of the plant file allows it."),
            "missing": t("The recording is on the device; it is sent when somebody asks for it."),
        }
        ui.label(words[told.word]).classes("l-strong")
        if told.reason and told.word in ("missing", "coming", "asked"):
            parts.said(t, told.reason, "l-soft")
        if told.word == "missing":
            with ui.element("div").classes("l-row"):
                get = parts.button(
                    t("Get the recording"), "download", lambda: controls.fetch(visit, self._event), "solid"
                )
                controls.only(visit, "evidence", get)

    def _small(self) -> None:
        with ui.element("div").classes("l-pictures"):
            for sensor, picture in sorted(self._event.raised.pictures.items()):
                parts.picture(picture, sensor)

    async def _open(self) -> None:
        """Made in a thread: a recording of minutes takes some seconds the first time."""
        hub, t, alarm = self._visit.hub, self._visit.t, self._event.raised
        path = hub.evidence.here(alarm)
        try:
            if path is None:
                raise LinesideError(alarm.recording, "is no longer here", "ask for it again")
            found = await run.io_bound(view.of, path)
        except (LinesideError, OSError) as error:
            self._box.clear()
            with self._box:
                self._small()
                parts.said(t, str(error), "l-soft")
            return
        if found is None:  # the hub is stopping
            return
        self._box.clear()
        with self._box:
            player = ui.element("div").classes("l-evidence").mark("player")
            for problem in found.problems:
                parts.said(t, problem, "l-soft")
            base = f"{recording_files.PATH}/{alarm.device}/{alarm.recording}/"
            parts.link(t("Download for Foxglove (MCAP)"), base + recording_files.WHOLE, "download")
        ui.run_javascript(f"lineside.evidence({json.dumps(self._told(found, player.id, base))})")

    def _told(self, found: View, element: int, base: str) -> dict[str, Any]:
        """What the browser needs; times in seconds from the recording's beginning."""
        t, alarm = self._visit.t, self._event.raised
        marks = {t("onset"): alarm.onset_ns, t("alarm"): alarm.time_ns}
        return {
            "id": element,
            "base": base,
            "seconds": found.seconds,
            "at": (alarm.time_ns - found.start_ns) / NS,
            "marks": {name: (at - found.start_ns) / NS for name, at in marks.items()},
            "cameras": [{"name": name, "stamps": stamps} for name, stamps in found.pictures.items() if stamps],
            "sounds": [{"name": name, "khz": one.rate_hz / 2000} for name, one in found.sounds.items()],
            "series": [
                {"name": name, "seconds": one.seconds, "values": one.values} for name, one in found.series.items()
            ],
            "words": {
                "time": t("Time in the recording"),
                "play": t("Play"),
                "pause": t("Pause"),
                "spectrogram": t("Spectrogram of {sensor}, 0 to {khz} kHz"),
                "picture": t("{sensor} at {time} s"),
                "series": t("Values of {sensor}"),
            },
        }

"""Rollouts: ring, state, what each device waits for, what went wrong, and the command that goes on."""

from __future__ import annotations

import shlex

from nicegui import ui

from hub.dashboard import parts
from hub.dashboard.language import Language
from hub.dashboard.visit import Visit
from hub.releases import Releases, Rollout
from lineside.clock import NS
from lineside.rollout_record import Record

STATES: dict[str, tuple[str, str, str]] = {
    "open": ("devices are taking it", "downloading", "busy"),
    "soaking": ("taken, being watched", "visibility", "busy"),
    "approval": ("waits for a person", "front_hand", "warn"),
    "paused": ("paused", "pause_circle", "warn"),
    "finished": ("finished", "check_circle", "good"),
    "aborted": ("taken back", "cancel", "bad"),
}
PROGRESS: dict[str, tuple[str, str, str]] = {
    "done": ("has it", "check", "good"),
    "busy": ("on the way", "downloading", "busy"),
    "away": ("away", "cloud_off", "off"),
    "failed": ("failed", "error", "bad"),
    "without": ("without this modality", "remove", "off"),
}
ACTS: dict[str, tuple[str, ...]] = {
    "open": ("pause", "abort"),
    "soaking": ("promote", "pause", "abort"),
    "approval": ("promote", "pause", "abort"),
    "paused": ("resume", "abort"),
}
WORDS = {
    "promote": "open the next ring",
    "pause": "let no further device begin",
    "resume": "go on",
    "abort": "take it back everywhere",
}
EVENTS_SHOWN = 6


class Rollouts:
    """Those under way, then the latest that have ended."""

    def __init__(self, visit: Visit) -> None:
        self._visit = visit
        with ui.column().classes("l-card"):
            parts.heading(visit.t("Rollouts"))
            self._list = ui.element("div").classes("l-list")
        self._shown: object = None

    def show(self, found: Releases) -> None:
        """Drawn anew only when something moved."""
        if found.rollouts == self._shown:
            return
        self._shown = found.rollouts
        self._list.clear()
        with self._list:
            for rollout in found.rollouts:
                self._rollout(rollout)
            if not found.rollouts:
                t = self._visit.t
                ui.label(t("no rollout yet; begin one where the keys are:")).classes("l-soft")
                modality = self._visit.hub.plant.modalities[0]
                parts.command(t, self._command("start", modality))

    def _rollout(self, rollout: Rollout) -> None:
        t, record = self._visit.t, rollout.record
        text, icon, tone = STATES[record.state]
        with ui.element("article").classes(f"l-rollout tone-{tone}"):
            with ui.element("div").classes("l-row"):
                ui.label(record.name).classes("l-strong l-large")
                parts.tag(t(text), icon, tone, solid=not record.ended)
                ui.label(self._standing(record)).classes("l-soft")
            if record.reason:
                parts.said(t, record.reason)
            self._rings(t, record)
            if not record.ended:
                self._devices(t, rollout)
            self._events(t, record)
            if not record.ended:
                self._acts(t, record)

    def _standing(self, record: Record) -> str:
        t, now_ns = self._visit.t, self._visit.hub.clock.now_ns()
        ring = t("ring {n} of {all}", n=record.ring + 1, all=len(record.rings))
        since = t("since {time}", time=t.moment(record.since_ns, now_ns))
        limits = {"open": record.policy.ring_s, "soaking": record.policy.soak_s}
        left = ""
        if not record.ended:
            end_ns = record.since_ns + round(limits.get(record.state, record.policy.patience_s) * NS)
            left = t("until {time} at the latest", time=t.moment(end_ns, now_ns))
        return t.joined(ring, since, left)

    def _rings(self, t: Language, record: Record) -> None:
        """The rings as a chain: what was, what is open, what comes."""
        with ui.element("ol").classes("l-rings"):
            for at, ring in enumerate(record.rings):
                was = at < record.ring or record.state == "finished"
                is_open = at == record.ring and not record.ended
                icon = "check_circle" if was else "radio_button_checked" if is_open else "radio_button_unchecked"
                whom = [*ring.devices, *([f"{ring.percent:g} %"] if ring.percent else [])]
                with ui.element("li").classes("here" if is_open else ""):
                    ui.icon(icon)
                    ui.label(t("ring {n}: {whom}", n=at + 1, whom=", ".join(whom)))

    def _devices(self, t: Language, rollout: Rollout) -> None:
        with ui.element("div").classes("l-row"):
            for name, (text, icon, tone) in PROGRESS.items():
                if number := sum(each.progress == name for each in rollout.devices):
                    parts.tag(f"{t(text)}: {t.number(number)}", icon, tone)
        for each in rollout.devices:
            if each.progress not in ("done", "without"):
                text, icon, tone = PROGRESS[each.progress]
                with ui.element("div").classes("l-row"):
                    ui.label(each.device).classes("l-strong")
                    parts.tag(t(text), icon, tone)
                    parts.said(t, each.told, "l-soft")

    def _events(self, t: Language, record: Record) -> None:
        now_ns = self._visit.hub.clock.now_ns()
        for event in record.events[-EVENTS_SHOWN:]:
            with ui.element("div").classes("l-row"):
                ui.label(t.moment(event.time_ns, now_ns)).classes("l-mono l-soft")
                parts.said(t, event.text, "l-soft")

    def _acts(self, t: Language, record: Record) -> None:
        """The hub has no key to sign with: it shows what to type where the keys are."""
        modality = min(record.versions)
        ui.label(t("Signing needs keys that the hub does not have. Where they lie, run:")).classes("l-soft")
        for act in ACTS[record.state]:
            with ui.element("div").classes("l-row"):
                ui.label(t(WORDS[act])).classes("l-strong l-act")
                parts.command(t, self._command(act, modality))

    def _command(self, act: str, modality: str) -> str:
        config = self._visit.hub.config
        return shlex.join(["lineside", "deploy", "rollout", act, "--config", config, "--modality", modality])

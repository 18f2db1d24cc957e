"""Alarms per hour against EEMUA 191 and ISA-18.2 (hub.rates), as a card."""

from __future__ import annotations

from nicegui import ui

from hub.dashboard import parts
from hub.dashboard.visit import Visit
from hub.rates import NORMS, Rates
from hub.watch import Line

TONES = {"acceptable": ("check_circle", "good"), "manageable": ("error", "warn"), "too many": ("warning", "bad")}


class RatesCard:
    """The last hour against the norm, the day's mean, floods, what chatters and what stands, messages not sent."""

    def __init__(self, visit: Visit) -> None:
        self._t = visit.t
        with ui.column().classes("l-card"):
            parts.heading(self._t("Alarm rate (EEMUA 191, ISA-18.2)"))
            self._row = ui.element("div").classes("l-row").mark("rates")
        self._shown: object = None

    def show(self, line: Line) -> None:
        """Drawn anew only when a number changed."""
        failed = line.notices.get("failed", 0)
        if line.rates is None or (line.rates, failed) == self._shown:
            return
        self._shown = (line.rates, failed)
        self._row.clear()
        with self._row:
            self._draw(line.rates, failed)

    def _draw(self, rates: Rates, failed: int) -> None:
        t = self._t
        parts.tag(t(rates.word), *TONES[rates.word])
        ui.label(t("{n} per hour and operator", n=t.number(rates.per_operator, 1))).classes("l-strong")
        norms = [t("up to {n} {word}", n=t.number(norm), word=t(word)) for norm, word in NORMS]
        ui.label(t("norm: {norms}", norms=", ".join(norms))).classes("l-soft")
        ui.label(t("{n} on average over the day", n=t.number(rates.mean, 2))).classes("l-soft")
        for phrase, number in rates.warnings:
            parts.tag(t(phrase, n=number), "warning", "warn")
        if failed:
            parts.tag(t("{n} messages could not be sent", n=failed), "unsubscribe", "bad")

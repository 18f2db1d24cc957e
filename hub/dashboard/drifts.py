"""Agreement and drift of a station as its newest score has them, by sensor and by pair."""

from __future__ import annotations

from nicegui import ui

from hub.dashboard import parts
from hub.dashboard.language import NONE, Language
from hub.watch import Station

MOVES = 0.5  # of the evidence that raises an alarm


class Drifts:
    """One row a sensor and a pair: agreement now, evidence of slow change, and what that means in a word."""

    WIDTHS = "minmax(120px, auto) auto minmax(120px, 1fr) auto"

    def __init__(self, t: Language) -> None:
        self._t = t
        head = [t(word) for word in ("Sensor or pair", "Agreement now", "Evidence of drift", "State")]
        self._table = parts.Table(t("Agreement and drift"), head, self.WIDTHS, empty=t("not watched yet"))

    def show(self, station: Station) -> None:
        """What is not live is not known now."""
        score = station.last.score if station.last else None
        names = sorted({*score.drift, *score.agreements}) if score else []
        rows = [
            (name, score.agreements.get(name), score.drift.get(name), station.live)
            for name in names
            if score is not None
        ]
        self._table.show(rows, self._row)

    def _row(self, name: str, agreement: float | None, drift: float | None, live: bool) -> None:
        t = self._t
        ui.label(name).classes("l-strong")
        ui.label(NONE if agreement is None or not live else t.number(agreement, 2)).classes("l-mono")
        known = drift if live and drift is not None else None
        with ui.element("div").classes("l-gauge"):
            if known is not None:
                with ui.element("div").classes("l-gauge-track"):
                    ui.element("div").style(f"width: {min(1.0, max(0.0, known)):.0%}")
                ui.label(f"{t.number(100 * known)} %").classes("l-mono")
            else:
                ui.label(NONE)
        parts.tag(*_state(t, known))


def _state(t: Language, drift: float | None) -> tuple[str, str, str]:
    """Word, icon and tone."""
    if drift is None:
        return t("not known now"), "help", "off"
    if drift >= 1:
        return t("drifted"), "trending_down", "bad"
    return (t("moving"), "trending_flat", "warn") if drift >= MOVES else (t("steady"), "check", "good")

"""Live score and contributions of one device over the last two minutes."""

from __future__ import annotations

import json
from typing import Any

from nicegui import ui

from hub.dashboard import parts, style
from hub.dashboard.style import log_p
from hub.dashboard.visit import Visit
from hub.watch import Line, Station
from lineside.clock import NS
from lineside.messages import Score

SPAN_NS = 120 * NS
GREY, RED, INK = "#8795a6", "#dc3b3b", "#3d6fd1"


class Charts:
    """Two charts and the share of each sensor in the newest score; `show` sends only what came since the last time."""

    def __init__(self, visit: Visit) -> None:
        self._hub, self._t = visit.hub, visit.t
        self._device, self._after_ns = "", 0
        with ui.element("div").classes("l-two"):
            with ui.column().classes("l-card") as self._score_card:
                self._title = ui.label("").classes("l-title")
                self._score = ui.echart(_score_options()).classes("w-full h-64")
            with ui.column().classes("l-card") as self._share_card:
                parts.heading(self._t("Contribution of each sensor (nats)"))
                self._bar = ui.element("div").classes("l-bar")
                self._share = ui.echart(_share_options()).classes("w-full h-56 grow")

    def show(self, line: Line, station: Station | None) -> None:
        """Draw the chosen station; greyed when it is not live."""
        if station is None:
            return
        fresh = station.device != self._device
        if fresh:
            self._device, self._after_ns = station.device, line.now_ns - SPAN_NS
        arrivals = self._hub.store.arrivals(self._device, self._after_ns)
        self._after_ns = max([self._after_ns, *(received for received, _ in arrivals)])
        scores = [score for _, score in arrivals]
        modalities = station.last.score.modalities if station.last else {}
        news = {
            "score": self._score.id,
            "share": self._share.id,
            "points": [_point(score) for score in scores],
            "colours": style.colours(modalities),
            "now": line.now_ns // 1_000_000,
            "span": SPAN_NS // 1_000_000,
            "fresh": fresh,
        }
        ui.run_javascript(f"lineside.feed({json.dumps(news)})")
        self._title.text = self._t("Score −log₁₀ p against its limit")
        for card in (self._score_card, self._share_card):
            card.classes(remove="l-stale") if station.live else card.classes("l-stale")
        if fresh or scores:
            parts.share_bar(self._bar, station.last.score.contributions if station.last else {}, modalities, self._t)


def _point(score: Score) -> dict[str, Any]:
    return {
        "ms": score.end_ns // 1_000_000,
        "score": round(log_p(score.p_value), 4),
        "limit": round(log_p(score.limit), 4),
        "shares": {sensor: round(value, 4) for sensor, value in score.contributions.items()},
    }


def _axes() -> dict[str, Any]:
    line = {"lineStyle": {"color": "rgba(128,145,165,0.25)"}}
    label = {"color": GREY, "fontSize": 13, "hideOverlap": True}
    return {
        "animation": False,
        "grid": {"left": 44, "right": 14, "top": 30, "bottom": 26},
        "tooltip": {"trigger": "axis", "renderMode": "richText"},
        "xAxis": {"type": "time", "axisLabel": label, "splitLine": {"show": False}},
        "yAxis": {"type": "value", "min": 0, "axisLabel": label, "splitLine": line},
        "legend": {"right": 8, "top": 0, "textStyle": {"color": GREY, "fontSize": 13}, "icon": "roundRect"},
    }


def _score_options() -> dict[str, Any]:
    def drawn(series: str, **look: Any) -> dict[str, Any]:
        return {"id": series, "name": series, "type": "line", "symbol": "none", "data": [], **look}

    beyond = {"type": "scatter", "symbol": "diamond", "symbolSize": 9, "itemStyle": {"color": RED}}
    return {
        **_axes(),
        "series": [
            drawn("score", lineStyle={"width": 2.5, "color": INK}, itemStyle={"color": INK}),
            drawn(
                "limit", step="end", lineStyle={"width": 2, "type": "dashed", "color": RED}, itemStyle={"color": RED}
            ),
            drawn("beyond", name="at or beyond the limit", **beyond),
        ],
    }


def _share_options() -> dict[str, Any]:
    return {**_axes(), "series": []}

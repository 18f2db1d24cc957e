"""A station's course over a span: score against its limit, contribution of each sensor, agreement of each pair."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import Any

import msgspec
from nicegui import background_tasks, run, ui

from hub import course as courses
from hub.course import SPANS, Span
from hub.dashboard import parts, style
from hub.dashboard.style import log_p
from hub.dashboard.visit import Visit
from hub.minutes import Minute, minute
from hub.watch import Line, Station
from lineside.clock import NS

LIVE = "10min"  # the span that goes on by itself; longer ones are read again after a step
# A megabyte that a browser would ask for only once the page stands.
EARLY = '<script type="module" async>import "nicegui-echart";</script>'
TICK_S, AGAIN_S = 0.5, 10
SCORE, LIMIT = "#3d6fd1", "#d43a3a"
PAIRS = ("#8a5cd6", "#0f9aa8", "#b8860b", "#c2408f")
DAYS = {
    "en": {"year": "{yyyy}", "month": "{MMM}", "day": "{d} {MMM}"},
    "ja": {"year": "{yyyy}年", "month": "{M}月", "day": "{M}月{d}日"},
}
HOURS = {"hour": "{HH}:{mm}", "minute": "{HH}:{mm}", "second": "{HH}:{mm}:{ss}", "millisecond": "{HH}:{mm}:{ss}"}


class Charts:
    """Three charts over one span, in a `grid` with room for one more; what is new is sent while the page is open."""

    def __init__(self, visit: Visit, device: str, name: str = LIVE) -> None:
        self._visit, self._device = visit, device
        self._span = name if name in SPANS else LIVE
        self._after_ns = self._due_ns = 0
        self._modalities: dict[str, str] = {}
        self._buttons: dict[str, ui.button] = {}
        t = visit.t
        ui.add_head_html(EARLY)
        with ui.element("div").classes("l-row l-spans").props("role=group") as group:
            group.props["aria-label"] = t("Span of the charts")
            for each, span in SPANS.items():
                words = t(span.phrase, n=span.number)
                self._buttons[each] = parts.button(words, "schedule", partial(self._choose, each))
        self._stale = ui.element("div").classes("l-banner tone-off")
        with self._stale:
            ui.icon("hourglass_disabled")
            self._since = ui.label("")
        with ui.element("div").classes("l-two") as self.grid:
            self._score = self._chart(t("Score −log₁₀ p against its limit"))
            self._share = self._chart(t("Contribution of each sensor (nats)"))
            self._agreement = self._chart(t("Agreement of each pair (cosine)"))
        self._mark()
        self._reading: asyncio.Task[list[Minute] | None] | None = self._begin()
        ui.timer(TICK_S, self.draw)

    def show(self, line: Line, station: Station) -> None:
        """Say since when nothing has come; what is drawn follows by itself."""
        t = self._visit.t
        self._modalities = station.last.score.modalities if station.last else {}
        self._stale.set_visibility(not station.live)
        since = t.moment(station.last.seen_ns, line.now_ns) if station.last else ""
        self._since.text = t("no data since {time}", time=since) if since else t("no data yet")
        for chart in (self._score, self._share, self._agreement):
            chart.classes(remove="l-stale") if station.live else chart.classes("l-stale")

    async def draw(self) -> None:
        """Send the whole span when it is due, and of the live one what came since."""
        now_ns, span = self._visit.hub.clock.now_ns(), SPANS[self._span]
        if now_ns >= self._due_ns:
            self._due_ns = now_ns + max(AGAIN_S, span.step_s) * NS if self._span != LIVE else 2**63
            reading, self._reading = self._reading or self._begin(), None
            self._send(await reading or [], span, now_ns, fresh=True)
        elif self._span == LIVE:
            found = await run.io_bound(self._news, span)
            self._send(found or [], span, now_ns, fresh=False)

    def _begin(self) -> asyncio.Task[list[Minute] | None]:
        """Begin to read the chosen span, which goes on while the browser still loads the page."""
        self._after_ns = self._visit.hub.clock.now_ns()
        return background_tasks.create(run.io_bound(self._read, SPANS[self._span], self._after_ns))

    def _read(self, span: Span, now_ns: int) -> list[Minute]:
        hub = self._visit.hub
        return courses.course(hub.store, hub.overview, self._device, span, now_ns)

    def _news(self, span: Span) -> list[Minute]:
        arrivals = self._visit.hub.store.arrivals(self._device, self._after_ns)
        self._after_ns = max([self._after_ns, *(received for received, _ in arrivals)])
        moments = (msgspec.structs.replace(minute(score), start_ns=score.start_ns) for _, score in arrivals)
        return courses.points(moments, span.step_s * NS)

    async def _choose(self, name: str) -> None:
        self._span, self._due_ns, self._reading = name, 0, None
        self._mark()
        await self.draw()

    def _mark(self) -> None:
        for name, button in self._buttons.items():
            chosen = name == self._span
            button.classes(remove="l-outline l-solid").classes("l-solid" if chosen else "l-outline")
            button.props["aria-pressed"] = "true" if chosen else "false"

    def _chart(self, title: str) -> ui.echart:
        with ui.column().classes("l-card"):
            parts.heading(title)
            chart = ui.echart(_options(self._visit.t.code)).classes("l-chart").props("role=img")
            chart.props["aria-label"] = title
            return chart

    def _send(self, points: Sequence[Minute], span: Span, now_ns: int, *, fresh: bool) -> None:
        """Times are told as if they were UTC, so that browsers everywhere show the plant's."""
        t = self._visit.t
        shift_ms = _offset_ms(now_ns)
        sensors = style.colours({**dict.fromkeys(_sensors(points), ""), **self._modalities})
        told = {
            "charts": [self._score.id, self._share.id, self._agreement.id],
            "points": [_point(point, shift_ms) for point in points],
            "sensors": sensors,
            "pairColours": PAIRS,
            "words": [t("score"), t("limit"), t("at or beyond the limit")],
            "colours": [SCORE, LIMIT],
            "now": now_ns // 1_000_000 + shift_ms,
            "span": span.seconds * 1000,
            "step": span.step_s * 1000,
            "fresh": fresh,
        }
        ui.run_javascript(f"lineside.course({json.dumps(told)})")


def _sensors(points: Sequence[Minute]) -> list[str]:
    return sorted({name for point in points for name in point.contributions})


def _point(point: Minute, shift_ms: int) -> list[Any]:
    """Milliseconds, score, limit (None where not known), contributions and agreements by name."""
    limit = round(log_p(point.limit), 3) if point.limit else None
    shares = {name: round(share.mean, 3) for name, share in point.contributions.items()}
    agreements = {name: round(share.mean, 3) for name, share in point.agreements.items()}
    return [point.start_ns // 1_000_000 + shift_ms, round(log_p(point.p_value), 3), limit, shares, agreements]


def _offset_ms(now_ns: int) -> int:
    """The plant's time from UTC."""
    offset = datetime.fromtimestamp(now_ns / NS).astimezone().utcoffset()
    return round(offset.total_seconds() * 1000) if offset else 0


def _options(code: str) -> dict[str, Any]:
    return {
        "animation": False,
        "useUTC": True,
        "aria": {"enabled": True, "label": {"enabled": False}, "decal": {"show": True}},  # its own label is English
        "grid": {"left": 46, "right": 16, "top": 34, "bottom": 28},
        "tooltip": {"trigger": "axis", "renderMode": "richText"},
        "xAxis": {
            "type": "time",
            "axisLabel": {"fontSize": 13, "hideOverlap": True, "formatter": {**HOURS, **DAYS[code]}},
            "splitLine": {"show": False},
        },
        "yAxis": {
            "type": "value",
            "axisLabel": {"fontSize": 13},
            "splitLine": {"lineStyle": {"color": "rgba(128,145,165,0.25)"}},
        },
        "legend": {"right": 8, "top": 0, "textStyle": {"fontSize": 13}, "itemWidth": 22},
        "series": [],
    }

"""How long a station's page takes to stand there, with thirty days of twenty stations behind it."""

from __future__ import annotations

import itertools
import os
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa

from hub.bench.browser import SIZE, chromium
from hub.bench.line import Line, publish, running
from hub.minutes import MINUTE_NS
from hub.store import Store, database_url
from hub.tables import SCORE_MINUTES
from lineside.clock import NS, Clock

STATIONS, DAYS = 20, 30
SPANS = ("10min", "30d")
PER_S = 2.0  # scores of each device while the pages are opened
PATIENCE_MS = 60_000
BATCH = 20_000
# Both from the start of the navigation: the first content that was painted, and the charts of the whole span drawn.
PAINTED = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? performance.now()"
DRAWN = """new Promise((done) => {
  const look = () => document.body.dataset.drawn && Number(document.body.dataset.drawn.split(':')[1]) > 1
    ? requestAnimationFrame(() => done(performance.now())) : setTimeout(look, 10);
  look();
})"""


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds of each turn by span, to first content and to drawn charts; `load` is that before and after."""

    stations: int
    days: int
    minutes: int
    turns: int
    painted_ms: dict[str, list[float]]
    drawn_ms: dict[str, list[float]]
    load: tuple[float, float]


def measure(turns: int, folder: Path, clock: Clock, tell: Callable[[str], None]) -> Page:
    """Open one station after the other, each in a new browser profile, while all devices send."""
    line = Line(folder, STATIONS, clock, dashboard=True)
    tell(f"writing {DAYS} days of {STATIONS} stations")
    minutes = _history(line, clock.now_ns())
    load = os.getloadavg()[0]
    painted: dict[str, list[float]] = {span: [] for span in SPANS}
    drawn: dict[str, list[float]] = {span: [] for span in SPANS}
    spec = msgspec.structs.replace(line.spec(10**9), rate=PER_S, start_ns=clock.now_ns() + 3 * NS, patience_s=3600.0)
    with running(line.dashboard()), running(publish(spec)), chromium() as browser:
        _open(browser, f"{line.url}/", "document.querySelector('.l-tile') && performance.now()")
        for turn in range(turns):
            for span in SPANS:
                url = f"{line.url}/station/{line.devices[turn % STATIONS]}?span={span}"
                first, whole = _open(browser, url, DRAWN)
                painted[span].append(round(first))
                drawn[span].append(round(whole))
                tell(f"{span}: first content {first:.0f} ms, charts {whole:.0f} ms")
    return Page(
        stations=STATIONS,
        days=DAYS,
        minutes=minutes,
        turns=turns,
        painted_ms=painted,
        drawn_ms=drawn,
        load=(round(load, 1), round(os.getloadavg()[0], 1)),
    )


def median_and_worst(times: list[float]) -> tuple[float, float]:
    """Of one span's turns."""
    return statistics.median(times), max(times)


def _open(browser: Any, url: str, until: str) -> tuple[float, float]:
    context = browser.new_context(viewport=SIZE)
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(url, wait_until="commit")
    page.wait_for_selector(".l-clock")
    whole, first = float(page.evaluate(until) or 0.0), float(page.evaluate(PAINTED))
    context.close()
    return first, whole


def _history(line: Line, now_ns: int) -> int:
    """Minute rows as retention leaves them; gives how many."""
    store = Store(database_url("sqlite:///hub.db", line.folder))
    writing = store.engine.execution_options(writes=True)
    try:
        rows = _rows(line.devices, now_ns)
        written = 0
        while batch := list(itertools.islice(rows, BATCH)):
            with writing.begin() as connection:
                connection.execute(sa.insert(SCORE_MINUTES), batch)
            written += len(batch)
        return written
    finally:
        store.close()


def _rows(devices: list[str], now_ns: int) -> Iterator[dict[str, Any]]:
    """Every minute of every station but the last ten, some of them anomalous."""
    shares = msgspec.json.encode({"cam0": (120, 0.61), "mic0": (120, 0.44)})
    agreements = msgspec.json.encode({"cam0+mic0": (120, 0.81)})
    last = now_ns // MINUTE_NS - 10
    for minute in range(last - DAYS * 1440, last):
        for number, device in enumerate(devices):
            p_value = 1e-4 if (minute + 37 * number) % 900 < 5 else 0.2 + (minute * 7 + number) % 60 / 100
            yield {
                "device": device,
                "start_ns": minute * MINUTE_NS,
                "station": "press",
                "scores": 120,
                "p_value": p_value,
                "evidence": 1.05,
                "contributions": shares,
                "p_limit": 0.001,
                "agreements": agreements,
            }

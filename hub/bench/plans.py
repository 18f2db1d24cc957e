"""How SQLite answers what the dashboard asks: through an index, or by reading a whole table."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path

from hub.bench import store_rate
from hub.overview import Overview
from hub.store import Store, database_url
from hub.tables import ACKNOWLEDGEMENTS, KEPT, MISSING, RETIRED, SCORE_MINUTES, SCORE_OVERVIEW
from lineside.clock import NS, SystemClock

# These grow with time and devices; what is small by nature (totals, open alarms) may be read whole.
GROWING = {kept.table.name for kept in KEPT.values()} | {
    table.name for table in (ACKNOWLEDGEMENTS, RETIRED, MISSING, SCORE_MINUTES, SCORE_OVERVIEW)
}
DEVICE, LATE_NS = "bench", 500 * NS
QUERIES: dict[str, Callable[[Store], object]] = {
    "open and recent alarms": lambda store: store.alarms(LATE_NS),
    "who acknowledged them": lambda store: store.acknowledgements(LATE_NS),
    "whether alarms changed": lambda store: store.alarm_version,
    "a station's scores": lambda store: store.scores(DEVICE, LATE_NS, 100),
    "a station's last score": lambda store: store.newest_scores([DEVICE]),
    "new scores": lambda store: store.arrivals(DEVICE, LATE_NS),
    "old scores by minute": lambda store: store.score_minutes(DEVICE, 0, LATE_NS),
    "kept scores by minute": lambda store: _overview(store).minutes(DEVICE, 0, LATE_NS),
    "what the minutes lack": lambda store: _overview(store).bring(DEVICE, LATE_NS, 2 * LATE_NS),
    "health of each device": lambda store: store.latest_health([DEVICE]),
    "windows of a modality": lambda store: store.windows(DEVICE, "camera", 0, LATE_NS),
    "gaps of a device": lambda store: store.gaps(DEVICE),
    "rows of each kind": lambda store: store.counts(),
    "numberings of a kind": lambda store: store.numberings("score"),
    "what is kept no longer": lambda store: store.retire("score", DEVICE, 1, 0, 500),
}


def _overview(store: Store) -> Overview:
    return Overview(store, list, SystemClock())


def measure(folder: Path) -> dict[str, list[str]]:
    """Each query's plan on a store with some scores of one device."""
    store = Store(database_url("sqlite:///plans.db", folder))
    try:
        store.add(store_rate.rows(2000))
        return {name: store.plan(functools.partial(ask, store)) for name, ask in QUERIES.items()}
    finally:
        store.close()


def scans(plan: list[str]) -> list[str]:
    """The steps that read the whole of a table that grows.

    >>> scans(["SCAN scores USING COVERING INDEX a", "SEARCH scores USING INDEX a (device=?)", "SCAN totals"])
    ['SCAN scores USING COVERING INDEX a']
    """
    return [step for step in plan if (found := re.match(r"SCAN (\w+)", step)) and found[1] in GROWING]

"""The bench's parts, their goals, and the table that people read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from hub.bench import backlog, kills, live, pages, plans, rate, store_rate
from lineside.clock import Clock

PER_S, OF_PLAIN, TIMES_LIVE, P99_MS = 12_000, 0.8, 5.0, 250.0
PAGE_MS, SEEN_MS = 2000.0, 500.0


@dataclass(frozen=True)
class Sizes:
    """How much work each part is."""

    messages: int
    turns: int
    rows: int
    kills: int
    pages: int
    alarms: int


@dataclass(frozen=True)
class Line:
    """One row of the table; without a goal `held` is None."""

    what: str
    measured: str
    goal: str = ""
    held: bool | None = None


def measure(parts: list[str], sizes: Sizes, folder: Path, clock: Clock, tell: Callable[[str], None]) -> dict[str, Any]:
    """What was measured, by part."""
    work: dict[str, Callable[[], Any]] = {
        "rate": lambda: rate.measure(sizes.messages, sizes.turns, folder / "rate", clock, tell),
        "backlog": lambda: backlog.measure(sizes.rows, folder / "backlog", clock, tell),
        "kills": lambda: kills.measure(sizes.kills, folder / "kills", clock, tell),
        "plans": lambda: plans.measure(folder),
        "store": lambda: store_rate.measure(20_000, folder, clock),
        "page": lambda: pages.measure(sizes.pages, folder / "page", clock, tell),
        "live": lambda: live.measure(sizes.alarms, folder / "live", clock, tell),
    }
    return {part: msgspec.to_builtins(work[part]()) for part in parts}


USUAL = ("rate", "backlog", "kills", "plans", "store")
PARTS = (*USUAL, "page", "live")  # the last two need Chromium, so they are measured when they are named


def table(found: dict[str, Any]) -> list[Line]:
    """Rows for the parts that were measured."""
    makers: dict[str, Callable[[Any], list[Line]]] = {
        "rate": _rate,
        "backlog": _backlog,
        "kills": _kills,
        "plans": _plans,
        "store": _store,
        "page": _page,
        "live": _live,
    }
    return [line for part, measured in found.items() for line in makers[part](measured)]


def text(lines: list[Line]) -> str:
    """The table in Markdown."""
    words = {None: "", True: "yes", False: "**no**"}
    rows = [f"| {line.what} | {line.measured} | {line.goal} | {words[line.held]} |" for line in lines]
    return "\n".join(["| what | measured | goal | held |", "|---|---|---|---|", *rows])


def _rate(m: dict[str, Any]) -> list[Line]:
    told = f"{m['hub_per_s']:,.0f} /s ({m['turns']} x {m['messages']:,} of 600 bytes)"
    ratio = f"{m['ratio']:.2f} (plain: {m['plain_per_s']:,.0f} /s)"
    return [
        Line("ingest, everything on", told, f">= {PER_S:,} /s", m["hub_per_s"] >= PER_S),
        Line("processor time a message, hub and plain", f"{m['hub_us']} and {m['plain_us']} us"),
        Line("ingest to a plain consumer, in turns", ratio, f">= {OF_PLAIN}", m["ratio"] >= OF_PLAIN),
        Line("lost, stored twice", f"{m['lost']}, {m['stored_twice']}", "0, 0", not (m["lost"] or m["stored_twice"])),
    ]


def _backlog(m: dict[str, Any]) -> list[Line]:
    told = f"{m['times_live']} ({m['rows']:,} rows at {m['drained_per_s']:,.0f} /s, live {m['live_per_s']:,.0f} /s)"
    wait = f"{m['live_p99_ms']} ms (median {m['live_p50_ms']} ms)"
    return [
        Line("backlog drained, times the live rate", told, f">= {TIMES_LIVE}", m["times_live"] >= TIMES_LIVE),
        Line("live sent to acknowledged meanwhile, p99", wait, f"<= {P99_MS} ms", m["live_p99_ms"] <= P99_MS),
        Line("lost of both", str(m["lost"]), "0", not m["lost"]),
    ]


def _kills(m: dict[str, Any]) -> list[Line]:
    told = f"{m['lost']}, {m['stored_twice']} of {m['acknowledged']:,} acknowledged ({m['kills']} kills)"
    return [
        Line("kill -9 under load: lost, stored twice", told, "0, 0", not (m["lost"] or m["stored_twice"])),
        Line("integrity_check after them", m["integrity"], "ok", m["integrity"] == "ok"),
    ]


def _plans(m: dict[str, list[str]]) -> list[Line]:
    bad = {name: found for name, plan in m.items() if (found := plans.scans(plan))}
    told = "; ".join(f"{name}: {steps[0]}" for name, steps in bad.items()) or f"0 of {len(m)}"
    return [Line("queries that read a whole growing table", told, "0", not bad)]


def _store(m: dict[str, Any]) -> list[Line]:
    told = f"{m['store_rows_per_s']:,} /s, {m['ratio']} of sqlite3 alone"
    return [Line("the store alone, same indexes and durability", told)]


def _page(m: dict[str, Any]) -> list[Line]:
    behind = f"{m['stations']} stations, {m['days']} days ({m['minutes']:,} minutes), {m['turns']} turns"
    lines = [
        Line("behind the pages", behind),
        Line("load average before and after", f"{m['load'][0]} and {m['load'][1]}"),
    ]
    for span in m["drawn_ms"]:
        painted, drawn = pages.median_and_worst(m["painted_ms"][span]), pages.median_and_worst(m["drawn_ms"][span])
        lines.append(
            Line(
                f"station page, {span}: first content, median and worst",
                _pair(painted),
                _at_most(PAGE_MS),
                painted[1] <= PAGE_MS,
            )
        )
        lines.append(
            Line(
                f"station page, {span}: charts drawn, median and worst",
                _pair(drawn),
                _at_most(PAGE_MS),
                drawn[1] <= PAGE_MS,
            )
        )
    return lines


def _live(m: dict[str, Any]) -> list[Line]:
    told = f"{m['p95_ms']:.0f} ms (median {m['p50_ms']:.0f} ms, worst {m['worst_ms']:.0f} ms)"
    return [
        Line("alarm published to seen in a browser, p95", told, _at_most(SEEN_MS), m["p95_ms"] <= SEEN_MS),
        Line(
            "of alarms, missed",
            f"{m['missed']} of {m['alarms']} ({m['devices']} devices streaming)",
            "0",
            not m["missed"],
        ),
        Line("load average before and after", f"{m['load'][0]} and {m['load'][1]}"),
    ]


def _pair(times: tuple[float, float]) -> str:
    return f"{times[0]:.0f} and {times[1]:.0f} ms"


def _at_most(limit_ms: float) -> str:
    return f"<= {limit_ms:.0f} ms"

"""What the fleet's table shows of a device."""

from __future__ import annotations

from dataclasses import dataclass, field

from hub.dashboard.language import NONE, Language
from hub.watch import Line, Station
from lineside.clock import NS

AHEAD_NS = NS


@dataclass(frozen=True)
class Row:
    """One device, ready to be sorted and shown; `seen` is relative while it is live, so that it changes by seconds."""

    device: str
    station: str
    word: str
    live: bool
    health_live: bool
    seen_ns: int = field(compare=False)  # grows with every message: nothing to draw a row anew for
    seen: str
    waiting: int
    outbox: str
    skew_ms: float | None
    providers: str
    agent: str
    problems: tuple[str, ...]

    @property
    def ill(self) -> bool:
        """Whether somebody should look."""
        return bool(self.problems) or self.word not in ("normal", "silenced")


def rows(t: Language, line: Line) -> list[Row]:
    """One a device."""
    return [_row(t, line, station) for station in line.stations]


def _row(t: Language, line: Line, station: Station) -> Row:
    health, last = station.health, station.last
    seen_ns = max(last.seen_ns if last else 0, health.time_ns if health else 0)
    runtimes = (
        sorted({each.provider.removesuffix("ExecutionProvider") for each in health.encoders.values()}) if health else []
    )
    outbox = (
        t("{n} messages, {kb} kB", n=t.number(health.outbox_messages), kb=t.number(health.outbox_bytes / 1000))
        if health
        else NONE
    )
    return Row(
        device=station.device,
        station=station.name,
        word=station.word,
        live=station.live,
        health_live=station.health_live,
        seen_ns=seen_ns,
        seen=_seen(t, line, station, seen_ns),
        waiting=health.outbox_messages if health else 0,
        outbox=outbox,
        skew_ms=last.score.skew_ms if last and station.live else None,
        providers=", ".join(runtimes),
        agent=health.agent if health else "",
        problems=_problems(t, station),
    )


def _seen(t: Language, line: Line, station: Station, seen_ns: int) -> str:
    if station.live:
        return t("now")
    return t.moment(seen_ns, line.now_ns) if seen_ns else t("never")


def _problems(t: Language, station: Station) -> tuple[str, ...]:
    """What the device says, and what the hub sees of it."""
    told: list[str] = []
    if (last := station.last) is not None and last.score.end_ns - last.received_ns > AHEAD_NS:
        ahead = t.span((last.score.end_ns - last.received_ns) / NS)
        told.append(t("its clock runs {span} ahead of the hub's", span=ahead))
    if (health := station.health) is not None:
        if health.dropped_messages:
            told.append(t("{n} messages were dropped", n=t.number(health.dropped_messages)))
        told += [one for one in (health.making, health.degraded, *health.problems) if one]
        told += [f"{name} ({one.modality}): {one.problem}" for name, one in health.sensors.items() if one.problem]
    return tuple(told)

"""What the hub's alarm rules cost, and how often unrelated alarms look like a common cause.

`python -m bench.hub_alarms`: alarms at random (uniform in time, exponential lengths of a minute) on every station of a
line. The cost is of one look, which the hub makes 2.5 times a second while somebody watches. For the common cause each
station has one alarm an hour, beside the rate that hub.groups gives, n·λⁿ·wⁿ⁻¹.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np

from hub.alarms import Event, book, urgent_first
from hub.flapping import join
from hub.groups import grouped
from hub.inhibition import Floor, inhibited
from hub.rates import DAY_NS, HOUR_NS, rates
from hub.silence import silenced
from lineside.clock import NS
from lineside.messages import Alarm
from lineside.plant import AlarmRules

RULES = AlarmRules()
GROUP_NS, HYSTERESIS_NS = round(RULES.group_s * NS), round(RULES.hysteresis_s * NS)


def line(stations: int, alarms: int, span_ns: int, seed: int) -> list[Alarm]:
    """`alarms` of them with their clears, spread over `span_ns` and the stations."""
    chance = np.random.default_rng(seed)
    onsets = np.sort(chance.integers(0, span_ns, alarms))
    lengths = chance.exponential(60 * NS, alarms).astype(np.int64)
    places = chance.integers(0, stations, alarms)
    said = []
    for number, (onset, length, place) in enumerate(zip(onsets, lengths, places, strict=True)):
        said += _spell(f"press-{place}", int(onset), int(length), 2 * number)
    return said


def _spell(device: str, onset_ns: int, length_ns: int, seq: int) -> list[Alarm]:
    return [
        Alarm(
            device=device,
            epoch=1,
            seq=seq + later,
            station=device,
            key=f"{device}/{device}/anomaly/{onset_ns}",
            kind="anomaly",
            state="cleared" if later else "raised",
            subject=device,
            top_sensor="cam0",
            top_modality="camera",
            onset_ns=onset_ns,
            time_ns=onset_ns + later * length_ns,
            p_value=0.001,
            evidence=6.9,
            contributions={},
            versions={},
            limits={},
            text="",
        )
        for later in (0, 1)
    ]


def look_ms(stations: int, alarms: int, seed: int, looks: int = 9) -> float:
    """Median time of the rules over a day's alarms, in ms; the book was read before."""
    known = book(line(stations, alarms, DAY_NS, seed), {})
    took = []
    for _ in range(looks):
        begun = time.perf_counter()
        events = _judged(known)
        grouped(events, GROUP_NS, [])
        rates(events, DAY_NS)
        took.append(1e3 * (time.perf_counter() - begun))
    return float(np.median(took))


def _judged(known: list[Event]) -> list[Event]:
    return urgent_first(inhibited(silenced(join(known, HYSTERESIS_NS, DAY_NS), [], DAY_NS), Floor()))


def by_chance(stations: int, days: int, seed: int) -> tuple[float, float]:
    """Groups with a common cause a day among unrelated alarms, one an hour and station: measured, by the formula."""
    devices = [f"press-{n}" for n in range(stations)]
    known = book(line(stations, 24 * days * stations, days * DAY_NS, seed), {})
    found = sum(bool(group.cause) for group in grouped(known, GROUP_NS, devices))
    rate = 1 / HOUR_NS
    return found / days, stations * rate**stations * GROUP_NS ** (stations - 1) * DAY_NS


def main() -> None:
    """Prints one JSON line."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--alarms", type=int, default=2000, help="of a day, over 20 stations")
    asked.add_argument("--days", type=int, default=1000, help="of unrelated alarms")
    asked.add_argument("--seed", type=int, default=1)
    given = asked.parse_args()
    told: dict[str, float] = {"alarms": given.alarms, "look_ms": round(look_ms(20, given.alarms, given.seed), 1)}
    for stations in (2, 3):
        measured, expected = by_chance(stations, given.days, given.seed)
        told |= {f"common_{stations}_a_day": measured, f"expected_{stations}_a_day": round(expected, 6)}
    print(json.dumps(told))


if __name__ == "__main__":
    main()

"""A fan's vibration (fan_vibration): campaigns recorded otherwise, and a coin on a blade, through the device's code.

Each speed is a state of the station, which the device is told. Recordings are laid one after the other: commissioning,
the windows from which the monitor learns what is ordinary, then a campaign.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge import importers
from edge.config import DeviceConfig
from edge.encoder import Encoder
from edge.ensemble import Ensemble
from edge.evaluation import plain, rivals
from edge.evaluation.section import Cell, Goal, Plot, Section, Table
from edge.foreign.base import EPOCH_NS
from edge.pipeline import Pipeline
from lineside.clock import NS
from lineside.features import SeriesPrepare
from lineside.fusion import Encoded, Normal
from lineside.messages import Alarm, Message, Score
from lineside.metrics import auroc
from lineside.reference import LEAST
from lineside.windows import Samples, Window

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]
Evidence = Callable[["Fan", Rows, Rows], Floats]  # of the last rows, learned from the first

SENSOR, P_LIMIT, CORESET = "vib0", 0.01, 128
SPEEDS = ("high", "low", "med", "off")  # as the manifest orders them
WEIGHTED = SPEEDS[:-1]
AGAIN = 60  # seconds of re-commissioning
KNOWN = (51, 100, 150, 175, 200, 250, 300)


@dataclass(frozen=True)
class Fan:
    """The snippets and what the manifest says of them; `seen` (n) are all as their encoder takes them."""

    about: list[dict[str, str]]
    items: Mapping[int, Sequence[Samples]]
    encoder: Encoder
    seen: rivals.Seen

    @classmethod
    def read(cls, source: Path) -> Fan:
        """Raises RecordingError when the folder is not that of the data set."""
        items = plain.seconds(importers.read(source))
        with (source / "manifest.csv").open(encoding="utf-8", newline="") as file:
            about = list(csv.DictReader(file))
        first = items[0][0].data
        encoder = plain.encoder(SeriesPrepare(channels=first.shape[1], samples=len(first)))
        windows = np.stack([encoder.prepare(_window(items[k][0])) for k in range(len(about))])
        return cls(about, items, encoder, rivals.Seen("series", windows, encoder.encode(windows).features))

    def rows(self, **wanted: str) -> Rows:
        """Places of the snippets whose manifest says all of `wanted`, in order of recording."""
        found = [k for k, row in enumerate(self.about) if all(row[name] == value for name, value in wanted.items())]
        return np.array(found, np.intp)

    def normals(self, split: str, speed: str) -> Rows:
        return self.rows(split=split, speed=speed, label="normal")

    def everywhere(self, split: str) -> Rows:
        return np.concatenate([self.normals(split, speed) for speed in SPEEDS])

    def weighted(self, speed: str) -> Rows:
        return self.rows(split="test", speed=speed, label="anomaly")

    def normal(self, rows: Rows) -> Normal:
        """Normal running as the device learns it from these snippets."""
        features = self.seen.features[rows]
        return Normal.fit({SENSOR: Encoded(features, features)}, CORESET)

    def p_values(self, normal: Normal, rows: Rows) -> Floats:
        """The device's p-value of each snippet."""
        judged = [normal.judge({SENSOR: Encoded(one, one)}) for one in self.seen.features[rows]]
        return np.array([np.nan if each is None else each.p_value for each in judged])


@dataclass(frozen=True)
class Told:
    """What a device said of a campaign: p-values, alarms by the second that raised them, and how many stood before."""

    p_values: Floats
    alarms: list[tuple[int, Alarm]]
    standing: int

    @property
    def strange(self) -> float:
        return float(np.mean(self.p_values <= P_LIMIT))

    def first(self, kind: str) -> int | None:
        """Second of the first alarm of a kind; None for none."""
        return min((second for second, alarm in self.alarms if alarm.kind == kind), default=None)

    def drifted(self) -> str | None:
        """What was first told to have drifted: the whole station, or one channel's subject."""
        return next((alarm.subject for _, alarm in self.alarms if alarm.kind == "drift"), None)


@dataclass(frozen=True)
class Station:
    """A station in these states: commissioned on the snippets `known`, its monitor on `learned`, in this order."""

    fan: Fan
    states: tuple[str, ...]
    known: Rows
    learned: Rows

    @classmethod
    def at(cls, fan: Fan, *speeds: str) -> Station:
        """Known is the first half of each speed's normal running, or what the LEAST of a reference leave of it."""
        train = [fan.normals("train", speed) for speed in speeds]
        cuts = [min(len(rows) // 2, len(rows) - LEAST // len(speeds)) for rows in train]
        known = [rows[:cut] for rows, cut in zip(train, cuts, strict=True)]
        learned = [rows[cut:] for rows, cut in zip(train, cuts, strict=True)]
        return cls(fan, speeds, np.concatenate(known), np.concatenate(learned))

    def hears(self, campaign: Rows, again: Rows | None = None) -> Told:
        """What it says of a campaign; `again`: commissioned anew on these after the first AGAIN seconds."""
        pipeline = Pipeline(self._config)
        pipeline.ensemble = self._commissioned
        before = plain.live(pipeline, self._items(self.learned), len(self.known))
        begun = len(self.known) + len(self.learned)
        early = campaign if again is None else campaign[:AGAIN]
        heard = plain.live(pipeline, self._items(early), begun)
        if again is not None:
            pipeline.ensemble = self._ensemble(again)
            heard += plain.live(pipeline, self._items(campaign[AGAIN:]), begun + AGAIN)
        return _told(before, heard, EPOCH_NS + begun * NS)

    @cached_property
    def _commissioned(self) -> Ensemble:
        return self._ensemble(self.known)

    def _ensemble(self, rows: Rows) -> Ensemble:
        """The encoder with normal running as commissioning on these makes it."""
        kept = plain.commission(self._config, self.fan.encoder, self._items(rows))
        return kept.ensemble({"series": self.fan.encoder}, self._config)

    @property
    def _config(self) -> DeviceConfig:
        return plain.device(SENSOR, "series", len(self.learned), self.states)

    def _items(self, rows: Rows) -> list[plain.Item]:
        return [(self.fan.about[row]["speed"], self.fan.items[row]) for row in rows.tolist()]


def evaluate(source: Path) -> Section:
    """The data set under `source` as a section. Raises RecordingError when it is not there."""
    fan = Fan.read(source)
    stations = {"low alone": Station.at(fan, "low"), "four speeds": Station.at(fan, *SPEEDS)}
    deploy = fan.rows(deploy="1")
    goals: list[Goal] = []
    runs: dict[str, tuple[Told, Told]] = {}
    for name, station in stations.items():
        before = station.hears(deploy)
        after = station.hears(deploy, np.concatenate([station.known, deploy[:AGAIN]]))
        runs[name] = before, after
        rate = float(np.mean(after.p_values[AGAIN:] <= P_LIMIT))
        count = len(after.p_values) - AGAIN
        goals += [
            Goal(
                f"{name}: deploy after {AGAIN} s of re-commissioning, share of {count} p <= {P_LIMIT}", rate, most=0.05
            ),
            Goal(f"{name}: deploy told as drift, second", _or_never(before.first("drift")), most=AGAIN),
            Goal(f"{name}: anomaly alarms of deploy until then", _anomalies(before, AGAIN), most=0),
        ]
    return Section(
        "Fan vibration: a shifted campaign, and a coin on a blade",
        TOLD,
        goals=goals,
        tables=[seen(fan), told(fan, stations), again(fan, stations, deploy), by_known(fan, deploy)],
        plots=[_course(name, *both) for name, both in runs.items()],
    )


TOLD = (
    "Plain encoder: logarithms of deviations and of 16 bands an axis. Each speed is a state that the device is told. "
    "`deploy` (another session) and `moving` (base moved) are normal running at low speed. Every coin was recorded in "
    "a session of its own too: the tilt of the sensor alone, which no coin changes, tells all of them from normal "
    "running. So this set does not say how well a coin is seen. Nor can a device tell the coin at low speed from "
    "`deploy`: both lie about as far from the one session of normal running that it knows there, and one session says "
    "nothing of how sessions differ. What either is told as hangs on how many windows are known (last table): with 51 "
    "and 175, as here, few lie beyond p_limit, by the fitted tail; with most other numbers both would be a crowd."
)


def seen(fan: Fan) -> Table:
    """AUROC of the coin, by the device and by others: one normal running for all speeds, and one for each."""
    rows: list[tuple[Cell, ...]] = []
    for name, evidence in SCORES.items():
        one = _areas(fan, evidence, dict.fromkeys(SPEEDS, fan.everywhere("train")))
        own = _areas(fan, evidence, {speed: fan.normals("train", speed) for speed in SPEEDS})
        rows.append((name, one["all"], own["all"], *(own[speed] for speed in WEIGHTED)))
    rows.append(("README: one Gaussian; one a speed, the nearest", 0.812, 0.979, *(None for _ in WEIGHTED)))
    told = "AUROC of -ln p, split `test`: 584 normal snippets against 1311 with a coin; learned from all of `train`."
    return Table(told, ("score", "one normal", "own normal a speed", *WEIGHTED), rows)


def _areas(fan: Fan, evidence: Evidence, known: Mapping[str, Rows]) -> dict[str, float]:
    """AUROC by speed, and of `all`, learned from these normal snippets for each speed."""
    normal = {speed: evidence(fan, rows, fan.normals("test", speed)) for speed, rows in known.items()}
    faulty = {speed: evidence(fan, known[speed], fan.weighted(speed)) for speed in WEIGHTED}
    areas = {speed: auroc(normal[speed], faulty[speed]) for speed in WEIGHTED}
    return {**areas, "all": auroc(np.concatenate([*normal.values()]), np.concatenate([*faulty.values()]))}


def device(fan: Fan, known: Rows, rows: Rows) -> Floats:
    """The device's own evidence."""
    return np.asarray(-np.log(fan.p_values(fan.normal(known), rows)))


def rival(make: Callable[[rivals.Seen], rivals.Score | None]) -> Evidence:
    """Evidence of a score, calibrated as rivals are."""

    def evidence(fan: Fan, known: Rows, rows: Rows) -> Floats:
        found = rivals.evidence(make, {SENSOR: fan.seen.at(known)}, {SENSOR: fan.seen.at(rows)})
        assert found is not None
        return found

    return evidence


def tilt(known: rivals.Seen) -> rivals.Score:
    """How far the mean of each axis, which is where gravity points, is from its usual one: no vibration at all."""
    return _off(known, lambda windows: windows.mean(axis=2))


def _off(known: rivals.Seen, level: Callable[[NDArray[Any]], Floats]) -> rivals.Score:
    usual, scale = level(known.windows).mean(axis=0), level(known.windows).std(axis=0)
    return lambda seen: np.asarray(np.linalg.norm((level(seen.windows) - usual) / scale, axis=1), np.float64)


SCORES: dict[str, Evidence] = {
    "device": device,
    "Hotelling T²": rival(rivals.hotelling),
    "isolation forest": rival(rivals.isolation_forest),
    "PCA of the samples": rival(rivals.pca),
    "loudness": rival(rivals.loudness),
    "tilt of the sensor": rival(tilt),
}


def told(fan: Fan, stations: Mapping[str, Station]) -> Table:
    """What the device says first of each campaign."""
    rows: list[tuple[Cell, ...]] = []
    for name, station in stations.items():
        campaigns = {
            f"normal, {s}": np.concatenate([fan.normals(s, v) for v in station.states]) for s in ("val", "test")
        }
        campaigns |= {"deploy": fan.rows(deploy="1"), "moving": fan.rows(split="shift", moving="1")}
        campaigns |= {f"coin, {speed}": fan.weighted(speed) for speed in WEIGHTED if speed in station.states}
        for campaign, places in campaigns.items():
            heard = station.hears(places)
            firsts = heard.standing, heard.first("drift"), heard.drifted(), heard.first("anomaly")
            rows.append((name, campaign, len(places), heard.strange, *firsts))
    told = (
        f"Share of windows p <= {P_LIMIT}; alarms that stood before the campaign; its second at which drift is "
        "first told, and of what, and at which an anomaly is."
    )
    return Table(told, ("station", "campaign", "windows", "strange", "stood", "drift", "of", "anomaly"), rows)


def again(fan: Fan, stations: Mapping[str, Station], deploy: Rows) -> Table:
    """Commissioning anew on the first AGAIN seconds of `deploy`, together with what was known or without it."""
    new, rest = deploy[:AGAIN], deploy[AGAIN:]
    old, coin = fan.normals("test", "low"), fan.weighted("low")
    ways: dict[str, list[Rows]] = {"new windows alone": [new]}
    for name, station in stations.items():
        known = np.intersect1d(station.known, fan.normals("train", "low"))
        ways |= {f"{name}: {len(known)} old ones alone": [known], f"{name}: with the new": [np.append(known, new)]}
        ways |= {f"{name}: the new a state of its own, judged by the likelier": [known, new]}
    rows: list[tuple[Cell, ...]] = []
    for name, parts in ways.items():
        normals = [fan.normal(part) for part in parts]
        p_new, p_old, p_coin = (_likelier(fan, normals, of) for of in (rest, old, coin))
        strange = [float(np.mean(p <= P_LIMIT)) for p in (p_new, p_old, p_coin)]
        rows.append((name, *strange, auroc(-p_old, -p_coin), auroc(-p_new, -p_coin)))
    told = (
        f"Commissioned again on {AGAIN} s of `deploy`: share of windows p <= {P_LIMIT} of its other {len(rest)}, of "
        f"{len(old)} of the old normal running (test), of {len(coin)} with the coin; AUROC of the coin against each."
    )
    return Table(told, ("learned from", "deploy", "old", "coin", "AUROC old", "AUROC deploy"), rows)


def by_known(fan: Fan, deploy: Rows) -> Table:
    """How strange low-speed campaigns are to one that knows so many windows of normal running there."""
    train, campaigns = fan.normals("train", "low"), (fan.normals("test", "low"), deploy, fan.weighted("low"))
    rows: list[tuple[Cell, ...]] = []
    for count in (*KNOWN, len(train)):
        normal = fan.normal(train[:count])
        rows.append((count, *(float(np.mean(fan.p_values(normal, places) <= P_LIMIT)) for places in campaigns)))
    told = f"Share of windows p <= {P_LIMIT} at low speed, by how many windows of its normal running are known."
    return Table(told, ("known", "normal, test", "deploy", "coin"), rows)


def _likelier(fan: Fan, normals: Sequence[Normal], rows: Rows) -> Floats:
    return np.asarray(np.max([fan.p_values(normal, rows) for normal in normals], axis=0))


def _told(before: Sequence[Message], heard: Sequence[Message], begun_ns: int) -> Told:
    changes = [message for message in before if isinstance(message, Alarm)]
    standing = {alarm.key for alarm in changes} - {alarm.key for alarm in changes if alarm.state == "cleared"}
    raised = [message for message in heard if isinstance(message, Alarm) and message.state == "raised"]
    p_values = np.array([message.p_value for message in heard if isinstance(message, Score)])
    return Told(p_values, [((alarm.time_ns - begun_ns) // NS, alarm) for alarm in raised], len(standing))


def _course(name: str, before: Told, after: Told) -> Plot:
    seconds = np.arange(len(before.p_values), dtype=np.float64)
    lines = {line: (seconds, -np.log10(each.p_values)) for line, each in (("as was", before), ("again", after))}
    marks = {f"{alarm.kind} told": float(second) for second, alarm in before.alarms}
    marks["commissioned again"] = float(AGAIN)
    limits = {"p_limit": -float(np.log10(P_LIMIT))}
    return Plot(f"`deploy`, {name}: commissioned before it, and again", "seconds", "-log10 p", lines, marks, limits)


def _anomalies(heard: Told, until_s: int) -> int:
    return sum(alarm.kind == "anomaly" and second <= until_s for second, alarm in heard.alarms)


def _or_never(second: int | None) -> float:
    return float("nan") if second is None else float(second)


def _window(snippet: Samples) -> Window:
    start_ns, end_ns = snippet.start_ns, snippet.start_ns + NS
    return Window(SENSOR, "series", start_ns, end_ns, snippet.rate_hz, snippet.data, start_ns)

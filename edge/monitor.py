"""The slow channels of one station: what each sensor contributes, how it agrees with others, where its embeddings lie.

All share one detector and one budget of false alarms (lineside.drift). What is ordinary for them is learned from live
running after commissioning, judged by what commissioning learned: windows of commissioning themselves lie nearer to it
than any later one will. Until then nothing is watched, and health says so. Each state of the station (product, machine
state) has a level of its own; in one that was not seen then nothing is watched, and health names it.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge.detectors import DriftDetector, chosen
from lineside.clock import NS
from lineside.drift import Finding
from lineside.fusion import Encoded, Judgement
from lineside.projections import CHANNELS, WITNESSES, Projections, Space
from lineside.reference import Reference

CONTRIBUTION, AGREEMENT, EMBEDDING = "contribution", "agreement", "embedding"
SHARES = {CONTRIBUTION: 0.25, AGREEMENT: 0.25, EMBEDDING: 0.5}  # of the budget, shared alike within each
WITNESSED = 0.5  # of an embedding's share, for the two channels that look where it has been going
MOST_ROWS, RUN = 20_000, 64  # what is learned from: runs of windows that follow each other, spread over the whole time
MOST_UNSEEN = 16  # names of states never seen that are told
FORMAT = 2  # of what `state` gives
HOUR_NS, DAY_NS = 3_600 * NS, 86_400 * NS

Arrays = dict[str, NDArray[np.generic]]
Group = tuple[str, str]  # kind and subject: a sensor's embedding, a pair's agreement


@dataclass(frozen=True)
class Drift:
    """A finding with what it is about: `kind` is a key of SHARES, `subject` a sensor, or a pair as `a+b`."""

    kind: str
    subject: str
    finding: Finding


@dataclass(frozen=True)
class Watch:
    """What is to be watched: `spaces` by sensor, the `pairs` that are judged; how long to learn, and which budget.

    `states` are those of the station that commissioning saw; without any there is one, whatever its name. `detector`
    is a row of edge.detectors.DETECTORS.
    """

    spaces: dict[str, Space]
    pairs: tuple[str, ...]
    hop_ns: int
    learn_hours: float
    false_alarm_days: float
    states: tuple[str, ...] = ()
    detector: str = "e-detector"

    def stratum(self, state: str) -> int:
        """Number of a state, -1 of one never seen."""
        if not self.states:
            return 0
        return self.states.index(state) if state in self.states else -1

    @property
    def channels(self) -> tuple[str, ...]:
        """Every channel, as `kind/subject/channel`."""
        embedding = [f"{EMBEDDING}/{sensor}/{channel}" for sensor in self.spaces for channel in CHANNELS]
        contribution = [f"{CONTRIBUTION}/{sensor}/" for sensor in self.spaces]
        return (*contribution, *(f"{AGREEMENT}/{pair}/" for pair in self.pairs), *embedding)

    @property
    def windows_wanted(self) -> int:
        """Windows to learn from."""
        return max(2, round(self.learn_hours * HOUR_NS / self.hop_ns))

    @property
    def fingerprint(self) -> bytes:
        """Hash of what channels mean: what was gathered of others means nothing to these."""
        digest = hashlib.sha256(
            json.dumps([FORMAT, self.channels, self.hop_ns, self.learn_hours, self.states]).encode()
        )
        for space in self.spaces.values():
            digest.update(space.mean.tobytes() + np.ascontiguousarray(space.axes).tobytes())
        return digest.digest()


class Monitor:
    """Learns from live moments what is ordinary, then watches. Used by one thread.

    Raises ConfigError where the detector that is asked for cannot work here.
    """

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self._make = chosen(watch.detector)
        self._projections = {sensor: Projections(space) for sensor, space in watch.spaces.items()}
        self._channels = watch.channels
        self._groups: dict[Group, list[str]] = {}
        for name in self._channels:
            kind, subject, _ = name.split("/")
            self._groups.setdefault((kind, subject), []).append(name)
        self._places = {group: self._channels.index(names[0]) for group, names in self._groups.items()}
        self._rows: list[NDArray[np.float64]] = []
        self._starts: list[int] = []
        self._strata: list[int] = []
        self._heard = 0
        self._unseen: deque[str] = deque(maxlen=MOST_UNSEEN)
        self._reference: Reference | None = None
        self._detector: DriftDetector | None = None
        self._watched = np.zeros(0, np.int64)

    def hear(self, judged: Judgement, encoded: Mapping[str, Encoded], start_ns: int, state: str = "") -> Drift | None:
        """The next moment, and the station's state in it. In a state never seen nothing is learned and nothing watched.

        Contributions count only where every sensor is there: fewer share other evidence.
        """
        stratum = self.watch.stratum(state)
        if stratum < 0:
            if state not in self._unseen:
                self._unseen.append(state)
            return None
        row = self._row(judged, encoded)
        self._heard += 1
        if self._detector is None:
            self._learn(row, start_ns, stratum)
            return None
        finding = self._detector.hear(row[self._watched], start_ns, stratum)
        if finding is None:
            return None
        kind, subject, _ = finding.channel.split("/")
        return Drift(kind, subject, finding)

    def reset(self) -> None:
        """Forget what has gathered: it is told of by another alarm."""
        if self._detector:
            self._detector.reset()

    @property
    def gauges(self) -> dict[str, float]:
        """Evidence of drift, 0 to 1, by sensor and by pair: the most that any of its channels has."""
        found: dict[str, float] = {}
        for channel, value in self._detector.gauges().items() if self._detector else ():
            subject = channel.split("/")[1]
            found[subject] = max(value, found.get(subject, 0.0))
        return found

    @property
    def told(self) -> str:
        """How far it is, for a person."""
        if self._reference:
            return f"{len(self._reference.names)} of {len(self._channels)} channels are watched"
        done = self._heard / self.watch.windows_wanted * self.watch.learn_hours
        return f"what is ordinary is being learned, {done:.1f} of {self.watch.learn_hours:g} h"

    @property
    def problems(self) -> list[str]:
        """What cannot be watched, and why; of an embedding only where none of its channels can."""
        told = [_strange(state, "not seen") for state in self._unseen]
        if self._reference is None:
            return told
        refused = self._reference.refused
        blind = [group for group, channels in self._groups.items() if refused.keys() >= set(channels)]
        for kind, subject in blind:
            reason = refused[self._groups[kind, subject][0]]
            told.append(f"{kind} of {subject} is not watched for drift: {reason}")
        return told + [
            sentence for state in self.watch.states for sentence in self._thin(self._reference, state, blind)
        ]

    def state(self) -> Arrays:
        """What a restart would lose."""
        found: Arrays = {f"course:{sensor}": each.course.copy() for sensor, each in self._projections.items()}
        found["watch"], found["heard"] = np.frombuffer(self.watch.fingerprint, np.uint8), np.array(self._heard)
        found["rows"] = np.array(self._rows, np.float32).reshape(-1, len(self._channels))
        found["starts"], found["strata"] = np.array(self._starts, np.int64), np.array(self._strata, np.int64)
        watched = self._detector.state() if self._detector else {}
        return found | {f"{self.watch.detector}:{name}": array for name, array in watched.items()}

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> bool:
        """Go on from `state`; False, and nothing taken, where it was gathered of other channels.

        A detector that was chosen anew begins to watch now, against what was learned before.
        """
        if "watch" not in state or state["watch"].tobytes() != self.watch.fingerprint:
            return False
        for sensor, projections in self._projections.items():
            projections.course = np.array(state[f"course:{sensor}"], np.float64)
        self._heard = int(state["heard"])
        self._rows = list(np.asarray(state["rows"], np.float64))
        self._starts, self._strata = ([int(each) for each in state[name]] for name in ("starts", "strata"))
        if self._heard >= self.watch.windows_wanted:
            detector, mine = self._begin(), f"{self.watch.detector}:"
            if kept := {name[len(mine) :]: array for name, array in state.items() if name.startswith(mine)}:
                detector.restore(kept)
        return True

    def _row(self, judged: Judgement, encoded: Mapping[str, Encoded]) -> NDArray[np.float64]:
        """The values of all channels, as they are kept; NaN where there is none."""
        row = np.full(len(self._channels), np.nan, np.float32)
        for pair, cosine in judged.agreements.items():
            if (place := self._places.get((AGREEMENT, pair))) is not None:
                row[place] = cosine
        if judged.contributions.keys() >= self._projections.keys():
            for sensor in self._projections:
                row[self._places[CONTRIBUTION, sensor]] = judged.contributions[sensor]
        for sensor, projections in self._projections.items():
            if (one := encoded.get(sensor)) is not None:
                place = self._places[EMBEDDING, sensor]
                row[place : place + len(CHANNELS)] = projections.hear(one.embedding)
        return row.astype(np.float64)

    def _learn(self, row: NDArray[np.float64], start_ns: int, stratum: int) -> None:
        wanted = self.watch.windows_wanted
        every = -(-wanted // MOST_ROWS)  # of so many runs one is kept
        if (self._heard - 1) // RUN % every == 0:
            self._rows.append(row)
            self._starts.append(start_ns)
            self._strata.append(stratum)
        if self._heard >= wanted:
            self._begin()

    def _begin(self) -> DriftDetector:
        """Watch from here on, against what the kept rows say; they stay, so that a restart learns the same."""
        rows, starts, strata = np.array(self._rows), np.array(self._starts, np.int64), np.array(self._strata, np.int64)
        order = np.argsort(starts, kind="stable")  # a clock may have jumped
        learned = Reference.fit(self._channels, rows[order], starts[order], self.watch.hop_ns, strata[order])
        run_length = self.watch.false_alarm_days * DAY_NS / self.watch.hop_ns
        self._watched = np.array([self._channels.index(name) for name in learned.names], np.int64)
        self._reference = learned
        self._detector = self._make(learned, run_length, weights(learned.names))
        return self._detector

    def _thin(self, learned: Reference, state: str, blind: list[Group]) -> list[str]:
        """What cannot be watched in a state, because it was seen too little in it while normal was learned."""
        number = self.watch.stratum(state)
        seen = {name for name, known in zip(learned.names, learned.seen(number), strict=True) if known}
        unseen = [each for each, channels in self._groups.items() if each not in blind and seen.isdisjoint(channels)]
        if unseen and not seen:
            count = self._strata.count(number)
            return [_strange(state, f"seen in {count} windows only" if count else "not seen")]
        why = f"is not watched for drift in state {state!r}: seen too little in it while normal was learned"
        return [f"{kind} of {subject} {why}" for kind, subject in unseen]


def _strange(state: str, seen: str) -> str:
    return f"state {state!r} was {seen} while normal was learned: nothing is watched in it; commission again with it"


def weights(names: tuple[str, ...]) -> NDArray[np.float64]:
    """Each channel's share of the budget, from SHARES; what no channel takes is shared out among those that are."""
    witnesses = set(CHANNELS[-WITNESSES:])
    groups: dict[tuple[str, str, bool], list[int]] = {}
    for place, name in enumerate(names):
        kind, subject, channel = name.split("/")
        groups.setdefault((kind, subject, channel in witnesses), []).append(place)
    subjects = {kind: {subject for k, subject, _ in groups if k == kind} for kind in SHARES}
    shares = np.zeros(len(names))
    for (kind, _, witness), places in groups.items():
        part = 1.0 if kind != EMBEDDING else WITNESSED if witness else 1 - WITNESSED
        shares[places] = SHARES[kind] * part / len(subjects[kind]) / len(places)
    return shares / shares.sum() if len(names) else shares

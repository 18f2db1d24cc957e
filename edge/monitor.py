"""The slow channels of one station: what each sensor contributes, how it agrees with others, where its embeddings lie.

All share one detector and one budget of false alarms (lineside.drift). What is ordinary for them is learned from live
running after commissioning, judged by what commissioning learned: windows of commissioning themselves lie nearer to it
than any later one will. Until then nothing is watched, and health says so.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lineside.clock import NS
from lineside.drift import Detector, Finding, Reference
from lineside.fusion import Encoded, Judgement
from lineside.projections import CHANNELS, WITNESSES, Projections, Space

CONTRIBUTION, AGREEMENT, EMBEDDING = "contribution", "agreement", "embedding"
SHARES = {CONTRIBUTION: 0.25, AGREEMENT: 0.25, EMBEDDING: 0.5}  # of the budget, shared alike within each
WITNESSED = 0.5  # of an embedding's share, for the two channels that look where it has been going
MOST_ROWS, RUN = 20_000, 64  # what is learned from: runs of windows that follow each other, spread over the whole time
HOUR_NS, DAY_NS = 3_600 * NS, 86_400 * NS

Arrays = dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Drift:
    """A finding with what it is about: `kind` is a key of SHARES, `subject` a sensor, or a pair as `a+b`."""

    kind: str
    subject: str
    finding: Finding


@dataclass(frozen=True)
class Watch:
    """What is to be watched: `spaces` by sensor, the `pairs` that are judged; how long to learn, and which budget."""

    spaces: dict[str, Space]
    pairs: tuple[str, ...]
    hop_ns: int
    learn_hours: float
    false_alarm_days: float

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
        digest = hashlib.sha256(json.dumps([self.channels, self.hop_ns, self.learn_hours]).encode())
        for space in self.spaces.values():
            digest.update(space.mean.tobytes() + np.ascontiguousarray(space.axes).tobytes())
        return digest.digest()


class Monitor:
    """Learns from live moments what is ordinary, then watches. Used by one thread."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self._projections = {sensor: Projections(space) for sensor, space in watch.spaces.items()}
        self._channels = watch.channels
        self._rows: list[NDArray[np.float64]] = []
        self._starts: list[int] = []
        self._heard = 0
        self._detector: Detector | None = None
        self._watched = np.zeros(0, np.int64)

    def hear(self, judged: Judgement, encoded: Mapping[str, Encoded], start_ns: int) -> Drift | None:
        """The next moment. Contributions count only where every sensor is there: fewer share other evidence."""
        row = self._row(judged, encoded)
        self._heard += 1
        if self._detector is None:
            self._learn(row, start_ns)
            return None
        finding = self._detector.hear(row[self._watched], start_ns)
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
        if self._detector:
            known = len(self._detector.reference.names)
            return f"{known} of {len(self._channels)} channels are watched"
        done = self._heard / self.watch.windows_wanted * self.watch.learn_hours
        return f"what is ordinary is being learned, {done:.1f} of {self.watch.learn_hours:g} h"

    @property
    def problems(self) -> list[str]:
        """What cannot be watched, and why; of an embedding only where none of its channels can."""
        told: dict[str, list[str]] = {}
        for channel, reason in self._detector.reference.refused.items() if self._detector else ():
            kind, subject, _ = channel.split("/")
            told.setdefault(f"{kind} of {subject} is not watched for drift: {reason}", []).append(channel)
        return [
            sentence
            for sentence, channels in told.items()
            if not channels[0].startswith(EMBEDDING) or len(channels) == len(CHANNELS)
        ]

    def state(self) -> Arrays:
        """What a restart would lose."""
        found: Arrays = {f"course:{sensor}": each.course for sensor, each in self._projections.items()}
        found["watch"], found["heard"] = np.frombuffer(self.watch.fingerprint, np.uint8), np.array(self._heard)
        found["rows"] = np.array(self._rows, np.float32).reshape(-1, len(self._channels))
        found["starts"] = np.array(self._starts, np.int64)
        return found | (self._detector.state() if self._detector else {})

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> bool:
        """Go on from `state`; False, and nothing taken, where it was gathered of other channels."""
        if "watch" not in state or state["watch"].tobytes() != self.watch.fingerprint:
            return False
        for sensor, projections in self._projections.items():
            projections.course = np.array(state[f"course:{sensor}"], np.float64)
        self._heard = int(state["heard"])
        self._rows = list(np.asarray(state["rows"], np.float64))
        self._starts = [int(start) for start in state["starts"]]
        if self._heard >= self.watch.windows_wanted:
            self._begin()
            assert self._detector is not None
            self._detector.restore({name: state[name] for name in self._detector.state()})
        return True

    def _row(self, judged: Judgement, encoded: Mapping[str, Encoded]) -> NDArray[np.float64]:
        """The values of all channels, as they are kept; NaN where there is none."""
        values = {f"{AGREEMENT}/{pair}/": cosine for pair, cosine in judged.agreements.items()}
        if judged.contributions.keys() >= self._projections.keys():
            values |= {f"{CONTRIBUTION}/{sensor}/": value for sensor, value in judged.contributions.items()}
        for sensor, one in encoded.items():
            if sensor in self._projections:
                channels = self._projections[sensor].hear(one.embedding).tolist()
                values |= {f"{EMBEDDING}/{sensor}/{name}": channels[k] for k, name in enumerate(CHANNELS)}
        row = np.array([values.get(name, np.nan) for name in self._channels], np.float32)
        return row.astype(np.float64)

    def _learn(self, row: NDArray[np.float64], start_ns: int) -> None:
        wanted = self.watch.windows_wanted
        every = -(-wanted // MOST_ROWS)  # of so many runs one is kept
        if (self._heard - 1) // RUN % every == 0:
            self._rows.append(row)
            self._starts.append(start_ns)
        if self._heard >= wanted:
            self._begin()

    def _begin(self) -> None:
        """Watch from here on, against what the kept rows say; they stay, so that a restart learns the same."""
        rows, starts = np.array(self._rows), np.array(self._starts, np.int64)
        order = np.argsort(starts, kind="stable")  # a clock may have jumped
        learned = Reference.fit(self._channels, rows[order], starts[order], self.watch.hop_ns)
        places = [self._channels.index(name) for name in learned.names]
        run_length = self.watch.false_alarm_days * DAY_NS / self.watch.hop_ns
        self._detector = Detector(learned, run_length, weights(learned.names))
        self._watched = np.array(places, np.int64)


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

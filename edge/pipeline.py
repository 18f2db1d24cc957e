"""From samples to messages: cut, check, join, embed, judge, alarm. No thread, no clock, no network in here.

The same pipeline serves live sensors and recordings; what it decides depends on the samples alone.
"""

from __future__ import annotations

import contextlib
import io
import zipfile
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge import triage
from edge.alarm import Alarms
from edge.commissioning import Commissioning
from edge.config import DeviceConfig
from edge.ensemble import Ensemble
from edge.monitor import Drift, Monitor
from edge.shadow import Judged, Shadow
from edge.stages import Stages
from edge.station import Station
from edge.thumbnail import example, thumbnail
from edge.triage import Seen
from lineside import wire
from lineside.clock import NS
from lineside.contribution import Contributions, Summary
from lineside.errors import ReleaseError
from lineside.fusion import Encoded, Judgement
from lineside.messages import Alarm, Embedding, Embeddings, Message, NormalMoment, Score
from lineside.quality import Quality
from lineside.windows import Cutter, Moment, Moments, Samples, Timing, Window

CONTRIBUTED = "contributed:"  # before the names of what is remembered of contributions


@dataclass
class Counters:
    """What went through since the start; by sensor, and `flagged` by flag too."""

    windows: Counter[str] = field(default_factory=Counter)
    flags: dict[str, frozenset[str]] = field(default_factory=dict)
    flagged: dict[str, Counter[str]] = field(default_factory=dict)
    rates_hz: dict[str, float] = field(default_factory=dict)
    timing: dict[str, Timing | None] = field(default_factory=dict)
    embedded: int = 0
    moments: int = 0
    scores: int = 0


class Latched(msgspec.Struct, frozen=True):
    """Alarms that stand raised: drift by kind and subject, and under which normal running (Ensemble.commissioned_ns),
    the sensors' by their name, and the station's own."""

    commissioned_ns: int
    alarms: dict[str, Alarm]
    sensors: dict[str, Alarm] = {}
    anomaly: Alarm | None = None
    lasting: Alarm | None = None


class Pipeline:
    """One station of one device.

    `ensemble` and `commissioning` may be replaced by another thread: each is read once a moment, so that no moment
    mixes two of them. While `commissioning` is set, good moments go there; what was judged also goes to `beside`, where
    there is one. `recent` are the moments that the next
    alarm will be blamed by. `station` is told, also by another thread, in which state the station is; a moment in which
    that changes is neither judged nor learned from.
    """

    def __init__(self, config: DeviceConfig) -> None:
        length, hop = (round(s * NS) for s in (config.windows.length_s, config.windows.hop_s))
        self._config = config
        self.modalities: dict[str, str] = {sensor.name: sensor.modality for sensor in config.sensors}
        self._cutters = {name: Cutter(length, hop) for name in self.modalities}
        self._quality = Quality()
        self._join = Moments(tuple(self.modalities), patience_ns=length)
        self._hop_ns, self._length_ns = hop, length
        self._heard_ns = 0
        self._alarms = Alarms.begin(config)
        self.ensemble: Ensemble | None = None
        self.commissioning: Commissioning | None = None
        self.beside: Shadow | None = None
        self.station = Station(config.device.states)
        self._in_state: str | None = None
        self.counters = Counters()
        self.stages = Stages()
        self._commissioned_ns = 0
        self._senseless: dict[str, str] = {}  # by sensor, how its encoder failed in the last moment
        self.recent: deque[Seen] = deque(maxlen=config.alarm.of)
        self.contributions = Contributions(tuple(self.modalities))
        self._monitor: Monitor | None = None
        self._recalled: dict[str, NDArray[np.generic]] = {}

    def push(self, samples: Samples) -> list[Message]:
        """Take the next run of samples of one sensor; give the messages that it leads to."""
        out: list[Message] = []
        with self.stages["cut"]:
            windows = self._cutters[samples.sensor].push(samples)
        for window in windows:
            with self.stages["check"]:
                flags = self._quality.flags(window)
            self.counters.windows[window.sensor] += 1
            self.counters.flags[window.sensor] = flags
            self.counters.rates_hz[window.sensor] = len(window.data) * NS / (window.end_ns - window.start_ns)
            self.counters.timing[window.sensor] = samples.timing
            for moment in self._join.push(replace(window, flags=flags)):
                out += self._moment(moment)
        return out

    def tick(self, now_ns: int) -> list[Message]:
        """Let time pass without samples: when every sensor is away, each missing window still counts."""
        out: list[Message] = []
        if not self._heard_ns:
            self._heard_ns = now_ns + 4 * self._length_ns  # cameras and microphones need a while to begin
        while now_ns - self._heard_ns > 3 * self._length_ns:
            self._heard_ns += self._hop_ns
            out += self._heard(self._heard_ns, dict.fromkeys(self.modalities, ("absent",)), {})
        return out

    def _heard(self, end_ns: int, problems: Mapping[str, tuple[str, ...]], versions: Mapping[str, str]) -> list[Alarm]:
        """Count what is wrong with the window of each sensor; the alarms that it changes."""
        for name, told in problems.items():
            self.counters.flagged.setdefault(name, Counter()).update(told)
        return self._alarms.hear_sensors(end_ns, problems, versions)

    @property
    def window_ns(self) -> int:
        """Length of a window."""
        return self._length_ns

    @property
    def problems(self) -> list[str]:
        """What cannot be judged or watched, and why."""
        told = [*self._senseless.values(), *(self._monitor.problems if self._monitor else [])]
        if self.ensemble is None or self.ensemble.normal is None:
            return told
        unknown = self.station.problem(self._in_state, self.ensemble.states)
        return [*told, *(problem for problem in (unknown, _lopsided(self.contributed)) if problem)]

    @property
    def out(self) -> dict[str, str]:
        """The sensors that are out of the fusion until they are well again, each with what is wrong with it."""
        alarms = {name: alarm.active for name, alarm in self._alarms.sensors.items()}
        return {name: alarm.text for name, alarm in alarms.items() if alarm is not None}

    @property
    def unsettled(self) -> str:
        """Why encoders should not be changed now; empty while the station runs as it should."""
        if self.commissioning is not None:
            return "normal running is being learned"
        if self._alarms.anomaly.active is not None:
            return "an anomaly alarm stands raised"
        if self.station.known and self._in_state is None:
            return "the station is changing its state"
        return ""

    @property
    def contributed(self) -> Summary:
        """What each sensor has said of late, in the state that the station is in."""
        return self.contributions.summary(self._in_state or "")

    @property
    def monitor(self) -> Monitor | None:
        """What watches for slow change; None before commissioning."""
        return self._monitor

    def remember(self) -> bytes:
        """What a restart would lose, as an npz file: what the monitor has gathered, and which alarms stand raised."""
        a = self._alarms
        sensors = {name: alarm.active for name, alarm in a.sensors.items() if alarm.active is not None}
        latched = Latched(self._commissioned_ns, dict(a.drift.active), sensors, a.anomaly.active, a.lasting.active)
        arrays = self._monitor.state() if self._monitor else {}
        arrays |= {CONTRIBUTED + name: array for name, array in self.contributions.state().items()}
        buffer = io.BytesIO()
        np.savez(buffer, latched=np.frombuffer(msgspec.json.encode(latched), np.uint8), **arrays)  # type: ignore[arg-type]
        return buffer.getvalue()

    def recall(self, data: bytes) -> None:
        """Go on from `remember`, as soon as the same normal running is there. Raises ValueError when it is damaged."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                kept = {name: file[name] for name in file.files}
            latched = msgspec.json.decode(kept.pop("latched").tobytes(), type=Latched)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, msgspec.DecodeError) as error:
            raise ValueError(f"what the monitor had gathered cannot be read ({error})") from error
        said = {name.removeprefix(CONTRIBUTED): kept.pop(name) for name in [*kept] if name.startswith(CONTRIBUTED)}
        with contextlib.suppress(ValueError):  # of other sensors: they are counted anew
            self.contributions.restore(said)
        self._recalled, self._commissioned_ns = kept, latched.commissioned_ns
        a = self._alarms
        a.drift = replace(a.drift, active=latched.alarms)
        a.anomaly, a.lasting = replace(a.anomaly, active=latched.anomaly), replace(a.lasting, active=latched.lasting)
        a.sensors |= {n: replace(a.sensors[n], active=one) for n, one in latched.sensors.items() if n in a.sensors}

    def flush(self) -> list[Message]:
        """The messages of what is left at the end of a recording."""
        return [message for moment in self._join.flush() for message in self._moment(moment)]

    def _moment(self, moment: Moment) -> list[Message]:
        self.counters.moments += 1
        self._heard_ns = moment.end_ns
        ensemble, state = self.ensemble, self.station.at(moment.start_ns, moment.end_ns)
        self._in_state = state
        with self.stages["prepare"]:
            good, bad = self._prepared(moment, ensemble)
        with self.stages["encode"]:
            encoded = self._encoded(good, bad, ensemble) if ensemble is not None else {}
        alarms = self._heard(moment.end_ns, bad, ensemble.versions if ensemble else {})
        if ensemble is not None:
            alarms += self._watched(ensemble, moment.end_ns)
        out: list[Message] = []
        if ensemble is not None and encoded:
            self.counters.embedded += len(encoded)
            out.append(self._embeddings(moment, encoded, ensemble))
            if state is not None:
                self._learn(moment, good, state)
                score, changes = self._judge(moment, good, encoded, bad, ensemble, state)
                out += [score] if score else []
                alarms += changes
        told = [self._with_cause(alarm, ensemble) for alarm in alarms]
        return out + [self._with_evidence(alarm, moment, encoded, ensemble) for alarm in told]

    def _prepared(
        self, moment: Moment, ensemble: Ensemble | None
    ) -> tuple[dict[str, NDArray[np.generic]], dict[str, tuple[str, ...]]]:
        """Encoder inputs of the sensors that are well, and by sensor what is wrong (nothing: it is well)."""
        bad = {name: _problems(moment, name) for name in self.modalities}
        good: dict[str, NDArray[np.generic]] = {}
        for name, window in moment.windows.items():
            if ensemble is None or bad[name]:
                continue
            if (prepared := ensemble.prepare(window)) is None:
                bad[name] = ("unfit",)
            else:
                good[name] = prepared
        return good, bad

    def _encoded(
        self, good: dict[str, NDArray[np.generic]], bad: dict[str, tuple[str, ...]], ensemble: Ensemble
    ) -> dict[str, Encoded]:
        """What the encoders make of the sensors that are well; one that is made no sense of is well no more."""
        encoded: dict[str, Encoded] = {}
        self._senseless = {}
        for name, window in good.items():
            try:
                one = ensemble.encode({name: (self.modalities[name], window)})[name]
            except ReleaseError as error:
                self._senseless[name] = str(error)
                continue
            if np.isfinite(one.embedding).all() and np.isfinite(one.features).all():
                encoded[name] = one
        for name in [*good.keys() - encoded.keys()]:
            del good[name]
            bad[name] = ("senseless",)
        return encoded

    def _learn(self, moment: Moment, good: dict[str, NDArray[np.generic]], state: str) -> None:
        if (commissioning := self.commissioning) is not None:
            commissioning.add(good, moment.start_ns, state)
            commissioning.rehearse({name: moment.windows[name] for name in good})

    def _judge(
        self,
        moment: Moment,
        good: dict[str, NDArray[np.generic]],
        encoded: Mapping[str, Encoded],
        bad: Mapping[str, tuple[str, ...]],
        ensemble: Ensemble,
        state: str,
    ) -> tuple[Score | None, list[Alarm]]:
        """The score of a moment and what it changes in alarms; none where these sensors or this state are not known."""
        with self.stages["judge"]:
            judged = ensemble.judge(encoded, state)
        if judged is None:
            return None, []
        absent = {n: ", ".join(p) or "not commissioned" for n, p in bad.items() if n not in judged.contributions}
        sounds = {n: moment.windows[n] for n in good if self.modalities[n] == "microphone"}
        if (beside := self.beside) is not None:
            beside.take(Judged(good, encoded, judged, state))
        self.recent.append(Seen(judged.single, judged.pair, good, sounds))
        self.contributions.hear(judged.contributions, state)
        with self.stages["drift"]:
            drift = self._slow(judged, encoded, moment.start_ns, state)
        score = self._score(moment, judged, encoded, absent, ensemble, state)
        self.counters.scores += 1
        changes = self._alarms.hear_score(score)
        return score, changes + (self._alarms.hear_drift(drift, score) if drift else [])

    def _with_cause(self, alarm: Alarm, ensemble: Ensemble | None) -> Alarm:
        """Who is to blame, for an alarm that is raised: what is flagged is the sensor itself."""
        if alarm.state != "raised" or ensemble is None:
            return alarm
        if alarm.kind == "sensor":
            return msgspec.structs.replace(alarm, cause="sensor")
        suspect = alarm.top_sensor if alarm.subject == alarm.station else ""
        verdict = triage.decide(self.recent, ensemble.scenes, partial(self._alone, ensemble), suspect)
        blamed = {"sensor": f"{verdict.sensor} itself", "process": "the process"}.get(verdict.cause, "undecided")
        told = f"{alarm.text} (cause: {blamed}; {verdict.why})"
        return msgspec.structs.replace(alarm, cause=verdict.cause, text=told)

    def _alone(self, ensemble: Ensemble, window: Window) -> float:
        """The evidence that one sensor's window gives alone, in the state that the station is in."""
        prepared = ensemble.prepare(window)
        assert prepared is not None  # it is as long as the moment's own window, which was judged
        encoded = ensemble.encode({window.sensor: (window.modality, prepared)})
        judged = ensemble.judge(encoded, self._in_state or "")
        return judged.single[window.sensor] if judged is not None else np.inf

    def _watched(self, ensemble: Ensemble, end_ns: int) -> list[Alarm]:
        """Watch what there is to watch now; normal running that was learned anew clears the drift from the old one."""
        if ensemble.watch is not (self._monitor.watch if self._monitor else None):
            self._monitor = Monitor(ensemble.watch) if ensemble.watch else None
            if self._monitor and self._recalled:
                self._monitor.restore(self._recalled)
                self._recalled = {}
        if not ensemble.commissioned_ns or ensemble.commissioned_ns == self._commissioned_ns:
            return []
        self._commissioned_ns = ensemble.commissioned_ns
        return self._alarms.commissioned(end_ns)

    def _slow(self, judged: Judgement, encoded: Mapping[str, Encoded], start_ns: int, state: str) -> Drift | None:
        """Slow change; none is looked for while the station is openly unlike normal: that alarm tells of it.

        Nor while it has not told which of its states it is in.
        """
        if self._monitor is None or (self.station.known and not state):
            return None
        if self._alarms.anomaly.active:
            self._monitor.reset()
            return None
        return self._monitor.hear(judged, encoded, start_ns, state)

    def _embeddings(self, moment: Moment, encoded: Mapping[str, Encoded], ensemble: Ensemble) -> Embeddings:
        made = []
        for name, one in encoded.items():
            modality = self.modalities[name]
            card = ensemble.encoders[modality].card
            made.append(Embedding(name, modality, str(card.version), card.space, wire.pack(one.embedding)))
        return Embeddings(
            device=self._config.device.id,
            station=self._config.device.station,
            start_ns=moment.start_ns,
            end_ns=moment.end_ns,
            embeddings=made,
        )

    def _score(
        self,
        moment: Moment,
        judged: Judgement,
        encoded: Mapping[str, Encoded],
        absent: dict[str, str],
        ensemble: Ensemble,
        state: str,
    ) -> Score:
        recognised, said = ensemble.recognise(encoded)
        return Score(
            device=self._config.device.id,
            station=self._config.device.station,
            start_ns=moment.start_ns,
            end_ns=moment.end_ns,
            evidence=judged.evidence,
            p_value=judged.p_value,
            p_upper=judged.p_upper,
            limit=self._config.alarm.p_limit,
            contributions=judged.contributions,
            without=judged.without,
            agreements=judged.agreements,
            modalities=self.modalities,
            absent=absent,
            versions=ensemble.versions,
            skew_ms=moment.skew_ns / 1e6,
            drift=self._monitor.gauges if self._monitor else {},
            state=state,
            state_logits=recognised,
            state_contributions=said,
        )

    def _with_evidence(
        self, alarm: Alarm, moment: Moment, encoded: Mapping[str, Encoded], ensemble: Ensemble | None
    ) -> Alarm:
        """With small pictures of what a raised alarm is about, and of what it is most like of normal running."""
        if not self._config.device.evidence or alarm.state != "raised":
            return alarm
        near = ensemble.like(encoded, self._in_state or "") if ensemble is not None else {}
        inputs = {name: one.prepared for name, one in near.items()}
        windows = moment.windows
        pictures = {name: thumbnail(window, inputs.get(name)) for name, window in windows.items()}
        like = {name: NormalMoment(one.start_ns, example(one.prepared, windows[name])) for name, one in near.items()}
        return msgspec.structs.replace(alarm, pictures=pictures, like=like)


def _problems(moment: Moment, sensor: str) -> tuple[str, ...]:
    """What keeps a sensor out of the fusion of one moment: nothing, its flags, or its absence."""
    window: Window | None = moment.windows.get(sensor)
    return tuple(sorted(window.flags)) if window is not None else ("absent",)


def _lopsided(summary: Summary) -> str:
    """What is wrong when one sensor says nearly everything though others are there; empty when none does."""
    if not summary.collapse:
        return ""
    sensor = max(summary.sensors, key=lambda name: summary.sensors[name].share)
    share = summary.sensors[sensor].share
    return f"{sensor} gives {share:.0%} of all evidence of late: look whether the other sensors still see the process"

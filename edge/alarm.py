"""When a row of scores becomes an alarm, and when the alarm is over. Pure: state in, state and changes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone

import msgspec

from edge.config import AlarmSettings, DeviceConfig
from edge.monitor import AGREEMENT, CONTRIBUTION, EMBEDDING, Drift
from lineside.clock import NS
from lineside.messages import Alarm, AlarmKind, Score
from lineside.quality import FLAGS
from lineside.sequential import shiryaev_roberts

DAY_NS = 86_400 * NS
BEGUN = 10.0  # the e-detector passes it by chance every dozen windows: where it last did is a guess of the onset


@dataclass(frozen=True)
class Lasting:
    """Weak evidence gathered over moments that share no sample: `value` is the e-detector of lineside.sequential.

    `share` is each sensor's mean contribution since `onset_ns`, when evidence began to gather (a guess, often early).
    """

    value: float = 0.0
    heard_ns: int = 0
    onset_ns: int = 0
    count: int = 0
    share: Mapping[str, float] = field(default_factory=dict)

    def hear(self, score: Score, run_length: float) -> Lasting:
        """Take the next score, unless it overlaps the last one taken."""
        if self.heard_ns - (score.end_ns - score.start_ns) < score.start_ns < self.heard_ns:
            return self
        last = Lasting(self.value, onset_ns=score.start_ns) if self.value <= BEGUN else self
        names = {*last.share, *score.contributions}
        sums = {n: last.count * last.share.get(n, 0.0) + score.contributions.get(n, 0.0) for n in names}
        share = {n: value / (last.count + 1) for n, value in sums.items()}
        value = shiryaev_roberts(self.value, score.p_value, run_length)
        return Lasting(value, score.end_ns, last.onset_ns, last.count + 1, share)


@dataclass(frozen=True)
class AnomalyAlarm:
    """Hysteresis over the p-values of one station's moments: strange ones that crowd."""

    settings: AlarmSettings
    recent: tuple[tuple[int, bool], ...] = ()
    calm: int = 0
    active: Alarm | None = None

    def hear(self, score: Score) -> tuple[AnomalyAlarm, Alarm | None]:
        """Take the next score; give the new state and the alarm that was raised or cleared by it, if any."""
        s, strange = self.settings, score.p_value <= self.settings.p_limit
        now = replace(self, recent=(*self.recent, (score.start_ns, strange))[-s.of :], calm=_calm(self.calm, score, s))
        if now.active is not None:
            if now.calm < s.clear_count:
                return now, None
            return AnomalyAlarm(s), _cleared(now.active, score.end_ns, f"{score.station}: normal again")
        if sum(was for _, was in now.recent) < s.raise_count:
            return now, None
        onset = next(start for start, was in now.recent if was)
        limits = {"p_limit": s.p_limit, "raise_count": s.raise_count, "of": s.of}
        alarm = _unlike("anomaly", score, onset, score.contributions, limits)
        return replace(now, calm=0, active=alarm), alarm


@dataclass(frozen=True)
class LastingAlarm:
    """Weak evidence that lasts: no moment need be strange by itself, so that it is told as drift of the whole station.

    It clears by itself, unlike drift of one channel (DriftAlarm): the station is what it was once evidence has faded.
    """

    settings: AlarmSettings
    lasting: Lasting = Lasting()
    calm: int = 0
    active: Alarm | None = None

    def hear(self, score: Score, told: bool) -> tuple[LastingAlarm, Alarm | None]:
        """As AnomalyAlarm.hear; nothing gathers while another alarm has `told` of what there is."""
        s = self.settings
        run_length = s.days_each * DAY_NS / (score.end_ns - score.start_ns)
        if told and self.active is None:
            return LastingAlarm(s), None
        now = replace(self, lasting=self.lasting.hear(score, run_length), calm=_calm(self.calm, score, s))
        if now.active is not None:
            if now.calm < s.clear_count or now.lasting.value > run_length**0.5:
                return now, None
            return LastingAlarm(s), _cleared(now.active, score.end_ns, f"{score.station}: normal again")
        if now.lasting.value < run_length:
            return now, None
        limits = {"false_alarm_days": s.false_alarm_days}
        alarm = _unlike("drift", score, now.lasting.onset_ns, now.lasting.share, limits)
        return replace(now, calm=0, active=alarm), alarm

    def commissioned(self, time_ns: int) -> tuple[LastingAlarm, list[Alarm]]:
        """Normal running was learned anew."""
        told = [_cleared(self.active, time_ns, f"{self.active.subject}: commissioned again")] if self.active else []
        return LastingAlarm(self.settings), told


def _calm(count: int, score: Score, settings: AlarmSettings) -> int:
    """Moments in a row that were ordinary, this one among them."""
    return count + 1 if score.p_value > settings.p_clear else 0


@dataclass(frozen=True)
class SensorAlarm:
    """Counts bad and good windows of one sensor in a row; a missing window is a bad one."""

    settings: AlarmSettings
    station: str
    device: str
    sensor: str
    modality: str
    bad: int = 0
    good: int = 0
    onset_ns: int = 0
    active: Alarm | None = None

    def hear(
        self, end_ns: int, problems: tuple[str, ...], versions: Mapping[str, str]
    ) -> tuple[SensorAlarm, Alarm | None]:
        """Take what is wrong with the sensor's next window (nothing: it is good); as AnomalyAlarm.hear."""
        if not problems:
            good = self.good + 1
            if self.active is None or good < self.settings.sensor_count:
                return replace(self, bad=0, good=good), None
            cleared = _cleared(self.active, end_ns, f"{self.sensor}: good again, back in the fusion")
            return replace(self, bad=0, good=0, active=None), cleared
        bad, onset = self.bad + 1, self.onset_ns if self.bad else end_ns
        if self.active is not None or bad < self.settings.sensor_count:
            return replace(self, bad=bad, good=0, onset_ns=onset), None
        alarm = self._raised(end_ns, onset, problems, versions)
        return replace(self, bad=bad, good=0, onset_ns=onset, active=alarm), alarm

    def _raised(self, end_ns: int, onset_ns: int, problems: tuple[str, ...], versions: Mapping[str, str]) -> Alarm:
        told = "; ".join(FLAGS.get(problem, problem) for problem in problems)
        return Alarm(
            device=self.device,
            station=self.station,
            key=f"{self.device}/{self.station}/sensor/{self.sensor}/{onset_ns}",
            kind="sensor",
            state="raised",
            subject=self.sensor,
            top_sensor=self.sensor,
            top_modality=self.modality,
            onset_ns=onset_ns,
            time_ns=end_ns,
            p_value=1.0,
            evidence=0.0,
            contributions={},
            versions=dict(versions),
            limits={"sensor_count": float(self.settings.sensor_count)},
            text=f"{self.sensor} ({self.modality}): {told}",
        )


@dataclass(frozen=True)
class DriftAlarm:
    """Drift of one kind in one subject stays raised until normal running is learned anew; no second one meanwhile."""

    settings: AlarmSettings
    active: Mapping[str, Alarm] = field(default_factory=dict)

    def hear(self, drift: Drift, score: Score) -> tuple[DriftAlarm, Alarm | None]:
        """Take what the monitor found; as AnomalyAlarm.hear."""
        key = f"{drift.kind}/{drift.subject}"
        if key in self.active:
            return self, None
        alarm = _drifted(drift, score, self.settings.false_alarm_days)
        return replace(self, active={**self.active, key: alarm}), alarm

    def commissioned(self, time_ns: int) -> tuple[DriftAlarm, list[Alarm]]:
        """Normal running was learned anew: what had drifted is normal now."""
        told = [_cleared(alarm, time_ns, f"{alarm.subject}: commissioned again") for alarm in self.active.values()]
        return DriftAlarm(self.settings), told


DRIFTED = {
    CONTRIBUTION: "says {more} than it used to",
    AGREEMENT: "belong together {more} than they used to",
    EMBEDDING: "no longer looks to its encoder as it used to",
}


def _drifted(drift: Drift, score: Score, false_alarm_days: float) -> Alarm:
    sensor, effect = drift.subject.partition("+")[0], drift.finding.effect
    since = datetime.fromtimestamp(drift.finding.onset_ns / NS, timezone.utc)
    told = DRIFTED[drift.kind].format(more="more" if effect > 0 else "less" if effect < 0 else "less steadily")
    size = f" by {abs(effect):.1f} standard deviations" if effect else ""
    return Alarm(
        device=score.device,
        station=score.station,
        key=f"{score.device}/{score.station}/drift/{drift.kind}/{drift.subject}/{drift.finding.onset_ns}",
        kind="drift",
        state="raised",
        subject=drift.subject,
        top_sensor=sensor,
        top_modality=score.modalities[sensor],
        onset_ns=drift.finding.onset_ns,
        time_ns=score.end_ns,
        p_value=score.p_value,
        evidence=score.evidence,
        contributions=dict(score.contributions),
        versions=score.versions,
        limits={"false_alarm_days": false_alarm_days},
        effect=effect,
        trace=[round(value, 3) for value in drift.finding.trace],
        text=f"{drift.subject} {told}{size}, since about {since:%Y-%m-%d %H:%M:%S} UTC; compare it with normal "
        f"running, mend it, or commission again if the line is well",
    )


def _cleared(alarm: Alarm, time_ns: int, text: str) -> Alarm:
    """The message that clears a raised alarm."""
    return msgspec.structs.replace(alarm.plain(), state="cleared", time_ns=time_ns, text=text)


UNLIKE: dict[AlarmKind, tuple[str, str]] = {  # key, text
    "anomaly": ("anomaly", "unlike normal"),
    "drift": ("drift/evidence", "a little unlike normal, and stays so"),
}


def _unlike(
    kind: AlarmKind, score: Score, onset_ns: int, contributions: Mapping[str, float], limits: dict[str, float]
) -> Alarm:
    """The alarm of a whole station."""
    top, evidence = max(contributions, key=lambda name: contributions[name]), sum(contributions.values())
    share = contributions[top] / evidence if evidence else 0.0
    modality = score.modalities[top]
    key, told = UNLIKE[kind]
    return Alarm(
        device=score.device,
        station=score.station,
        key=f"{score.device}/{score.station}/{key}/{onset_ns}",
        kind=kind,
        state="raised",
        subject=score.station,
        top_sensor=top,
        top_modality=modality,
        onset_ns=onset_ns,
        time_ns=score.end_ns,
        p_value=score.p_value,
        evidence=evidence,
        contributions=dict(contributions),
        versions=score.versions,
        limits=limits,
        text=f"{score.station} is {told}: {share:.0%} of the evidence comes from {top} ({modality})"
        f"{_bound(score)}; look at the picture and listen, then tell real or not real",
    )


def _bound(score: Score) -> str:
    """How sure a p-value beyond the calibration is."""
    return "" if score.p_upper is None else f", p = {score.p_value:.1g} (at most {score.p_upper:.1g}, 95 %)"


@dataclass
class Alarms:
    """All alarms of one station: the states above, carried from moment to moment."""

    anomaly: AnomalyAlarm
    lasting: LastingAlarm
    drift: DriftAlarm
    sensors: dict[str, SensorAlarm]

    @classmethod
    def begin(cls, config: DeviceConfig) -> Alarms:
        """No alarm active."""
        device, settings = config.device, config.alarm
        sensors = {
            sensor.name: SensorAlarm(settings, device.station, device.id, sensor.name, sensor.modality)
            for sensor in config.sensors
        }
        return cls(AnomalyAlarm(settings), LastingAlarm(settings), DriftAlarm(settings), sensors)

    def hear_score(self, score: Score) -> list[Alarm]:
        """Changes that the next score brings."""
        self.anomaly, crowded = self.anomaly.hear(score)
        told = self.anomaly.active is not None or bool(self.drift.active)
        self.lasting, lasts = self.lasting.hear(score, told)
        return [alarm for alarm in (crowded, lasts) if alarm]

    def hear_drift(self, drift: Drift, score: Score) -> list[Alarm]:
        """Changes that a finding of the monitor brings."""
        self.drift, alarm = self.drift.hear(drift, score)
        return [alarm] if alarm else []

    def commissioned(self, time_ns: int) -> list[Alarm]:
        """Changes that another normal running brings."""
        self.drift, cleared = self.drift.commissioned(time_ns)
        self.lasting, faded = self.lasting.commissioned(time_ns)
        return cleared + faded

    def hear_sensors(
        self, end_ns: int, problems: Mapping[str, tuple[str, ...]], versions: Mapping[str, str]
    ) -> list[Alarm]:
        """Changes that the next window of every sensor brings; `problems` is empty for a good one."""
        changes = []
        for name, told in problems.items():
            self.sensors[name], alarm = self.sensors[name].hear(end_ns, told, versions)
            changes += [alarm] if alarm else []
        return changes

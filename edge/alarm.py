"""When a row of scores becomes an alarm, and when the alarm is over. Pure: state in, state and changes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import msgspec

from edge.config import AlarmSettings, DeviceConfig
from lineside.messages import Alarm, Score
from lineside.quality import FLAGS


@dataclass(frozen=True)
class AnomalyAlarm:
    """Hysteresis over the p-values of one station's moments."""

    settings: AlarmSettings
    recent: tuple[tuple[int, bool], ...] = ()
    calm: int = 0
    active: Alarm | None = None

    def hear(self, score: Score) -> tuple[AnomalyAlarm, Alarm | None]:
        """Take the next score; give the new state and the alarm that was raised or cleared by it, if any."""
        s = self.settings
        strange = score.p_value <= s.p_limit
        recent = (*self.recent, (score.start_ns, strange))[-s.of :]
        if self.active is None:
            if sum(was for _, was in recent) < s.raise_count:
                return replace(self, recent=recent), None
            onset = next(start for start, was in recent if was)
            alarm = _anomaly(score, onset, s)
            return replace(self, recent=recent, calm=0, active=alarm), alarm
        calm = self.calm + 1 if score.p_value > s.p_clear else 0
        if calm < s.clear_count:
            return replace(self, recent=recent, calm=calm), None
        cleared = _cleared(self.active, score.end_ns, f"{score.station}: normal again")
        return replace(self, recent=(), calm=0, active=None), cleared


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


def _cleared(alarm: Alarm, time_ns: int, text: str) -> Alarm:
    """The message that clears a raised alarm."""
    return msgspec.structs.replace(alarm, state="cleared", time_ns=time_ns, text=text, pictures={})


def _anomaly(score: Score, onset_ns: int, settings: AlarmSettings) -> Alarm:
    top = max(score.contributions, key=lambda name: score.contributions[name])
    share = score.contributions[top] / score.evidence if score.evidence else 0.0
    modality = score.modalities[top]
    return Alarm(
        device=score.device,
        station=score.station,
        key=f"{score.device}/{score.station}/anomaly/{onset_ns}",
        kind="anomaly",
        state="raised",
        subject=score.station,
        top_sensor=top,
        top_modality=modality,
        onset_ns=onset_ns,
        time_ns=score.end_ns,
        p_value=score.p_value,
        evidence=score.evidence,
        contributions=score.contributions,
        versions=score.versions,
        limits={"p_limit": settings.p_limit, "raise_count": settings.raise_count, "of": settings.of},
        text=f"{score.station} is unlike normal: {share:.0%} of the evidence comes from {top} ({modality}); "
        f"look at the picture and listen, then tell real or not real",
    )


@dataclass
class Alarms:
    """All alarms of one station: the states above, carried from moment to moment."""

    anomaly: AnomalyAlarm
    sensors: dict[str, SensorAlarm]

    @classmethod
    def begin(cls, config: DeviceConfig) -> Alarms:
        """No alarm active."""
        device, settings = config.device, config.alarm
        sensors = {
            sensor.name: SensorAlarm(settings, device.station, device.id, sensor.name, sensor.modality)
            for sensor in config.sensors
        }
        return cls(AnomalyAlarm(settings), sensors)

    def hear_score(self, score: Score) -> list[Alarm]:
        """Changes that the next score brings."""
        self.anomaly, alarm = self.anomaly.hear(score)
        return [alarm] if alarm else []

    def hear_sensors(
        self, end_ns: int, problems: Mapping[str, tuple[str, ...]], versions: Mapping[str, str]
    ) -> list[Alarm]:
        """Changes that the next window of every sensor brings; `problems` is empty for a good one."""
        changes = []
        for name, told in problems.items():
            self.sensors[name], alarm = self.sensors[name].hear(end_ns, told, versions)
            changes += [alarm] if alarm else []
        return changes

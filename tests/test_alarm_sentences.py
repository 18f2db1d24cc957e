"""Every text of an alarm, as the device's and the hub's own code make it, is told in Japanese as a whole."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest

from edge import triage
from edge.alarm import DRIFTED, UNLIKE, AnomalyAlarm, DriftAlarm, LastingAlarm, SensorAlarm
from edge.config import AlarmSettings, DeviceConfig, DeviceSettings, SensorSettings
from edge.monitor import Drift
from edge.pipeline import Pipeline
from edge.triage import STRANGE, CameraScene, MicrophoneScene, Seen, Verdict
from hub import absence
from hub.accounts import NEEDS, ROLES, Role, Who
from hub.dashboard.language import Language
from lineside.clock import NS
from lineside.drift import Finding
from lineside.errors import AccessError
from lineside.messages import Alarm, AlarmCause, Score
from lineside.quality import FLAGS
from lineside.windows import Window

JA = Language("ja")
NAMES = {"press-1", "edge-1", "cam0", "mic0", "mic1"}
SAME = {"p", "Hz", "UTC", "systemctl status lineside-uplink", "rate_hz", "channels", "sensors"}  # in both languages
SETTINGS = AlarmSettings(raise_count=1, of=1, clear_count=1, sensor_count=1, false_alarm_days=0.5e-3)
SENSORS = [
    SensorSettings(name=name, modality=kind, source="simulation")
    for name, kind in (("cam0", "camera"), ("mic0", "microphone"))
]
CONFIG = DeviceConfig(
    device=DeviceSettings(id="edge-1", site="line1", station="press-1"), sensors=SENSORS, alarm=SETTINGS
)
MODALITIES = {"cam0": "camera", "mic0": "microphone"}
HIGH, LOW, RATE = STRANGE + 3, STRANGE - 1.5, 16_000
TIME_S = np.arange(RATE) / RATE


def english(text: str) -> list[str]:
    """What is left of English in it."""
    for word in sorted({*NAMES, *SAME}, key=len, reverse=True):
        text = re.sub(rf"(?<![\w-]){re.escape(word)}(?![A-Za-z0-9_-])", "", text, flags=re.ASCII)
    return re.findall(r"[A-Za-z]{2,}(?: [A-Za-z]+)*", re.sub(r"\d(?:\.\d+)?e[-+]\d+", "", text))


def score(at_s: int, p: float, upper: float | None = None) -> Score:
    return Score(
        device="edge-1",
        station="press-1",
        start_ns=at_s * NS,
        end_ns=(at_s + 1) * NS,
        evidence=10.0,
        p_value=p,
        p_upper=upper,
        limit=0.01,
        contributions={"cam0": 8.0, "mic0": 2.0},
        without={},
        agreements={},
        modalities=MODALITIES,
        absent={},
        versions={"camera": "1"},
        skew_ms=0.0,
    )


def stations() -> Iterator[Alarm | None]:
    """A whole station's, raised and over."""
    for upper in (None, 0.005, 1e-5):
        state, raised = AnomalyAlarm(SETTINGS).hear(score(0, 1e-6, upper))
        yield raised
        yield state.hear(score(1, 0.9))[1]
        lasting, changes = LastingAlarm(SETTINGS), []
        for at_s, p in enumerate([0.05] * 30 + [0.9] * 60):
            before = lasting
            lasting, change = lasting.hear(score(at_s, p, upper), told=False)
            if before.active and not changes[1:]:
                yield before.commissioned(NS)[1][0]
            changes += [change] if change else []
        assert [one.state for one in changes][:2] == ["raised", "cleared"]
        yield from changes


def sensors() -> Iterator[Alarm | None]:
    """Each thing that may be wrong with a sensor, also two at once, and when it is over."""
    for flags in [*((one,) for one in FLAGS), ("gap", "black"), ("absent", "unfit", "gap")]:
        state, raised = SensorAlarm(SETTINGS, "press-1", "edge-1", "mic0", "microphone").hear(NS, flags, {})
        yield raised
        yield state.hear(2 * NS, (), {})[1]


def drifts() -> Iterator[Alarm | None]:
    for kind in DRIFTED:
        for subject in ("cam0", "cam0+mic0"):
            for effect in (2.5, -2.5, 0.0):
                found = Drift(kind, subject, Finding("c", 7 * NS, effect))
                state, raised = DriftAlarm(SETTINGS).hear(found, score(0, 0.5, None))
                yield raised
                yield from state.commissioned(NS)[1]


def away() -> Iterator[Alarm | None]:
    """The hub's own."""
    hub: Any = SimpleNamespace(latest_health=lambda devices: {})
    watching: Any = absence.Absence(hub, dict, 30.0, SimpleNamespace())  # type: ignore[arg-type]
    raised = watching._raised("edge-1", 1, NS, 60 * NS)
    yield raised
    yield absence._cleared(raised, 70 * NS)


@pytest.mark.parametrize("told", [stations, sensors, drifts, away])
def test_an_alarm_is_told_in_japanese_as_a_whole(told: Callable[[], Iterator[Alarm | None]]) -> None:
    alarms = [alarm for alarm in told() if alarm is not None]
    assert {alarm.state for alarm in alarms} == {"raised", "cleared"}
    for alarm in alarms:
        assert english(JA.sentence(alarm.text)) == [], alarm.text
        assert re.search("[ぁ-ん]", JA.sentence(alarm.text)), alarm.text
    if told is stations:
        assert {alarm.kind for alarm in alarms} == set(UNLIKE)
        assert {", p = " in alarm.text for alarm in alarms if alarm.state == "raised"} == {True, False}


@dataclass
class Changed:
    """A background that is as it says."""

    what: str

    def altered(self, windows: object) -> str:
        return self.what


def backgrounds() -> list[str]:
    """What scenes say of a background."""
    shape = (1, 8, 8)
    camera = CameraScene(np.zeros(shape, np.float32), np.ones(shape, np.float32), np.ones(shape, np.bool_))
    flickering = np.stack([np.full(shape, value) for value in (-5, 5, -5, 5)])
    microphone = MicrophoneScene(np.zeros(4), np.ones(4))
    told = [
        camera.altered(np.full((4, *shape), 100)),
        camera.altered(flickering),
        microphone.altered(np.full((3, 1, 4, 5), -10.0)),
    ]
    assert all(told)
    return told


def moments(pair: float = LOW, sound: Any = None, **single: float) -> list[Seen]:
    window = Window("mic0", "microphone", 0, NS, float(RATE), sound.astype(np.int16), 0) if sound is not None else None
    windows = {name: np.zeros((1, 2, 2)) for name in single}
    return [
        Seen(single, {"cam0+mic0": pair} if "mic0" in single else {}, windows, {"mic0": window} if window else {})
    ] * 6


def verdicts() -> list[Verdict]:
    """One of every branch of edge.triage.decide."""
    well = {name: Changed("") for name in ("cam0", "mic0", "mic1")}
    noise = np.random.default_rng(1).normal(0, 10, RATE)
    clicks = noise + 2000 * np.exp(-(TIME_S % 0.05) / 0.003)
    hum = noise + sum(1000 * np.cos(2 * np.pi * hz * TIME_S) for hz in (50, 150, 250))
    found = [
        triage.decide(moments(cam0=HIGH, mic0=HIGH), well),
        triage.decide(moments(cam0=HIGH, mic0=HIGH, mic1=HIGH), well),
        triage.decide(moments(cam0=HIGH, mic0=LOW), well),
        triage.decide(moments(cam0=LOW, mic0=LOW), well, suspect="cam0"),
        triage.decide(moments(cam0=LOW, mic0=LOW), well),
        triage.decide(moments(cam0=LOW, mic0=HIGH, sound=clicks), well),
        triage.decide(moments(cam0=LOW, mic0=HIGH, sound=hum), well, lambda window: LOW),
        triage.decide(moments(cam0=HIGH), {}),
        triage.decide(moments(cam0=HIGH, mic0=LOW, pair=HIGH), {}),
        triage.decide(moments(cam0=HIGH, mic0=LOW), {}),
    ]
    for what in backgrounds():
        scenes = {**well, "cam0": Changed(what)}
        found += [
            triage.decide(moments(cam0=HIGH, mic0=LOW), scenes),
            triage.decide(moments(cam0=HIGH, mic0=HIGH, mic1=HIGH), scenes),
            triage.decide(moments(cam0=LOW, mic0=LOW), scenes, suspect="cam0"),
        ]
    return found


def test_every_cause_is_told_in_japanese(monkeypatch: pytest.MonkeyPatch) -> None:
    alarms = [alarm for told in (stations, drifts) for alarm in told() if alarm and alarm.state == "raised"]
    ensemble: Any = SimpleNamespace(scenes={})
    causes, whys = set(), set()
    for verdict in verdicts():
        monkeypatch.setattr(triage, "decide", lambda *_, found=verdict: found)
        for alarm in alarms:
            text = Pipeline(CONFIG)._with_cause(alarm, ensemble).text
            assert "(cause: " in text
            assert english(JA.sentence(text)) == [], text
        assert english(JA.sentence(verdict.why)) == []  # the page of an alarm has it alone
        causes.add(verdict.cause)
        whys.add(re.sub(r"\d+|cam0|mic[01]", "", verdict.why))
    assert causes == set(get_args(AlarmCause)) - {""}
    assert len(whys) > 12


@pytest.mark.parametrize("action", NEEDS)
@pytest.mark.parametrize("role", ROLES)
def test_a_refusal_is_told_in_japanese(action: str, role: Role) -> None:
    who = Who("mic0", role)
    if who.may(action):
        return
    with pytest.raises(AccessError) as refused:
        who.must(action)
    told = JA("Not allowed: {reason}", reason=refused.value)
    assert english(told) == []
    assert JA.sentence(role) in told
    assert Language("en")("Not allowed: {reason}", reason=refused.value) == f"Not allowed: {refused.value}"


def test_a_session_that_has_ended_is_told_in_japanese() -> None:
    assert english(JA.sentence(str(AccessError("mic0", "the session has ended", "log in again")))) == []


def test_the_leftover_of_a_sentence_is_found() -> None:
    assert english("press-1：通常と異なります, p = 1e-06 (at most 0.005); look at it") == ["at most", "look at it"]

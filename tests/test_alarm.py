"""From rows of scores and flags to alarms: edge.alarm."""

import msgspec
import numpy as np
import pytest

from edge.alarm import Alarms, AnomalyAlarm, DriftAlarm, LastingAlarm, SensorAlarm
from edge.config import AlarmSettings, DeviceConfig, DeviceSettings, SensorSettings
from edge.monitor import Drift
from lineside.clock import NS
from lineside.drift import Finding
from lineside.messages import Score
from lineside.sequential import e_value, shiryaev_roberts

SETTINGS = AlarmSettings(p_limit=0.01, raise_count=3, of=4, p_clear=0.05, clear_count=2, sensor_count=2)


def score(i, p):
    return Score(
        device="d",
        station="press",
        start_ns=i,
        end_ns=i + 1,
        evidence=10.0,
        p_value=p,
        limit=0.01,
        contributions={"cam0": 2.0, "mic0": 8.0},
        without={},
        agreements={},
        modalities={"cam0": "camera", "mic0": "microphone"},
        absent={},
        versions={"camera": "1"},
        skew_ms=0.0,
    )


def run(ps):
    state, changes = AnomalyAlarm(SETTINGS), []
    for i, p in enumerate(ps):
        state, change = state.hear(score(i, p))
        if change:
            changes.append((i, change))
    return changes


def test_it_rises_after_enough_strange_moments_and_names_the_top_sensor():
    [(at, alarm)] = run([0.5, 0.005, 0.5, 0.005, 0.005])
    assert (at, alarm.state, alarm.top_sensor, alarm.top_modality) == (4, "raised", "mic0", "microphone")
    assert alarm.onset_ns == 1
    assert "80%" in alarm.text
    assert alarm.limits == {"p_limit": 0.01, "raise_count": 3, "of": 4}


def test_single_strange_moments_raise_nothing():
    assert run([0.005, 0.5, 0.5, 0.5] * 20) == []


def test_it_is_cleared_once_by_calm_and_keeps_its_key():
    changes = run([0.001] * 10 + [0.03] * 5 + [0.5, 0.03, 0.5, 0.5, 0.5])
    assert [(i, c.state) for i, c in changes] == [(2, "raised"), (18, "cleared")]
    assert changes[0][1].key == changes[1][1].key


def test_a_new_event_has_a_new_key():
    changes = run([0.001] * 4 + [0.5] * 4 + [0.001] * 4)
    assert [c.state for _, c in changes] == ["raised", "cleared", "raised"]
    assert changes[0][1].key != changes[2][1].key


WEAK = AlarmSettings(
    p_limit=0.01, clear_count=2, false_alarm_days=0.5e-3
)  # half of 86.4 s: a run length of 86.4 windows


def weak_run(ps, hop_ns=NS):
    state, changes = LastingAlarm(WEAK), []
    for i, p in enumerate(ps):
        heard = msgspec.structs.replace(score(i, p), start_ns=i * hop_ns, end_ns=i * hop_ns + NS)
        state, change = state.hear(heard, told=False)
        if change:
            changes.append((i, change))
    return changes


def test_weak_evidence_that_lasts_is_an_alarm_too_and_ends():
    (at, raised), (back, cleared) = weak_run([0.5, 0.9] * 10 + [0.1] * 15 + [0.6] * 20)
    assert 20 < at < 35 < back
    assert (raised.kind, raised.subject) == ("drift", "press")  # no moment was strange by itself
    assert (raised.state, raised.top_sensor, raised.limits) == ("raised", "mic0", {"false_alarm_days": 0.5e-3})
    assert 18 * NS <= raised.onset_ns <= 21 * NS
    assert (cleared.state, cleared.key) == ("cleared", raised.key)
    assert weak_run([0.2, 0.8] * 40) == []


def test_windows_that_overlap_count_once():
    [(whole, _)] = weak_run([0.1] * 20)
    [(halved, _)] = weak_run([0.1] * 40, hop_ns=NS // 2)
    assert halved == 2 * whole


def test_a_clock_set_back_leaves_no_alarm_for_ever():
    state = LastingAlarm(WEAK)
    changes = []
    for start_s, p in [*((1000 + i, 0.1) for i in range(20)), *((i, 0.6) for i in range(40))]:
        heard = msgspec.structs.replace(score(0, p), start_ns=start_s * NS, end_ns=(start_s + 1) * NS)
        state, change = state.hear(heard, told=False)
        changes += [change.state] if change else []
    assert changes == ["raised", "cleared"]


def test_a_sensor_that_misses_a_moment_keeps_its_share_of_the_blame():
    state = LastingAlarm(WEAK)
    for i in range(20):
        there = {"cam0": 0.1} if i == 5 else {"cam0": 0.1, "mic0": 3.0}
        heard = msgspec.structs.replace(score(0, 0.1), start_ns=i * NS, end_ns=(i + 1) * NS, contributions=there)
        state, alarm = state.hear(heard, told=False)
        if alarm:
            break
    assert alarm.top_sensor == "mic0"
    assert alarm.contributions["mic0"] == pytest.approx(3.0 * 3 / 4)  # since evidence began to gather


def station(ps, *, drifted=False, settings=WEAK):
    """Changes of all alarms of a station with these p-values, a window a second; drift may have been found before."""
    device = DeviceSettings(id="d", site="line1", station="press")
    sensors = [SensorSettings(name="cam0", modality="camera", source="simulation")]
    alarms = Alarms.begin(DeviceConfig(device=device, sensors=sensors, alarm=settings))
    changes = [(-1, change) for change in alarms.hear_drift(drift(), score(0, 0.5))] if drifted else []
    for i, p in enumerate(ps):
        heard = msgspec.structs.replace(score(i, p), start_ns=i * NS, end_ns=(i + 1) * NS)
        changes += [(i, change) for change in alarms.hear_score(heard)]
    return alarms, changes


def test_moments_that_crowd_are_an_anomaly_and_not_drift_as_well():
    _, changes = station([0.5] * 5 + [0.001] * 30 + [0.5] * 10, settings=AlarmSettings())
    assert [(change.kind, change.state) for _, change in changes] == [("anomaly", "raised"), ("anomaly", "cleared")]


def test_what_was_weak_and_becomes_strong_is_an_anomaly_too():
    _, changes = station([0.1] * 30 + [0.001] * 8)
    assert [(change.kind, change.state) for _, change in changes] == [("drift", "raised"), ("anomaly", "raised")]


def test_drift_that_was_found_tells_of_weak_evidence_already():
    _, changes = station([0.1] * 60, drifted=True)
    assert [change.subject for _, change in changes] == ["cam0"]


def test_commissioning_clears_what_is_slow():
    alarms, changes = station([0.1] * 30)
    [(_, raised)] = changes
    assert [(alarm.key, alarm.state) for alarm in alarms.commissioned(99 * NS)] == [(raised.key, "cleared")]
    assert alarms.commissioned(100 * NS) == []


def test_false_alarms_of_weak_evidence_are_as_far_apart_as_asked():
    """The run length of the e-detector on uniform p-values, from 300 runs: on average at least the bound."""
    rng, lengths = np.random.default_rng(1), []
    for _ in range(300):
        value, count = 0.0, 0
        while value < 200:
            value, count = shiryaev_roberts(value, rng.uniform(), 200), count + 1
        lengths.append(count)
    assert np.mean(lengths) >= 200
    assert np.mean([e_value(p) for p in np.linspace(0.0005, 0.9995, 1000)]) == pytest.approx(1, abs=0.01)


def sensor_run(rows):
    state, changes = SensorAlarm(SETTINGS, "press", "d", "mic0", "microphone"), []
    for i, problems in enumerate(rows):
        state, change = state.hear(i, problems, {})
        if change:
            changes.append((i, change))
    return changes


def test_a_muted_microphone_is_named_with_its_mend_and_comes_back():
    rows = [(), ("silent",), (), ("silent",), ("silent",), ("silent",), (), (), ()]
    (at, raised), (back, cleared) = sensor_run(rows)
    assert (at, raised.kind, raised.subject, raised.state) == (4, "sensor", "mic0", "raised")
    assert "muted or unplugged" in raised.text
    assert (back, cleared.state, cleared.key) == (7, "cleared", raised.key)
    assert raised.onset_ns == 3


def drift(kind="embedding", subject="cam0", effect=1.2):
    return Drift(kind, subject, Finding("c", 7 * NS, effect))


def test_drift_stays_raised_until_normal_is_learned_anew():
    state = DriftAlarm(AlarmSettings())
    state, raised = state.hear(drift(), score(0, 0.5))
    assert (raised.kind, raised.state, raised.subject, raised.top_sensor) == ("drift", "raised", "cam0", "cam0")
    assert (raised.onset_ns, raised.limits) == (7 * NS, {"false_alarm_days": 30.0})
    assert "by 1.2 standard deviations, since about 1970-01-01 00:00:07 UTC" in raised.text
    state, again = state.hear(drift(effect=3.0), score(1, 0.5))
    assert again is None
    state, other = state.hear(drift("agreement", "cam0+mic0", -1.0), score(2, 0.5))
    assert other.subject == "cam0+mic0"
    assert "belong together less than they used to" in other.text
    state, cleared = state.commissioned(9 * NS)
    assert [(alarm.key, alarm.state) for alarm in cleared] == [(raised.key, "cleared"), (other.key, "cleared")]
    assert state.hear(drift(), score(3, 0.5))[1] is not None


@pytest.mark.parametrize(("effect", "told"), [(2.0, "says more"), (-2.0, "says less"), (0.0, "says less steadily")])
def test_drift_of_a_contribution_says_which_way(effect, told):
    _, alarm = DriftAlarm(AlarmSettings()).hear(drift("contribution", "mic0", effect), score(0, 0.5))
    assert told in alarm.text

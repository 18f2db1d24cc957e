"""The device's pipeline on a recorded line: edge.pipeline, edge.replay, edge.commissioning."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from msgspec import structs

from edge.commissioning import Commissioning
from edge.config import AlarmSettings, DeviceConfig, DeviceSettings, SensorSettings
from edge.encoder import Encoder
from edge.ensemble import Ensemble
from edge.faults import Injector
from edge.pipeline import Pipeline
from edge.replay import commission, recorded, simulated, through
from lineside.clock import NS
from lineside.errors import ConfigError, LinesideError, RecordingError, ReleaseError
from lineside.messages import Alarm, Embeddings, Score
from lineside.recording import About, Label, Recorder, Recording

START_NS = 1_700_000_000 * NS
DATA = Path(__file__).parent / "data"
SENSORS = [
    SensorSettings(name=n, modality=m, source="simulation") for n, m in [("cam0", "camera"), ("mic0", "microphone")]
]
CONFIG = DeviceConfig(device=DeviceSettings(id="edge-1", site="line1", station="press", evidence=True), sensors=SENSORS)


@pytest.fixture(scope="module")
def encoders():
    return {m: Encoder.load(DATA / f"{m}-1.onnx") for m in ("camera", "microphone")}


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("line") / "normal.mcap"
    with Recorder(path, About(station="press", sensors={"cam0": "camera", "mic0": "microphone"})) as recorder:
        for samples in simulated(CONFIG, Path(), START_NS, 100.0):
            recorder.write(samples)
    return Recording(path)


@pytest.fixture(scope="module")
def learned(encoders, recording):
    return commission(CONFIG, Ensemble(encoders), recording)


@pytest.fixture(scope="module")
def ensemble(encoders, learned):
    return learned.ensemble(encoders, CONFIG)


def watch(ensemble, seconds=30.0, fault="", from_s=10.0, to_s=20.0):
    """Scores and alarm changes of a fresh piece of the simulated line with one fault in it."""
    pipeline, injector = Pipeline(CONFIG), Injector()
    pipeline.ensemble = ensemble
    begin = START_NS + 1000 * NS
    out, started = [], False
    for samples in simulated(CONFIG, Path(), begin, seconds):
        if fault and not started and samples.start_ns >= begin + from_s * NS:
            injector.start(fault, begin + round(to_s * NS))
            started = True
        out += pipeline.push(injector.apply(samples))
    out += pipeline.flush()
    return [m for m in out if isinstance(m, Score)], [m for m in out if isinstance(m, Alarm)], out


def test_every_moment_is_embedded_and_scored_once(ensemble):
    scores, alarms, out = watch(ensemble, 20.0)
    starts = [score.start_ns for score in scores]
    assert len(starts) >= 36
    assert set(np.diff(starts)) == {NS // 2}
    sent = [m for m in out if isinstance(m, Embeddings)]
    assert [m.start_ns for m in sent] == starts
    assert all(len(m.embeddings) == 2 for m in sent)
    assert alarms == []
    assert all(sum(s.contributions.values()) == pytest.approx(s.evidence) for s in scores)


def test_the_same_samples_lead_to_the_same_messages(ensemble):
    assert watch(ensemble, 8.0)[2] == watch(ensemble, 8.0)[2]


@pytest.mark.slow
def test_a_fault_raises_an_alarm_that_names_the_modality_and_ends(ensemble):
    _, alarms, _ = watch(ensemble, 40.0, "bearing_noise")
    assert [alarm.state for alarm in alarms] == ["raised", "cleared"]
    assert {alarm.top_modality for alarm in alarms} == {"microphone"}
    assert START_NS + 1009 * NS <= alarms[0].onset_ns <= START_NS + 1020 * NS
    assert all(picture.startswith(b"\xff\xd8") for picture in alarms[0].pictures.values())
    assert len(alarms[0].pictures) == 2


@pytest.mark.slow
def test_an_alarm_shows_the_normal_moments_that_it_is_most_like(ensemble, learned):
    raised, cleared = watch(ensemble, 40.0, "bearing_noise")[1]
    assert list(raised.like) == ["cam0", "mic0"]
    assert {one.start_ns for one in raised.like.values()} <= {*learned.start_ns}
    drawn = {name: decoded(one.picture) for name, one in raised.like.items()}
    assert all(drawn[name].shape == decoded(picture).shape for name, picture in raised.pictures.items())
    seen = decoded(raised.pictures["cam0"]).astype(float)
    assert np.abs(drawn["cam0"] - seen).mean() < 12  # the line as it is: nothing is wrong with what it sees
    assert np.abs(drawn["mic0"] - decoded(raised.pictures["mic0"]).astype(float)).mean() > 20
    assert (cleared.like, cleared.pictures, raised.plain().like) == ({}, {}, {})


def decoded(jpeg):
    return cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["dirty_lens", "misaligned_part"])
def test_evidence_against_the_camera_grows_with_a_fault_of_the_picture(ensemble, fault):
    """Encoders without training are too coarse for an alarm here: ./run demo --once shows it with trained ones."""

    def camera(scores):
        return np.mean(
            [s.contributions["cam0"] for s in scores if START_NS + 1011 * NS <= s.start_ns < START_NS + 1019 * NS]
        )

    assert camera(watch(ensemble, 22.0, fault)[0]) > 2 * camera(watch(ensemble, 22.0)[0])


@pytest.mark.slow
def test_a_muted_microphone_raises_a_sensor_alarm_and_the_camera_scores_on(ensemble):
    scores, alarms, _ = watch(ensemble, 40.0, "muted")
    assert [(a.kind, a.subject, a.state) for a in alarms] == [
        ("sensor", "mic0", "raised"),
        ("sensor", "mic0", "cleared"),
    ]
    alone = [score for score in scores if list(score.contributions) == ["cam0"]]
    assert len(alone) >= 15
    assert {score.absent["mic0"] for score in alone} == {"silent"}
    assert list(scores[-1].contributions) == ["cam0", "mic0"]


def test_a_sensor_whose_rate_is_not_the_encoders_leaves_by_name_and_the_rest_scores(ensemble):
    pipeline = Pipeline(CONFIG)
    pipeline.ensemble = ensemble
    out = []
    for samples in simulated(CONFIG, Path(), START_NS, 10.0):
        slow = replace(samples, rate_hz=8000.0, data=samples.data[::2]) if samples.sensor == "mic0" else samples
        out += pipeline.push(slow)
    scores = [m for m in out if isinstance(m, Score)]
    assert len(scores) >= 15
    assert {s.absent["mic0"] for s in scores} == {"unfit"}
    [alarm] = [m for m in out if isinstance(m, Alarm)]
    assert (alarm.kind, alarm.subject) == ("sensor", "mic0")
    assert "mend rate_hz or channels" in alarm.text


def test_all_sensors_away_is_noticed_by_time_alone(ensemble):
    pipeline = Pipeline(CONFIG)
    pipeline.ensemble = ensemble
    changes = [m for t in range(0, 12) for m in pipeline.tick(START_NS + t * NS)]
    assert {m.subject for m in changes if m.state == "raised"} == {"cam0", "mic0"}


@pytest.mark.slow
def test_commissioning_leaves_out_what_is_labelled_as_a_fault(encoders, recording, tmp_path):
    fault = Label(START_NS + 20 * NS, START_NS + 60 * NS, "jam", fault=True)
    with Recorder(tmp_path / "labelled.mcap", recording.about) as recorder:
        recorder.label(fault)
        for samples in recording.samples():
            recorder.write(samples)
    labelled = commission(CONFIG, Ensemble(encoders), Recording(tmp_path / "labelled.mcap"))
    whole = commission(CONFIG, Ensemble(encoders), recording)
    assert 76 <= len(whole.moments) - len(labelled.moments) <= 84  # 40 s at a hop of half a second


def test_commissioning_survives_a_restart(learned, tmp_path, encoders):
    learned.save(tmp_path / "c.npz")
    again = Commissioning.load(tmp_path / "c.npz")
    assert again.modalities == learned.modalities
    assert all(
        np.array_equal(a[s], b[s])
        for a, b in zip(learned.moments, again.moments, strict=True)
        for s in a.keys() | b.keys()
    )
    (tmp_path / "c.npz").write_bytes((tmp_path / "c.npz").read_bytes()[:1000])
    with pytest.raises(RecordingError, match="commission again"):
        Commissioning.load(tmp_path / "c.npz")


def test_commissioning_that_is_too_short_is_refused(learned, encoders):
    with pytest.raises(LinesideError, match="at least 40 are needed"):
        replace(learned, moments=learned.moments[:10], start_ns=learned.start_ns[:10]).ensemble(encoders, CONFIG)


def test_a_recording_of_other_sensors_is_refused(tmp_path):
    path = tmp_path / "other.mcap"
    with Recorder(path, About(sensors={"vib7": "series"})):
        pass
    with pytest.raises(ConfigError, match="has the sensors vib7, the device wants cam0, mic0"):
        list(recorded(CONFIG, Recording(path)))


@pytest.mark.slow
def test_a_recorded_shift_gives_the_scores_it_gave_before(ensemble, recording, request):
    """The main regression test: `--accept` writes the new reference."""
    pipeline = Pipeline(CONFIG)
    pipeline.ensemble = ensemble
    scores = [m for m in through(pipeline, recorded(CONFIG, recording)) if isinstance(m, Score)][20:60]
    got = [{"start_ns": s.start_ns, "evidence": s.evidence, "p_value": s.p_value} for s in scores]
    reference = DATA / "shift.json"
    if request.config.getoption("--accept"):
        reference.write_text(json.dumps(got, indent=0))
    wanted = json.loads(reference.read_text())
    assert [row["start_ns"] for row in got] == [row["start_ns"] for row in wanted]
    for name in ("evidence", "p_value"):
        assert [row[name] for row in got] == pytest.approx([row[name] for row in wanted], rel=0.02, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "left_out"), [("", 0), ("bearing_noise", 10)])
def test_what_an_anomaly_alarm_tells_of_is_neither_learned_nor_watched_as_drift(ensemble, fault, left_out):
    pipeline, injector, begin, heard = Pipeline(CONFIG), Injector(), START_NS + 1000 * NS, []
    pipeline.ensemble = ensemble
    for samples in simulated(CONFIG, Path(), begin, 25.0):
        if fault and samples.start_ns >= begin + 5 * NS:
            injector.start(fault, begin + 60 * NS)
        heard += pipeline.push(injector.apply(samples))
    scores = [message for message in heard if isinstance(message, Score)]
    learned_from = int(pipeline.monitor.state()["heard"])
    assert any(isinstance(message, Alarm) for message in heard) == bool(fault)
    assert (len(scores) - learned_from >= left_out) if fault else (learned_from == len(scores))


class Sick(Encoder):
    """An encoder that is of no use any more from some window on: it gives NaN, or fails."""

    def encode(self, batch):
        if self.card.space == "failing":
            raise ReleaseError("runtime", self.card.name, "cannot run (out of memory)", "export it again")
        made = super().encode(batch)
        return made._replace(features=np.full_like(made.features, np.nan))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["nan", "failing"])
def test_a_sensor_whose_encoder_makes_no_sense_leaves_by_name_and_the_rest_scores(ensemble, how):
    well = ensemble.encoders["camera"]
    card = structs.replace(well.card, space=how)
    sick = replace(ensemble, encoders={**ensemble.encoders, "camera": Sick(card, well.spec, "cpu", well._session)})
    pipeline = Pipeline(CONFIG)
    pipeline.ensemble = sick
    messages = [m for s in simulated(CONFIG, Path(), START_NS + 1000 * NS, 8.0) for m in pipeline.push(s)]
    scores = [m for m in messages if isinstance(m, Score)]
    assert len(scores) > 10
    assert {s.absent["cam0"] for s in scores} == {"senseless"}
    assert all(list(s.contributions) == ["mic0"] and np.isfinite(s.evidence) for s in scores)
    assert [(m.kind, m.subject) for m in messages if isinstance(m, Alarm)] == [("sensor", "cam0")]
    assert any("out of memory" in problem for problem in pipeline.problems) == (how == "failing")
    pipeline.ensemble = ensemble
    after = [m for s in simulated(CONFIG, Path(), START_NS + 1010 * NS, 8.0) for m in pipeline.push(s)]
    assert [m.state for m in after if isinstance(m, Alarm)] == ["cleared"]
    assert list(after[-1].contributions) == ["cam0", "mic0"]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["muted", "misaligned_part"])
def test_an_alarm_that_stands_raised_is_cleared_by_whoever_comes_after_a_restart(ensemble, fault):
    def alarms(pipeline, from_s, to_s, kind):
        injector, heard = Injector(), []
        if kind:
            injector.start(kind, START_NS + 9_000 * NS)
        for samples in simulated(CONFIG, Path(), START_NS + from_s * NS, to_s - from_s):
            heard += [m for m in pipeline.push(injector.apply(samples)) if isinstance(m, Alarm)]
        return heard

    first, second = Pipeline(CONFIG), Pipeline(CONFIG)
    first.ensemble = second.ensemble = ensemble
    [raised] = alarms(first, 1000, 1010, fault)
    assert raised.state == "raised"
    assert bool(first.out) == (fault == "muted")
    second.recall(first.remember())
    assert second.out == first.out
    [cleared] = alarms(second, 1012, 1024, "")
    assert (cleared.state, cleared.key) == ("cleared", raised.key)
    assert second.out == {}
    assert first.counters.flagged["mic0"]["silent"] == (19 if fault == "muted" else 0)  # a window each half second


@pytest.mark.slow
def test_slow_change_is_an_alarm_that_stands_over_a_restart_until_commissioned_again(encoders, learned):
    """Seven minutes of the line: what is ordinary is learned in five, then the lens is dirty."""
    alarm = AlarmSettings(p_limit=1e-11, p_clear=1e-10, false_alarm_days=0.02, learn_hours=1 / 12)
    config = DeviceConfig(device=CONFIG.device, sensors=SENSORS, alarm=alarm)
    pipeline, injector = Pipeline(config), Injector()
    pipeline.ensemble = ensemble = learned.ensemble(encoders, config)
    begin, raised = START_NS + 2_000 * NS, []
    for samples in simulated(config, Path(), begin, 600.0):
        if samples.start_ns >= begin + 400 * NS and not injector.running():
            injector.start("dirty_lens", begin + 9_000 * NS)
        raised += [(m, samples.start_ns) for m in pipeline.push(injector.apply(samples)) if isinstance(m, Alarm)]
        if any(m.kind == "drift" for m, _ in raised):
            break
    assert pipeline.monitor.told.endswith("channels are watched")
    [(drift, at)] = [(m, at) for m, at in raised if m.kind == "drift"]
    assert at >= begin + 400 * NS
    assert (drift.state, drift.top_sensor) == ("raised", "cam0")
    assert begin + 380 * NS < drift.onset_ns <= at
    assert drift.cause in ("sensor", "undecided")

    again = Pipeline(config)
    again.recall(pipeline.remember())
    again.ensemble = ensemble
    later = [s for s in simulated(config, Path(), begin + 700 * NS, 10.0)]
    heard = [m for s in later for m in again.push(injector.apply(s)) if isinstance(m, Alarm)]
    assert [m for m in heard if m.kind == "drift"] == []  # it stands already
    again.ensemble = replace(ensemble, commissioned_ns=ensemble.commissioned_ns + NS)
    later = [s for s in simulated(config, Path(), begin + 710 * NS, 3.0)]
    cleared = [m for s in later for m in again.push(s) if isinstance(m, Alarm) and m.kind == "drift"]
    assert [(m.state, m.key) for m in cleared] == [("cleared", drift.key)]
    with pytest.raises(ValueError, match="cannot be read"):
        again.recall(b"no such file")

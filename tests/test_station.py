"""What the station says of itself, and what is judged by it: edge.station, and states in commissioning."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.commissioning import Commissioning
from edge.config import DeviceConfig, DeviceSettings, SensorSettings
from edge.encoder import Encoder
from edge.ensemble import Ensemble
from edge.faults import Injector
from edge.pipeline import Pipeline
from edge.replay import commission, through
from edge.sensors.simulation import LineSamples
from edge.station import KEPT, Station
from lineside.clock import NS
from lineside.messages import Alarm, Score
from lineside.recording import About, Label, Recorder, Recording
from lineside.windows import Samples
from tests.line_device import DATA, START_NS

pytestmark = pytest.mark.slow

PRODUCT_S = 40


@given(st.lists(st.tuples(st.integers(0, 50), st.sampled_from(["a", "b", "c"])), max_size=30, unique_by=lambda t: t[0]))
def test_the_state_is_the_last_one_told_whatever_the_order_of_telling(told: list[tuple[int, str]]) -> None:
    station = Station(["a", "b", "c"])
    for since, state in told:
        station.hear(state, since)
    for at in range(0, 52, 3):
        before = [state for since, state in sorted(told) if since <= at]
        assert station.at(at, at + 1) == (before[-1] if before else "")


def test_a_moment_in_which_it_changes_has_no_state() -> None:
    station = Station(["a", "b"])
    station.hear("a", 0)
    station.hear("b", 100)
    station.hear("b", 150)  # told again: no change
    assert [station.at(*span) for span in ((0, 100), (50, 101), (100, 130), (140, 160))] == ["a", None, "b", "b"]


def test_memory_is_flat() -> None:
    station = Station(["a", "b"])
    for since in range(3 * KEPT):
        station.hear("ab"[since % 2], since)
    assert station.at(3 * KEPT, 3 * KEPT + 1) == "ab"[(3 * KEPT - 1) % 2]
    assert len(station._told) == KEPT


def test_a_station_without_states_is_asked_for_none() -> None:
    station = Station([])
    station.hear("a", 0)
    assert station.at(0, 10) == ""
    assert station.problem("", []) == ""


def test_labels_of_the_station_that_name_a_state_tell_it() -> None:
    station = Station(["a", "b"])
    station.hear_labels(
        [Label(0, 9, "a"), Label(10, 19, "noise"), Label(20, 29, "b"), Label(22, 25, "a", sensor="mic0")]
    )
    assert [station.at(at, at + 1) for at in (5, 15, 23)] == ["a", "a", "b"]


def settings(product: str) -> list[SensorSettings]:
    return [
        SensorSettings(name=name, modality=kind, source="simulation", product=product)
        for name, kind in (("cam0", "camera"), ("mic0", "microphone"))
    ]


CONFIG = DeviceConfig(
    device=DeviceSettings(id="edge-1", site="line1", station="press", states=("product a", "product b", "product c")),
    sensors=settings("a"),
)


def made(start_s: float, seconds: float, product: str) -> list[Samples]:
    """What the sensors give while the line makes `product`, from `start_s` after START_NS on."""
    from edge.replay import simulated

    config = DeviceConfig(device=CONFIG.device, sensors=settings(product))
    return list(simulated(config, Path(), START_NS + round(start_s * NS), seconds))


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """Product a, then b, with labels that say so."""
    path = tmp_path_factory.mktemp("states") / "normal.mcap"
    with Recorder(path, About(station="press", sensors={"cam0": "camera", "mic0": "microphone"})) as recorder:
        for turn, product in enumerate("ab"):
            start = START_NS + turn * PRODUCT_S * NS
            recorder.label(Label(start, start + PRODUCT_S * NS, f"product {product}"))
            for samples in made(turn * PRODUCT_S, PRODUCT_S, product):
                recorder.write(samples)
    return Recording(path)


@pytest.fixture(scope="module")
def learned(recording: Recording) -> Commissioning:
    return commission(
        CONFIG, Ensemble({m: Encoder.load(DATA / f"{m}-1.onnx") for m in ("camera", "microphone")}), recording
    )


@pytest.fixture(scope="module")
def ensemble(learned: Commissioning) -> Ensemble:
    encoders = {m: Encoder.load(DATA / f"{m}-1.onnx") for m in ("camera", "microphone")}
    return learned.ensemble(encoders, CONFIG)


def watched(ensemble: Ensemble, told: str, product: str) -> tuple[Pipeline, list[Score], list[Alarm]]:
    pipeline = Pipeline(CONFIG)
    pipeline.ensemble = ensemble
    if told:
        pipeline.station.hear(told, START_NS)
    messages = list(through(pipeline, made(1000, 20, product)))
    return (
        pipeline,
        [one for one in messages if isinstance(one, Score)],
        [one for one in messages if isinstance(one, Alarm)],
    )


def test_each_state_is_learned_by_itself_and_kept(learned: Commissioning, ensemble: Ensemble, tmp_path: Path) -> None:
    assert set(ensemble.states) == {"product a", "product b"}
    assert set(learned.states) == {"product a", "product b"}  # no moment of the change between them
    learned.save(tmp_path / "kept.npz")
    assert Commissioning.load(tmp_path / "kept.npz").states == learned.states


def test_what_is_nearest_lies_in_the_state_that_the_station_is_in(learned: Commissioning, ensemble: Ensemble) -> None:
    encoded = learned.encoded(ensemble.encoders)
    of_a = [i for i, state in enumerate(learned.states) if state == "product a"][7]
    seen = {sensor: both.at(of_a) for sensor, both in encoded.items()}
    for state, number in [("product a", of_a), ("product b", None)]:
        near = {sensor: learned.start_ns.index(one.start_ns) for sensor, one in ensemble.like(seen, state).items()}
        assert {learned.states[i] for i in near.values()} == {state}
        assert number is None or set(near.values()) == {number}
    assert ensemble.like(seen, "product c") == {}


def test_the_wrong_product_is_strange_though_it_is_normal_in_another_state(ensemble: Ensemble) -> None:
    _, right, calm = watched(ensemble, "product b", "b")
    _, wrong, cried = watched(ensemble, "product a", "b")
    _, pooled, _ = watched(ensemble, "", "b")
    assert {score.state for score in right} == {"product b"}
    assert not calm
    assert {alarm.kind for alarm in cried if alarm.state == "raised"} <= {"anomaly", "drift"}
    assert cried
    usual, strange, unknown = (np.median([s.p_value for s in scores]) for scores in (right, wrong, pooled))
    assert strange < 0.1 < usual
    assert unknown > 2 * strange  # without a state, all of normal running is normal


def test_a_state_never_learned_is_named_and_no_false_alarm(ensemble: Ensemble) -> None:
    pipeline, scores, alarms = watched(ensemble, "product c", "b")
    assert not scores
    assert not alarms
    assert pipeline.counters.embedded > 0
    assert any("'product c' was not seen at commissioning" in told for told in pipeline.problems)
    silent, scores, _ = watched(ensemble, "", "b")
    assert scores
    assert any("has not told its state" in told for told in silent.problems)


def test_samples_of_the_simulated_line_know_their_product() -> None:
    first = made(0, 1, "b")[0]
    assert isinstance(first, LineSamples)
    assert first.product == "b"


def test_scores_say_which_state_sensors_see_and_who_says_so(ensemble: Ensemble) -> None:
    _, scores, _ = watched(ensemble, "product b", "b")
    assert all(np.exp([*score.state_logits.values()]).sum() == pytest.approx(1.0) for score in scores)
    assert (
        np.mean([max(score.state_logits, key=score.state_logits.__getitem__) == "product b" for score in scores]) > 0.95
    )
    assert ensemble.recogniser is not None
    for score in scores:  # Shapley: together they are what is known beyond the prior
        likeliest = max(score.state_logits, key=score.state_logits.__getitem__)
        prior = ensemble.recogniser.log_prior[ensemble.recogniser.index(likeliest)]
        gained = max(score.state_logits[likeliest], np.log(1e-6)) - prior
        assert sum(score.state_contributions.values()) == pytest.approx(gained, abs=1e-6)


def test_contributions_of_late_are_known_by_state_and_after_a_restart(ensemble: Ensemble) -> None:
    pipeline, scores, _ = watched(ensemble, "product b", "b")
    for score in scores * 6:  # as if it had run on: nothing is told of less than the half-life of 200 windows
        pipeline.contributions.hear(score.contributions, score.state)
    said = pipeline.contributed
    assert sum(one.share for one in said.sensors.values()) == pytest.approx(1.0)
    assert 1.0 <= said.effective <= 2.0
    assert pipeline.contributions.summary("product a").sensors == {}
    again = Pipeline(CONFIG)
    again.recall(pipeline.remember())
    assert again.contributions.summary("product b") == said


KINDS = (("bearing_noise", 80), ("misaligned_part", 110), ("muted", 140))  # seconds after START_NS
FAULT_S = 20


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """Eighty seconds of product a, then faults with labels, and time to be well between them."""
    path = tmp_path_factory.mktemp("faults") / "faulty.mcap"
    injector = Injector()
    left = list(KINDS)
    with Recorder(path, About(station="press", sensors={"cam0": "camera", "mic0": "microphone"})) as recorder:
        for kind, at in KINDS:
            start = START_NS + at * NS
            recorder.label(Label(start, start + FAULT_S * NS, kind, sensor="mic0" * (kind == "muted"), fault=True))
        for samples in made(0, 170, "a"):
            while left and samples.start_ns >= START_NS + left[0][1] * NS:
                kind, at = left.pop(0)
                injector.start(kind, START_NS + (at + FAULT_S) * NS)
            recorder.write(injector.apply(samples))
    return Recording(path)


STATELESS = DeviceConfig(device=DeviceSettings(id="edge-1", site="line1", station="press"), sensors=settings("a"))


@pytest.fixture(scope="module")
def shown(faulty: Recording) -> Commissioning:
    encoders = {m: Encoder.load(DATA / f"{m}-1.onnx") for m in ("camera", "microphone")}
    return commission(STATELESS, Ensemble(encoders), faulty)


def seen(shown: Commissioning, kind: str) -> list[Score]:
    """Scores of another stretch of the line under a fault, from a second after it began on."""
    pipeline, injector = Pipeline(STATELESS), Injector()
    pipeline.ensemble = shown.ensemble(
        {m: Encoder.load(DATA / f"{m}-1.onnx") for m in ("camera", "microphone")}, STATELESS
    )
    if kind:
        injector.start(kind, START_NS + 2000 * NS)
    messages = through(pipeline, (injector.apply(samples) for samples in made(1000, 15, "a")))
    return [one for one in messages if isinstance(one, Score)][2:]


@pytest.mark.slow
def test_kinds_of_faults_that_labels_tell_of_are_recognised_and_no_part_of_normal_running(shown: Commissioning) -> None:
    assert shown.shown is not None
    assert set(shown.shown.states) == {"bearing_noise", "misaligned_part", "muted"}
    for kind, at in KINDS:
        span = range(START_NS + at * NS, START_NS + (at + FAULT_S) * NS)
        learned = [moment for moment, start in zip(shown.moments, shown.start_ns, strict=True) if start in span]
        # The label of the silent microphone names it alone: what the camera saw then was normal.
        assert all({*moment} == {"cam0"} for moment in learned) if kind == "muted" else not learned
    for kind, name in (("", "normal"), ("bearing_noise", "bearing_noise"), ("misaligned_part", "misaligned_part")):
        scores = seen(shown, kind)
        # A silent microphone is its health rule's to tell: it has no good window to be known by.
        assert {*scores[0].state_logits} == {"normal", "bearing_noise", "misaligned_part"}
        likeliest = [max(one.state_logits, key=one.state_logits.__getitem__) for one in scores]
        assert np.mean([one == name for one in likeliest]) > 0.8, (kind, likeliest)
        assert np.exp([*scores[0].state_logits.values()]).sum() == pytest.approx(1.0)
        assert {*scores[0].state_contributions} == {"cam0", "mic0"}


@pytest.mark.slow
def test_what_was_shown_is_kept_in_the_file_and_with_what_was_known(shown: Commissioning, tmp_path: Path) -> None:
    shown.save(tmp_path / "kept.npz")
    again = Commissioning.load(tmp_path / "kept.npz")
    assert again.shown is not None
    assert shown.shown is not None
    assert again.shown.states == shown.shown.states
    for one, other in zip(again.shown.moments, shown.shown.moments, strict=True):
        assert all((one[sensor] == other[sensor]).all() for sensor in other)
    assert len(again.moments) == len(shown.moments)
    live = replace(again, shown=None)
    assert live.after(shown).shown is shown.shown
    both = again.after(shown).shown
    assert both is not None
    assert len(both.moments) == 2 * len(shown.shown.moments)

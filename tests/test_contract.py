"""Faults rehearsed while normal running is learned, and what each subset of sensors sees of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge import contract
from edge.alarm import Alarms
from edge.commissioning import Commissioning
from edge.config import DeviceConfig, DeviceSettings, SensorSettings
from edge.crosscheck import cross_checked
from edge.delay import delay
from edge.encoder import Encoder
from edge.ensemble import Ensemble
from edge.faults import FAULTS, Fault
from edge.pipeline import Pipeline
from edge.rehearsal import MOST, Rehearsal, Trial
from edge.replay import commission, simulated, through
from lineside import features
from lineside.clock import NS
from lineside.errors import LinesideError, RecordingError
from lineside.messages import Score
from lineside.recording import Recording
from lineside.windows import Window
from tests.line_device import DATA, MODALITIES, SENSORS, START_NS, record

pytestmark = pytest.mark.slow

CONFIG = DeviceConfig(device=DeviceSettings(id="edge-1", site="line1", station="press"), sensors=SENSORS)
KINDS = ("bearing_noise", "misaligned_part", "slipping_belt", "muted", "frozen")
SPECS: dict[str, features.Prepare] = {"camera": features.CameraPrepare(), "microphone": features.MicrophonePrepare()}
SUBSETS = ["cam0+mic0", "cam0", "mic0"]


@pytest.fixture(scope="module")
def encoders() -> dict[str, Encoder]:
    return {modality: Encoder.load(DATA / f"{modality}-1.onnx") for modality in MODALITIES.values()}


@pytest.fixture(scope="module")
def learned(encoders: dict[str, Encoder]) -> Commissioning:
    return rehearsed(CONFIG, encoders, KINDS, 80.0)


def rehearsed(
    config: DeviceConfig, encoders: dict[str, Encoder], kinds: tuple[str, ...], seconds: float
) -> Commissioning:
    """The simulated line through the pipeline of a device that is learning."""
    pipeline = Pipeline(config)
    pipeline.ensemble = Ensemble(encoders)
    pipeline.commissioning = learning = Commissioning.begin(pipeline.modalities, encoders)
    learning.rehearsal = Rehearsal(SPECS, kinds)
    for _ in through(pipeline, simulated(config, Path(), START_NS, seconds)):
        pass
    return learning.finished()


@pytest.fixture(scope="module")
def measured(learned: Commissioning, encoders: dict[str, Encoder]) -> contract.Contract:
    return contract.measure(learned.ensemble(encoders, CONFIG), learned, CONFIG)


@pytest.mark.slow
def test_every_kind_has_its_turn_on_good_moments_and_strikes_its_own_sensors(learned: Commissioning) -> None:
    counts = Counter(trial.kind for trial in learned.faulty)
    assert set(counts) == set(KINDS)
    assert learned.rehearsal is None  # it holds raw windows
    assert max(counts.values()) - min(counts.values()) <= 1
    assert sum(counts.values()) >= len(learned.moments) - 2
    healthy = dict(zip(learned.start_ns, learned.moments, strict=True))
    for trial in learned.faulty:
        assert {MODALITIES[sensor] for sensor in trial.struck} == set(FAULTS[trial.kind].effects)
        for sensor, window in trial.windows.items():
            assert window.shape == healthy[trial.start_ns][sensor].shape
            between_slips = trial.kind == "slipping_belt"  # it squeals a quarter of the time
            assert between_slips or not np.array_equal(window, healthy[trial.start_ns][sensor])


@pytest.mark.slow
def test_a_fault_that_one_sensor_alone_can_tell_has_no_number_for_the_other(measured: contract.Contract) -> None:
    assert list(measured.subsets) == SUBSETS
    assert measured.subsets["cam0"]["bearing_noise"] is None
    assert measured.subsets["mic0"]["misaligned_part"] is None
    for subset in ("cam0+mic0", "mic0"):
        heard = measured.subsets[subset]["bearing_noise"]
        assert heard is not None
        assert heard.moments >= 20
        assert heard.auroc is not None
        assert heard.auroc > 0.95
        assert heard.low is not None
        assert heard.high is not None
        assert heard.low <= heard.auroc <= heard.high
        assert heard.by == "anomaly"
        assert heard.windows is not None
        assert CONFIG.alarm.raise_count <= heard.windows <= 60
    both = measured.subsets["cam0+mic0"]["slipping_belt"], measured.subsets["cam0"]["slipping_belt"]
    assert all(sight is not None and sight.auroc is not None and sight.auroc > 0.5 for sight in both)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "sensor", "other"), [("muted", "mic0", "cam0"), ("frozen", "cam0", "mic0")])
def test_what_a_health_rule_finds_is_told_as_such(
    measured: contract.Contract, kind: str, sensor: str, other: str
) -> None:
    assert measured.subsets[other][kind] is None
    for subset in (sensor, "cam0+mic0"):
        sight = measured.subsets[subset][kind]
        assert sight is not None
        assert (sight.flagged, sight.auroc, sight.strange) == (1.0, None, None)
        assert (sight.windows, sight.by) == (CONFIG.alarm.sensor_count, "health")


@pytest.mark.slow
def test_a_fault_that_changes_nothing_is_not_seen(learned: Commissioning, encoders: dict[str, Encoder]) -> None:
    """Each moment is judged by a normal that knows neither it nor its twin: else the two would differ."""
    nothing = tuple(
        Trial("slipping_belt", start_ns, moment, {})
        for start_ns, moment in zip(learned.start_ns, learned.moments, strict=True)
    )
    same = replace(learned, faulty=nothing)
    found = contract.measure(same.ensemble(encoders, CONFIG), same, CONFIG)
    for subset in SUBSETS:
        sight = found.subsets[subset]["slipping_belt"]
        assert sight is not None
        assert sight.moments == len(learned.moments) == found.moments
        assert sight.auroc == pytest.approx(0.5, abs=1e-9)
        assert sight.strange is not None
        assert sight.strange <= 0.05
        assert sight.windows is None


@pytest.mark.slow
def test_no_moment_is_judged_by_a_normal_that_knows_it(learned: Commissioning, encoders: dict[str, Encoder]) -> None:
    """Else healthy moments would look more ordinary than any new one can: their p-values would crowd at 1."""
    checked = cross_checked(learned, learned.ensemble(encoders, CONFIG), CONFIG.commissioning.coreset)
    healthy = [one for one in checked if not one.trial.kind]
    assert len(healthy) == len(learned.moments)
    for members in (frozenset({"cam0"}), frozenset({"mic0"}), frozenset({"cam0", "mic0"})):
        p_values = np.array([one.judged[members][1] for one in healthy])
        assert np.quantile(p_values, [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.25)


@pytest.mark.slow
def test_what_befalls_one_of_two_microphones_is_no_fault_of_the_other(encoders: dict[str, Encoder]) -> None:
    sensors = [SensorSettings(name=n, modality="microphone", source="simulation") for n in ("mic0", "mic1")]
    config = msgspec.structs.replace(CONFIG, sensors=sensors)
    both = rehearsed(config, encoders, ("muted",), 40.0)
    found = contract.measure(both.ensemble(encoders, config), both, config)
    each = [found.subsets[name]["muted"] for name in ("mic0", "mic1", "mic0+mic1")]
    assert [sight.flagged for sight in each if sight] == [1.0, 1.0, 1.0]
    alone, other, together = (sight.moments for sight in each if sight)
    assert alone + other == together
    assert abs(alone - other) <= 1


@pytest.mark.slow
def test_it_is_told_with_all_sensors_and_without_each(measured: contract.Contract) -> None:
    told = contract.told(measured)
    head, *rows = told.splitlines()
    assert [word for word in ("all sensors", "without mic0", "without cam0") if word in head] != []
    assert [row.split()[0] for row in rows[: len(KINDS)]] == [kind for kind in FAULTS if kind in KINDS]
    assert "3!" in next(row for row in rows if row.startswith("muted"))
    lines = contract.summary(measured)
    assert "all sensors: mean AUROC " in lines[0]
    assert lines[1].startswith("without mic0: mean AUROC ")
    assert lines[1].endswith("; bearing_noise cannot be seen")
    assert lines[2].endswith("; misaligned_part cannot be seen")
    assert "of 2 process faults (all sensors: " in lines[1]


@pytest.mark.slow
def test_what_is_left_without_a_sensor_is_told(measured: contract.Contract) -> None:
    [line] = [line for line in contract.summary(measured) if line.startswith("without mic0: ")]
    assert contract.left(measured, ["mic0"]) == line.removeprefix("without mic0: ")
    assert "cannot be seen" in contract.left(measured, ["mic0"])
    assert contract.left(measured, ["cam0", "mic0"]) == ""


def test_it_is_a_file_and_back(measured: contract.Contract) -> None:
    data = contract.to_json(measured)
    assert contract.from_json(data) == measured
    assert msgspec.json.decode(data)["subsets"]["cam0"]["bearing_noise"] is None
    with pytest.raises(LinesideError, match="cannot be read"):
        contract.from_json(data[:-20])


@pytest.mark.slow
def test_faults_are_kept_with_commissioning_and_an_older_file_has_none(
    learned: Commissioning, encoders: dict[str, Encoder], tmp_path: Path
) -> None:
    learned.save(tmp_path / "c.npz")
    again = Commissioning.load(tmp_path / "c.npz")
    assert [(t.kind, t.start_ns, t.flags) for t in again.faulty] == [
        (t.kind, t.start_ns, t.flags) for t in learned.faulty
    ]
    for before, after in zip(learned.faulty, again.faulty, strict=True):
        assert before.windows.keys() == after.windows.keys()
        assert all(np.array_equal(before.windows[sensor], after.windows[sensor]) for sensor in before.windows)
    with np.load(tmp_path / "c.npz") as file:
        arrays = {name: file[name] for name in file.files}
    np.savez(tmp_path / "old.npz", **{name: value for name, value in arrays.items() if not name.startswith("fault:")})
    old = Commissioning.load(tmp_path / "old.npz")
    assert len(old.moments) == len(learned.moments)
    with pytest.raises(LinesideError, match="no fault was rehearsed"):
        contract.measure(old.ensemble(encoders, CONFIG), old, CONFIG)
    arrays["fault:bearing_noise:mic0:windows"] = arrays["fault:bearing_noise:mic0:windows"][:2]
    np.savez(tmp_path / "cut.npz", **arrays)
    with pytest.raises(RecordingError, match="fewer windows than trials"):
        Commissioning.load(tmp_path / "cut.npz")


@pytest.mark.slow
def test_a_recording_is_rehearsed_as_the_live_line_is(encoders: dict[str, Encoder], tmp_path: Path) -> None:
    recording = Recording(record(tmp_path / "short.mcap", CONFIG, 5.0))
    from_file, live = commission(CONFIG, Ensemble(encoders), recording), rehearsed(CONFIG, encoders, tuple(FAULTS), 5.0)
    assert len(live.faulty) == len(live.moments) - 1  # the first has nothing before it
    for one, other in zip(from_file.faulty, live.faulty, strict=True):
        assert (one.kind, one.start_ns, one.flags) == (other.kind, other.start_ns, other.flags)
        for sensor, window in other.windows.items():  # recorded pictures are compressed
            assert np.abs(one.windows[sensor].astype(float) - window.astype(float)).mean() < 2.0
            assert sensor == "cam0" or np.array_equal(one.windows[sensor], window)


@pytest.mark.slow
def test_normal_running_too_short_to_leave_a_part_out_is_named(
    learned: Commissioning, encoders: dict[str, Encoder]
) -> None:
    short = replace(learned, moments=learned.moments[:45], start_ns=learned.start_ns[:45], states=learned.states[:45])
    with pytest.raises(LinesideError, match="without a quarter of normal running no sensor has the 40 windows"):
        contract.measure(short.ensemble(encoders, CONFIG), short, CONFIG)


@pytest.mark.slow
def test_each_state_of_the_station_is_judged_by_its_own_normal(
    learned: Commissioning, encoders: dict[str, Encoder]
) -> None:
    device = msgspec.structs.replace(CONFIG.device, states=["a", "b"])
    config = msgspec.structs.replace(CONFIG, device=device)
    count = len(learned.moments)
    two = replace(learned, states=["a"] * (count // 2) + [""] * 3 + ["b"] * (count - count // 2 - 3))
    found = contract.measure(two.ensemble(encoders, config), two, config)
    assert found.moments == count - 3
    heard = found.subsets["mic0"]["bearing_noise"]
    assert heard is not None
    assert heard.auroc is not None
    assert heard.auroc > 0.9


# ---- the rehearsal alone


def window(sensor: str, number: int, modality: str = "microphone", shape: tuple[int, ...] = (16_000,)) -> Window:
    rng = np.random.default_rng(number)
    start_ns = START_NS + number * NS // 2
    if modality == "camera":
        pictures, middle_ns = rng.integers(0, 255, shape, np.uint8), start_ns + NS // 2
        return Window(sensor, modality, start_ns, start_ns + NS, float(len(pictures)), pictures, middle_ns)
    data = rng.integers(-900, 900, shape).astype(np.int16)
    return Window(sensor, modality, start_ns, start_ns + NS, 16_000.0, data, start_ns + NS // 2)


def test_what_is_kept_is_bounded_and_spread_over_the_whole_time() -> None:
    rehearsal = Rehearsal(SPECS, ("muted",))
    kept: tuple[Trial, ...] = ()
    for number in range(500):
        kept = rehearsal.hear(kept, {"mic0": window("mic0", number)})
    assert MOST // 2 <= len(kept) <= MOST
    times = np.array([trial.start_ns - START_NS for trial in kept]) / (NS // 2)
    assert times[0] <= 16
    assert times[-1] >= 480
    assert np.diff(times).max() <= 2 * np.diff(times).min()


def test_a_sensors_own_fault_is_of_one_sensor_at_a_time_and_a_process_is_seen_by_all() -> None:
    rehearsal = Rehearsal(SPECS, ("gain_loss", "bearing_noise"))
    kept: tuple[Trial, ...] = ()
    for number in range(12):
        kept = rehearsal.hear(kept, {name: window(name, number) for name in ("mic0", "mic1")})
    own = [trial.struck for trial in kept if trial.kind == "gain_loss"]
    assert {frozenset({"mic0"}), frozenset({"mic1"})} == set(own)
    assert {trial.struck for trial in kept if trial.kind == "bearing_noise"} == {frozenset({"mic0", "mic1"})}


def test_a_camera_that_gives_another_size_of_picture_is_not_struck_at_that_moment() -> None:
    rehearsal, before = Rehearsal(SPECS, ("black",)), window("cam0", 0, "camera", (9, 50, 70, 3))
    assert rehearsal.hear((), {"cam0": before}) == ()
    assert rehearsal.hear((), {"cam0": window("cam0", 1, "camera", (9, 60, 70, 3))}) == ()
    assert len(rehearsal.hear((), {"cam0": window("cam0", 2, "camera", (9, 60, 70, 3))})) == 1


def test_a_sensor_that_was_away_just_before_is_not_struck() -> None:
    rehearsal = Rehearsal(SPECS, ("gain_loss",))
    assert rehearsal.hear((), {"mic0": window("mic0", 0)}) == ()
    assert rehearsal.hear((), {"mic0": window("mic0", 9)}) == ()
    assert rehearsal.hear((), {}) == ()
    assert rehearsal.hear((), {"mic0": window("mic0", 10)}) == ()
    assert len(rehearsal.hear((), {"mic0": window("mic0", 11)})) == 1


@pytest.mark.parametrize("shape", [(30, 480, 640, 3), (9, 50, 70, 3)])
def test_what_no_fault_changes_stays_as_it_is_though_large_pictures_are_made_smaller(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    monkeypatch.setitem(FAULTS, "nothing", Fault("sensor", "", {"camera": lambda: lambda samples, since_ns: samples}))
    rehearsal, now = Rehearsal(SPECS, ("nothing",)), window("cam0", 1, "camera", shape)
    rehearsal.hear((), {"cam0": window("cam0", 0, "camera", shape)})
    [trial] = rehearsal.hear((), {"cam0": now})
    wanted = features.prepare(SPECS["camera"], now)
    assert np.abs(trial.windows["cam0"].astype(int) - wanted.astype(int)).max() <= 1


# ---- the delay


def through_the_alarm(p_values: list[float]) -> float:
    """Windows until edge.alarm raises one; infinite where it does not."""
    alarms = Alarms.begin(CONFIG)
    for number, p_value in enumerate(p_values):
        start_ns = START_NS + number * NS // 2
        changes = alarms.hear_score(
            Score(
                device="d",
                station="s",
                start_ns=start_ns,
                end_ns=start_ns + NS,
                evidence=1.0,
                p_value=p_value,
                limit=0.01,
                contributions={"mic0": 1.0},
                without={},
                agreements={},
                modalities={"mic0": "microphone"},
                absent={},
                versions={},
                skew_ms=0.0,
            )
        )
        if changes:
            return number + 1.0
    return np.inf


@pytest.mark.parametrize("p_values", [[1e-6], [0.02], [0.005, 0.005, 0.4], [0.03, 0.001, 0.2]])
def test_the_delay_is_that_of_the_devices_own_alarm(p_values: list[float]) -> None:
    rng = np.random.default_rng(3)
    real = np.median([through_the_alarm(rng.choice(p_values, 400).tolist()) for _ in range(41)])
    found = delay(np.array(p_values), np.zeros(len(p_values), np.bool_), CONFIG)
    assert found.by == "anomaly"
    assert found.windows == pytest.approx(real, rel=0.25, abs=0.5)


def test_what_is_as_usual_raises_no_alarm() -> None:
    assert delay(np.linspace(0.01, 1, 100), np.zeros(100, np.bool_), CONFIG) == (None, "")

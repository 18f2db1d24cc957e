"""Who is to blame: the sensor or the process, by evidence and by the sensor's background."""

from pathlib import Path

import numpy as np
import pytest

from edge import clicks, mains
from edge.config import AlarmSettings, DeviceConfig, DeviceSettings, SensorSettings
from edge.encoder import Encoder
from edge.ensemble import Ensemble
from edge.evaluation.line import COLUMNS, OTHER, Run, confusion, named, section
from edge.faults import FAULTS, Injector
from edge.pipeline import Pipeline
from edge.replay import commission, simulated
from edge.triage import STRANGE, CameraScene, MicrophoneScene, Seen, decide, scene
from lineside.clock import NS
from lineside.features import CameraPrepare, MicrophonePrepare, SeriesPrepare
from lineside.messages import Alarm
from lineside.recording import About, Recorder, Recording
from lineside.windows import Window

DATA = Path(__file__).parent / "data"
START_NS = 1_700_000_000 * NS
MODALITIES = {"cam0": "camera", "mic0": "microphone"}
HIGH, LOW = STRANGE + 3, STRANGE - 1.5


class Background:
    def __init__(self, share):
        self.share = share

    def altered(self, windows):
        return f"{self.share:.0%} of it" if self.share >= 0.5 else ""


def moments(cam=LOW, mic=LOW, pair=LOW, count=6):
    windows = {name: np.zeros((1, 2, 2)) for name in MODALITIES}
    single = {name: value for name, value in {"cam0": cam, "mic0": mic}.items() if value is not None}
    return [Seen(single, {"cam0+mic0": pair} if len(single) == 2 else {}, windows)] * count


@pytest.mark.parametrize(
    ("seen", "changed", "cause", "sensor", "why"),
    [
        (moments(HIGH), {"cam0": 0.9}, "sensor", "cam0", "its background: 90% of it"),
        (moments(HIGH, HIGH), {}, "process", "", "unlike normal: cam0 and mic0; the background of cam0 is as it was"),
        (moments(HIGH, HIGH), {"cam0": 0.9}, "undecided", "", "at once, cam0 in its background too"),
        (moments(HIGH), {"cam0": 0.9}, "sensor", "cam0", "so is its background"),
        (moments(HIGH, STRANGE), {"cam0": 0.9}, "sensor", "cam0", "far more unlike normal than the rest"),
        (moments(HIGH, STRANGE), {"mic0": 0.9}, "process", "", "the background of cam0 is as it was"),
        (moments(HIGH), {"cam0": 0.1}, "process", "", "the background of cam0 is as it was"),
        (moments(mic=HIGH), {"mic0": 0.9, "cam0": 0.9}, "sensor", "mic0", "so is its background"),
        (moments(mic=HIGH, pair=HIGH), None, "sensor", "mic0", "no longer agrees"),
        (moments(mic=HIGH), None, "process", "", "agrees with the others as it did"),
        (moments(cam=HIGH, mic=None), None, "undecided", "", "no other sensor"),
        (moments(pair=HIGH), {}, "undecided", "", "no sensor alone"),
    ],
)
def test_verdicts(seen, changed, cause, sensor, why):
    scenes = {} if changed is None else {name: Background(changed.get(name, 0.0)) for name in MODALITIES}
    verdict = decide(seen, scenes)
    assert (verdict.cause, verdict.sensor) == (cause, sensor)
    assert why in verdict.why


def test_one_strange_moment_among_calm_ones_blames_nobody():
    assert decide([*moments(HIGH, count=2), *moments(count=4)], {"cam0": Background(0.0)}).cause == "undecided"


@pytest.mark.parametrize(
    ("suspect", "changed", "cause", "sensor"),
    [
        ("cam0", {"cam0": 0.9}, "sensor", "cam0"),
        ("", {"mic0": 0.9}, "sensor", "mic0"),
        ("cam0", {"mic0": 0.9}, "undecided", ""),
        ("cam0", {"cam0": 0.9, "mic0": 0.9}, "undecided", ""),
        ("cam0", {}, "process", ""),
        ("vib0", {}, "undecided", ""),
        ("", {}, "undecided", ""),
    ],
)
def test_weak_evidence_that_lasts_is_judged_by_the_background_of_the_one_that_gave_most(
    suspect, changed, cause, sensor
):
    scenes = {name: Background(changed.get(name, 0.0)) for name in MODALITIES}
    verdict = decide(moments(), scenes, suspect=suspect)
    assert (verdict.cause, verdict.sensor) == (cause, sensor)
    assert ("90% of it" in verdict.why) == (cause == "sensor")


RATE = 16_000
TIME_S = np.arange(RATE) / RATE


def tones(hz, level=1000.0):
    return level * sum(np.cos(2 * np.pi * one * TIME_S + one) for one in hz)


def room(seed=0):
    return np.random.default_rng(seed).normal(0, 60, RATE) + tones([123.4], 300)


@pytest.mark.parametrize(
    ("hz", "grid_hz"),
    [
        ((50, 100, 150, 250), 50.0),
        ((49.92, 149.76), 50.0),
        ((60, 180, 300, 420), 60.0),
        ((100, 200, 300), 0.0),  # iron that hums
        ((413, 826, 1239), 0.0),  # teeth that mesh
        ((74, 148, 222), 0.0),  # a slow motor
        ((150,), 0.0),  # one line may be there by chance
    ],
)
def test_the_mains_in_a_cable_are_told_from_iron_gears_and_motors(hz, grid_hz):
    sound = (room() + tones(hz)).astype(np.int16)
    found = {grid: mains.lines(sound, RATE, grid) for grid in mains.GRIDS_HZ}
    assert [grid for grid, lines in found.items() if lines] == ([grid_hz] if grid_hz else [])
    if grid_hz:
        rest = mains.without(sound, RATE, found[grid_hz]).astype(float)
        assert np.abs(rest - room()).std() < 0.1 * tones(hz).std()


def heard(sound, evidence=HIGH):
    window = Window("mic0", "microphone", 0, NS, float(RATE), sound.astype(np.int16), 0)
    return [Seen({"cam0": LOW, "mic0": evidence}, {"cam0+mic0": LOW}, {}, {"mic0": window})] * 6


def test_hum_is_blamed_on_the_cable_only_if_the_sound_is_well_without_it():
    scenes = {name: Background(0.0) for name in MODALITIES}
    humming, whistling = room() + tones((50, 150, 250)), room() + tones((413, 826))

    def loudness(window):
        return HIGH if window.data.std() > 300 else LOW

    verdict = decide(heard(humming), scenes, loudness)
    assert (verdict.cause, verdict.sensor) == ("sensor", "mic0")
    assert "without 50 Hz" in verdict.why
    assert decide(heard(humming), scenes, lambda window: HIGH).cause == "process"  # it hums, as always, and is broken
    assert decide(heard(humming), scenes).cause == "process"
    assert decide(heard(whistling), scenes, lambda window: LOW).cause == "process"
    few = heard(humming)[:2] + heard(whistling)[:4]
    assert decide(few, scenes, lambda window: LOW).cause == "process"


def struck(noise, per_second, seed=3):
    """A noise, as a function of the seconds after a stroke, over the room's; no stroke is like another."""
    rng, sound = np.random.default_rng(seed), room(seed)
    for begin_s in np.sort(rng.uniform(0, 1, per_second)):
        after_s = np.maximum(TIME_S - begin_s, 0)
        sound += rng.uniform(0.5, 1) * rng.choice([-1, 1]) * 6000 * noise(after_s, rng) * (begin_s < TIME_S)
    return sound


def pop(after_s, rng):
    return np.exp(-after_s / 0.003)


def scratch(after_s, rng):
    return np.exp(-after_s / 0.003) * (0.5 + rng.uniform(-1, 1, RATE))


def ring(after_s, rng):
    return np.exp(-after_s / 0.003) * np.cos(2 * np.pi * 1_900 * after_s)


def rush(after_s, rng):
    return np.exp(-after_s / 0.003) * rng.uniform(-1, 1, RATE)


def thump(after_s, rng):
    return np.exp(-after_s / 0.02) * np.sin(2 * np.pi * 90 * after_s) + 0.3 * rush(after_s, rng)


@pytest.mark.parametrize(
    ("noise", "per_second", "contact"),
    [(pop, 15, True), (scratch, 15, True), (pop, 3, False), (ring, 15, False), (rush, 15, False), (thump, 8, False)],
)
def test_a_contact_s_clicks_have_one_side_and_no_machine_s(noise, per_second, contact):
    sounds = [struck(noise, per_second, seed).clip(-32_768, 32_767).astype(np.int16) for seed in range(8)]
    rates = [clicks.one_sided(sound, RATE) for sound in sounds]
    assert np.median(rates) == pytest.approx(per_second, rel=0.4) if contact else max(rates) == 0.0


@pytest.mark.parametrize("sound", [np.zeros(RATE), np.zeros(0), np.full(RATE, 32_767), np.ones(7), room()])
@pytest.mark.parametrize("rate_hz", [100.0, 16_000.0, 48_000.0])
def test_silence_and_scraps_of_sound_do_not_crackle(sound, rate_hz):
    with np.errstate(all="raise"):
        assert clicks.one_sided(sound.astype(np.int16), rate_hz) == 0.0


def test_a_crackling_contact_is_blamed_only_where_its_microphone_alone_is_unlike_normal():
    scenes = {name: Background(0.0) for name in MODALITIES}
    crackling, ringing = heard(struck(scratch, 15)), heard(struck(ring, 15))
    verdict = decide(crackling, scenes)
    assert (verdict.cause, verdict.sensor) == ("sensor", "mic0")
    assert "mic0 crackles: 1" in verdict.why
    assert decide(ringing, scenes).cause == "process"
    assert decide(crackling[:2] + ringing[:4], scenes).cause == "process"
    both = [Seen({"cam0": HIGH, "mic0": HIGH + 1}, one.pair, {}, one.sounds) for one in crackling]
    assert decide(both, scenes).cause == "process"


def test_a_picture_s_edge_tells_a_moved_camera_from_a_moved_part():
    rng = np.random.default_rng(0)
    still = rng.integers(40, 200, size=(3, 32, 32))
    shown = still + rng.normal(0, 2, size=(60, 3, 32, 32))
    shown[:, :, 12:20, 12:20] = rng.uniform(0, 255, size=(60, 3, 8, 8))  # the part
    known = CameraScene.fit(shown.clip(0, 255).astype(np.uint8))
    live = still + rng.normal(0, 2, size=(6, 3, 32, 32))
    other_part = live.copy()
    other_part[:, :, 8:24, 8:24] = 255
    assert known.altered(live) == known.altered(other_part) == ""
    assert "looks otherwise" in known.altered(np.roll(live, 3, axis=3))
    assert "looks otherwise" in known.altered(0.5 * live)


def test_a_picture_that_flickers_all_over_is_its_camera_s_and_what_flickers_somewhere_is_not():
    rng = np.random.default_rng(2)
    still = np.full((3, 32, 32), 120.0)
    known = CameraScene.fit(still + rng.normal(0, 2, size=(60, 3, 32, 32)))
    gain = 1 + 0.3 * np.sin(np.arange(6))[:, None, None, None]  # about what it was, in the median
    everywhere = gain * still + rng.normal(0, 2, size=(6, 3, 32, 32))
    somewhere = np.where(np.arange(32) < 8, everywhere, still)
    assert "flickers" in known.altered(everywhere)
    assert known.altered(somewhere) == ""


@pytest.mark.filterwarnings("error")
def test_a_picture_without_a_still_edge_is_never_blamed():
    moving = np.random.default_rng(3).uniform(0, 255, size=(60, 3, 32, 32))
    moving[:50] = 100  # still most of the time, and not all of it
    assert CameraScene.fit(moving).altered(np.zeros((6, 3, 32, 32))) == ""


def test_a_sound_s_floor_tells_a_covered_microphone_from_a_new_noise():
    rng = np.random.default_rng(1)

    def heard(count, machine=0.0):
        floor = rng.normal(-8, 0.3, size=(count, 1, 40, 50))
        floor[..., ::5] += 6 + machine  # a stroke now and then
        return floor

    known = MicrophoneScene.fit(heard(60))
    assert known.altered(heard(6)) == known.altered(heard(6, machine=5.0)) == ""
    assert known.altered(heard(6) + 3) == ""  # a new noise over all of it
    assert known.altered(heard(6) - 3).startswith("100% of the pitches")
    covered = heard(6)
    covered[:, :, 20:] -= 3
    assert known.altered(covered).startswith("50% of the pitches")


def test_which_sensors_have_a_background():
    pictures, sounds = np.zeros((4, 3, 16, 16), np.uint8), np.zeros((4, 1, 8, 9))
    assert isinstance(scene(CameraPrepare(), pictures), CameraScene)
    assert isinstance(scene(MicrophonePrepare(), sounds), MicrophoneScene)
    assert scene(SeriesPrepare(channels=1, samples=8), np.zeros((4, 1, 8))) is None


def config(seed):
    sensors = [SensorSettings(name=n, modality=m, source="simulation", seed=seed) for n, m in MODALITIES.items()]
    device = DeviceSettings(id="edge-1", site="line1", station="press")
    early = AlarmSettings(p_limit=0.1, p_clear=0.2, raise_count=3)  # untrained encoders see little
    return DeviceConfig(device=device, sensors=sensors, alarm=early)


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory):
    encoders = {m: Encoder.load(DATA / f"{m}-1.onnx") for m in ("camera", "microphone")}
    path = tmp_path_factory.mktemp("line") / "normal.mcap"
    with Recorder(path, About(station="press", sensors=MODALITIES)) as recorder:
        for samples in simulated(config(1), Path(), START_NS, 30.0):
            recorder.write(samples)
    return commission(config(1), Ensemble(encoders), Recording(path)).ensemble(encoders, config(1))


@pytest.mark.parametrize("kind", ["gain_loss", "knocked_camera", "muted", "wrong_product"])
def test_an_alarm_of_the_line_names_the_cause(ensemble, kind):
    pipeline, injector = Pipeline(config(2)), Injector()
    pipeline.ensemble = ensemble
    injector.start(kind, START_NS + 10**6 * NS)
    heard = [
        m for s in simulated(config(2), Path(), START_NS + 5_000 * NS, 10) for m in pipeline.push(injector.apply(s))
    ]
    alarms = [message for message in heard if isinstance(message, Alarm) and message.state == "raised"]
    assert alarms
    assert alarms[0].cause == named(alarms[0], kind) == FAULTS[kind].cause
    other = "gain_loss" if "camera" in FAULTS[kind].effects else "knocked_camera"  # a fault of the other sensor
    assert named(alarms[0], other) == (OTHER if FAULTS[kind].cause == "sensor" else "process")
    if alarms[0].kind == "anomaly":
        assert "(cause: " in alarms[0].text


@pytest.mark.slow
def test_the_matrix_of_the_line_is_the_same_for_any_number_of_workers(ensemble):
    one, two = (
        confusion(ensemble, (2, 3), kinds=("muted", "frozen"), run_s=3, normal_s=4, workers=workers)
        for workers in (1, 2)
    )
    assert one == two
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in one.tables[0].rows]
    assert [(row["fault"], row["sensor"], row["no alarm"]) for row in rows] == [("muted", 2, 0), ("frozen", 2, 0)]
    assert all(goal.reached for goal in one.goals)
    assert one.goals[1].measured == 3  # sensor_count windows, none of which holds samples from before the fault
    assert one.tables[3].rows[0][0] == round(2 * 4 / 3600, 2)


def test_what_raises_no_alarm_is_in_no_share_and_what_blames_another_sensor_is_wrong():
    runs = [
        Run("frozen", "sensor", "process", 3.0),
        Run("frozen", OTHER, "sensor", 5.0),
        Run("dead_rows", "sensor", "sensor", 9.0),
        Run("dead_rows"),
        Run("mains_hum", "process", "process", 4.0),
        Run("", alarms=2, seconds=3600.0),
    ]
    found = section(runs, 40)
    assert [(goal.measured, goal.reached) for goal in found.goals] == [(pytest.approx(2 / 3), False), (5.0, False)]
    matrix, shares, silent, well = found.tables
    assert [row[0] for row in matrix.rows] == ["frozen", "dead_rows", "mains_hum"]
    assert matrix.rows[1][3:] == (1, 0, 0, 0, 1, 1, None, None)
    assert shares.rows == [("held out", 2, 3, *[pytest.approx(2 / 3)] * 2), ("limits set on", 1, 1, 0.0, 0.0)]
    assert silent.rows == [("dead_rows", 1, 2)]
    assert well.rows == [(1.0, 2, pytest.approx(48.0))]

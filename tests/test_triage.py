"""Who is to blame: the sensor or the process, by evidence and by the sensor's background."""

from pathlib import Path

import numpy as np
import pytest

from edge.config import AlarmSettings, DeviceConfig, DeviceSettings, SensorSettings
from edge.encoder import Encoder
from edge.ensemble import Ensemble
from edge.faults import FAULTS, Injector
from edge.pipeline import Pipeline
from edge.replay import commission, simulated
from edge.triage import STRANGE, CameraScene, MicrophoneScene, Seen, decide, scene
from lineside.clock import NS
from lineside.features import CameraPrepare, MicrophonePrepare, SeriesPrepare
from lineside.messages import Alarm
from lineside.recording import About, Recorder, Recording

DATA = Path(__file__).parent / "data"
START_NS = 1_700_000_000 * NS
MODALITIES = {"cam0": "camera", "mic0": "microphone"}
HIGH, LOW = STRANGE + 3, STRANGE - 1.5


class Background:
    limit = 0.5

    def __init__(self, share):
        self.share = share

    def changed(self, windows):
        return self.share


def moments(cam=LOW, mic=LOW, pair=LOW, count=6):
    windows = {name: np.zeros((1, 2, 2)) for name in MODALITIES}
    single = {name: value for name, value in {"cam0": cam, "mic0": mic}.items() if value is not None}
    return [Seen(single, {"cam0+mic0": pair} if len(single) == 2 else {}, windows)] * count


@pytest.mark.parametrize(
    ("seen", "changed", "cause", "sensor", "why"),
    [
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
    assert decide([*moments(HIGH, count=2), *moments(count=4)], {"cam0": Background(1.0)}).cause == "undecided"


def test_a_picture_s_edge_tells_a_moved_camera_from_a_moved_part():
    rng = np.random.default_rng(0)
    still = rng.integers(40, 200, size=(3, 32, 32))
    shown = still + rng.normal(0, 2, size=(60, 3, 32, 32))
    shown[:, :, 12:20, 12:20] = rng.uniform(0, 255, size=(60, 3, 8, 8))  # the part
    known = CameraScene.fit(shown.clip(0, 255).astype(np.uint8))
    live = still + rng.normal(0, 2, size=(6, 3, 32, 32))
    other_part = live.copy()
    other_part[:, :, 8:24, 8:24] = 255
    assert known.changed(live) < known.limit
    assert known.changed(other_part) < known.limit
    assert known.changed(np.roll(live, 3, axis=3)) >= known.limit
    assert known.changed(0.5 * live) >= known.limit


def test_a_sound_s_floor_tells_a_covered_microphone_from_a_new_noise():
    rng = np.random.default_rng(1)

    def heard(count, machine=0.0):
        floor = rng.normal(-8, 0.3, size=(count, 1, 40, 50))
        floor[..., ::5] += 6 + machine  # a stroke now and then
        return floor

    known = MicrophoneScene.fit(heard(60))
    assert known.changed(heard(6)) < known.limit
    assert known.changed(heard(6, machine=5.0)) < known.limit
    assert known.changed(heard(6) + 3) < known.limit  # a new noise over all of it
    assert known.changed(heard(6) - 3) >= known.limit
    covered = heard(6)
    covered[:, :, 20:] -= 3
    assert known.changed(covered) >= known.limit


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
        for samples in simulated(config(1), Path(), START_NS, 60.0):
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
    assert alarms[0].cause == FAULTS[kind].cause
    if alarms[0].kind == "anomaly":
        assert "(cause: " in alarms[0].text

"""Plain encoders: formulas that the device takes for an encoder."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edge.evaluation import plain
from edge.foreign.base import EPOCH_NS
from edge.pipeline import Pipeline
from lineside import features
from lineside.clock import NS
from lineside.features import CameraPrepare, MicrophonePrepare, SeriesPrepare
from lineside.messages import Alarm, Score
from lineside.windows import Samples, Window

SPECS = (SeriesPrepare(channels=3, samples=200), CameraPrepare(frames=2, height=12, width=28), MicrophonePrepare())
VIBRATION = SPECS[0]


def shaken(seed: int, size: float = 1.0, seconds: int = 1) -> list[plain.Item]:
    rng = np.random.default_rng(seed)
    data = [rng.normal(0, size, (200, 3)).astype(np.float32) for _ in range(seconds)]
    return [("", [Samples("vib0", "series", EPOCH_NS, 200.0, one)]) for one in data]


@pytest.mark.parametrize("spec", SPECS, ids=features.kind)
def test_a_formula_is_an_encoder_of_one_unit_vector_a_window(spec):
    encoder = plain.encoder(spec)
    windows = np.stack([encoder.prepare(window) for window in features.golden_windows(spec, 3)])
    embedding, found, _ = encoder.encode(windows)
    assert embedding.shape == found.shape == (3, encoder.card.dim)
    assert embedding.dtype == np.float32
    assert np.allclose(np.linalg.norm(embedding, axis=1), 1.0, atol=1e-5)
    assert np.array_equal(embedding[1], encoder.encode(windows[1:2]).embedding[0])
    assert encoder.card.prepare_sha256 == features.fingerprint(spec)


@pytest.mark.parametrize("spec", SPECS, ids=features.kind)
def test_a_window_without_anything_in_it_gives_finite_numbers(spec):
    nothing = np.zeros((1, *features.shape(spec)), features.dtype(spec))
    assert np.isfinite(plain.encoder(spec).encode(nothing).features).all()


@settings(max_examples=50)
@given(arrays(np.float32, (2, 3, 200), elements=st.floats(-1e4, 1e4, width=32)))
def test_whatever_a_series_does_its_features_are_finite_and_of_unit_norm(windows):
    found = plain.encoder(VIBRATION).encode(windows).features
    assert np.allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)


def test_a_series_is_known_by_its_loudness_and_by_its_pitch_and_not_by_where_it_hangs():
    time = np.arange(200) / 200
    low, high = (np.sin(2 * np.pi * hz * time) for hz in (10, 60))
    windows = np.stack([np.tile(wave, (3, 1)) for wave in (low, 2 * low, high, low + 0.5)])
    one, louder, higher, hung = plain.encoder(VIBRATION).encode(windows).features
    assert np.linalg.norm(one - louder) > 0.01
    assert np.linalg.norm(one - higher) > 0.01
    assert np.linalg.norm(one - hung) < 1e-4


def test_a_picture_is_known_by_what_is_in_it_and_not_by_its_light():
    rng = np.random.default_rng(0)
    picture = rng.integers(20, 100, (1, 6, 12, 28), np.uint8)
    one, lit, other = (plain.camera(each)[0] for each in (picture, 2 * picture + 10, picture[..., ::-1]))
    assert np.allclose(one, lit, atol=1e-6)
    assert not np.allclose(one, other, atol=0.1)


def test_sound_is_known_by_when_it_comes():
    spec = MicrophonePrepare()
    rng = np.random.default_rng(0)
    early = rng.normal(0, 100, spec.samples)
    early[:4000] *= 10
    sounds = [
        Window("mic0", "microphone", 0, NS, 16_000.0, wave.astype(np.int16), 0) for wave in (early, early[::-1].copy())
    ]
    first, last = plain.encoder(spec).encode(np.stack([features.prepare(spec, sound) for sound in sounds])).features
    assert np.linalg.norm(first - last) > 0.01


def test_the_devices_own_pipeline_judges_by_a_formula_and_alarms_where_it_is_louder():
    config, encoder = plain.device("vib0", "series"), plain.encoder(VIBRATION)
    kept = plain.commission(config, encoder, shaken(1, seconds=200))
    pipeline = Pipeline(config)
    pipeline.ensemble = kept.ensemble({"series": encoder}, config)
    well = plain.live(pipeline, shaken(2, seconds=30), 200)
    ill = plain.live(pipeline, shaken(3, size=1.5, seconds=30), 230)
    assert len([m for m in well if isinstance(m, Score)]) >= 29
    assert not [m for m in well if isinstance(m, Alarm)]
    (alarm,) = [m for m in ill if isinstance(m, Alarm)]
    assert alarm.kind == "anomaly"
    assert alarm.onset_ns >= EPOCH_NS + 229 * NS


def test_items_are_judged_in_the_state_that_they_came_with():
    states = ("slow", "fast")
    config, encoder = plain.device("vib0", "series", states=states), plain.encoder(VIBRATION)
    items = [(states[k >= 60], one[1]) for k, one in enumerate(shaken(1, seconds=60) + shaken(2, 3.0, seconds=60))]
    kept = plain.commission(config, encoder, items)
    pipeline = Pipeline(config)
    pipeline.ensemble = kept.ensemble({"series": encoder}, config)
    loud = shaken(3, 3.0, seconds=20)
    right = [m for m in plain.live(pipeline, [("fast", one) for _, one in loud], 120) if isinstance(m, Score)]
    wrong = [m for m in plain.live(pipeline, [("slow", one) for _, one in loud], 140) if isinstance(m, Score)]
    assert {m.state for m in right} == {"fast"}
    assert np.median([m.p_value for m in right]) > 0.1
    assert {m.state for m in wrong} == {"slow"}
    assert np.median([m.p_value for m in wrong]) < 0.01

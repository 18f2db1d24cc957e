"""Preparation: promised shapes for whatever comes, right numbers against slow oracles, and a hash that tells."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lineside import features
from lineside.clock import NS
from lineside.errors import ReleaseError
from lineside.features import CameraPrepare, MicrophonePrepare, Prepare, SeriesPrepare
from lineside.windows import Window

SPECS: list[Prepare] = [CameraPrepare(), MicrophonePrepare(), SeriesPrepare(channels=3)]
specs = st.one_of(
    st.builds(CameraPrepare, frames=st.integers(1, 4), height=st.integers(8, 64), width=st.integers(8, 64)),
    st.builds(MicrophonePrepare, samples=st.sampled_from([8_000, 16_000]), mels=st.sampled_from([16, 64])),
    st.builds(SeriesPrepare, channels=st.integers(1, 9), samples=st.integers(1, 300)),
)


def window(modality: str, data: np.ndarray, rate_hz: float = 16_000.0) -> Window:
    return Window("s0", modality, 0, NS, rate_hz, data, 0)


def raw(spec: Prepare, count: int, seed: int) -> Window:
    """A wild window of `count` samples that suits `spec`."""
    rng = np.random.default_rng(seed)
    if isinstance(spec, CameraPrepare):
        return window("camera", rng.integers(0, 256, (min(count, 12), 30, 40, 3), np.uint8), 10.0)
    if isinstance(spec, MicrophonePrepare):
        return window("microphone", rng.integers(-32_768, 32_768, count, np.int16))
    return window("series", rng.normal(0, 1e3, (count, spec.channels)).astype(np.float32), 100.0)


@given(specs, st.integers(1, 20_000), st.integers(0, 99))
@settings(max_examples=60)
def test_every_window_of_the_right_kind_gives_the_promised_input(spec: Prepare, count: int, seed: int) -> None:
    given_window = raw(spec, count, seed)
    kept = given_window.data.copy()
    prepared = features.prepare(spec, given_window)
    assert prepared.shape == features.shape(spec)
    assert prepared.dtype == features.dtype(spec)
    assert np.isfinite(prepared).all()
    assert np.array_equal(given_window.data, kept)


@given(specs)
def test_json_carries_a_preparation_exactly(spec: Prepare) -> None:
    assert features.from_json(features.to_json(spec)) == spec
    assert features.fingerprint(spec) == features.fingerprint(features.from_json(features.to_json(spec)))


def test_fingerprints_tell_any_two_preparations_apart() -> None:
    others = [CameraPrepare(frames=3), MicrophonePrepare(hop=128), SeriesPrepare(channels=4), *SPECS]
    assert len({features.fingerprint(spec) for spec in others}) == len(others)


def test_the_fingerprint_of_the_default_camera_stays() -> None:
    """It stands in encoders that are in the field; whoever changes it must give the preparation a new number."""
    assert features.to_json(CameraPrepare()) == '{"frames":2,"height":96,"type":"camera/1","width":96}'


@pytest.mark.parametrize("text", ['{"type":"camera/2"}', '{"type":"camera/1","blur":3}', "{", "[]", ""])
def test_an_unknown_preparation_is_refused_by_name_of_the_check(text: str) -> None:
    with pytest.raises(ReleaseError, match="prepare failed") as caught:
        features.from_json(text)
    assert caught.value.check == "prepare"


@given(st.binary(max_size=60))
def test_wild_metadata_is_refused(data: bytes) -> None:
    with pytest.raises(ReleaseError, match="update the agent"):
        features.from_json(data.decode("latin-1"))


@pytest.mark.parametrize(
    ("spec", "wrong"),
    [
        (CameraPrepare(), window("microphone", np.ones(100, np.int16))),
        (CameraPrepare(), window("camera", np.zeros((0, 8, 8, 3), np.uint8))),
        (MicrophonePrepare(), window("microphone", np.ones(100, np.int16), 44_100.0)),
        (SeriesPrepare(channels=3), window("series", np.ones((10, 2), np.float32))),
    ],
)
def test_a_window_of_the_wrong_kind_is_refused(spec: Prepare, wrong: Window) -> None:
    with pytest.raises(ValueError, match="s0: "):
        features.prepare(spec, wrong)


def test_log_mel_is_that_of_a_slow_oracle() -> None:
    spec = MicrophonePrepare(mels=20)
    sound = raw(spec, 16_000, 5).data
    wave = sound.astype(np.float64) / 32_768
    mel = lambda hz: 2595 * np.log10(1 + hz / 700)  # noqa: E731
    edges = 700 * (10 ** (np.linspace(mel(50), mel(8000), 22) / 2595) - 1)
    wanted = np.zeros((20, 59))
    for frame in range(59):
        cut = wave[frame * 256 : frame * 256 + 1024] * 0.5 * (1 - np.cos(2 * np.pi * np.arange(1024) / 1024))
        power = np.abs(np.fft.fft(cut)[:513]) ** 2 / 1024
        for band in range(20):
            low, middle, high = edges[band : band + 3]
            for k, level in enumerate(power):
                hz = k * 16_000 / 1024
                weight = min((hz - low) / (middle - low), (high - hz) / (high - middle))
                wanted[band, frame] += max(0.0, weight) * level
    found = features.prepare(spec, window("microphone", sound))
    np.testing.assert_allclose(found[0], np.log(np.maximum(wanted, 1e-9)), atol=1e-4)


def test_a_louder_tone_lifts_its_own_band() -> None:
    spec = MicrophonePrepare()
    tone = np.sin(2 * np.pi * 1_000 * np.arange(16_000) / 16_000)
    quiet, loud = (
        features.prepare(spec, window("microphone", (a * tone).astype(np.int16)))[0] for a in (1_000, 10_000)
    )
    peak = int(loud.mean(axis=1).argmax())
    assert (loud - quiet)[peak].mean() == pytest.approx(2 * np.log(10), abs=0.05)
    low_hz, high_hz = (features.mel_filters(spec)[peak] > 0).nonzero()[0][[0, -1]] * 16_000 / 1024
    assert low_hz <= 1_000 <= high_hz


def test_silence_and_a_window_one_sample_short_are_finite() -> None:
    spec = MicrophonePrepare()
    silent = features.prepare(spec, window("microphone", np.zeros(15_999, np.int16)))
    assert silent.min() == silent.max() == np.float32(np.log(1e-9))


def test_pictures_are_spread_over_the_window_and_area_resized() -> None:
    spec = CameraPrepare(frames=3, height=5, width=4)
    frames = np.random.default_rng(2).integers(0, 256, (9, 10, 8, 3), np.uint8)
    found = features.prepare(spec, window("camera", frames, 10.0)).reshape(3, 3, 5, 4)
    for place, k in enumerate((0, 4, 8)):
        wanted = frames[k].reshape(5, 2, 4, 2, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
        assert np.abs(found[place] - wanted).max() <= 0.5
    one = features.prepare(CameraPrepare(frames=2, height=10, width=8), window("camera", frames[:1], 10.0))
    assert np.array_equal(one[:3], one[3:])
    assert np.array_equal(one[:3], cv2.resize(frames[0], (8, 10)).transpose(2, 0, 1))


def test_a_series_is_resampled_by_straight_lines() -> None:
    ramp = np.stack([np.arange(11.0), -np.arange(11.0)], axis=1).astype(np.float32)
    found = features.prepare(SeriesPrepare(channels=2, samples=21), window("series", ramp, 10.0))
    np.testing.assert_allclose(found, [np.linspace(0, 10, 21), -np.linspace(0, 10, 21)])


@pytest.mark.parametrize("spec", SPECS, ids=features.modality)
def test_golden_windows_are_the_same_everywhere_and_differ_from_each_other(spec: Prepare) -> None:
    first, again = features.golden_windows(spec), features.golden_windows(spec)
    assert all(np.array_equal(a.data, b.data) for a, b in zip(first, again, strict=True))
    prepared = [features.prepare(spec, one) for one in first]
    assert not np.array_equal(prepared[0], prepared[1])
    assert prepared[0].shape == features.shape(spec)

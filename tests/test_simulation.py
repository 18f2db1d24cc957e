"""The simulated line: one state behind picture and sound, the same whoever asks, and quick."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.config import SensorSettings
from edge.sensors import line
from edge.sensors.line import PRODUCTS, Upset, line_state
from edge.sensors.simulation import LineSamples, pictures, render, sound, values
from edge.sensors.table import open_sensor
from lineside.clock import NS, SimulatedClock
from lineside.features import MicrophonePrepare, mel_filters
from lineside.quality import Quality
from lineside.windows import Cutter

UPSETS = [line.slow_motor, line.slipping_belt, line.no_part, line.foreign_object, line.wrong_product]
times_s = st.floats(0, 1e6)
products = st.sampled_from(sorted(PRODUCTS))


@given(times_s, st.integers(0, 1000), products)
def test_the_state_is_within_its_bounds(t_s: float, seed: int, product: str) -> None:
    state = line_state(t_s, seed, product)
    assert 0 <= state.phase < 1 + 1e-9
    assert 0 <= state.kind < len(PRODUCTS[product].kinds)
    assert 0.6 <= state.force <= 1
    assert 0 <= state.press <= 1
    assert 0 <= state.belt <= 1
    assert 0.8 < state.motor_hz / PRODUCTS[product].motor_hz < 1.2


@given(st.integers(0, 100), products)
@settings(max_examples=20)
def test_an_array_of_times_gives_what_each_time_gives(seed: int, product: str) -> None:
    times = np.linspace(3.0, 20.0, 50)
    together = line_state(times, seed, product)
    for k, t_s in enumerate(times):
        alone = line_state(float(t_s), seed, product)
        assert (together.cycle[k], together.kind[k]) == (alone.cycle, alone.kind)
        assert together.phase[k] == pytest.approx(float(alone.phase), abs=1e-9)


def test_every_cycle_comes_once_and_cycles_differ() -> None:
    state = line_state(np.arange(0, 300, 0.01), 1, "a")
    assert set(np.diff(state.cycle)) == {0, 1}
    lengths = np.bincount(state.cycle - state.cycle[0])[1:-1] * 0.01
    assert lengths.std() > 0.05
    assert 2.0 < lengths.mean() < 3.0
    assert set(state.kind) == set(range(len(PRODUCTS["a"].kinds)))


@given(st.integers(0, 10**9), st.integers(1, 3000), st.integers(0, 3000))
@settings(max_examples=25)
def test_sound_and_series_do_not_depend_on_the_size_of_blocks(first: int, count: int, cut: int) -> None:
    cut = min(cut, count - 1)
    whole = sound(first, count, 3, "a")
    parts = np.concatenate([sound(first, cut, 3, "a"), sound(first + cut, count - cut, 3, "a")])
    assert np.abs(whole.astype(int) - parts).max() <= 1
    rows = values(first, count, 3, "b")
    np.testing.assert_allclose(
        np.concatenate([values(first, cut, 3, "b"), values(first + cut, count - cut, 3, "b")]), rows
    )


def band_level(heard: np.ndarray, low_hz: float, high_hz: float) -> float:
    power = np.abs(np.fft.rfft(heard.astype(float) * np.hanning(len(heard)))) ** 2
    hz = np.fft.rfftfreq(len(heard), 1 / 16_000)
    return float(power[(hz >= low_hz) & (hz < high_hz)].sum())


def loudest_hz(heard: np.ndarray, low_hz: float, high_hz: float) -> float:
    power = np.abs(np.fft.rfft(heard.astype(float) * np.hanning(len(heard)), 8 * len(heard))) ** 2
    hz = np.fft.rfftfreq(8 * len(heard), 1 / 16_000)
    inside = (hz >= low_hz) & (hz < high_hz)
    return float(hz[inside][power[inside].argmax()])


def hits(seed: int, product: str, until_s: float = 60.0) -> list[float]:
    """Times at which the press strikes."""
    times = np.arange(0, until_s, 0.001)
    since = line_state(times, seed, product).since_hit_s
    return [float(t) for t in times[1:][(since[1:] >= 0) & (since[:-1] < 0)]]


@pytest.mark.parametrize("product", sorted(PRODUCTS))
def test_the_part_that_is_seen_is_the_part_that_is_heard(product: str) -> None:
    kinds = PRODUCTS[product].kinds
    right = 0
    for hit_s in hits(1, product):
        state = line_state(hit_s + 0.2, 1, product)
        pixel = render(state)[77, 72].astype(int)  # beside the hole of the part under the press
        seen = min(range(len(kinds)), key=lambda k: np.abs(pixel - kinds[k].colour).sum())
        ring = sound(round((hit_s + 0.03) * 16_000), 3_200, 1, product)
        heard = min(range(len(kinds)), key=lambda k: abs(kinds[k].ring_hz - loudest_hz(ring, 580, 2_300)))
        right += seen == heard == int(state.kind)
    assert right >= 0.9 * len(hits(1, product))


def test_the_pitch_of_the_motor_follows_its_speed() -> None:
    found = []
    for t_s in np.arange(0.0, 40.0, 1.3):
        heard = sound(round(t_s * 16_000), 6_400, 1, "a")
        speed_hz = float(line_state(t_s + 0.2, 1, "a").motor_hz)
        found.append((loudest_hz(heard, 175, 275) / 2, speed_hz))
    assert np.corrcoef(np.array(found).T)[0, 1] > 0.95


def test_the_gauge_of_the_picture_shows_the_speed() -> None:
    levels, speeds = [], []
    for t_s in np.arange(0.0, 40.0, 1.3):
        state = line_state(t_s, 1, "a")
        column = render(state)[25:71, 132].astype(int)
        levels.append((column[:, 2] > 140).sum())
        speeds.append(float(state.motor_hz))
    assert np.corrcoef(levels, speeds)[0, 1] > 0.97


def test_strikes_of_the_press_are_heard_when_it_is_seen_down() -> None:
    hit = hits(2, "a", 20.0)
    loud = [band_level(sound(round(t * 16_000), 1_600, 2, "a"), 20, 400) for t in hit]
    before = [band_level(sound(round((t - 0.15) * 16_000), 1_600, 2, "a"), 20, 400) for t in hit]
    assert np.median(np.array(loud) / np.array(before)) > 3
    down = [render(line_state(t + 0.05, 2, "a"))[66:71, 62].mean() for t in hit]
    up = [render(line_state(t - 0.25, 2, "a"))[66:71, 62].mean() for t in hit]
    assert np.mean(down) < np.mean(up) - 20


def test_products_differ_to_the_eye_and_to_the_ear() -> None:
    for product, other in (("a", "b"), ("b", "a")):
        for hit_s in hits(1, product, 20.0):
            pixel = render(line_state(hit_s + 0.2, 1, product))[77, 72].astype(int)
            own, foreign = (
                min(np.abs(pixel - kind.colour).sum() for kind in PRODUCTS[made].kinds) for made in (product, other)
            )
            assert own < foreign
    filters = mel_filters(MicrophonePrepare())
    frames = {p: sound(0, 160 * 1024, 1, p).reshape(160, 1024).astype(float) for p in PRODUCTS}
    mels = {p: np.log(filters @ (np.abs(np.fft.rfft(frame)) ** 2).mean(0)) for p, frame in frames.items()}
    halves = [np.log(filters @ (np.abs(np.fft.rfft(half)) ** 2).mean(0)) for half in np.split(frames["a"], 2)]
    assert np.abs(mels["a"] - mels["b"]).mean() > 3 * np.abs(halves[0] - halves[1]).mean()


@pytest.mark.slow
def test_no_frame_is_like_the_last_and_no_window_is_flagged() -> None:
    quality, clock = Quality(), SimulatedClock(5 * NS)
    for modality in ("camera", "microphone", "series"):
        sensor_settings = SensorSettings(name="s0", modality=modality, source="simulation", channels=3)
        cutter, windows = Cutter(NS, NS // 2), []
        for run in islice(open_sensor(sensor_settings, clock, clock.now_ns(), Path()).samples(), 300):
            windows += cutter.push(run)
        assert len(windows) > 50
        assert {flag for window in windows for flag in quality.flags(window)} == set()


def test_seeds_give_different_runs_and_the_same_seed_the_same() -> None:
    one, same, other = (sound(16_000, 16_000, seed, "a") for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert np.abs(np.corrcoef(one, other)[0, 1]) < 0.5
    assert np.array_equal(render(line_state(1.5, 4, "b"), 4), render(line_state(1.5, 4, "b"), 4))


@pytest.mark.parametrize("upset", UPSETS)
@pytest.mark.parametrize("product", sorted(PRODUCTS))
def test_an_upset_line_differs_and_does_not_depend_on_the_size_of_blocks(upset: Upset, product: str) -> None:
    whole = sound(7, 40_000, 3, product, upset)
    parts = np.concatenate([sound(7, 11_111, 3, product, upset), sound(11_118, 28_889, 3, product, upset)])
    assert np.abs(whole.astype(int) - parts).max() <= 1
    assert np.abs(whole.astype(int) - sound(7, 40_000, 3, product)).mean() > 50
    assert not np.array_equal(pictures(0, 20, 3, product, upset), pictures(0, 20, 3, product))


def test_a_slow_motor_is_heard_lower_and_its_gauge_is_seen_lower() -> None:
    for t_s in (3.0, 11.0, 23.0):
        well, slow = (line_state(t_s, 1, "a", *upsets) for upsets in ((), (line.slow_motor,)))
        gauges = [(render(state)[25:71, 132].astype(int)[:, 2] > 140).sum() for state in (well, slow)]
        assert gauges[1] < gauges[0] - 8
        speed_hz = float(line_state(t_s + 0.2, 1, "a", line.slow_motor).motor_hz)
        heard = sound(round(t_s * 16_000), 6_400, 1, "a", line.slow_motor)
        assert loudest_hz(heard, 100, 200) / 2 == pytest.approx(speed_hz, abs=4)


def test_where_no_part_lies_none_is_seen_and_none_rings() -> None:
    kinds = PRODUCTS["a"].kinds
    for hit_s in hits(1, "a", 20.0):
        well, empty = (line_state(hit_s + 0.2, 1, "a", *upsets) for upsets in ((), (line.no_part,)))
        colour = kinds[int(well.kind)].colour
        assert np.abs(render(well)[77, 72].astype(int) - colour).sum() < 60
        assert np.abs(render(empty)[77, 72].astype(int) - colour).sum() > 60
        first, ring_hz = round((hit_s + 0.03) * 16_000), kinds[int(well.kind)].ring_hz
        full, none = (
            band_level(sound(first, 3_200, 1, "a", *upsets), ring_hz - 40, ring_hz + 40)
            for upsets in ((), (line.no_part,))
        )
        assert none < full / 10


def test_a_slipped_belt_is_seen_before_its_place_and_squeals_while_it_moves() -> None:
    moving = [t_s for t_s in np.arange(0, 20, 0.1) if float(line_state(t_s, 1, "a").belt_speed) > 0.8]
    well, slipping = (
        sum(band_level(sound(round(t_s * 16_000), 1_600, 1, "a", *upsets), 2_200, 2_500) for t_s in moving)
        for upsets in ((), (line.slipping_belt,))
    )
    assert slipping > 4 * well
    well_seen, slipped = (
        render(line_state(hits(1, "a", 5.0)[0] + 0.2, 1, "a", *upsets)) for upsets in ((), (line.slipping_belt,))
    )
    assert not np.array_equal(well_seen[70:95], slipped[70:95])
    assert np.array_equal(well_seen[:60], slipped[:60])


def test_upsets_are_laid_one_over_the_other() -> None:
    both = line_state(4.0, 1, "a", line.slow_motor, line.wrong_product)
    well = line_state(4.0, 1, "a")
    assert (both.product, both.motor_hz < 0.7 * well.motor_hz) == ("b", True)
    assert 0 <= both.kind < len(PRODUCTS["b"].kinds)
    sensor_settings = SensorSettings(name="mic0", modality="microphone", source="simulation", seed=4)
    (block,) = islice(open_sensor(sensor_settings, SimulatedClock(5 * NS), 5 * NS, Path()).samples(), 7, 8)
    assert isinstance(block, LineSamples)
    under = block.under(line.slow_motor).under(line.no_part)
    assert np.array_equal(under.data, sound(7 * 1_600, 1_600, 4, "a", line.slow_motor, line.no_part))
    assert (under.start_ns, under.sensor, under.rate_hz) == (block.start_ns, block.sensor, block.rate_hz)

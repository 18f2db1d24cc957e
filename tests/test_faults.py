"""Faults laid over samples: strong enough to be found, continuous over blocks, and only where they belong."""

from __future__ import annotations

import itertools
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.config import DeviceConfig, DeviceSettings, SensorSettings
from edge.faults import FAULTS, Injector
from edge.replay import simulated
from edge.sensors.simulation import LineSamples, pictures, sound
from lineside.clock import NS
from lineside.quality import Quality
from lineside.windows import Cutter, Samples

START_NS = 1_700_000_000 * NS
FOR_EVER_NS = START_NS + 3600 * NS
STRUCK = sorted((kind, modality) for kind, fault in FAULTS.items() for modality in fault.effects)
LINE = {"cam0": "camera", "mic0": "microphone", "vib0": "series"}


def heard(data: np.ndarray, first: int = 0, rate_hz: float = 16_000.0) -> Samples:
    return Samples("mic0", "microphone", START_NS + round(first * NS / rate_hz), rate_hz, data.astype(np.int16))


def seen(count: int = 3) -> Samples:
    stamps = START_NS + np.arange(count) * NS // 10
    return Samples("cam0", "camera", START_NS, 10.0, pictures(0, count, 1, "a"), stamps)


def example(modality: str, seconds: int = 3) -> Samples:
    return seen(10 * seconds) if modality == "camera" else heard(sound(0, 16_000 * seconds, 1, "a"))


def cut(samples: Samples, places: list[int]) -> list[Samples]:
    """The samples in blocks that end at these places."""
    edges = [0, *sorted({place for place in places if 0 < place < len(samples.data)}), len(samples.data)]
    blocks = []
    for first, end in itertools.pairwise(edges):
        stamps = None if samples.stamps_ns is None else samples.stamps_ns[first:end]
        start_ns = START_NS + round(first * NS / samples.rate_hz)
        blocks.append(replace(samples, data=samples.data[first:end], start_ns=start_ns, stamps_ns=stamps))
    return blocks


def line(seconds: float, seed: int = 2) -> list[Samples]:
    """All sensors of the simulated line."""
    sensors = [SensorSettings(name=n, modality=m, source="simulation", seed=seed, channels=3) for n, m in LINE.items()]
    config = DeviceConfig(device=DeviceSettings(id="edge-1", site="demo", station="press"), sensors=sensors)
    return list(simulated(config, Path(), START_NS, seconds))


def flags(stream: list[Samples]) -> set[str]:
    """What the quality rules find in these samples."""
    quality, cutters = Quality(), {name: Cutter(NS, NS // 2) for name in LINE}
    return {flag for part in stream for window in cutters[part.sensor].push(part) for flag in quality.flags(window)}


def test_sensor_and_process_have_five_faults_each_and_strike_picture_and_sound() -> None:
    for cause in ("sensor", "process"):
        rows = [fault for fault in FAULTS.values() if fault.cause == cause]
        assert len(rows) >= 5
        assert {modality for fault in rows for modality in fault.effects} == {"camera", "microphone"}
    assert len(FAULTS) >= 14
    assert {fault.cause for fault in FAULTS.values()} == {"sensor", "process"}
    assert len({fault.about for fault in FAULTS.values()}) == len(FAULTS)
    assert all(kind.isidentifier() and kind.islower() for kind in FAULTS)


def test_a_sensor_fault_is_of_one_sensor_and_a_line_is_upset_by_its_process_only() -> None:
    for fault in FAULTS.values():
        if fault.cause == "sensor":
            assert len(fault.effects) == 1
            assert fault.upset is None
    assert sum(len(fault.effects) == 2 for fault in FAULTS.values()) >= 3


@pytest.mark.parametrize(("kind", "modality"), STRUCK)
def test_every_fault_changes_its_modality_at_once_and_keeps_the_form(kind: str, modality: str) -> None:
    before = example(modality)
    kept = before.data.copy()
    after = FAULTS[kind].effects[modality]()(before, START_NS)
    assert (after.data.shape, after.data.dtype) == (before.data.shape, before.data.dtype)
    assert (after.start_ns, after.sensor, after.flags) == (before.start_ns, before.sensor, before.flags)
    assert np.array_equal(before.data, kept)  # the original is somebody else's
    first = after.between(START_NS, START_NS + NS // 4).data.astype(int)
    assert not np.array_equal(first, kept[: len(first)])
    later = after.between(START_NS + NS, START_NS + 3 * NS).data.astype(int)
    assert np.abs(later - kept[-len(later) :]).mean() > (0.5 if modality == "camera" else 100)


@pytest.mark.parametrize(("kind", "modality"), STRUCK)
@given(places=st.lists(st.integers(1, 31_999), max_size=5))
@settings(max_examples=4)
def test_every_fault_runs_on_over_the_edges_of_blocks(kind: str, modality: str, places: list[int]) -> None:
    whole = example(modality, 2)
    places = [place * len(whole.data) // 32_000 for place in places]
    together, effect = FAULTS[kind].effects[modality]()(whole, START_NS), FAULTS[kind].effects[modality]()
    apart = [effect(block, START_NS) for block in cut(whole, places)]
    assert np.abs(np.concatenate([block.data for block in apart]).astype(int) - together.data).max() <= 1


@pytest.mark.parametrize(("kind", "modality"), STRUCK)
def test_every_fault_takes_samples_of_any_size_rate_and_time(kind: str, modality: str) -> None:
    rng, effect = np.random.default_rng(1), FAULTS[kind].effects[modality]()
    before_ns, later_ns = START_NS - NS // 20, START_NS + 600 * NS
    if modality == "camera":
        for shape in ((1, 2, 2, 3), (1, 480, 640, 3), (2, 33, 77, 3)):
            frames = rng.integers(0, 255, shape, np.uint8)
            for at_ns in (before_ns, later_ns, START_NS):
                stamps = at_ns + np.arange(shape[0]) * NS // 30
                after = effect(Samples("cam0", "camera", at_ns, 30.0, frames, stamps), START_NS)
                assert (after.data.shape, after.data.dtype) == (shape, np.uint8)
        return
    for rate_hz, count in ((8_000.0, 1), (48_000.0, 4_800), (100.0, 7), (44_100.0, 441)):
        loud = rng.choice([-32_768, 32_767], count).astype(np.int16)
        for data in (loud, np.zeros_like(loud)):
            for at_ns in (before_ns, later_ns, START_NS):
                with np.errstate(all="raise", under="ignore"):  # no value that is not a number
                    after = effect(Samples("mic0", "microphone", at_ns, rate_hz, data), START_NS)
                assert (after.data.shape, after.data.dtype) == ((count,), np.int16)


@pytest.mark.slow
def test_only_dead_and_stuck_and_cut_sensors_are_found_by_the_quality_rules() -> None:
    stream, found = line(4), {}
    for kind in FAULTS:
        injector = Injector()
        injector.start(kind, FOR_EVER_NS)
        found[kind] = flags([injector.apply(part) for part in stream])
    hard = {kind: flagged for kind, flagged in found.items() if flagged}
    assert set(hard) == {"muted", "black", "frozen", "clipped"}
    assert {"silent", "black", "frozen", "clipped"} == set().union(*hard.values())


@pytest.mark.parametrize("level", [30, 300, 3000])
def test_bearing_noise_goes_with_the_level_of_the_signal(level: int) -> None:
    effect = FAULTS["bearing_noise"].effects["microphone"]()
    quiet = np.random.default_rng(1).normal(0, level, 80_000)
    blocks = [effect(heard(quiet[k : k + 1_600], k), START_NS).data for k in range(0, 80_000, 1_600)]
    louder_db = 20 * np.log10(np.concatenate(blocks).astype(float).std() / quiet.std())
    assert 3.0 < louder_db < (6.0 if level > 60 else 12.0)


def test_bearing_noise_strikes_about_ninety_times_a_second() -> None:
    noise = FAULTS["bearing_noise"].effects["microphone"]()(heard(np.zeros(64_000)), START_NS).data.astype(float)
    envelope = np.abs(noise) - np.abs(noise).mean()
    power = np.abs(np.fft.rfft(envelope)) ** 2
    hz = np.fft.rfftfreq(64_000, 1 / 16_000)
    near = (hz > 60) & (hz < 150)
    assert 85 < hz[near][power[near].argmax()] < 97


def test_the_misaligned_part_leaves_the_edge_of_the_picture() -> None:
    before = seen()
    after = FAULTS["misaligned_part"].effects["camera"]()(before, START_NS)
    changed = np.abs(after.data.astype(int) - before.data).max(axis=(0, 3)) > 12
    assert not changed[:4].any()
    assert not changed[:, :8].any()
    assert 0.02 < changed.mean() < 0.5


def test_dirt_lies_on_the_lens_and_not_on_the_line() -> None:
    moved, still = seen(8), FAULTS["dirty_lens"].effects["camera"]()
    change = np.abs(still(moved, START_NS).data.astype(int) - moved.data).mean(axis=3) > 8
    assert 0.03 < change.mean() < 0.6
    assert (change.all(axis=0) | ~change.any(axis=0)).mean() > 0.75  # the same pixels in all pictures, mostly


def loudest_hz(data: np.ndarray, low_hz: float, high_hz: float) -> float:
    power = np.abs(np.fft.rfft(data.astype(float) * np.hanning(len(data)))) ** 2
    hz = np.fft.rfftfreq(len(data), 1 / 16_000)
    inside = (hz >= low_hz) & (hz < high_hz)
    return float(hz[inside][power[inside].argmax()])


@pytest.mark.parametrize(("kind", "speed"), [("slow_motor", 0.66), ("wrong_product", 1.26)])
def test_a_shifted_sound_has_another_pitch_and_the_same_level(kind: str, speed: float) -> None:
    tone = heard(5000 * np.sin(2 * np.pi * 500 * np.arange(64_000) / 16_000))
    shifted = FAULTS[kind].effects["microphone"]()(tone, START_NS).data
    assert loudest_hz(shifted, 50, 4000) == pytest.approx(500 * speed, abs=6)
    assert abs(20 * np.log10(shifted[8_000:].astype(float).std() / tone.data.std())) < 3


def test_a_slow_motor_shows_pictures_ever_later_and_never_more_than_a_second_late() -> None:
    count = 60
    numbered = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 4, 4, 3))
    stamps = START_NS + np.arange(count) * NS // 10
    samples = Samples("cam0", "camera", START_NS, 10.0, numbered, stamps)
    late = np.arange(count) - FAULTS["slow_motor"].effects["camera"]()(samples, START_NS).data[:, 0, 0, 0]
    assert late[:20].tolist() == sorted(late[:20])
    assert 5 <= late[18] <= 8
    assert late[20] == 0
    assert late.max() < 10


@pytest.mark.parametrize(
    ("kind", "low_hz", "high_hz", "loss_db"), [("covered", 50, 100, 2), ("gain_loss", 50, 7000, 21)]
)
def test_what_a_microphone_loses_is_lost_by_as_much_as_is_told(
    kind: str, low_hz: float, high_hz: float, loss_db: float
) -> None:
    noise = heard(np.random.default_rng(3).normal(0, 2000, 64_000))
    after = FAULTS[kind].effects["microphone"]()(noise, START_NS)

    def level_db(samples: Samples, low_hz: float, high_hz: float) -> float:
        power = np.abs(np.fft.rfft(samples.data.astype(float))) ** 2
        hz = np.fft.rfftfreq(64_000, 1 / 16_000)
        return float(10 * np.log10(power[(hz > low_hz) & (hz < high_hz)].sum()))

    assert 0 <= level_db(noise, low_hz, high_hz) - level_db(after, low_hz, high_hz) < loss_db
    assert level_db(noise, 1000, 7000) - level_db(after, 1000, 7000) > 15


@pytest.mark.parametrize(("kind", "hz"), [("mains_hum", 50), ("ground_loop", 60), ("gear_whine", 413)])
def test_a_tone_that_is_added_has_its_own_pitch(kind: str, hz: float) -> None:
    noise = heard(np.random.default_rng(4).normal(0, 500, 64_000))
    added = FAULTS[kind].effects["microphone"]()(noise, START_NS).data.astype(int) - noise.data
    assert loudest_hz(added, 20, 4000) == pytest.approx(hz, abs=5)


def test_a_leak_hisses_all_the_time_and_a_contact_crackles_now_and_then() -> None:
    noise = heard(np.random.default_rng(5).normal(0, 500, 64_000))
    loudness = {}
    for kind in ("air_leak", "crackling"):
        added = FAULTS[kind].effects["microphone"]()(noise, START_NS).data.astype(float) - noise.data
        loudness[kind] = added[16_000:].reshape(-1, 80).std(axis=1)  # of 5 ms each
    assert loudness["air_leak"].std() < 0.3 * loudness["air_leak"].mean()
    assert loudness["crackling"].std() > loudness["crackling"].mean()


def test_a_telephone_buzzes_in_its_frames_and_leaves_one_of_26_out() -> None:
    quiet = heard(np.zeros(32_000))
    buzz = FAULTS["phone_buzz"].effects["microphone"]()(quiet, START_NS).data.astype(float)
    assert loudest_hz(buzz, 100, 300) == pytest.approx(216.7, abs=1)
    onsets = np.flatnonzero((buzz[1:] > 0) & (buzz[:-1] <= 0))
    assert len(onsets) == pytest.approx(2 / 0.004615 * 25 / 26, abs=2)
    assert np.diff(onsets).max() == pytest.approx(2 * 0.004615 * 16_000, abs=2)


def test_what_stutters_is_the_block_before_or_as_it_was() -> None:
    noise = np.random.default_rng(6).integers(-9_000, 9_000, 64_000).astype(np.int16)
    after = FAULTS["stuttering"].effects["microphone"]()(heard(noise), START_NS).data.reshape(-1, 512)
    blocks = noise.reshape(-1, 512)
    again = (after[1:] == blocks[:-1]).all(axis=1)
    assert ((after[1:] == blocks[1:]).all(axis=1) | again).all()
    assert 0.25 < again.mean() < 0.55


def test_a_camera_s_shaking_and_noise_are_of_all_the_picture_and_smoke_is_not() -> None:
    frame = pictures(0, 1, 1, "a")
    still = replace(seen(10), data=np.repeat(frame, 10, axis=0))
    spread = {}
    for kind in ("loose_camera", "noisy_camera", "smoke"):
        spread[kind] = FAULTS[kind].effects["camera"]()(still, START_NS).data.astype(float).std(axis=0).max(axis=2)
    assert (spread["noisy_camera"] > 15).mean() > 0.9
    assert (spread["loose_camera"][:, -30:] > 10).any()
    assert (spread["loose_camera"][:, :30] > 10).any()
    assert (spread["smoke"][:60, 50:110] > 5).mean() > 0.4
    assert (spread["smoke"][80:] < 1).all()


def test_a_jammed_belt_stands_while_the_press_goes_on() -> None:
    injector = Injector()
    injector.start("jammed_belt", FOR_EVER_NS)
    after = np.concatenate([injector.apply(part).data for part in line(6) if part.modality == "camera"]).astype(float)
    spread = after.std(axis=0).max(axis=2)
    assert spread[98:107].max() < 6  # the belt: noise and lamps only
    assert spread[20:60, 68:76].max() > 20  # the press


def test_bands_roll_down_over_all_of_the_picture() -> None:
    grey = np.full((10, 120, 160, 3), 100, np.uint8)
    stamps = START_NS + np.arange(10) * NS // 10
    rows = FAULTS["rolling_bands"].effects["camera"]()(
        Samples("cam0", "camera", START_NS, 10.0, grey, stamps), START_NS
    )
    shade = rows.data.astype(float)[:, :, 0, 0]
    assert (rows.data == rows.data[:, :, :1]).all()  # a row has one shade
    down = [np.abs(shade[1, px:] - shade[0, : 120 - px]).mean() for px in range(8)]
    assert np.argmin(down) == 4  # 0.07 turns of 2.2 in the picture's height, in a tenth of a second


def test_a_drop_of_water_leaves_all_but_a_tenth_of_the_picture() -> None:
    before = seen()
    after = FAULTS["water_drop"].effects["camera"]()(before, START_NS)
    changed = np.abs(after.data.astype(int) - before.data).max(axis=(0, 3)) > 12
    assert 0.02 < changed.mean() < 0.1
    assert not changed[:, 90:].any()


def test_a_wrong_colour_leaves_what_is_grey_and_how_bright_it_is() -> None:
    grey = replace(seen(1), data=np.full((1, 120, 160, 3), 90, np.uint8), stamps_ns=np.array([START_NS]))
    red = replace(grey, data=np.broadcast_to(np.array([140, 80, 80], np.uint8), (1, 120, 160, 3)))
    effect = FAULTS["wrong_colour"].effects["camera"]()
    assert np.abs(effect(grey, START_NS).data.astype(int) - grey.data).max() <= 1
    assert effect(red, START_NS).data[0, 60, 80].tolist() == [60, 120, 120]


def test_a_knock_is_seen_when_it_is_heard() -> None:
    injector = Injector()
    injector.start("knocking", FOR_EVER_NS)
    quiet, still = heard(np.zeros(80_000)), replace(seen(50), data=np.repeat(pictures(0, 1, 1, "a"), 50, axis=0))
    noise = np.abs(injector.apply(quiet).data.astype(int)).reshape(50, 1_600).max(axis=1)
    shaken = np.abs(injector.apply(still).data.astype(int) - still.data).mean(axis=(1, 2, 3))
    assert set(np.argsort(noise)[-5:]) == {0, 12, 24, 36, 48}
    assert set(np.argsort(shaken)[-5:]) == {0, 12, 24, 36, 48}


def test_the_injector_strikes_from_the_next_samples_until_its_end() -> None:
    injector = Injector()
    blocks = [heard(sound(k * 1_600, 1_600, 1, "a"), k * 1_600) for k in range(30)]
    assert injector.apply(blocks[0]) is blocks[0]
    injector.start("muted", START_NS + 2 * NS)
    out = [injector.apply(block) for block in blocks]
    assert [not block.data.any() for block in out] == [True] * 20 + [False] * 10
    assert injector.running() == {}


def test_faults_of_one_modality_leave_the_other_alone() -> None:
    injector = Injector()
    injector.start("muted", START_NS + 9 * NS)
    injector.start("dirty_lens", START_NS + 9 * NS)
    assert injector.running() == {"muted": START_NS + 9 * NS, "dirty_lens": START_NS + 9 * NS}
    pictures = seen()
    mixed = injector.apply(pictures)
    assert mixed.data.any()
    assert not np.array_equal(mixed.data, pictures.data)
    vibration = Samples("vib0", "series", START_NS, 10.0, np.ones((5, 2), np.float32))
    assert injector.apply(vibration) is vibration
    injector.stop()
    assert injector.apply(pictures) is pictures


@pytest.mark.parametrize("kind", [kind for kind, fault in FAULTS.items() if fault.upset])
def test_an_upset_line_is_heard_and_seen_by_all_its_sensors_as_one(kind: str) -> None:
    stream, injector = line(6), Injector()
    injector.start(kind, FOR_EVER_NS)
    after = [injector.apply(part) for part in stream]
    for modality in ("camera", "microphone"):
        changed = [
            not np.array_equal(one.data, other.data)
            for one, other in zip(stream, after, strict=True)
            if one.modality == modality
        ]
        assert np.mean(changed) > 0.3
    assert all(isinstance(part, LineSamples) and part.upsets == (FAULTS[kind].upset,) for part in after)


def test_the_line_is_upset_before_anything_is_laid_over_its_samples() -> None:
    (picture,) = (part for part in line(0.05) if part.modality == "camera")
    injector = Injector()
    for kind in ("colour_cast", "misaligned_part", "missing_part"):
        injector.start(kind, FOR_EVER_NS)
    assert isinstance(picture, LineSamples)
    expected: Samples = picture.under(FAULTS["missing_part"].upset)
    for kind in ("misaligned_part", "colour_cast"):
        expected = FAULTS[kind].effects["camera"]()(expected, START_NS)
    assert np.array_equal(injector.apply(picture).data, expected.data)


@pytest.mark.parametrize("kind", sorted(FAULTS))
def test_a_fault_ends_for_every_sensor_at_its_end_and_is_over_then(kind: str) -> None:
    injector, end_ns = Injector(), START_NS + NS // 2
    injector.start(kind, end_ns)
    touched = set()
    stream = line(1.0)
    for part in sorted(stream, key=lambda part: (part.sensor, part.start_ns)):  # one sensor far ahead of the other
        after = injector.apply(part)
        assert after is part or part.start_ns < end_ns
        touched |= {part.modality} if after is not part else set()
    assert touched >= set(FAULTS[kind].effects)
    assert injector.running() == {}
    injector.start(kind, START_NS + 3 * NS)  # begun anew: its time counts from there
    assert injector.running() == {kind: START_NS + 3 * NS}


def test_an_unknown_fault_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="no fault 'gremlins'; known are bearing_noise, misaligned_part, missing_part"):
        Injector().start("gremlins", 1)


def test_the_injector_may_be_switched_while_samples_pass(tmp_path: Path) -> None:
    injector, failed = Injector(), []

    def pump() -> None:
        try:
            for k in range(300):
                injector.apply(heard(np.ones(160), k * 160))
        except Exception as error:  # noqa: BLE001
            failed.append(error)

    threads = [threading.Thread(target=pump) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(200):
        injector.start("bearing_noise", START_NS + NS)
        injector.start("muted", START_NS + 2 * NS)
        injector.stop()
    for thread in threads:
        thread.join()
    assert failed == []

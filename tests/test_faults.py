"""Faults laid over samples: strong enough to be found, continuous over blocks, and only where they belong."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.faults import FAULTS, Injector
from edge.sensors.simulation import line_state, render, sound
from lineside.clock import NS
from lineside.quality import Quality
from lineside.windows import Samples, Window

START_NS = 1_700_000_000 * NS


def heard(data: np.ndarray, first: int = 0) -> Samples:
    return Samples("mic0", "microphone", START_NS + round(first * NS / 16_000), 16_000.0, data.astype(np.int16))


def seen(count: int = 3) -> Samples:
    frames = np.stack([render(line_state(k / 10, 1, "a")) for k in range(count)])
    return Samples("cam0", "camera", START_NS, 10.0, frames, START_NS + np.arange(count) * NS // 10)


def example(modality: str) -> Samples:
    return seen() if modality == "camera" else heard(sound(0, 16_000, 1, "a"))


@pytest.mark.parametrize("kind", sorted(FAULTS))
def test_every_fault_changes_its_modality_and_keeps_the_form(kind: str) -> None:
    fault = FAULTS[kind]
    before = example(fault.modality)
    kept = before.data.copy()
    after = fault.make()(before, START_NS)
    assert (after.data.shape, after.data.dtype) == (before.data.shape, before.data.dtype)
    assert (after.start_ns, after.sensor, after.flags) == (before.start_ns, before.sensor, before.flags)
    assert not np.array_equal(after.data, kept)
    assert np.array_equal(before.data, kept)  # the original is somebody else's
    assert fault.about


@pytest.mark.parametrize("kind", ["muted", "black"])
def test_dead_sensors_are_found_by_the_quality_rules(kind: str) -> None:
    after = FAULTS[kind].make()(example(FAULTS[kind].modality), START_NS)
    window = Window("s", after.modality, START_NS, START_NS + NS, after.rate_hz, after.data, START_NS)
    assert Quality().flags(window) & {"silent", "black"}


@pytest.mark.parametrize("level", [30, 300, 3000])
def test_bearing_noise_goes_with_the_level_of_the_signal(level: int) -> None:
    effect = FAULTS["bearing_noise"].make()
    quiet = np.random.default_rng(1).normal(0, level, 80_000)
    blocks = [effect(heard(quiet[k : k + 1_600], k), START_NS).data for k in range(0, 80_000, 1_600)]
    louder_db = 20 * np.log10(np.concatenate(blocks).astype(float).std() / quiet.std())
    assert 3.0 < louder_db < (6.0 if level > 60 else 12.0)


def test_bearing_noise_strikes_about_ninety_times_a_second() -> None:
    noise = FAULTS["bearing_noise"].make()(heard(np.zeros(64_000)), START_NS).data.astype(float)
    envelope = np.abs(noise) - np.abs(noise).mean()
    power = np.abs(np.fft.rfft(envelope)) ** 2
    hz = np.fft.rfftfreq(64_000, 1 / 16_000)
    near = (hz > 60) & (hz < 150)
    assert 85 < hz[near][power[near].argmax()] < 97


@given(st.lists(st.integers(1, 4_000), min_size=1, max_size=6))
@settings(max_examples=30, deadline=None)
def test_bearing_noise_runs_on_over_the_edges_of_blocks(cuts: list[int]) -> None:
    data = np.full(sum(cuts), 1000.0)
    whole = FAULTS["bearing_noise"].make()(heard(data), START_NS).data.astype(int)
    effect, parts, first = FAULTS["bearing_noise"].make(), [], 0
    for count in cuts:
        parts.append(effect(heard(data[first : first + count], first), START_NS).data)
        first += count
    assert np.abs(np.concatenate(parts) - whole).max() <= 2


def test_the_misaligned_part_leaves_the_edge_of_the_picture() -> None:
    before = seen()
    after = FAULTS["misaligned_part"].make()(before, START_NS)
    changed = np.abs(after.data.astype(int) - before.data).max(axis=(0, 3)) > 12
    assert not changed[:4].any()
    assert not changed[:, :8].any()
    assert 0.02 < changed.mean() < 0.5


def test_dirt_lies_on_the_lens_and_not_on_the_line() -> None:
    moved, still = seen(8), FAULTS["dirty_lens"].make()
    change = np.abs(still(moved, START_NS).data.astype(int) - moved.data).mean(axis=3) > 8
    assert 0.03 < change.mean() < 0.6
    assert (change.all(axis=0) | ~change.any(axis=0)).mean() > 0.75  # the same pixels in all pictures, mostly


@pytest.mark.parametrize("shape", [(1, 2, 2, 3), (1, 480, 640, 3), (2, 33, 77, 3)])
def test_pictures_of_any_size_are_taken(shape: tuple[int, ...]) -> None:
    frames = np.random.default_rng(1).integers(0, 255, shape, np.uint8)
    samples = Samples("cam0", "camera", 0, 10.0, frames, np.arange(shape[0], dtype=np.int64))
    for kind in ("misaligned_part", "dirty_lens", "black"):
        assert FAULTS[kind].make()(samples, 0).data.shape == shape


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


def test_an_unknown_fault_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="no fault 'gremlins'; known are bearing_noise, misaligned_part, dirty_lens"):
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

"""When samples were taken: clocks that drift, arrivals that are late, streams whose time is made up."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from bench import pairing
from edge.sensors.stamps import Stamps
from edge.sensors.timeline import Counted, Timeline
from lineside.clock import NS

Floats = NDArray[np.float64]


def late(count: int, seed: int) -> Floats:
    """Seconds from capture to arrival: some milliseconds, and now and then a busy core."""
    rng = np.random.default_rng(seed)
    return rng.exponential(0.006, count) + (rng.random(count) < 0.02) * rng.uniform(0.02, 0.15, count)


@pytest.mark.parametrize("ppm", [-100.0, 0.0, 100.0])
def test_blocks_of_a_drifting_source_are_placed_where_they_were_taken(ppm: float) -> None:
    true = 0.2 + np.arange(6000) * 0.1 * (1 + ppm * 1e-6)
    line, placed = Counted(16_000.0), []
    for at, after in zip(true, late(len(true), 1), strict=True):
        start_ns, jumped = line.place(round((at + after) * NS), 1_600)
        assert not jumped
        placed.append(start_ns / NS)
    error = np.abs(np.array(placed) - true)
    assert np.quantile(error, 0.99) < 0.005
    assert np.quantile(error[600:], 0.99) < 0.001
    assert line.timing.drift_ppm == pytest.approx(ppm, abs=3)
    assert np.abs(np.diff(placed) - 0.1).max() < 0.005  # even, whatever the arrivals do


def test_after_a_hole_the_line_starts_anew_and_the_drift_is_known_still() -> None:
    line = Counted(1000.0)
    true = np.arange(1000) * 0.1 * (1 + 80e-6)
    true[500:] += 3.0
    jumps = [line.place(round((at + after) * NS), 100)[1] for at, after in zip(true, late(1000, 2), strict=True)]
    assert np.flatnonzero(jumps).tolist() == [500]
    assert line.timing.drift_ppm == pytest.approx(80, abs=10)


def test_offset_is_how_far_the_source_has_fallen_behind() -> None:
    line = Timeline()
    for second in range(101):
        line.place(second * NS, 7 * NS + round(second * NS * (1 + 50e-6)))
    assert line.timing.offset_ns == pytest.approx(100 * 50_000, rel=0.1)
    assert line.timing.drift_ppm == pytest.approx(50.0, abs=0.1)


def test_a_frame_of_a_driver_is_as_old_as_it_says() -> None:
    stamps, monotonic = Stamps(driver=True), 500 * NS
    assert stamps.place(monotonic - 30_000_000, 9 * NS, monotonic) == 9 * NS - 30_000_000
    # One that stamps by another clock is not believed, nor one that repeats itself.
    assert stamps.place(monotonic - 3600 * NS, 10 * NS, monotonic + NS) == 10 * NS
    assert stamps.place(monotonic - 3600 * NS, 11 * NS, monotonic + 2 * NS) == 11 * NS
    assert stamps.timing is None


def test_a_stream_with_a_clock_of_its_own_is_believed_after_a_while() -> None:
    stamps, errors = Stamps(driver=False), []
    for k, after in enumerate(late(1200, 3)):
        at = k * 0.1 * (1 + 100e-6)
        stamp = stamps.place(round(k * 0.1 * NS) + 5, round((at + after) * NS), 0)
        errors.append(abs(stamp / NS - at))
    assert np.quantile(errors[400:], 0.99) < 0.002
    assert np.quantile(errors[:150], 0.99) > 0.01  # till then by arrival
    assert stamps.timing is not None
    assert stamps.timing.drift_ppm == pytest.approx(100, abs=5)


@pytest.mark.parametrize("rate", [0.5, 1.02, 2.0])
def test_a_streams_time_that_is_a_frame_counter_is_not_believed(rate: float) -> None:
    stamps = Stamps(driver=False)
    arrivals = np.maximum.accumulate(np.arange(1000) * 0.1 + late(1000, 4))  # a frame does not overtake another
    for k, arrived_ns in enumerate(np.round(arrivals * NS).astype(int)):
        stamp = stamps.place(round(k * 0.1 * rate * NS) + 5, arrived_ns, 0)
        assert stamp <= arrived_ns + k  # never in the future; two at one time are told apart
        assert arrived_ns - stamp < 0.26 * NS
    assert stamps.timing is None


def test_latency_that_was_configured_is_taken_off() -> None:
    assert Stamps(driver=False, latency_ns=40_000_000).place(0, NS, 0) == NS - 40_000_000


def test_windows_of_a_camera_and_a_microphone_with_skewed_clocks_pair() -> None:
    found = pairing.measure(seed=1, seconds=240)
    assert found.p99_ms < 20
    assert found.uncorrected_p99_ms > 100  # else there was nothing to correct
    assert found.moments > 400

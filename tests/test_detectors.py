"""Every row of the table of drift detectors, held to the same promises; and what only the e-detector keeps."""

import builtins
import math
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.config import DetectorKind
from edge.detectors import DETECTORS, RING, chosen
from lineside.clock import NS
from lineside.errors import ConfigError
from lineside.reference import Reference

BUDGET = 30 * 86_400.0  # windows, one a second
LEARNED = 10_000
ROWS = sorted(DETECTORS)
RIVER = sorted(set(DETECTORS) - {"e-detector"})
CHANNELS = 2


def stream(count, seed):
    """Two channels: one that remembers, one that does not."""
    noise = np.random.default_rng(seed).normal(size=(count, CHANNELS))
    for k in range(1, count):
        noise[k, 0] = 0.5 * noise[k - 1, 0] + noise[k, 0] * math.sqrt(0.75)
    return noise


@pytest.fixture(scope="module")
def reference():
    times = np.arange(LEARNED, dtype=np.int64) * NS
    return Reference.fit(["slow", "quick"], stream(LEARNED, 1), times, NS)


def made(name, reference, weights=(0.5, 0.5)):
    return chosen(name)(reference, BUDGET, np.array(weights))


def heard(detector, rows, first=LEARNED):
    found = ((k, detector.hear(row, (first + k) * NS)) for k, row in enumerate(rows))
    return [(k, finding) for k, finding in found if finding]


def shifted(count, at, seed, size=3.0, channel=1):
    rows = stream(count, seed)
    rows[at:, channel] += size
    return rows


def test_the_device_file_offers_every_row():
    assert set(get_args(DetectorKind)) == set(DETECTORS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
@settings(max_examples=15)
@given(wild=st.lists(st.tuples(st.floats(width=32), st.one_of(st.just(math.nan), st.floats(-4, 4))), max_size=30))
def test_what_is_no_number_is_no_evidence_and_nothing_wild_is_an_error(reference, name, wild):
    detector = made(name, reference)
    for k, row in enumerate(wild):
        detector.hear(np.array(row), k * NS)
    before = detector.gauges()
    assert all(0 <= value <= 1 for value in before.values())
    for k in range(20):
        assert detector.hear(np.full(CHANNELS, np.nan), (len(wild) + k) * NS) is None
    assert detector.gauges() == pytest.approx(before)


@pytest.mark.parametrize("name", ROWS)
def test_a_channel_that_is_absent_from_the_beginning_leaves_the_other_at_work(reference, name):
    rows = shifted(800, 400, 2)
    rows[:, 0] = np.nan
    found = heard(made(name, reference), rows)
    assert {finding.channel for _, finding in found} == {"quick"}


@pytest.mark.parametrize("name", ROWS)
def test_a_shift_is_found_soon_and_told_with_channel_onset_effect_and_course(reference, name):
    at, finding = heard(made(name, reference), shifted(800, 500, 3))[0]
    assert 500 < at < 620
    assert finding.channel == "quick"
    assert 495 <= finding.onset_ns / NS - LEARNED <= at
    assert finding.effect == pytest.approx(3.0, abs=1.0)
    assert 16 <= len(finding.trace) <= 64
    assert np.mean(finding.trace[:4]) < 1.0
    assert np.mean(finding.trace[-2:]) > 2.0


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_a_channel_at_its_median_has_no_shift(reference, name):
    """River's see no change in it; the e-detector knows that stillness is one, of the spread, and says so."""
    still = np.tile(np.median(stream(LEARNED, 1), axis=0), (1_000, 1))
    found = heard(made(name, reference), still)
    assert bool(found) == (name == "e-detector")
    assert all(finding.effect == 0 for _, finding in found)


@pytest.mark.parametrize("name", ROWS)
def test_a_clock_that_jumps_is_harmless(reference, name):
    """Forward a day, back a year, standing still: never an error, never a finding, and a shift is found after it."""
    detector, rows = made(name, reference), stream(600, 4)
    jumps = {100: 86_400, 200: -31_536_000, 300: -1, 400: 7}
    second = LEARNED
    for k, row in enumerate(rows):
        second += 1 + jumps.get(k, 0)
        assert detector.hear(row, second * NS) is None
    assert heard(detector, shifted(300, 0, 5), second + 1)[0][1].channel == "quick"


@pytest.mark.parametrize("name", ROWS)
def test_a_restart_forgets_nothing(reference, name):
    """Within the last RING windows for river's, ever for the e-detector."""
    rows = shifted(RING, 330, 6)
    whole = heard(made(name, reference), rows)
    first, second = made(name, reference), made(name, reference)
    assert heard(first, rows[:334]) == []
    second.restore({key: array.copy() for key, array in first.state().items()})
    assert second.gauges() == first.gauges()
    found = [(334 + k, finding) for k, finding in heard(second, rows[334:], LEARNED + 334)]
    assert found == whole
    assert whole
    with pytest.raises(ValueError, match="other channels"):
        second.restore({})


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_a_restart_after_long_running_finds_the_same_change(reference, name):
    """What lies before the ring is lost to river's: the same channel, at about the same time."""
    rows = shifted(1_700, 1_400, 7)
    first, second = made(name, reference), made(name, reference)
    assert heard(first, rows[:1_400]) == []
    second.restore(first.state())
    (at, one), *_ = heard(first, rows[1_400:], LEARNED + 1_400)
    (later, other), *_ = heard(second, rows[1_400:], LEARNED + 1_400)
    assert other.channel == one.channel == "quick"
    assert abs(later - at) <= (0 if name == "e-detector" else 40)


@pytest.mark.parametrize("name", ROWS)
def test_after_a_finding_and_a_reset_it_begins_anew(reference, name):
    detector = made(name, reference)
    rows = shifted(700, 400, 8)
    for k, row in enumerate(rows):
        if detector.hear(row, (LEARNED + k) * NS):
            break
    assert set(detector.gauges().values()) == {0.0}
    heard(detector, shifted(5, 0, 9), LEARNED + 800)
    assert max(detector.gauges().values()) > 0
    detector.reset()
    assert set(detector.gauges().values()) == {0.0}
    assert heard(detector, stream(350, 10), LEARNED + 900) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_its_memory_is_flat(reference, name):
    detector = made(name, reference)
    heard(detector, stream(100, 11))
    before = {key: (array.shape, array.dtype) for key, array in detector.state().items()}
    heard(detector, stream(700, 12), LEARNED + 100)
    assert {key: (array.shape, array.dtype) for key, array in detector.state().items()} == before


@pytest.mark.parametrize("name", ROWS)
def test_no_channel_at_all_is_watched_without_an_error(name):
    nothing = Reference.fit([], np.zeros((10, 0)), np.arange(10, dtype=np.int64) * NS, NS)
    detector = made(name, nothing, ())
    assert heard(detector, np.zeros((20, 0))) == []
    assert detector.gauges() == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count"), [("e-detector", 20_000), ("adwin", 20_000), ("page-hinkley", 20_000), ("kswin", 2_000)]
)
def test_windows_as_learned_give_no_alarm(reference, name, count):
    assert heard(made(name, reference), stream(count, 13)) == []


def test_without_river_only_its_rows_are_refused_and_at_once(monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.partition(".")[0] == "river":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert chosen("e-detector") is DETECTORS["e-detector"]
    for name in RIVER:
        with pytest.raises(ConfigError, match=r"install lineside\[evaluation\]"):
            chosen(name)


def test_an_unknown_row_is_refused_by_name():
    with pytest.raises(ConfigError, match="'adwim' is none of e-detector, adwin, page-hinkley, kswin"):
        chosen("adwim")


@pytest.mark.parametrize(("one", "other"), [("adwin", "kswin"), ("kswin", "page-hinkley")])
def test_what_one_detector_keeps_means_the_same_to_another_of_river_s(reference, one, other):
    """Both play back scores, so that the row in the device file can be changed."""
    first, second = made(one, reference), made(other, reference)
    heard(first, stream(50, 14))
    second.restore(first.state())
    assert second.gauges() == first.gauges()

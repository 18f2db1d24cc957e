"""Slow change: what is ordinary for a channel, what a bet against it may win, and how soon a change is told."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.drift import LAWS, rhythm
from bench.drift import product as product_of
from lineside.clock import NS
from lineside.drift import Detector, Scores
from lineside.reference import (
    BET_WEIGHTS,
    CAP,
    KNOTS,
    LEAST,
    SLACK,
    Reference,
    independent,
    log_bets,
)
from lineside.trace import BEFORE, FARTHEST, FOLD, LEVELS, SLOTS, Trace

DAY_S = 86_400
BUDGET = 1e4


def times(count, first=0):
    return np.arange(first, first + count, dtype=np.int64) * NS


def reference(values, strata=None, first=0):
    values = np.asarray(values, float)
    rows = values if values.ndim == 2 else values[:, None]
    return Reference.fit([f"c{k}" for k in range(rows.shape[1])], rows, times(len(rows), first), NS, strata)


def ar(memory, count, rng):
    values, past = np.empty(count), rng.normal()
    for k, noise in enumerate(rng.normal(size=count) * math.sqrt(1 - memory**2)):
        past = values[k] = memory * past + noise
    return values


def alarms_of(detector, values, first, strata=None):
    rows = np.asarray(values, float)
    rows = rows if rows.ndim == 2 else rows[:, None]
    heard = (
        (k, detector.hear(row, (first + k) * NS, 0 if strata is None else strata[k])) for k, row in enumerate(rows)
    )
    return [(k, finding) for k, finding in heard if finding]


# Bets


def test_weights_are_a_whole_budget():
    assert BET_WEIGHTS.sum() == pytest.approx(1.0)
    assert len(BET_WEIGHTS) == log_bets(np.zeros(3)).shape[1]


def test_a_bet_is_worth_at_most_one_on_average_and_at_most_its_cap():
    """By quadrature over the normal law: each likelihood ratio has mean 1, less what the cap takes."""
    z = np.linspace(-12, 12, 200_001)
    density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    means = np.trapezoid(np.exp(log_bets(z)) * density[:, None], z, axis=0)
    assert (means <= 1 + 1e-9).all()
    assert (means > 0.4).all()
    assert np.exp(log_bets(z)).max() == pytest.approx(CAP)


@pytest.mark.parametrize("law", ["normal", "t(3)", "lognormal", "beta(2, 5)", "AR 0.5", "AR 0.9"])
def test_bets_are_worth_at_most_one_on_average_over_what_they_were_learned_from(law):
    """What is promised of the reference itself: no bet wins on the very law that it was learned from."""
    rng = np.random.default_rng(1)
    values, _ = LAWS[law].draw(rng, 20_000, 1, np.zeros(1))
    known = reference(values)
    deviation = known.deviation(values, times(len(values)), 0)[:, 0]
    residual = deviation[8:] - sum(known.memory[0, k] * deviation[7 - k : len(deviation) - 1 - k] for k in range(8))
    gains = np.exp(log_bets(known.score(residual[:, None])[:, 0]) - known.log_mean[0, 0])
    assert (gains.mean(axis=0) <= 1.0).all()
    assert (gains.mean(axis=0) > 0.8).all()


# What is ordinary


def test_normal_scores_of_the_reference_are_normal():
    values = np.random.default_rng(2).lognormal(size=20_000)
    known = reference(values)
    z = known.score(known.deviation(values[:, None], times(len(values)), 0))[:, 0]
    for p in (0.01, 0.2, 0.5, 0.9, 0.99):
        assert np.quantile(z, p) == pytest.approx(NormalDist().inv_cdf(p), abs=0.03)
    assert known.score(np.array([-1e9]))[0] >= -4
    assert known.score(np.array([1e9]))[0] <= 4
    assert known.knots.shape == (1, KNOTS)


@pytest.mark.parametrize("memory", [0.0, 0.5, 0.9])
def test_memory_is_found_and_its_price_told(memory):
    known = reference(ar(memory, 20_000, np.random.default_rng(3)))
    assert known.memory[0].sum() == pytest.approx(memory, abs=0.05)
    assert known.residual[0] == pytest.approx(math.sqrt(1 - memory**2), rel=0.05)


def test_a_reference_too_short_is_refused_with_how_long_it_must_be():
    rng = np.random.default_rng(4)
    known = reference(np.stack([rng.normal(size=500), ar(0.9, 500, rng), np.full(500, 3.0)], axis=1))
    assert known.names == ("c0",)
    assert "499 windows follow each other so closely that they are worth 39" in known.refused["c1"]
    assert f"at least {LEAST} are needed: learn 7.6 times as long" in known.refused["c1"]
    assert "never moved" in known.refused["c2"]
    gone = reference(np.full((50, 1), np.nan))
    assert gone.names == ()
    assert "0 windows are no reference" in gone.refused["c0"]


def test_rounding_is_no_spread():
    """A norm that is 1 by construction differs in its last digits; its own code path would make these an alarm."""
    values = 1 + 1e-7 * np.random.default_rng(5).normal(size=2_000)
    assert "never moved" in reference(values).refused["c0"]


@given(st.floats(0, 0.99), st.integers(1, 10**6))
def test_dependence_makes_windows_worth_less(memory, count):
    assert 0 < independent(count, memory) <= count
    assert independent(count, memory / 2) >= independent(count, memory)


# Live


def test_nothing_new_gives_no_alarm_and_a_shift_gives_one_with_onset_and_effect():
    rng = np.random.default_rng(6)
    known = reference(np.stack([ar(0.5, 10_000, rng), rng.normal(size=10_000)], axis=1))
    live = np.stack([ar(0.5, 3_000, rng), rng.normal(size=3_000)], axis=1)
    live[2_000:, 0] += 1.5
    detector = Detector(known, BUDGET)
    (at, found), *_ = alarms_of(detector, live, 20_000)
    assert 2_000 < at < 2_060
    assert found.channel == "c0"
    assert found.onset_ns / NS == pytest.approx(22_000, abs=15)
    assert found.effect == pytest.approx(1.5, abs=0.6)
    down = Detector(known, BUDGET)
    (_, found), *_ = alarms_of(down, live * [-1, 1], 20_000)
    assert found.effect == pytest.approx(-1.5, abs=0.6)


def test_a_large_shift_is_told_as_one_although_it_wins_as_much_on_a_wider_spread():
    rng = np.random.default_rng(19)
    detector = Detector(reference(rng.normal(size=10_000)), 2.6e6)
    (at, found), *_ = alarms_of(detector, rng.normal(size=200) + 3.0 * (np.arange(200) >= 100), 20_000)
    assert 100 < at < 115
    assert found.effect == pytest.approx(3.0, abs=0.7)


def test_a_change_of_spread_alone_is_told_without_an_effect():
    rng = np.random.default_rng(7)
    detector = Detector(reference(rng.normal(size=10_000)), BUDGET)
    (at, found), *_ = alarms_of(detector, np.r_[rng.normal(size=500), 3 * rng.normal(size=500)], 20_000)
    assert 500 < at < 540
    assert found.effect == 0
    still = Detector(reference(rng.normal(size=10_000)), BUDGET)
    (at, found), *_ = alarms_of(still, np.r_[rng.normal(size=500), 0.05 * rng.normal(size=500)], 20_000)
    assert 500 < at < 560
    assert found.effect == 0


def test_a_single_window_is_never_an_alarm():
    detector = Detector(reference(np.random.default_rng(8).normal(size=5_000)), BUDGET)
    assert detector.hear(np.array([1e12]), 9_000 * NS) is None
    assert detector.gauges()["c0"] < 0.3


@settings(max_examples=20)
@given(st.lists(st.one_of(st.floats(allow_nan=True, allow_infinity=True), st.floats(-3, 3)), max_size=40))
def test_wild_values_are_never_an_error_and_what_is_no_number_is_no_evidence(wild):
    detector = Detector(reference(np.random.default_rng(9).normal(size=2_000)), BUDGET)
    for k, value in enumerate(wild):
        detector.hear(np.array([value]), k * NS)
    assert 0 <= detector.gauges()["c0"] <= 1
    before = detector.state()["sums"].copy()
    detector.hear(np.array([np.nan]), len(wild) * NS)
    assert np.array_equal(detector.state()["sums"], before)


def test_after_a_gap_or_a_jump_of_the_clock_the_past_is_unknown_for_a_while():
    """A residual across a gap would be reckoned against a window of another hour."""
    rng = np.random.default_rng(10)
    values = ar(0.9, 10_000, rng)
    known = reference(values)
    detector = Detector(known, BUDGET)
    order = int((known.memory[0] != 0).sum())
    for k in range(20):
        detector.hear(values[k : k + 1], k * NS)
    for jump in (10_000, -86_400):
        before = detector.state()["sums"].copy()
        for k in range(order):
            detector.hear(values[k : k + 1], (20 + jump + k) * NS)
            assert np.array_equal(detector.state()["sums"], before)
        detector.hear(values[order : order + 1], (20 + jump + order) * NS)
        assert not np.array_equal(detector.state()["sums"], before)


def test_live_scores_are_those_of_the_reference():
    """Window by window as in bulk, with and without all values, across gaps."""
    rng = np.random.default_rng(20)
    strata = (np.arange(6_000) // 500) % 2
    rows = np.stack([ar(0.7, 6_000, rng), rng.lognormal(size=6_000), ar(0.3, 6_000, rng) + 2 * strata], axis=1)
    known = reference(rows, strata)
    rows[rng.random(rows.shape) < 0.02] = np.nan
    live = Scores(known)
    found = np.array(
        [live.hear(row, k * NS, int(stratum)) for k, (row, stratum) in enumerate(zip(rows, strata, strict=True))]
    )
    deviation = known.deviation(rows, times(6_000), strata)
    for k, memory in enumerate(known.memory):
        past = sum(memory[j] * np.roll(deviation[:, k], j + 1) for j in np.flatnonzero(memory))
        residual = np.where(np.arange(6_000) >= 8, deviation[:, k] - past, np.nan)
        assert np.array_equal(np.isnan(residual[8:]), np.isnan(found[8:, k]))
        same = np.isfinite(residual)
        scores = np.interp(residual[same], known.knots[k], known.levels[k])
        np.testing.assert_allclose(found[same, k], scores, atol=1e-9)


def test_an_absent_channel_leaves_the_others_at_work():
    rng = np.random.default_rng(11)
    detector = Detector(reference(rng.normal(size=(5_000, 2))), BUDGET)
    live = rng.normal(size=(400, 2)) + np.array([0, 1.5])
    live[:, 0] = np.nan
    (_, found), *_ = alarms_of(detector, live, 9_000)
    assert found.channel == "c1"


def test_a_restart_forgets_nothing():
    rng = np.random.default_rng(12)
    known = reference(ar(0.5, 5_000, rng))
    live = ar(0.5, 300, rng) + 0.8
    whole = alarms_of(Detector(known, BUDGET), live, 9_000)
    first, second = Detector(known, BUDGET), Detector(known, BUDGET)
    found = alarms_of(first, live[:20], 9_000)
    second.restore({name: value.copy() for name, value in first.state().items()})
    found += [(20 + k, finding) for k, finding in alarms_of(second, live[20:], 9_020)]
    assert found == whole
    assert whole
    with pytest.raises(ValueError, match="other channels"):
        second.restore({})


# Rhythm


@pytest.mark.slow
def test_the_course_of_the_day_and_the_product_are_ordinary():
    rng = np.random.default_rng(13)
    seconds = np.arange(DAY_S + 20_000)
    values = rng.normal(size=len(seconds)) + rhythm(seconds)
    strata = product_of(seconds)
    known = reference(values[:DAY_S], strata[:DAY_S])
    live, states = values[DAY_S:], strata[DAY_S:]
    assert alarms_of(Detector(known, 2.6e6), live, DAY_S, states) == []
    blind = reference(values[:DAY_S])  # takes the change of product for memory, and sees little through it
    assert known.memory[0].sum() < 0.1
    assert blind.memory[0].sum() > 0.6
    shifted = live + 1.0 * (np.arange(len(live)) > 10_000)
    (at, _), *_ = alarms_of(Detector(known, 2.6e6), shifted, DAY_S, states)
    assert 10_000 < at < 10_100


@pytest.mark.slow
def test_a_course_of_the_day_is_learned_only_where_there_is_one():
    """One that is fitted to chance lasts for hours, and would be told as drift the next day."""
    rng, seconds = np.random.default_rng(18), np.arange(DAY_S)
    assert not reference(rng.lognormal(size=DAY_S)).daily.any()
    assert not reference(ar(0.9, DAY_S, rng)).daily.any()
    day = 0.3 * np.sin(2 * np.pi * seconds / DAY_S)
    found = reference(rng.normal(size=DAY_S) + day)
    assert found.daily[0, 0] == pytest.approx(0.3, abs=0.02)
    sure = reference(rng.normal(size=DAY_S))
    assert (found.log_mean[0, 0, :8] > sure.log_mean[0, 0, :8] + 1e-3).all()  # what is known with an error wins less


def test_a_state_never_seen_is_no_evidence():
    rng = np.random.default_rng(14)
    strata = np.zeros(5_000, np.int64)
    strata[:10] = 1  # too few to be known
    detector = Detector(reference(rng.normal(size=5_000), strata), BUDGET)
    assert alarms_of(detector, np.full(500, 9.0), 9_000, np.ones(500, int)) == []
    assert detector.gauges()["c0"] == 0


def test_a_number_beyond_the_states_is_a_state_never_seen():
    detector = Detector(reference(np.random.default_rng(21).normal(size=2_000)), BUDGET)
    for stratum in (-1, 1, 99):
        assert alarms_of(detector, np.full(100, 9.0), 9_000, np.full(100, stratum)) == []
    assert detector.gauges()["c0"] == 0


def test_a_channel_that_stood_still_in_one_state_is_not_watched_there():
    """Its spread there is rounding: whatever came later would be many spreads away."""
    rng = np.random.default_rng(22)
    strata = np.arange(4_000) % 2
    values = np.where(strata == 1, 5.0 + 1e-9 * rng.normal(size=4_000), rng.normal(size=4_000))
    known = reference(values, strata)
    assert known.seen(0).tolist() == [True]
    assert known.seen(1).tolist() == [False]
    assert alarms_of(Detector(known, BUDGET), np.full(500, 6.0), 9_000, np.ones(500, int)) == []


def test_states_too_many_to_be_known_are_no_reference():
    rng = np.random.default_rng(23)
    known = reference(rng.normal(size=900), np.arange(900) % 12)
    assert "in no state did it move for as long as 100 windows" in known.refused["c0"]


# The course that is shown with a finding


def means_of(values, span):
    """Means of means of ... FOLD values each, where a span with gaps counts as much as one without."""
    course = np.clip(values, -FARTHEST, FARTHEST)
    while span > 1:
        whole = course[: len(course) // FOLD * FOLD].reshape(-1, FOLD)
        known = np.isfinite(whole)
        with np.errstate(invalid="ignore"):
            course = np.where(known, whole, 0.0).sum(axis=1) / known.sum(axis=1)
        span //= FOLD
    return course


@settings(max_examples=40)
@given(
    st.lists(st.one_of(st.floats(-3, 3), st.floats(allow_infinity=False, width=32)), min_size=1, max_size=60),
    st.integers(1, 30),
    st.integers(1, 10_000),
)
def test_a_course_is_of_equal_spans_up_to_now(some, times_over, since):
    values = np.tile(np.array(some), times_over)
    trace = Trace(1)
    for value in values:
        trace.hear(np.array([value]))
    shown = trace.of(0, since)
    wanted = since + max(BEFORE, since // 2)
    span = next(FOLD**k for k in range(LEVELS) if SLOTS * FOLD**k >= wanted)
    expected = means_of(values, span)[-min(SLOTS, -(-wanted // span)) :]
    assert len(shown) <= SLOTS
    np.testing.assert_allclose(shown, expected[np.isfinite(expected)], rtol=1e-9, atol=1e-9)


def test_a_finding_shows_the_course_from_before_its_onset_also_over_a_restart():
    rng = np.random.default_rng(24)
    known = reference(ar(0.5, 10_000, rng))
    live = ar(0.5, 2_000, rng) + 1.0 * (np.arange(2_000) >= 1_000)
    first, second = Detector(known, 2.6e6), Detector(known, 2.6e6)
    assert alarms_of(first, live[:1_020], 20_000) == []
    second.restore(first.state())
    (_, found), *_ = alarms_of(second, live[1_020:], 21_020)
    assert len(found.trace) <= SLOTS
    assert np.mean(found.trace[:4]) < 0.6
    assert np.mean(found.trace[-4:]) == pytest.approx(1.0, abs=0.6)
    assert alarms_of(first, live[1_020:], 21_020)[0][1] == found


def test_what_is_kept_is_a_copy_of_fixed_size():
    rng = np.random.default_rng(25)
    detector = Detector(reference(rng.normal(size=(2_000, 3))), BUDGET)
    alarms_of(detector, rng.normal(size=(50, 3)), 9_000)
    kept = detector.state()
    before = {name: array.copy() for name, array in kept.items()}
    alarms_of(detector, rng.normal(size=(500, 3)), 9_050)
    for name, array in kept.items():
        assert np.array_equal(array, before[name], equal_nan=array.dtype == float)
        assert detector.state()[name].nbytes == array.nbytes


# The promise


@pytest.mark.slow
@pytest.mark.parametrize("law", ["normal", "t(3)", "lognormal", "AR 0.5"])
def test_false_alarms_are_further_apart_than_the_budget(law):
    """At a small budget, where there are enough to count: 30 000 windows at 1 alarm in 1000."""
    rng = np.random.default_rng(15)
    learned, past = LAWS[law].draw(rng, DAY_S // 4, 1, np.zeros(1))
    values, _ = LAWS[law].draw(rng, 30_000, 1, past)
    found = alarms_of(Detector(reference(learned), 1_000), values, DAY_S)
    assert len(found) <= 30_000 / 1_000
    assert SLACK == 3.0


@pytest.mark.slow
def test_many_channels_share_one_budget():
    rng = np.random.default_rng(16)
    detector = Detector(reference(rng.normal(size=(20_000, 12))), 1_000)
    assert len(alarms_of(detector, rng.normal(size=(10_000, 12)), 30_000)) <= 10


def test_the_bench_s_sums_are_the_detector_s():
    """The streams of bench.drift run side by side; one of them alone through the detector gives the same sums."""
    rng = np.random.default_rng(17)
    known = reference(ar(0.5, 5_000, rng))
    live = ar(0.5, 60, rng)
    detector = Detector(known, 1e9)
    alarms_of(detector, live, 9_000)
    from bench.drift import _gains

    sums = np.zeros(len(BET_WEIGHTS))
    order = int((known.memory[0] != 0).sum())
    for gain in np.exp(_gains(known, "AR 0.5", live[:, None], 9_000 + 8, 52))[:, 0]:
        sums = (sums + 1) * gain
    late = Detector(known, 1e9)
    alarms_of(late, live[8 - order :], 9_000 + 8 - order)
    np.testing.assert_allclose(late.state()["sums"][0], sums, rtol=1e-9)

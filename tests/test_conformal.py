"""P-values of scores: lineside.conformal, and the bench that holds it to its word."""

import itertools
import math
import warnings
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bench import calibration as bench
from lineside.conformal import P_FLOOR, Calibration, Tail, beta_upper, windows_needed

level = st.floats(-1e6, 1e6, allow_subnormal=False)
some_scores = st.lists(level, min_size=1, max_size=60)
laws = st.sampled_from(["normal", "lognormal", "beta(2, 5)", "t(3)"])


@pytest.fixture(autouse=True)
def no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("default", ResourceWarning)  # of what another test left behind
        yield


def calibrated(law, n, seed):
    return Calibration.fit(bench.LAWS[law].draw(np.random.default_rng(seed), n))


@given(st.lists(st.integers(-5, 5).map(float) | level, min_size=2, max_size=25))
def test_of_exchangeable_scores_at_most_k_have_a_p_value_up_to_k_of_them(scores):
    """Exact validity: whichever of n + 1 scores came last, ties or none, at most k of them get p <= k / (n + 1)."""
    p = [Calibration.fit(np.delete(scores, i)).p_value(scores[i]) for i in range(len(scores))]
    for k in range(1, len(scores) + 1):
        assert sum(value <= k / len(scores) for value in p) <= k


@given(some_scores, level)
def test_inside_the_calibration_set_p_counts_and_nothing_else(scores, score):
    assume(score <= max(scores))
    at_least = sum(one >= score for one in scores)
    assert Calibration.fit(np.array(scores)).p_value(score) == float(Fraction(1 + at_least, 1 + len(scores)))


@given(some_scores, st.lists(level, min_size=2, max_size=20))
def test_a_stranger_score_never_has_a_larger_p_nor_a_larger_bound(scores, asked):
    calibration = Calibration.fit(np.array(scores))
    for measure in (calibration.p_value, calibration.p_upper):
        p = [measure(score) for score in sorted(asked)]
        assert all(b <= a * (1 + 1e-9) for a, b in itertools.pairwise(p))
        assert all(P_FLOOR <= value <= 1 for value in p)


@given(laws, st.integers(2, 400), st.integers(0, 99))
def test_beyond_the_largest_score_farther_is_strictly_stranger_until_the_floor(law, n, seed):
    calibration = calibrated(law, n, seed)
    largest, step = calibration.scores[-1], np.std(calibration.scores) / 5
    p = [calibration.p_value(largest + i * step) for i in range(1, 200)]
    assert p[0] < calibration.reach
    assert all(b < a or b == P_FLOOR for a, b in itertools.pairwise(p))


@given(laws, st.integers(2, 400), st.integers(0, 99), st.floats(0.6, 0.999))
def test_p_and_its_bound_are_continuous_where_counting_ends(law, n, seed, confidence):
    calibration = calibrated(law, n, seed)
    largest = float(calibration.scores[-1])
    just_beyond = largest + 1e-9 * float(np.ptp(calibration.scores))
    assert calibration.p_value(just_beyond) == pytest.approx(calibration.reach, rel=1e-4)
    assert calibration.p_upper(just_beyond, confidence) == pytest.approx(
        max(calibration.reach, 1 - (1 - confidence) ** (1 / n)), rel=1e-4
    )


@given(laws, st.integers(1, 300), st.integers(0, 99), st.floats(1e-3, 1e3), st.floats(-1e3, 1e3), st.floats(-1, 4))
def test_units_do_not_matter(law, n, seed, scale, offset, where):
    calibration = calibrated(law, n, seed)
    spread = float(np.ptp(calibration.scores))
    assume(n > 1 and spread * scale > 1e-3 * abs(offset))
    score = float(calibration.scores[-1]) + where * spread
    moved = Calibration.fit(offset + scale * calibration.scores)
    beyond = where > 1e-6
    assume(beyond or np.abs(calibration.scores - score).min() > 1e-6 * spread)
    for one, other in ((calibration.p_value, moved.p_value), (calibration.p_upper, moved.p_upper)):
        assert other(offset + scale * score) == pytest.approx(one(score), rel=1e-3, abs=2 * P_FLOOR)


@given(some_scores, level, st.floats(0.51, 0.999), st.floats(0.51, 0.999))
def test_the_bound_is_never_below_p_and_grows_with_confidence(scores, score, some, more):
    calibration = Calibration.fit(np.array(scores))
    less, most = sorted((some, more))
    bounds = calibration.p_upper(score, less), calibration.p_upper(score, most)
    assert calibration.p_value(score) <= bounds[0] <= bounds[1] * (1 + 1e-9)
    assert bounds[1] <= 1


def binomial_at_most(hits, n, p):
    return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(hits + 1))


@pytest.mark.slow
@given(st.integers(1, 80), st.data(), st.floats(0.6, 0.999))
def test_beta_upper_solves_the_binomial_equation(n, data, confidence):
    hits = data.draw(st.integers(0, n - 1))
    assert binomial_at_most(hits, n, beta_upper(hits, n, confidence)) == pytest.approx(1 - confidence, rel=1e-3)


@given(some_scores, st.data())
def test_inside_the_bound_is_the_binomial_one_for_as_many_scores_as_are_stranger(scores, data):
    score = data.draw(st.sampled_from(scores))
    at_least, bound = sum(one >= score for one in scores), Calibration.fit(np.array(scores)).p_upper(score, 0.9)
    if at_least < len(scores):
        assert binomial_at_most(at_least, len(scores), bound) == pytest.approx(0.1, rel=1e-3)
    else:
        assert bound == 1


@pytest.mark.parametrize("shape", [-0.2, 1e-6, 0.3])
@pytest.mark.parametrize("gone", [0.1, 0.01])
def test_the_tail_of_a_generalised_pareto_law_is_found(shape, gone):
    """Where the law has faded to `gone` of what it was at the largest excess, the fit says so, or is more careful."""
    said, bounds = [], []
    for seed in range(40):
        u = np.random.default_rng(seed).uniform(size=400)
        excesses = np.sort((u**-shape - 1) / shape)
        tail, largest = Tail.fit(excesses), float(excesses[-1])
        beyond = (gone**-shape - 1) * (1 / shape + largest)
        said.append(math.log(tail.fading(beyond)))
        bounds.append(tail.fading_upper(beyond, 0.95) >= gone)
        assert tail.fading_upper(beyond, 0.5) < tail.fading_upper(beyond, 0.95) < tail.fading_upper(beyond, 0.99) < 1
    assert 0.7 < np.median(said) / math.log(gone) < 1.15  # what is not known makes it heavier, never much lighter
    assert np.mean(bounds) >= 0.85


def test_a_known_shape_fades_as_its_closed_form():
    """One member, theta = 1 / 2 at an excess of 2: S(x | 2) = (4 + x) / 4 to the power of minus Gamma(3) / total."""
    tail = Tail(3, np.array([0.25]), np.array([1.5]), np.array([1.0]))
    assert tail.fading(0) == 1
    assert tail.fading(4) == pytest.approx((1 + math.log(2) / 1.5) ** -3)
    draws = 2 ** (-np.random.default_rng(0).gamma(3, 1 / 1.5, 20_000))
    assert tail.fading(4) == pytest.approx(draws.mean(), rel=0.02)
    assert tail.fading_upper(4, 0.5) == pytest.approx(np.median(draws), rel=0.02)


@pytest.mark.parametrize("strange", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_is_as_strange_as_can_be(strange):
    calibration = Calibration.fit(np.arange(50.0))
    assert calibration.p_value(strange) == calibration.p_upper(strange) == P_FLOOR
    assert calibration.evidence(strange) == pytest.approx(-math.log(P_FLOOR))


@pytest.mark.parametrize("scores", [[], [1.0, math.nan], [math.inf], [-math.inf, 0.0]])
def test_calibration_refuses_what_is_not_finite(scores):
    with pytest.raises(ValueError, match="finite"):
        Calibration.fit(np.array(scores))


@pytest.mark.parametrize("scores", [[3.0], [0.0] * 50, [-1.0] * 50, [0.0] * 49 + [5e-324], [-1e300, 1e300]])
def test_scores_that_hardly_vary_or_vary_beyond_measure_still_rank(scores):
    calibration = Calibration.fit(np.array(scores))
    largest = max(scores)
    p = [calibration.p_value(score) for score in (largest, largest + 1e-3, largest + 1e3, 1e308)]
    assert p[0] == (1 + scores.count(largest)) / (len(scores) + 1)
    assert all(b <= a for a, b in itertools.pairwise(p))


@pytest.mark.parametrize("at", [0.0, 1.0, -1.0, 1e4])
def test_the_rounding_of_a_constant_is_not_strange_but_a_step_is(at):
    """Embeddings of a covered lens differ in the last bits of float32 only."""
    calibration = Calibration.fit(np.full(999, at))
    rounding = 1e-8 * max(abs(at), 1)
    assert calibration.p_value(at + rounding) > 0.9 * calibration.reach
    assert calibration.p_value(at + 1e4 * rounding) < 0.1 * calibration.reach


def test_ties_at_the_top_leave_a_tail_to_extrapolate():
    calibration = Calibration.fit(np.repeat([0.0, 1.0, 2.0], [100, 50, 50]))
    assert calibration.p_value(2.0) == 51 / 201
    assert P_FLOOR < calibration.p_value(3.0) < calibration.p_value(2.5) < 1 / 201


def test_few_windows_make_a_far_score_less_sure():
    """A short bounded tail is where extrapolation raises false alarms: five excesses know little, 500 know more."""
    n = 400
    calm = [calibrated("beta(2, 5)", n, seed) for seed in range(100)]
    assert all(one.p_value(1.0) > 1e-10 for one in calm)  # though no score of this law is larger
    few = np.median([calibrated("normal", 40, seed).p_value(6.0) for seed in range(50)])
    many = np.median([calibrated("normal", 4000, seed).p_value(6.0) for seed in range(50)])
    assert many < few / 10


def test_the_level_that_windows_support_is_told():
    hour = Calibration.fit(np.arange(3600.0))
    assert hour.reach == 1 / 3601
    assert hour.supports(1e-3)
    assert not hour.supports(1e-4)
    assert "9999 windows" in hour.told(1e-4)
    assert "at most 0.0017 " in hour.told(1e-3)
    with pytest.raises(ValueError, match="3600 normal windows support p-values down to"):
        hour.realised_upper(1e-4)
    for wrong in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="between 0 and 1"):
            windows_needed(wrong)
    with pytest.raises(ValueError, match="confidence"):
        hour.p_upper(1.0, 0.5)


@given(st.floats(1e-4, 0.9))
def test_as_many_windows_as_are_needed_are_enough_and_hardly_more(alpha):
    needed = windows_needed(alpha)
    assert Calibration.fit(np.zeros(needed)).supports(alpha)
    assert 1 / max(1, needed - 1) > alpha


def test_the_rate_of_alarms_exceeds_its_bound_as_seldom_as_said():
    rate = [bench.normal_survival(bench.by_conformal(calibrated("normal", 500, seed), 0.02)) for seed in range(800)]
    bound = calibrated("normal", 500, 0).realised_upper(0.02)
    assert np.mean(np.array(rate) > bound) == pytest.approx(0.05, abs=0.025)
    assert np.mean(rate) <= 0.02 * 1.03


@pytest.mark.slow
def test_realised_false_alarms_of_20_000_normals_are_as_many_as_told():
    rows = {(row.method, row.target): row for row in bench.measure("normal", 20_000, repetitions=100)}
    assert rows["p_value", 1e-3].mean <= 1.05
    assert rows["p_value", 1e-3].p95 <= 1.5
    assert rows["conformal", 1e-5].mean is None
    assert rows["p_value", 1e-5].mean < 0.5 * rows["empirical quantile", 1e-5].mean
    assert rows["p_upper (95 %)", 1e-5].p95 < 1.5
    assert rows["p_upper (95 %)", 1e-5].mean < rows["p_value", 1e-5].mean


@pytest.mark.parametrize("law", bench.LAWS)
def test_closed_forms_of_the_bench_agree_with_its_draws(law):
    draw, survival = bench.LAWS[law]
    scores = np.sort(draw(np.random.default_rng(0), 40_000))
    for share in (0.5, 0.1, 0.01):
        found = survival(float(scores[-int(share * len(scores))]))
        assert found == pytest.approx(share, abs=4 * math.sqrt(share / len(scores)))


def test_the_table_has_a_line_for_each_law_size_and_target():
    rows = bench.measure("t(3)", 2000, repetitions=3)
    lines = bench.table(rows).splitlines()
    assert len(lines) == 2 + len(bench.TARGETS)
    assert "refuses" in lines[-1]
    assert "refuses" not in lines[2]

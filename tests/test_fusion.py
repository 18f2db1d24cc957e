"""Normal running, p-values and contributions: lineside.coreset, conformal, shapley, fusion."""

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lineside import shapley
from lineside.conformal import P_FLOOR, Calibration
from lineside.coreset import Coreset, distances, k_center
from lineside.fusion import MIN_MOMENTS, Encoded, Normal
from lineside.sequential import e_value

evidence = st.floats(0, 30, allow_nan=False)


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def normal_running(n=400, seed=0, noise=0.15):
    """Two sensors that see one latent state, so that they agree."""
    rng = np.random.default_rng(seed)
    state = rng.normal(size=(n, 4)) @ np.random.default_rng(99).normal(size=(4, 16))
    seen = {name: unit(state + noise * rng.normal(size=state.shape) * 4) for name in ("cam0", "mic0")}
    return {name: Encoded(rows, rows) for name, rows in seen.items()}


def at(running, i):
    """One moment of many."""
    return {name: Encoded(both.embedding[i], both.features[i]) for name, both in running.items()}


@given(st.integers(2, 40), st.integers(1, 12), st.integers(0, 1000))
def test_k_center_covers_within_twice_the_best_radius(n, size, seed):
    points = np.random.default_rng(seed).normal(size=(n, 2)).astype(np.float32)
    chosen = k_center(points, size)
    radius = distances(points, points[chosen]).max()
    if n <= 10 and size <= 3:
        best = min(distances(points, points[list(c)]).max() for c in combinations(range(n), min(size, n)))
        assert radius <= 2 * best + 1e-5
    assert len(set(chosen.tolist())) == len(chosen) <= min(size, n)


def test_a_small_step_off_the_beaten_track_is_farther_than_a_large_one_along_it():
    rng = np.random.default_rng(3)
    track = rng.normal(size=(200, 2)) @ rng.normal(size=(2, 32)) + 0.01 * rng.normal(size=(200, 32))
    known = Coreset.fit(track[:150].astype(np.float32), 64)
    along = 2 * track[150:]
    off = track[150:] + 0.5 * rng.normal(size=32)
    assert np.linalg.norm(off - track[150:], axis=1).mean() < np.linalg.norm(along - track[150:], axis=1).mean()
    assert np.median(known.distances(off.astype(np.float32))) > 2 * np.median(known.distances(along.astype(np.float32)))


def test_conformal_p_values_are_valid_and_order_scores():
    rng = np.random.default_rng(1)
    alpha, rates = 0.05, []
    for _ in range(200):
        calibration = Calibration.fit(rng.normal(size=199))
        rates.append(np.mean([calibration.p_value(s) <= alpha for s in rng.normal(size=50)]))
    assert np.mean(rates) == pytest.approx(alpha, abs=0.01)
    calibration = Calibration.fit(rng.normal(size=199))
    p = [calibration.p_value(s) for s in np.linspace(-5, 40, 300)]
    assert all(a >= b for a, b in pairwise(p))
    assert p[-1] < 1e-4  # the tail goes on beyond 1 / (n + 1)


def test_a_score_that_is_no_number_is_as_strange_as_can_be():
    assert Calibration.fit(np.arange(50.0)).p_value(float("nan")) == P_FLOOR


def test_calibration_refuses_what_is_not_finite():
    with pytest.raises(ValueError, match="finite"):
        Calibration.fit(np.array([1.0, np.nan]))


@given(
    st.dictionaries(st.sampled_from("abcde"), evidence, min_size=1, max_size=5),
    st.dictionaries(st.sampled_from(list(combinations("abcde", 2))), evidence, max_size=10),
)
def test_closed_form_equals_exact_shapley(singles, pairs):
    pairs = {pair: value for pair, value in pairs.items() if set(pair) <= set(singles)}

    def value(members):
        inside = sum(v for pair, v in pairs.items() if set(pair) <= members)
        return sum(singles[m] for m in members) + inside

    closed, oracle = shapley.of_evidence(singles, pairs), shapley.exact(list(singles), value)
    assert closed == pytest.approx(oracle, abs=1e-9)
    assert sum(closed.values()) == pytest.approx(value(frozenset(singles)), abs=1e-9)


def test_fused_p_values_of_new_normal_moments_keep_their_level():
    p = []
    for seed in range(4):
        normal, fresh = Normal.fit(normal_running(400, seed=seed), 64), normal_running(150, seed=seed + 10)
        p += [normal.judge(at(fresh, i)).p_value for i in range(150)]
    assert np.mean(np.array(p) <= 0.05) <= 0.08
    assert np.mean(np.array(p) <= 0.5) == pytest.approx(0.5, abs=0.1)
    assert np.mean([e_value(one) for one in p]) <= 1.05  # or weak evidence would gather by itself


def test_a_strange_picture_is_blamed_on_the_camera():
    normal = Normal.fit(normal_running(), 64)
    moment = at(normal_running(seed=2), 0)
    strange = unit(np.random.default_rng(5).normal(size=(1, 16)))[0]
    moment["cam0"] = Encoded(strange, strange)
    judged = normal.judge(moment)
    assert judged.p_value < 0.05
    assert max(judged.contributions, key=judged.contributions.get) == "cam0"
    assert sum(judged.contributions.values()) == pytest.approx(judged.evidence)
    assert judged.without["cam0"] > 0.05  # without the camera the moment would be ordinary


def test_sensors_that_do_not_belong_together_are_strange_though_each_is_normal():
    running = normal_running(seed=3)
    normal = Normal.fit(running, 64)
    mixed = [normal.judge(at(running, i) | {"mic0": at(running, -i - 1)["mic0"]}).p_value for i in range(150)]
    paired = [normal.judge(at(running, i)).p_value for i in range(150)]
    assert np.median(mixed) < 0.1 < np.median(paired)


def test_an_absent_sensor_makes_a_smaller_game_with_its_own_calibration():
    normal = Normal.fit(normal_running(), 64)
    judged = normal.judge({"mic0": at(normal_running(seed=4), 0)["mic0"]})
    assert list(judged.contributions) == ["mic0"]
    assert judged.without == {}
    assert normal.judge({}) is None


def test_moments_with_gaps_are_used_and_too_few_are_refused():
    running = normal_running(n=MIN_MOMENTS + 20)
    running["cam0"].features[:10] = np.nan
    assert Normal.fit(running, 16).judge({"mic0": at(running, 0)["mic0"]}) is not None
    running["cam0"].features[:] = np.nan
    with pytest.raises(ValueError, match="cam0: 0 normal windows"):
        Normal.fit(running, 16)


def test_what_is_nearest_is_told_by_the_number_of_its_moment():
    running = normal_running(n=MIN_MOMENTS + 20)
    running["cam0"].features[:10] = np.nan
    seen, numbers = at(running, 30)["cam0"], np.arange(len(running["cam0"].features)) * 2 + 1000
    assert Normal.fit(running, 1000).nearest("cam0", seen) == 30
    assert Normal.fit(running, 1000, numbers).nearest("cam0", seen) == 1060
    few = Normal.fit(running, 8)
    kept = {int(each) for each in few.moments["cam0"][few.coresets["cam0"].taken]}
    assert len(kept) == 8
    assert min(kept) >= 10
    assert {few.nearest("cam0", at(running, i)["cam0"]) for i in range(10, 60)} == kept  # each is nearest to itself


def test_a_p_value_beyond_what_normal_windows_count_comes_with_its_bound():
    normal = Normal.fit(normal_running(), 64)
    far = -100 * at(normal_running(), 0)["cam0"].features
    beyond = normal.judge({"cam0": Encoded(far, far)})
    assert beyond.p_value < normal.fused[frozenset({"cam0"})].reach
    assert beyond.p_value < beyond.p_upper < 0.1
    within = [normal.judge(at(normal_running(), i)) for i in range(40)]
    assert any(one.p_upper is None for one in within)
    assert all(one.p_upper is None or one.p_upper >= one.p_value for one in within)

"""What each sensor contributed, of one window (lineside.shapley) and of late (lineside.contribution)."""

import doctest
import io
import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lineside import contribution, shapley
from lineside.contribution import LEAST_WINDOWS, MOST_STRATA, Aggregate, Contributions, Summary

NAMES = ("cam0", "mic0", "vib0", "cur0", "tmp0")
SEEDS = st.integers(0, 10_000)
EXACT = 1e-12


def game(seed, sensors=None, classes=None, spread=3.0):
    """Logits of some sensors, an uneven prior, and the number of a class: wild, but of one seed."""
    rng = np.random.default_rng(seed)
    count = rng.integers(1, 6) if sensors is None else sensors
    classes = int(rng.integers(2, 8)) if classes is None else classes
    logits = {name: spread * rng.normal(size=classes) for name in NAMES[:count]}
    return logits, np.log(rng.dirichlet(np.ones(classes))), int(rng.integers(classes))


def value_of(logits, log_prior, label):
    """v(S) written out, slowly: the game's own definition, for the oracle."""

    def p(members):
        total = [log_prior[c] + sum(logits[m][c] for m in members) for c in range(len(log_prior))]
        weights = [math.exp(one - max(total)) for one in total]
        return max(weights[label] / sum(weights), 1e-6)

    return lambda members: math.log(p(members)) - math.log(p(frozenset()))


# One window, state logits


@given(SEEDS)
def test_state_contributions_equal_those_of_the_oracle_that_walks_all_coalitions(seed):
    logits, prior, label = game(seed, spread=8.0)
    found = shapley.of_logits(logits, prior, label)
    value = value_of(logits, prior, label)
    assert found.contributions == pytest.approx(shapley.exact(list(logits), value), abs=1e-9)
    assert found.value == pytest.approx(value(frozenset(logits)), abs=1e-9)
    for m in logits:
        assert found.solo[m] == pytest.approx(value(frozenset({m})), abs=1e-9)
        assert found.loss[m] == pytest.approx(found.value - value(frozenset(logits) - {m}), abs=1e-9)
    assert found.cooperation == pytest.approx(found.value - sum(value(frozenset({m})) for m in logits), abs=1e-9)


@given(SEEDS, st.floats(0.1, 100))
def test_efficiency_contributions_sum_to_what_all_say_together(seed, spread):
    logits, prior, _ = game(seed, spread=spread)
    found = shapley.of_logits(logits, prior)
    assert abs(sum(found.contributions.values()) - found.value) <= EXACT
    assert found.coalitions[0] == 0.0
    assert len(found.coalitions) == 2 ** len(logits)


@given(SEEDS)
def test_symmetry_sensors_that_say_the_same_contribute_the_same(seed):
    logits, prior, label = game(seed, sensors=4)
    logits["mic0"] = logits["cur0"].copy()
    found = shapley.of_logits(logits, prior, label).contributions
    assert abs(found["mic0"] - found["cur0"]) <= EXACT


@given(SEEDS, st.floats(-1e6, 1e6))
def test_dummy_a_sensor_with_the_same_logit_for_every_class_contributes_nothing(seed, level):
    logits, prior, label = game(seed, sensors=3)
    without = shapley.of_logits({name: row for name, row in logits.items() if name != "mic0"}, prior, label)
    found = shapley.of_logits(logits | {"mic0": np.full(len(prior), level)}, prior, label)
    assert found.contributions["mic0"] == pytest.approx(0.0, abs=EXACT)
    assert found.solo["mic0"] == found.loss["mic0"] == 0.0
    for name in ("cam0", "vib0"):
        assert found.contributions[name] == pytest.approx(without.contributions[name], abs=EXACT)


@given(SEEDS, st.floats(-1e4, 1e4), st.floats(-1e4, 1e4))
def test_a_constant_added_to_logits_or_prior_changes_nothing(seed, added, to_prior):
    logits, prior, label = game(seed)
    plain = shapley.of_logits(logits, prior, label)
    moved = shapley.of_logits(logits | {"cam0": logits["cam0"] + added}, prior + to_prior, label)
    assert moved.contributions == pytest.approx(plain.contributions, abs=1e-9)


@given(SEEDS)
def test_one_sensor_contributes_all_of_it(seed):
    logits, prior, _ = game(seed, sensors=1)
    found = shapley.of_logits(logits, prior)
    assert found.contributions["cam0"] == found.value == found.solo["cam0"] == found.loss["cam0"]
    assert found.cooperation == 0.0


@given(SEEDS)
def test_the_order_of_sensors_and_the_names_of_classes_do_not_matter(seed):
    logits, prior, label = game(seed)
    plain = shapley.of_logits(logits, prior, label)
    back = shapley.of_logits(dict(reversed(logits.items())), prior, label)
    mirrored = {name: row[::-1] for name, row in logits.items()}
    swapped = shapley.of_logits(mirrored, prior[::-1], len(prior) - 1 - label)
    assert back.contributions == pytest.approx(plain.contributions, abs=EXACT)
    assert swapped.contributions == pytest.approx(plain.contributions, abs=EXACT)
    assert back.interactions() == pytest.approx({(b, a): v for (a, b), v in plain.interactions().items()}, abs=1e-9)


@given(SEEDS)
def test_two_copies_share_evenly_and_neither_is_missed_as_much_as_it_says(seed):
    logits, _, _ = game(seed, sensors=1)
    found = shapley.of_logits({"cam0": logits["cam0"], "copy": logits["cam0"]}, np.zeros(len(logits["cam0"])))
    assert found.contributions["cam0"] == pytest.approx(found.value / 2, abs=EXACT)
    assert found.contributions["copy"] == pytest.approx(found.value / 2, abs=EXACT)
    assert found.loss["cam0"] < found.solo["cam0"]
    assert found.cooperation < 0
    assert found.interactions()["cam0", "copy"] < 0


@given(SEEDS)
def test_pair_interactions_are_what_a_pair_says_beyond_its_two_sensors(seed):
    logits, prior, label = game(seed)
    value, n = value_of(logits, prior, label), len(logits)
    found = shapley.of_logits(logits, prior, label).interactions()
    assert list(found) == list(combinations(logits, 2))
    for i, j in found:
        others = [name for name in logits if name not in (i, j)]
        slow = 0.0
        for size in range(n - 1):
            weight = math.factorial(size) * math.factorial(n - size - 2) / math.factorial(n - 1)
            for s in map(frozenset, combinations(others, size)):
                slow += weight * (value(s | {i, j}) - value(s | {i}) - value(s | {j}) + value(s))
        assert found[i, j] == pytest.approx(slow, abs=1e-9)


def test_the_class_is_the_one_all_name_unless_the_truth_is_known():
    logits = {"cam0": np.array([3.0, 0.0, 0.0]), "mic0": np.array([0.0, 1.0, 0.0])}
    named, true = shapley.of_logits(logits, np.zeros(3)), shapley.of_logits(logits, np.zeros(3), 1)
    assert (named.label, true.label) == (0, 1)
    assert named.contributions["cam0"] > 0 > named.contributions["mic0"]
    assert true.contributions["mic0"] > 0 > true.contributions["cam0"]
    assert true.value == pytest.approx(math.log(math.e / (math.e**3 + math.e + 1)) - math.log(1 / 3))


def test_a_sensor_sure_of_a_wrong_class_is_held_to_what_a_clipped_probability_says():
    found = shapley.of_logits({"cam0": np.array([1e4, 0.0]), "mic0": np.array([0.0, 1.0])}, np.zeros(2), 1)
    assert found.solo["cam0"] == pytest.approx(math.log(1e-6) - math.log(0.5))
    assert all(math.isfinite(one) for one in found.contributions.values())


def test_without_sensors_there_is_the_prior_and_nobody_to_thank():
    found = shapley.of_logits({}, np.log([0.2, 0.8]))
    assert (found.label, found.value, found.contributions, found.interactions()) == (1, 0.0, {}, {})


@pytest.mark.parametrize(
    ("logits", "prior", "label", "said"),
    [
        ({"cam0": np.array([0.0, math.nan])}, np.zeros(2), None, "cam0: not 2 finite numbers"),
        ({"cam0": np.zeros(2), "mic0": np.zeros(3)}, np.zeros(2), None, "mic0: not 2 finite numbers"),
        ({"cam0": np.zeros(2)}, np.array([0.0, -math.inf]), None, "the prior: not 2 finite numbers"),
        ({"cam0": np.zeros(2)}, np.zeros(2), 2, "no class 2 among 2"),
        ({"cam0": np.zeros(2)}, np.zeros(2), -1, "no class -1 among 2"),
        ({f"s{k}": np.zeros(2) for k in range(13)}, np.zeros(2), None, "13 sensors"),
    ],
)
def test_logits_that_are_no_game_are_refused_by_name(logits, prior, label, said):
    with pytest.raises(ValueError, match=said):
        shapley.of_logits(logits, prior, label)


# One window, anomaly evidence


@given(st.lists(st.floats(0, 30), min_size=3, max_size=3))
def test_the_axioms_hold_for_evidence(size):
    """Efficiency; symmetry of cam0 and mic0, alike in all they say; tmp0, which says nothing, is a dummy."""
    strength = dict(zip(NAMES, [size[0], size[0], size[1], size[2], 0.0], strict=True))
    pairs = {(a, b): strength[a] * strength[b] for a, b in combinations(NAMES, 2)}
    found = shapley.of_evidence(strength, pairs)
    assert sum(found.values()) == pytest.approx(sum([*strength.values(), *pairs.values()]), rel=EXACT)
    assert found["cam0"] == pytest.approx(found["mic0"], rel=EXACT)
    assert found["tmp0"] == 0.0


# Of late


def heard(windows, half_life=20.0, sensors=NAMES[:3], stratum=""):
    stream = Contributions(sensors, half_life)
    for window in windows:
        stream.hear(window, stratum)
    return stream


def shift(seed, count, sensors=NAMES[:3], present=0.8):
    """Windows of one shift: contributions with an own mean a sensor, each sensor away now and then."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, len(sensors))) + np.arange(len(sensors))
    there = rng.random(rows.shape) < present
    return [
        {name: x for name, x, on in zip(sensors, row, at, strict=True) if on}
        for row, at in zip(rows, there, strict=True)
    ]


def saved(state):
    """Through a file, as a restart takes it: arrays, no pickle."""
    buffer = io.BytesIO()
    np.savez(buffer, **state)
    buffer.seek(0)
    with np.load(buffer, allow_pickle=False) as file:
        return dict(file)


def test_aggregates_are_the_weighted_means_of_the_windows_a_sensor_was_present_in():
    windows, half_life = shift(1, 300), 25.0
    found = heard(windows, half_life).summary().sensors
    sizes = {}
    for name in NAMES[:3]:
        own = np.array([window[name] for window in windows if name in window])
        weight = 0.5 ** (np.arange(len(own))[::-1] / half_life)
        mean = np.average(own, weights=weight)
        assert found[name].signed == pytest.approx(mean, abs=1e-9)
        assert found[name].sd == pytest.approx(math.sqrt(np.average((own - mean) ** 2, weights=weight)), abs=1e-9)
        there = [name in window for window in windows]
        assert found[name].availability == pytest.approx(
            np.average(there, weights=0.5 ** (np.arange(300)[::-1] / half_life))
        )
        sizes[name] = np.average(np.abs(own), weights=weight)
    assert {name: one.share for name, one in found.items()} == pytest.approx(
        {name: size / sum(sizes.values()) for name, size in sizes.items()}
    )


@given(SEEDS, st.integers(60, 150))
def test_shares_sum_to_one_and_effective_sensors_are_between_one_and_all(seed, count):
    summary = heard(shift(seed, count), 5.0).summary()
    assert sum(one.share for one in summary.sensors.values()) == pytest.approx(1.0, abs=EXACT)
    assert 1.0 <= summary.effective <= 3.0 + EXACT


def test_an_absent_sensor_changes_in_nothing_but_its_availability():
    stream = heard(shift(2, 200, present=1.0))
    before = stream.summary().sensors["mic0"]
    for window in shift(3, 40, present=1.0):
        stream.hear({**window, "mic0": math.nan} if window["cam0"] > 0 else {"cam0": 1.0, "vib0": 1.0})
    after = stream.summary().sensors["mic0"]
    assert (after.signed, after.sd) == (before.signed, before.sd)
    assert after.availability == pytest.approx(before.availability * 0.25, rel=0.01)  # two half-lives


@pytest.mark.parametrize(
    ("half_life", "too_few", "enough"), [(10.0, LEAST_WINDOWS - 1, LEAST_WINDOWS), (200.0, 199, 201)]
)
def test_nothing_is_told_of_a_sensor_before_enough_windows_of_its_own(half_life, too_few, enough):
    """Half of the weight is there after one half-life; and thirty windows are the least."""
    stream = heard([{"cam0": 1.0, "mic0": 1.0}] * too_few, half_life, NAMES[:2])
    assert stream.summary().sensors == {}
    assert math.isnan(stream.summary().effective)
    for _ in range(enough - too_few):
        stream.hear({"cam0": 1.0})
    assert list(stream.summary().sensors) == ["cam0"]


@pytest.mark.slow
@given(SEEDS, st.lists(st.integers(0, 120), max_size=4))
def test_a_stream_cut_by_restarts_is_one_stream_to_the_last_bit(seed, cuts):
    windows = shift(seed, 120)
    stream = Contributions(NAMES[:3], 20.0)
    for k, window in enumerate(windows):
        if k in cuts:
            again = Contributions(NAMES[:3], 20.0)
            again.restore(saved(stream.state()))
            stream = again
        stream.hear(window, "busy" if k % 3 else "")
    whole = Contributions(NAMES[:3], 20.0)
    for k, window in enumerate(windows):
        whole.hear(window, "busy" if k % 3 else "")
    assert stream.strata() == whole.strata()
    assert all((stream.state()[name] == array).all() for name, array in whole.state().items())
    assert stream.summary("busy") == whole.summary("busy")


def test_states_of_the_station_are_kept_apart():
    stream = Contributions(NAMES[:2], 10.0)
    for _ in range(100):
        stream.hear({"cam0": 3.0, "mic0": 1.0}, "running")
        stream.hear({"cam0": 1.0, "mic0": -3.0}, "idle")
    running, idle = stream.summary("running").sensors, stream.summary("idle").sensors
    assert (running["cam0"].share, idle["cam0"].share) == (pytest.approx(0.75), pytest.approx(0.25))
    assert (running["mic0"].signed, idle["mic0"].signed) == (pytest.approx(1.0), pytest.approx(-3.0))
    assert stream.summary("never").sensors == {}


def test_memory_is_flat_and_what_was_heard_of_lately_stays():
    stream = Contributions(NAMES[:2], 10.0)
    sizes = []
    for k in range(1000):
        stream.hear({"cam0": 2.0, "mic0": 1.0}, "running")
        stream.hear({"cam0": 1.0}, f"product {k}")
        sizes.append(sum(array.nbytes for name, array in stream.state().items() if name == "sums"))
    assert max(sizes) == sizes[-1] == MOST_STRATA * 6 * 2 * 8
    assert stream.forgotten == 1001 - MOST_STRATA
    assert set(stream.strata()) == {"running", *(f"product {k}" for k in range(1001 - MOST_STRATA, 1000))}
    assert stream.summary("running").sensors["cam0"].share == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("shares", "availability", "effective", "collapse"),
    [
        ((0.5, 0.5), (1.0, 1.0), 2.0, False),
        ((0.25,) * 4, (1.0,) * 4, 4.0, False),
        ((0.98, 0.02), (1.0, 1.0), 1.103, True),
        ((0.98, 0.02), (1.0, 0.3), 1.103, False),  # one is there, and says all: no wonder
        ((1.0, 0.0), (1.0, 1.0), 1.0, True),
        ((1.0,), (1.0,), 1.0, False),
        ((math.nan, math.nan), (1.0, 1.0), math.nan, False),
    ],
)
def test_collapse_is_one_sensor_that_says_all_among_several(shares, availability, effective, collapse):
    rows = zip(NAMES, shares, availability, strict=False)
    summary = Summary({name: Aggregate(share, 1.0, 0.1, there) for name, share, there in rows})
    assert summary.effective == pytest.approx(effective, abs=1e-3, nan_ok=True)
    assert summary.collapse is collapse


def test_sensors_that_say_nothing_have_no_share():
    summary = heard([{"cam0": 0.0, "mic0": 0.0}] * 60, 10.0, NAMES[:2]).summary()
    assert math.isnan(summary.sensors["cam0"].share)
    assert summary.sensors["cam0"].signed == 0.0
    assert not summary.collapse


def test_a_sensor_that_goes_silent_loses_its_share_to_the_one_that_still_says_something():
    rng = np.random.default_rng(4)
    stream, shares, collapsed = Contributions(NAMES[:2], 50.0), [], []
    for k in range(800):
        truth = np.eye(3)[rng.integers(3)]
        says = {"cam0": 3 * truth + rng.normal(size=3), "mic0": 3 * truth if k < 400 else np.zeros(3)}
        stream.hear(shapley.of_logits(says, np.zeros(3)).contributions)
        if k in (399, 799):
            shares.append(stream.summary().sensors["mic0"].share)
            collapsed.append(stream.summary().collapse)
    assert 0.4 < shares[0] < 0.6
    assert shares[1] < 0.01
    assert collapsed == [False, True]


def test_a_sensor_nobody_knows_is_refused_and_leaves_no_trace():
    stream = heard(shift(5, 40))
    before = stream.state()
    with pytest.raises(ValueError, match="cam7: none of the sensors cam0, mic0, vib0"):
        stream.hear({"cam0": 1.0, "cam7": 1.0})
    assert all((stream.state()[name] == array).all() for name, array in before.items())
    with pytest.raises(ValueError, match="half-life"):
        Contributions(NAMES, 0.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sensors": np.array(["cam0", "mic0", "cam1"])}, "contributions are of"),
        ({"sums": np.full((1, 6, 3), math.nan)}, "damaged"),
        ({"sums": np.zeros((2, 6, 3))}, "damaged"),
        ({"sums": None}, "lacks sums"),
    ],
)
def test_a_state_of_something_else_is_refused_and_changes_nothing(change, said):
    state = {name: array for name, array in (heard(shift(6, 40)).state() | change).items() if array is not None}
    stream = heard(shift(7, 40))
    before = stream.state()
    with pytest.raises(ValueError, match=said):
        stream.restore(state)
    assert all((stream.state()[name] == array).all() for name, array in before.items())


def test_examples_in_the_docstrings_are_true():
    for module in (shapley, contribution):
        told = doctest.testmod(module)
        assert told.attempted > 1
        assert told.failed == 0

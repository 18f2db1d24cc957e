"""The slow channels of a station: what they are made of, who shares the budget, and what a restart keeps."""

import dataclasses

import numpy as np
import pytest

from edge.monitor import AGREEMENT, CONTRIBUTION, EMBEDDING, MOST_ROWS, RUN, SHARES, Monitor, Watch, weights
from lineside.clock import NS
from lineside.errors import ConfigError
from lineside.fusion import Encoded, Normal
from lineside.projections import CHANNELS, Projections, Space, shrinkage

COMMISSIONED, LEARNED, DIM = 600, 2_000, 16
SENSORS = ("cam0", "mic0")


def unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def seen(count, seed, *, shift=(), size=0.0, noise=0.3):
    """Embeddings of two sensors that show the same state, each through noise of its own; those in `shift` moved."""
    rng = np.random.default_rng(seed)
    state = rng.normal(size=(count, 3)) @ np.random.default_rng(99).normal(size=(3, DIM))
    course = np.random.default_rng(98).normal(size=DIM)
    found = {}
    for sensor in SENSORS:
        points = unit(state + noise * rng.normal(size=state.shape) * 3 + (size * course if sensor in shift else 0))
        found[sensor] = Encoded(points, points)
    return found


@pytest.fixture(scope="module")
def normal():
    return Normal.fit(seen(COMMISSIONED, 1), 64)


@pytest.fixture(scope="module")
def watch():
    spaces = {sensor: Space.fit(one.embedding) for sensor, one in seen(COMMISSIONED, 1).items()}
    return Watch(spaces, ("cam0+mic0",), NS, LEARNED / 3600, 1.0)


def hear(monitor, normal, encoded, first, absent=(), state=""):
    found = []
    for k in range(len(encoded["cam0"].embedding)):
        one = {s: Encoded(e.embedding[k], e.features[k]) for s, e in encoded.items() if s not in absent}
        drift = monitor.hear(normal.judge(one), one, (first + k) * NS, state(k) if callable(state) else state)
        found += [(k, drift)] if drift else []
    return found


@pytest.fixture(scope="module")
def kept(watch, normal):
    """The state of a monitor that has just learned."""
    monitor = Monitor(watch)
    assert hear(monitor, normal, seen(LEARNED, 2), 0) == []
    return monitor.state()


@pytest.fixture
def learned(watch, kept):
    monitor = Monitor(watch)
    assert monitor.restore(kept)
    return monitor


def part(encoded, rows):
    return {sensor: Encoded(one.embedding[rows], one.features[rows]) for sensor, one in encoded.items()}


def test_every_sensor_and_pair_has_its_channels(watch, learned):
    named = {f"{CONTRIBUTION}/cam0/", f"{CONTRIBUTION}/mic0/", f"{AGREEMENT}/cam0+mic0/"}
    named |= {f"{EMBEDDING}/{sensor}/{channel}" for sensor in SENSORS for channel in CHANNELS}
    assert set(watch.channels) == named
    assert learned.problems == []
    assert learned.told == f"{len(named) - 2} of {len(named)} channels are watched"  # 16 axes leave no rest


def test_until_it_has_learned_nothing_is_watched_and_it_says_so(watch, normal):
    monitor = Monitor(watch)
    assert hear(monitor, normal, seen(LEARNED // 2, 3, shift=("cam0",), size=2.0), 0) == []
    assert monitor.gauges == {}
    assert monitor.told == "what is ordinary is being learned, 0.3 of 0.555556 h"
    monitor.reset()  # nothing to forget


def test_a_long_time_is_learned_from_in_runs_spread_over_it(watch, normal):
    long = dataclasses.replace(watch, learn_hours=3 * MOST_ROWS / 3600)
    monitor = Monitor(long)
    hear(monitor, normal, seen(7 * RUN, 4), 0)
    starts = monitor.state()["starts"] // NS
    assert starts.tolist() == [*range(RUN), *range(3 * RUN, 4 * RUN), *range(6 * RUN, 7 * RUN)]


def test_the_budget_is_shared_out_whole(watch):
    shares = dict(zip(watch.channels, weights(watch.channels), strict=True))
    assert sum(shares.values()) == pytest.approx(1)
    for kind, share in SHARES.items():
        assert sum(w for name, w in shares.items() if name.startswith(kind)) == pytest.approx(share)
    alone = weights((f"{CONTRIBUTION}/cam0/", f"{EMBEDDING}/cam0/axis 1"))  # what others cannot use is theirs
    assert alone.sum() == pytest.approx(1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [5, 6, 7])
def test_normal_running_gives_no_finding(learned, normal, seed):
    assert hear(learned, normal, seen(2_000, seed), LEARNED) == []


@pytest.mark.parametrize("sensor", SENSORS)
def test_a_slow_drift_of_one_sensor_is_found_and_names_it(learned, normal, sensor):
    found = hear(learned, normal, seen(1_500, 8, shift=(sensor,), size=0.35), LEARNED)
    assert found
    at, drift = found[0]
    assert at < 600
    assert sensor in drift.subject
    assert drift.finding.onset_ns >= LEARNED * NS


def test_sensors_that_no_longer_belong_together_are_found_by_their_agreement(learned, normal):
    """Each alone is as it was; only the sound is of another moment."""
    encoded = seen(400, 9)
    late = Encoded(*(np.roll(each, 7, axis=0) for each in encoded["mic0"][:2]))
    found = hear(learned, normal, {**encoded, "mic0": late}, LEARNED)
    assert found
    assert (found[0][1].kind, found[0][1].subject) == (AGREEMENT, "cam0+mic0")
    assert found[0][1].finding.effect <= 0


def test_an_absent_sensor_is_no_drift_and_the_other_is_watched_on(learned, normal):
    assert hear(learned, normal, seen(500, 10), LEARNED, absent=("mic0",)) == []
    moved = seen(1_500, 11, shift=("cam0",), size=0.5)
    found = hear(learned, normal, moved, LEARNED + 500, absent=("mic0",))
    assert found[0][1].subject == "cam0"


def test_gauges_climb_from_nothing_to_an_alarm(learned, normal):
    assert set(learned.gauges) == {"cam0", "mic0", "cam0+mic0"}
    assert max(learned.gauges.values()) == 0
    hear(learned, normal, seen(40, 12, shift=("cam0",), size=0.5), LEARNED)
    assert learned.gauges["cam0"] > 0.2
    learned.reset()
    assert max(learned.gauges.values()) == 0


@pytest.mark.slow
@pytest.mark.parametrize("stop", [700, LEARNED + 30])
def test_a_restart_forgets_nothing(watch, normal, stop):
    """While it learns, and while it watches."""
    stream = {
        sensor: Encoded(*(np.concatenate(parts) for parts in zip(one[:2], moved[:2], strict=True)))
        for (sensor, one), moved in zip(
            seen(LEARNED, 2).items(), seen(600, 13, shift=("cam0",), size=0.5).values(), strict=True
        )
    }
    whole = hear(Monitor(watch), normal, stream, 0)
    first, second = Monitor(watch), Monitor(dataclasses.replace(watch))
    assert hear(first, normal, part(stream, slice(stop)), 0) == []
    assert second.restore({name: value.copy() for name, value in first.state().items()})
    found = hear(second, normal, part(stream, slice(stop, None)), stop)
    assert [(stop + k, drift) for k, drift in found] == whole
    assert whole


def test_what_was_gathered_of_other_channels_is_not_taken(watch, kept):
    for other in (
        dataclasses.replace(watch, pairs=()),
        dataclasses.replace(watch, learn_hours=1.0),
        dataclasses.replace(watch, spaces={**watch.spaces, "cam0": watch.spaces["mic0"]}),
    ):
        assert not Monitor(other).restore(kept)
    assert not Monitor(watch).restore({})


def test_too_short_a_time_is_told_once_an_embedding(watch, normal):
    monitor = Monitor(dataclasses.replace(watch, learn_hours=200 / 3600))
    hear(monitor, normal, seen(200, 14), 0)
    assert [told.partition(" is not watched")[0] for told in monitor.problems] == [
        "contribution of cam0",
        "contribution of mic0",
        "agreement of cam0+mic0",
        "embedding of cam0",
        "embedding of mic0",
    ]
    assert all(
        "200 windows are no reference" in told and "learn 1.5 times as long" in told for told in monitor.problems
    )
    assert monitor.told == f"0 of {len(watch.channels)} channels are watched"
    assert hear(monitor, normal, seen(100, 15, shift=SENSORS, size=3.0), 200) == []


# States


PRODUCTS = ("a", "b", "rare")


def product(k):
    return "ab"[k // 100 % 2]


def of_products(count, seed, **moved):
    """Product b is seen through a level of its own."""
    plain, other = seen(count, seed, **moved), seen(count, seed, shift=SENSORS, size=1.0, **moved)
    which = np.array([product(k) == "b" for k in range(count)])[:, None]
    return {
        s: Encoded(*(np.where(which, b, a) for a, b in zip(plain[s][:2], other[s][:2], strict=True))) for s in SENSORS
    }


@pytest.fixture(scope="module")
def kept_by_state(watch, normal):
    monitor = Monitor(dataclasses.replace(watch, states=PRODUCTS))
    hear(monitor, normal, part(of_products(LEARNED, 2), slice(LEARNED - 50)), 0, state=product)
    hear(monitor, normal, seen(50, 20), LEARNED - 50, state="rare")
    return monitor.state()


@pytest.fixture
def by_state(watch, kept_by_state):
    monitor = Monitor(dataclasses.replace(watch, states=PRODUCTS))
    assert monitor.restore(kept_by_state)
    return monitor


def test_what_is_ordinary_is_learned_in_each_state(by_state, learned, normal):
    """A change of product is ordinary; to a monitor that knows of no states it is a drift."""
    assert hear(by_state, normal, of_products(1_000, 21), LEARNED, state=product) == []
    assert hear(learned, normal, of_products(1_000, 21), LEARNED, state=product)


def test_a_product_that_runs_under_another_s_name_is_found(by_state, normal):
    found = hear(by_state, normal, of_products(600, 22), LEARNED, state=lambda k: "a")
    assert found
    assert product(found[0][1].finding.onset_ns // NS - LEARNED) == "b"


def test_a_state_never_seen_is_no_evidence_and_is_named(by_state, normal):
    strange = seen(300, 23, shift=SENSORS, size=3.0)
    assert hear(by_state, normal, strange, LEARNED, state="new") == []
    assert set(by_state.gauges.values()) == {0.0}
    named = "state 'new' was not seen while normal was learned: nothing is watched in it; commission again with it"
    assert by_state.problems.count(named) == 1
    assert hear(by_state, normal, of_products(400, 24), LEARNED + 300, state=product) == []
    for k in range(100):
        hear(by_state, normal, part(strange, slice(1)), LEARNED + 900 + k, state=f"another {k}")
    assert len(by_state.problems) < 20  # a name from outside cannot fill the memory


def test_a_state_seen_in_too_few_windows_is_as_one_never_seen(by_state, normal):
    assert "state 'rare' was seen in 50 windows only while normal was learned: nothing is watched in it" in " ".join(
        by_state.problems
    )
    assert hear(by_state, normal, seen(300, 25, shift=SENSORS, size=3.0), LEARNED, state="rare") == []


def test_in_a_state_never_seen_nothing_is_learned(watch, normal):
    monitor = Monitor(dataclasses.replace(watch, states=PRODUCTS))
    hear(monitor, normal, seen(30, 26), 0, state="new")
    assert len(monitor.state()["rows"]) == 0
    assert monitor.told == "what is ordinary is being learned, 0.0 of 0.555556 h"
    assert ["state 'new' was not seen" in told for told in monitor.problems] == [True]


def test_a_sensor_absent_in_one_state_is_named_with_it(watch, normal):
    monitor = Monitor(dataclasses.replace(watch, states=("a", "b")))
    hear(monitor, normal, seen(LEARNED // 2, 27), 0, state="a")
    hear(monitor, normal, seen(LEARNED // 2, 28), LEARNED // 2, absent=("mic0",), state="b")
    assert {told.partition(":")[0] for told in monitor.problems} == {
        f"{subject} is not watched for drift in state 'b'"
        for subject in ("contribution of cam0", "contribution of mic0", "agreement of cam0+mic0", "embedding of mic0")
    }


def test_without_states_any_name_of_one_is_ignored(learned, normal):
    assert hear(learned, normal, seen(100, 29), LEARNED, state=lambda k: f"state {k}") == []
    assert learned.problems == []


def test_states_are_kept_over_a_restart(by_state, kept_by_state, watch):
    assert np.unique(kept_by_state["strata"]).tolist() == [0, 1, 2]
    assert by_state.state().keys() == kept_by_state.keys()
    for name, array in kept_by_state.items():
        np.testing.assert_array_equal(by_state.state()[name], array)
    assert not Monitor(dataclasses.replace(watch, states=("a", "b"))).restore(kept_by_state)


# Which detector


@pytest.mark.slow
def test_another_detector_watches_with_what_was_learned(watch, kept, normal):
    monitor = Monitor(dataclasses.replace(watch, detector="page-hinkley"))
    assert monitor.restore(kept)
    assert monitor.told.endswith("channels are watched")
    assert hear(monitor, normal, seen(300, 30), LEARNED) == []
    moved = seen(300, 30, shift=("cam0",), size=1.5)
    assert "cam0" in hear(monitor, normal, moved, LEARNED + 300)[0][1].subject
    back = Monitor(watch)
    assert back.restore(monitor.state())
    assert set(back.gauges.values()) == {0.0}


def test_a_detector_that_cannot_work_here_is_refused_at_once(watch):
    with pytest.raises(ConfigError, match="none of e-detector"):
        Monitor(dataclasses.replace(watch, detector="mine"))


# Bad input: named, never a false alarm, never silence


def spoilt(encoded, sensor, value):
    """One sensor's embeddings are all `value`, as of a broken encoder."""
    one = encoded[sensor]
    return {**encoded, sensor: Encoded(np.broadcast_to(value, one.embedding.shape).astype(np.float32), one.features)}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_embeddings_that_are_no_numbers_are_no_evidence_and_leave_nothing_behind(learned, normal, value):
    plain = seen(400, 31)
    broken = spoilt(plain, "mic0", value)
    for k in range(60):
        judged = normal.judge({s: Encoded(e.embedding[k], e.features[k]) for s, e in plain.items()})
        one = {s: Encoded(e.embedding[k], e.features[k]) for s, e in broken.items()}
        assert learned.hear(judged, one, (LEARNED + k) * NS) is None
    assert np.isfinite(learned.state()["course:mic0"]).all()
    moved = seen(1_500, 32, shift=("mic0",), size=0.5)
    assert "mic0" in hear(learned, normal, moved, LEARNED + 60)[0][1].subject


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_scores_that_are_no_numbers_are_never_an_alarm(learned, normal, value):
    plain = seen(60, 33)
    for k in range(60):
        one = {s: Encoded(e.embedding[k], e.features[k]) for s, e in plain.items()}
        bad = dataclasses.replace(
            normal.judge(one), contributions={"cam0": value, "mic0": 1.0}, agreements={"cam0+mic0": value}
        )
        drift = learned.hear(bad if k % 9 == 0 else normal.judge(one), one, (LEARNED + k) * NS)
        assert drift is None
    assert all(0 <= each < 1 for each in learned.gauges.values())


def test_constant_embeddings_while_normal_is_learned_are_named_and_never_an_alarm(watch, normal):
    monitor = Monitor(watch)
    course = np.full(DIM, 0.25)
    hear(monitor, normal, spoilt(seen(LEARNED, 2), "mic0", course), 0)
    named = "embedding of mic0 is not watched for drift: it never moved while normal was learned"
    assert any(told.startswith(named) for told in monitor.problems)
    assert hear(monitor, normal, spoilt(seen(500, 34), "mic0", course), LEARNED) == []


def test_embeddings_that_stand_still_are_found(learned, normal):
    frozen = seen(200, 35)
    held = frozen["cam0"].embedding[0]
    found = hear(learned, normal, spoilt(frozen, "cam0", held), LEARNED)
    assert found[0][0] < 60
    assert found[0][1].kind == EMBEDDING
    assert found[0][1].subject == "cam0"


def test_a_sensor_absent_while_normal_is_learned_is_named_and_the_other_watched(watch, normal):
    monitor = Monitor(watch)
    hear(monitor, normal, seen(LEARNED, 2), 0, absent=("mic0",))
    named = "embedding of mic0 is not watched for drift: 0 windows are no reference"
    assert any(told.startswith(named) and "while its sensor is there" in told for told in monitor.problems)
    assert hear(monitor, normal, seen(300, 36), LEARNED) == []  # back: no evidence of anything
    moved = seen(1_500, 37, shift=("cam0",), size=0.5)
    assert hear(monitor, normal, moved, LEARNED + 300)[0][1].subject == "cam0"


@pytest.mark.slow
def test_a_clock_that_jumps_is_no_drift_and_spoils_no_learning(watch, normal):
    """An hour back in the middle of learning, and again while it watches."""
    monitor, stream = Monitor(watch), seen(LEARNED, 2)
    hear(monitor, normal, part(stream, slice(LEARNED // 2)), 10_000)
    hear(monitor, normal, part(stream, slice(LEARNED // 2, None)), 6_400)
    assert monitor.problems == []
    assert hear(monitor, normal, seen(300, 38), 20_000) == []
    assert hear(monitor, normal, seen(300, 39), 1_000) == []
    assert hear(monitor, normal, seen(1_500, 40, shift=("cam0",), size=0.5), 90_000)


def test_its_memory_does_not_grow(learned, normal):
    hear(learned, normal, seen(100, 41), LEARNED)
    before = {name: array.nbytes for name, array in learned.state().items()}
    hear(learned, normal, seen(500, 42), LEARNED + 100)
    assert {name: array.nbytes for name, array in learned.state().items()} == before


def test_axes_that_embeddings_do_not_fill_count_for_no_more_than_rounding():
    flat = unit(np.random.default_rng(10).normal(size=(100, 2)) @ np.random.default_rng(11).normal(size=(2, DIM)))
    rounded = flat.astype("<f2").astype(np.float32)  # as embeddings travel
    spread = CHANNELS.index("spread")
    exact, shown = (Projections(Space.fit(flat)).hear_all(rows)[:, spread] for rows in (flat, rounded))
    assert np.isfinite(shown).all()
    assert np.abs(shown - exact).max() < 1


def test_variances_are_drawn_together_as_ledoit_and_wolf_do():
    covariance = pytest.importorskip("sklearn.covariance")
    for count in (30, 300):
        off = np.random.default_rng(count).standard_t(5, (count, DIM)) * np.arange(1, DIM + 1)
        variance = np.linalg.eigvalsh(off.T @ off / count)
        expected = covariance.ledoit_wolf_shrinkage(off, assume_centered=True)
        assert shrinkage(off, variance) == pytest.approx(expected, rel=1e-6)


def test_a_witness_looks_where_embeddings_have_been_going():
    space = Space.fit(seen(400, 12)["cam0"].embedding)
    quiet = Projections(space).hear_all(seen(400, 13)["cam0"].embedding)
    moved = Projections(space).hear_all(seen(400, 13, shift=("cam0",), size=0.5)["cam0"].embedding)
    for channel in ("course 32", "course 256"):
        k = CHANNELS.index(channel)
        assert moved[100:, k].mean() > quiet[100:, k].mean() + 0.5

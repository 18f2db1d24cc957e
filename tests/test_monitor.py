"""The slow channels of a station: what they are made of, who shares the budget, and what a restart keeps."""

import dataclasses

import numpy as np
import pytest

from edge.monitor import AGREEMENT, CONTRIBUTION, EMBEDDING, MOST_ROWS, RUN, SHARES, Monitor, Watch, weights
from lineside.clock import NS
from lineside.fusion import Encoded, Normal
from lineside.projections import CHANNELS, Projections, Space

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


def hear(monitor, normal, encoded, first, absent=()):
    found = []
    for k in range(len(encoded["cam0"].embedding)):
        one = {s: Encoded(e.embedding[k], e.features[k]) for s, e in encoded.items() if s not in absent}
        drift = monitor.hear(normal.judge(one), one, (first + k) * NS)
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
    late = Encoded(*(np.roll(each, 7, axis=0) for each in encoded["mic0"]))
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
        sensor: Encoded(*(np.concatenate(parts) for parts in zip(one, moved, strict=True)))
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
    assert all("200 windows are no reference" in told and "learn longer" in told for told in monitor.problems)
    assert monitor.told == f"0 of {len(watch.channels)} channels are watched"
    assert hear(monitor, normal, seen(100, 15, shift=SENSORS, size=3.0), 200) == []


def test_a_space_has_no_more_axes_than_its_embeddings_fill():
    flat = unit(np.random.default_rng(10).normal(size=(100, 2)) @ np.random.default_rng(11).normal(size=(2, DIM)))
    space = Space.fit(flat)
    assert space.axes.shape[1] <= 3
    assert np.isfinite(Projections(space).hear_all(flat)).all()


def test_a_witness_looks_where_embeddings_have_been_going():
    space = Space.fit(seen(400, 12)["cam0"].embedding)
    quiet = Projections(space).hear_all(seen(400, 13)["cam0"].embedding)
    moved = Projections(space).hear_all(seen(400, 13, shift=("cam0",), size=0.5)["cam0"].embedding)
    for channel in ("course 32", "course 256"):
        k = CHANNELS.index(channel)
        assert moved[100:, k].mean() > quiet[100:, k].mean() + 0.5

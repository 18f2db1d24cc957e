"""What bench.embedding_drift compares with, how it counts: detectors, changes, run lengths and delays."""

import json
import math

import numpy as np
import pytest

from bench import embedding_drift as bench
from bench.embedding_drift import (
    CHANGES,
    JUDGES,
    OURS,
    REFERENCE,
    WIDTH,
    WINDOW,
    Bank,
    Delay,
    Law,
    Mmd,
    WhitenedMmd,
    run_length,
)
from lineside.clock import NS
from lineside.drift import Detector

pytestmark = pytest.mark.slow

STREAMS, STEPS = 4, 130


@pytest.fixture(scope="module")
def law():
    return Law.draw(np.random.default_rng(1), 0.7)


@pytest.fixture(scope="module")
def learned(law):
    return law.embeddings(law.noise(np.random.default_rng(2), bench.COMMISSIONED + 2_500))


@pytest.fixture(scope="module")
def heard(law):
    """Half of it normal, half shifted."""
    noise = law.noise(np.random.default_rng(3), STEPS, STREAMS)
    noise[STEPS // 2 :] += 0.2
    return law.embeddings(noise)


# The detectors


def test_the_bank_is_the_devices_detector(learned, heard):
    assert_the_same(Bank(learned, STREAMS), heard)


def test_the_bank_is_the_devices_detector_where_embeddings_follow_each_other(law, heard):
    """The first windows have no past, and are no evidence."""
    noise = law.noise(np.random.default_rng(9), bench.COMMISSIONED + 2_500)
    for step in range(1, len(noise)):
        noise[step] = 0.6 * noise[step - 1] + 0.8 * noise[step]
    bank = Bank(law.embeddings(noise), STREAMS)
    assert bank.reference.memory.any()
    assert_the_same(bank, heard)


def assert_the_same(bank, heard):
    """By channel through the gauges before, and to the window at which a run length is reached."""
    statistic = np.concatenate([bank.hear(heard[:50]), bank.hear(heard[50:])])
    for stream in range(STREAMS):
        for budget in (1e250, 30.0, 1e3, 1e6):
            detector, projections = Detector(bank.reference, budget, bank.weights), bank.projections()
            for step, embedding in enumerate(heard[:, stream]):
                found = detector.hear(projections.hear(embedding)[bank.watched], step * NS)
                assert (found is not None) == (statistic[step, stream] >= budget)
                if found:
                    break
                parts = np.expm1(np.array(list(detector.gauges().values())) * math.log1p(budget))
                assert parts.sum() == pytest.approx(statistic[step, stream], rel=1e-6, abs=1e-9)
    assert statistic.max() > 1e6, "no run length was ever reached"


def test_the_bank_watches_one_embedding_with_the_whole_budget(learned):
    bank = Bank(learned, 1)
    assert bank.weights.sum() == pytest.approx(1.0)
    assert len(bank.watched) == len(bank.weights) == len(bank.reference.names)


def test_mmd_is_the_unbiased_one_of_the_last_windows(learned, heard):
    """Against lemma 6 of Gretton et al. written out, with every kernel value computed anew."""
    statistic = Mmd(learned, STREAMS).hear(heard)
    x = learned[:REFERENCE].astype(np.float64)
    squared = np.maximum(2 - 2 * x @ x.T, 0)
    off = ~np.eye(len(x), dtype=bool)
    width = 2 * np.median(np.sqrt(squared[off])) ** 2
    own = np.exp(-squared[off] / width).mean()
    for step, stream in ((WINDOW - 1, 0), (WINDOW, 1), (STEPS - 1, 2)):
        y = heard[step + 1 - WINDOW : step + 1, stream].astype(np.float64)
        within = np.exp(-np.square(y[:, None] - y[None]).sum(axis=-1) / width)[~np.eye(WINDOW, dtype=bool)].mean()
        across = np.exp(-(2 - 2 * y @ x.T) / width).mean()
        assert statistic[step, stream] == pytest.approx(own + within - 2 * across, abs=2e-6)


def test_mmd_begins_with_a_full_window_of_the_reference_law(learned, heard):
    """Its first values are as small as its later ones: the wait for a full window is in nobody's delay."""
    statistic = Mmd(learned, STREAMS).hear(heard)
    assert statistic[0].max() < statistic[-1].min() / 2


@pytest.mark.parametrize("judge", JUDGES.values(), ids=JUDGES)
def test_streams_go_on_alone_as_they_would_have_together(judge, learned, heard):
    together, fewer = judge(learned, STREAMS), judge(learned, STREAMS)
    whole = np.concatenate([together.hear(heard[:60]), together.hear(heard[60:])])
    chosen = np.array([True, False, True, False])
    fewer.hear(heard[:60])
    fewer.keep(chosen)
    np.testing.assert_allclose(fewer.hear(heard[60:, chosen]), whole[60:, chosen], rtol=1e-5, atol=1e-7)


# The changes


def test_a_change_is_as_large_as_its_name_says():
    rng = np.random.default_rng(4)
    noise = np.asarray(rng.standard_t(6, size=(50, 3, WIDTH))) / math.sqrt(1.5)
    way = rng.normal(size=(3, WIDTH))
    way /= np.linalg.norm(way, axis=1, keepdims=True)
    moved = {name: change(noise, way, noise[-1]) for name, change in CHANGES.items()}
    for name, size in (("1 sigma, one direction", 1.0), ("0.5 sigma, one direction", 0.5)):
        np.testing.assert_allclose(np.linalg.norm(moved[name] - noise, axis=-1), size)
    np.testing.assert_allclose(moved["0.1 sigma, every axis"] - noise, 0.1)
    assert moved["noise x 1.1"].std() == pytest.approx(1.1 * noise.std())
    assert (moved["frozen embedding"] == noise[-1]).all()


def test_noise_has_variance_one_and_embeddings_are_unit(law):
    noise = law.noise(np.random.default_rng(5), 4_000)
    assert noise.var() == pytest.approx(1.0, abs=0.02)
    np.testing.assert_allclose(np.linalg.norm(law.embeddings(noise), axis=1), 1.0, atol=1e-6)


# Run lengths and delays


@pytest.fixture(scope="module")
def memoryless():
    """The running maximum that matters: a value at or above 1 - 1 / L comes once in L windows."""
    return np.random.default_rng(6).uniform(size=(1_500, 300))


def test_a_threshold_runs_as_long_as_was_asked(memoryless):
    threshold = bench.threshold_for(memoryless, 400.0)
    assert threshold == pytest.approx(1 - 1 / 400, abs=4e-4)
    assert run_length(memoryless, threshold).mean >= 400


def test_a_run_length_comes_with_its_error(memoryless):
    """Also where some streams end at the horizon: none of it is a bias."""
    told = run_length(memoryless, 1 - 1 / 1_000)
    assert told.error == pytest.approx(1_000 / math.sqrt(300 * (1 - math.exp(-1.5))), rel=0.2)
    assert abs(told.mean - 1_000) < 3 * told.error


def test_a_ratio_is_of_means_over_the_same_streams_and_what_is_missed_counts():
    rng = np.random.default_rng(7)
    rival = rng.exponential(100, 400)
    row = Delay.of({OURS: 0.5 * rival, "rival": rival}, rng)
    assert row.ratio["rival"].mean == pytest.approx(0.5)
    assert row.ratio["rival"].error < 1e-9, "the bootstrap must draw both of a stream"
    late = Delay.of({OURS: np.append(0.5 * rival, np.inf), "rival": np.append(rival, 100.0)}, rng)
    assert late.missed == {OURS: 1, "rival": 0}
    assert late.windows[OURS].mean == pytest.approx((0.5 * rival.sum() + bench.MOST) / 401)


def test_delays_are_counted_from_the_change_on_streams_that_were_quiet(law, learned):
    """A frozen embedding is told by all in few windows; a threshold below everything leaves no stream: refused."""
    rng = np.random.default_rng(8)
    thresholds = {OURS: 1e6, "MMD-online": 0.1, "MMD, whitened": 0.1}
    found = bench.delays(law, learned, "frozen embedding", thresholds, rng, 6)
    assert [len(row) for row in found.values()] == [6, 6, 6]
    assert max(row.max() for row in found.values()) <= 60
    assert min(row.min() for row in found.values()) >= 2
    with pytest.raises(ValueError, match="more streams"):
        bench.delays(law, learned, "frozen embedding", thresholds | {OURS: -1.0}, rng, 2)


class Counter:
    """A judge whose statistic is how many windows it has heard, `every` of them counted as one."""

    def __init__(self, streams, every):
        self.streams, self.every, self.heard = streams, every, 0

    def hear(self, embeddings):
        assert embeddings.shape[1] == self.streams
        self.heard += len(embeddings)
        counted = np.arange(self.heard - len(embeddings), self.heard) + 1
        return np.repeat(counted[:, None] // self.every, self.streams, axis=1).astype(float)

    def keep(self, streams):
        self.streams = int(streams.sum())


def test_the_first_window_after_the_change_is_a_delay_of_one(monkeypatch, law, learned):
    judges = {"at once": (1, bench.WARM + 1), "later": (1, bench.WARM + 73), "never": (10**9, 1)}
    monkeypatch.setattr(
        bench, "JUDGES", {name: lambda _, n, e=every: Counter(n, e) for name, (every, _) in judges.items()}
    )
    monkeypatch.setattr(bench, "MOST", 200)
    thresholds = {name: threshold for name, (_, threshold) in judges.items()}
    found = bench.delays(law, learned, "noise x 1.1", thresholds, np.random.default_rng(1), 2)
    assert {name: row.tolist() for name, row in found.items()} == {
        "at once": [1.0, 1.0],
        "later": [73.0, 73.0],
        "never": [math.inf, math.inf],
    }


def test_whitening_makes_all_axes_count_alike(law, learned, heard):
    """A shift along every axis is further beyond chance where no axis outweighs the others."""
    raw, whitened = (judge(learned, STREAMS).hear(heard) for judge in (Mmd, WhitenedMmd))
    beyond = [(each[-1].mean() - each[:60].mean()) / each[:60].std() for each in (raw, whitened)]
    assert beyond[1] > 1.5 * beyond[0]


def test_both_forms_tell_the_same(monkeypatch, capsys):
    """One law with short run lengths, as a table and as a line that a script can read."""
    short = {"LEARNED": 2_500, "HORIZON": 300, "RUN_LENGTH": 100.0, "WARM": bench.BLOCK}
    one_change = {"frozen embedding": CHANGES["frozen embedding"]}
    for name, value in (short | {"FALLS": {"falling": 0.7}, "CHANGES": one_change}).items():
        monkeypatch.setattr(bench, name, value)
    found = bench.compared(0.7, 12, 1)
    monkeypatch.setattr(bench, "compared", lambda fall, streams, seed: found)
    monkeypatch.setattr("sys.argv", ["embedding_drift", "--json"])
    bench.main()
    told = json.loads(capsys.readouterr().out)["falling"]
    assert told["nominal"][OURS]["mean"] >= 100
    assert all(us > 0 for us in told["us"].values())
    row = told["delays"]["frozen embedding"]
    windows = {name: each["mean"] for name, each in row["windows"].items()}
    for rival in bench.RIVALS:
        assert 0 < row["ratio"][rival]["mean"] == pytest.approx(windows[OURS] / windows[rival])
    monkeypatch.setattr("sys.argv", ["embedding_drift"])
    bench.main()
    assert f"| {windows[OURS]:.1f} ± " in capsys.readouterr().out

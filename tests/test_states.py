"""Which state a station is in, and how sure that is: lineside.states."""

import doctest
import math

import numpy as np
import pytest

from lineside import shapley, states
from lineside.states import LEAST, States, log_score, sharpness

NAMES = ("idle", "running", "worn")
PRIOR = np.array([0.2, 0.5, 0.3])


class Line:
    """A station of three states, each a normal law with one known covariance: the best possible answer is known.

    `shared` is the part of the second sensor's noise that is the first one's.
    """

    def __init__(self, size=12, apart=1.1, shared=0.9, seed=0):
        rng = np.random.default_rng(seed)
        self.mix = np.eye(size) + rng.normal(size=(size, size)) / math.sqrt(size)
        self.means = apart * rng.normal(size=(3, size)) @ self.mix.T / math.sqrt(size) * 2
        self.precision = np.linalg.inv(self.mix @ self.mix.T)
        self.shared = shared

    def draw(self, count, seed):
        """Features by sensor (count, f), and the number of each moment's state, in runs of some windows."""
        rng = np.random.default_rng(seed)
        state = np.repeat(rng.choice(3, p=PRIOR, size=count // 5 + 1), 5)[:count]
        noise = rng.normal(size=(count, len(self.mix)))
        other = self.shared * noise + math.sqrt(1 - self.shared**2) * rng.normal(size=noise.shape)
        rows = {name: self.means[state] + e @ self.mix.T for name, e in (("cam0", noise), ("mic0", other))}
        return rows, state

    def best(self, rows):
        """What the law itself makes of the rows of one sensor: probabilities (n, 3)."""
        away = rows[:, None] - self.means
        return softmax(np.log(PRIOR) - np.einsum("ncf,fg,ncg->nc", away, self.precision, away) / 2)


def softmax(logits):
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def named(state):
    return [NAMES[k] for k in state]


def judged(known, rows, sensors):
    count = len(rows[sensors[0]])
    return np.array([np.exp(known.fused(known.logits({s: rows[s][i] for s in sensors}))) for i in range(count)])


def calibration_error(p, state, bins=12):
    """Expected calibration error: how far confidence is from how often it is right, over bins of confidence."""
    sure, right = p.max(axis=1), p.argmax(axis=1) == state
    place = np.minimum((sure * bins).astype(int), bins - 1)
    return sum(
        (place == k).mean() * abs(sure[place == k].mean() - right[place == k].mean()) for k in set(place.tolist())
    )


def accuracy(p, state):
    return float((p.argmax(axis=1) == state).mean())


@pytest.fixture(scope="module")
def learned():
    line = Line()
    rows, state = line.draw(1500, 1)
    return line, States.fit(rows, named(state))


def test_one_sensor_is_nearly_as_good_as_the_law_itself_and_knows_how_sure_it_is(learned):
    line, known = learned
    rows, state = line.draw(3000, 2)
    best = line.best(rows["cam0"])
    for sensor in ("cam0", "mic0"):
        found = judged(known, rows, [sensor])
        assert accuracy(found, state) > accuracy(line.best(rows[sensor]), state) - 0.015
        assert calibration_error(found, state) < 0.03
    assert 0.7 < accuracy(best, state) < 0.97  # or the task says nothing
    assert known.names == NAMES
    assert np.exp(known.log_prior) == pytest.approx(PRIOR, abs=0.06)


def test_sensors_that_err_together_do_not_make_each_other_surer(learned):
    line, known = learned
    rows, state = line.draw(3000, 3)
    both = judged(known, rows, ["cam0", "mic0"])
    said_twice = softmax(known.log_prior + sum(known.sensors[s].logits(rows[s]) for s in rows))
    assert calibration_error(both, state) < 0.025
    assert calibration_error(both, state) < calibration_error(said_twice, state)
    assert accuracy(both, state) >= max(accuracy(judged(known, rows, [s]), state) for s in rows) - 0.005
    assert 0.4 < known.fusion[frozenset(rows)] < 0.75


def test_sensors_that_err_independently_add_up():
    line = Line(shared=0.0)
    rows, state = line.draw(1500, 4)
    known = States.fit(rows, named(state))
    assert known.fusion[frozenset(rows)] > 0.85
    fresh, truth = line.draw(2000, 5)
    both, one = judged(known, fresh, ["cam0", "mic0"]), judged(known, fresh, ["cam0"])
    assert accuracy(both, truth) > accuracy(one, truth) + 0.02
    assert calibration_error(both, truth) < 0.03


def test_many_features_and_few_windows_are_not_taken_for_knowledge():
    """More directions than windows to know them by: what was seen is told apart at will, what is new hardly is."""
    line = Line(size=64, apart=0.8)
    rows, state = line.draw(180, 6)
    known = States.fit({"cam0": rows["cam0"]}, named(state))
    fresh, truth = line.draw(2000, 7)
    found, seen = judged(known, fresh, ["cam0"]), judged(known, rows, ["cam0"])
    assert accuracy(seen, state) > accuracy(found, truth) + 0.05
    assert calibration_error(found, truth) < 0.12
    assert np.log(found[np.arange(2000), truth]).mean() > np.log(PRIOR[truth]).mean()


def test_features_that_say_nothing_leave_the_prior():
    rng = np.random.default_rng(8)
    state = rng.choice(3, p=PRIOR, size=600)
    known = States.fit({"cam0": rng.normal(size=(600, 30)), "mic0": np.ones((600, 4))}, named(state))
    found = np.exp(known.fused(known.logits({"cam0": 3 * rng.normal(size=30), "mic0": np.ones(4)})))
    assert found == pytest.approx(np.exp(known.log_prior), abs=0.1)


def test_a_missing_sensor_makes_a_smaller_game(learned):
    line, known = learned
    rows, _ = line.draw(1, 9)
    moment = {sensor: row[0] for sensor, row in rows.items()}
    both = known.logits(moment)
    one = known.logits({"mic0": moment["mic0"]})
    assert list(shapley.of_logits(one, known.log_prior).contributions) == ["mic0"]
    assert one["mic0"] == pytest.approx(both["mic0"] / known.fusion[frozenset(rows)])  # no doubt is left on its account
    assert known.logits({}) == {}
    assert known.fused({}) == pytest.approx(known.log_prior)


def test_the_game_is_played_for_the_very_probabilities_that_are_told(learned):
    line, known = learned
    rows, _ = line.draw(50, 10)
    for i in range(50):
        logits = known.logits({sensor: row[i] for sensor, row in rows.items()})
        p, decision = np.exp(known.fused(logits)), shapley.of_logits(logits, known.log_prior)
        assert decision.label == p.argmax()
        gain = math.log(p[decision.label]) - known.log_prior[decision.label]
        assert sum(decision.contributions.values()) == pytest.approx(gain, abs=1e-9)


def test_moments_with_gaps_and_without_labels_are_learned_from_as_far_as_they_go():
    line = Line()
    rows, state = line.draw(900, 11)
    rows["mic0"][:400] = np.nan
    labels = named(state)
    whole = States.fit(rows, labels)
    rows["cam0"][850:] = 1e6
    labels[850:] = [""] * 50
    found = States.fit(rows, labels)
    fresh, truth = line.draw(1500, 12)
    assert accuracy(judged(found, fresh, ["mic0"]), truth) > 0.7
    assert accuracy(judged(found, fresh, ["cam0"]), truth) > accuracy(judged(whole, fresh, ["cam0"]), truth) - 0.02


def test_sensors_never_seen_together_are_taken_for_copies_of_each_other():
    rows, state = Line(shared=0.0).draw(900, 13)
    rows["cam0"][:450], rows["mic0"][450:] = np.nan, np.nan
    assert States.fit(rows, named(state)).fusion[frozenset(rows)] == 0.5


def test_a_label_never_learned_is_named(learned):
    _, known = learned
    assert [known.index(name) for name in NAMES] == [0, 1, 2]
    with pytest.raises(ValueError, match="broken: a state never learned; known are idle, running, worn"):
        known.index("broken")


def test_what_a_sensor_cannot_have_said_is_refused_by_name(learned):
    line, known = learned
    row = line.draw(1, 14)[0]["cam0"][0]
    for features, said in [
        ({"cam7": row}, "cam7: states were learned from cam0, mic0 only"),
        ({"cam0": np.where(np.arange(12) == 3, np.nan, row)}, "cam0: features are not 12 finite numbers"),
        ({"cam0": row[:5]}, "cam0: features are not 12 finite numbers"),
    ]:
        with pytest.raises(ValueError, match=said):
            known.logits(features)


def test_too_little_to_learn_from_is_refused_with_the_reason():
    rows, state = Line().draw(300, 15)
    labels = named(state)
    with pytest.raises(ValueError, match="idle leaves nothing to tell apart"):
        States.fit(rows, ["idle"] * 300)
    with pytest.raises(ValueError, match="no label leaves nothing to tell apart"):
        States.fit(rows, [""] * 300)
    with pytest.raises(ValueError, match=f"cam0: 3 of broken: at least {LEAST} windows"):
        States.fit(rows, ["broken"] * 3 + labels[3:])
    with pytest.raises(ValueError, match="299 labels, but cam0 has 300, mic0 has 300"):
        States.fit(rows, labels[1:])
    with pytest.raises(ValueError, match="no sensor"):
        States.fit({}, labels)
    rows["mic0"][np.array(labels) == "worn"] = np.nan
    with pytest.raises(ValueError, match="mic0: 0 of worn"):
        States.fit(rows, labels)


def test_windows_that_share_samples_do_not_vouch_for_each_other():
    """Noise, but each window overlaps the next two: what learned from one knows their state, and nothing new."""
    off = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        samples = rng.normal(size=(74, 96))
        windows = samples[:-2] + samples[1:-1] + samples[2:]
        known = States.fit({"cam0": windows}, [name for name in NAMES for _ in range(24)])
        found = judged(known, {"cam0": math.sqrt(3) * rng.normal(size=(200, 96))}, ["cam0"])
        off.append(np.abs(found - np.exp(known.log_prior)).mean())
    assert np.mean(off) < 0.03


@pytest.mark.parametrize("factor", [0.1, 0.5, 3.0])
def test_sharpness_takes_back_what_logits_overstate(factor):
    rng = np.random.default_rng(16)
    right = 1.5 * rng.normal(size=(20_000, 3))
    state = np.array([rng.choice(3, p=p) for p in softmax(np.log(PRIOR) + right)])
    found = sharpness(factor * right, state, np.log(PRIOR))
    assert found == pytest.approx(1 / factor, rel=0.05)
    score = log_score(found * factor * right, state, np.log(PRIOR))
    assert score >= max(log_score(w * factor * right, state, np.log(PRIOR)) for w in (0.9 * found, 1.1 * found))


def test_sharpness_of_what_is_wrong_is_none_and_of_what_is_never_wrong_is_not_endless():
    state = np.array([0, 1] * 50)
    truth = np.eye(2)[state]
    assert sharpness(-truth, state, np.log([0.5, 0.5])) == 0.0
    sure = softmax(sharpness(truth, state, np.log([0.5, 0.5])) * truth).max()
    assert 0.98 < sure < 0.999


def test_examples_in_the_docstrings_are_true():
    assert doctest.testmod(states).failed == 0

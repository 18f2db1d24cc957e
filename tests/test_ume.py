"""Late fusion of what each sensor says: invariants of the ensemble, its gates, and the resampling behind them."""

from itertools import combinations, permutations

import numpy as np
import pytest
import torch

from lineside import shapley
from tests import labelled_scene
from trainer.fused import Fused
from trainer.fusion_gates import best_single, fusion_gain, retention
from trainer.fusion_result import shares_of
from trainer.joint import Models, Said, drawn
from trainer.labelled import by_time
from trainer.resampling import Resampling, interval, macro_f1
from trainer.ume import mean_of_logits, mean_of_probabilities, shares, simplex_weights

SENSORS = ("a", "b", "c")


@pytest.fixture
def said():
    chance = torch.Generator().manual_seed(0)
    z = 3 * torch.randn(3, 40, 4, generator=chance, dtype=torch.float64)
    return Said(SENSORS, z, torch.ones(3, 40, dtype=torch.bool))


@pytest.mark.parametrize("fuse", [mean_of_logits, mean_of_probabilities])
def test_the_order_of_sensors_does_not_matter_and_copies_of_one_give_it_back(said, fuse):
    whole = fuse(said.z, said.present)
    for order in permutations(range(3)):
        torch.testing.assert_close(fuse(said.z[list(order)], said.present), whole, rtol=0, atol=1e-14)
    one, copies = said.z[:1], said.z[:1].repeat(3, 1, 1)
    p = torch.softmax(fuse(copies, said.present), dim=1)
    torch.testing.assert_close(p, torch.softmax(one[0], dim=1), rtol=0, atol=1e-14)
    torch.testing.assert_close(torch.softmax(fuse(one, said.present[:1]), dim=1), torch.softmax(one[0], dim=1))


def test_with_one_sensor_the_ensemble_is_that_sensor_to_the_bit(said):
    assert torch.equal(mean_of_logits(said.z[:1], said.present[:1]), said.z[0])


@pytest.mark.parametrize("fuse", [mean_of_logits, mean_of_probabilities])
def test_who_is_missing_is_left_out_and_nothing_is_ever_nan(said, fuse):
    for size in (1, 2):
        for members in combinations(range(3), size):
            there = torch.zeros_like(said.present)
            there[list(members)] = True
            broken = torch.where(there[:, :, None], said.z, torch.nan)  # whatever stands where nobody is
            rest = fuse(said.z[list(members)], there[list(members)])
            torch.testing.assert_close(fuse(broken, there), rest, rtol=0, atol=1e-14)
    nobody = torch.zeros_like(said.present)
    assert torch.equal(fuse(said.z, nobody), torch.zeros(40, 4, dtype=torch.float64))


def test_a_sensor_of_no_weight_is_heard_when_it_is_alone(said):
    weights = simplex_weights(said.z.float() * 0, said.present, torch.zeros(40, dtype=torch.long))
    assert weights.min() > 0
    assert weights.sum().item() == pytest.approx(1)
    only = said.only(frozenset("c"))
    assert torch.equal(mean_of_logits(only.z, only.present, weights.double()), said.z[2])
    assert torch.equal(shares(only.z, only.present)[:, 0], torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))


def test_fitted_weights_find_the_sensor_that_knows():
    state = torch.arange(200) % 2
    knows = (state[:, None] == torch.arange(2)).float() + 0.6 * torch.randn(200, 2, generator=torch.manual_seed(0))
    z = torch.stack([5 * torch.randn(200, 2, generator=torch.manual_seed(1)), knows])  # loud nonsense, quiet truth
    present = torch.ones(2, 200, dtype=torch.bool)
    weights = simplex_weights(z, present, state)
    assert weights[1] > 0.8
    right = [(mean_of_logits(z, present, w).argmax(1) == state).float().mean() for w in (None, weights)]
    assert right[1] > right[0] + 0.1


def test_modality_dropout_shows_every_subset_and_invents_no_sensor():
    present = torch.ones(3, 4000, dtype=torch.bool)
    present[2, 2000:] = False
    kept = drawn(present, 0.4, np.random.default_rng(0))
    assert bool((present | ~kept).all())
    assert bool(kept.any(dim=0).all())
    seen = {tuple(column) for column in kept.T.tolist()}
    assert len(seen) == 7
    assert torch.equal(drawn(present, 0.0, np.random.default_rng(0)), present)


def test_contributions_are_those_of_the_device_and_sum_to_the_fused_decision(said):
    log_prior = np.log([0.1, 0.2, 0.3, 0.4])
    there = said.present.clone()
    there[1, :20] = False
    some = Said(SENSORS, said.z, there)
    model = Fused(Models({}, {}), ("p", "q", "r", "s"), log_prior, {"a": 0.5, "b": 0.2, "c": 0.3})
    fused = model.logits(some)
    decisions = model.contributions(some)
    for row, decision in enumerate(decisions):
        assert set(decision.contributions) == ({"a", "c"} if row < 20 else set(SENSORS))
        assert decision.label == int(fused[row].argmax())
        log_p = float(torch.log_softmax(fused[row], dim=0)[decision.label])
        assert decision.value == pytest.approx(max(log_p, np.log(shapley.P_LEAST)) - log_prior[decision.label])
        assert sum(decision.contributions.values()) == pytest.approx(decision.value, abs=1e-12)
    told = shares_of(decisions, SENSORS)
    assert sum(each["share"] for each in told.values()) == pytest.approx(1)
    assert told["b"]["mean_nats"] == pytest.approx(np.mean([d.contributions["b"] for d in decisions[20:]]))


# Gates


def right(share, count=400, seed=0):
    return (np.random.default_rng(seed).random(count) < share).astype(float)


def test_retention_passes_what_is_kept_and_stops_what_is_lost_or_not_surely_kept():
    before, draws = right(0.9), Resampling.of(np.arange(400))
    (same,) = retention({"cam0": before}, {"cam0": before}, draws)
    assert (same.name, same.value, same.limit, same.passed) == ("retention cam0", 1.0, 0.99, True)
    worse = before * (np.arange(400) % 20 > 0)  # a twentieth is lost
    (lost,) = retention({"cam0": worse}, {"cam0": before}, draws)
    assert not lost.passed
    assert 0.90 < lost.value < 0.95
    moved = before.copy()
    moved[:60] = 1 - moved[:60]  # as good on the whole or better, but who knows
    few = Resampling.of(np.arange(400) // 100)
    assert not retention({"cam0": moved}, {"cam0": before}, few)[0].passed
    assert retention({"cam0": worse}, {"cam0": before}, draws, loss=0.1)[0].passed


def test_fusion_gain_is_against_the_best_sensor_on_the_moments_at_which_it_is_there():
    draws = Resampling.of(np.arange(400))
    best, weak = right(0.9), right(0.6, seed=1)
    absent = np.where(np.arange(400) < 100, np.nan, best)
    assert best_single({"a": weak, "b": absent}) == "b"
    (gate,) = fusion_gain(np.where(np.isnan(absent), 0.0, absent), {"a": weak, "b": absent}, draws)
    assert (gate.name, gate.value, gate.passed) == ("fusion gain over b", 0.0, True)
    assert not fusion_gain(weak, {"a": weak, "b": best}, draws)[0].passed
    assert fusion_gain(best, {}, draws) == []


def test_a_gate_without_a_number_does_not_pass():
    nowhere = {"cam0": np.full(5, np.nan)}
    assert not any(gate.passed for gate in retention(nowhere, nowhere, Resampling.of(np.arange(5))))


@pytest.mark.slow
def test_intervals_are_wider_where_neighbours_are_alike_and_cover_the_truth():
    alike = np.repeat(right(0.7, 40), 10)
    wide, narrow = (interval(Resampling.of(g).means(alike)) for g in (np.arange(400) // 10, np.arange(400)))
    assert wide[1] - wide[0] > 2 * (narrow[1] - narrow[0])
    covered = [
        low <= 0.7 <= high
        for low, high in (interval(Resampling.of(np.arange(200), 500).means(right(0.7, 200, s))) for s in range(200))
    ]
    assert 0.88 < np.mean(covered) < 0.99


def test_macro_f1_is_the_mean_of_2pr_over_p_plus_r_of_the_classes_that_occur():
    rng = np.random.default_rng(3)
    state, told = rng.integers(0, 3, 300), rng.integers(0, 3, 300)
    each = []
    for k in range(3):
        precision, recall = (state[told == k] == k).mean(), (told[state == k] == k).mean()
        each.append(2 * precision * recall / (precision + recall))
    assert macro_f1(state, told, 3) == pytest.approx(np.mean(each))
    assert macro_f1(state, told, 7) == pytest.approx(np.mean(each))
    one = np.full(len(Resampling.of(np.zeros(300)).drawn), macro_f1(state, told, 3))
    np.testing.assert_allclose(Resampling.of(np.zeros(300, np.int64)).macro_f1(state, told, 3), one)


# Parts


def test_no_second_is_in_two_parts_and_each_has_every_label():
    data = labelled_scene.dataset(count=240)
    half = data.__class__(**{**vars(data), "start_ns": data.start_ns[0] + np.arange(240) * data.hop_ns // 2})
    found = by_time(half, 0.2, 0.2, "scene")
    spans = {}
    for part, rows in found.rows.items():
        assert set(found.state[rows]) == {0, 1, 2}
        spans[part] = [(start, start + half.length_ns) for start in half.start_ns[rows]]
    for a, b in combinations(spans, 2):
        assert all(x[1] <= y[0] or y[1] <= x[0] for x in spans[a] for y in spans[b])
    used = np.concatenate(list(found.rows.values()))
    assert len(set(used)) == len(used) > 180

"""Protection of heads (T1 to T13 of shared/design/algorithms/dns.md, section 9) and the certificate that proves it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from trainer.certificate import embedding_drift, similarity_drift
from trainer.projection import basis, homogeneous, nothing_seen, protect, rotate

GOLDEN = Path(__file__).parents[2] / "shared" / "golden" / "dns_projector.npz"
FEATURES, DIM, RANK = 24, 12, 6


def low_rank(n=200, rank=RANK, seed=0, dtype=torch.float32):
    """Inputs (n, FEATURES) that use only `rank` directions."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, rank, generator=g, dtype=dtype) @ torch.randn(rank, FEATURES, generator=g, dtype=dtype)


def head(seed=1):
    return nn.Parameter(torch.randn(DIM, FEATURES + 1, generator=torch.Generator().manual_seed(seed)) / 5)


def drifted(hold: bool, optimiser=torch.optim.AdamW, project_gradient=False, steps=200):
    """Largest change of the old inputs' embeddings after learning something else."""
    old, new = low_rank(), low_rank(seed=7, rank=FEATURES)
    weight = head()
    start = weight.detach().clone()
    protection = protect(weight, nothing_seen(FEATURES).joined(old), epsilon=0.0)
    steps_of = optimiser([weight], lr=1e-2, weight_decay=1e-2)
    wanted = torch.randn(len(new), DIM, generator=torch.Generator().manual_seed(9))
    x = homogeneous(new).float()
    v = protection.directions.float()
    for _ in range(steps):
        steps_of.zero_grad()
        ((x @ weight.T - wanted) ** 2).mean().backward()
        if project_gradient:
            weight.grad -= weight.grad @ v @ v.T
        steps_of.step()
        if hold:
            protection.hold(weight)
    moved = (homogeneous(old).float() @ (weight.detach() - start).T).abs().max()
    learned = (weight.detach() - start).abs().max()
    return float(moved), float(learned)


@pytest.mark.parametrize("optimiser", [torch.optim.AdamW, torch.optim.SGD])
def test_old_embeddings_stay_under_any_optimiser_while_the_head_learns(optimiser):
    moved, learned = drifted(True, optimiser)
    assert moved <= 1e-5
    assert learned > 1e-2


def test_without_the_projection_old_embeddings_move():
    assert drifted(False)[0] > 1e-1


def test_projecting_the_gradient_is_not_enough_under_adamw():
    assert drifted(False, project_gradient=True)[0] > 1e-3


def test_a_fully_protected_head_stays_bit_for_bit():
    weight = head()
    start = weight.detach().clone()
    protection = protect(weight, nothing_seen(FEATURES).joined(torch.randn(400, FEATURES)), epsilon=0.0)
    assert protection.capacity == 1.0
    for _ in range(50):
        with torch.no_grad():
            weight += 0.1 * torch.randn_like(weight)
        protection.hold(weight)
    assert torch.equal(weight.detach(), start)


def test_an_unseen_modality_is_free():
    weight, free = head(), head(3)
    protection = protect(weight, nothing_seen(FEATURES), epsilon=1e-3)
    with torch.no_grad():
        weight.copy_(free)
    protection.hold(weight)
    assert protection.capacity == 0
    assert torch.equal(weight, free)


def test_projector_is_symmetric_idempotent_and_of_the_data_s_rank():
    second = nothing_seen(FEATURES).joined(low_rank()).second
    v = basis(second, 0.0)
    p = v @ v.T
    assert v.shape[1] == RANK + 1  # the data's directions and the bias
    assert (p - p.T).abs().max() <= 1e-12
    assert (p @ p - p).abs().max() <= 1e-12


def test_protected_directions_do_not_depend_on_the_scale_of_the_features():
    x = low_rank(rank=FEATURES).double()
    v, w = (basis((scale * x).T @ (scale * x) / len(x), 0.02) for scale in (1.0, 1000.0))
    assert v.shape == w.shape
    assert 0 < v.shape[1] < FEATURES
    assert (v @ v.T - w @ w.T).abs().max() <= 1e-9


def test_epsilon_keeps_the_fewest_directions_that_hold_the_power():
    second = torch.diag(torch.tensor([5.0, 3.0, 1.5, 0.5], dtype=torch.float64))
    assert [basis(second, epsilon).shape[1] for epsilon in (0.0, 0.06, 0.21, 0.6)] == [4, 3, 2, 1]


def test_moments_are_the_plain_mean_over_all_samples_ever_seen():
    parts = [low_rank(n, seed=n) for n in (10, 200, 33)]
    seen = nothing_seen(FEATURES)
    for part in parts:
        seen = seen.joined(part)
    x = homogeneous(torch.cat(parts))
    assert seen.count == 243
    torch.testing.assert_close(seen.second, x.T @ x / 243, rtol=1e-12, atol=1e-12)


def learn(heads, inputs, holds=(), steps=200, optimiser=torch.optim.AdamW):
    """Train heads (name -> module) on new pairs of inputs by InfoNCE, with weight decay; then `holds` are called."""
    stepper = optimiser([p for head in heads.values() for p in head.parameters()], lr=1e-2, weight_decay=1e-2)
    for step in range(steps):
        a, b = (homogeneous(inputs[name]) @ head.weight.T for name, head in heads.items())
        stepper.zero_grad()
        torch.nn.functional.cross_entropy(a @ b.T / 10, torch.arange(len(a))).backward()
        stepper.step()
        if (step + 1) % 8 == 0:
            for hold, head in zip(holds, heads.values(), strict=False):
                hold(head.weight)


def linear(seed):
    module = nn.Linear(FEATURES + 1, DIM, bias=False).double()
    with torch.no_grad():
        module.weight.copy_(head(seed))
    return module


class Pair:
    """Two heads with old low-rank inputs, and new ones that use all directions."""

    def __init__(self):
        self.heads = {"a": linear(11), "b": linear(12)}
        self.old = {"a": low_rank(60, seed=13, dtype=torch.float64), "b": low_rank(60, seed=14, dtype=torch.float64)}
        self.new = {"a": low_rank(40, FEATURES, seed=15), "b": low_rank(40, FEATURES, seed=16)}
        self.seen = {name: nothing_seen(FEATURES).joined(x) for name, x in self.old.items()}

    def embedded(self, name):
        return (homogeneous(self.old[name]) @ self.heads[name].weight.T).detach()

    def products(self):
        return self.embedded("a") @ self.embedded("b").T

    def protection(self, name, other="", epsilon=1e-13):
        w = self.heads[other].weight.detach() if other else None
        partners = w @ self.seen[other].second @ w.T if other else None
        return protect(self.heads[name].weight, self.seen[name], epsilon, partners=partners)


def test_t3_the_allowed_part_is_an_orthogonal_projection():
    pair = Pair()
    dual = pair.protection("a", "b")
    g, h = (
        torch.randn(DIM, FEATURES + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(k)) for k in (1, 2)
    )
    for protection in (pair.protection("a"), dual):
        once = allowed(protection, g)
        assert (allowed(protection, once) - once).abs().max() <= 1e-12
        assert float((once * h).sum()) == pytest.approx(float((g * allowed(protection, h)).sum()), abs=1e-10)
        assert float((g * once).sum()) == pytest.approx(float((once**2).sum()), rel=1e-12)
    assert (dual.outputs.T @ allowed(dual, g) @ dual.directions).abs().max() <= 1e-12


def allowed(protection, displacement):
    """What is left of a displacement when its head has been put back."""
    weight = nn.Parameter(protection.start + displacement)
    protection.hold(weight)
    return (weight - protection.start).detach()


def test_t4_factored_and_dense_projection_agree():
    dual = Pair().protection("a", "b")
    g = torch.randn(DIM, FEATURES + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    dense = g - dual.outputs @ dual.outputs.T @ g @ dual.directions @ dual.directions.T
    assert (allowed(dual, g) - dense).abs().max() <= 1e-12


def test_t5_rotated_and_held_heads_keep_old_embeddings_to_the_tenth_digit():
    kept = {}
    for way in ("hold", "rotate", "nothing"):
        pair = Pair()
        before = {name: pair.embedded(name) for name in pair.heads}
        protections = [pair.protection(name) for name in pair.heads]
        if way == "rotate":
            for protection, module in zip(protections, pair.heads.values(), strict=True):
                rotate(module, protection)
        learn(pair.heads, pair.new, [p.hold for p in protections] if way == "hold" else ())
        kept[way] = max(float((pair.embedded(name) - was).abs().max()) for name, was in before.items())
        moved = (pair.heads["a"].weight.detach() - protections[0].start).abs().max()
        assert moved > 1e-2
    assert kept["hold"] <= 1e-10
    assert kept["rotate"] <= 1e-10
    assert kept["nothing"] > 1e-2


def test_t6_one_head_dual_and_one_one_sided_keep_inner_products_but_not_norms():
    pair = Pair()
    before, norms = pair.products(), pair.embedded("a").norm(dim=1)
    learn(pair.heads, pair.new, [pair.protection("a", "b").hold, pair.protection("b").hold])
    assert (pair.products() - before).abs().max() <= 1e-10
    assert (pair.embedded("a").norm(dim=1) - norms).abs().max() > 1e-3


def test_t7_two_dual_heads_of_a_recurring_pair_drift_by_the_product_of_their_moves():
    pair = Pair()
    before = pair.products()
    protections = [pair.protection("a", "b"), pair.protection("b", "a")]
    learn(pair.heads, pair.new, [p.hold for p in protections])
    da, db = (module.weight.detach() - p.start for module, p in zip(pair.heads.values(), protections, strict=True))
    expected = homogeneous(pair.old["a"]) @ da.T @ db @ homogeneous(pair.old["b"]).T
    assert expected.abs().max() > 1e-3
    assert (pair.products() - before - expected).abs().max() <= 1e-9


def test_t10_a_rotated_head_with_nothing_free_stays_bit_for_bit():
    module = nn.Linear(FEATURES + 1, DIM, bias=False)
    start = module.weight.detach().clone()
    rotate(module, protect(module.weight, nothing_seen(FEATURES).joined(torch.randn(400, FEATURES)), epsilon=0.0))
    assert module.parametrizations.weight.original.numel() == 0
    assert torch.equal(module.weight, start)


@pytest.mark.skipif(not GOLDEN.exists(), reason="needs ../shared/golden beside the repository")
@pytest.mark.parametrize("k", [0, 1, 2])
def test_projector_equals_the_published_one_at_the_same_rank(k):
    golden = np.load(GOLDEN)
    second = torch.from_numpy(golden["A"])
    values = np.sort(golden["eigenvalues"])[::-1].clip(0)
    rank = int(golden[f"rank{k}"])
    dropped = values[rank:].sum() / values.sum()
    v = basis(second, float(dropped) + 1e-9)
    np.testing.assert_allclose(np.asarray(v @ v.T), golden[f"P{k}"], atol=1e-12)


@pytest.mark.skipif(not GOLDEN.exists(), reason="needs ../shared/golden beside the repository")
def test_the_published_defect_of_threshold_zero_is_not_ours():
    golden = np.load(GOLDEN)
    assert basis(torch.from_numpy(golden["A"]), 0.0).shape[1] == int((golden["eigenvalues"] > 1e-9).sum())


def changes():
    a, b = low_rank(90, 9, seed=3), low_rank(70, 11, seed=4)
    before = [head(5).detach().double(), head(6).detach().double()]
    after = [
        w + 1e-3 * torch.randn(w.shape, generator=torch.Generator().manual_seed(i)).double()
        for i, w in enumerate(before)
    ]
    return (homogeneous(a), homogeneous(b)), before, after


def second(x):
    return x.T @ x / len(x)


def test_embedding_drift_equals_brute_force_over_the_old_inputs():
    (x, _), before, after = changes()
    moved = ((x @ (after[0] - before[0]).T) ** 2).sum(dim=1).mean().sqrt()
    was = ((x @ before[0].T) ** 2).sum(dim=1).mean().sqrt()
    assert embedding_drift(before[0], after[0], second(x)) == pytest.approx(float(moved / was), rel=1e-8)


def test_similarity_drift_equals_brute_force_over_all_old_pairs():
    (x, y), before, after = changes()
    old, new = ((x @ w[0].T) @ (y @ w[1].T).T for w in (before, after))
    brute = float(((new - old) ** 2).mean().sqrt() / (old**2).mean().sqrt())
    got = similarity_drift(tuple(before), tuple(after), (second(x), second(y)))
    assert got == pytest.approx(brute, rel=1e-8)


def test_nothing_moved_is_no_drift():
    (x, y), before, _ = changes()
    assert embedding_drift(before[0], before[0], second(x)) == 0
    assert similarity_drift(tuple(before), tuple(before), (second(x), second(y))) == 0


def test_hold_is_exact_at_any_cadence():
    weight = head()
    protection = protect(weight, nothing_seen(FEATURES).joined(low_rank()), epsilon=0.0)
    with torch.no_grad():
        weight += 100 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))
    protection.hold(weight)
    moved = homogeneous(low_rank()) @ (weight.detach().double() - protection.start).T
    assert moved.abs().max() <= 1e-3  # float32 rounding of weights of size 100


@pytest.mark.parametrize("push", [1e-4, 10.0])
def test_unprotected_directions_move_no_further_than_the_drift_budget(push):
    """The certificate's own measure, after any push: left alone below the budget, nine tenths of it above."""
    weight, seen = head(), nothing_seen(FEATURES).joined(low_rank(rank=FEATURES))
    start = weight.detach().double().clone()
    free, held = (protect(weight, seen, 0.2, budget) for budget in (float("inf"), 0.05))
    with torch.no_grad():
        weight += push * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))
    pushed = nn.Parameter(weight.detach().clone())
    free.hold(pushed)
    held.hold(weight)
    loose, bound = (embedding_drift(start, w.detach().double(), seen.second) for w in (pushed, weight))
    assert 0 < held.capacity < 1
    assert bound == pytest.approx(loose if push < 1 else 0.045, rel=1e-4)
    assert (loose > 0.05) == (push > 1)

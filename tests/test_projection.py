"""One-sided protection of heads (shared/design/algorithms/dns.md, section 9) and the certificate that proves it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from trainer.certificate import embedding_drift, similarity_drift
from trainer.projection import basis, homogeneous, nothing_seen, protect

GOLDEN = Path(__file__).parents[2] / "shared" / "golden" / "dns_projector.npz"
FEATURES, DIM, RANK = 24, 12, 6


def low_rank(n=200, rank=RANK, seed=0):
    """Inputs (n, FEATURES) that use only `rank` directions."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, rank, generator=g) @ torch.randn(rank, FEATURES, generator=g)


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

"""The losses against slow sums, what absent windows may not do, and that every defect is one."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from trainer import defects
from trainer.losses import Kinds, Seen, defect_loss, info_nce, pair_loss, sensor_losses, total
from trainer.plan import DefectSettings

TEMPERATURE = 0.2


def unit(*shape, seed=0):
    return functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double(), dim=-1)


def seen(n=6, present=None, seed=0, wrong=True):
    here = torch.ones(n, dtype=torch.bool) if present is None else torch.tensor(present)
    others = (unit(n, 8, seed=seed + 1), unit(2, n, 8, seed=seed + 2)) if wrong else (None, None)
    return Seen(unit(n, 8, seed=seed), here, *others)


def slow_nce(asked, answers, others):
    """-log of the partner's share of all candidates' exp(cosine / temperature), averaged: one sum at a time."""
    total = 0.0
    for i in range(len(asked)):
        weights = [math.exp(float(asked[i] @ c) / TEMPERATURE) for c in [*answers, *others]]
        total -= math.log(weights[i] / sum(weights))
    return total / len(asked)


@pytest.mark.parametrize("wrong", [True, False])
def test_pair_loss_is_the_slow_sum_over_the_moments_that_have_both(wrong):
    a = seen(6, [True, True, False, True, True, True], 10, wrong)
    b = seen(6, [True, True, True, True, False, True], 20, wrong)
    both, here_a, here_b = [0, 1, 3, 5], [0, 1, 3, 4, 5], [0, 1, 2, 3, 5]
    forth = slow_nce(a.z[both], b.z[both], b.defect[:, here_b].flatten(0, 1) if wrong else [])
    back = slow_nce(b.z[both], a.z[both], a.defect[:, here_a].flatten(0, 1) if wrong else [])
    assert pair_loss(a, b, TEMPERATURE).item() == pytest.approx((forth + back) / 2, rel=1e-12)


def test_defect_loss_is_the_slow_sum():
    """Each window against itself among all defects, and against each normal one among all normal ones and defects."""
    one = seen(5, [True, False, True, True, True], 30)
    here, total = [0, 2, 3, 4], 0.0
    for i in here:
        normal = {j: math.exp(float(one.z[i] @ one.again[j]) / TEMPERATURE) for j in here}
        wrong = sum(math.exp(float(one.z[i] @ one.defect[k, j]) / TEMPERATURE) for k in range(2) for j in here)
        total -= 0.9 * math.log(normal[i] / (normal[i] + wrong))
        total -= 0.6 * np.mean([math.log(w / (sum(normal.values()) + wrong)) for w in normal.values()])
    assert defect_loss(one, TEMPERATURE, 0.9, 0.6).item() == pytest.approx(total / len(here), rel=1e-12)


def test_a_sensor_without_a_partner_is_contrasted_with_its_own_windows():
    one = seen(5, [True, False, True, True, True], 30)
    here = [0, 2, 3, 4]
    terms = sensor_losses({"a": one}, [], TEMPERATURE, DefectSettings())
    assert list(terms) == ["alone a"]
    assert total(terms, {}).item() == pytest.approx(
        slow_nce(one.z[here], one.again[here], one.defect[:, here].flatten(0, 1)), rel=1e-12
    )


def test_absent_windows_change_nothing_and_get_no_gradient():
    z = unit(4, 8, seed=1).requires_grad_()
    absent = torch.tensor([True, True, True, False])
    b = seen(4, None, 2)
    loss = pair_loss(Seen(z, absent, z.detach(), z.detach()[None]), b, TEMPERATURE)
    loss.backward()
    moved = z.detach().clone()
    moved[3] = math.nan
    again = pair_loss(Seen(moved, absent, z.detach(), z.detach()[None]), b, TEMPERATURE)
    assert again.item() == loss.item()
    assert z.grad[3].abs().max() == 0
    assert z.grad[:3].abs().min() > 0


def test_a_pair_that_never_meets_is_left_out_of_the_mean():
    batch = {"a": seen(4, seed=1), "b": seen(4, seed=4), "c": seen(4, [True, False, False, False], 7)}
    pairs = [("a", "b"), ("a", "c"), ("b", "c"), ("a", "not there")]
    terms = sensor_losses(batch, pairs, TEMPERATURE, DefectSettings())
    assert sorted(terms) == ["a+b", "defect a", "defect b", "defect c"]
    own = np.mean([terms[name].item() for name in ("defect a", "defect b", "defect c")])
    assert total(terms, {}).item() == pytest.approx(terms["a+b"].item() + own)
    assert total(terms, {"pair": 0.25}).item() == pytest.approx(0.25 * terms["a+b"].item() + own)
    nothing = sensor_losses({"a": seen(1, wrong=False)}, pairs, TEMPERATURE, DefectSettings())
    assert (nothing, total(nothing, {})) == ({}, None)


def test_labels_make_every_moment_of_a_kind_a_right_answer():
    a, b = seen(4, [True, True, True, False], 1, wrong=False), seen(4, None, 2, wrong=False)
    kinds = Kinds(torch.tensor([0, 0, 1, 1]), torch.tensor([True, True, False, True]))
    shares = {(i, j): math.exp(float(a.z[i] @ b.z[j]) / TEMPERATURE) for i in range(3) for j in range(3)}
    forth = [-math.log(shares[i, j] / sum(shares[i, k] for k in range(3))) for i in (0, 1) for j in (0, 1)]
    back = [-math.log(shares[j, i] / sum(shares[k, i] for k in range(3))) for i in (0, 1) for j in (0, 1)]
    assert pair_loss(a, b, TEMPERATURE, kinds).item() == pytest.approx((np.mean(forth) + np.mean(back)) / 2, rel=1e-6)


def test_more_wrong_answers_make_it_harder():
    a, b = unit(5, 8, seed=1), unit(5, 8, seed=2)
    assert info_nce(a, b, unit(3, 8, seed=3), TEMPERATURE) > info_nce(a, b, None, TEMPERATURE)


HARMLESS_NOISE = {"camera": 2.0, "microphone": 0.1, "series": 0.03, "features": 0.03}
WINDOWS = {"camera": (6, 48, 64), "microphone": (1, 64, 59), "series": (3, 256), "features": (96,)}


def windows(modality, n=4):
    rng = np.random.default_rng(5)
    if modality == "camera":
        smooth = np.kron(rng.uniform(0, 255, (n, 6, 12, 16)), np.ones((4, 4)))
        return torch.from_numpy(smooth.astype(np.uint8))
    return torch.from_numpy(rng.normal(-6 if modality == "microphone" else 20, 1, (n, *WINDOWS[modality])).astype("f4"))


@pytest.mark.parametrize(
    ("modality", "kind"),
    [(m, k) for m, kinds in defects.DEFECTS.items() for k in kinds],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_every_defect_changes_a_window_more_than_harmless_noise(modality, kind):
    """Every row of the table: same shape, finite, in range, the input untouched, drawn from the generator alone."""
    batch = windows(modality)
    before, real = batch.clone(), batch.float()
    changed = torch.stack([kind(window, np.random.default_rng(i)) for i, window in enumerate(real)])
    again = torch.stack([kind(window, np.random.default_rng(i)) for i, window in enumerate(real)])
    assert changed.shape == batch.shape
    assert torch.isfinite(changed).all()
    assert torch.equal(changed, again)
    assert torch.equal(batch, before)
    assert ((changed - real) ** 2).mean() > 2 * HARMLESS_NOISE[modality] ** 2
    if modality == "camera":
        assert changed.min() >= 0
        assert changed.max() <= 255


@pytest.mark.parametrize("modality", list(WINDOWS))
def test_harmless_changes_are_small_and_of_the_generator_alone(modality):
    batch = windows(modality)
    weak, again = (defects.weakly(modality, batch, [np.random.default_rng(k) for k in range(4)]) for _ in range(2))
    assert torch.equal(weak, again)
    alone = defects.weakly(modality, batch[2:3], [np.random.default_rng(2)])
    assert torch.equal(alone[0], weak[2])  # whatever else is in the batch
    assert not torch.equal(weak, batch.float())
    assert abs(float(weak.mean() - batch.float().mean())) < 0.1 * float(batch.float().abs().mean())

"""Contrast by labels, distillation and their ledger: cila.md's invariants, golden vectors, what a buffer keeps."""

import doctest
import hashlib
import itertools
import math
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from trainer import ledger, supervised
from trainer.ledger import (
    Monitor,
    RunningMean,
    StageRow,
    Temperatures,
    adaptive_lambda,
    bound,
    choose,
    clamped_stages,
    merge,
    monitor,
    slack,
    split,
)
from trainer.losses import Seen, pair_loss
from trainer.supervised import (
    asymmetric_contrast,
    cross_relation_distillation,
    relation_distillation,
    supervised_pair,
)

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"
golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="needs ../shared/golden beside the repository")
TAU = 0.2


def load(name):
    with np.load(GOLDEN / f"{name}.npz") as held:
        return {key: torch.from_numpy(held[key]) for key in held.files}


def close(got, want, tolerance):
    assert float((got - want).abs().max()) <= tolerance * max(1.0, float(want.abs().max()))


def unit(*shape, seed=0):
    return functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double(), dim=-1)


def rotation(dim, seed):
    return torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed)).double()).Q


def truth(*values):
    return torch.tensor(values, dtype=torch.bool)


def views(raw):
    """(samples, views, dim) to unit rows: view 1 of all samples, then view 2."""
    return functional.normalize(torch.cat(raw.unbind(1)), dim=1)


def slow_contrast(asked, candidates, positives):
    """Mean of -log share over `positives` (indices) of `candidates`, one sum at a time."""
    weights = {j: math.exp(float(asked @ z) / TAU) for j, z in candidates.items()}
    return -sum(math.log(weights[j] / sum(weights.values())) for j in positives) / len(positives)


def entropy(logits):
    return float(-(functional.softmax(logits, 1) * functional.log_softmax(logits, 1)).sum(1).mean())


# Asymmetric contrast


@golden
@pytest.mark.parametrize(
    ("tag", "tau", "base"), [("t05_b007", 0.5, 0.07), ("t01_b007", 0.1, 0.07), ("t05_b05", 0.5, 0.5)]
)
def test_the_authors_contrast_and_its_gradient(tag, tau, base):
    held = load("co2l_asym_supcon")
    raw, labels = held["z_raw"].requires_grad_(), held["labels"].repeat(2)
    current = torch.isin(labels, held["target_labels"])
    loss = asymmetric_contrast(views(raw), labels, current, tau, base, published=True)
    loss.backward()
    close(loss.detach(), held[f"{tag}_loss_mean"], 1e-10)
    close(raw.grad, held[f"{tag}_grad_z_raw"], 1e-10)
    # Each sample's loss is what remains when it alone is asked for.
    for i, want in enumerate(held[f"{tag}_loss_none"]):
        alone = (torch.arange(12) % 6 == i) & current
        close(6 * asymmetric_contrast(views(raw), labels, alone, tau, base, published=True).detach(), want, 1e-10)


@golden
def test_the_authors_contrast_where_only_the_first_view_is_asked_for():
    held = load("co2l_asym_supcon")
    raw, labels = held["z_raw"].requires_grad_(), held["labels"].repeat(2)
    first = torch.isin(labels, held["target_labels"]) & (torch.arange(12) < 6)
    # Their mean is over the six that may be asked for, ours over all twelve rows.
    loss = 2 * asymmetric_contrast(views(raw), labels, first, 0.5, 0.07, published=True)
    loss.backward()
    close(loss.detach(), held["t05_b007_one_loss_mean"], 1e-10)
    close(raw.grad, held["t05_b007_one_grad_z_raw"], 1e-10)


@golden
@pytest.mark.parametrize("published", [True, False])
def test_with_all_classes_current_it_is_supervised_contrast(published):
    held = load("co2l_asym_supcon")
    z, everyone = views(held["z_raw"]), torch.ones(12, dtype=torch.bool)
    got = asymmetric_contrast(z, held["labels"].repeat(2), everyone, 0.5, 0.07, published=published)
    close(got, held["allcurrent_t05_b007_supcon_original"], 1e-10)


@golden
@pytest.mark.parametrize("published", [True, False])
def test_a_single_view_without_positives_is_finite_where_the_authors_code_is_not(published):
    held = load("co2l_asym_supcon")
    assert torch.isnan(held["trap_singleview_loss"])
    z = held["trap_singleview_z"][:, 0].requires_grad_()
    loss = asymmetric_contrast(z, held["trap_singleview_labels"], truth(1, 1, 1, 1), 0.5, 0.07, published=published)
    loss.backward()
    assert loss > 0  # labels are 0 1 1 2: two rows have a positive
    assert torch.isfinite(z.grad).all()


LABELS, ANCHORS = torch.tensor([5, 5, 9, -1, 5, 9, 3, 3, -1]), truth(1, 1, 1, 1, 0, 1, 0, 0, 1)


def test_contrast_is_the_slow_sum_over_new_rows_that_have_a_positive():
    z = unit(9, 6)
    every = [
        slow_contrast(z[i], {j: z[j] for j in range(9) if j != i}, positives)
        for i, positives in {0: [1, 4], 1: [0, 4], 2: [5], 5: [2]}.items()
    ]
    assert asymmetric_contrast(z, LABELS, ANCHORS, TAU).item() == pytest.approx(sum(every) / 4, rel=1e-12)
    published = asymmetric_contrast(z, LABELS, ANCHORS, TAU, 0.07, published=True)
    assert published.item() == pytest.approx(TAU / 0.07 * sum(every) / 9, rel=1e-12)


@pytest.mark.parametrize("published", [True, False])
@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_with_nothing_to_ask_for_contrast_and_gradient_are_zero(n, published):
    one_each, nobody, everyone = torch.arange(n), torch.zeros(n, dtype=torch.bool), torch.ones(n, dtype=torch.bool)
    for labels, anchors in ((torch.zeros(n).long(), nobody), (one_each, everyone), (-1 - one_each % 2, everyone)):
        z = unit(n, 4).requires_grad_()
        loss = asymmetric_contrast(z, labels, anchors, TAU, 0.07, published=published)
        loss.backward()
        assert loss == 0
        assert torch.equal(z.grad, torch.zeros(n, 4).double())


def test_renaming_the_labels_of_the_buffer_changes_nothing():
    z, renamed = unit(9, 6), torch.tensor([5, 5, 9, -1, 5, 9, 70, 70, -1])
    swapped = torch.tensor([9, 9, 5, -1, 9, 5, 3, 3, -1])
    want = asymmetric_contrast(z, LABELS, ANCHORS, TAU)
    assert asymmetric_contrast(z, renamed, ANCHORS, TAU) == want
    assert asymmetric_contrast(z, swapped, ANCHORS, TAU) == want


def test_the_gradient_reaches_replayed_and_unlabelled_rows_and_pushes_them_away():
    """As wrong answers they go downhill away from each anchor, by the share that they have of its answers."""
    z = unit(9, 6).requires_grad_()
    asymmetric_contrast(z, LABELS, ANCHORS, TAU).backward()
    still = z.detach()
    share = functional.softmax((still @ still.T / TAU).fill_diagonal_(-1e9), dim=1)
    asked, wrong = [0, 1, 2, 5], [3, 6, 7, 8]
    torch.testing.assert_close(z.grad[wrong], share[asked][:, wrong].T @ still[asked] / (4 * TAU))


def test_contrast_does_not_depend_on_the_order_or_a_rotation():
    z, order = unit(9, 6), torch.randperm(9, generator=torch.Generator().manual_seed(1))
    want = asymmetric_contrast(z, LABELS, ANCHORS, TAU).item()
    assert asymmetric_contrast(z[order], LABELS[order], ANCHORS[order], TAU).item() == pytest.approx(want, rel=1e-12)
    assert asymmetric_contrast(z @ rotation(6, 2), LABELS, ANCHORS, TAU).item() == pytest.approx(want, rel=1e-12)


def test_half_precision_loses_nothing_under_autocast_and_nothing_overflows():
    z, t = unit(9, 6).float(), unit(9, 6, seed=1).float()
    losses = {
        "contrast": lambda z, t: asymmetric_contrast(z, LABELS, ANCHORS, TAU),
        "pair": lambda z, t: supervised_pair(z, t, LABELS, ANCHORS, TAU),
        "relation": lambda z, t: relation_distillation(z, t, TAU, 0.01),
        "cross": lambda z, t: cross_relation_distillation(z, t, t, z, TAU, 0.01),
    }
    for name, loss in losses.items():
        plain = loss(z, t)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(loss(z, t), plain), name
        assert loss(z.bfloat16(), t.half()).dtype == torch.float32, name
        far = (1e3 * z).requires_grad_()  # a shares-then-log is NaN here
        loss(far, 1e3 * t).backward()
        assert torch.isfinite(far.grad).all(), name


# The pair of sensors


def test_the_pair_is_the_slow_sum_there_and_back():
    za, zb = unit(9, 6, seed=1), unit(9, 6, seed=2)
    positives = {0: [0, 1, 4], 1: [0, 1, 4], 2: [2, 5], 3: [3], 5: [2, 5], 8: [8]}
    both = [
        slow_contrast(a[i], dict(enumerate(b)), found)
        for a, b in ((za, zb), (zb, za))
        for i, found in positives.items()
    ]
    got = supervised_pair(za, zb, LABELS, ANCHORS, TAU)
    assert got.item() == pytest.approx(sum(both) / 12, rel=1e-12)
    assert supervised_pair(zb, za, LABELS, ANCHORS, TAU).item() == pytest.approx(got.item(), rel=1e-12)


def test_without_labels_the_pair_is_that_of_a_stage_without_labels():
    za, zb, everyone = unit(6, 4, seed=1), unit(6, 4, seed=2), torch.ones(6, dtype=torch.bool)
    got = supervised_pair(za, zb, torch.full((6,), -1), everyone, TAU)
    assert got.item() == pytest.approx(pair_loss(Seen(za, everyone), Seen(zb, everyone), TAU).item(), rel=1e-12)


def test_a_replayed_row_of_the_pair_is_never_asked_for_but_learns_as_an_answer():
    za, zb = unit(5, 4, seed=1).requires_grad_(), unit(5, 4, seed=2)
    labels, anchors = torch.tensor([1, 1, 2, 3, 3]), truth(1, 1, 1, 0, 0)
    supervised_pair(za, zb, labels, anchors, TAU).backward()
    assert za.grad[3:].norm(dim=1).min() > 0
    renamed = torch.tensor([1, 1, 2, 8, 9])
    want = supervised_pair(za, zb, labels, anchors, TAU)
    assert supervised_pair(za, zb, renamed, anchors, TAU) == want
    assert supervised_pair(za, zb, renamed, truth(1, 1, 1, 1, 1), TAU) != want


@pytest.mark.parametrize("n", [0, 4])
def test_a_pair_without_anchors_is_zero_with_zero_gradient(n):
    za = unit(n, 4).requires_grad_()
    loss = supervised_pair(za, unit(n, 4, seed=1), torch.zeros(n).long(), torch.zeros(n, dtype=torch.bool), TAU)
    loss.backward()
    assert loss == 0
    assert torch.equal(za.grad, torch.zeros(n, 4).double())


# Relation distillation


@golden
@pytest.mark.parametrize(
    ("tag", "k", "k_teacher", "weight"),
    [
        ("k02_ks001_p1_t05", 0.2, 0.01, 1.0),
        ("k02_ks02_p1_t05", 0.2, 0.2, 1.0),
        ("k05_ks01_p25_t05", 0.5, 0.1, 2.5),
        ("k02_ks001_p0_t05", 0.2, 0.01, 0.0),
    ],
)
def test_the_authors_total_of_contrast_and_distillation_and_its_gradient(tag, k, k_teacher, weight):
    held = load("co2l_ird")
    raw, labels = held["z_student_raw"].requires_grad_(), held["labels"].repeat(2)
    z, teacher = functional.normalize(raw, dim=1), functional.normalize(held["z_teacher_raw"], dim=1)
    contrast = asymmetric_contrast(z, labels, labels >= 2, 0.5, 0.07, published=True)
    relation = relation_distillation(z, teacher, k, k_teacher)
    total = contrast + weight * relation
    total.backward()
    close(contrast.detach(), held[f"{tag}_asym"], 1e-10)
    close(relation.detach(), held[f"{tag}_ird"], 1e-10)
    close(total.detach(), held[f"{tag}_total"], 1e-10)
    close(raw.grad, held[f"{tag}_grad_z_student"], 1e-10)


@golden
def test_the_authors_distillation_of_a_model_by_itself():
    held = load("co2l_ird")
    raw = held["z_student_raw"].requires_grad_()
    z = functional.normalize(raw, dim=1)
    loss = relation_distillation(z, z, 0.2, 0.2)
    loss.backward()
    close(loss.detach(), held["self_distill_ird"], 1e-10)
    assert raw.grad.norm() <= 10 * held["self_distill_grad_norm"]


def relations(z, teacher, k, k_teacher):
    """Both kinds, the second between the halves of the rows."""
    half = len(z) // 2
    a, b, c, d = z[:half], z[half : 2 * half], teacher[:half], teacher[half : 2 * half]
    return relation_distillation(z, teacher, k, k_teacher), cross_relation_distillation(a, b, c, d, k, k_teacher)


def test_the_relation_between_modalities_is_the_slow_sum():
    za, zb, ga, gb = (unit(4, 5, seed=s) for s in range(4))
    total = 0.0
    for (z, other), (g, former) in (((za, zb), (ga, gb)), ((zb, za), (gb, ga))):
        for i, j in itertools.product(range(4), range(4)):
            share = math.exp(float(g[i] @ former[j]) / 0.05) / sum(math.exp(float(g[i] @ x) / 0.05) for x in former)
            total -= share * math.log(
                math.exp(float(z[i] @ other[j]) / 0.3) / sum(math.exp(float(z[i] @ x) / 0.3) for x in other)
            )
    assert cross_relation_distillation(za, zb, ga, gb, 0.3, 0.05).item() == pytest.approx(total / 8, rel=1e-12)


def test_distillation_is_never_below_the_teachers_entropy():
    for seed in range(20):
        z, teacher = unit(8, 3, seed=seed), unit(8, 3, seed=100 + seed)
        own = (teacher @ teacher.T).masked_fill(torch.eye(8, dtype=torch.bool), -1e9) / 0.1
        cross = teacher[:4] @ teacher[4:].T / 0.1
        relation, between = relations(z, teacher, 0.2, 0.1)
        assert relation > entropy(own)
        assert between > (entropy(cross) + entropy(cross.T)) / 2


def test_a_model_distilled_by_itself_has_the_entropy_and_no_gradient():
    teacher = unit(8, 3)
    own = (teacher @ teacher.T).masked_fill(torch.eye(8, dtype=torch.bool), -1e9) / TAU
    cross = teacher[:4] @ teacher[4:].T / TAU
    for loss, want in zip((0, 1), (entropy(own), (entropy(cross) + entropy(cross.T)) / 2), strict=True):
        z = teacher.clone().requires_grad_()
        got = relations(z, teacher, TAU, TAU)[loss]
        got.backward()
        assert got.item() == pytest.approx(want, rel=1e-12)
        assert z.grad.abs().max() < 1e-15


def test_distillation_does_not_depend_on_rotations_or_a_common_order():
    z, teacher, order = unit(8, 5), unit(8, 5, seed=1), torch.randperm(8, generator=torch.Generator().manual_seed(3))
    for loss, within in ((0, order), (1, torch.cat([order[order < 4], 4 + order[order < 4]]))):
        want = relations(z, teacher, TAU, 0.05)[loss].item()
        changes = (z @ rotation(5, 1), teacher), (z, teacher @ rotation(5, 2)), (z[within], teacher[within])
        for student, former in changes:
            assert relations(student, former, TAU, 0.05)[loss].item() == pytest.approx(want, rel=1e-11)


def test_the_teacher_may_embed_in_another_dimension():
    relation, between = relations(unit(8, 5), unit(8, 3, seed=1), TAU, 0.05)
    assert relation > 0
    assert between > 0


def test_too_few_rows_have_no_relation():
    assert relation_distillation(unit(2, 4), unit(2, 4), TAU, TAU) is None
    assert relation_distillation(unit(3, 4), unit(3, 4), TAU, TAU) is not None
    assert cross_relation_distillation(*[unit(1, 4)] * 4, TAU, TAU) is None
    assert cross_relation_distillation(*[unit(2, 4)] * 4, TAU, TAU) is not None


def test_a_stage_leaves_its_teacher_byte_for_byte():
    """Even one whose weights the optimiser holds by mistake: no gradient ever reaches them."""
    torch.manual_seed(0)
    student, teacher = (nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)) for _ in range(2))
    teacher.eval()
    optimiser = torch.optim.SGD([*student.parameters(), *teacher.parameters()], lr=0.1)

    def digest(model):
        return hashlib.sha256(b"".join(x.numpy().tobytes() for x in model.state_dict().values())).hexdigest()

    before, started = digest(teacher), digest(student)
    for _ in range(3):
        x = torch.randn(8, 4)
        z, g = (functional.normalize(model(x), dim=1) for model in (student, teacher))
        optimiser.zero_grad()
        torch.stack(relations(z, g, TAU, 0.05)).sum().backward()
        optimiser.step()
    assert digest(teacher) == before
    assert digest(student) != started


# The ledger


def row(stage, con=2.0, dis=None, lambda_t=1.0, kappa=1.0, **more):
    how = Temperatures(contrast=0.5, base=0.07, student=0.2, teacher=0.01)
    given = {"modality": "vision", "k_t": 1 / stage, "temperatures": how, "batch": 63, "con_scaled": 7 * (con or 0.0)}
    return StageRow(stage=stage, lambda_t=lambda_t, kappa=kappa, con=con, dis_all=dis, **(given | more))


def test_lambda_is_one_in_the_first_and_second_stage():
    assert adaptive_lambda([], 50.0) == 1.0
    assert adaptive_lambda([row(1)], 50.0) == 1.0
    assert adaptive_lambda([row(1)], 50.0, floor=3.0, cap=4.0) == 1.0


def test_lambda_is_the_ratio_of_the_sums_over_stages_that_had_a_teacher():
    history = [row(1, con=100.0), row(2, con=2.0, dis=3.0), row(3, con=1.0, dis=6.0)]
    assert adaptive_lambda(history, 0.5) == pytest.approx(0.5 * 9 / 3)
    assert adaptive_lambda(history[:2], 0.5) == 1.0  # 0.75 is below the floor
    assert adaptive_lambda(history[:2], 0.5, floor=0.0) == pytest.approx(0.75)
    assert adaptive_lambda(history, 0.5, cap=1.2) == 1.2
    with pytest.raises(ValueError, match="above cap"):
        adaptive_lambda(history, 0.5, floor=2.0, cap=1.0)


def test_a_modality_that_joins_late_begins_with_a_lambda_of_its_own():
    history = [row(3), row(4, dis=8.0, con=2.0)]
    assert adaptive_lambda(history[:1], 1.0) == 1.0
    assert adaptive_lambda(history, 1.0) == 4.0
    with pytest.raises(ValueError, match="audio, vision"):
        adaptive_lambda([*history, row(5, modality="audio")], 1.0)


def test_a_stage_with_nothing_to_ask_for_does_not_count():
    history = [row(1), row(2, con=None, dis=9.0), row(3, con=0.0, dis=0.0)]
    assert adaptive_lambda(history, 1.0) == 1.0
    assert adaptive_lambda([*history, row(4, con=1.0, dis=2.0)], 1.0) == 2.0


def test_lambda_takes_contrast_without_the_factor_of_the_base_temperature():
    history = [row(1), row(2, con=1.0, dis=4.0)]
    scaled = [row(1), row(2, con=1.0, dis=4.0, con_scaled=1e6)]
    assert adaptive_lambda(scaled, 1.0) == adaptive_lambda(history, 1.0) == 4.0


positive = st.floats(0.01, 100)


@given(st.lists(st.tuples(positive, positive), min_size=1, max_size=5), positive, positive, st.data())
@settings(max_examples=60)
def test_lambda_is_at_least_one_grows_with_past_distillation_and_knows_no_units(means, kappa, factor, data):
    def after(means):
        return adaptive_lambda([row(1), *(row(2 + i, con=c, dis=d) for i, (c, d) in enumerate(means))], kappa)

    value = after(means)
    assert value >= 1.0
    assert after([(c * factor, d * factor) for c, d in means]) == pytest.approx(value, rel=1e-9)
    which = data.draw(st.integers(0, len(means) - 1))
    more = [(c, d + factor * (i == which)) for i, (c, d) in enumerate(means)]
    assert after(more) >= value


def test_lambda_and_the_alarm_follow_from_the_log_alone():
    seen = monitor(unit(6, 4), unit(6, 4, seed=1), pairs(6), TAU, 1.0)
    history = [
        row(1),
        row(2, dis=0.1 + 0.2, monitor=seen, bound=bound(seen, 0.5, 1.0), teacher_sha256="ab", norm="eval"),
    ]
    for stage in (3, 4, 5):
        history.append(row(stage, con=1 / 3, dis=0.1, lambda_t=adaptive_lambda(history, 1.0)))
    log = b"\n".join(msgspec.json.encode(entry) for entry in history)
    read = [msgspec.json.decode(line, type=StageRow) for line in log.splitlines()]
    assert read == history
    assert adaptive_lambda(read, 7.0) == adaptive_lambda(history, 7.0)
    assert clamped_stages(read) == clamped_stages(history) == 3


def test_clamped_the_method_is_its_predecessor():
    history = [row(1)]
    for stage in range(2, 7):
        history.append(row(stage, con=10.0, dis=0.5, lambda_t=adaptive_lambda(history, 1.0)))
    assert [entry.lambda_t for entry in history] == [1.0] * 6
    assert clamped_stages(history) == 4  # stages 3 to 6; in stage 2 it is 1 by definition


def test_clamped_stages_are_counted_from_the_last_that_was_free():
    history = [row(1), row(2, con=1.0, dis=0.5), row(3, con=1.0, dis=9.5)]
    assert clamped_stages(history) == 1
    history.append(row(4, con=99.0, dis=0.0, lambda_t=adaptive_lambda(history, 1.0)))
    assert history[-1].lambda_t == 5.0
    assert clamped_stages(history) == 0
    history.append(row(5, lambda_t=adaptive_lambda(history, 1.0)))
    assert clamped_stages(history) == 1
    assert clamped_stages([]) == 0
    free = adaptive_lambda(history[:4], 60.0)
    assert clamped_stages([*history[:4], row(5, lambda_t=3.0, kappa=60.0)]) == 1  # a cap counts as well
    assert clamped_stages([*history[:4], row(5, lambda_t=free, kappa=60.0)]) == 0


def test_a_running_mean_is_weighted_and_goes_on_from_its_two_numbers():
    assert RunningMean().mean is None
    values = [(0.1, 3), (0.7, 5), (-2.0, 1)]
    whole, parts = RunningMean(), RunningMean()
    for value, samples in values:
        whole = whole.joined(value, samples)
        parts = msgspec.json.decode(msgspec.json.encode(parts), type=RunningMean).joined(value, samples)
    assert parts == whole
    assert whole.mean == pytest.approx(np.average([0.1, 0.7, -2.0], weights=[3, 5, 1]), rel=1e-15)


def test_a_stage_that_diverged_cannot_be_logged():
    for name in ("con", "lambda_t", "kappa", "dis_old"):
        with pytest.raises(ValueError, match=name):
            msgspec.structs.replace(row(2, dis=1.0), **{name: math.nan})


# The bound


def pairs(n):
    """Rows 2i and 2i+1 belong together."""
    group = torch.arange(n) // 2
    return group[:, None] == group


@st.composite
def buffers(draw):
    """Student, teacher and positives of a buffer, with some rows that have none."""
    n, seed = draw(st.integers(3, 9)), draw(st.integers(0, 10**6))
    labels = torch.tensor(draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)))
    return unit(n, draw(st.integers(2, 4)), seed=seed), unit(n, 3, seed=seed + 1), labels[:, None] == labels


temperatures = st.sampled_from([0.05, 0.2, 0.5, 1.0])


@given(buffers(), temperatures)
@settings(max_examples=60)
def test_contrast_is_distillation_and_shift(buffer, tau):
    parts = split(*buffer, tau)
    assert len(parts.con) == int((buffer[2].sum(1) > 1).sum())
    torch.testing.assert_close(parts.con, parts.dis + parts.shift, rtol=1e-12, atol=1e-12)


@given(buffers(), temperatures)
@settings(max_examples=60)
def test_contrast_and_distillation_differ_by_at_most_a_times_the_teachers_contrast(buffer, tau):
    z, teacher, positives = buffer
    after, before = split(z, teacher, positives, tau), split(teacher, teacher, positives, tau)
    limit = 2 / tau * before.con + 1e-12
    assert (after.con - after.dis <= limit).all()
    assert (after.dis - after.con <= limit).all()


def test_the_inequality_is_nearly_reached_and_so_cannot_be_tighter():
    """A sure teacher, and a student that has the right and the wrong answer the wrong way round."""
    tau, positives = 0.1, torch.zeros(3, 3, dtype=torch.bool)
    positives[0, 2] = True
    teacher = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    after, before = split(teacher[[0, 2, 1]], teacher, positives, tau), split(teacher, teacher, positives, tau)
    assert float(after.shift) == pytest.approx(2 / tau * float(before.con), rel=1e-6)


def test_the_parts_are_those_of_the_losses():
    z, teacher, labels = unit(8, 4), unit(8, 4, seed=1), torch.tensor([0, 0, 1, 1, 1, 2, 2, 2])
    parts = split(z, teacher, labels[:, None] == labels, TAU)
    contrast = asymmetric_contrast(z, labels, torch.ones(8, dtype=torch.bool), TAU)
    assert float(parts.con.mean()) == pytest.approx(contrast.item(), rel=1e-12)
    assert float(parts.dis.mean()) == pytest.approx(relation_distillation(z, teacher, TAU, TAU).item(), rel=1e-12)


@given(buffers(), temperatures, st.floats(0.05, 1), positive, st.floats(0, 5))
@settings(max_examples=60)
def test_what_is_realised_keeps_both_bounds_and_the_alarm_is_quiet(buffer, tau, k, weight, con_new):
    if not (buffer[2].sum(1) > 1).any():
        with pytest.raises(ValueError, match="no window of the buffer has a positive"):
            monitor(*buffer, tau, con_new)
        return
    seen = monitor(*buffer, tau, con_new)
    told = bound(seen, k, weight)
    assert told.held
    assert told.effective <= told.worst + 1e-9
    assert told.realised == pytest.approx(k * con_new + (1 - k) * seen.con_after)
    assert seen.a_eff * seen.con_before == pytest.approx(seen.shift, abs=1e-12)
    assert seen.con_after == pytest.approx(seen.dis + seen.shift)


def test_the_monitor_measures_teacher_and_student_on_the_rows_that_have_a_positive():
    z, teacher, positives = unit(7, 4).float(), unit(7, 4, seed=1).float(), pairs(7)
    seen = monitor(z, teacher, positives, TAU, 0.7)
    assert (seen.temperature, seen.m, seen.n_b, seen.con_new) == (TAU, 6, 6, 0.7)
    after, before = (
        [slow_contrast(x[i], {j: x[j] for j in range(7) if j != i}, [i ^ 1]) for i in range(6)]
        for x in (z.double(), teacher.double())
    )
    assert seen.con_after == pytest.approx(np.mean(after), rel=1e-12)
    assert seen.con_before == pytest.approx(np.mean(before), rel=1e-12)
    assert msgspec.structs.replace(seen, con_before=0.0).a_eff == 0.0


def test_the_bound_with_a_eff_is_exact_where_lambda_fits_the_share_of_the_old():
    seen = monitor(unit(8, 4), unit(8, 4, seed=1), pairs(8), TAU, 0.7)
    for k in (0.2, 0.5, 0.8):
        told = bound(seen, k, (1 - k) / k)
        assert told.effective == pytest.approx(told.realised, rel=1e-12)
        assert told.gamma_t == pytest.approx(1 / k)
    assert bound(seen, 1.0, 3.0).gamma_t == 1.0
    assert bound(seen, 1.0, 3.0).realised == 0.7
    for k, weight in ((0.0, 1.0), (1.1, 1.0), (0.5, 0.0)):
        with pytest.raises(ValueError, match="lambda_t > 0"):
            bound(seen, k, weight)


def test_the_bounds_numbers_by_hand():
    seen = Monitor(temperature=0.5, m=99, n_b=200, con_new=1.0, con_before=2.0, con_after=4.0, dis=3.0, shift=1.0)
    told = bound(seen, 0.25, 1.5)
    assert (told.gamma_t, told.a, told.a_eff, seen.forgetting) == (2.0, 4.0, 0.5, 2.0)
    assert told.worst == (1.0 + 1.5 * 3.0) / 2.0 + 0.75 * 4.0 * 2.0
    assert told.effective == (1.0 + 1.5 * 3.0) / 2.0 + 0.75 * 0.5 * 2.0
    assert told.realised == 0.25 * 1.0 + 0.75 * 4.0
    assert told.held


def test_the_alarm_sounds_when_more_is_realised_than_was_bound():
    seen = monitor(unit(8, 4), unit(8, 4, seed=1), pairs(8), TAU, 0.7)
    worse = msgspec.structs.replace(seen, con_after=seen.con_after + 1e-3)
    assert bound(seen, 0.5, 1.0).held
    assert not bound(worse, 0.5, 1.0).held


def test_a_finite_buffer_is_off_by_less_than_its_slack():
    assert slack(0.5, 100, 200, 0.05) == pytest.approx((4 + math.log(100)) * math.sqrt(math.log(40) / 400))
    z, labels = unit(400, 4), torch.arange(400) % 4
    con = split(z, z, labels[:, None] == labels, 0.5).con
    assert con.min() >= 0
    assert con.max() <= 4 + math.log(399)
    rng = np.random.default_rng(0)
    off = [abs(float(con[rng.integers(0, 400, 20)].mean() - con.mean())) for _ in range(200)]
    assert np.mean(np.array(off) <= slack(0.5, 399, 20)) >= 0.95


# The buffer

labelled = st.lists(st.sampled_from(["good", "scratch", "dent", ""]), max_size=40)


def assert_balanced(kept, there):
    """No label could have one more unless another that has more gave one: the counts' gap is 1, or all was taken."""
    counts, total = Counter(kept), Counter(there)
    short = [counts[label] for label in total if counts[label] < total[label]]
    assert not short or max(counts.values(), default=0) <= min(short) + 1


@given(labelled, st.integers(0, 50), st.integers(0, 1000))
@settings(max_examples=150)
def test_a_choice_is_balanced_wherever_it_is_cut(labels, size, seed):
    chosen = choose(labels, size, np.random.default_rng(seed))
    assert chosen == choose(labels, size, np.random.default_rng(seed))
    assert all(type(index) is int for index in chosen)
    assert len(set(chosen)) == len(chosen) == min(size, len(labels))
    for cut in range(len(chosen) + 1):
        assert_balanced([labels[i] for i in chosen[:cut]], labels)
        assert chosen[:cut] == choose(labels, cut, np.random.default_rng(seed))


@given(labelled, labelled, st.integers(0, 50), st.integers(0, 1000))
@settings(max_examples=150)
def test_a_merge_is_balanced_and_keeps_the_best_of_the_old(old, new, size, seed):
    kept, taken = merge(old, new, size, np.random.default_rng(seed))
    assert (kept, taken) == merge(old, new, size, np.random.default_rng(seed))
    assert len(kept) + len(taken) == min(size, len(old) + len(new))
    assert len(set(taken)) == len(taken)
    assert kept == sorted(set(kept))
    assert_balanced([old[i] for i in kept] + [new[i] for i in taken], old + new)
    for label in set(old):
        first = [i for i in range(len(old)) if old[i] == label]
        assert [i for i in kept if old[i] == label] == first[: sum(old[i] == label for i in kept)]
    for label in set(old) & {new[i] for i in taken}:
        assert sum(old[i] == label for i in kept) == old.count(label)


def test_no_buffer_and_no_windows():
    rng = np.random.default_rng(0)
    assert choose(["good"] * 3, 0, rng) == []
    assert choose(["good"] * 3, -1, rng) == []
    assert choose([], 5, rng) == []
    assert merge(["good"], ["dent"], 0, rng) == ([], [])
    assert merge([], ["dent"], 5, rng) == ([], [0])


def test_a_choice_is_random_within_a_label_and_between_labels():
    labels, rng = ["good"] * 6, np.random.default_rng(0)
    often = Counter(itertools.chain.from_iterable(choose(labels, 2, rng) for _ in range(600)))
    assert sorted(often) == list(range(6))
    assert min(often.values()) > 140  # of 200 expected
    assert {tuple(choose(["good", "dent"], 1, rng)) for _ in range(30)} == {(0,), (1,)}


def test_stages_keep_equal_shares_over_many_merges():
    """As in Co2L: entering stage t, (t-2)/(t-1) of the buffer is of old stages and the rest of the last."""
    rng, held = np.random.default_rng(0), []
    for stage in range(1, 6):
        new = [f"{stage}/good"] * 30
        kept, taken = merge(held, new, 20, rng)
        held = [held[i] for i in kept] + [new[i] for i in taken]
        counts = Counter(held)
        assert len(held) == 20
        assert len(counts) == stage
        assert max(counts.values()) - min(counts.values()) <= 1


def test_the_examples_in_the_docstrings_hold():
    for module in (supervised, ledger):
        assert doctest.testmod(module).failed == 0
        assert doctest.testmod(module).attempted > 1

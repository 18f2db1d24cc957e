"""The teacher: C1 to C12 of shared/design/algorithms/ctp.md, section 11, by name, each in float64.

C8 is of masked language modelling, which the product does not have; the golden totals are compared without those terms,
whose gradient by the embeddings is zero.
"""

import copy
import doctest
import math
from collections import deque
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load as parse
from safetensors.torch import save as pack
from torch import nn
from torch.nn import functional

from trainer import plan
from trainer import teacher as room
from trainer.encoders import Head, unit
from trainer.losses import Seen, info_nce, pair_loss
from trainer.projection import nothing_seen, protect
from trainer.teacher import (
    Queue,
    compatible_contrast,
    cross_topology,
    follow,
    remember,
    same_topology,
    teacher_loss,
    teacher_of,
)

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"
golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="needs ../shared/golden beside the repository")
DIM, T = 8, 0.07
PAIR = [("a", "b")]
TeacherSettings = partial(plan.TeacherSettings, contrast=1.0, cross=1.0, same=1.0)  # as published


def rows(n=6, seed=0, dim=DIM):
    g = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(n, dim, generator=g, dtype=torch.float64), dim=1)


def rotation(seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(DIM, DIM, generator=g, dtype=torch.float64)).Q


def seen(z, present=None):
    return Seen(z, torch.ones(len(z), dtype=torch.bool) if present is None else torch.tensor(present))


def filled(n, seed, first_id=1000):
    queue = Queue(n, DIM, torch.float64)
    queue.push(rows(n, seed), torch.arange(first_id, first_id + n))
    return queue


def queues():
    return {"a": filled(5, 50), "b": filled(7, 51, 2000)}


def batch(seed=0, n=6):
    """Of the new model, the teacher and the old model."""
    return tuple({"a": seen(rows(n, seed + i)), "b": seen(rows(n, seed + i + 1))} for i in (0, 10, 20))


def all_of(terms):
    return torch.stack(list(terms.values())).sum()


def close(got, want, tolerance):
    assert float((got - want).detach().abs().max()) <= tolerance * max(1.0, float(want.detach().abs().max()))


class Flat(nn.Module):
    """Nothing but a vector of parameters."""

    def __init__(self, values):
        super().__init__()
        self.weight = nn.Parameter(values.clone())


# C1


def test_c1_at_the_start_of_a_stage_topology_is_zero_and_momentum_contrasts_the_model_with_itself():
    za, zb = (rows(seed=i).requires_grad_() for i in (1, 2))
    new = {"a": seen(za), "b": seen(zb)}
    held = queues()
    terms = teacher_loss(new, new, new, PAIR, held, TeacherSettings())
    assert list(terms) == ["momentum a+b", "cross a+b", "same a", "same b"]
    for name in ("cross a+b", "same a", "same b"):
        gradients = torch.autograd.grad(terms[name], (za, zb), retain_graph=True, allow_unused=True)
        assert abs(terms[name].item()) <= 1e-12
        assert all(float(x.abs().max()) <= 1e-12 for x in gradients if x is not None)
    forth, back = info_nce(za, zb.detach(), held["b"].rows(), T), info_nce(zb, za.detach(), held["a"].rows(), T)
    assert terms["momentum a+b"].item() == pytest.approx((forth + back).item() / 2, rel=1e-12)
    got = torch.autograd.grad(terms["momentum a+b"], (za, zb))
    for gradient, want in zip(got, torch.autograd.grad((forth + back) / 2, (za, zb)), strict=True):
        close(gradient, want, 1e-12)


# C2


@pytest.mark.parametrize("seed", range(5))
def test_c2_topology_is_never_negative_and_is_the_slow_sum(seed):
    za, zb, ga, gb = (rows(5, 10 * seed + i) for i in range(4))
    cross, same = cross_topology(za, zb, ga, gb, T, 0.1), same_topology(za, ga, T, 0.1)
    assert min(cross, same) >= 0
    forth, back = slow_kl(ga @ gb.T / 0.1, za @ zb.T / T), slow_kl(gb @ ga.T / 0.1, zb @ za.T / T)
    assert cross.item() == pytest.approx((forth + back) / 2, rel=1e-10)
    off = ~torch.eye(5, dtype=torch.bool)
    old, new = ((x @ x.T)[off].reshape(5, 4) for x in (ga, za))
    assert same.item() == pytest.approx(slow_kl(old / 0.1, new / T), rel=1e-10)
    assert same_topology(za, ga, 1e3, 0.1).item() == pytest.approx(slow_kl(old / 0.1, new / 1e3), rel=1e-10)


def slow_kl(old, new):
    total = 0.0
    for r, s in zip(old.tolist(), new.tolist(), strict=True):
        old_all, new_all = (math.fsum(math.exp(x) for x in row) for row in (r, s))
        total += sum(
            math.exp(x) / old_all * (math.log(math.exp(x) / old_all) - math.log(math.exp(y) / new_all))
            for x, y in zip(r, s, strict=True)
        )
    return total / len(old)


def test_c2_a_rows_similarity_to_itself_has_no_say_and_gets_no_gradient():
    """Row i gets a dimension of its own, which changes entry (i, i) alone."""
    n, z, g = 6, rows(seed=1), rows(seed=2)
    own = (100 * torch.eye(n, dtype=torch.float64)).requires_grad_()
    loss = same_topology(torch.cat([z, own], dim=1), torch.cat([g, 50 * torch.eye(n)], dim=1), T, T)
    loss.backward()
    assert loss.item() == pytest.approx(same_topology(z, g, T, T).item(), rel=1e-12)
    assert torch.equal(own.grad.diagonal(), torch.zeros(n))
    assert float(own.grad.abs().max()) > 0  # the other entries of these dimensions do


def test_topology_is_left_out_where_every_share_is_one():
    one, two, anchor = rows(1, 1), rows(2, 2), rows(1, 3)
    assert cross_topology(one, one, one, one, T, T) is None
    assert same_topology(two, two, T, T) is None
    none, anchors = one[:0], rows(3, 7)
    assert cross_topology(none, none, none, none, T, T, (anchors, anchors)) is None
    assert same_topology(none, none, T, T, anchors) is None
    assert same_topology(two, rows(2, 4), T, T, anchor) > 0
    assert cross_topology(one, anchor, anchor, one, T, T, (rows(3, 5), rows(3, 6))) > 0
    assert compatible_contrast(one, one, None, T) is None
    assert compatible_contrast(one, one, anchor, T) > 0


def test_anchors_are_further_columns_of_the_old_models_embeddings():
    za, zb, ga, gb = (rows(4, i) for i in range(4))
    more_a, more_b = rows(3, 5), rows(2, 6)
    old = [torch.cat([gb, more_b]) @ ga.T, torch.cat([ga, more_a]) @ gb.T]
    new = [torch.cat([zb, more_b]) @ za.T, torch.cat([za, more_a]) @ zb.T]
    want = sum(slow_kl(r.T / T, s.T / T) for r, s in zip(old, new, strict=True)) / 2
    assert cross_topology(za, zb, ga, gb, T, T, (more_a, more_b)).item() == pytest.approx(want, rel=1e-10)
    off = ~torch.eye(4, 7, dtype=torch.bool)
    r, s = ((x @ torch.cat([x, more_a]).T)[off].reshape(4, 6) / T for x in (ga, za))
    assert same_topology(za, ga, T, T, more_a).item() == pytest.approx(slow_kl(r, s), rel=1e-10)
    new, old, more = {"a": seen(za), "b": seen(zb)}, {"a": seen(ga), "b": seen(gb)}, {"a": more_a, "b": more_b}
    terms = teacher_loss(new, {}, old, PAIR, {}, TeacherSettings(contrast=0), anchors=more)
    assert terms["cross a+b"].item() == pytest.approx(want, rel=1e-10)
    assert terms["same a"].item() == pytest.approx(slow_kl(r, s), rel=1e-10)


# C3


def test_c3_the_teacher_lies_between_the_old_model_and_a_plain_average():
    g = torch.Generator().manual_seed(1)
    old = Flat(torch.randn(20, generator=g, dtype=torch.float64))
    kept = old.weight.detach().clone()
    teacher, average, student = teacher_of(old), old.weight.detach().clone(), copy.deepcopy(old)
    place = teacher.weight.data_ptr()
    for _ in range(10):
        student.weight.data += torch.randn(20, generator=g, dtype=torch.float64)
        follow(teacher, student, old, 0.9, 0.3)
        average = 0.9 * average + 0.1 * student.weight.detach()
        close(teacher.weight, 0.3 * kept + 0.7 * average, 1e-12)
    assert teacher.weight.data_ptr() == place  # in place
    assert torch.equal(old.weight, kept)


@pytest.mark.parametrize(("momentum", "pull"), [(0.9, 0.5), (0.995, 0.0), (0.0, 1.0), (0.0, 0.0), (0.3, 0.9)])
def test_c3_equal_models_are_a_fixed_point_to_the_bit_and_extremes_are_exact(momentum, pull):
    old, student = (Flat(rows(4, i).flatten()) for i in (1, 2))
    teacher = teacher_of(old)
    follow(teacher, teacher_of(old).requires_grad_(), old, momentum, pull)
    assert torch.equal(teacher.weight, old.weight)
    follow(teacher, student, old, momentum, pull)
    close(
        teacher.weight,
        momentum * old.weight + (1 - momentum) * (pull * old.weight + (1 - pull) * student.weight),
        1e-15,
    )


def test_c3_the_teacher_gets_no_gradient_is_always_in_eval_mode_and_has_the_students_buffers():
    student = nn.Sequential(nn.Linear(4, DIM), nn.BatchNorm1d(DIM), nn.Dropout(0.5)).double()
    student(rows(5, 1, 4)).sum().backward()
    old, teacher = teacher_of(student), teacher_of(student)
    assert not any(module.training for module in teacher.modules())
    assert not any(weight.requires_grad or weight.grad is not None for weight in teacher.parameters())
    student(rows(5, 2, 4))  # moves the running statistics
    teacher.train()
    follow(teacher, student, old, 0.9, 0.5)
    assert not any(module.training for module in teacher.modules())
    assert student.training
    assert torch.equal(teacher[1].running_mean, student[1].running_mean)
    assert int(teacher[1].num_batches_tracked) == 2
    assert not torch.equal(old[1].running_mean, student[1].running_mean)


def test_c3_no_term_sends_a_gradient_to_teacher_or_old_model():
    of_all = [[rows(seed=i).requires_grad_() for i in (k, k + 1)] for k in (0, 10, 20)]
    new, teacher, old = ({"a": seen(za), "b": seen(zb)} for za, zb in of_all)
    more = rows(3, 30).requires_grad_()
    all_of(teacher_loss(new, teacher, old, PAIR, queues(), TeacherSettings(soft=0.5), anchors={"a": more})).backward()
    assert all(float(z.grad.abs().max()) > 0 for z in of_all[0])
    assert all(z.grad is None for z in [*of_all[1], *of_all[2], more])


def test_what_needs_no_gradient_is_left_alone():
    student, old = (nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)) for _ in range(2))
    teacher = teacher_of(old)
    student[0].requires_grad_(False)
    follow(teacher, student, None, 0.5, 0.5)
    assert torch.equal(teacher[0].weight, old[0].weight)
    close(teacher[1].weight, (old[1].weight + student[1].weight) / 2, 1e-6)


def test_modules_of_another_shape_are_refused_by_name():
    with pytest.raises(ValueError, match=r"one has no 'weight'.*teacher_of"):
        follow(nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2), None, 0.9, 0.5)


# C4


def test_c4_topology_and_contrast_of_a_batch_do_not_see_a_common_rotation_but_momentum_does():
    new, teacher, old = batch()
    q, other = rotation(1), rotation(2)
    plain = teacher_loss(new, teacher, old, PAIR, queues(), TeacherSettings())
    common = {name: Seen(each.z @ q, each.present) for name, each in new.items()}
    turned = teacher_loss(common, teacher, old, PAIR, queues(), TeacherSettings())
    for name in ("cross a+b", "same a", "same b"):
        assert turned[name].item() == pytest.approx(plain[name].item(), rel=1e-10)
    assert pair_loss(common["a"], common["b"], T).item() == pytest.approx(pair_loss(new["a"], new["b"], T).item())
    assert turned["momentum a+b"].item() != pytest.approx(plain["momentum a+b"].item(), rel=1e-3)
    apart = {"a": common["a"], "b": Seen(new["b"].z @ other, new["b"].present)}
    split = teacher_loss(apart, teacher, old, PAIR, queues(), TeacherSettings())
    for name in ("same a", "same b"):
        assert split[name].item() == pytest.approx(plain[name].item(), rel=1e-10)
    assert split["cross a+b"].item() != pytest.approx(plain["cross a+b"].item(), rel=1e-3)


# C5


@pytest.mark.parametrize("soft", [0.0, 0.4])
def test_c5_the_order_of_a_batch_does_not_matter(soft):
    present = {"a": [True, True, False, True, True, True], "b": [True, True, True, True, False, True]}
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    ids = torch.tensor([1, 1000, 2003, 4, 5, 6])
    of_all = [{name: seen(each.z, present[name]) for name, each in part.items()} for part in batch()]
    moved = [{name: Seen(each.z[order], each.present[order]) for name, each in part.items()} for part in of_all]
    plain = teacher_loss(*of_all, PAIR, queues(), TeacherSettings(soft=soft), ids)
    again = teacher_loss(*moved, PAIR, queues(), TeacherSettings(soft=soft), ids[order])
    assert list(plain) == list(again)
    for name, term in plain.items():
        assert again[name].item() == pytest.approx(term.item(), rel=1e-12)


# C6


@settings(max_examples=60)
@given(st.integers(1, 9), st.lists(st.integers(0, 25), max_size=8))
def test_c6_a_queue_holds_the_last_rows_whatever_the_batches(size, batches):
    queue, single, last, ids = Queue(size, 3), Queue(size, 3), deque(maxlen=size), iter(range(10_000))
    for step, n in enumerate(batches):
        z, named = rows(n, step, 3).float(), torch.tensor([next(ids) for _ in range(n)], dtype=torch.int64)
        queue.push(z, named)
        for i in range(n):
            single.push(z[i : i + 1], named[i : i + 1])
        last.extend(zip(named.tolist(), z.tolist(), strict=True))
    assert sorted(zip(queue.ids().tolist(), queue.rows().tolist(), strict=True)) == sorted(last)
    assert len(queue) == len(last)
    assert torch.allclose(queue.rows().norm(dim=1), torch.ones(len(last)))
    assert queue.ids().dtype == torch.int64
    for name, held in queue.state().items():
        assert torch.equal(held, single.state()[name])


def test_c6_slots_never_filled_are_no_candidates_and_clearing_empties():
    queue = Queue(8, DIM, torch.float64)
    za, zb = rows(seed=1), rows(seed=2)
    new = {"a": seen(za), "b": seen(zb)}
    terms = teacher_loss(new, new, {}, PAIR, {"a": queue, "b": queue}, TeacherSettings())
    assert terms["momentum a+b"].item() == pytest.approx(pair_loss(new["a"], new["b"], T).item(), rel=1e-12)
    empty = queue.state()
    queue.push(za, torch.arange(6))
    assert len(queue) == 6
    queue.clear()
    assert len(queue) == len(queue.rows()) == len(queue.ids()) == 0
    assert all(torch.equal(held, empty[name]) for name, held in queue.state().items())


def test_a_queue_of_none_stays_empty():
    queue = Queue(0, DIM)
    queue.push(rows(3), torch.arange(3))
    assert queue.rows().shape == (0, DIM)


def test_a_queue_refuses_absent_rows_and_other_shapes():
    queue = Queue(4, DIM)
    for z, ids in ((torch.zeros(1, DIM), 1), (torch.full((1, DIM), math.nan), 1), (rows(2), 1), (rows(1, dim=3), 1)):
        with pytest.raises(ValueError, match="push"):
            queue.push(z, torch.arange(ids))
    assert len(queue) == 0


def test_what_is_remembered_is_what_was_present():
    held = {"a": Queue(4, DIM, torch.float64)}
    z = rows(3)
    z[1] = 0.0
    remember(held, {"a": seen(z, [True, False, True]), "b": seen(rows(3))}, torch.tensor([7, 8, 9]))
    assert held["a"].ids().tolist() == [7, 9]
    assert torch.equal(held["a"].rows(), z[[0, 2]])


# C7


@pytest.mark.parametrize("soft", [0.0, 0.4])
def test_c7_shards_that_carry_gradient_through_their_own_rows_sum_to_one_process(soft):
    z = torch.stack([rows(seed=1), rows(seed=2)]).requires_grad_()  # (modality, batch, dim)
    _, teacher, old = batch()
    present = {"a": [True, True, False, True, True, True], "b": [True] * 6}

    def value(embeddings):
        new = {name: seen(part, present[name]) for name, part in zip("ab", embeddings, strict=True)}
        return all_of(teacher_loss(new, teacher, old, PAIR, queues(), TeacherSettings(soft=soft)))

    whole = value(z)
    (want,) = torch.autograd.grad(whole, z)
    total = torch.zeros_like(z)
    for mine in (slice(0, 3), slice(3, 6)):
        gathered = z.detach().clone()
        gathered[:, mine] = z[:, mine]
        part = value(gathered)
        assert part.item() == whole.item()
        total += torch.autograd.grad(part, z)[0]
    close(total, want, 1e-12)


# C9


def test_c9_a_new_modality_has_no_topology_and_absent_rows_change_nothing():
    """c is new; a is absent from moment 1, where it is not a number in every version."""
    of_all = [dict(part, c=seen(rows(seed=40 + i))) for i, part in enumerate(batch())]
    here = [True, False, True, True, True, True]
    z = of_all[0]["a"].z.clone()
    z[1] = math.nan
    z.requires_grad_()
    broken = [dict(part, a=seen(z if i == 0 else part["a"].z, here)) for i, part in enumerate(of_all)]
    del of_all[2]["c"], broken[2]["c"]
    for part in broken[1:]:
        part["a"].z[1] = math.nan
    pairs = [("a", "b"), ("b", "c"), ("a", "d")]
    held = {**queues(), "c": filled(3, 60)}
    terms = teacher_loss(*broken, pairs, held, TeacherSettings())
    assert list(terms) == ["momentum a+b", "momentum b+c", "cross a+b", "same a", "same b"]
    all_of(terms).backward()
    assert float(z.grad[1].abs().max()) == 0
    assert float(z.grad[[0, 2, 3, 4, 5]].abs().min()) > 0
    some = torch.tensor(here)
    less = [{name: seen(each.z[some].detach()) for name, each in part.items()} for part in broken]
    want = teacher_loss(*less, pairs, held, TeacherSettings())
    for name in ("momentum a+b", "cross a+b", "same a"):
        assert terms[name].item() == pytest.approx(want[name].item(), rel=1e-12)
    for name in ("momentum b+c", "same b"):
        assert terms[name].item() != pytest.approx(want[name].item(), rel=1e-6)


def test_c9_a_pair_that_never_meets_has_no_terms():
    new, teacher, old = batch(n=4)
    apart = [
        {"a": seen(part["a"].z, [True, True, False, False]), "b": seen(part["b"].z, [False, False, True, True])}
        for part in (new, teacher, old)
    ]
    assert teacher_loss(*apart, PAIR, queues(), TeacherSettings()) == {}


# C10


def start_of_stage():
    g = torch.Generator().manual_seed(3)
    old = nn.ModuleDict({name: nn.Linear(5, DIM).double() for name in "ab"})
    with torch.no_grad():
        for weight in old.parameters():
            weight.copy_(torch.randn(weight.shape, generator=g, dtype=torch.float64))
    held = {name: Queue(10, DIM, torch.float64) for name in "ab"}
    return old, copy.deepcopy(old), teacher_of(old), held


def learn(old, student, teacher, held, steps):
    """Some steps of SGD, whose inputs are of the step alone; batches of 4 do not divide the queue of 10."""
    some = TeacherSettings(queue=10, soft=0.2)
    for step in steps:
        x = {name: rows(4, 100 * step + i, 5) for i, name in enumerate("ab")}
        ids = torch.arange(4) + 4 * (step % 2)
        for name in "ab":
            follow(teacher[name], student[name], old[name], some.momentum, some.pull)
        new, slow, before = ({n: seen(unit(part[n](x[n]))) for n in "ab"} for part in (student, teacher, old))
        loss = all_of(teacher_loss(new, slow, before, PAIR, held, some, ids))
        student.zero_grad()
        loss.backward()
        with torch.no_grad():
            for weight in student.parameters():
                weight.sub_(0.01 * weight.grad)
        remember(held, slow, ids)
    return student


def test_c10_a_stage_stopped_in_the_middle_goes_on_to_the_same_bits():
    old, student, teacher, held = start_of_stage()
    learn(old, student, teacher, held, range(12))

    _, again, slow, kept = start_of_stage()
    learn(old, again, slow, kept, range(7))
    tensors = {f"student/{name}": held for name, held in again.state_dict().items()}
    tensors |= {f"teacher/{name}": held for name, held in slow.state_dict().items()}
    tensors |= {f"queue/{name}/{key}": held for name in "ab" for key, held in kept[name].state().items()}
    read = parse(pack(tensors))

    def under(prefix):
        return {name.removeprefix(prefix): held for name, held in read.items() if name.startswith(prefix)}

    _, again, slow, _ = start_of_stage()
    again.load_state_dict(under("student/"))
    slow.load_state_dict(under("teacher/"))
    kept = {name: Queue.restore(under(f"queue/{name}/")) for name in "ab"}
    learn(old, again, slow, kept, range(7, 12))
    for one, other in ((student, again), (teacher, slow)):
        for name, weight in one.state_dict().items():
            assert torch.equal(weight, other.state_dict()[name])
    for name in "ab":
        for key, tensor in held[name].state().items():
            assert torch.equal(tensor, kept[name].state()[key])


def test_c10_a_state_is_not_the_queue_itself():
    queue = filled(4, 1)
    state = queue.state()
    again = Queue.restore(state)
    queue.push(rows(2, 9), torch.arange(2))
    again.push(rows(1, 10), torch.arange(1))
    assert torch.equal(state["rows"], rows(4, 1))
    assert state["ids"].tolist() == [1000, 1001, 1002, 1003]
    assert not torch.equal(queue.rows(), again.rows())


# C11


@pytest.mark.slow
@pytest.mark.parametrize("hold", [True, False])
def test_c11_protected_heads_keep_old_embeddings_under_student_and_teacher(hold):
    """Old inputs use 4 of 10 directions; new ones use all. Without the projection both move."""
    features, g = 10, torch.Generator().manual_seed(1)

    def random(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    seen_before = {name: random(40, 4) @ random(4, features) for name in "ab"}
    old = nn.ModuleDict({name: Head(features, DIM).double() for name in "ab"})
    for head in old.values():
        head.weight.data.copy_(random(*head.weight.shape))
    student, teacher = copy.deepcopy(old), teacher_of(old)
    protections = {n: protect(old[n].weight, nothing_seen(features).joined(seen_before[n]), 0.0) for n in "ab"}
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-2, weight_decay=1e-2)
    held = {name: Queue(40, DIM, torch.float64) for name in "ab"}
    ids = torch.arange(12)
    x = {name: random(12, features) for name in "ab"}

    def seen_by(heads, inputs):
        return {name: seen(unit(heads[name](inputs[name]))) for name in "ab"}

    for _ in range(200):
        for name in "ab":
            follow(teacher[name], student[name], old[name], 0.9, 0.5)
        new, slow = seen_by(student, x), seen_by(teacher, x)
        terms = teacher_loss(new, slow, seen_by(old, x), PAIR, held, TeacherSettings(), ids)
        optimiser.zero_grad()
        (pair_loss(new["a"], new["b"], T) + all_of(terms)).backward()
        optimiser.step()
        remember(held, slow, ids)
        if hold:
            for name in "ab":
                protections[name].hold(student[name].weight)
    with torch.no_grad():
        moved = [
            float((heads[name](seen_before[name]) - old[name](seen_before[name])).abs().max())
            for heads in (student, teacher)
            for name in "ab"
        ]
        learned = [float((heads["a"](x["a"]) - old["a"](x["a"])).abs().max()) for heads in (student, teacher)]
        now, then = seen_by(student, seen_before), seen_by(old, seen_before)
        topology = teacher_loss(now, {}, then, PAIR, {}, TeacherSettings(contrast=0))
    assert min(learned) > 1e-2
    if hold:
        assert max(moved) <= 1e-10
        assert max(float(term.abs()) for term in topology.values()) <= 1e-12
    else:
        assert min(moved) > 1e-2
        assert min(float(term) for term in topology.values()) > 1e-6


# C12


def load(name):
    with np.load(GOLDEN / f"{name}.npz") as held:
        return {key: torch.from_numpy(held[key]) for key in held.files}


@golden
def test_c12_ten_updates_of_the_teacher():
    held = load("ctp_momentum")
    old = Flat(held["theta_old"])
    three, two = Flat(held["theta_m_three"][0]), Flat(held["theta_m_two"][0])
    some = TeacherSettings()
    assert (some.momentum, some.first_momentum) == (float(held["m_three"]), float(held["m_two"]))
    for k in range(1, 11):
        follow(three, Flat(held["theta"][k]), old, some.momentum, some.pull)
        follow(two, Flat(held["theta"][k]), None, some.first_momentum, some.pull)
        close(three.weight, held["theta_m_three"][k], 1e-13)
        close(two.weight, held["theta_m_two"][k], 1e-13)


def published(held, prefix=""):
    """One process: raw features, embeddings of teacher and old model, queues, settings; its weights are checked."""
    raw = {m: held[f"{prefix}raw_{m}"].clone().requires_grad_() for m in ("image", "text")}
    slow = {m: seen(held[f"{prefix}{m}_feat_mom"]) for m in raw}
    old = {m: seen(held[f"{prefix}{m}_feat_old"]) for m in raw if f"{prefix}{m}_feat_old" in held}
    before = {m: held[f"{prefix}{m}_queue_before"].T.contiguous() for m in raw}  # (8, dim)
    full = {"ids": torch.full((8,), 1000), "valid": torch.tensor(8), "next": held[f"{prefix}ptr_before"][0]}
    ring = {m: Queue.restore({"rows": z, **full}) for m, z in before.items()}
    theta, was, teacher = (Flat(held[f"{prefix}{name}"]) for name in ("theta", "theta_old", "theta_m_before"))
    some = TeacherSettings(temperature=float(held[f"{prefix}temp"]))
    follow(teacher, theta, was if old else None, some.momentum if old else some.first_momentum, some.pull)
    close(teacher.weight, held[f"{prefix}theta_m_after"], 1e-13)
    return raw, slow, old, ring, some


def contrast_and_terms(raw, slow, old, ring, some):
    new = {m: seen(unit(x)) for m, x in raw.items()}
    terms = teacher_loss(new, slow, old, [("image", "text")], ring, some, torch.arange(len(raw["image"])))
    return pair_loss(new["image"], new["text"], some.temperature), terms


@golden
@pytest.mark.parametrize("name", ["ctp_step", "ctp_init"])
def test_c12_terms_and_gradients_of_one_process(name):
    held = load(name)
    raw, slow, old, ring, some = published(held)
    contrast, terms = contrast_and_terms(raw, slow, old, ring, some)
    close(contrast, (held["ce_i2t"] + held["ce_t2i"]) / 2, 1e-10)
    if name == "ctp_init":
        assert list(terms) == ["momentum image+text"]
        close(contrast + terms["momentum image+text"], held["loss_ita"], 1e-10)
        total = contrast + terms["momentum image+text"]
    else:
        same = (terms["same image"] + terms["same text"]) / 2
        close(contrast, held["loss_ita"], 1e-10)
        close(terms["cross image+text"], (held["kl_cross_i2t"] + held["kl_cross_t2i"]) / 2, 1e-10)
        close(terms["same image"], held["kl_same_image"], 1e-10)
        close(terms["same text"], held["kl_same_text"], 1e-10)
        close(terms["momentum image+text"] + terms["cross image+text"] + same, held["loss_ita_dis"], 1e-10)
        total = contrast + terms["momentum image+text"] + terms["cross image+text"] + same
    total.backward()
    for m, x in raw.items():
        close(x.grad, held[f"grad_raw_{m}"], 1e-8)
    remember(ring, slow, torch.arange(4))
    for m, queue in ring.items():
        close(queue.rows(), held[f"{m}_queue_after"].T, 1e-12)
        assert int(queue.state()["next"]) == int(held["ptr_after"][0])


@golden
@pytest.mark.parametrize("name", ["ctp_step_world2", "ctp_init_world2"])
def test_c12_two_processes_are_one_but_for_the_published_local_momentum(name):
    """Contrast and topology of the concatenated batch are the mean of both; published momentum contrast is of each
    process alone (P4), and is compared so."""
    held = load(name)
    parts = [published(held, prefix) for prefix in ("r0_", "r1_")]
    raws, slows, olds, rings, (some, _) = zip(*parts, strict=True)
    raw = {m: torch.cat([part[m] for part in raws]) for m in raws[0]}
    slow, old = ({m: seen(torch.cat([part[m].z for part in side])) for m in side[0]} for side in (slows, olds))

    def mean(*names):
        return sum(held[f"{prefix}{each}"] for prefix in ("r0_", "r1_") for each in names) / (2 * len(names))

    only = TeacherSettings(contrast=0, temperature=some.temperature)
    contrast, topology = contrast_and_terms(raw, slow, old, {}, only)
    close(contrast, mean("ce_i2t", "ce_t2i"), 1e-10)
    total = 2 * contrast  # the golden gradient is of the sum of both processes' losses
    if old:
        same = (topology["same image"] + topology["same text"]) / 2
        close(topology["cross image+text"], mean("kl_cross_i2t", "kl_cross_t2i"), 1e-10)
        close(topology["same image"], mean("kl_same_image"), 1e-10)
        close(topology["same text"], mean("kl_same_text"), 1e-10)
        total = total + 2 * (topology["cross image+text"] + same)
    for prefix, *part in zip(("r0_", "r1_"), raws, slows, rings, strict=True):
        raw_of, slow_of, ring_of = part
        own, terms = contrast_and_terms(raw_of, slow_of, {}, ring_of, some)
        momentum = terms["momentum image+text"]
        assert own.item() != pytest.approx(held[f"{prefix}ce_i2t"].item())  # published: of the gathered batch
        kinds = ("kl_cross_i2t", "kl_cross_t2i", "kl_same_image", "kl_same_text") if old else ("ce_i2t", "ce_t2i")
        others = sum(held[f"{prefix}{kind}"] for kind in kinds) / 2
        close(momentum + others, held[f"{prefix}loss_ita_dis" if old else f"{prefix}loss_ita"], 1e-10)
        total = total + momentum
    total.backward()
    for prefix, part in zip(("r0_", "r1_"), raws, strict=True):
        for m, x in part.items():
            close(x.grad, held[f"{prefix}grad_raw_{m}"], 1e-8)
    remember(rings[0], slow, torch.arange(8))
    for m, queue in rings[0].items():
        close(queue.rows(), held[f"r0_{m}_queue_after"].T, 1e-12)


# Momentum contrast by itself, and the settings


def slow_contrast(z, bank, target, wrong):
    """One candidate at a time; `wrong` (row, candidate) pairs are none."""
    total = 0.0
    for i, row in enumerate(z):
        logits = {j: float(row @ c) / T for j, c in enumerate(bank) if (i, j) not in wrong}
        norm = math.log(math.fsum(math.exp(x) for x in logits.values()))
        total -= math.fsum(target(i, j, logits) * (x - norm) for j, x in logits.items())
    return total / len(z)


@pytest.mark.parametrize("soft", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("named", [True, False])
def test_a_rows_own_sample_is_no_wrong_answer_and_targets_may_be_soft(soft, named):
    z, own, partners, earlier = (rows(n, i) for i, n in enumerate((3, 3, 3, 5)))
    ids, earlier_ids = torch.tensor([4, 5, 4]), torch.tensor([9, 5, 4, 5, 0])
    bank = torch.cat([partners, earlier])
    wrong = {(0, 2), (0, 5), (1, 4), (1, 6), (2, 0), (2, 5)} if named else set()

    def target(i, j, logits):
        teacher = {c: math.exp(float(own[i] @ bank[c]) / T) for c in logits}
        return (1 - soft) * (i == j) + soft * teacher[j] / sum(teacher.values())

    z.requires_grad_()
    named_by = (ids, earlier_ids) if named else (None, None)
    loss = compatible_contrast(z, partners, earlier, T, soft, own, *named_by)
    assert loss.item() == pytest.approx(slow_contrast(z.detach(), bank, target, wrong), rel=1e-10)
    loss.backward()
    assert torch.isfinite(z.grad).all()


def test_the_ids_of_a_batch_find_its_own_samples_in_the_queue():
    """A queue that holds but the batch's own windows, each seen before, is as good as none."""
    new, teacher, _ = batch()
    held = {name: Queue(6, DIM, torch.float64) for name in "ab"}
    remember(held, teacher, torch.arange(6))
    for i in range(6):
        one = [{n: seen(e.z[i : i + 1]) for n, e in part.items()} for part in (new, teacher)]
        others = {n: Queue(5, DIM, torch.float64) for n in "ab"}
        rest = [j for j in range(6) if j != i]
        remember(others, {n: seen(e.z[rest]) for n, e in teacher.items()}, torch.tensor(rest))
        got = teacher_loss(*one, {}, PAIR, held, TeacherSettings(), torch.tensor([i]))["momentum a+b"]
        want = teacher_loss(*one, {}, PAIR, others, TeacherSettings())["momentum a+b"]
        assert got.item() == pytest.approx(want.item(), rel=1e-12)
        assert teacher_loss(*one, {}, PAIR, held, TeacherSettings())["momentum a+b"] > want


def test_what_is_missing_from_a_call_is_said():
    z = rows(3)
    with pytest.raises(ValueError, match="give own"):
        compatible_contrast(z, z, None, T, soft=0.5)
    with pytest.raises(ValueError, match="give earlier_ids"):
        compatible_contrast(z, z, z, T, ids=torch.arange(3))


def test_weights_scale_terms_and_zero_leaves_them_out():
    of_all = batch()
    plain = teacher_loss(*of_all, PAIR, queues(), TeacherSettings())
    half = teacher_loss(*of_all, PAIR, queues(), TeacherSettings(contrast=0.5, cross=2.0, same=3.0))
    for name, factor in {"momentum a+b": 0.5, "cross a+b": 2.0, "same a": 3.0, "same b": 3.0}.items():
        assert half[name].item() == pytest.approx(factor * plain[name].item(), rel=1e-12)
    assert list(teacher_loss(*of_all, PAIR, queues(), TeacherSettings(contrast=0, same=0))) == ["cross a+b"]
    assert list(teacher_loss(*of_all, PAIR, queues(), TeacherSettings(cross=0, same=0))) == ["momentum a+b"]
    assert teacher_loss(*of_all, PAIR, queues(), TeacherSettings(contrast=0, cross=0, same=0)) == {}


def test_soft_targets_are_by_the_teachers_own_embedding_of_the_row():
    (new, teacher, _), held = batch(), queues()
    terms = teacher_loss(new, teacher, {}, PAIR, held, TeacherSettings(soft=0.6))
    ways = [
        compatible_contrast(new[x].z, teacher[y].z, held[y].rows(), T, 0.6, own=teacher[x].z) for x, y in ("ab", "ba")
    ]
    assert terms["momentum a+b"].item() == pytest.approx(sum(ways).item() / 2, rel=1e-12)


def test_old_and_new_have_temperatures_of_their_own():
    new, teacher, old = batch()
    terms = teacher_loss(new, teacher, old, PAIR, {}, TeacherSettings(temperature=0.2, teacher_temperature=0.1))
    assert terms["same a"].item() == same_topology(new["a"].z, old["a"].z, 0.2, 0.1).item()
    cross = cross_topology(new["a"].z, new["b"].z, old["a"].z, old["b"].z, 0.2, 0.1)
    assert terms["cross a+b"].item() == cross.item()
    forth = compatible_contrast(new["a"].z, teacher["b"].z, None, 0.2)
    back = compatible_contrast(new["b"].z, teacher["a"].z, None, 0.2)
    assert terms["momentum a+b"].item() == pytest.approx(((forth + back) / 2).item())


def test_all_is_in_float32_at_least_under_autocast():
    of_all = [{name: seen(each.z.float()) for name, each in part.items()} for part in batch()]
    want = teacher_loss(*of_all, PAIR, queues(), TeacherSettings(soft=0.3))
    with torch.autocast("cpu", torch.bfloat16):
        got = teacher_loss(*of_all, PAIR, queues(), TeacherSettings(soft=0.3))
        narrow = same_topology(of_all[0]["a"].z.bfloat16(), of_all[2]["a"].z.bfloat16(), T, T)
    rounded = [part["a"].z.bfloat16().double() for part in (of_all[0], of_all[2])]
    assert narrow.item() == pytest.approx(same_topology(*rounded, T, T).item(), rel=1e-5)
    assert narrow.dtype == torch.float32
    for name, term in want.items():
        assert got[name].item() == pytest.approx(term.item(), rel=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"momentum": 1.0},
        {"momentum": math.nan},
        {"first_momentum": -0.1},
        {"pull": 1.1},
        {"soft": -0.1},
        {"queue": -1},
        {"contrast": -1.0},
        {"cross": math.nan},
        {"same": math.inf},
        {"temperature": 0.0},
        {"teacher_temperature": math.inf},
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused_by_name(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"^{name} must be "):
        TeacherSettings(**wrong)


def test_extreme_settings_are_allowed():
    assert (
        TeacherSettings(momentum=0, first_momentum=0, pull=1, soft=1, queue=0, contrast=0, cross=0, same=0).queue == 0
    )


def test_the_examples_run():
    assert doctest.testmod(room).failed == 0

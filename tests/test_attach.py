"""The invariants of exmcr.md, section 5: soft retrieval, losses, projector and its folding."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from lineside.errors import ConfigError, GateError
from trainer.align import noisy
from trainer.encoders import unit
from trainer.matching import asked, chances, intervals, of_bound
from trainer.projector import METHODS, CMcr, ExMcr, Projector, contrast, distance, fold
from trainer.quadruples import (
    CHUNK,
    Memories,
    Quadruples,
    Retriever,
    c_centric,
    m_centric,
    must_not_collapse,
    o_centric,
    quadruples,
    soft_weights,
)

LEAF, BASE, HIDDEN = 12, 16, 40


def rows(count, dim, seed=0, kind=torch.float32):
    return unit(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(kind)


def memories(m=20, o=30, c=25, kind=torch.float32):
    sizes = (m, LEAF), (o, LEAF), (o, BASE), (c, BASE)
    return Memories(*(rows(count, dim, seed, kind) for seed, (count, dim) in enumerate(sizes)))


def trained(method="ex-mcr", norm="batch", kind=torch.float32):
    """A projector whose norms have statistics, scales and shifts of their own."""
    torch.manual_seed(1)
    model = METHODS[method](LEAF, BASE, HIDDEN, norm).to(kind)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.normal_(1.0, 0.3)
        for step in range(5):
            model.loss(quadruples(Retriever(0.1), memories(40, 50, 45, kind)), 0.05, 0.1 + step)
    return model.eval()


# Soft retrieval


def test_weights_sum_to_one_and_a_cold_query_returns_the_nearest_row():
    known, query = rows(30, LEAF), rows(9, LEAF, 7)
    w = soft_weights(query, known, 0.05)
    torch.testing.assert_close(w.sum(dim=1), torch.ones(9))
    cold = soft_weights(query, known, 1e-6) @ known
    torch.testing.assert_close(cold, known[(query @ known.T).argmax(dim=1)])


def test_a_query_that_is_a_row_of_the_memory_with_a_large_margin_returns_that_row():
    known = torch.eye(LEAF)
    torch.testing.assert_close(soft_weights(known[3:5], known, 0.01) @ known, known[3:5])


def spied(monkeypatch):
    """Retrieval whose every mix tells its weights."""
    seen = []
    mix = Retriever.mix

    def spy(self, w, values):
        seen.append(w)
        return mix(self, w, values)

    monkeypatch.setattr(Retriever, "mix", spy)
    return seen


@pytest.mark.parametrize("kind", ["m", "c"])
def test_both_spaces_overlap_comes_of_the_same_weights(monkeypatch, kind):
    seen, known, ask = spied(monkeypatch), memories(), Retriever(0.05)
    q = m_centric(ask, known, known.m) if kind == "m" else c_centric(ask, known, known.c)
    assert seen[0] is seen[1]
    own = soft_weights(known.m, known.o_leaf, 0.05) if kind == "m" else soft_weights(known.c, known.o_base, 0.05)
    torch.testing.assert_close(q.o_leaf, unit(own @ known.o_leaf))
    torch.testing.assert_close(q.o_base, unit(own @ known.o_base))
    torch.testing.assert_close(q.m if kind == "m" else q.c, known.m if kind == "m" else known.c)


def test_the_third_of_a_chain_is_asked_for_by_what_the_second_found():
    known = memories()
    q = m_centric(Retriever(0.05), known, known.m)
    torch.testing.assert_close(q.c, unit(soft_weights(q.o_base, known.c, 0.05) @ known.c))
    q = c_centric(Retriever(0.05), known, known.c)
    torch.testing.assert_close(q.m, unit(soft_weights(q.o_leaf, known.m, 0.05) @ known.m))
    q = o_centric(Retriever(0.05), known, known.o_leaf, known.o_base)
    torch.testing.assert_close(q.m, unit(soft_weights(known.o_leaf, known.m, 0.05) @ known.m))
    torch.testing.assert_close(q.c, unit(soft_weights(known.o_base, known.c, 0.05) @ known.c))


def test_all_three_kinds_are_trained_on_and_chunks_change_nothing(monkeypatch):
    known = memories()
    whole = quadruples(Retriever(0.05), known)
    assert len(whole) == 20 + 30 + 25
    assert CHUNK > 30
    monkeypatch.setattr("trainer.quadruples.CHUNK", 7)
    in_parts = quadruples(Retriever(0.05), known)
    for name in ("m", "o_leaf", "o_base", "c"):
        torch.testing.assert_close(getattr(in_parts, name), getattr(whole, name))
    assert len(quadruples(Retriever(0.05), known, "o")) == 30


def test_means_are_of_unit_length_unless_that_is_switched_off():
    known = memories()
    torch.testing.assert_close(quadruples(Retriever(0.5), known).c.norm(dim=1), torch.ones(75))
    assert float(quadruples(Retriever(0.5), known, "m").o_leaf.norm(dim=1).min()) > 0.999
    assert float(quadruples(Retriever(0.5, renormalise=False), known, "m").o_leaf.norm(dim=1).max()) < 0.9


COLLAPSED = {
    "flat": (100.0, rows(20, LEAF), "flat"),
    "one-hot": (1e-4, rows(20, LEAF), "one-hot"),
    "same for all": (0.2, rows(20, LEAF)[:1].repeat(20, 1) + 0.05 * rows(20, LEAF, 3), "same answer"),
}


@pytest.mark.parametrize("name", COLLAPSED)
def test_collapsed_retrieval_is_refused_by_name(name):
    tau, m, told = COLLAPSED[name]
    ask, known = Retriever(tau), memories()
    ask.weights("m to o", unit(m), known.o_leaf)
    with pytest.raises(GateError, match=f"retrieval m to o: has collapsed: .*{told}"):
        must_not_collapse(ask.told(), 0.98, 0.99, 1.5)


def test_the_account_of_retrieval_is_right():
    ask = Retriever(1e-4)
    ask.weights("m to o", torch.eye(LEAF)[:4], torch.eye(LEAF))
    (one,) = ask.told()
    assert (one.queries, one.rows) == (4, LEAF)
    assert (one.peak, one.entropy, one.distinct) == pytest.approx((1.0, 0.0, 4.0))
    must_not_collapse([one], 1.0, 1.0, 1.0)


def test_embeddings_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="leaf space: its two modalities have embeddings of 12 and 16"):
        Memories(rows(4, LEAF), rows(4, BASE), rows(4, BASE), rows(4, BASE))
    with pytest.raises(ConfigError, match="overlap: the leaf embeds 4 windows of it, the base 5"):
        Memories(rows(4, LEAF), rows(4, LEAF), rows(5, BASE), rows(4, BASE))


# Losses


def test_info_nce_of_constant_similarity_is_log_n():
    assert contrast(torch.ones(7, 1), torch.ones(7, 1), 0.05).item() == pytest.approx(math.log(7))


def test_info_nce_is_symmetric_and_does_not_know_the_order_of_the_batch():
    x, y, order = rows(9, BASE, 1), rows(9, BASE, 2), torch.randperm(9)
    value = contrast(x, y, 0.05)
    torch.testing.assert_close(contrast(y, x, 0.05), value)
    torch.testing.assert_close(contrast(x[order], y[order], 0.05), value)
    logits = x.double() @ y.double().T / 0.05
    slow = -(logits.softmax(1).diagonal().log() + logits.softmax(0).diagonal().log()).mean() / 2
    assert value.item() == pytest.approx(slow.item(), rel=1e-5)


def test_the_gap_loss_is_zero_just_where_both_agree_and_moves_f_l_alone():
    model, m, o = ExMcr(LEAF, BASE, HIDDEN, "batch"), rows(9, LEAF, 1), rows(9, LEAF, 2)
    moved = model.projector.f_l(m)
    assert distance(moved, moved.detach()).item() == 0
    assert distance(moved, o).item() > 0
    distance(moved, o).backward()
    assert all(weight.grad is None for weight in model.projector.f_m.parameters())
    assert float(model.projector.f_l.weight.grad.abs().max()) > 0


@pytest.mark.parametrize("kind", ["m", "o", "c"])
def test_nothing_of_the_base_gets_a_gradient(kind):
    known = memories()
    q = quadruples(Retriever(0.05), known, kind).each(lambda x: x.clone().requires_grad_())
    ExMcr(LEAF, BASE, HIDDEN, "batch").loss(q, 0.05, 0.1).backward()
    assert q.o_base.grad is None
    assert q.c.grad is None
    assert q.m.grad is not None
    assert q.o_leaf.grad is not None


def test_the_dense_loss_is_the_mean_of_four_pairs_and_the_overlap_skips_f_l():
    q, model = quadruples(Retriever(0.05), memories()), trained()
    inside = model.projector
    m = functional.normalize(inside.f_m(inside.f_l(q.m)))
    o = functional.normalize(inside.f_m(q.o_leaf))
    four = [contrast(m, q.c, 0.05), contrast(m, q.o_base, 0.05), contrast(o, q.c, 0.05), contrast(o, q.o_base, 0.05)]
    wanted = sum(four) / 4 + 0.3 * (inside.f_l(q.m) - q.o_leaf).norm(dim=1).mean()
    torch.testing.assert_close(model.loss(q, 0.05, 0.3), wanted)


def test_c_mcr_is_trained_on_two_pairs_and_moves_the_base_s_side():
    model, known = CMcr(LEAF, BASE, HIDDEN, "batch"), memories()
    q = quadruples(Retriever(0.05), known, model.kinds)
    assert len(q) == len(known.o_leaf)
    model.loss(q, 0.05, 0.1).backward()
    assert all(weight.grad is not None for weight in model.base.parameters())
    assert not torch.allclose(model.eval().partner(known.c), known.c)


# Projector


def test_the_projector_has_as_many_parameters_as_the_authors():
    assert sum(weight.numel() for weight in Projector(512, 512, 1024).parameters()) == 2_369_024


def test_f_l_begins_as_the_identity_but_for_its_bias():
    f_l, x = Projector(LEAF, BASE, HIDDEN).f_l, rows(5, LEAF)
    assert float(f_l.bias.detach().abs().max()) > 0
    with torch.no_grad():
        f_l.bias.zero_()
    assert torch.equal(f_l(x), x)


@pytest.mark.parametrize("method", METHODS)
def test_outputs_are_of_unit_length_and_rows_do_not_meet(method):
    model, m = trained(method), rows(9, LEAF, 5)
    with torch.no_grad():
        together = model.newcomer(m)
        torch.testing.assert_close(together.norm(dim=1), torch.ones(9))
        torch.testing.assert_close(model.newcomer(m[:1]), together[:1])
        model.train()  # the published first release ran like this
        assert not torch.allclose(model.newcomer(m)[:1], model.newcomer(m[:4])[:1], atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize(("kind", "limit"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["fp64", "fp32"])
def test_the_folded_head_is_the_same_map(method, norm, kind, limit):
    model, m, c = trained(method, norm, kind), rows(50, LEAF, 5, kind), rows(50, BASE, 6, kind)
    newcomer, base = model.folded()
    with torch.no_grad():
        assert float((newcomer(m) - model.newcomer(m)).abs().max()) < limit
        assert (base is None) == (method == "ex-mcr")
        if base is not None:
            assert float((base(c) - model.partner(c)).abs().max()) < limit


def test_what_is_shipped_of_ex_mcr_is_three_linear_layers_with_two_relu():
    model = trained()
    head, _ = model.folded()
    assert [type(layer).__name__ for layer in head] == ["Linear", "ReLU", "Linear", "ReLU", "Linear", "Unit"]
    assert [tuple(x.shape) for x in head.parameters() if x.ndim == 2] == [
        (HIDDEN, LEAF),
        (HIDDEN, HIDDEN),
        (BASE, HIDDEN),
    ]
    assert all(weight.requires_grad for weight in model.parameters())  # folding a copy leaves the model as it was
    overlap, o = fold(list(model.projector.f_m)), rows(9, LEAF)
    torch.testing.assert_close(overlap(o), model.projector.overlap(o))


def test_noise_has_the_length_that_the_plan_says():
    x = rows(200, 512)
    assert noisy(x, 0.0, torch.Generator()) is x
    moved = noisy(x, 1.43, torch.Generator().manual_seed(1))
    torch.testing.assert_close(moved.norm(dim=1), torch.ones(200))
    assert float((moved * x).sum(dim=1).mean()) == pytest.approx(0.57, abs=0.02)  # exmcr.md, section 2.1


# Numbers


def test_scores_of_matched_rows_are_those_of_a_slow_count():
    a, b = (rows(30, 5, seed).numpy() for seed in (1, 2))
    found = asked(a, (a + b).astype(np.float32), np.arange(30) // 3)
    for way, (x, y) in enumerate(((a, a + b), (a + b, a))):
        similar = x @ y.T
        rank = np.array([(similar[i] > similar[i, i]).sum() for i in range(30)])
        part = slice(30 * way, 30 * (way + 1))
        np.testing.assert_allclose(found.scores["recall_1"][part], rank == 0)
        np.testing.assert_allclose(found.scores["recall_5"][part], rank < 5)
        np.testing.assert_allclose(found.scores["mean_ap"][part], 1 / (rank + 1))
    told = intervals(found)["mean_ap"]
    assert told.low < told.value < told.high


def test_chance_is_what_rows_that_say_nothing_score():
    found = [asked(rows(60, 8, s).numpy(), rows(60, 8, 500 + s).numpy(), np.arange(60)) for s in range(60)]
    for name, chance in chances(60).items():
        assert np.mean([each.scores[name].mean() for each in found]) == pytest.approx(chance, rel=0.15), name


def test_the_share_of_the_bound_is_above_chance_on_both_sides():
    a, b, groups = rows(40, 8).numpy(), rows(40, 8, 1).numpy(), np.arange(40)
    bound, none = asked(a, a, groups), asked(a, b, groups)
    assert of_bound(bound, bound, "recall_few").value == 1.0
    assert of_bound(none, bound, "recall_few").value == pytest.approx(0, abs=0.1)


def test_quadruples_are_taken_by_rows():
    q = Quadruples(*(torch.arange(5.0)[:, None] + k for k in range(4)))
    part = q[torch.tensor([4, 0])]
    assert part.c[:, 0].tolist() == [7.0, 3.0]
    assert part.m[:, 0].tolist() == [4.0, 0.0]

"""Rules of protection as the loop calls them (T6, T7, T9, T11, T12, T15 of shared/design/algorithms/dns.md)."""

import pytest
import torch
from torch.nn import functional

from lineside.features import FeaturesPrepare
from trainer import published, rules
from trainer.encoders import Encoder, Encoders
from trainer.projection import basis, homogeneous, nothing_seen, products, protect
from trainer.rules import Ewc, Free, Held, Published, Rotated, remember_ewc, remember_published

FEATURES, DIM, ROWS, OLD = 24, 12, 40, 60
RANK, WIDE = 3, 20  # of old inputs: with the bias 4 directions a modality, or more than dimensions
CYCLE, PATH = (("a", "b"), ("a", "c"), ("b", "c")), (("a", "b"), ("b", "c"))
LONG = 203  # steps, no multiple of the cadence
ALL = 1e-13  # epsilon: every direction that old inputs use


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Matrices are tiny: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def drawn(*size, seed):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Line:
    """Modalities with old inputs of low rank, and new ones that use all directions."""

    def __init__(self, names="ab", rank=RANK, pairs=(("a", "b"),)):
        self.pairs, self.encoders = pairs, Encoders()
        for k, name in enumerate(names):
            torch.manual_seed(k)
            self.encoders[name] = Encoder(FeaturesPrepare(FEATURES, "0" * 64), DIM).double()
            self.encoders[name].head.weight.data = drawn(DIM, FEATURES + 1, seed=10 + k) / 5
        self.old = {
            name: drawn(OLD, rank, seed=20 + k) @ drawn(rank, FEATURES, seed=30 + k) for k, name in enumerate(names)
        }
        self.new = {name: drawn(ROWS, FEATURES, seed=40 + k) for k, name in enumerate(names)}
        self.seen = {name: nothing_seen(FEATURES).joined(x) for name, x in self.old.items()}

    def weights(self):
        return {name: encoder.head.weight.detach().clone() for name, encoder in self.encoders.items()}

    def embedded(self, name):
        return (homogeneous(self.old[name]) @ self.encoders[name].head.weight.T).detach()

    def products(self):
        return {(a, b): self.embedded(a) @ self.embedded(b).T for a, b in self.pairs}

    def norms(self):
        return {name: self.embedded(name).norm(dim=1) for name in self.encoders}

    def dual(self, moving, every=1):
        heads = {name: encoder.head.weight for name, encoder in self.encoders.items()}
        return Held(self.encoders, {}, products=products(heads, self.seen, self.pairs, moving, ALL), every=every)

    def one_sided(self, names, every=1):
        heads = {name: protect(self.encoders[name].head.weight, self.seen[name], ALL) for name in names}
        return Held(self.encoders, heads, every=every)

    def against_starts(self, every=1):
        """Each head dual, held against what its partner was."""
        heads = {}
        for name, other in (("a", "b"), ("b", "a")):
            w = self.encoders[other].head.weight.detach()
            partners = w @ self.seen[other].second @ w.T
            heads[name] = protect(self.encoders[name].head.weight, self.seen[name], ALL, partners=partners)
        return Held(self.encoders, heads, every=every)


def learn(line, rule, pairs=None, steps=60, optimiser=torch.optim.AdamW, decay=1e-2, watch=None):
    """The loop: contrast of new inputs, with weight decay; then the rule leaves plain weights behind."""
    pairs = pairs or line.pairs
    moving = {name for pair in pairs for name in pair}
    weights = [weight for name in sorted(moving) for weight in line.encoders[name].parameters()]
    stepper = optimiser(weights, lr=1e-2, weight_decay=decay)
    for step in range(steps):
        z = {name: line.encoders[name].head(line.new[name]) for name in moving}
        loss = sum(functional.cross_entropy(z[a] @ z[b].T / 10, torch.arange(ROWS)) for a, b in pairs)
        penalty = rule.penalty()
        stepper.zero_grad()
        (loss if penalty is None else loss + penalty).backward()
        rule.project()
        stepper.step()
        rule.hold(step, last=step + 1 == steps)
        if watch:
            watch(step)
    rule.finish()


def apart(now, then):
    return max(float((now[key] - then[key]).abs().max()) for key in then)


@pytest.mark.parametrize("rank", [RANK, 10, WIDE])
@pytest.mark.parametrize("every", [1, 8])
def test_t6_t7_two_heads_of_a_recurring_pair_keep_inner_products_but_not_norms(every, rank):
    line = Line(rank=rank)
    before, norms, weights, kept = line.products(), line.norms(), line.weights(), []

    def watch(step):
        if (step + 1) % every == 0 or step + 1 == LONG:
            kept.append(apart(line.products(), before))

    learn(line, line.dual("ab", every), steps=LONG, watch=watch)
    assert len(kept) == (LONG if every == 1 else 26)  # and at the end
    assert max(kept) <= 1e-9
    assert apart(line.products(), before) <= 1e-9
    assert apart(line.norms(), norms) > 1e-3
    assert all((line.weights()[name] - weights[name]).abs().max() > 1e-2 for name in "ab")


@pytest.mark.parametrize("every", [1, 8])
def test_t7_against_the_partner_s_start_inner_products_drift(every):
    line = Line(rank=6)
    before = line.products()
    learn(line, line.against_starts(every), steps=LONG)
    assert apart(line.products(), before) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("pairs", "rank"), [(CYCLE, RANK), (CYCLE, 7), (CYCLE, WIDE), (PATH, 7), (PATH, WIDE)])
def test_three_modalities_keep_all_inner_products_however_much_their_partners_ask(pairs, rank):
    line = Line("abc", rank, pairs)
    before, norms, weights = line.products(), line.norms(), line.weights()
    learn(line, line.dual("abc"), steps=LONG)
    assert before.keys() == set(pairs)
    assert apart(line.products(), before) <= 1e-9
    assert all((line.weights()[name] - weights[name]).abs().max() > 1e-2 for name in "abc")
    if rank == RANK or pairs == PATH:
        assert apart(line.norms(), norms) > 1e-3
    else:  # nothing but a turn of the whole space would keep them: heads go back to their start
        assert apart(line.norms(), norms) <= 1e-9


@pytest.mark.parametrize("rank", [RANK, 7, WIDE])
def test_t11_a_partner_that_stands_still_is_not_touched(rank):
    line = Line("abc", rank, CYCLE)
    before, weights = line.products(), line.weights()
    line.encoders["c"].head.requires_grad_(False)
    learn(line, line.dual("ab"), pairs=(("a", "b"), ("a", "c")))
    assert torch.equal(line.weights()["c"], weights["c"])
    assert not torch.equal(line.weights()["a"], weights["a"])
    assert apart(line.products(), before) <= 1e-9


def test_a_head_that_never_had_a_partner_is_free_under_the_dual_rule():
    line, free = Line("abc"), Line("abc")
    rule = line.dual("abc")
    learn(line, rule, pairs=CYCLE, steps=1)  # the old pairs are a and b alone
    learn(free, Free(), pairs=CYCLE, steps=1)
    assert torch.equal(line.weights()["c"], free.weights()["c"])
    assert not torch.equal(line.weights()["a"], free.weights()["a"])


def test_in_turn_nothing_moves_that_need_not():
    line = Line("abc", WIDE, CYCLE)
    before = line.weights()
    line.dual("abc").hold(0, last=True)
    assert apart(line.weights(), before) <= 1e-12


def test_t12_scaled_features_leave_what_the_dual_rule_protects():
    """Up to the constant, whose own scale stays: as many directions, and the same ones once the scale is taken out."""
    for c in (1e-2, 1e2):
        line = Line()
        plain = line.dual("ab").products.directions
        line.seen = {name: nothing_seen(FEATURES).joined(c * x) for name, x in line.old.items()}
        scaled = line.dual("ab").products.directions
        for name in "ab":
            taken = scaled[name].clone()
            taken[:-1] /= c
            q = torch.linalg.qr(taken).Q
            assert q.shape == plain[name].shape == (FEATURES + 1, RANK + 1)
            assert (q @ q.T - plain[name] @ plain[name].T).abs().max() <= 1e-9


@pytest.mark.parametrize("rank", [RANK, WIDE])
def test_one_sided_heads_keep_old_embeddings_at_any_cadence(rank):
    for every in (1, 8, 500):
        line = Line(rank=rank)
        before, weights = {name: line.embedded(name) for name in "ab"}, line.weights()
        learn(line, line.one_sided("ab", every))
        assert max(float((line.embedded(name) - before[name]).abs().max()) for name in "ab") <= 1e-9
        assert apart(line.weights(), weights) > 1e-2


def test_t15_a_rule_that_is_not_called_lets_old_embeddings_drift():
    for rule in ("one_sided", "dual"):
        line = Line()
        before, embedded = line.products(), line.embedded("a")
        uncalled = getattr(line, rule)("ab")
        uncalled.hold = lambda step, last: None
        learn(line, uncalled)
        assert apart(line.products(), before) > 1e-1
        assert (line.embedded("a") - embedded).abs().max() > 1e-1


def test_t15_weights_are_put_back_at_each_step_that_is_due_and_at_no_other():
    line, count = Line(), {"changed": [], "before": None}
    rule = line.one_sided("ab", every=8)

    def hold(step, last):
        before = line.weights()
        Held.hold(rule, step, last)
        if apart(line.weights(), before) > 0:
            count["changed"].append(step)

    rule.hold = hold
    learn(line, rule, steps=21)
    assert count["changed"] == [7, 15, 20]


@pytest.mark.parametrize("rule", ["one_sided", "rotated", "published", "dual", "ewc"])
def test_t9_what_was_never_seen_learns_as_if_free(rule):
    free, line = Line(), Line()
    line.seen = {name: nothing_seen(FEATURES) for name in "ab"}
    line.pairs = () if rule == "dual" else line.pairs
    nothing = {
        "one_sided": lambda: line.one_sided("ab"),
        "dual": lambda: line.dual("ab"),
        "published": lambda: Published.of(line.encoders, {}),
        "ewc": lambda: Ewc.of(line.encoders, {}, 1.0),
        "rotated": lambda: Rotated(line.encoders, line.one_sided("ab").heads),
    }
    # A rotated head's optimiser sees other coordinates, and decay draws it to its start: nothing that SGD would notice.
    ways = {"optimiser": torch.optim.SGD, "decay": 0.0} if rule == "rotated" else {}
    start = free.weights()
    learn(free, Free(), pairs=free.pairs, **ways)
    learn(line, nothing[rule](), pairs=free.pairs, **ways)
    assert apart(line.weights(), free.weights()) <= 1e-8
    assert apart(free.weights(), start) > 1e-2


@pytest.mark.parametrize("rule", ["one_sided", "rotated", "published", "dual", "ewc"])
def test_t11_heads_of_absent_modalities_stay_bit_for_bit(rule):
    line = Line("abc", pairs=CYCLE)
    line.encoders["c"].head.requires_grad_(False)  # as a stage leaves what its recordings do not have
    start, heads = line.weights(), line.one_sided("ab").heads
    fisher = {f"fisher/{name}.head.weight": torch.ones(DIM, FEATURES + 1) for name in "abc"}
    learn(
        line,
        {
            "one_sided": lambda: Held(line.encoders, heads),
            "dual": lambda: line.dual("ab"),
            "published": lambda: Published.of(line.encoders, remember_published({}, line.old)),
            "ewc": lambda: Ewc.of(line.encoders, fisher, 1.0),
            "rotated": lambda: Rotated(line.encoders, heads),
        }[rule](),
        pairs=(("a", "b"),),
    )
    assert torch.equal(line.weights()["c"], start["c"])
    assert all(not torch.equal(line.weights()[name], start[name]) for name in "ab")


@pytest.mark.parametrize("rank", [RANK, WIDE])
def test_rotated_heads_are_at_their_start_on_protected_directions_and_plain_again(rank):
    line = Line(rank=rank)
    names, start = [name for name, _ in line.encoders.named_parameters()], line.weights()
    before = {name: line.embedded(name) for name in "ab"}
    heads = line.one_sided("ab").heads
    rule, inside = Rotated(line.encoders, heads), []

    def watch(step):
        inside.append([name for name, _ in line.encoders.named_parameters()])

    learn(line, rule, watch=watch)
    assert inside[0] == ["a.head.parametrizations.weight.original", "b.head.parametrizations.weight.original"]
    assert [name for name, _ in line.encoders.named_parameters()] == names
    assert line.encoders.state_dict().keys() == Line().encoders.state_dict().keys()
    for name in "ab":
        weight, v = line.encoders[name].head.weight, heads[name].directions
        assert v.shape[1] == rank + 1
        assert isinstance(weight, torch.nn.Parameter)
        assert weight.requires_grad
        assert ((weight - start[name]) @ v).abs().max() <= 1e-10
        assert (line.embedded(name) - before[name]).abs().max() <= 1e-9
        assert (weight - start[name]).abs().max() > 1e-2


def gradients(line, seed=50):
    given = {name: drawn(DIM, FEATURES + 1, seed=seed + k) for k, name in enumerate(line.encoders)}
    for name, gradient in given.items():
        line.encoders[name].head.weight.grad = gradient.clone()
    return given


def test_published_projects_gradients_of_weights_but_not_of_biases():
    line = Line("abc")
    given = gradients(line)
    rule = Published.of(line.encoders, remember_published({}, {name: line.old[name] for name in "ab"}))
    assert rule.inputs.keys() == {"a", "b"}
    rule.project()
    for name in "ab":
        got, u = line.encoders[name].head.weight.grad, torch.linalg.svd(line.old[name])[2][:RANK]
        assert (got[:, :-1] - (given[name][:, :-1] - given[name][:, :-1] @ u.T @ u)).abs().max() <= 1e-12
        assert (given[name][:, :-1] @ u.T).abs().max() > 1e-1
        assert torch.equal(got[:, -1], given[name][:, -1])
    assert torch.equal(line.encoders["c"].head.weight.grad, given["c"])  # never seen
    line.encoders["a"].head.weight.grad = None
    rule.project()
    assert line.encoders["a"].head.weight.grad is None


def test_published_threshold_is_absolute_so_that_scale_decides():
    line = Line()
    powers = torch.full((FEATURES,), 1e-4, dtype=torch.float64)
    powers[:3] = torch.tensor([5.0, 0.11, 0.09])
    x = torch.diag((FEATURES * powers).sqrt())
    for scale, rank in ((1.0, 2), (2.0, 3), (0.5, 1), (1e3, FEATURES)):
        rule = Published.of(line.encoders, remember_published({}, {"a": scale * x}))
        kept = torch.zeros(FEATURES, dtype=torch.float64)
        kept[:rank] = 1
        assert (rule.inputs["a"] - torch.diag(kept)).abs().max() <= 1e-12


def test_published_drifts_under_adamw_where_held_weights_do_not():
    line = Line()
    before = line.embedded("a")
    learn(line, Published.of(line.encoders, remember_published({}, line.old)))
    assert (line.embedded("a") - before).abs().max() > 1e-2


def test_remembered_moments_are_the_reference_s_under_one_counter_for_all():
    """Two stages of as many moments, a absent from the second: it keeps its value (defect D5)."""
    x = {name: drawn(30, DIM, seed=60 + k) for k, name in enumerate("abc")}
    later = {name: drawn(30, DIM, seed=70 + k) for k, name in enumerate("abc")}
    w = drawn(DIM, DIM, seed=80), drawn(DIM, DIM, seed=81)
    reference = published.Statistics(DIM)
    reference.book(("a", "b"), (x["a"], x["b"]), w)
    one = remember_published({}, {name: x[name] for name in "ab"})
    assert one["count"] == 30
    assert one.keys() == {"count", "published/a", "published/b"}
    reference.book(("b", "c"), (later["b"], later["c"]), w)
    two = remember_published(one, {name: later[name] for name in "bc"})
    assert int(two["count"]) == reference.count == 60
    assert two.keys() == {"count", "published/a", "published/b", "published/c"}
    for name in "abc":
        assert (two[f"published/{name}"] - reference.inputs[name]).abs().max() <= 1e-12
    assert torch.equal(two["published/a"], one["published/a"])
    three = remember_published(two, {"a": later["a"][:10], "b": later["b"][:25]})
    assert three["count"] == 85


def ewc(line, strength=3.0):
    fisher = {name: drawn(DIM, FEATURES + 1, seed=90 + k) ** 2 for k, name in enumerate("ab")}
    return fisher, Ewc.of(line.encoders, {f"fisher/{m}.head.weight": x for m, x in fisher.items()}, strength)


def test_ewc_penalty_is_zero_at_the_start_and_then_the_weighted_square():
    line = Line("abc")
    fisher, rule = ewc(line)
    rule.penalty().backward()
    assert rule.penalty() == 0
    assert line.encoders["a"].head.weight.grad.abs().max() == 0
    assert line.encoders["c"].head.weight.grad is None
    moved = {name: drawn(DIM, FEATURES + 1, seed=95 + k) for k, name in enumerate("abc")}
    with torch.no_grad():
        for name, d in moved.items():
            line.encoders[name].head.weight += d
    want = 3.0 / 2 * sum(float((fisher[name] * moved[name] ** 2).sum()) for name in "ab")
    assert float(rule.penalty().detach()) == pytest.approx(want, rel=1e-12)
    line.encoders["b"].head.requires_grad_(False)
    alone = 3.0 / 2 * float((fisher["a"] * moved["a"] ** 2).sum())
    assert float(rule.penalty().detach()) == pytest.approx(alone, rel=1e-12)
    assert Ewc.of(line.encoders, {}, 3.0).penalty() is None


def test_ewc_draws_weights_back_the_more_the_more_they_matter():
    line = Line()
    fisher, rule = ewc(line)
    start = line.weights()["a"]
    with torch.no_grad():
        line.encoders["a"].head.weight += 1.0
    rule.penalty().backward()
    weight = line.encoders["a"].head.weight
    assert (weight.grad - 3.0 * fisher["a"]).abs().max() <= 1e-12
    with torch.no_grad():
        weight -= 1e-2 * weight.grad
    back = 1.0 - (weight.detach() - start)
    assert (back - 3e-2 * fisher["a"]).abs().max() <= 1e-12


def test_ewc_holds_back_what_a_free_stage_would_forget():
    drift = {}
    for strength in (0.0, 10.0):
        line = Line()
        before = line.embedded("a")
        second = {f"fisher/{name}.head.weight": torch.full((DIM, FEATURES + 1), 1.0) for name in "ab"}
        learn(line, Ewc.of(line.encoders, second, strength))
        drift[strength] = float((line.embedded("a") - before).norm())
    assert drift[10.0] < drift[0.0] / 3


def terms(line, pair, batches=3):
    """Terms of batches as the loop tells them; one has none."""
    a, b = pair
    for rows in torch.arange(ROWS).chunk(batches):
        za, zb = (line.encoders[name].head(line.new[name][rows]) for name in pair)
        yield {f"{a}+{b}": functional.cross_entropy(za @ zb.T, torch.arange(len(rows)))}
    yield {}


def test_remembered_fisher_is_the_mean_square_of_gradients_and_adds_up_over_stages():
    line = Line("abc")
    line.encoders["c"].head.requires_grad_(False)
    want = {name: torch.zeros(DIM, FEATURES + 1, dtype=torch.float64) for name in "ab"}
    for each in terms(line, "ab"):
        for name in want if each else ():
            (gradient,) = torch.autograd.grad(each["a+b"], line.encoders[name].head.weight, retain_graph=True)
            want[name] += gradient**2 / 3
    one = remember_ewc({}, line.encoders, terms(line, "ab"), {})
    assert one.keys() == {"fisher/a.head.weight", "fisher/b.head.weight"}
    for name in "ab":
        assert (one[f"fisher/{name}.head.weight"] - want[name]).abs().max() <= 1e-12
        assert want[name].max() > 1e-3

    line.encoders["c"].head.requires_grad_(True)
    line.encoders["a"].head.requires_grad_(False)
    later = remember_ewc({}, line.encoders, terms(line, "bc"), {})
    two = remember_ewc(one, line.encoders, terms(line, "bc"), {})
    assert two.keys() == one.keys() | later.keys()
    for key in two:
        assert torch.equal(two[key], one.get(key, 0) + later.get(key, torch.zeros_like(two[key])))
    doubled = remember_ewc({}, line.encoders, terms(line, "bc"), {"pair": 2.0})  # of the loss as it is weighed
    for key in later:
        torch.testing.assert_close(doubled[key], 4 * later[key])
    assert not any(x.requires_grad for x in two.values())


def test_free_does_nothing():
    line = Line()
    given, before, rule = gradients(line), line.weights(), rules.Free()
    assert rule.penalty() is None
    rule.project()
    rule.hold(0, last=True)
    rule.finish()
    assert all(torch.equal(line.encoders[name].head.weight.grad, given[name]) for name in "ab")
    assert all(torch.equal(line.weights()[name], before[name]) for name in "ab")


def test_single_precision_heads_are_held_to_its_rounding_between_and_to_the_last_bit_at_the_end():
    line = Line()
    line.encoders.float()
    line.new = {name: x.float() for name, x in line.new.items()}
    rule = line.one_sided("ab")
    start, drifts = {name: each.start for name, each in rule.heads.items()}, []

    def watch(step):
        v = basis(line.seen["a"].second, ALL)
        drifts.append(float(((line.weights()["a"].double() - start["a"]) @ v).abs().max()))

    learn(line, rule, watch=watch)
    assert max(drifts) <= 1e-5
    assert drifts[-1] <= 1e-6
    assert line.encoders["a"].head.weight.dtype == torch.float32

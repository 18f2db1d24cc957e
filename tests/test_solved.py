"""Solved heads against brute force over all windows at once, and the fixed trunks whose features they stand on."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lineside.features import CameraPrepare, FeaturesPrepare, MicrophonePrepare, SeriesPrepare, shape
from trainer.encoders import LOOKS, SILENCE, Encoder, FixedTrunk, SeriesLook
from trainer.projection import homogeneous, nothing_seen
from trainer.solved import Sums, anchors, to_anchors, to_each_other, turned

FEATURES, DIM, ROWS = 7, 9, 30
SIZES = {"a": 5, "b": 7, "c": 4}
RIDGE = 0.03
SPECS = {
    "camera": CameraPrepare(frames=1, height=32, width=48),
    "microphone": MicrophonePrepare(rate_hz=8000, samples=8000, mels=32, high_hz=4000.0),
    "series": SeriesPrepare(channels=3, samples=64),
    "features": FeaturesPrepare(width=12, backbone="0" * 64),
}

stages = st.tuples(
    st.lists(st.integers(0, 3), min_size=ROWS, max_size=ROWS),
    st.lists(st.sampled_from(["", "x", "y", "z"]), min_size=ROWS, max_size=ROWS),
    st.permutations(range(4)),
)


def drawn(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(n, seed=0, features=FEATURES):
    """Inputs of unequal scales, correlated, and not centred."""
    return drawn(n, features, seed=seed) @ drawn(features, features, seed=99) + drawn(features, seed=98)


def moments(x):
    return nothing_seen(x.shape[1]).joined(x)


def ridge_solution(x, targets, ridge):
    """Rows of zeros with the root of the penalty beneath the data; the bias is penalised by the constant's power."""
    x, targets = np.asarray(x), np.asarray(targets)
    n, f = x.shape
    penalty = np.sqrt(ridge * np.append(np.full(f, (x**2).sum() / f), n))
    rows = np.vstack([np.column_stack([x, np.ones(n)]), np.diag(penalty)])
    told = np.vstack([targets, np.zeros((f + 1, targets.shape[1]))])
    return torch.from_numpy(np.linalg.lstsq(rows, told, rcond=None)[0].T)


def targets_of(labels, known):
    """Each label's anchor; nothing for a row without."""
    table = dict(zip(known, anchors(len(known), DIM), strict=True))
    return torch.stack([table.get(label, torch.zeros(DIM, dtype=torch.float64)) for label in labels])


def close(got, want, tolerance):
    assert got.shape == want.shape
    assert float((got - want).abs().max()) <= tolerance * max(1.0, float(want.abs().max()))


@pytest.mark.slow
@settings(max_examples=40)
@given(stages)
def test_stage_by_stage_in_any_order_is_ridge_regression_on_all_data_at_once(drawn_stages):
    places, labels, order = drawn_stages
    x, places, labels = inputs(ROWS), np.array(places), np.array(labels)
    seen, sums, came = nothing_seen(FEATURES), Sums(), []
    for stage in order:
        here = torch.from_numpy(places == stage)
        seen = seen.joined(x[here])
        sums = sums.labelled("a", x[here], labels[places == stage].tolist())
        came += sorted(set(labels[places == stage]) - {""} - set(came))
    assert sums.labels == tuple(came)
    assert seen.count == ROWS
    got = to_anchors(seen, sums.by_label["a"], DIM, RIDGE)
    close(got, ridge_solution(x, targets_of(labels, sums.labels), RIDGE), 1e-8)


@settings(max_examples=40)
@given(stages)
def test_pairs_stage_by_stage_in_any_order_are_as_at_once(drawn_stages):
    places, _, order = drawn_stages
    x, places = scene(ROWS), np.array(places)
    seen, sums = {name: nothing_seen(SIZES[name]) for name in "abc"}, Sums()
    for stage in order:
        here = torch.from_numpy(places == stage)
        seen = {name: seen[name].joined(x[name][here]) for name in seen}
        for first, second in ("ba", "bc") if stage % 2 else ("ab", "cb"):  # whichever is named first
            sums = sums.paired((first, second), x[first][here], x[second][here])
    assert sums.counts == {("a", "b"): ROWS, ("b", "c"): ROWS}
    got = to_each_other(seen, sums, 3, RIDGE)
    want = to_each_other(*once(x, ["ab", "bc"]), 3, RIDGE)
    for m, n in itertools.product("abc", repeat=2):
        close(got[m].T @ got[n], want[m].T @ want[n], 1e-8)


def test_labels_that_come_later_in_another_modality_change_no_head():
    x, y = inputs(20, seed=1), inputs(20, seed=2)
    early = Sums().labelled("a", x, ["p", "q"] * 10)
    later = early.labelled("b", y, ["r", "p"] * 10)
    assert later.labels == ("p", "q", "r")
    assert early.labels == ("p", "q")
    assert later.by_label["a"].shape == later.by_label["b"].shape == (3, FEATURES + 1)
    heads = [to_anchors(moments(x), sums.by_label["a"], DIM, RIDGE) for sums in (early, later)]
    close(heads[1], heads[0], 1e-12)


def test_adding_to_sums_leaves_the_old_ones_as_they_were():
    x = inputs(6)
    sums = Sums().labelled("a", x, ["p"] * 6).paired(("a", "b"), x, x)
    before = sums.by_label["a"].clone(), sums.crossed["a", "b"].clone()
    sums.labelled("a", x, ["p"] * 6).paired(("a", "b"), x, x)
    assert torch.equal(sums.by_label["a"], before[0])
    assert torch.equal(sums.crossed["a", "b"], before[1])
    assert sums.counts == {("a", "b"): 6}


def test_unlabelled_rows_are_in_no_label_s_sum():
    x, labels = inputs(8), ["p", "", "q", "", "", "p", "q", "q"]
    told = [k for k, label in enumerate(labels) if label]
    some, alone = Sums().labelled("a", x, labels), Sums().labelled("a", x[told], [labels[k] for k in told])
    assert some.labels == alone.labels == ("p", "q")
    assert torch.equal(some.by_label["a"], alone.by_label["a"])
    none = Sums().labelled("a", x, [""] * 8)
    assert none.labels == ()
    assert none.by_label["a"].shape == (0, FEATURES + 1)


def test_anchors_are_orthonormal_stable_and_the_same_everywhere():
    torch.manual_seed(1)
    five = anchors(5, 8)
    torch.manual_seed(2)
    close(five @ five.T, torch.eye(5, dtype=torch.float64), 1e-12)
    for count in range(9):
        assert torch.equal(anchors(count, 8)[:5], five[:count])
    wanted = torch.tensor([-0.027585, -0.003857, -0.87227, -0.488232], dtype=torch.float64)
    close(anchors(1, 4)[0], wanted, 1e-5)  # releases of all machines share them


def test_more_labels_than_dimensions_are_refused_with_the_mend():
    assert anchors(4, 4).shape == (4, 4)
    with pytest.raises(ValueError, match=r"5 labels .* embeddings have 4; set dim = 5"):
        anchors(5, 4)


@pytest.mark.parametrize("ridge", [1e-4, 0.3])
@pytest.mark.parametrize("scale", [1e-2, 1e3])
def test_the_scale_of_features_does_not_matter(ridge, scale):
    x, labels = inputs(40), ["p", "q"] * 20
    embedded = []
    for c in (1.0, scale):
        weight = to_anchors(moments(c * x), Sums().labelled("a", c * x, labels).by_label["a"], DIM, ridge)
        embedded.append(homogeneous(c * x) @ weight.T)
    close(embedded[1], embedded[0], 1e-9)

    data = scene(60)
    heads = {c: to_each_other(*once({**data, "a": c * data["a"]}, ["ab", "bc"]), 3, ridge) for c in (1.0, scale)}
    products = [
        (homogeneous(c * data["a"]) @ heads[c]["a"].T) @ (homogeneous(data["b"]) @ heads[c]["b"].T).T for c in heads
    ]
    close(products[1], products[0], 1e-6)


def test_features_that_never_were_anything_are_solved_all_the_same():
    """A covered camera."""
    dark = torch.zeros(12, FEATURES)
    weight = to_anchors(moments(dark), Sums().labelled("a", dark, ["p"] * 12).by_label["a"], DIM, 1e-9)
    close((homogeneous(dark) @ weight.T)[0], anchors(1, DIM)[0], 1e-6)


def scene(n, noise=0.3, seed=0):
    """Three modalities that see two common causes, each through its own mixture, offset and noise."""
    causes = drawn(n, 2, seed=seed)
    return {
        name: causes @ drawn(2, size, seed=10 + k) + noise * drawn(n, size, seed=100 * seed + 20 + k) + 3.0 * k
        for k, (name, size) in enumerate(SIZES.items())
    }


def once(x, pairs):
    """Moments of all, and sums of pairs, from all data at once."""
    sums = Sums()
    for first, second in pairs:
        sums = sums.paired((first, second), x[first], x[second])
    return {name: moments(x[name]) for name in sorted({*"".join(pairs)})}, sums


def white(x, ridge):
    """(Cov + ridge tr(Cov) / f I)^-1/2, the symmetric one."""
    covariance = np.cov(x.T, bias=True)
    values, vectors = np.linalg.eigh(covariance + ridge * np.trace(covariance) / len(covariance) * np.eye(x.shape[1]))
    return vectors / np.sqrt(values) @ vectors.T


def cross(x, y):
    return (x - x.mean(axis=0)).T @ (y - y.mean(axis=0)) / len(x)


@pytest.mark.parametrize("dim", [1, 3, 5])
def test_two_modalities_are_regularised_canonical_correlation(dim):
    """SVD of the whitened cross-covariance; signs of directions are free, so products of weights are compared."""
    x = scene(80)
    got = to_each_other(*once(x, ["ab"]), dim, RIDGE)
    a, b = (x[name].numpy() for name in "ab")
    wa, wb = white(a, RIDGE), white(b, RIDGE)
    u, s, vt = np.linalg.svd(wa @ cross(a, b) @ wb)
    u, v, s = wa @ u[:, :dim], wb @ vt[:dim].T, s[:dim]
    for first, second in itertools.product((("a", u), ("b", v)), repeat=2):
        want = (first[1] * s / 2) @ second[1].T
        close((got[first[0]].T @ got[second[0]])[:-1, :-1], torch.from_numpy(want), 1e-8)
    for name in "ab":
        assert (homogeneous(x[name]) @ got[name].T).mean(dim=0).abs().max() <= 1e-10


def three():
    """Moments and sums where a and c never met, b was seen without either too; and the block matrix by brute force."""
    x, more = scene(80), scene(50, seed=1)
    alone = {name: torch.cat([x[name], more[name]]) if name == "b" else x[name] for name in "abc"}
    seen = {name: moments(alone[name]) for name in "abc"}
    sums = Sums().paired(("a", "b"), x["a"], x["b"]).paired(("c", "b"), x["c"][:60], x["b"][:60])
    whites = {name: white(alone[name].numpy(), RIDGE) for name in "abc"}
    ab = whites["a"] @ cross(x["a"].numpy(), x["b"].numpy()) @ whites["b"]
    bc = whites["b"] @ cross(x["b"][:60].numpy(), x["c"][:60].numpy()) @ whites["c"]
    ac = np.zeros((SIZES["a"], SIZES["c"]))
    sizes = [np.zeros((size, size)) for size in SIZES.values()]
    blocks = np.block([[sizes[0], ab, ac], [ab.T, sizes[1], bc], [ac.T, bc.T, sizes[2]]])
    return seen, sums, whites, blocks


@pytest.mark.parametrize("dim", [2, 4])
def test_three_modalities_with_a_missing_pair_are_eigenvectors_of_the_block_matrix(dim):
    seen, sums, whites, blocks = three()
    got = to_each_other(seen, sums, dim, RIDGE)
    values, vectors = np.linalg.eigh(blocks)
    values, vectors = values[::-1][:dim], vectors[:, ::-1][:, :dim]
    parts = np.split(vectors, np.cumsum(list(SIZES.values()))[:-1])
    want = {name: whites[name] @ part * np.sqrt(values) for name, part in zip(SIZES, parts, strict=True)}
    for m, n in itertools.product("abc", repeat=2):
        close((got[m].T @ got[n])[:-1, :-1], torch.from_numpy(want[m] @ want[n].T), 1e-8)
    for name in "abc":
        embedded_mean = got[name] @ seen[name].second[:, -1]
        assert embedded_mean.abs().max() <= 1e-10


def test_more_dimensions_than_inputs_stay_empty():
    x = scene(40)
    heads = to_each_other(*once(x, ["ab"]), 20, RIDGE)
    assert {name: head.shape for name, head in heads.items()} == {"a": (20, 6), "b": (20, 8)}
    assert all(head[12:].abs().max() == 0 for head in heads.values())
    assert all(head.isfinite().all() for head in heads.values())


def found(heads, x, first, second):
    """Recall at 1 and mean cosine of common moments."""
    za, zb = (torch.nn.functional.normalize(homogeneous(x[m]) @ heads[m].T, dim=1) for m in (first, second))
    return float(((za @ zb.T).argmax(dim=1) == torch.arange(len(za))).double().mean()), float((za * zb).sum(1).mean())


def test_embeddings_of_common_moments_correlate_better_than_random_and_even_of_a_pair_that_never_met():
    x = scene(230, noise=0.05)
    learned, new = ({name: each[part] for name, each in x.items()} for part in (slice(200), slice(200, None)))
    heads = to_each_other(*once(learned, ["ab", "bc"]), 2, 1e-3)
    chance = {name: drawn(2, size + 1, seed=40 + k) for k, (name, size) in enumerate(SIZES.items())}
    for pair in ("ab", "bc", "ac"):
        recall, cosine = found(heads, new, *pair)
        by_chance = found(chance, new, *pair)
        assert recall > 0.5
        assert cosine > 0.95
        assert by_chance[0] < 0.2
        assert by_chance[1] < 0.5


def rotation(dim, seed):
    return torch.linalg.qr(drawn(dim, dim, seed=seed)).Q


def old_and_new():
    x = scene(60)
    seen, sums = once(x, ["ab", "bc"])
    new = to_each_other(seen, sums, 4, RIDGE)
    old = {name: rotation(4, 3) @ head + 0.1 * drawn(*head.shape, seed=k) for k, (name, head) in enumerate(new.items())}
    return x, seen, old, new


def distance(old, new, x):
    """Mean squared distance of the embeddings of the old inputs, summed over modalities."""
    return float(sum(((homogeneous(x[m]) @ (new[m] - old[m]).T) ** 2).sum(1).mean() for m in old if m in new))


def test_turning_keeps_every_inner_product_within_the_new_solution():
    _, seen, old, new = old_and_new()
    got = turned(new, old, seen)
    for m, n in itertools.product("abc", repeat=2):
        close(got[m].T @ got[n], new[m].T @ new[n], 1e-10)
    assert (got["a"] - new["a"]).abs().max() > 1e-2


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.sampled_from([1e-3, 0.1, 10.0]))
def test_no_other_rotation_brings_new_embeddings_nearer_to_the_old(seed, size):
    x, seen, old, new = old_and_new()
    best = turned(new, old, seen)
    skew = drawn(4, 4, seed=seed)
    turn = torch.matrix_exp(size * (skew - skew.T))
    least = distance(old, best, x)
    assert distance(old, {name: turn @ head for name, head in best.items()}, x) >= least - 1e-12
    assert distance(old, {name: rotation(4, seed) @ head for name, head in new.items()}, x) >= least - 1e-12


def test_a_known_rotation_is_undone():
    _, seen, old, _ = old_and_new()
    new = {name: rotation(4, 8) @ head for name, head in old.items()}
    got = turned(new, old, seen)
    for name in old:
        close(got[name], old[name], 1e-10)


def test_a_new_modality_turns_with_the_rest_and_a_first_stage_not_at_all():
    _, seen, old, _ = old_and_new()
    new = {name: rotation(4, 8) @ head for name, head in old.items()}
    known = {name: old[name] for name in "ab"}
    close(turned(new, known, {name: seen[name] for name in "ab"})["c"], old["c"], 1e-10)
    first = turned(new, {}, {})
    assert all(torch.equal(first[name], new[name]) for name in new)


def windows(kind, n=6, seed=0):
    spec = SPECS[kind]
    x = torch.randn(n, *shape(spec), generator=torch.Generator().manual_seed(seed))
    return (127 + 60 * x).clamp(0, 255).to(torch.uint8) if kind == "camera" else 3 * x + 5


@pytest.mark.parametrize("kind", SPECS)
def test_fixed_trunks_of_a_seed_agree_and_their_features_are_positive(kind):
    assert SPECS.keys() == LOOKS.keys()
    trunks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        trunks.append(FixedTrunk(SPECS[kind], 40))
        trunks[-1].fit(windows(kind, 20))
    assert torch.equal(trunks[0].directions, trunks[1].directions)
    assert not torch.equal(trunks[0].directions, trunks[2].directions)
    features = [trunk(windows(kind)) for trunk in trunks]
    assert torch.equal(features[0], features[1])
    assert features[0].shape == (6, 40)
    assert features[0].dtype == torch.float32
    assert (features[0] >= 0).all()
    assert 0.2 < float((features[0] > 0).float().mean()) < 0.8
    assert torch.pdist(features[0]).min() > 1e-2  # windows are told apart
    assert not list(trunks[0].parameters())
    assert "directions" in trunks[0].state_dict()


def test_fixed_features_are_relu_of_random_directions_of_the_centred_unit_look():
    """Brightness of a whole look is no news, nor is its contrast."""
    trunk, x = FixedTrunk(SPECS["features"], 40), windows("features")
    look = np.asarray(x) - np.asarray(x).mean(axis=1, keepdims=True)
    look /= np.linalg.norm(look, axis=1, keepdims=True)
    np.testing.assert_allclose(trunk(x).numpy(), np.maximum(look @ trunk.directions.numpy(), 0), atol=1e-5)
    torch.testing.assert_close(trunk(7 * x - 2), trunk(x), rtol=1e-4, atol=1e-4)
    assert trunk(torch.ones(1, 12)).abs().max() == 0  # and nothing is not NaN


@pytest.mark.parametrize("kind", ["microphone", "series", "features"])
def test_fitting_sets_the_scale(kind):
    x, trunk = windows(kind, 50), FixedTrunk(SPECS[kind], 40)
    before = trunk(x)
    trunk.fit(x)
    scale = trunk.look.scale
    rest = {"microphone": (0, 1, 3), "series": (0, 2), "features": (0,)}[kind]
    torch.testing.assert_close(scale.mean.flatten(), x.mean(dim=rest).flatten())
    torch.testing.assert_close(scale.std.flatten(), x.std(dim=rest).flatten())
    assert (trunk(x) - before).abs().max() > 1e-2
    other = FixedTrunk(SPECS[kind], 40)
    other.directions = trunk.directions
    other.fit(40 * x + 7)
    torch.testing.assert_close(other(40 * x + 7), trunk(x), rtol=1e-3, atol=1e-3)


def test_pixels_have_a_scale_of_their_own():
    trunk = FixedTrunk(SPECS["camera"], 40)
    before = trunk(windows("camera"))
    trunk.fit(windows("camera", 20) // 4)
    assert torch.equal(trunk(windows("camera")), before)


def spectrum(x):
    """Power (n, channels, bins 1 … N/2 - 1) of Hann-windowed series, by numpy in float64."""
    samples = x.shape[2]
    hann = np.hanning(samples + 1)[:-1]
    return np.abs(np.fft.rfft(x.double().numpy() * hann))[:, :, 1 : samples // 2] ** 2


@pytest.mark.parametrize("samples", [64, 100, 256, 1024])
def test_the_fourier_part_of_a_series_is_numpy_s(samples):
    spec = SeriesPrepare(channels=2, samples=samples)
    look, x = SeriesLook(spec), 9 + 4 * torch.randn(5, 2, samples, generator=torch.Generator().manual_seed(1))
    look.fit(x)
    scaled = (x - x.mean(dim=(0, 2), keepdim=True)) / x.std(dim=(0, 2), keepdim=True)
    power = spectrum(scaled)
    cosine, sine = (look.scale(x) @ look.waves).chunk(2, dim=2)
    np.testing.assert_allclose((cosine**2 + sine**2).numpy(), power, rtol=1e-4)

    width = max(1, power.shape[2] // 32)
    bands = power.shape[2] // width
    banded = power[:, :, : bands * width].reshape(5, 2, bands, width).mean(axis=3) / samples
    seen, times = look(x).double(), samples // (samples // 16)
    assert seen.shape == (5, 2 * (times + bands))
    heard = seen[:, 2 * times :].exp().numpy() - SILENCE
    np.testing.assert_allclose(heard, banded.reshape(5, -1), rtol=1e-4, atol=1e-6)
    means = scaled[:, :, : times * (samples // 16)].reshape(5, 2, times, -1).mean(dim=3)
    np.testing.assert_allclose(seen[:, : 2 * times].numpy(), means.flatten(1).numpy(), atol=1e-5)


@pytest.mark.parametrize("samples", [256, 1024])
def test_waves_are_exact_to_the_last_bin(samples):
    look = SeriesLook(SeriesPrepare(channels=1, samples=samples))
    turn = np.exp(-2j * np.pi * np.outer(np.arange(samples), np.arange(1, samples // 2)) / samples)
    turn *= np.hanning(samples + 1)[:-1, None]
    np.testing.assert_allclose(look.waves.numpy(), np.hstack([turn.real, -turn.imag]), atol=2e-7)


@pytest.mark.parametrize("kind", SPECS)
def test_an_encoder_on_a_fixed_trunk_learns_in_its_head_alone(kind):
    encoder = Encoder(SPECS[kind], 8, width=40)
    assert [name for name, _ in encoder.named_parameters()] == ["head.weight"]
    assert encoder.head.weight.shape == (8, 41)
    z = encoder(windows(kind))
    torch.testing.assert_close(z.norm(dim=1), torch.ones(6))

"""Protection of trunks, layer by layer: old windows' outputs stay while every layer goes on learning."""

import copy
import doctest
import math

import pytest
import torch
from safetensors.torch import load, save
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from lineside.features import CameraPrepare, FeaturesPrepare, MicrophonePrepare, SeriesPrepare, shape
from trainer import layers
from trainer.encoders import TRUNKS

SPECS = {
    "camera": CameraPrepare(frames=1, height=32, width=32),
    "microphone": MicrophonePrepare(rate_hz=8000, samples=8000, mels=32, high_hz=4000.0),
    "series": SeriesPrepare(channels=3, samples=64),
    "features": FeaturesPrepare(width=12, backbone="0" * 64),
}
LEARNING = [modality for modality in TRUNKS if modality != "features"]  # whose trunk has layers


def convolutions(seed=0):
    """Wide layers of every kind over 2 x 2 places, so that a few old windows leave each of them room."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, 2, 1),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Conv2d(24, 24, 3, 1, 1, groups=24),
        nn.ReLU(),
        nn.Conv2d(24, 32, 1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, 1, 1, groups=4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 20),
    )


def linears(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(48, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 20, bias=False)
    )


STACKS = {"convolutions": (convolutions, (3, 4, 4)), "linears": (linears, (48,))}


def windows(n, size, seed, dtype=torch.float64):
    return torch.randn(n, *size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def settled(stack, dtype=torch.float64):
    """A trunk as a first stage leaves it, its batch norm with statistics of its own, and the size of its windows."""
    make, size = STACKS[stack]
    trunk = make().to(dtype).train()
    for seed in range(5):
        trunk(1.5 * windows(32, size, seed, dtype) + 0.5)
    return trunk.eval(), size


def outputs(trunk, x):
    with torch.no_grad():
        return copy.deepcopy(trunk).eval()(x)


def changed(before, after):
    return float((after.detach() - before.detach()).abs().max() / before.detach().abs().max())


def learn(trunk, new, protections, steps=200, every=7, keep=layers.keep_norms):
    """Fit new windows to targets of their own by AdamW with weight decay; gives the loss before and after."""
    moving = [p for p in trunk.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(moving, lr=3e-3, weight_decay=1e-1)
    keep(trunk.train())
    with torch.no_grad():
        made = trunk(new)
    wanted = windows(len(made), made.shape[1:], 99, made.dtype)
    losses = []
    for step in range(steps):
        optimiser.zero_grad()
        loss = ((trunk(new) - wanted) ** 2).mean()
        loss.backward()
        losses.append(loss.item())
        optimiser.step()
        if (step + 1) % every == 0 or step + 1 == steps:
            layers.hold_all(trunk, protections)
    return losses[0], losses[-1]


def opened(trunk, scope="all"):
    names = layers.protectable(trunk, scope)
    layers.let_move(trunk, names)
    layers.freeze_norms(trunk)
    return names


@pytest.mark.slow
@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_old_outputs_of_the_whole_trunk_stay_while_all_its_layers_learn(stack, dtype, most):
    trunk, size = settled(stack, dtype)
    old, new = windows(2, size, 11, dtype), windows(16, size, 12, dtype)
    names = opened(trunk)
    start, before = copy.deepcopy(trunk), outputs(trunk, old)
    protections = layers.protect_layers(trunk, layers.gather(trunk, [old], names), epsilon=0.0)
    assert all(0 < protection.capacity < 0.9 for protection in protections.values())
    first, last = learn(trunk, new, layers.quick(trunk, protections))
    assert changed(before, outputs(trunk, old)) <= most
    assert last < 0.7 * first
    for name in names:
        moved = (trunk.get_submodule(name).weight - start.get_submodule(name).weight).abs().max()
        assert moved > 1e-2, name


@pytest.mark.slow
@pytest.mark.parametrize("stack", STACKS)
def test_without_the_hold_old_outputs_move(stack):
    trunk, size = settled(stack)
    old = windows(2, size, 11)
    opened(trunk)
    before = outputs(trunk, old)
    learn(trunk, windows(16, size, 12), {})
    assert changed(before, outputs(trunk, old)) > 1e-1


@pytest.mark.slow
@pytest.mark.parametrize("stack", STACKS)
def test_without_frozen_norms_old_outputs_move_though_layers_are_held(stack):
    trunk, size = settled(stack)
    old = windows(2, size, 11)
    before = outputs(trunk, old)
    moments = layers.gather(trunk, [old], layers.protectable(trunk, "all"))
    learn(trunk, windows(16, size, 12), layers.protect_layers(trunk, moments, 0.0), keep=lambda trunk: None)
    assert changed(before, outputs(trunk, old)) > 1e-3


@pytest.mark.slow
def test_what_two_stages_saw_stays_in_the_third():
    trunk, size = settled("linears")
    stages = [windows(3, size, seed) for seed in (21, 22, 23)]
    names = opened(trunk)
    moments, made = None, []
    for seen in stages:
        learn(trunk, seen, layers.protect_layers(trunk, moments or {}, 0.0))
        moments = layers.gather(trunk, [seen], names, moments)
        made.append(outputs(trunk, seen))
    assert moments["0"].count == 9
    for seen, was in zip(stages, made, strict=True):
        assert changed(was, outputs(trunk, seen)) <= 1e-10


def fitted(modality):
    """A trunk of the product in its first state, with statistics, and windows that it can take."""
    torch.manual_seed(1)
    spec = SPECS[modality]
    trunk = TRUNKS[modality](spec)
    x = windows(6, shape(spec), 5, torch.float32)
    if modality == "camera":
        x = (40 * x + 128).clamp(0, 255).byte()
    trunk.fit(x)
    for _ in range(3):
        trunk.train()(x)
    return trunk.eval(), x


@pytest.mark.parametrize("modality", LEARNING)
@pytest.mark.parametrize("scope", ["last", "all"])
def test_every_trunk_is_gathered_protected_and_held(modality, scope):
    trunk, x = fitted(modality)
    old, new = x[:1], x[1:]
    names = opened(trunk, scope)
    before, start, starts = outputs(trunk, old), copy.deepcopy(trunk), layers.matrices(trunk, names)
    moments = layers.gather(trunk, [old], names)
    protections = layers.protect_layers(trunk, moments, epsilon=1e-9)
    learn(trunk, new, {}, steps=8)
    loose = layers.drift(starts, trunk, moments)
    assert changed(before, outputs(trunk, old)) > 1e-2
    layers.hold_all(trunk, layers.quick(trunk, protections))
    held = layers.drift(starts, trunk, moments)
    assert list(protections) == names
    assert min(loose.values()) > 1e-3
    assert max(held.values()) <= 1e-4
    assert changed(before, outputs(trunk, old)) <= 1e-3
    assert any(not torch.equal(a, b) for a, b in zip(start.parameters(), trunk.parameters(), strict=True))


def test_a_trunk_without_layers_has_nothing_to_protect():
    trunk, x = fitted("features")
    assert [layers.protectable(trunk, scope) for scope in ("head", "last", "all")] == [[], [], []]
    protections = layers.protect_layers(trunk, layers.gather(trunk, [x], []), 0.0)
    layers.hold_all(trunk, layers.quick(trunk, protections))
    assert protections == {}
    assert layers.exhausted(protections) == []


@pytest.mark.parametrize("modality", LEARNING)
def test_scopes_take_no_layer_the_last_ones_or_all(modality):
    trunk, _ = fitted(modality)
    last, every = (layers.protectable(trunk, scope) for scope in ("last", "all"))
    assert layers.protectable(trunk, "head") == []
    assert every[-len(last) :] == last
    assert sum(trunk.get_submodule(name).groups == 1 for name in last) == 2
    assert len(every) == sum(isinstance(module, nn.Conv1d | nn.Conv2d) for module in trunk.modules())
    layers.let_move(trunk, last)
    assert {name for name, p in trunk.named_parameters() if p.requires_grad} == {f"{name}.weight" for name in last}


SEEN = {
    "linear": (nn.Linear(5, 4), (5,)),
    "linear in time": (nn.Linear(5, 4, bias=False), (3, 5)),
    "1x1": (nn.Conv2d(3, 4, 1, bias=False), (3, 4, 5)),
    "picture": (nn.Conv2d(3, 4, (3, 2), (2, 1), (1, 0)), (3, 7, 6)),
    "dilated": (nn.Conv2d(2, 4, 3, 2, 2, dilation=2), (2, 9, 8)),
    "depthwise": (nn.Conv2d(4, 8, 3, 2, 1, groups=4), (4, 7, 6)),
    "groups": (nn.Conv2d(6, 4, 3, 1, 1, groups=2, bias=False), (6, 4, 4)),
    "series": (nn.Conv1d(3, 4, 7, 2, 3), (3, 21)),
    "series in groups": (nn.Conv1d(6, 6, 3, 2, 1, dilation=2, groups=3), (6, 15)),
    "same": (nn.Conv2d(2, 3, (3, 5), padding="same", dilation=(2, 1)), (2, 6, 5)),
    "same, one more behind": (nn.Conv1d(2, 3, 4, padding="same"), (2, 9)),
    "valid": (nn.Conv1d(2, 3, 4, padding="valid"), (2, 9)),
    "mirrored": (nn.Conv1d(2, 3, 5, padding=2, padding_mode="reflect"), (2, 9)),
    "round": (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 5, 4)),
}


def brute(layer, x):
    """What each output position of a layer sees, found by asking for one output at a time: (groups, positions, d).

    The gradient of an output by a weight is the input value that meets it, whatever stride and padding there are.
    """
    groups = getattr(layer, "groups", 1)
    made = layer(x)
    rows = made.movedim(-1, 1) if isinstance(layer, nn.Linear) else made  # (n, out, ...)
    by_output = rows.transpose(0, 1).reshape(rows.shape[1], -1)  # (out, positions)
    each = len(by_output) // groups
    kinds = [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
    seen = []
    for group in range(groups):
        channel = group * each
        of_group = []
        for value in by_output[channel]:
            parts = torch.autograd.grad(value, kinds, retain_graph=True)
            of_group.append(torch.cat([part[channel].flatten() for part in parts]))
        seen.append(torch.stack(of_group))
    return torch.stack(seen)


@pytest.mark.parametrize("kind", SEEN)
def test_moments_are_those_of_every_patch_that_the_layer_sees(kind):
    layer, size = SEEN[kind]
    layer = copy.deepcopy(layer).double()
    x = windows(3, size, 31)
    expected = brute(layer, x)
    found = layers.gather(layer, [x], [""])[""]
    assert found.count == expected.shape[1]
    assert found.second.dtype == torch.float64
    torch.testing.assert_close(found.second, expected.mT @ expected / expected.shape[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", SEEN)
def test_a_layer_is_its_matrix_times_its_patches(kind):
    layer, size = SEEN[kind]
    layer = copy.deepcopy(layer).double()
    x = windows(3, size, 31)
    weight, seen = layers.matrix(layer), layers.patches(layer, x)
    made = layer(x).movedim(-1, 1) if isinstance(layer, nn.Linear) else layer(x)
    if layer.bias is not None:
        seen = functional.pad(seen, (0, 0, 0, 1), value=1.0)
    torch.testing.assert_close((weight @ seen).flatten(1), made.flatten(1), rtol=1e-12, atol=1e-12)


def test_streaming_over_batches_and_stages_equals_one_shot():
    trunk, size = settled("convolutions")
    x = windows(23, size, 41)
    names = layers.protectable(trunk, "all")
    whole = layers.gather(trunk, [x], names)
    streamed = layers.gather(trunk, x[5:].split(4), names, layers.gather(trunk, [x[:3], x[3:5]], names))
    shuffled = layers.gather(trunk, [x.flip(0)], names)
    for name, moments in whole.items():
        for other in (streamed, shuffled):
            assert other[name].count == moments.count
            torch.testing.assert_close(other[name].second, moments.second, rtol=1e-12, atol=1e-12)


def test_a_batch_is_taken_in_parts_that_fit_the_memory(monkeypatch):
    trunk, size = settled("convolutions")
    x = windows(9, size, 41)
    whole = layers.gather(trunk, [x], ["8"])["8"]
    most = 0
    unfolded = layers.patches

    def watched(layer, inputs):
        nonlocal most
        made = unfolded(layer, inputs)
        most = max(most, made.numel())
        return made

    monkeypatch.setattr(layers, "MOST_VALUES", 4000)
    monkeypatch.setattr(layers, "patches", watched)
    parts = layers.gather(trunk, [x], ["8"])["8"]
    assert parts.count == whole.count == 9 * 4
    assert 1152 <= most <= 4000
    torch.testing.assert_close(parts.second, whole.second, rtol=1e-12, atol=1e-12)


def test_patches_are_drawn_only_when_asked_and_then_the_same_ones_in_every_run():
    layer = nn.Conv1d(2, 3, 5, padding=2).double()
    batches = windows(8, (2, 40), 51).split(2)
    every, one, again = (layers.gather(layer, batches, [""], most_patches=most)[""] for most in (None, 10, 10))
    assert (every.count, one.count) == (8 * 40, 8 * 10)
    assert torch.equal(one.second, again.second)
    assert 1e-3 < changed(every.second, one.second) < 1
    assert torch.equal(layers.gather(layer, batches, [""], most_patches=40)[""].second, every.second)


class Probe(nn.Module):
    """Notes whether gradients would be kept."""

    def forward(self, x):
        self.keeps_gradients = torch.is_grad_enabled()
        return x


def test_a_look_at_the_windows_leaves_the_trunk_as_it_was(monkeypatch):
    trunk, size = settled("convolutions")
    trunk.train().append(Probe())
    trunk[1].eval()
    modes, state = [m.training for m in trunk.modules()], copy.deepcopy(trunk.state_dict())
    layers.gather(trunk, [windows(4, size, 61)], ["0", "5"])
    assert [m.training for m in trunk.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in trunk.state_dict().items())
    assert not trunk[-1].keeps_gradients
    monkeypatch.setattr(layers, "patches", None)  # nobody looks any more
    trunk(windows(4, size, 61))
    assert trunk[-1].keeps_gradients


def test_moments_are_of_what_layers_see_on_the_device_not_in_training():
    trunk, size = settled("convolutions")
    x = windows(4, size, 61) + 3
    calm = layers.gather(trunk, [x], ["8"])["8"].second
    assert torch.equal(layers.gather(trunk.train(), [x], ["8"])["8"].second, calm)


def test_the_bias_is_protected_with_the_weight():
    layer = nn.Linear(6, 3).double()
    old = windows(2, (6,), 71)
    made, start = layer(old), copy.deepcopy(layer)
    protection = layers.protect_layers(layer, layers.gather(layer, [old], [""]), 0.0)[""]
    with torch.no_grad():
        layer.weight += windows(3, (6,), 72)
        layer.bias += windows(1, (3,), 73)[0]
    protection.hold(layer)
    assert changed(made, layer(old)) <= 1e-12
    assert changed(start.weight, layer.weight) > 1e-2
    assert changed(start.bias, layer.bias) > 1e-3


def test_each_group_is_protected_for_what_it_saw_itself():
    """A group that saw everything stays bit for bit; one that saw one direction keeps that, one nothing, nothing."""
    layer = nn.Conv1d(3, 6, 3, groups=3, bias=False)
    x = torch.zeros(20, 3, 3)
    x[:, 0] = windows(20, (3,), 81, torch.float32)
    x[:, 1] = torch.tensor([1.0, 0.0, -1.0])
    start, made = layer.weight.detach().clone(), layer(x).detach()
    protection = layers.protect_layers(layer, layers.gather(layer, [x], [""]), 0.0)[""]
    pushed = start + windows(6, (1, 3), 82, torch.float32)
    with torch.no_grad():
        layer.weight.copy_(pushed)
    protection.like(layer.weight).hold(layer)
    assert protection.ranks == (3, 1, 0)
    assert protection.capacity == pytest.approx(4 / 9)
    assert torch.equal(layer.weight[:2], start[:2])
    torch.testing.assert_close(layer.weight[4:], pushed[4:])
    assert (layer.weight[2:4] - start[2:4]).abs().max() > 1e-2
    assert (layer(x) - made).abs().max() <= 1e-6


@pytest.mark.parametrize("seen", [2, 7])  # few directions used, or many: the thinner basis differs
def test_allowed_is_the_nearest_displacement_that_changes_nothing_protected(seen):
    layer = nn.Conv1d(4, 6, 4, groups=2, bias=False).double()
    x = windows(seen, (4, 4), 91)
    protection = layers.protect_layers(layer, layers.gather(layer, [x], [""]), 0.0)[""]
    assert protection.ranks == (seen, seen)
    assert protection.directions.shape[2] == min(seen, 8 - seen)
    g, h = windows(2, (2, 3, 8), 92)
    once = protection.allowed(g)
    assert (once @ layers.patches(layer, x)).abs().max() <= 1e-12
    assert (protection.allowed(once) - once).abs().max() <= 1e-12
    assert float((once * h).sum()) == pytest.approx(float((g * protection.allowed(h)).sum()), abs=1e-12)
    assert float((g * once).sum()) == pytest.approx(float((once**2).sum()), rel=1e-12)


def test_a_layer_with_nothing_free_is_told_and_stays_bit_for_bit():
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Conv1d(2, 16, 3), nn.ReLU(), nn.Conv1d(16, 8, 3, bias=False), nn.Flatten())
    old, new = windows(2, (2, 9), 101, torch.float32), windows(8, (2, 9), 102, torch.float32)
    start, names = copy.deepcopy(trunk), opened(trunk)
    protections = layers.protect_layers(trunk, layers.gather(trunk, [old], names), 0.0)
    assert protections["0"].capacity == 1
    assert 0 < protections["2"].capacity < 0.5
    assert layers.exhausted(protections) == ["0"]
    assert layers.exhausted(protections, limit=0.1) == ["0", "2"]
    learn(trunk, new, layers.quick(trunk, protections), steps=60, every=1)
    assert torch.equal(trunk[0].weight, start[0].weight)
    assert torch.equal(trunk[0].bias, start[0].bias)
    assert not torch.equal(trunk[2].weight, start[2].weight)


def test_a_layer_that_saw_nothing_is_free():
    trunk, _ = settled("linears")
    names = layers.protectable(trunk, "all")
    protections = layers.protect_layers(trunk, layers.gather(trunk, [], names), 0.0)
    with torch.no_grad():
        trunk[0].weight += 1
    pushed = trunk[0].weight.detach().clone()
    layers.hold_all(trunk, protections)
    assert all(protection.capacity == 0 for protection in protections.values())
    torch.testing.assert_close(trunk[0].weight.detach(), pushed, rtol=1e-15, atol=1e-15)


def test_epsilon_protects_fewer_directions():
    trunk, size = settled("convolutions")
    moments = layers.gather(trunk, [windows(2, size, 11)], ["8"])
    shares = [layers.protect_layers(trunk, moments, epsilon)["8"].capacity for epsilon in (0.0, 0.05, 0.5)]
    assert shares == sorted(shares, reverse=True)
    assert len(set(shares)) == 3


def test_holds_are_the_same_in_low_precision_and_with_channels_innermost():
    trunk, size = settled("convolutions", torch.float32)
    protections = layers.protect_layers(
        trunk, layers.gather(trunk, [windows(2, size, 11, torch.float32)], ["0", "3", "8"]), 0.0
    )
    with torch.no_grad():
        for name in protections:
            trunk[int(name)].weight += 0.3 * torch.randn_like(trunk[int(name)].weight)
            trunk[int(name)].bias += 0.3
    inner = copy.deepcopy(trunk).to(memory_format=torch.channels_last)
    layers.hold_all(trunk, protections)
    layers.hold_all(inner, layers.quick(inner, protections))
    assert inner[0].weight.is_contiguous(memory_format=torch.channels_last)
    for name in protections:
        torch.testing.assert_close(inner[int(name)].weight, trunk[int(name)].weight, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(inner[int(name)].bias, trunk[int(name)].bias, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stack", STACKS)
def test_frozen_norms_stay_frozen_in_training(stack):
    trunk, size = settled(stack)
    trunk.append(nn.LayerNorm(20).double())
    norms = [module for module in trunk if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm)]
    state = [copy.deepcopy(norm.state_dict()) for norm in norms]
    x = windows(16, size, 111) + 2

    def kept():
        return all(
            torch.equal(value, was[name])
            for norm, was in zip(norms, state, strict=True)
            for name, value in norm.state_dict().items()
        )

    layers.freeze_norms(trunk)
    for _ in range(2):
        trunk.train()
        layers.keep_norms(trunk)
        learn(trunk, x, {}, steps=3)
        assert trunk.training
        assert trunk[0].training
        assert not any(norm.training for norm in norms)
        assert kept()
    assert not any(p.requires_grad for norm in norms for p in norm.parameters())
    trunk.train()(x)
    assert not kept()  # keep_norms is what keeps them


def test_batch_norm_without_statistics_cannot_be_frozen():
    with pytest.raises(ValueError, match=r"^0: batch norm without running statistics"):
        layers.freeze_norms(nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False)))


@pytest.mark.parametrize("stack", STACKS)
def test_drift_equals_brute_force_over_the_old_windows(stack):
    trunk, size = settled(stack)
    x = windows(40, size, 121)
    names = layers.protectable(trunk, "all")
    moments = layers.gather(trunk, x.split(7), names)
    after = copy.deepcopy(trunk)
    with torch.no_grad():
        for name in names:
            for weight in after.get_submodule(name).parameters():
                weight.add_(windows(1, weight.shape, 122)[0], alpha=1e-5)
    drifts = layers.drift(layers.matrices(trunk, names), after, moments)
    y = x
    for i, module in enumerate(trunk):
        if str(i) in names:
            was, now = module(y).detach(), after[i](y).detach()
            expected = float(((now - was) ** 2).mean().sqrt() / (was**2).mean().sqrt())
            assert drifts[str(i)] == pytest.approx(expected, rel=1e-8)
        y = module(y)
    assert layers.drift(layers.matrices(trunk, names), trunk, moments) == dict.fromkeys(names, 0.0)


def test_drift_of_a_layer_that_made_nothing_but_zeros():
    before, after = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    nn.init.zeros_(before.weight)
    moments = layers.gather(before, [torch.ones(3, 2)], [""])
    zeros = layers.matrices(before, [""])
    assert layers.drift(zeros, before, moments) == {"": 0.0}
    assert layers.drift(zeros, after, moments) == {"": math.inf}


def test_moments_travel_in_a_file_among_other_tensors():
    trunk, size = settled("convolutions")
    moments = layers.gather(trunk, [windows(3, size, 131)], layers.protectable(trunk, "all"))
    tensors = {"camera/seen/second": torch.ones(2, 2), "camera/seen/count": torch.tensor(7)}
    tensors |= layers.to_tensors("camera/layers", moments) | layers.to_tensors("other/layers", {"": moments["11"]})
    back = load(save(tensors))
    for prefix, wanted in {"camera/layers": moments, "other/layers": {"": moments["11"]}, "no": {}}.items():
        found = layers.from_tensors(prefix, back)
        assert found.keys() == wanted.keys()
        for name in wanted:
            assert torch.equal(found[name].second, wanted[name].second)
            assert found[name].count == wanted[name].count


class Aside(nn.Module):
    """A layer whose weight is used without the layer being called."""

    def __init__(self):
        super().__init__()
        self.used, self.aside = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return functional.linear(self.used(x), self.aside.weight)


def test_what_cannot_be_protected_is_refused():
    x = torch.randn(4, 3)
    trunk = Aside()
    with pytest.raises(ValueError, match=r"^aside: never called"):
        layers.gather(trunk, [x], ["used", "aside"])
    used = layers.gather(trunk, [x], ["used"])
    with pytest.raises(ValueError, match=r"^aside: earlier stages did not gather"):
        layers.gather(trunk, [x], ["used", "aside"], used)
    for name in ("", "used.weight", "nothing"):
        with pytest.raises(ValueError, match="no linear or convolution layer"):
            layers.gather(trunk, [x], [name])
    with pytest.raises(ValueError, match=r"^used: moments \(1, 4, 4\)"):
        layers.protect_layers(nn.ModuleDict({"used": nn.Linear(5, 3)}), used, 0.0)
    with pytest.raises(ValueError, match="of two layers"):
        used["used"].joined(layers.unseen(nn.Linear(9, 3)))
    trunk.aside.weight = trunk.used.weight
    with pytest.raises(ValueError, match="share one weight"):
        layers.protect_layers(trunk, {"used": used["used"], "aside": layers.unseen(trunk.aside)}, 0.0)
    parametrizations.orthogonal(trunk.used)
    with pytest.raises(ValueError, match="no linear or convolution layer"):
        layers.protect_layers(trunk, used, 0.0)


def test_the_examples_run():
    assert doctest.testmod(layers).failed == 0

"""Low-rank adapters on frozen models: nothing changes before the first step, and never does what is frozen."""

import copy
from itertools import combinations
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load as parse
from safetensors.torch import save as pack

from lineside.errors import ConfigError
from lineside.files import sha256
from tests import labelled_scene
from trainer import adapters, classifier
from trainer.classifier import Classifier
from trainer.joint import JointCourse, Models, learn_jointly
from trainer.registry import frozen
from trainer.ume import mean_of_logits

KINDS = tuple(labelled_scene.SPECS)
WHERE = Path("camera-adapter-1.safetensors")


def fresh(kind, seed=0):
    """A model as a registry has it; its normalisation has seen something."""
    torch.manual_seed(seed)
    model = Classifier(labelled_scene.SPECS[kind], 3)
    model.train()
    rng = np.random.default_rng(seed)
    model(torch.from_numpy(np.stack([labelled_scene.window(kind, k % 3, rng) for k in range(12)])))
    return frozen(model)


def about(model, kind, rank=4, stage="1"):
    return adapters.About(
        modality=kind,
        stage=stage,
        base_sha256=sha256(classifier.to_bytes(model)),
        rank=rank,
        scale=2.0,
        layers=adapters.places(model, "all"),
    )


def adapted(kind, rank=4, moved=True):
    """A base, and the same with an adapter that says something."""
    base = fresh(kind)
    model = copy.deepcopy(base)
    told = about(model, kind, rank)
    adapters.insert(model, told)
    if moved:
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.1)
    return base, model, told


def windows(kind, count=9):
    rng = np.random.default_rng(1)
    return np.stack([labelled_scene.window(kind, k % 3, rng) for k in range(count)])


@pytest.fixture(scope="module")
def trained():
    """Adapters of all three modalities, trained together, and what was there before."""
    data = labelled_scene.labelled(missing=0.2)
    bases = {kind: fresh(kind) for kind in KINDS}
    models = copy.deepcopy(bases)
    for kind, model in models.items():
        adapters.insert(model, about(model, kind))
    before = {kind: copy.deepcopy(classifier.tensors(model)) for kind, model in models.items()}
    both = Models(models, {"camera": 1.5, "series": 0.7, "gauge": 1.0})
    course = JointCourse(both, frozenset(KINDS), 3, 16, 5e-3, 0.3, 1)
    at_start = both.say(data, "test")
    learn_jointly(course, data, "test")
    return data, Models(bases, both.temperatures), both, before, at_start


def test_before_the_first_step_every_subset_is_the_ensemble_to_the_bit(trained):
    data, own, _, _, at_start = trained
    said = own.say(data, "test")
    for size in (1, 2, 3):
        for members in combinations(said.sensors, size):
            a, b = (each.only(frozenset(members)) for each in (at_start, said))
            assert torch.equal(mean_of_logits(a.z, a.present), mean_of_logits(b.z, b.present))


def test_training_moves_the_pairs_and_nothing_else_no_buffer_either(trained):
    data, own, both, before, _ = trained
    for kind, model in both.models.items():
        after = classifier.tensors(model)
        moved = {name for name in after if not torch.equal(after[name], before[kind][name])}
        assert moved
        assert all(".lora_A." in name or ".lora_B." in name for name in moved)
        assert adapters.base_sha256(model) == sha256(classifier.to_bytes(own.models[kind]))
    assert not torch.equal(both.say(data, "test").z, own.say(data, "test").z)


def test_joint_training_learns_more_than_the_untrained_ensemble(trained):
    data, own, both, _, _ = trained
    state = data.state[data.rows["val"]]
    scores = [
        classifier.score(mean_of_logits(said.z, said.present), state)
        for said in (m.say(data, "val") for m in (own, both))
    ]
    assert scores[1] > scores[0]


def test_no_gradient_reaches_what_is_frozen():
    for kind in KINDS:
        _, model, _ = adapted(kind)
        model(torch.from_numpy(windows(kind))).sum().backward()
        for name, weight in model.named_parameters():
            assert (weight.grad is not None) == (".lora_A." in name or ".lora_B." in name), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("precision", "allowed"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_merged_and_unmerged_say_the_same(kind, precision, allowed):
    base, model, _ = adapted(kind)
    x = torch.from_numpy(windows(kind))
    if kind != "camera":  # pixels become float32 inside
        x, model = x.to(precision), model.to(precision)
    merged = adapters.merged(model)
    assert not any(isinstance(module, LoraLayer) for module in merged.modules())
    with torch.no_grad():
        own, other, without = model(x), merged(x), base(torch.from_numpy(windows(kind)))
    limit = 1e-5 if kind == "camera" else allowed
    assert ((own - other).norm() / own.norm()).item() < limit
    assert (own - without).norm() > 0.01 * own.norm()


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_what_is_added_has_at_most_the_rank_that_was_asked_for(rank):
    for kind in KINDS:
        _, model, _ = adapted(kind, rank)
        layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
        assert layers
        for layer in layers:
            delta = layer.get_delta_weight("1").detach().double().flatten(1)
            assert int(torch.linalg.matrix_rank(delta, rtol=1e-5)) == min(rank, *delta.shape)


def test_depthwise_convolutions_and_heads_of_trunks_are_left_alone():
    model = fresh("camera")
    chosen = adapters.places(model, "all")
    assert "head" not in chosen
    assert all(model.get_submodule(name).groups == 1 for name in chosen)
    assert len(adapters.places(model, "last")) == 2 < len(chosen)


def test_dropping_one_adapter_gives_that_sensor_back_and_leaves_the_others_untouched(trained):
    data, own, both, _, _ = trained
    models = Models(copy.deepcopy(dict(both.models)), both.temperatures)
    with_all, alone = both.say(data, "test"), own.say(data, "test")
    adapters.remove(models.models["camera"])
    back = models.say(data, "test")
    assert torch.equal(back.z[0], alone.z[0])
    assert torch.equal(back.z[1:], with_all.z[1:])
    assert not torch.equal(with_all.z[0], alone.z[0])


def test_a_file_gives_the_adapter_back_to_the_bit():
    base, model, told = adapted("camera")
    data = adapters.to_bytes(model, told)
    again = copy.deepcopy(base)
    assert adapters.from_bytes(again, data, parse(data), WHERE, "camera") == told
    x = torch.from_numpy(windows("camera"))
    assert torch.equal(again(x), model(x))
    assert data == adapters.to_bytes(again, told)


def without_a_pair(stored):
    return dict(list(stored.items())[1:])


def renamed(stored):
    return {name.replace("trunk", "base.trunk"): tensor for name, tensor in stored.items()}


def reshaped(stored):
    first, *_ = stored
    return {**stored, first: stored[first][:1]}


@pytest.mark.parametrize("change", [without_a_pair, renamed, reshaped, lambda _: {}])
def test_tensors_that_do_not_fit_are_refused_and_never_silently_no_adapter(change):
    base, model, told = adapted("camera")
    stored = change(parse(adapters.to_bytes(model, told)))
    data = pack(stored, {"about": msgspec.json.encode(told).decode()})
    with pytest.raises(ConfigError, match="does not fit its base"):
        adapters.from_bytes(copy.deepcopy(base), data, stored, WHERE, "camera")


def test_two_adapters_are_not_stacked():
    _, model, _ = adapted("series")
    with pytest.raises(ConfigError, match="already carries adapter 1, and two adapters are not stacked"):
        adapters.insert(model, about(model, "series", stage="2"))


def test_an_adapter_of_another_base_modality_or_model_is_refused():
    base, model, told = adapted("camera")
    data = adapters.to_bytes(model, told)
    with pytest.raises(ConfigError, match="was made for base"):
        adapters.from_bytes(fresh("camera", seed=7), data, parse(data), WHERE, "camera")
    with pytest.raises(ConfigError, match="is an adapter of camera, not of series"):
        adapters.from_bytes(fresh("series"), data, parse(data), WHERE, "series")
    with pytest.raises(ConfigError, match="is no adapter file"):
        adapters.from_bytes(copy.deepcopy(base), classifier.to_bytes(base), {}, WHERE, "camera")
    odd = msgspec.structs.replace(told, layers=["trunk.body.99"])
    with pytest.raises(ConfigError, match=r"layers that the model does not have \(trunk\.body\.99\)"):
        adapters.insert(copy.deepcopy(base), odd)

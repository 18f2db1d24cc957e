"""Adapters as branches: what stands below them stays to the bit, in torch, ONNX, INT8, and on its way to a device."""

from __future__ import annotations

import copy
import shutil
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file
from safetensors.torch import save as pack
from torch import nn

from deploy import repository
from deploy.repository import Repository
from edge.encoder import Encoder as DeviceEncoder
from edge.unsigned import unsigned
from export import parity
from export.bundle import build, file_name
from export.quantize import to_int8
from export.to_onnx import to_onnx
from lineside import delta, features, release, targets
from lineside.clock import SystemClock
from lineside.errors import ConfigError
from lineside.features import CameraPrepare, HalvedPrepare, MicrophonePrepare, SeriesPrepare
from lineside.files import sha256
from lineside.plant import PlantConfig
from tests import pitch_scene
from trainer import branches, checkpoint
from trainer.encoders import Encoder
from trainer.layers import fold
from trainer.plan import DefectSettings, EncoderSettings, GateSettings, ProtectionSettings
from trainer.stage import run_stage

SPECS = {
    "camera": HalvedPrepare(frames=1, height=32, width=32),
    "microphone": MicrophonePrepare(),
    "series": SeriesPrepare(channels=2, samples=128),
}


def base(kind: str = "camera") -> Encoder:
    """As if trained: statistics of its own in every norm."""
    torch.manual_seed(1)
    made = Encoder(SPECS[kind], 16)
    for module in made.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            assert module.running_mean is not None
            module.running_mean.normal_(std=0.2)
            nn.init.uniform_(module.weight, 0.5, 2.0)
    made.fit(torch.from_numpy(windows(kind)))
    return made.eval()


def adapted(kind: str = "camera", rank: int = 2) -> Encoder:
    """The same with branches that say something."""
    made = copy.deepcopy(base(kind))
    made.adapt(rank)
    for layer in branches.find(made.trunk).values():
        nn.init.normal_(layer.lora_b.weight, std=0.1)
    return made.eval()


def windows(kind: str, count: int = 12) -> np.ndarray:
    spec = SPECS[kind]
    chance = np.random.default_rng(3)
    if kind == "camera":
        return chance.integers(0, 256, (count, 3, 8, 8)).astype(np.uint8).repeat(4, axis=2).repeat(4, axis=3)
    return chance.normal(size=(count, *features.shape(spec))).astype(np.float32)


def run(model: onnx.ModelProto | bytes, given: np.ndarray) -> np.ndarray:
    data = model if isinstance(model, bytes) else model.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(["embedding"], {"window": one[None]})[0] for one in given])


@cache
def exported(kind: str, branched: bool) -> onnx.ModelProto:
    return to_onnx(adapted(kind) if branched else base(kind), SPECS[kind])


def constants(model: onnx.ModelProto) -> dict[str, bytes]:
    return {tensor.name: numpy_helper.to_array(tensor).tobytes() for tensor in model.graph.initializer}


@pytest.mark.parametrize("kind", SPECS)
def test_a_fresh_branch_changes_nothing_and_one_that_learned_is_taken_away_or_in(kind: str) -> None:
    x = torch.from_numpy(windows(kind))
    below, fresh, learned = base(kind), copy.deepcopy(base(kind)), adapted(kind)
    fresh.adapt(2)
    with torch.no_grad():
        torch.testing.assert_close(fresh(x), below(x), atol=1e-6, rtol=0)
        assert (learned(x) - below(x)).abs().max() > 1e-3
        assert torch.equal(learned.base()(x), below(x))
        merged = copy.deepcopy(learned)
        merged.merge()
        torch.testing.assert_close(merged(x), learned(x), atol=1e-5, rtol=1e-4)
    assert not branches.find(merged.trunk)
    assert merged.state_dict().keys() == learned.base().state_dict().keys() == below.state_dict().keys()


def test_a_branch_is_what_peft_makes() -> None:
    """The library that `lineside train adapt` uses, with the same A and B; it puts them beside the same layers."""
    ours, theirs = adapted(), copy.deepcopy(base())
    places = [f"trunk.{name}" for name in branches.places(ours.trunk)]
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=2, target_modules=places), theirs, adapter_name="1")
    with torch.no_grad():
        for name, layer in branches.find(ours.trunk).items():
            twin = theirs.get_submodule(f"trunk.{name}")
            twin.lora_A["1"].weight.copy_(layer.lora_a.weight)
            twin.lora_B["1"].weight.copy_(layer.lora_b.weight)
        x = torch.from_numpy(windows("camera"))
        torch.testing.assert_close(ours(x), theirs.eval()(x), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", SPECS)
def test_only_branches_learn_and_norms_and_head_stand(kind: str) -> None:
    encoder = adapted(kind)
    encoder.let_move("adapters", norms_learn=True)
    encoder.train()
    before = copy.deepcopy(encoder.state_dict())
    optimiser = torch.optim.AdamW([w for w in encoder.parameters() if w.requires_grad], 1e-2)
    encoder(torch.from_numpy(windows(kind)))[:, 0].sum().backward()
    optimiser.step()
    moved = {name for name, tensor in encoder.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {f"trunk.{n}.{part}.weight" for n in branches.places(encoder.trunk) for part in branches.PARTS}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SPECS)
def test_the_graph_says_the_same_and_holds_every_number_of_its_base(kind: str) -> None:
    below, whole = exported(kind, False), exported(kind, True)
    x = windows(kind)
    with torch.no_grad():
        want = adapted(kind)(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(run(whole, x), want, atol=parity.MAX_DIFFERENCE)
    old, new = constants(below), constants(whole)
    weights = {name for name in old if name.startswith(("trunk.", "head."))}
    assert weights
    assert all(new[name] == old[name] for name in weights)
    added = {name for name in new if name.startswith("trunk.")} - old.keys()
    assert added == {f"trunk.{n}.{part}.weight" for n in branches.places(base(kind).trunk) for part in branches.PARTS}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SPECS)
def test_int8_keeps_bytes_and_scales_of_its_base_and_stays_in_bytes(kind: str, tmp_path: Path) -> None:
    x = windows(kind)
    below, fp32 = to_int8(exported(kind, False), x).model, exported(kind, True)
    for like in (None, below):
        found = to_int8(fp32, x, like)
        old, new = constants(below), constants(found.model)
        weights = {name for name in old if name.startswith(("trunk.", "head."))}
        assert any(name.endswith("_quantized") for name in weights)
        assert all(new[name] == old[name] for name in weights)
    assert (run(found.model, x) * run(fp32, x)).sum(axis=1).mean() > parity.MEAN_COSINE["int8"]
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(unsigned(found.model.SerializeToString()), options, ["CPUExecutionProvider"])
    ops = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert "QLinearConv" in ops
    assert not {"Conv", "FusedConv"} & set(ops)


def test_folding_twice_gives_the_same_bits() -> None:
    one, two = (fold(copy.deepcopy(each).trunk.eval()).state_dict() for each in (base(), adapted()))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


# From a stage to a device

PICTURES = CameraPrepare(frames=1, height=48, width=48)  # the smallest that keep the trunk's 3 x 3 sense of place
SETTINGS = {
    "encoders": EncoderSettings(move="adapters"),
    "prepare": [PICTURES],
    "dim": 128,
    "defects": DefectSettings(own=0, together=0),
}
OPEN = GateSettings(retrieval_times_chance=0, spread=1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`one`, a stage, `two`, what its adapters learned of a second product, and `out`, the files of both."""
    folder = tmp_path_factory.mktemp("adapters")
    pitch_scene.record(folder / "one.mcap", 100, seed=1)
    pitch_scene.record(folder / "two.mcap", 60, seed=2, tint=1.0)
    settings = {**SETTINGS, "protection": ProtectionSettings(epsilon=1e-2)}
    run_stage(pitch_scene.plan("one", "one.mcap", epochs=16, **settings), folder, SystemClock())
    run_stage(pitch_scene.plan("two", "two.mcap", epochs=4, parent="one", **settings), folder, SystemClock())
    build(folder / "one", folder / "out", precisions=("fp32", "int8"))
    likes = [folder / "out" / f"{modality}-1.int8.onnx" for modality in ("camera", "microphone")]
    build(folder / "two", folder / "out", precisions=("fp32", "int8"), like=likes)
    return folder


@pytest.mark.slow
def test_a_stage_of_adapters_is_certified_as_any_other(folder: Path) -> None:
    one, two = (checkpoint.load_stage(folder / name) for name in ("one", "two"))
    assert two.passed
    base_of = checkpoint.identities(one, checkpoint.load_tensors(folder / "one", one).encoders)
    assert {name: each.base for name, each in two.adapters.items()} == base_of
    judged = {gate.name: gate for gate in two.certificate.gates}
    assert all(judged[f"base changed {modality}"].value == 0 for modality in base_of)
    assert all(0 < two.certificate.embedding_drift[f"{modality} trunk"] < 0.05 for modality in base_of)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_published_delta_is_two_percent_of_the_encoder_and_gives_it_bit_for_bit(
    folder: Path, tmp_path: Path, precision: str
) -> None:
    repo = repository.of(PlantConfig(site="line1", devices=["edge-1"]), tmp_path, SystemClock())
    repo.init(("camera", "microphone"))
    for version in (1, 2):
        repo.publish([folder / "out" / file_name(name, version, precision) for name in ("camera", "microphone")])
    for modality in ("camera", "microphone"):
        old, new = ((folder / "out" / file_name(modality, k, precision)).read_bytes() for k in (1, 2))
        name = targets.delta_name(targets.model_name(modality, 2, precision), sha256(old))
        patch = published(repo, modality, name)
        assert len(patch) <= 0.02 * (folder / "out" / file_name(modality, 2, "fp32")).stat().st_size
        rebuilt = tmp_path / file_name(modality, 2, precision)
        rebuilt.write_bytes(delta.apply(old, patch, sha256(new)))
        assert rebuilt.read_bytes() == new
        device = DeviceEncoder.load(rebuilt)
        release.accept(device.card, {})
        assert release.self_test(device.card, device.embed) <= device.card.tolerance
        assert device.card.base == DeviceEncoder.load(folder / "out" / file_name(modality, 1, precision)).card.encoder


def published(repo: Repository, modality: str, name: str) -> bytes:
    """The bytes of a target, as a device finds them: by hash."""
    place, _, file = name.rpartition("/")
    found = repo.roles.read(modality).signed.targets[name].hashes["sha256"]
    return (repo.roles.folder / "targets" / place / f"{found}.{file}").read_bytes()


@pytest.mark.slow
def test_adapters_beside_another_encoder_than_theirs_are_refused_by_name(folder: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "other"
    settings = {**SETTINGS, "seed": 7, "gates": OPEN}
    run_stage(pitch_scene.plan("other", str(folder / "one.mcap"), epochs=1, **settings), tmp_path, SystemClock())
    build(foreign, tmp_path / "out", precisions=["int8"], modalities=["camera"])
    like = tmp_path / "out" / "camera-1.int8.onnx"
    stage = checkpoint.load_stage(folder / "two")
    base = stage.adapters["camera"].base
    told = rf"camera-1\.int8\.onnx is encoder \w+, and the adapters of {stage.name} stand on {base}"
    with pytest.raises(ConfigError, match=told):
        build(folder / "two", tmp_path / "out", precisions=["int8"], modalities=["camera"], like=[like])
    assert not (tmp_path / "out" / "camera-2.int8.onnx").exists()

    moved = tmp_path / "two"
    shutil.copytree(folder / "two", moved)
    own, theirs = (load_file(each / checkpoint.WEIGHTS) for each in (moved, foreign))
    mixed = pack({**own, **{name: tensor for name, tensor in theirs.items() if name.startswith("camera.")}})
    (moved / checkpoint.WEIGHTS).write_bytes(mixed)
    files = {**stage.files, checkpoint.WEIGHTS: sha256(mixed)}  # as if somebody had put them together
    with pytest.raises(ConfigError, match=r"the adapters of camera learned on encoder \w+, and stand on"):
        checkpoint.load_tensors(moved, msgspec.structs.replace(stage, files=files))

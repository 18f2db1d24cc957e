"""A stage to ONNX files that the device itself finds equal to the trainer; what differs does not leave."""

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch

from edge.encoder import Encoder as DeviceEncoder
from export import bench, parity
from export.bundle import build, file_name
from export.to_onnx import to_onnx
from lineside import features, release
from lineside.clock import SystemClock
from lineside.errors import ConfigError, GateError, ReleaseError
from lineside.targets import PRECISIONS
from tests import pitch_scene
from trainer import checkpoint
from trainer.encoders import Encoder
from trainer.evaluate import embed
from trainer.plan import DefectSettings, GateSettings
from trainer.stage import run_stage

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`one`, a trained stage, and `out`, all of its files as version 7."""
    folder = tmp_path_factory.mktemp("export")
    pitch_scene.record(folder / "one.mcap", 100, seed=1)
    alone = DefectSettings(own=0, together=0)
    run_stage(pitch_scene.plan("one", "one.mcap", epochs=16, defects=alone), folder, SystemClock())
    build(folder / "one", folder / "out", version=7)
    return folder


FILES = [file_name(modality, 7, precision) for modality in ("camera", "microphone") for precision in PRECISIONS]


@pytest.mark.parametrize("name", FILES)
def test_every_file_passes_the_device_s_own_self_test(folder, name):
    device = DeviceEncoder.load(folder / "out" / name)
    release.accept(device.card, {})
    assert release.self_test(device.card, device.embed) <= device.card.tolerance
    stage = checkpoint.load_stage(folder / "one")
    assert (device.card.version, device.card.space, device.card.stage) == (7, stage.space, stage.name)
    told, encoders = device.card.certificate, checkpoint.load_tensors(folder / "one", stage).encoders
    assert told.gates[:-1] == stage.certificate.gates
    assert told.gates[-1].name == f"parity {device.card.precision}"
    identities = checkpoint.identities(stage, encoders)
    assert told.mixes == [identities]
    assert device.card.encoder == identities[device.card.modality]
    assert f"{device.card.name}.{device.card.precision}.onnx".replace(".fp32", "") == name
    assert device.card.window_s == stage.windows.length_s == 1.0


@pytest.mark.parametrize("modality", ["camera", "microphone"])
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_device_and_trainer_agree_on_any_number_of_windows(folder, modality, batch):
    stage = checkpoint.load_stage(folder / "one")
    tensors = checkpoint.load_tensors(folder / "one", stage)
    windows = tensors.calibration[modality].numpy()[:batch]
    device = DeviceEncoder.load(folder / "out" / f"{modality}-7.onnx")
    got = device.embed(windows)
    np.testing.assert_allclose(got, embed(tensors.encoders[modality], windows), atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1.0, atol=1e-5)


def test_int8_points_the_same_way_and_is_int8(folder):
    stage = checkpoint.load_stage(folder / "one")
    tensors = checkpoint.load_tensors(folder / "one", stage)
    for modality in stage.prepare:
        path = folder / "out" / f"{modality}-7.int8.onnx"
        windows = tensors.calibration[modality].numpy()
        found = parity.compare(tensors.encoders[modality], DeviceEncoder.load(path), windows)
        assert found.mean_cosine >= 0.99
        model = onnx.load(path)
        kinds = {tensor.data_type for tensor in model.graph.initializer}
        assert onnx.TensorProto.INT8 in kinds
        assert onnx.TensorProto.INT32 not in kinds  # a bias in int32 would stop TensorRT's parser


def test_metadata_tells_what_a_stranger_needs_and_nothing_of_this_machine(folder):
    model = onnx.load(folder / "out" / "camera-7.onnx")
    props = {prop.key: prop.value for prop in model.metadata_props}
    assert (model.producer_name, model.model_version) == ("lineside", 7)
    assert props["Image.BitmapPixelFormat"] == "Rgb8"
    assert model.graph.input[0].type.denotation == "IMAGE"
    assert [(i.name, i.type.tensor_type.shape.dim[0].dim_value) for i in model.graph.input] == [("window", 1)]
    assert [o.name for o in model.graph.output] == ["embedding", "features"]
    data = (folder / "out" / "camera-7.onnx").read_bytes()
    assert b".py" not in data
    assert str(folder).encode() not in data
    assert model.ir_version <= 10


def test_only_operators_that_tensorrt_parses(folder):
    known = {"Add AveragePool Cast Clip Concat Conv Div Flatten Gemm MatMul Mul ReduceL2 ReduceMax ReduceMean Relu"}
    known = {*next(iter(known)).split(), "Reshape", "Shape", "Slice", "Sub", "QuantizeLinear", "DequantizeLinear"}
    for name in FILES:
        used = {node.op_type for node in onnx.load(folder / "out" / name).graph.node}
        assert used <= known, name
        assert "BatchNormalization" not in used


@pytest.mark.parametrize(
    "spec",
    [
        features.SeriesPrepare(channels=5, samples=256),
        features.CameraPrepare(frames=3, height=64, width=128),
        features.MicrophonePrepare(rate_hz=8_000, samples=8_000, n_fft=512, hop=128, high_hz=4_000.0),
    ],
    ids=features.modality,
)
@pytest.mark.parametrize("width", [0, 128], ids=["learned", "fixed"])
def test_any_preparation_exports_and_agrees(spec, width, tmp_path):
    import onnxruntime

    torch.manual_seed(1)
    encoder = Encoder(spec, 16, width).eval()
    windows = parity.golden_inputs(spec)
    encoder.fit(torch.from_numpy(windows))
    onnx.save(to_onnx(encoder, spec), tmp_path / "e.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "e.onnx", providers=["CPUExecutionProvider"])
    got = np.concatenate([session.run(None, {"window": window[None]})[0] for window in windows])
    np.testing.assert_allclose(got, embed(encoder, windows), atol=1e-4)


def test_a_model_that_fails_parity_does_not_leave(folder, tmp_path, monkeypatch):
    """The limit is set below what floating point can do, so that a real model fails it."""
    monkeypatch.setattr(parity, "MAX_DIFFERENCE", -1.0)
    with pytest.raises(GateError, match=r"microphone-1\.onnx: gate `parity fp32` is"):
        build(folder / "one", tmp_path / "out", modalities=["microphone"])
    assert list((tmp_path / "out").iterdir()) == []


def test_parity_sees_a_head_that_differs(folder):
    stage = checkpoint.load_stage(folder / "one")
    tensors = checkpoint.load_tensors(folder / "one", stage)
    encoder = tensors.encoders["camera"]
    with torch.no_grad():
        encoder.head.weight[0] += 0.01
    found = parity.compare(
        encoder, DeviceEncoder.load(folder / "out" / "camera-7.onnx"), tensors.calibration["camera"].numpy()
    )
    assert not parity.gate("fp32", found).passed


def test_a_failed_stage_is_not_exported(folder, tmp_path):
    plan = pitch_scene.plan("bad", "one.mcap", epochs=1, gates=GateSettings(spread=-1.0))
    run_stage(plan, folder, SystemClock())
    with pytest.raises(GateError, match="gate `"):
        build(folder / "bad", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_modality_is_named(folder, tmp_path):
    with pytest.raises(ConfigError, match="has no smell; choose camera, microphone"):
        build(folder / "one", tmp_path, modalities=["smell"])


def test_the_same_stage_gives_the_same_bytes(folder, tmp_path):
    build(folder / "one", tmp_path, version=7, precisions=["fp32"], modalities=["microphone"])
    assert (tmp_path / "microphone-7.onnx").read_bytes() == (folder / "out" / "microphone-7.onnx").read_bytes()


def test_an_older_int8_file_gives_its_scales_and_its_choice_of_layers(folder, tmp_path):
    """Of the very same weights not a byte of the graph is another one."""
    old = folder / "out" / "camera-7.int8.onnx"
    built = build(folder / "one", tmp_path, 8, ["int8"], ["camera"], like=[old])
    assert onnx.load(built[0].file).graph == onnx.load(old).graph
    with pytest.raises(ConfigError, match="is of fp16"):
        build(folder / "one", tmp_path, 9, like=[folder / "out" / "camera-7.fp16.onnx"])
    with pytest.raises(ConfigError, match="--like"):
        build(folder / "one", tmp_path, 9, like=[tmp_path / "nothing.onnx"])


def test_commands_build_and_verify(folder, tmp_path):
    def command(*words):
        return subprocess.run([sys.executable, "-m", "export", *words], capture_output=True, text=True, check=False)

    done = command("build", str(folder / "one"), "--out", str(tmp_path), "--precision", "fp32", "--json")
    assert done.returncode == 0, done.stderr
    files = json.loads(done.stdout)["files"]
    assert [one["version"] for one in files] == [1, 1]
    assert all(one["parity"]["max_difference"] <= 1e-4 for one in files)
    done = command("verify", str(folder / "out" / "camera-7.onnx"), "--json")
    told = json.loads(done.stdout)
    assert told["name"] == "camera-7"
    assert told["self_test"]["worst"] <= 1e-4
    assert told["int8_over_fp32"] > 0
    done = command("verify", str(folder / "out" / "camera-7.fp16.onnx"), "--json")
    assert json.loads(done.stdout)["fp16_over_fp32"] > 0
    foreign = tmp_path / "foreign.onnx"
    model = onnx.load(files[0]["file"])
    model.ClearField("metadata_props")
    onnx.save(model, foreign)
    done = command("verify", str(foreign))
    assert done.returncode == ReleaseError.exit_code
    assert "foreign.onnx: card failed" in done.stderr


def test_a_bench_puts_every_precision_beside_fp32(folder):
    rows = bench.bench(folder / "one", folder / "one.mcap", SystemClock())
    found = {(row.modality, row.precision): row for row in rows}
    assert sorted(found) == sorted((m, p) for m in ("camera", "microphone") for p in PRECISIONS)
    for (modality, precision), row in found.items():
        twin = found[modality, "fp32"]
        assert row.faster == twin.latency_ms / row.latency_ms
        assert row.recall == pytest.approx(twin.recall + row.recall_change)
        assert 0.5 < row.area <= 1.0
        assert row.weights_share <= (1.0 if precision == "fp32" else 0.55)
        assert row.share > row.weights_share or precision == "fp32"
        assert abs(row.recall_change) < 0.1
    assert len(bench.table(rows).splitlines()) == 2 + len(rows)


def test_a_stage_that_moves_heads_alone_leaves_every_other_number_as_it_was(folder, tmp_path):
    """Normalisation stays frozen in later stages; were it not, it would fold into every convolution."""
    pitch_scene.record(folder / "two.mcap", 60, seed=2)
    run_stage(pitch_scene.plan("two", "two.mcap", epochs=1, parent="one"), folder, SystemClock())
    stage = checkpoint.load_stage(folder / "two")
    for modality, encoder in checkpoint.load_tensors(folder / "two", stage).encoders.items():
        new = to_onnx(encoder.eval(), stage.prepare[modality])
        old = onnx.load(folder / "out" / f"{modality}-7.onnx")
        moved = {a.name for a, b in zip(new.graph.initializer, old.graph.initializer, strict=True) if a != b}
        assert moved <= {"head.weight", "head.bias"}
        assert moved

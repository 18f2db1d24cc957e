"""Frozen backbones: any ONNX network with one input makes a feature file, on which a stage then trains heads."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

from lineside.errors import ConfigError
from lineside.files import sha256
from tests import pitch_scene
from trainer import feature_files
from trainer.__main__ import app
from trainer.backbones import CHUNK, Backbone, featured
from trainer.data import read
from trainer.plan import RecordingPart


def network(path, batch="n", kind=TensorProto.FLOAT, shape=(1, 40, 12), nodes=None, more_inputs=()):
    """Means over the last axis, one row a window."""
    given = helper.make_tensor_value_info("x", kind, [batch, *shape])
    gives = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    more = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in more_inputs]
    nodes = nodes or [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["f"], ["y"], axes=[len(shape)], keepdims=0),
    ]
    graph = helper.make_graph(nodes, "means", [given, *more], [gives])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.mark.parametrize("batch", ["n", 1])
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.UINT8])
def test_features_are_what_the_network_makes_of_each_window(tmp_path, batch, kind):
    windows = np.random.default_rng(0).integers(0, 255, size=(CHUNK + 5, 1, 40, 12)).astype(np.uint8)
    known = Backbone(network(tmp_path / "net.onnx", batch, kind))
    np.testing.assert_allclose(known.features(windows), windows.mean(axis=3).reshape(-1, 40), rtol=1e-5)
    assert known.sha256 == sha256((tmp_path / "net.onnx").read_bytes())


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    return pitch_scene.record(tmp_path_factory.mktemp("line") / "line.mcap", 12, black=range(3, 5))


def microphone(folder, line):
    """A network for the sound of `line`, and the prepared windows that it will see."""
    dataset = read([RecordingPart(str(line))], Path(), only={"microphone"})
    (view,) = dataset.views.values()
    return network(folder / "ears.onnx", shape=view.inputs.shape[1:]), view, dataset


def test_a_recording_becomes_a_feature_file_of_the_modalities_that_have_a_backbone(tmp_path, line):
    net, view, dataset = microphone(tmp_path, line)
    file = featured(line, {"microphone": net})
    assert set(file.sensors) == set(dataset.views)
    (sensor,) = file.sensors.values()
    np.testing.assert_array_equal(sensor.present, view.present)
    wanted = view.inputs[view.present].mean(axis=-1)
    np.testing.assert_allclose(sensor.features[view.present], wanted.reshape(len(wanted), -1), rtol=1e-4, atol=1e-5)
    assert (file.start_ns.tolist(), file.hop_ns) == (dataset.start_ns.tolist(), dataset.hop_ns)
    assert file.backbones == {"microphone": sha256(net.read_bytes())}


def test_the_command_makes_a_file_that_a_stage_trains_heads_on(tmp_path, line):
    ears, *_ = microphone(tmp_path, line)
    (view,) = read([RecordingPart(str(line))], Path(), only={"camera"}).views.values()
    eyes = network(tmp_path / "eyes.onnx", shape=view.inputs.shape[1:], kind=TensorProto.UINT8)
    out = tmp_path / "line.safetensors"
    given = ["features", str(line), "--backbone", f"camera={eyes}", "--backbone", f"microphone={ears}", "--json"]
    done = CliRunner().invoke(app, [*given, "--out", str(out)])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    made = feature_files.read(out)
    assert told["moments"] == len(made.start_ns)
    assert {name: rows for name, (rows, _) in told["windows_and_width"].items()} == {
        name: int(sensor.present.sum()) for name, sensor in made.sensors.items()
    }
    assert not all(sensor.present.all() for sensor in made.sensors.values())  # two seconds were black

    plan = tmp_path / "plan.toml"
    plan.write_text(
        'out = "stage"\nepochs = 2\nbatch = 4\n[[recordings]]\npath = "line.safetensors"\n'
        "[defects]\nown = 0\ntogether = 0\n[gates]\nretrieval_times_chance = 0\nspread = 1.0\n"
    )
    trained = CliRunner().invoke(app, ["stage", str(plan), "--json"])
    assert trained.exit_code == 0, trained.output
    assert (tmp_path / "stage" / "stage.json").exists()


def no_onnx(folder):
    (folder / "net.onnx").write_bytes(b"hello")
    return folder / "net.onnx"


def sums_all(folder):
    node = helper.make_node("ReduceMean", ["x"], ["y"], keepdims=0)
    return network(folder / "net.onnx", nodes=[node], shape=(1, "mels", "t"))


REFUSED = {
    "no file": (lambda folder: folder / "none.onnx", "cannot be read"),
    "no network": (no_onnx, "ONNX Runtime refuses it"),
    "two inputs": (lambda folder: network(folder / "net.onnx", more_inputs=["z"]), "takes x tensor.*, z tensor"),
    "whole numbers": (lambda folder: network(folder / "net.onnx", kind=TensorProto.INT64), "takes x tensor.int64"),
    "another shape": (lambda folder: network(folder / "net.onnx", shape=(3, 5)), "not windows of shape"),
    "no row a window": (sums_all, r"gave an output of shape \(\) for"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_network_that_does_not_fit_is_refused_with_the_mend(tmp_path, line, name):
    made, told = REFUSED[name]
    with pytest.raises(ConfigError, match=told) as refused:
        featured(line, {"microphone": made(tmp_path)})
    assert refused.value.mend


def test_a_modality_that_the_recording_lacks_is_refused(tmp_path, line):
    net, *_ = microphone(tmp_path, line)
    with pytest.raises(ConfigError, match="has no pump"):
        featured(line, {"microphone": net, "pump": net})


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--backbone", "camera", "--out", "a.safetensors"], "names no model"),
        (["--backbone", "camera=x.onnx", "--out", "a.npz"], "no feature file's name"),
    ],
)
def test_what_the_command_is_asked_wrongly_is_said(given, told):
    done = CliRunner().invoke(app, ["features", "line.mcap", *given])
    assert done.exit_code == 2 or isinstance(done.exception, ConfigError)
    assert told in str(done.exception) + done.output

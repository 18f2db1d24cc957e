"""fp16 and INT8 of a small encoder: what is computed in which type, and that a CPU's form of INT8 says the same."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edge.unsigned import unsigned
from export import parity, quantize, scales
from export.half import to_fp16
from export.quantize import to_int8
from export.to_onnx import to_onnx
from lineside import features
from lineside.features import CameraPrepare, HalvedPrepare, MicrophonePrepare, SeriesPrepare
from trainer.encoders import Encoder

pytestmark = pytest.mark.slow

SPEC = HalvedPrepare(frames=1, height=32, width=32)


def encoder(spec: features.RawPrepare = SPEC, width: int = 0) -> Encoder:
    torch.manual_seed(1)
    made = Encoder(spec, 16, width).eval()
    for module in made.modules():  # as if trained: statistics of its own in every norm
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            assert module.running_mean is not None
            module.running_mean.normal_(std=0.2)
    made.fit(torch.from_numpy(parity.golden_inputs(spec)))
    return made


def windows(count: int = 16) -> np.ndarray:
    chance = np.random.default_rng(3)
    smooth = chance.integers(0, 256, (count, 3, 8, 8)).astype(np.uint8)
    return smooth.repeat(4, axis=2).repeat(4, axis=3)


def run(model: bytes, given: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return np.concatenate([np.concatenate(session.run(None, {"window": one[None]}), axis=1) for one in given])


@pytest.fixture(scope="module")
def fp32() -> onnx.ModelProto:
    return to_onnx(encoder(), SPEC)


@pytest.fixture(scope="module")
def int8(fp32: onnx.ModelProto) -> onnx.ModelProto:
    found = to_int8(fp32, windows())
    assert found.layers == "14 of 14"
    return found.model


@pytest.mark.parametrize(
    "spec", [SPEC, MicrophonePrepare(), SeriesPrepare(channels=3, samples=128)], ids=features.modality
)
@pytest.mark.parametrize("width", [0, 64], ids=["learned", "fixed"])
def test_fp16_computes_layers_in_half_and_keeps_what_goes_in_and_out(spec: features.RawPrepare, width: int) -> None:
    whole = to_onnx(encoder(spec, width), spec)
    half = to_fp16(whole)
    assert (half.graph.input, half.graph.output) == (whole.graph.input, whole.graph.output)
    kinds = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    layers = [node for node in half.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    assert layers
    assert all(kinds[name] == TensorProto.FLOAT16 for node in layers for name in node.input[1:])
    given = parity.golden_inputs(spec)
    np.testing.assert_allclose(run(half.SerializeToString(), given), run(whole.SerializeToString(), given), atol=5e-3)


def test_fp16_is_half_as_large(fp32: onnx.ModelProto) -> None:
    assert to_fp16(fp32).ByteSize() < 0.55 * fp32.ByteSize()


def test_int8_is_symmetric_with_float_biases_and_bytes_behind_every_relu(int8: onnx.ModelProto) -> None:
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in int8.graph.initializer}
    pairs = [node for node in int8.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs
    assert all(not constants[node.input[2]].any() and constants[node.input[2]].dtype == np.int8 for node in pairs)
    assert all(tensor.data_type != TensorProto.INT32 for tensor in int8.graph.initializer)
    makers = {name: node.op_type for node in int8.graph.node for name in node.output}
    convolutions = [node for node in int8.graph.node if node.op_type == "Conv"]
    assert all(makers[name] == "DequantizeLinear" for node in convolutions for name in node.input[:2])
    quantised = [makers.get(node.input[0]) for node in pairs if node.op_type == "QuantizeLinear"]
    assert "Conv" not in quantised  # a pair between a convolution and its ReLU would keep both from becoming one


def test_unsigned_bytes_say_the_same(int8: onnx.ModelProto) -> None:
    file = int8.SerializeToString()
    changed = unsigned(file)
    assert (len(changed), changed == file) == (len(file), False)
    onnx.checker.check_model(onnx.load_from_string(changed), full_check=True)
    np.testing.assert_allclose(run(changed, windows()[::2]), run(file, windows()[::2]), atol=2e-2)
    assert unsigned(changed) == changed


def test_negative_values_stay_and_those_behind_a_relu_reach_further() -> None:
    """Steps of 0.1: what a signed byte holds comes out the same; 20 is cut off at 12.7 only before a sign is needed."""
    constants = [
        numpy_helper.from_array(np.float32(0.1), "scale"),
        *(numpy_helper.from_array(np.int8(0), name) for name in ("plain_zero", "relu_zero")),
    ]
    nodes = [helper.make_node("Relu", ["window"], ["rectified"])]
    for what, name in (("window", "plain"), ("rectified", "relu")):
        nodes.append(helper.make_node("QuantizeLinear", [what, "scale", f"{name}_zero"], [f"{name}_bytes"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_bytes", "scale", f"{name}_zero"], [name]))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("window", "plain", "relu")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], constants)
    file = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
    given = np.array([[-5.0, -0.1, 5.0, 20.0]], np.float32)
    np.testing.assert_allclose(run(file, given), [[-5, -0.1, 5, 12.7, 0, 0, 5, 12.7]], atol=1e-5)
    np.testing.assert_allclose(run(unsigned(file), given), [[-5, -0.1, 5, 12.7, 0, 0, 5, 20]], atol=1e-5)


def test_a_cpu_stays_in_bytes_from_the_first_layer_to_the_last(int8: onnx.ModelProto, tmp_path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(unsigned(int8.SerializeToString()), options, providers=["CPUExecutionProvider"])
    ops = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert ops.count("QLinearConv") == 13
    assert not {"Conv", "FusedConv"} & set(ops)


def test_a_file_without_int8_is_left_as_it_is(fp32: onnx.ModelProto) -> None:
    assert unsigned(fp32.SerializeToString()) == fp32.SerializeToString()


def test_layers_stay_in_float_where_all_of_them_lose_too_much(
    fp32: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "BUDGET", 1e-4)
    done, all_of_them = to_int8(fp32, windows()).layers.split(" of ")
    assert 0 < int(done) < int(all_of_them)


def test_old_scales_stay_and_so_do_most_bytes(int8: onnx.ModelProto) -> None:
    moved = encoder()
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.mul_(1 + 1e-4 * torch.randn_like(parameter))
        first = next(module for module in moved.modules() if isinstance(module, nn.Conv2d))
        first.weight[0] *= 2
    new = to_int8(to_onnx(moved, SPEC), windows(), int8).model
    old_values, new_values = (
        {t.name: numpy_helper.to_array(t) for t in each.graph.initializer} for each in (int8, new)
    )
    weights = scales.weights(new)
    same = np.concatenate([(old_values[w.values] == new_values[w.values]).ravel() for w in weights])
    assert same.mean() > 0.99
    stem = next(w for w in weights if new_values[w.values].shape == (16, 3, 3, 3))
    ratio = new_values[stem.scales] / old_values[stem.scales]
    assert ratio[0] == pytest.approx(2, rel=1e-3)  # twice as large, it needs a scale of its own
    np.testing.assert_array_equal(ratio[1:], 1)


def test_an_architecture_of_another_kind_takes_no_scales(int8: onnx.ModelProto) -> None:
    spec = CameraPrepare(frames=2, height=32, width=32)
    other = to_onnx(encoder(spec), spec)
    given = np.concatenate([windows(), windows()], axis=1)
    kept, own = to_int8(other, given, int8).model, to_int8(other, given).model
    stem = scales.weights(own)[0]
    constants = [{t.name: numpy_helper.to_array(t) for t in each.graph.initializer} for each in (kept, own)]
    np.testing.assert_allclose(constants[0][stem.scales], constants[1][stem.scales], rtol=0.3)

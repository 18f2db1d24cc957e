"""TensorRT's own parser and builder on what we export: through `tensorrt_rtx`, which has its API and needs no GPU."""

from __future__ import annotations

import io
import os
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from edge import engine
from edge.cuda import Gpu
from edge.encoder_process import EncoderProcess
from edge.engine import Progress
from edge.runtimes import ENGINE, RUNTIMES
from edge.workshop import Workshop
from export.half import to_fp16
from export.quantize import OPS, to_int8
from export.to_onnx import to_onnx
from lineside import features
from lineside.errors import ReleaseError
from tests.line_device import DATA
from trainer.encoders import Encoder

trt = pytest.importorskip(
    "tensorrt_rtx", reason="needs TensorRT's builder: pip install '.[tensorrt-test]' (x86 or aarch64, no GPU)"
)

pytestmark = pytest.mark.slow
SPECS = {
    "camera": features.CameraPrepare(),
    "microphone": features.MicrophonePrepare(),
    "series": features.SeriesPrepare(channels=3),
}


@pytest.fixture(scope="module")
def exported() -> dict[tuple[str, str], onnx.ModelProto]:
    """Every kind of encoder as it is exported, in each precision; weights are random, shapes and layers are not."""
    torch.manual_seed(1)
    made = {}
    for modality, spec in SPECS.items():
        fp32 = to_onnx(Encoder(spec, 64).eval(), spec)
        made[modality, "fp32"] = fp32
        made[modality, "fp16"] = to_fp16(fp32)
        made[modality, "int8"] = int8(fp32, spec)
    return made


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_an_encoder_with_adapters_is_parsed_and_built(precision) -> None:
    torch.manual_seed(1)
    encoder = Encoder(SPECS["camera"], 64).eval()
    encoder.adapt(2)
    fp32 = to_onnx(encoder, SPECS["camera"])
    model = {"fp32": lambda: fp32, "fp16": lambda: to_fp16(fp32), "int8": lambda: int8(fp32, SPECS["camera"])}
    made, _ = engine.build(trt, model[precision]().SerializeToString(), "camera-2", None, _silent)
    assert len(made) > 10_000


def int8(model: onnx.ModelProto, spec: features.Prepare) -> onnx.ModelProto:
    return to_int8(model, np.stack([features.prepare(spec, window) for window in features.golden_windows(spec)])).model


def network(model: onnx.ModelProto) -> object:
    """Its layers, kept with the builder and logger that they need."""
    log = engine._log(trt)
    builder = trt.Builder(log)
    parsed = engine.parsed(trt, builder, model.SerializeToString(), "camera-1", log)
    return [parsed.get_layer(i) for i in range(parsed.num_layers)], parsed, builder, log


CASES = [(modality, precision) for modality in SPECS for precision in ("fp32", "fp16", "int8")]


@pytest.mark.parametrize(("modality", "precision"), CASES)
def test_every_exported_encoder_is_parsed_and_built(exported, modality, precision) -> None:
    told: list[str] = []
    model = exported[modality, precision].SerializeToString()
    made, timing = engine.build(trt, model, f"{modality}-1", None, told.append)
    assert len(made) > 10_000
    assert timing is None
    assert len(told) > 1
    assert told[-1] == "100 %"


@pytest.mark.parametrize("modality", SPECS)
def test_the_network_is_typed_as_the_file_is(exported, modality) -> None:
    """No flag decides on precision: half of fp16 and the pairs of INT8 stand in the network itself."""
    heavy = {trt.LayerType.CONVOLUTION, trt.LayerType.MATRIX_MULTIPLY}

    def kinds(precision: str) -> tuple[Counter, Counter]:
        found, *kept = network(exported[modality, precision])
        del kept
        return Counter(each.get_output(0).dtype for each in found if each.type in heavy), Counter(
            each.type for each in found
        )

    weights = sum(node.op_type in OPS for node in exported[modality, "fp32"].graph.node)
    assert kinds("fp32")[0] == {trt.float32: weights}
    assert kinds("fp16")[0] == {trt.float16: weights}
    pairs = kinds("int8")[1]
    assert pairs[trt.LayerType.QUANTIZE] >= weights  # every activation; weights are quantised already
    assert pairs[trt.LayerType.DEQUANTIZE] >= 2 * weights  # of activation and weights
    assert trt.LayerType.QUANTIZE not in kinds("fp32")[1]


def test_a_strongly_typed_network_is_asked_for(exported) -> None:
    """That of TensorRT for RTX is one in any case; TensorRT 10 makes a weakly typed one unless it is told."""
    log = engine._log(trt)
    builder, asked = trt.Builder(log), []

    class Asked:
        def create_network(self, flags: int) -> object:
            asked.append(flags)
            return builder.create_network(flags)

    engine.parsed(trt, Asked(), exported["series", "fp32"].SerializeToString(), "series-1", log)
    assert asked == [1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)]
    assert asked != [0]


def _silent(_: str) -> None:
    pass


def test_a_dynamic_batch_gets_a_profile_and_a_fixed_one_none(exported) -> None:
    fixed = exported["camera", "fp32"]
    model = onnx.load(io.BytesIO(fixed.SerializeToString()))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    for each, profiled in ((model, True), (fixed, False)):
        _, parsed, builder, _ = network(each)
        profile = engine._profile(builder, parsed, "camera-1")
        assert (profile is not None) == profiled
        if profile is not None:
            most = (engine.MOST_WINDOWS, *features.shape(SPECS["camera"]))
            assert [tuple(shape) for shape in profile.get_shape("window")][2] == most
    assert len(engine.build(trt, fixed.SerializeToString(), "camera-1", None, _silent)[0]) > 10_000


def model_of(op: str, shape: list, inputs: list[str] | None = None, **more: object) -> bytes:
    names = inputs or ["window"]
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in names]
    made = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node(op, names, ["embedding"], name="odd", **more)], "g", given, [made])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (b"no protobuf", "TensorRT refuses it"),
        (model_of("Det", ["n", 4, 4]), "Det odd: "),
        (model_of("Add", ["n", 4], ["window", "mask"]), "other inputs than `window`"),
        (model_of("Relu", ["n", "m"]), "more than the batch is left open"),
    ],
)
def test_what_tensorrt_does_not_take_is_refused_with_its_own_words(model, told) -> None:
    with pytest.raises(ReleaseError) as error:
        engine.build(trt, model, "camera-1", None, _silent)
    assert told in str(error.value)
    assert (error.value.check, error.value.thing) == ("runtime", "camera-1")
    assert "[device] runtime" in error.value.mend


def test_the_timing_cache_is_handed_in_and_comes_back(exported) -> None:
    """That of TensorRT for RTX is empty, its calls are TensorRT's."""
    model = exported["series", "fp32"].SerializeToString()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        _, timing = engine.build(trt, model, "series-1", b"", _silent)
        assert timing
        assert engine.build(trt, model, "series-1", timing, _silent)[1]


def test_progress_never_runs_backwards_whatever_the_phases_do() -> None:
    told: list[str] = []
    progress = Progress(told.append)
    progress.begin("a", 4)
    for step in range(4):
        progress.begin("b", 3)
        progress.begin("c", 0)
        progress.step("c", 0)
        progress.end("c")
        progress.step("b", 2)
        progress.step("b", 0)
        progress.end("b")
        progress.step("a", step)
    progress.end("a")
    progress.step("a", 9)  # after its end
    shares = [int(each.removesuffix(" %")) for each in told]
    assert shares == sorted(set(shares))
    assert shares[-1] == 100


def test_an_engine_is_built_in_a_child_once_and_kept_with_its_hash(tmp_path, monkeypatch) -> None:
    """The whole way but the last step, which needs a GPU: without one the next runtime is taken, and it is said why."""
    (tmp_path / "fake" / "tensorrt").mkdir(parents=True)
    (tmp_path / "fake" / "tensorrt" / "__init__.py").write_text(
        "from tensorrt_rtx import *\nfrom tensorrt_rtx import __version__\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "fake"), str(Path.cwd())]))
    built, original = [], EncoderProcess.make
    monkeypatch.setattr(
        EncoderProcess, "make", lambda self, tell: (built.append(self._runtime.name), original(self, tell))
    )
    rows = {
        "tensorrt": replace(RUNTIMES["tensorrt"], missing=lambda: ""),
        "onnxruntime-cpu": RUNTIMES["onnxruntime-cpu"],
    }
    shop = Workshop("auto", tmp_path / "kept", runtimes=rows)
    shop.gpu = Gpu("Orin", "8.7", "12060")
    doing: list[str] = []
    monkeypatch.setattr(shop, "_tell", doing.append)
    told = shop.ready(DATA / "camera-1.onnx").provider
    assert doing[-1] == "camera-1 is made ready for tensorrt: 100 %"
    assert [path.name for path in tmp_path.glob("kept/*/*.engine")] == [ENGINE]
    if torch.cuda.is_available():
        return
    assert told.startswith("CPUExecutionProvider instead of tensorrt: no GPU can be used (libcuda.so.1")
    assert built == ["tensorrt", "onnxruntime-cpu"]

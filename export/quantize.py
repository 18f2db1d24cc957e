"""Static INT8 with quantise/dequantise pairs, in the form that TensorRT takes, and ONNX Runtime after edge.unsigned.

Symmetric, weights per channel, biases left in float: TensorRT's parser wants zero points of 0 and refuses int32 biases.
Convolutions, the head and sums are quantised, so that a CPU stays in bytes from the first layer to the last. B of an
adapter has one scale: one a channel would be of as many bytes as itself, and it is to be sent. Ranges are taken from
one half of the windows; what is lost is measured on the other. Where all of it in INT8 loses more than a budget, sums
of layers and their adapters stay in float, which are rounded once more than a layer alone; where that does not suffice,
so do the most sensitive layers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

from edge.unsigned import unsigned
from export import scales
from export.calibrate import CUTS, ranges
from export.to_onnx import quiet
from trainer import branches

OPS = ("Conv", "Gemm", "MatMul")
BETWEEN = ("Add", "AveragePool", "ReduceMean", "ReduceMax")  # sums, and what pools: their inputs in bytes too
BUDGET = 0.008  # of 1 - cosine of the worse output; the parity gate allows 0.01
PROBES = 32
OPTIONS = {
    "ActivationSymmetric": True,
    "WeightSymmetric": True,
    "QuantizeBias": False,
    "OpTypesToExcludeOutputQuantization": [*OPS, *BETWEEN],  # bytes where they are taken, which is behind a ReLU
    "ForceQuantizeNoInputCheck": True,
}
ONE_SCALE = {"quant_type": QuantType.QInt8, "symmetric": True}


@dataclass(frozen=True)
class Quantised:
    """An INT8 encoder, and how it came about: layers in INT8 as `16 of 17`, the share of values that ranges cut off."""

    model: onnx.ModelProto
    layers: str
    cut: float


def to_int8(model: onnx.ModelProto, windows: NDArray[np.generic], like: onnx.ModelProto | None = None) -> Quantised:
    """An fp32 encoder as INT8, its ranges taken from prepared windows (n, *shape) of the line, n >= 2.

    With `like`, an older INT8 encoder of the same architecture, the layers that it left in float are so again, and
    weights keep its scales where these still fit (export.scales), so that a delta to it is small.
    """
    with tempfile.TemporaryDirectory(prefix="lineside-int8-") as folder, quiet():
        trial = Trial(Path(folder), model, windows)
        spared = scales.in_float(like) if like else set()
        chosen = {layer for layer, weight in trial.layers.items() if weight not in spared}
        cut = trial.best_cut(chosen)
        if trial.joins and trial.loss(chosen, cut) > BUDGET:
            trial.leave_joins()
            cut = trial.best_cut(chosen)
        if like is None:
            chosen = trial.affordable(cut)
        made = trial.quantised(chosen, cut)
    if like is not None:
        scales.keep(made, model, like)
    return Quantised(made, f"{len(chosen)} of {len(trial.layers)}", cut)


class Trial:
    """One encoder quantised in several ways, each measured against fp32 on windows that it was not calibrated on."""

    def __init__(self, folder: Path, model: onnx.ModelProto, windows: NDArray[np.generic]) -> None:
        self._fp32 = folder / "fp32.onnx"
        onnx.save(model, self._fp32)
        given = [name for node in model.graph.node if node.op_type in (*OPS, *BETWEEN) for name in node.input]
        constants = {tensor.name for tensor in model.graph.initializer}
        self._ranges = ranges(model, {name for name in given if name not in constants}, windows[::2])
        others = windows[1::2]
        self._probes = others[np.linspace(0, len(others) - 1, min(PROBES, len(others))).round().astype(int)]
        self.layers = {
            node.name: node.input[1] for node in model.graph.node if node.op_type in OPS
        }  # with their weights
        self._one_scale = [weight for weight in self.layers.values() if f".{branches.PARTS[1]}." in weight]
        self._between = [node.name for node in model.graph.node if node.op_type in BETWEEN]
        adapted = {name for node in model.graph.node if set(node.input) & {*self._one_scale} for name in node.output}
        self.joins = {
            node.name for node in model.graph.node if node.op_type == "Add" and adapted.intersection(node.input)
        }

    def leave_joins(self) -> None:
        """From now on sums of layers and their adapters stay in float."""
        self._between = [name for name in self._between if name not in self.joins]

    def best_cut(self, names: Collection[str]) -> float:
        """The cut with which these layers in INT8 lose least."""
        return min(CUTS, key=lambda each: self.loss(names, each))

    def affordable(self, cut: float) -> set[str]:
        """All layers but as few of the most sensitive ones as the budget asks for."""
        chosen = set(self.layers)
        if self.loss(chosen, cut) <= BUDGET:
            return chosen
        for name in sorted(self.layers, key=lambda layer: self.loss({layer}, cut), reverse=True):
            chosen.remove(name)
            if self.loss(chosen, cut) <= BUDGET:
                break
        return chosen

    def loss(self, names: Collection[str], cut: float) -> float:
        """What these layers in INT8 cost the worse output: mean 1 - cosine to fp32."""
        got = self._run(unsigned(self.quantised(names, cut).SerializeToString()))
        return max(float(1 - _cosines(a, b).mean()) for a, b in zip(self._want, got, strict=True))

    def quantised(self, names: Collection[str], cut: float) -> onnx.ModelProto:
        """The encoder with these layers in INT8, and sums where any is."""
        quantizer = QDQQuantizer(
            load_model_with_shape_infer(self._fp32),
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QInt8,
            tensors_range=self._ranges[cut],
            nodes_to_quantize=[*names, *self._between] if names else [],
            nodes_to_exclude=[] if names else [*self.layers, *self._between],
            op_types_to_quantize=[*OPS, *BETWEEN],
            extra_options=OPTIONS | {"TensorQuantOverrides": {weight: [ONE_SCALE] for weight in self._one_scale}},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
        model: onnx.ModelProto = quantizer.model.model
        model.producer_name = ""
        for tensor in model.graph.initializer:  # numbers as raw bytes, which is how a device reads them
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
        return model

    @cached_property
    def _want(self) -> list[NDArray[np.float32]]:
        return self._run(self._fp32.read_bytes())

    def _run(self, model: bytes) -> list[NDArray[np.float32]]:
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        rows = [session.run(["embedding", "features"], {"window": window[None]}) for window in self._probes]
        return [np.concatenate(part).astype(np.float32) for part in zip(*rows, strict=True)]


def _cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray((a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))

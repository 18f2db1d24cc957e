"""Static INT8 with quantise/dequantise pairs, in the form that ONNX Runtime and TensorRT both take.

Symmetric and per channel, biases left in float: TensorRT's parser wants zero points of 0 and refuses int32 biases.
Only convolutions and the head are quantised. An encoder this small has layers that cannot spare a bit: each layer is
quantised alone first, and the most sensitive ones stay in float until the sum of what is lost fits a budget.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from export.to_onnx import quiet

OPS = ("Conv", "Gemm", "MatMul")
BUDGET = 0.006  # of 1 - cosine, summed over layers; the parity gate allows 0.01
PROBES = 24


class Windows(CalibrationDataReader):  # type: ignore[misc]
    """Prepared windows (n, *shape), one at a time."""

    def __init__(self, windows: NDArray[np.generic]) -> None:
        self._left: Iterator[NDArray[np.generic]] = iter(windows)

    def get_next(self) -> dict[str, NDArray[np.generic]] | None:
        window = next(self._left, None)
        return None if window is None else {"window": window[None]}


def to_int8(model: onnx.ModelProto, windows: NDArray[np.generic]) -> tuple[onnx.ModelProto, str]:
    """An fp32 encoder as INT8, its ranges taken from prepared windows (n, *shape) of the line.

    The second value says how many of its layers are in INT8: `9 of 17`.
    """
    with tempfile.TemporaryDirectory(prefix="lineside-int8-") as folder, quiet():
        fp32 = Path(folder) / "fp32.onnx"
        onnx.save(model, fp32)
        losses = sensitivity(fp32, layers(model), windows)
        chosen = affordable(losses, BUDGET)
        return onnx.load(_quantised(fp32, chosen, windows)), f"{len(chosen)} of {len(losses)}"


def layers(model: onnx.ModelProto) -> list[str]:
    """Names of the layers that can be quantised."""
    return [node.name for node in model.graph.node if node.op_type in OPS]


def sensitivity(fp32: Path, names: list[str], windows: NDArray[np.generic]) -> dict[str, float]:
    """What quantising each layer alone costs the worse output: mean 1 - cosine to fp32 over a few windows."""
    probes = windows[np.linspace(0, len(windows) - 1, min(PROBES, len(windows))).round().astype(int)]
    want = _run(fp32, probes)

    def loss(name: str) -> float:
        got = _run(_quantised(fp32, [name], probes), probes)
        return max(float(1 - (a * b).sum(axis=1).mean()) for a, b in zip(want, got, strict=True))

    return {name: loss(name) for name in names}


def affordable(losses: Mapping[str, float], budget: float) -> list[str]:
    """The layers that may be quantised, least sensitive first, while the sum of their losses fits `budget`.

    >>> affordable({"stem": 0.5, "middle": 0.1, "head": 0.2}, 0.35)
    ['middle', 'head']
    """
    chosen, spent = [], 0.0
    for name in sorted(losses, key=lambda layer: losses[layer]):
        spent += losses[name]
        if spent > budget:
            break
        chosen.append(name)
    return chosen


def _quantised(fp32: Path, names: Collection[str], windows: NDArray[np.generic]) -> Path:
    int8 = fp32.with_name("int8.onnx")
    quantize_static(
        fp32,
        int8,
        Windows(windows),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(OPS),
        nodes_to_exclude=[name for name in layers(onnx.load(fp32)) if name not in names],
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
    )
    return int8


def _run(path: Path, windows: NDArray[np.generic]) -> list[NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [np.asarray(got, np.float32) for got in session.run(["embedding", "features"], {"window": windows})]

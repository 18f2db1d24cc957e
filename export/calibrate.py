"""How far each activation of an encoder reaches over real windows: what its INT8 scale is taken from.

The whole range keeps every value but gives a rare one the say over all others; to cut the rarest off has finer steps.
Which is better differs from encoder to encoder, so that export.quantize tries each.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnxruntime.quantization import CalibrationMethod, TensorsData

CUTS = (0.0, 1e-5, 3e-5, 1e-4, 3e-4)  # shares of all values that may lie beyond the range
KEPT = 10  # times the largest share is looked at of each window: its values may be the strange ones


def ranges(model: onnx.ModelProto, names: Collection[str], windows: NDArray[np.generic]) -> Mapping[float, TensorsData]:
    """The symmetric range of each named activation over prepared windows (n, *shape), n >= 1, for each of CUTS."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    inner = [name for name in names if name != "window"]
    known = {output.name for output in probe.graph.output}
    probe.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inner if name not in known
    )
    session = onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    far: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
    for window in windows:
        values = dict(zip(inner, session.run(inner, {"window": window[None]}), strict=True))
        for name in names:
            far[name].append(farthest(values.get(name, window), KEPT * max(CUTS)))
    reached = {name: np.sort(np.concatenate(kept))[::-1] for name, kept in far.items()}
    return {cut: TensorsData(CalibrationMethod.MinMax, {n: _range(r, cut) for n, r in reached.items()}) for cut in CUTS}


def farthest(values: NDArray[np.generic], share: float) -> NDArray[np.float32]:
    """This share of the values, at least one, those that lie farthest from zero: how far.

    >>> farthest(np.array([1, -7, 3, 2]), 0.5).tolist()
    [3.0, 7.0]
    """
    distances = np.abs(values.astype(np.float32)).ravel()
    count = max(1, int(share * len(distances)))
    return np.partition(distances, len(distances) - count)[len(distances) - count :]


def _range(reached: NDArray[np.float32], cut: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Without the largest share `cut` of all values, of which `reached` are the farthest, the largest first."""
    most = reached[min(int(cut * len(reached) / (KEPT * max(CUTS))), len(reached) - 1)]
    return -most, most

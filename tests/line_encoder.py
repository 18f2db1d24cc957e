"""Encoders without training: pooling and a seeded random projection, unit norm. They see every change of the input.

`python tests/line_encoder.py` writes the files under tests/data that the edge is tested with where onnx is absent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx.reference
from onnx import TensorProto, helper, numpy_helper

from bench import made_up_encoder
from lineside import features, release

DATA = Path(__file__).parent / "data"
DIM = 32
SPECS = {"camera": features.CameraPrepare(), "microphone": features.MicrophonePrepare()}
SCALE = {"camera": (0.0, 1 / 255.0), "microphone": (-10.0, 1 / 5.0)}
POOL = {"camera": [12, 12], "microphone": [8, 8]}


def write(
    folder: Path,
    modality: str,
    version: int = 1,
    space: str = "line",
    encoder: str = "any",
    mixes: Sequence[Mapping[str, str]] = ({"camera": "any", "microphone": "any"},),
) -> Path:
    """One encoder file with card and golden vectors; versions differ a little in their projection.

    Every version is certified beside every other, unless `encoder` and `mixes` say otherwise.
    """
    spec = SPECS[modality]
    graph = _graph(modality, version)
    batch = np.stack([features.prepare(spec, window) for window in features.golden_windows(spec)])
    reference = onnx.reference.ReferenceEvaluator(_model(graph))
    outputs = reference.run(None, {"window": batch})[0]
    card = made_up_encoder.card(spec, version, outputs, space=space, encoder=encoder, tolerance=1e-4, mixes=mixes)
    model = _model(graph)
    helper.set_model_props(model, release.to_metadata(card))
    path = folder / f"{card.name}.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def _graph(modality: str, version: int) -> onnx.GraphProto:
    spec = SPECS[modality]
    shape, pool = features.shape(spec), POOL[modality]
    flat = shape[0] * (shape[1] // pool[0]) * (shape[2] // pool[1])
    projection = np.random.default_rng(7).normal(size=(flat, DIM)) / np.sqrt(flat)
    projection += np.random.default_rng(version).normal(size=projection.shape) * 0.02 / np.sqrt(flat)
    offset, scale = SCALE[modality]
    constants = {"offset": np.float32(offset), "scale": np.float32(scale), "projection": projection.astype("f4")}
    nodes = [
        helper.make_node("Cast", ["window"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["real", "offset"], ["moved"]),
        helper.make_node("Mul", ["moved", "scale"], ["scaled"]),
        helper.make_node("AveragePool", ["scaled"], ["pooled"], kernel_shape=pool, strides=pool),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "projection"], ["projected"]),
        helper.make_node("LpNormalization", ["projected"], ["embedding"], axis=-1, p=2),
        helper.make_node("Identity", ["embedding"], ["features"]),
    ]
    kind = TensorProto.UINT8 if features.dtype(spec) == np.uint8 else TensorProto.FLOAT
    return helper.make_graph(
        nodes,
        "line",
        [helper.make_tensor_value_info("window", kind, ["n", *shape])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", DIM]) for name in ("embedding", "features")],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )


def _model(graph: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


if __name__ == "__main__":
    for each in SPECS:
        print(write(DATA, each))

"""Encoder files that are published and fetched but never run: a valid card, and random weights of a chosen size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lineside import features, release

SPECS: dict[str, features.Prepare] = {
    "camera": features.CameraPrepare(frames=1, height=8, width=8),
    "microphone": features.MicrophonePrepare(samples=2048),
}
DIM = 8


def write(folder: Path, modality: str, version: int, kilobytes: int) -> Path:
    """One encoder of any modality and version; all of them are certified beside each other."""
    spec = SPECS[modality]
    windows = features.golden_windows(spec)
    inputs, outputs = release.pack_golden(windows, np.ones((len(windows), DIM), np.float32))
    card = release.Card(
        modality=modality,
        version=version,
        space="made up",
        encoder="made up",
        dim=DIM,
        precision="fp32",
        prepare=features.to_json(spec),
        prepare_sha256=features.fingerprint(spec),
        stage="none",
        golden_inputs=inputs,
        golden_outputs=outputs,
        tolerance=1e-2,
        certificate=release.Certificate(
            stage=1,
            parent="",
            embedding_drift={},
            similarity_drift={},
            gates=[],
            mixes=[dict.fromkeys(SPECS, "made up")],
        ),
    )
    model = _model(np.random.default_rng(version).normal(size=kilobytes * 256).astype(np.float32))
    helper.set_model_props(model, release.to_metadata(card))
    path = folder / f"{card.name}.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def _model(weights: np.ndarray) -> onnx.ModelProto:
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [weights.size]) for name in ("window", "embedding")
    ]
    add = helper.make_node("Add", ["window", "weights"], ["embedding"])
    graph = helper.make_graph([add], "made up", values[:1], values[1:], [numpy_helper.from_array(weights, "weights")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)

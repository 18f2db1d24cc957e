"""A real, tiny ONNX encoder with a card of ours: mean of each channel, for tests that need a file and no training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from bench import made_up_encoder
from lineside import features, release

PREPARE = {
    "camera": features.CameraPrepare(frames=1, height=8, width=8),
    "microphone": features.MicrophonePrepare(samples=2048),
    "series": features.SeriesPrepare(channels=3, samples=16),
}
PASSED = release.Gate("retention", 0.99, 0.95, at_most=False)


def card(modality: str = "camera", version: int = 1, *, space: str = "s1", precision: str = "fp32", gates=(PASSED,)):
    """A card that `release.accept` takes; its golden vectors are those of `model`."""
    spec = PREPARE[modality]
    batch = np.stack([features.prepare(spec, window) for window in features.golden_windows(spec)])
    said = {"space": space, "encoder": "any", "precision": precision, "gates": gates}
    return made_up_encoder.card(spec, version, embed(batch), stage="stage-1", tolerance=1e-4, **said)


def embed(batch: np.ndarray) -> np.ndarray:
    """What the graph computes, in numpy: (n, channels, …) to (n, channels) float32."""
    return batch.astype(np.float32).reshape(*batch.shape[:2], -1).mean(axis=2)


def model(of: release.Card) -> bytes:
    """The ONNX file of a card: Cast, then ReduceMean over all but batch and channel."""
    spec = features.from_json(of.prepare)
    shape = ["n", *features.shape(spec)]
    kind = TensorProto.UINT8 if features.dtype(spec) == np.uint8 else TensorProto.FLOAT
    axes = helper.make_tensor("axes", TensorProto.INT64, [len(shape) - 2], list(range(2, len(shape))))
    nodes = [
        helper.make_node("Cast", ["window"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["real", "axes"], ["embedding"], keepdims=0),
        helper.make_node("LpNormalization", ["embedding"], ["features"], axis=-1, p=2),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("window", kind, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", of.dim]) for name in ("embedding", "features")],
        [axes],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(made, release.to_metadata(of))
    onnx.checker.check_model(made)
    return made.SerializeToString()


def write(folder: Path, *args, **kwargs) -> Path:
    """Write the encoder of `card(*args, **kwargs)`; the file is named as `lineside export build` names it."""
    of = card(*args, **kwargs)
    path = folder / f"{of.name}{'' if of.precision == 'fp32' else '.' + of.precision}.onnx"
    path.write_bytes(model(of))
    return path

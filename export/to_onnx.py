"""A trained encoder to an ONNX graph: input `window`, outputs `embedding` and `features`, one window.

Shapes are static, a batch of 1: docs/decisions/0021-one-window-at-a-time.md.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator

import numpy as np
import onnx
import torch
from onnx import checker
from torch import Tensor, nn

from lineside import features
from lineside.features import Prepare
from trainer.attached import AttachedHead
from trainer.encoders import Encoder, Head, unit
from trainer.layers import fold
from trainer.projector import Unit

OPSET = 20  # the newest that ONNX Runtime 1.18 (JetPack 6) and 1.23 (Python 3.10) both run


class Outputs(nn.Module):
    """An encoder as a device wants it: embedding and features, both of unit norm (lineside.fusion.Encoded)."""

    def __init__(self, trunk: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.trunk, self.head = trunk, head

    def forward(self, window: Tensor) -> tuple[Tensor, Tensor]:
        x = self.trunk(window)
        return unit(self.head(x)), unit(x)


def to_onnx(encoder: Encoder, spec: Prepare) -> onnx.ModelProto:
    """The encoder as a checked ONNX model: batch norm folded into convolutions, no trace of the machine it was made on.

    Raises onnx.checker.ValidationError when the exporter made something that is not ONNX.
    """
    folded = Outputs(fold(copy.deepcopy(encoder.trunk).cpu().eval()), plain(encoder.head)).eval()
    example = torch.from_numpy(np.zeros((1, *features.shape(spec)), features.dtype(spec)))
    with quiet():
        program = torch.onnx.export(
            folded,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["window"],
            output_names=["embedding", "features"],
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    strip(model)
    checker.check_model(model, full_check=True)
    return model


def plain(head: Head) -> nn.Module:
    """The same map with weight and bias as two constants, so that the graph need not cut one out of the other.

    Behind an attached sensor's head stands the folded one that brings it into the base's space.
    """
    linear = nn.Linear(head.weight.shape[1] - 1, head.weight.shape[0])
    with torch.no_grad():
        linear.weight.copy_(head.weight[:, :-1])
        linear.bias.copy_(head.weight[:, -1])
    return nn.Sequential(linear, Unit(), *head.after) if isinstance(head, AttachedHead) else linear


def strip(model: onnx.ModelProto) -> None:
    """Take out what the exporter wrote of source files and paths: it is nobody's business and makes files differ."""
    parts = (model.graph.node, model.graph.input, model.graph.output, model.graph.initializer, model.graph.value_info)
    for part in parts:
        for item in part:
            item.ClearField("doc_string")
            item.ClearField("metadata_props")
    model.graph.ClearField("metadata_props")
    model.ClearField("metadata_props")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Exporter and quantiser report every pass that they run; errors still come as exceptions."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)

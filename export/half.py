"""An encoder in fp16: weights of half the size, and layers that a GPU's tensor cores run at twice the speed and more.

Layers, and what only passes their numbers on, compute in half precision. Whatever normalises stays in fp32, because
squares and raw readings leave fp16's range (65504) and its 11 bits: the scaling of inputs, and the norms of outputs.
Inputs and outputs keep their types, so that the card holds for every precision.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

LAYERS = ("Conv", "Gemm", "MatMul")
FOLLOW = ("Relu", "Add", "AveragePool", "MaxPool", "ReduceMean", "ReduceMax", "Reshape", "Flatten", "Concat")


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same encoder with its layers in fp16. Raises onnx.checker.ValidationError when the graph is not whole."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.value_info[:], made.graph.node[:]
    rewriter = _Rewriter(made.graph)
    for node in model.graph.node:
        rewriter.add(node)
    used = {name for node in made.graph.node for name in node.input}
    kept = [tensor for tensor in made.graph.initializer if tensor.name in used]
    del made.graph.initializer[:]
    made.graph.initializer.extend(kept)
    onnx.checker.check_model(made, full_check=True)
    return made


class _Rewriter:
    """Writes nodes anew, in order, each with its inputs in the precision that it computes in."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._constants = {each.name: each for each in graph.initializer if each.data_type == TensorProto.FLOAT}
        self._others = {each.name for each in graph.initializer} - self._constants.keys()
        self._half: set[str] = set()  # what nodes give in fp16
        self._made: dict[tuple[str, bool], str] = {}  # another precision's copy of a constant or a value

    def add(self, node: NodeProto) -> None:
        """One node, behind the casts that it needs."""
        given = [name for name in node.input if name and name not in self._constants and name not in self._others]
        follows = node.op_type in FOLLOW and bool(given) and all(name in self._half for name in given)
        half = node.op_type in LAYERS or follows
        new = NodeProto()
        new.CopyFrom(node)
        del new.input[:]
        new.input.extend(self._in(name, half) for name in node.input)
        self._graph.node.append(new)
        if half:
            self._half.update(node.output)

    def _in(self, name: str, half: bool) -> str:
        if name in self._constants:
            return self._constant(name) if half else name
        if name in self._others or not name or (name in self._half) == half:
            return name
        return self._cast(name, half)

    def _constant(self, name: str) -> str:
        if (name, True) not in self._made:
            self._made[name, True] = f"{name}.half"
            values = numpy_helper.to_array(self._constants[name]).astype(np.float16)
            self._graph.initializer.append(numpy_helper.from_array(values, f"{name}.half"))
        return self._made[name, True]

    def _cast(self, name: str, half: bool) -> str:
        if (name, half) not in self._made:
            self._made[name, half] = f"{name}.{'half' if half else 'single'}"
            to = TensorProto.FLOAT16 if half else TensorProto.FLOAT
            self._graph.node.append(helper.make_node("Cast", [name], [self._made[name, half]], to=to))
        return self._made[name, half]

"""Scales that stay from one INT8 version to the next, so that most bytes of its weights stay too.

A retrained weight that moves by less than half a step of an unchanged scale is the same byte; under a scale of its
own every byte may be another one. An old scale that does not fit any more costs precision: a channel whose weights
would lose WORSE times as much under the old scale as under its own gets its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

WORSE = 1.3
STEPS = 127


@dataclass(frozen=True)
class Weight:
    """The quantised constant of one layer: its name in fp32, those of its bytes and scales, and its channels' axis."""

    name: str
    values: str
    scales: str
    axis: int


def in_float(model: onnx.ModelProto) -> set[str]:
    """Names of the weights that an INT8 encoder left in float."""
    quantised = {weight.name for weight in weights(model)}
    return {tensor.name for tensor in model.graph.initializer} - quantised


def weights(model: onnx.ModelProto) -> list[Weight]:
    """The quantised weights of an INT8 encoder."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [
        Weight(node.input[0].removesuffix("_quantized"), node.input[0], node.input[1], _axis(node))
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in constants
    ]


def keep(model: onnx.ModelProto, fp32: onnx.ModelProto, like: onnx.ModelProto) -> None:
    """Quantise the weights of `model`, the INT8 of `fp32`, with the scales that `like` has, channel by channel."""
    new, old, floats = _constants(model), _constants(like), _constants(fp32)
    before = {weight.values: weight for weight in weights(like)}
    for weight in weights(model):
        exact = floats[weight.name]
        kept = before.get(weight.values)
        if kept is not None and _array(old[kept.scales]).shape == _array(new[weight.scales]).shape:
            fit = fitting(_array(exact), _array(new[weight.scales]), _array(old[kept.scales]), weight.axis)
            _put(new[weight.scales], fit)
            _put(new[weight.values], steps(_array(exact), fit, weight.axis))


def fitting(
    exact: NDArray[np.float32], own: NDArray[np.float32], old: NDArray[np.float32], axis: int
) -> NDArray[np.float32]:
    """For each channel of a weight along `axis` the old scale, or its own where the old one errs WORSE times as much.

    >>> rows = np.array([[1.272, 0.503], [2.54, 1.0]], np.float32)
    >>> fitting(rows, np.float32([0.01002, 0.02]), np.float32([0.0101, 0.01]), 0).round(4).tolist()
    [0.010099999606609344, 0.019999999552965164]
    """
    return np.where(_error(exact, old, axis) <= WORSE * _error(exact, own, axis), old, own)


def steps(exact: NDArray[np.float32], scale: NDArray[np.float32], axis: int) -> NDArray[np.int8]:
    """A weight in whole steps of each channel's scale."""
    return np.asarray(np.clip(np.rint(exact / _along(scale, exact.ndim, axis)), -STEPS, STEPS), np.int8)


def _error(exact: NDArray[np.float32], scale: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """RMS error of each channel under a scale."""
    wrong = steps(exact, scale, axis) * _along(scale, exact.ndim, axis) - exact
    return np.asarray(np.sqrt((wrong**2).mean(axis=tuple(k for k in range(exact.ndim) if k != axis % exact.ndim))))


def _along(scale: NDArray[np.float32], ndim: int, axis: int) -> NDArray[np.float32]:
    return scale.reshape([-1 if k == axis % ndim else 1 for k in range(ndim)])


def _axis(node: onnx.NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)


def _constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def _array(tensor: onnx.TensorProto) -> NDArray[np.float32]:
    return np.asarray(numpy_helper.to_array(tensor))


def _put(tensor: onnx.TensorProto, values: NDArray[np.generic]) -> None:
    tensor.CopyFrom(numpy_helper.from_array(values.astype(numpy_helper.to_array(tensor).dtype), tensor.name))

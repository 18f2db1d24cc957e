"""An INT8 encoder as a CPU runs it fastest: the same graph, its activations as unsigned bytes.

An encoder leaves with symmetric activations, signed with a zero point of 0, because TensorRT takes no others. ONNX
Runtime's integer kernels on a CPU want bytes without a sign, and take a ReLU into the convolution before it only where
the zero point is the smallest byte. Nothing but zero points needs to change for that: 0 of signed bytes is 0 of
unsigned ones behind a ReLU, where nothing is negative, and 128 elsewhere. Scales stay, and with them every number that
a signed byte can hold; behind a ReLU the bytes 128 to 255 are new, and hold what would have been cut off.
"""

from __future__ import annotations

from lineside.onnx_graph import INT8, UINT8, nodes, tensors

QUANTIZE, RELU = "QuantizeLinear", "Relu"


def unsigned(model: bytes) -> bytes:
    """An ONNX file with every signed zero point of an activation made unsigned; without such, the file as it is.

    Raises ValueError for bytes that are no protobuf.
    """
    view = memoryview(model)
    graph = nodes(view)
    rectified = {name for node in graph if node.op == RELU for name in node.outputs}
    quantised = [node.inputs for node in graph if node.op == QUANTIZE and len(node.inputs) == 3]
    zeros = {zero: 0 if what in rectified else 128 for what, _, zero in quantised}
    changed = bytearray(model)
    for tensor in tensors(view):
        if tensor.name in zeros and tensor.data_type == INT8 and bytes(view[tensor.start : tensor.end]) == b"\0":
            changed[tensor.type_at], changed[tensor.start] = UINT8, zeros[tensor.name]
    return bytes(changed)

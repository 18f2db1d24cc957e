"""Does the device compute what the trainer learned? Both run on the same prepared windows and are compared."""

from __future__ import annotations

import statistics
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edge.encoder import Encoder as DeviceEncoder
from lineside import features
from lineside.clock import Clock
from lineside.errors import GateError
from lineside.fusion import Encoded
from lineside.release import Gate
from trainer.encoders import Encoder
from trainer.evaluate import encode

MAX_DIFFERENCE = 1e-4
MEAN_COSINE = {"fp16": 0.999, "int8": 0.99}
BATCH = 16


class Parity(msgspec.Struct, frozen=True):
    """The device's embeddings and features beside the trainer's, over `windows` real windows and the golden ones.

    INT8 is calibrated for real windows, so `mean_cosine` is of these, and of the worse output of each; `max_difference`
    is of all.
    """

    windows: int
    max_difference: float
    mean_cosine: float
    worst_cosine: float


def compare(encoder: Encoder, device: DeviceEncoder, windows: NDArray[np.generic]) -> Parity:
    """Run trainer and device over real prepared windows (n, *shape) and the golden ones."""
    golden = golden_inputs(device.spec)
    want, got = encode(encoder, windows), _run(device, windows)
    outputs = [*_outputs(want, got), *_outputs(encode(encoder, golden), _run(device, golden))]
    difference = max(float(np.abs(a - b).max()) for a, b in outputs)
    cosines = np.minimum(*((a * b).sum(axis=1) for a, b in _outputs(want, got)))  # all of unit norm
    return Parity(len(windows), difference, float(cosines.mean()), float(cosines.min()))


def _outputs(want: Encoded, got: Encoded) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """What the encoder itself gives, of trainer and device; a look is of the windows alone."""
    return [(want.embedding, got.embedding), (want.features, got.features)]


def golden_inputs(spec: features.Prepare) -> NDArray[np.generic]:
    """The golden windows, prepared."""
    return np.stack([features.prepare(spec, window) for window in features.golden_windows(spec)])


def _run(device: DeviceEncoder, windows: NDArray[np.generic]) -> Encoded:
    """What the device gives, in batches that do not divide n, as it may see them."""
    done = [device.encode(windows[i : i + BATCH]) for i in range(0, len(windows), BATCH)]
    return Encoded(np.concatenate([one.embedding for one in done]), np.concatenate([one.features for one in done]))


def gate(precision: str, parity: Parity) -> Gate:
    """The gate of a precision: fp32 must agree number by number, the others in direction."""
    if precision == "fp32":
        return Gate("parity fp32", parity.max_difference, MAX_DIFFERENCE, True)
    return Gate(f"parity {precision}", parity.mean_cosine, MEAN_COSINE[precision], False)


def must_pass(name: str, judged: Gate) -> None:
    """Raises GateError naming file, number and limit."""
    if not judged.passed:
        bound = "at most" if judged.at_most else "at least"
        told = f"gate `{judged.name}` is {judged.value:.4g}, must be {bound} {judged.limit:.4g}"
        mend = "try another version of the exporter" if "fp32" in judged.name else "export fp32 only (--precision fp32)"
        raise GateError(name, told, mend)


def unoptimised(path: Path, windows: NDArray[np.generic]) -> NDArray[np.float32]:
    """Embeddings of an encoder file run node by node as written: another road through the same sums."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    rows = [session.run(["embedding"], {"window": window[None]})[0] for window in windows]
    return np.concatenate(rows).astype(np.float32)


def latency_ms(device: DeviceEncoder, clock: Clock, runs: int = 60) -> float:
    """Median time of one window, milliseconds."""
    window = golden_inputs(device.spec)[:1]
    times = []
    for _ in range(runs):
        began = clock.now_ns()
        device.embed(window)
        times.append((clock.now_ns() - began) / 1e6)
    return statistics.median(times[runs // 6 :])

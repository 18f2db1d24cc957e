"""Encoders of realistic size, for `lineside edge bench --encoders`: what a plant with hard pictures would bring.

`python -m bench.realistic_encoders --out var/realistic` builds MobileNetV2 of width 1.3 on one picture of 224 x 224
(Sandler et al., 2018, table 2) and a convolutional network of seven layers on 64 bands of log-mel, both with random
weights, in FP32 and in INT8. They see nothing: they cost what such encoders cost. Their cards are whole, so that a
device takes them. Both have ReLU where the paper has ReLU6: it is what edge.unsigned takes into the convolution before.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bench import made_up_encoder
from edge.encoder import Encoder
from export.bench import latencies
from export.quantize import OPS, to_int8
from export.to_onnx import to_onnx
from lineside import features, release
from lineside.clock import SystemClock
from lineside.features import CameraPrepare, HalvedPrepare, MicrophonePrepare, RawPrepare
from trainer.encoders import Encoder as Trained
from trainer.encoders import Head

CAMERAS = {"halved": HalvedPrepare, "area": CameraPrepare}
DIM, WIDTH, SEED = 128, 1.3, 1
BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
SOUND = ((32, 2), (64, 1), (64, 2), (96, 1), (96, 2), (128, 1), (128, 2))  # channels, stride: about 55 MMAC


def main() -> None:
    """Write {modality}-{version}.onnx and {modality}-{version}.int8.onnx for both modalities."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("var/realistic"))
    parser.add_argument("--camera", choices=CAMERAS, default="halved", help="how pictures are resized")
    parser.add_argument("--version", type=int, default=1, help="of the encoders; another one has other weights")
    parser.add_argument("--own", action="store_true", help="our own compact trunks instead, on two pictures of 96 x 96")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED * asked.version)
    camera = CAMERAS[asked.camera]() if asked.own else CAMERAS[asked.camera](frames=1, height=224, width=224)
    written: dict[tuple[str, str], Path] = {}
    for spec, trunk in ((camera, mobilenet), (MicrophonePrepare(), listener)):
        modality = features.modality(spec)
        model = to_onnx(Trained(spec, DIM).eval() if asked.own else encoder_on(spec, trunk()), spec)
        for precision, made in (("fp32", model), ("int8", to_int8(model, _golden(spec)).model)):
            path = asked.out / f"{modality}-{asked.version}{'' if precision == 'fp32' else '.int8'}.onnx"
            onnx.save(_with_card(made, spec, precision, asked.version), path)
            size = f"{parameters(model) / 1e6:.2f} M parameters, {mmac(model):.0f} MMAC"
            print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, {size}")
            written[modality, precision] = path
    times = latencies({key: Encoder.load(path) for key, path in written.items()}, SystemClock())
    for (modality, precision), ms in times.items():
        faster = times[modality, "fp32"] / ms
        print(f"{modality} {precision}: {ms:.3f} ms on one thread, {faster:.2f} times as fast as fp32")


def parameters(model: onnx.ModelProto) -> int:
    """Numbers that a float graph holds."""
    return sum(int(np.prod(each.dims)) for each in model.graph.initializer)


def mmac(model: onnx.ModelProto) -> float:
    """Millions of products of the convolutions and the head, for one window."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in [*graph.value_info, *graph.output]}
    weights = {each.name: list(each.dims) for each in graph.initializer}
    total = 0
    for node in graph.node:
        kernel = next((weights[name] for name in node.input if len(weights.get(name, ())) > 1), None)
        if node.op_type in OPS and kernel is not None:
            places = int(np.prod(shapes[node.output[0]][2:])) if node.op_type == "Conv" else 1
            total += int(np.prod(kernel)) * places
    return total / 1e6


class Inverted(nn.Module):
    """Expand, filter each channel, project; the input is added where the shape allows it."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = inputs * expand
        parts = [] if expand == 1 else [_conv(inputs, wide, 1, 1)]
        parts += [_conv(wide, wide, 3, stride, groups=wide)]
        self.body = nn.Sequential(*parts, nn.Conv2d(wide, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.body(x)
        return x + made if self.adds else made


class Pixels(nn.Module):
    """Bytes to numbers about 0; normalisation stands in the graph."""

    def forward(self, window: Tensor) -> Tensor:
        return window.float() * (1 / 127.5) - 1.0


def mobilenet() -> nn.Sequential:
    """(batch, 3, 224, 224) pixels to 1664 features; about 510 M products."""
    layers: list[nn.Module] = [Pixels(), _conv(3, _eighths(32), 3, 2)]
    inputs = _eighths(32)
    for expand, channels, count, stride in BLOCKS:
        for k in range(count):
            layers.append(Inverted(inputs, _eighths(channels), stride if k == 0 else 1, expand))
            inputs = _eighths(channels)
    return nn.Sequential(*layers, _conv(inputs, _eighths(1280), 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def listener() -> nn.Sequential:
    """(batch, 1, 64, 59) log-mel power to 128 features."""
    layers: list[nn.Module] = []
    inputs = 1
    for channels, stride in SOUND:
        layers.append(_conv(inputs, channels, 3, stride))
        inputs = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _eighths(channels: int) -> int:
    """Channels at this width, a multiple of 8."""
    return max(8, int(channels * WIDTH + 4) // 8 * 8)


def _conv(inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def encoder_on(spec: RawPrepare, trunk: nn.Sequential) -> Trained:
    """Our own encoder with another trunk."""
    encoder = Trained(spec, DIM)
    encoder.trunk = trunk.eval()
    with torch.no_grad():
        count = trunk(torch.zeros(1, *features.shape(spec))).shape[1]
    encoder.head = Head(count, DIM)
    return encoder.eval()


def _golden(spec: RawPrepare) -> NDArray[np.generic]:
    return np.stack([features.prepare(spec, window) for window in features.golden_windows(spec, 8)])


def _with_card(model: onnx.ModelProto, spec: RawPrepare, precision: str, version: int) -> onnx.ModelProto:
    windows = features.golden_windows(spec)
    batch = np.stack([features.prepare(spec, window) for window in windows])
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    made = np.concatenate([session.run(["embedding"], {"window": window[None]})[0] for window in batch])
    card = made_up_encoder.card(spec, version, made, space="random", encoder="random", precision=precision)
    onnx.helper.set_model_props(model, release.to_metadata(card))
    return model


if __name__ == "__main__":
    main()

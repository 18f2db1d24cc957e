"""One compact encoder per modality: prepared window in, unit-norm embedding out (and, on a device, unit-norm features).

An encoder is a trunk (convolutions, learned in the stage that brings the modality, then frozen) and a linear head
(which later stages move). Normalisation stands in the graph. Only convolution, batch norm, ReLU, pooling, matrix
product and division are used, which TensorRT parses.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from lineside.features import CameraPrepare, MicrophonePrepare, Prepare, SeriesPrepare, modality, shape

LOG_MEL_STD_FLOOR = 0.5  # natural-log units: a mel band that never moved must not turn a whisper into a thunderclap


class Head(nn.Module):
    """Linear map of homogeneous features [x; 1], so that the bias is protected with the rest of the weight."""

    def __init__(self, features: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim, features + 1))  # last column: bias
        nn.init.normal_(self.weight, std=features**-0.5)
        nn.init.zeros_(self.weight[:, -1])

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight[:, :-1], self.weight[:, -1])  # (batch, dim)


def unit(x: Tensor) -> Tensor:
    """Rows of length 1."""
    return x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(1e-12)


class Encoder(nn.Module):
    """Trunk and head; `features` are the head's inputs, whose second moments protect what was learned."""

    def __init__(self, spec: Prepare, dim: int) -> None:
        super().__init__()
        self.frozen = False
        self.trunk = TRUNKS[modality(spec)](spec)
        if len(shape(spec)) == 3:  # pictures: almost twice as fast on a CPU with channels innermost
            self.trunk.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        with torch.no_grad():
            self.trunk.eval()
            count = self.trunk(torch.zeros(1, *shape(spec))).shape[1]
        self.head = Head(count, dim)

    def features(self, window: Tensor) -> Tensor:
        return self.trunk(window)  # (batch, features)

    def forward(self, window: Tensor) -> Tensor:
        return unit(self.head(self.trunk(window)))  # (batch, dim)

    def fit(self, windows: Tensor) -> None:
        """Set the normalisation inside the graph from the first windows (n, *shape) of this modality."""
        self.trunk.fit(windows)

    def freeze_trunk(self) -> None:
        """From now on only the head may move; batch norm keeps its statistics, also in training."""
        self.frozen = True
        self.trunk.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Encoder:
        super().train(mode)
        if self.frozen:
            self.trunk.eval()
        return self


class Encoders(nn.ModuleDict):
    """One encoder a modality."""

    def __getitem__(self, modality: str) -> Encoder:
        return cast(Encoder, super().__getitem__(modality))


def conv2d(inputs: int, outputs: int, stride: int, kernel: int = 3, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class Residual(nn.Module):
    """Depthwise 3x3, pointwise 1x1, and the input added: few weights, few products (MobileNet's separable block)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv2d(channels, channels, 1, groups=channels), conv2d(channels, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def down(inputs: int, outputs: int) -> nn.Sequential:
    """Halve the picture and change its channels, separably."""
    return nn.Sequential(conv2d(inputs, inputs, 2, groups=inputs), conv2d(inputs, outputs, 1, 1))


class CameraTrunk(nn.Module):
    """(batch, 3 * frames, height, width) pixels 0..255 to features that keep a coarse 3 x 3 sense of place."""

    def __init__(self, spec: CameraPrepare) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv2d(3 * spec.frames, 16, 2),  # two gentle steps rather than one of four: a pixel's shift is no news
            conv2d(16, 32, 2),
            Residual(32),
            down(32, 64),
            Residual(64),
            down(64, 128),
            Residual(128),
            conv2d(128, 32, 1, 1),
        )
        with torch.no_grad():
            _, _, height, width = self.body.eval()(torch.zeros(1, *shape(spec))).shape
        self.pool = nn.AvgPool2d((max(1, height // 3), max(1, width // 3)))

    def forward(self, window: Tensor) -> Tensor:
        return torch.flatten(self.pool(self.body(window.float() * (1 / 127.5) - 1.0)), 1)

    def fit(self, windows: Tensor) -> None:
        """Pixels have a scale of their own."""


class MicrophoneTrunk(nn.Module):
    """(batch, 1, mels, frames) log-mel power to features that keep four frequency ranges apart."""

    def __init__(self, spec: MicrophonePrepare) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(1, 1, spec.mels, 1))
        self.register_buffer("std", torch.ones(1, 1, spec.mels, 1))
        self.body = nn.Sequential(
            conv2d(1, 16, 2), conv2d(16, 32, 2), Residual(32), down(32, 64), Residual(64), down(64, 64)
        )

    def forward(self, window: Tensor) -> Tensor:
        x = self.body((window - self.mean) / self.std)  # (batch, 64, mels / 16, frames / 16)
        return torch.flatten(x.mean(dim=3), 1)

    def fit(self, windows: Tensor) -> None:
        self.mean.copy_(windows.mean(dim=(0, 1, 3)).reshape(self.mean.shape))
        self.std.copy_(windows.std(dim=(0, 1, 3)).clamp(min=LOG_MEL_STD_FLOOR).reshape(self.std.shape))


class SeriesTrunk(nn.Module):
    """(batch, channels, samples) raw values to the mean and the peak of what the filters answer."""

    def __init__(self, spec: SeriesPrepare) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(1, spec.channels, 1))
        self.register_buffer("std", torch.ones(1, spec.channels, 1))
        widths = [spec.channels, 32, 64, 96, 96]
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.Conv1d(inputs, outputs, 7, 2, 3, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()]
        self.body = nn.Sequential(*layers)

    def forward(self, window: Tensor) -> Tensor:
        x = self.body((window - self.mean) / self.std)  # (batch, 96, samples / 16)
        return torch.cat([x.mean(dim=2), x.amax(dim=2)], dim=1)

    def fit(self, windows: Tensor) -> None:
        mean, std = windows.mean(dim=(0, 2)), windows.std(dim=(0, 2))
        floor = 1e-3 * mean.abs() + 1e-6  # a channel that never moved has no scale of its own
        self.mean.copy_(mean.reshape(self.mean.shape))
        self.std.copy_(torch.maximum(std, floor).reshape(self.std.shape))


TRUNKS: dict[str, Callable[..., nn.Module]] = {
    "camera": CameraTrunk,
    "microphone": MicrophoneTrunk,
    "series": SeriesTrunk,
}

"""One compact encoder per modality: prepared window in, unit-norm embedding out (and, on a device, unit-norm features).

An encoder is a trunk (convolutions, learned in the stage that brings the modality, then frozen unless the plan says
otherwise; or random features, never learned) and a linear head (which later stages move). Normalisation stands in the
graph. Only convolution, batch norm, ReLU, pooling, matrix product and division are used, which TensorRT parses.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from lineside.features import CameraPrepare, FeaturesPrepare, MicrophonePrepare, Prepare, SeriesPrepare, modality, shape
from trainer import branches, layers
from trainer.plan import Moves

SILENCE = 1e-3  # of a channel's power: silence has no shape
LOG_MEL_STD_FLOOR = 0.5  # natural-log units: a mel band that never moved must not turn a whisper into a thunderclap


class Head(nn.Module):
    """Linear map of homogeneous features [x; 1], so that the bias is protected with the rest of the weight."""

    def __init__(self, features: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim, features + 1))  # last column: bias
        nn.init.normal_(self.weight, std=features**-0.5)
        nn.init.zeros_(self.weight[:, -1])

    @property
    def dim(self) -> int:
        """Width of what comes out."""
        return len(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight[:, :-1], self.weight[:, -1])  # (batch, dim)


def unit(x: Tensor) -> Tensor:
    """Rows of length 1."""
    return x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(1e-12)


class Encoder(nn.Module):
    """Trunk and head; `features` are the head's inputs, whose second moments protect what was learned."""

    def __init__(self, spec: Prepare, dim: int, width: int = 0) -> None:
        """A trunk that learns, or, with a `width`, one of that many random features."""
        super().__init__()
        self.width, self.rank = width, 0
        self.moves: Moves = "head" if width else "all"
        self.norms_learn = not width
        self.trunk = FixedTrunk(spec, width) if width else TRUNKS[modality(spec)](spec)
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

    def let_move(self, moves: Moves, norms_learn: bool) -> None:
        """From now on only this much learns; unless `norms_learn`, batch norm keeps its statistics, scale and shift."""
        self.moves, self.norms_learn = moves, norms_learn and moves == "all"
        self.head.requires_grad_(moves != "adapters")
        if moves == "adapters":
            branches.let_learn(self.trunk)
            layers.freeze_norms(self.trunk)
        elif self.norms_learn:
            self.trunk.requires_grad_(True)
        else:
            layers.let_move(self.trunk, layers.protectable(self.trunk, moves))
            layers.freeze_norms(self.trunk)
        self.train(self.training)

    def adapt(self, rank: int) -> None:
        """Put a fresh branch of this rank beside every convolution that mixes channels; what comes out stays."""
        branches.insert(self.trunk, rank)
        self.rank = rank

    def merge(self) -> None:
        """Take the branches into the weights; what comes out stays to rounding."""
        branches.merge(self.trunk)
        self.rank = 0

    def base(self) -> Encoder:
        """A copy without branches: the encoder that they stand on."""
        made = copy.deepcopy(self)
        branches.drop(made.trunk)
        made.rank = 0
        return made

    def train(self, mode: bool = True) -> Encoder:
        super().train(mode)
        if not self.norms_learn:
            layers.keep_norms(self.trunk)
        return self


class Encoders(nn.ModuleDict):
    """One encoder a modality."""

    def __getitem__(self, modality: str) -> Encoder:
        return cast(Encoder, super().__getitem__(modality))

    def get(self, modality: str) -> Encoder | None:
        """The encoder of a modality, None where there is none."""
        return cast("Encoder | None", self._modules.get(modality))

    def items(self) -> Iterator[tuple[str, Encoder]]:  # type: ignore[override]
        return ((modality, self[modality]) for modality in self)


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


class Standard(nn.Module):
    """(x - mean) / std of the windows it was fitted to, for each row along the axes where `sizes` is not 1."""

    def __init__(self, sizes: tuple[int, ...], floor: float, relative: float = 0.0) -> None:
        """No std is below `floor` + `relative` * |mean|: what never moved has no scale of its own."""
        super().__init__()
        self.axes = (0, *(k + 1 for k, size in enumerate(sizes) if size == 1))
        self.floor, self.relative = floor, relative
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(1, *sizes))
        self.register_buffer("std", torch.ones(1, *sizes))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std

    def fit(self, windows: Tensor) -> None:
        mean, std = windows.mean(dim=self.axes, keepdim=True), windows.std(dim=self.axes, keepdim=True)
        self.mean.copy_(mean)
        self.std.copy_(torch.maximum(std, self.relative * mean.abs() + self.floor))


def mel_scale(spec: MicrophonePrepare) -> Standard:
    return Standard((1, spec.mels, 1), LOG_MEL_STD_FLOOR)


def series_scale(spec: SeriesPrepare) -> Standard:
    return Standard((spec.channels, 1), 1e-6, 1e-3)


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
        self.scale = mel_scale(spec)
        self.body = nn.Sequential(
            conv2d(1, 16, 2), conv2d(16, 32, 2), Residual(32), down(32, 64), Residual(64), down(64, 64)
        )

    def forward(self, window: Tensor) -> Tensor:
        x = self.body(self.scale(window))  # (batch, 64, mels / 16, frames / 16)
        return torch.flatten(x.mean(dim=3), 1)

    def fit(self, windows: Tensor) -> None:
        self.scale.fit(windows)


class SeriesTrunk(nn.Module):
    """(batch, channels, samples) raw values to the mean and the peak of what the filters answer."""

    def __init__(self, spec: SeriesPrepare) -> None:
        super().__init__()
        self.scale = series_scale(spec)
        widths = [spec.channels, 32, 64, 96, 96]
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.Conv1d(inputs, outputs, 7, 2, 3, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()]
        self.body = nn.Sequential(*layers)

    def forward(self, window: Tensor) -> Tensor:
        x = self.body(self.scale(window))  # (batch, 96, samples / 16)
        return torch.cat([x.mean(dim=2), x.amax(dim=2)], dim=1)

    def fit(self, windows: Tensor) -> None:
        self.scale.fit(windows)


class FeaturesTrunk(nn.Module):
    """(batch, width) features of a backbone, each brought to mean 0 and deviation 1."""

    def __init__(self, spec: FeaturesPrepare) -> None:
        super().__init__()
        self.scale = Standard((spec.width,), 1e-6)

    def forward(self, window: Tensor) -> Tensor:
        return self.scale(window)

    def fit(self, windows: Tensor) -> None:
        self.scale.fit(windows)


class FixedTrunk(nn.Module):
    """Random ReLU features of a coarse look at the window, never learned: (batch, width).

    Random features approximate a kernel of the window (Rahimi and Recht, 2007; the arc-cosine kernel of Cho and Saul,
    2009), so that a linear head on them can tell apart what a learned trunk of the first stage never had to. Since
    they never move, a head's second moments stay true for good (trainer.solved).
    """

    def __init__(self, spec: Prepare, width: int) -> None:
        super().__init__()
        self.look = LOOKS[modality(spec)](spec)
        with torch.no_grad():
            inputs = self.look(torch.zeros(2, *shape(spec))).shape[1]
        self.directions: Tensor
        self.register_buffer("directions", torch.randn(inputs, width))

    def forward(self, window: Tensor) -> Tensor:
        x = self.look(window)
        return functional.relu(unit(x - x.mean(dim=1, keepdim=True)) @ self.directions)

    def fit(self, windows: Tensor) -> None:
        self.look.fit(windows)


class CameraLook(nn.Module):
    """Pixels averaged to about 14 x 14."""

    def __init__(self, spec: CameraPrepare) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d((max(1, spec.height // 14), max(1, spec.width // 14)))

    def forward(self, window: Tensor) -> Tensor:
        return torch.flatten(self.pool(window.float() * (1 / 127.5) - 1.0), 1)

    def fit(self, windows: Tensor) -> None:
        """Pixels have a scale of their own."""


class MicrophoneLook(nn.Module):
    """Log-mel averaged to about 20 bands and 14 times."""

    def __init__(self, spec: MicrophonePrepare) -> None:
        super().__init__()
        self.scale = mel_scale(spec)
        _, mels, frames = shape(spec)
        self.pool = nn.AvgPool2d((max(1, mels // 20), max(1, frames // 14)))

    def forward(self, window: Tensor) -> Tensor:
        return torch.flatten(self.pool(self.scale(window)), 1)

    def fit(self, windows: Tensor) -> None:
        self.scale.fit(windows)


class SeriesLook(nn.Module):
    """Each channel averaged to about 16 times, and the log power of about 32 of its bands."""

    def __init__(self, spec: SeriesPrepare) -> None:
        super().__init__()
        self.scale = series_scale(spec)
        self.pool = nn.AvgPool1d(max(1, spec.samples // 16))
        self.bands = nn.AvgPool1d(max(1, (spec.samples // 2 - 1) // 32))
        self.waves: Tensor
        time, bins = torch.arange(spec.samples), torch.arange(1, spec.samples // 2)
        phase = 2 * math.pi * (time[:, None] * bins % spec.samples).double() / spec.samples  # in floats digits are lost
        window = torch.hann_window(spec.samples, dtype=torch.float64)[:, None]
        self.register_buffer("waves", torch.cat([window * phase.cos(), window * phase.sin()], dim=1).float())

    def forward(self, window: Tensor) -> Tensor:
        x = self.scale(window)  # (batch, channels, samples)
        cosine, sine = (x @ self.waves).chunk(2, dim=2)  # a Fourier transform as a product: TensorRT has no other
        power = self.bands(cosine * cosine + sine * sine) / self.waves.shape[0]
        return torch.cat([torch.flatten(self.pool(x), 1), torch.flatten(torch.log(power + SILENCE), 1)], dim=1)

    def fit(self, windows: Tensor) -> None:
        self.scale.fit(windows)


TRUNKS: dict[str, Callable[..., nn.Module]] = {
    "camera": CameraTrunk,
    "microphone": MicrophoneTrunk,
    "series": SeriesTrunk,
    "features": FeaturesTrunk,
}
LOOKS: dict[str, Callable[..., nn.Module]] = {
    "camera": CameraLook,
    "microphone": MicrophoneLook,
    "series": SeriesLook,
    "features": FeaturesTrunk,
}

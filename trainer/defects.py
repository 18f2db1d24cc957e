"""Generic defects and weak changes, made on prepared windows while learning.

Contrast among normal windows alone may teach an encoder to ignore what is wrong with one: nothing normal ever
differs in that way. So each batch also shows what a window might look or sound like when something is wrong (after
CutPaste, Li et al., CVPR 2021, widened to sound and series), and what must make no difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

SHAKE, LATER = 0.01, 4

Change = Callable[[Tensor, np.random.Generator], Tensor]


def weakly(kind: str, windows: Tensor, chance: Sequence[np.random.Generator]) -> Tensor:
    """A harmless change of each window (n, *shape), by its own generator: light, gain, a little noise."""
    return _each(WEAK[kind], windows, chance)


def defective(kind: str, windows: Tensor, chance: Sequence[np.random.Generator]) -> Tensor:
    """One defect, drawn from the row of `DEFECTS` for this kind of sensor, in each window (n, *shape)."""
    kinds = DEFECTS[kind]
    return _each(lambda window, rng: kinds[rng.integers(len(kinds))](window, rng), windows, chance)


def _each(change: Change, windows: Tensor, chance: Sequence[np.random.Generator]) -> Tensor:
    windows = windows.float()
    changed = [change(window, rng) for window, rng in zip(windows, chance, strict=True)]
    return torch.stack(changed) if changed else windows


def _noise(like: Tensor, rng: np.random.Generator) -> Tensor:
    drawn = rng.standard_normal(tuple(like.shape), dtype=np.float32)
    return torch.from_numpy(drawn).to(like.device)


def _box(height: int, width: int, rng: np.random.Generator, low: float, high: float) -> tuple[int, int, int, int]:
    """Top, left, height and width of a patch whose sides are a share low..high of the picture's."""
    h, w = (max(2, round(side * rng.uniform(low, high))) for side in (height, width))
    return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w


# Pictures: (channels, height, width), 0..255; all frames of a window suffer the same.


def light(picture: Tensor, rng: np.random.Generator) -> Tensor:
    """A little more or less light, and a shake of up to 1 % of the picture."""
    _, height, width = picture.shape
    if most := round(SHAKE * min(height, width)):
        wide = functional.pad(picture[None], (most,) * 4, mode="replicate")[0]
        top, left = rng.integers(2 * most + 1, size=2)
        picture = wide[:, top : top + height, left : left + width]
    return (picture * rng.uniform(0.93, 1.07) + rng.uniform(-5, 5) + 2 * _noise(picture, rng)).clamp(0, 255)


def moved_patch(picture: Tensor, rng: np.random.Generator) -> Tensor:
    """A patch, mirrored or not, pasted elsewhere: a part where none belongs."""
    _, height, width = picture.shape
    top, left, h, w = _box(height, width, rng, 0.12, 0.4)
    patch = picture[:, top : top + h, left : left + w]
    patch = patch.flip([(1,), (2,), (1, 2)][rng.integers(3)]) + rng.uniform(-25, 25)
    top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    changed = picture.clone()
    changed[:, top : top + h, left : left + w] = patch
    return changed.clamp(0, 255)


def blotch(picture: Tensor, rng: np.random.Generator) -> Tensor:
    """A soft dark or bright spot: dirt on the lens, oil, glare."""
    _, height, width = picture.shape
    y = torch.arange(height, device=picture.device)[:, None] / height - rng.uniform(0.1, 0.9)
    x = torch.arange(width, device=picture.device)[None] / width - rng.uniform(0.1, 0.9)
    spot = torch.exp(-((y / rng.uniform(0.04, 0.25)) ** 2 + (x / rng.uniform(0.04, 0.25)) ** 2))
    return (picture + rng.choice([-1, 1]) * rng.uniform(40, 160) * spot).clamp(0, 255)


def smudged(picture: Tensor, rng: np.random.Generator) -> Tensor:
    """A soft veil of one colour over part of the picture, which dims contrast without hiding it: grease, dust, fog."""
    _, height, width = picture.shape
    coarse = torch.from_numpy(rng.random((1, 1, 4, 4), dtype=np.float32)).to(picture.device)
    cloud = functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)[0].clamp(0, 1)
    veil = (cloud - rng.uniform(0.2, 0.5)).clamp(0) * rng.uniform(0.6, 1.8)  # (1, height, width)
    colour = torch.from_numpy(rng.uniform(20, 200, 3).astype(np.float32)).to(picture.device)
    paint = colour.repeat(len(picture) // 3)[:, None, None]
    veil = veil.clamp(max=0.85)
    return picture * (1 - veil) + paint * veil


def blurred(picture: Tensor, rng: np.random.Generator) -> Tensor:
    """A region, or all of it, out of focus."""
    _, height, width = picture.shape
    top, left, h, w = _box(height, width, rng, 0.3, 1.0)
    size = 2 * int(rng.integers(1, 5)) + 1
    soft = functional.avg_pool2d(picture[None], size, 1, size // 2, count_include_pad=False)[0]
    changed = picture.clone()
    changed[:, top : top + h, left : left + w] = soft[:, top : top + h, left : left + w]
    return changed


def tilted(picture: Tensor, rng: np.random.Generator) -> Tensor:
    """A little turned and shifted: a knocked camera, a misaligned part."""
    angle, shift = math.radians(rng.choice([-1, 1]) * rng.uniform(4, 20)), rng.uniform(-0.2, 0.2, 2)
    turn = [[math.cos(angle), -math.sin(angle), shift[0]], [math.sin(angle), math.cos(angle), shift[1]]]
    theta = torch.tensor(turn, dtype=picture.dtype, device=picture.device)[None]
    grid = functional.affine_grid(theta, [1, *picture.shape], align_corners=False)
    return functional.grid_sample(picture[None], grid, padding_mode="border", align_corners=False)[0]


# Sound: (1, mels, frames), natural log of power.


def gain(mel: Tensor, rng: np.random.Generator) -> Tensor:
    """A little louder or softer, and cut a few frames earlier or later."""
    mel = mel.roll(int(rng.integers(-LATER, LATER + 1)), dims=2)
    return mel + rng.uniform(-0.35, 0.35) + 0.1 * _noise(mel, rng)


def _rough(mel: Tensor, rng: np.random.Generator, level: Tensor) -> Tensor:
    """Noise of mean log power `level`: the power of a band of noise varies like chi-squared over a few bins."""
    drawn = rng.standard_gamma(2.0, tuple(mel.shape)).astype(np.float32) / 2.0 + 1e-3
    return level + torch.from_numpy(np.log(drawn)).to(mel.device)


def band_noise(mel: Tensor, rng: np.random.Generator) -> Tensor:
    """New power in a band, steady or beating: a bearing, a leak."""
    _, mels, frames = mel.shape
    low, wide = int(rng.integers(mels - 4)), int(rng.integers(4, max(5, mels // 2)))
    time = torch.arange(frames, device=mel.device)
    beat = rng.uniform(0, 1.5) * torch.cos(2 * math.pi * rng.uniform(1, 12) * time / frames + rng.uniform(0, 6))
    level = mel[:, low : low + wide].mean() + rng.uniform(0.7, 4.0) + beat
    changed = mel.clone()
    band = changed[:, low : low + wide]
    changed[:, low : low + wide] = torch.logaddexp(band, _rough(band, rng, level))
    return changed


def broad_noise(mel: Tensor, rng: np.random.Generator) -> Tensor:
    """New power everywhere, following the sound's own spectrum or flat."""
    own = mel.mean(dim=2, keepdim=True) if rng.random() < 0.5 else mel.mean()
    return torch.logaddexp(mel, _rough(mel, rng, own + rng.uniform(0.5, 3.0)))


def weak_band(mel: Tensor, rng: np.random.Generator) -> Tensor:
    """A band that lost its power: a part that no longer runs, a covered microphone."""
    mels = mel.shape[1]
    low, wide = int(rng.integers(mels - 4)), int(rng.integers(6, mels))
    changed = mel.clone()
    changed[:, low : low + wide] -= rng.uniform(1.0, 5.0)
    return changed


def clicks(mel: Tensor, rng: np.random.Generator) -> Tensor:
    """Knocks in some frames, over most of the spectrum."""
    frames = mel.shape[2]
    hit = torch.from_numpy(rng.random(frames) < rng.uniform(0.04, 0.3)).to(mel.device)
    louder = torch.logaddexp(mel, _rough(mel, rng, mel.mean(dim=2, keepdim=True) + rng.uniform(1.5, 5.0)))
    return torch.where(hit, louder, mel)


# Series: (channels, samples), in the sensor's own units; sizes follow each channel's spread.


def _spread(series: Tensor) -> Tensor:
    return series.std(dim=1, keepdim=True) + 1e-6 + 1e-3 * series.abs().mean(dim=1, keepdim=True)


def jitter(series: Tensor, rng: np.random.Generator) -> Tensor:
    middle = series.mean(dim=1, keepdim=True)
    return middle + (series - middle) * rng.uniform(0.95, 1.05) + 0.03 * _spread(series) * _noise(series, rng)


def noisy(series: Tensor, rng: np.random.Generator) -> Tensor:
    return series + rng.uniform(0.3, 2.0) * _spread(series) * _noise(series, rng)


def offset(series: Tensor, rng: np.random.Generator) -> Tensor:
    one = torch.zeros_like(series[:, :1])
    one[rng.integers(len(one))] = rng.choice([-1, 1]) * rng.uniform(1.0, 4.0)
    return series + one * _spread(series)


def spikes(series: Tensor, rng: np.random.Generator) -> Tensor:
    hit = torch.from_numpy(rng.random(series.shape[1]) < rng.uniform(0.01, 0.08)).to(series.device)
    return series + hit * rng.choice([-1, 1]) * rng.uniform(3.0, 8.0) * _spread(series)


def swung(series: Tensor, rng: np.random.Generator) -> Tensor:
    """More or less movement than there was."""
    middle = series.mean(dim=1, keepdim=True)
    return middle + (series - middle) * rng.choice([rng.uniform(0.1, 0.6), rng.uniform(1.5, 4.0)])


# Features of a backbone: (width,), of no known scale.


def blur(features: Tensor, rng: np.random.Generator) -> Tensor:
    """A little noise, by the vector's own spread."""
    return features + 0.03 * features.std() * _noise(features, rng)


def mixed(features: Tensor, rng: np.random.Generator) -> Tensor:
    """A part of the vector in another order: what no window gives, at the same scale."""
    where = torch.from_numpy(rng.permutation(len(features))[: max(2, round(len(features) * rng.uniform(0.1, 0.5)))])
    changed = features.clone()
    changed[where] = features[where.roll(1)]
    return changed


WEAK: dict[str, Change] = {"camera": light, "microphone": gain, "series": jitter, "features": blur}
DEFECTS: dict[str, tuple[Change, ...]] = {
    "camera": (moved_patch, blotch, smudged, blurred, tilted),
    "microphone": (band_noise, broad_noise, weak_band, clicks),
    "series": (noisy, offset, spikes, swung),
    "features": (mixed,),
}

"""What an update costs: an encoder of realistic size, learned further in four ways, as whole files and as deltas.

`python -m bench.deltas [--data ../shared/data/dev]` trains MobileNetV2 of width 1.3 on written digits (training split
of av_digits, pictures of 96 x 96), goes on with its head alone, with low-rank adapters and with everything at two
learning rates, all with frozen normalisation as in a stage, and exports each. Adapters are a stage's own
(trainer.branches), as they leave, and merged into the weights. Cosines are of held-out pictures (test split), against
the INT8 with its own scales, and of both INT8 against fp32. Files are bare graphs, without the card of some 100 KB that
an encoder carries: it would flatter the shares.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import time
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import onnx
import onnxruntime
import torch
import zstandard
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from bench.realistic_encoders import DIM, encoder_on, mobilenet
from edge.unsigned import unsigned
from export.quantize import to_int8
from export.to_onnx import to_onnx
from lineside import delta
from lineside.features import HalvedPrepare
from lineside.files import sha256
from trainer.encoders import Encoder

SPEC = HalvedPrepare(frames=1, height=96, width=96)
BATCH, TEMPERATURE, SEED = 16, 0.1, 1
RANKS = 1, 2, 4
CALIBRATE, HELD = 64, 128


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One way of learning further: bytes of each way of shipping it, and how far the shipped INT8 is from others."""

    way: str
    fp32: int
    zstd: int
    zstd_patch: int
    delta_fp32: int
    int8: int
    delta_own_scales: int
    delta_old_scales: int
    accuracy_fp32: float
    accuracy: float
    least_cosine: float
    least_cosine_fp32: float
    own_scales_fp32: float
    apply_s_per_10_mb: float
    peak_over_file: float

    @property
    def share(self) -> float:
        """The delta of INT8 with old scales, relative to the fp32 file."""
        return self.delta_old_scales / self.fp32

    @property
    def share_fp32(self) -> float:
        """The delta of fp32, relative to the fp32 file."""
        return self.delta_fp32 / self.fp32


class Labelled(NamedTuple):
    """Pictures (n, 3, 96, 96) uint8 and their digits (n,)."""

    pictures: NDArray[np.uint8]
    labels: NDArray[np.int64]


class Digits:
    """Pictures (n, 3, 96, 96) uint8 with their digits, drawn with a fixed seed."""

    def __init__(self, folder: Path, split: str) -> None:
        with (folder / "pairs.csv").open(newline="") as file:
            rows = [
                int(row["image_idx"]) for row in csv.DictReader(file) if (row["split"], row["rank"]) == (split, "0")
            ]
        with np.load(folder / "images.npz") as held:
            self._images, self.labels = held["images"][rows], torch.from_numpy(held["labels"][rows].astype(np.int64))
        self._chance = np.random.default_rng(SEED)

    def batch(self) -> tuple[Tensor, Tensor]:
        chosen = self._chance.integers(0, len(self._images), BATCH)
        return torch.from_numpy(self.pictures(chosen)), self.labels[chosen]

    def first(self, count: int) -> Labelled:
        """A few, evenly spread."""
        rows = np.linspace(0, len(self._images) - 1, count).round().astype(int)
        return Labelled(self.pictures(rows), self.labels.numpy()[rows])

    def pictures(self, rows: NDArray[np.integer]) -> NDArray[np.uint8]:
        large = self._images[rows].repeat(3, axis=1).repeat(3, axis=2)
        framed = np.pad(large, ((0, 0), (6, 6), (6, 6)))
        return np.repeat(framed[:, None], 3, axis=1)


def main() -> None:
    """Print the table, or one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/dev"))
    parser.add_argument("--steps", type=int, default=60, help="of each way; the base learns five times as long")
    parser.add_argument("--only", default="", help="ways whose name has this; without it all")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    rows = measured(asked.data / "av_digits", asked.steps, asked.only)
    print(json.dumps(msgspec.to_builtins(rows)) if asked.json else table(rows))


def measured(data: Path, steps: int, only: str = "") -> list[Row]:
    """Every way, or those whose name has `only`, from one base."""
    torch.manual_seed(SEED)
    train, test = Digits(data, "train"), Digits(data, "test")
    calibration, held = train.first(CALIBRATE), test.first(HELD)
    base, classify = encoder_on(SPEC, mobilenet()), nn.Linear(DIM, 10)
    learn(base, classify, train, 5 * steps, 1e-3)
    before = to_onnx(base.eval(), SPEC)
    quantised = to_int8(before, calibration.pictures).model
    rows = []
    for way, further in ((way, further) for way, further in WAYS.items() if only in way):
        for name, after in further(copy.deepcopy(base), copy.deepcopy(classify), train, steps).items():
            row = compared(f"{way}{name}", before, to_onnx(after.eval(), SPEC), quantised, calibration, held)
            rows.append(row)
    return rows


def learn(encoder: Encoder, classify: nn.Linear, digits: Digits, steps: int, rate: float) -> None:
    """Some steps of AdamW on which digit it is."""
    encoder.train()
    moving = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW([*moving, *classify.parameters()], rate, weight_decay=0.0)
    for _ in range(steps):
        pictures, labels = digits.batch()
        loss = functional.cross_entropy(classify(encoder(pictures)) / TEMPERATURE, labels)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()


def head_alone(encoder: Encoder, classify: nn.Linear, digits: Digits, steps: int) -> dict[str, Encoder]:
    encoder.let_move("head", norms_learn=False)
    learn(encoder, classify, digits, steps, 1e-3)
    return {"": encoder}


def adapters(rank: int) -> Callable[[Encoder, nn.Linear, Digits, int], dict[str, Encoder]]:
    def further(encoder: Encoder, classify: nn.Linear, digits: Digits, steps: int) -> dict[str, Encoder]:
        encoder.adapt(rank)
        encoder.let_move("adapters", norms_learn=False)
        learn(encoder, classify, digits, steps, 1e-3)
        merged = copy.deepcopy(encoder)
        merged.merge()
        return {"": encoder, ", merged": merged}

    return further


def everything(rate: float) -> Callable[[Encoder, nn.Linear, Digits, int], dict[str, Encoder]]:
    def further(encoder: Encoder, classify: nn.Linear, digits: Digits, steps: int) -> dict[str, Encoder]:
        encoder.let_move("all", norms_learn=False)
        learn(encoder, classify, digits, steps, rate)
        return {"": encoder}

    return further


WAYS: Mapping[str, Callable[[Encoder, nn.Linear, Digits, int], dict[str, Encoder]]] = {
    "head alone": head_alone,
    **{f"adapters of rank {rank}": adapters(rank) for rank in RANKS},
    "everything, 1e-4": everything(1e-4),
    "everything, 1e-3": everything(1e-3),
}


def compared(
    way: str,
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    quantised: onnx.ModelProto,
    calibration: Labelled,
    held: Labelled,
) -> Row:
    """One way's bytes and cosines."""
    old, new = before.SerializeToString(), after.SerializeToString()
    old8 = quantised.SerializeToString()
    own8, kept8 = (to_int8(after, calibration.pictures, like).model.SerializeToString() for like in (None, quantised))
    files = new, unsigned(own8), unsigned(kept8)
    exact, own, kept = (run(model, held.pictures) for model in files)
    near = [
        calibration.labels[(z @ run(m, calibration.pictures).T).argmax(axis=1)]
        for z, m in zip((exact, kept), (new, files[2]), strict=True)
    ]
    patch = delta.make(old8, kept8)
    seconds, peak = applied(old8, patch, kept8)
    return Row(
        way=way,
        fp32=len(new),
        zstd=len(zstandard.ZstdCompressor(level=19).compress(new)),
        zstd_patch=zstd_patch(old, new),
        delta_fp32=len(delta.make(old, new)),
        int8=len(own8),
        delta_own_scales=len(delta.make(old8, own8)),
        delta_old_scales=len(patch),
        accuracy_fp32=float((near[0] == held.labels).mean()),
        accuracy=float((near[1] == held.labels).mean()),
        least_cosine=float((own * kept).sum(axis=1).min()),
        least_cosine_fp32=float((exact * kept).sum(axis=1).min()),
        own_scales_fp32=float((exact * own).sum(axis=1).min()),
        apply_s_per_10_mb=seconds / len(kept8) * 1e7,
        peak_over_file=peak / len(kept8),
    )


def zstd_patch(old: bytes, new: bytes) -> int:
    """What `zstd --patch-from` makes of both, with a window over all of it."""
    whole = zstandard.ZstdCompressionDict(old, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    how = zstandard.ZstdCompressionParameters.from_level(19, window_log=26, enable_ldm=True)
    return len(zstandard.ZstdCompressor(dict_data=whole, compression_params=how).compress(new))


def applied(old: bytes, patch: bytes, new: bytes) -> tuple[float, float]:
    """Seconds to apply, and the most bytes held meanwhile with the base (what Python and numpy allocate)."""
    began = time.perf_counter()
    if delta.apply(old, patch, sha256(new)) != new:
        raise SystemExit("a delta gave another file")
    seconds = time.perf_counter() - began
    tracemalloc.start()
    delta.apply(old, patch, sha256(new))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return seconds, peak + len(old)


def run(model: bytes, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Embeddings (n, dim)."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(["embedding"], {"window": one[None]})[0] for one in pictures])


def table(rows: list[Row]) -> str:
    """As Markdown; bytes in KB."""
    heads = (
        *("learned further", "fp32", "zstd -19", "zstd --patch-from", "delta", "INT8", "delta, own scales"),
        *(
            "delta, old scales",
            "fp32 delta / fp32",
            "INT8 delta / fp32",
            "1-NN accuracy fp32",
            "INT8",
            "least cosine to own scales",
        ),
        *("of both to fp32: old", "own", "apply, s per 10 MB", "peak / file"),
    )
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---|" * (len(heads) - 1)]
    for row in rows:
        sizes = (
            row.fp32,
            row.zstd,
            row.zstd_patch,
            row.delta_fp32,
            row.int8,
            row.delta_own_scales,
            row.delta_old_scales,
        )
        told = [row.way, *(f"{size / 1000:.0f}" for size in sizes), f"{row.share_fp32:.2%}", f"{row.share:.2%}"]
        told += [
            f"{row.accuracy_fp32:.3f}",
            f"{row.accuracy:.3f}",
            f"{row.least_cosine:.5f}",
            f"{row.least_cosine_fp32:.5f}",
            f"{row.own_scales_fp32:.5f}",
        ]
        lines.append("| " + " | ".join([*told, f"{row.apply_s_per_10_mb:.2f}", f"{row.peak_over_file:.2f}"]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

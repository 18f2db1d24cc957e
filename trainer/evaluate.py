"""How good embeddings are: do picture and sound of one moment find each other, and do embeddings differ at all."""

from __future__ import annotations

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from lineside.fusion import Encoded
from trainer.data import Dataset
from trainer.encoders import Encoder, Encoders, unit

CHUNK = 64
MOST_QUERIES = 2_000
FEW = 20


class Retrieval(msgspec.Struct, frozen=True):
    """How often a window's partner is the first, or among the first five, of `moments` candidates.

    `recall_1_few` is the expected recall@1 among only `few` candidates, the partner and others drawn at random: it
    does not depend on how long the recording is, and every query counts for it, so that it can carry a limit.
    """

    asked: str
    answered: str
    moments: int
    recall_1: float
    recall_5: float
    chance: float
    few: int
    recall_1_few: float
    chance_few: float


def embed(encoder: Encoder, windows: NDArray[np.generic], with_head: bool = True) -> NDArray[np.float32]:
    """Embeddings (n, dim) of prepared windows (n, *shape), or the head's inputs (n, features)."""
    device = next(encoder.parameters()).device
    call = encoder if with_head else encoder.features
    was_training = encoder.training
    encoder.eval()
    with torch.no_grad():
        done = [call(torch.from_numpy(windows[i : i + CHUNK]).to(device)).cpu() for i in range(0, len(windows), CHUNK)]
    encoder.train(was_training)
    width = encoder.head.dim if with_head else encoder.head.weight.shape[1] - 1
    return torch.cat(done).numpy() if done else np.zeros((0, width), np.float32)


def encode(encoder: Encoder, windows: NDArray[np.generic]) -> Encoded:
    """Embeddings (n, dim) and features of unit norm (n, f), as an exported encoder gives them."""
    inputs = torch.from_numpy(embed(encoder, windows, with_head=False)).to(encoder.head.weight.device)
    with torch.no_grad():
        return Encoded(unit(encoder.head(inputs)).cpu().numpy(), unit(inputs).cpu().numpy())


def ranks(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.int64]:
    """How many rows of `b` are at least as similar to each row of `a` as its own; a tie counts against.

    >>> ranks(np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)[[0, 2, 1]])
    array([0, 2, 2])
    """
    similar = a @ b.T
    return np.asarray((similar >= np.diag(similar)[:, None]).sum(axis=1) - 1, np.int64)


def recall(rank: NDArray[np.int64], k: int) -> float:
    """Share of queries whose partner is among the `k` most similar."""
    return float((rank < k).mean())


def chances_among(rank: NDArray[np.int64], few: int) -> NDArray[np.float64]:
    """The chance of each query that its partner is first among it and `few` - 1 others drawn from the rest, exactly.

    None of the `few` - 1 others may be one of the `rank` better ones: C(n-1-rank, few-1) / C(n-1, few-1).
    """
    others = len(rank) - 1
    draw = np.arange(few - 1)
    return np.asarray(np.prod(np.clip(others - rank[:, None] - draw, 0, None) / (others - draw), axis=1))


def recall_among(rank: NDArray[np.int64], few: int) -> float:
    """Expected recall@1 among `few`: the mean of `chances_among`.

    >>> recall_among(np.array([0, 1, 2]), 2)
    0.5
    """
    return float(chances_among(rank, few).mean())


def retrieve(asked: str, answered: str, a: NDArray[np.float32], b: NDArray[np.float32]) -> Retrieval:
    """Retrieval from matched embeddings (n, dim) of two sensors."""
    rank, n = ranks(a, b), len(a)
    few = min(FEW, n)
    return Retrieval(asked, answered, n, recall(rank, 1), recall(rank, 5), 1 / n, few, recall_among(rank, few), 1 / few)


def spread(z: NDArray[np.float32]) -> float:
    """Mean cosine between embeddings (n, dim) of different windows; near 1 they have collapsed.

    >>> spread(np.ones((3, 4), np.float32) / 2)
    1.0
    """
    total = float(np.linalg.norm(z.astype(np.float64).sum(axis=0)) ** 2)
    return (total - len(z)) / (len(z) * (len(z) - 1))


class Measured(msgspec.Struct, frozen=True):
    """What `measure` found: retrieval for every ordered pair of sensors, and the spread of each modality."""

    retrieval: list[Retrieval]
    spread: dict[str, float]


def measure(encoders: Encoders, dataset: Dataset, rows: NDArray[np.int64]) -> Measured:
    """Measure encoders on the moments `rows` (evenly thinned to 2000)."""
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), MOST_QUERIES)).round().astype(int)]
    found = {}
    for sensor, view in dataset.views.items():
        z = np.zeros((len(rows), encoders[view.modality].head.dim), np.float32)
        present = view.present[rows]
        z[present] = embed(encoders[view.modality], view.inputs[rows[present]])
        found[sensor] = z, present
    pairs = []
    for a, b in dataset.pairs():
        both = found[a][1] & found[b][1]
        if both.sum() >= 2:
            za, zb = found[a][0][both], found[b][0][both]
            pairs += [retrieve(a, b, za, zb), retrieve(b, a, zb, za)]
    return Measured(pairs, _spreads(dataset, found))


def _spreads(dataset: Dataset, found: dict[str, tuple[NDArray[np.float32], NDArray[np.bool_]]]) -> dict[str, float]:
    spreads = {}
    for modality in sorted(set(dataset.modalities.values())):
        sensors = [sensor for sensor, kind in dataset.modalities.items() if kind == modality]
        z = np.concatenate([found[sensor][0][found[sensor][1]] for sensor in sensors])
        if len(z) >= 2:
            spreads[modality] = spread(z)
    return spreads

"""What a stage proves of its change to old embeddings and similarities, from second moments alone (dns.md, 8.8)."""

from __future__ import annotations

import torch
from torch import Tensor


def embedding_drift(before: Tensor, after: Tensor, second: Tensor) -> float:
    """Relative RMS change of old embeddings before normalisation: sqrt(tr(D C D^T)) / sqrt(tr(W C W^T)).

    `before`, `after` (dim, d) are the head's weights, `second` (d, d) the old inputs' second moment C = L L^T. Both
    roots are taken as norms of factors: the root of a trace would lose half the digits.
    """
    factor = root(second)
    return float(torch.linalg.norm((after - before) @ factor) / torch.linalg.norm(before @ factor))


def similarity_drift(
    before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]
) -> float:
    """RMS change of x^T W_a^T W_b y over all combinations of old inputs x of a, y of b, relative to its RMS.

    This is ||L_a^T M L_b|| with M the change of W_a^T W_b, over the same with M = W_a^T W_b.
    """
    a, b = root(second[0]), root(second[1])
    old = (before[0] @ a).T @ (before[1] @ b)
    # The change as a sum of three products of small factors: no cancellation between two large matrices.
    da, db = (after[0] - before[0]) @ a, (after[1] - before[1]) @ b
    change = da.T @ (before[1] @ b) + (before[0] @ a).T @ db + da.T @ db
    return float(torch.linalg.norm(change) / torch.linalg.norm(old))


EXACT_UP_TO = 1025
JITTER = 1e-14


def root(second: Tensor) -> Tensor:
    """A factor L with L L^T = C, for any positive semidefinite C.

    Above 1025 rows it is Cholesky's of C + 1e-14 tr(C) I, tens of times quicker than eigenvectors: what a displacement
    D really does to old inputs, sqrt(tr(D C D^T)), is then told up to 1e-7 sqrt(tr(C)) ||D|| too large, never less.
    """
    if len(second) > EXACT_UP_TO:
        symmetric = (second + second.T) / 2
        shift = JITTER * torch.trace(symmetric) * torch.eye(len(second), dtype=second.dtype)
        factor, failed = torch.linalg.cholesky_ex(symmetric + shift)
        if not int(failed):
            return factor
    values, vectors = torch.linalg.eigh((second + second.T) / 2)
    return vectors * values.clamp(min=0).sqrt()

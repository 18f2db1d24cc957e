"""Heads solved rather than trained: their best weights follow from second moments, so old data are not missed.

Over inputs that never move (a frozen or fixed trunk), the sums that a least-squares head needs, x x^T, x per label and
x_a x_b^T per pair, may be added up stage by stage. What is solved from them is what would have been solved from all
windows of all stages at once: nothing is forgotten, in whatever order stages come. No window of an old stage is kept.

With labels a head maps onto fixed anchors (ridge regression; the analytic learning of Zhuang et al., NeurIPS 2022, and
McDonnell et al., NeurIPS 2023). Without, the pairs' cross-moments give heads whose embeddings correlate best over the
whole graph of modalities (generalised canonical correlation, MAXVAR, Kettenring, 1971), which is where a linear
spectral contrastive loss ends (HaoChen et al., NeurIPS 2021).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trainer.projection import Moments, homogeneous

ANCHORS = 7  # seed: labels of all stages and machines share one set


@dataclass(frozen=True)
class Sums:
    """What heads are solved from beside each modality's own moments.

    `labels` are the labels in the order of their coming; `by_label` holds, by modality, the sum of the homogeneous
    inputs of each label (labels, f+1); `crossed`, by pair of modalities, the sum of x_a x_b^T (f_a+1, f_b+1), and
    `counts` of how many common moments that is.
    """

    labels: tuple[str, ...] = ()
    by_label: dict[str, Tensor] = field(default_factory=dict)
    crossed: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    counts: dict[tuple[str, str], int] = field(default_factory=dict)

    @property
    def begun(self) -> bool:
        """Whether any stage has added to them."""
        return bool(self.by_label or self.crossed)

    def labelled(self, modality: str, features: Tensor, labels: Sequence[str]) -> Sums:
        """With the inputs (n, f) of one modality, one label each; those labelled "" are left out."""
        known = (*self.labels, *sorted({label for label in labels if label} - set(self.labels)))
        place = {label: k for k, label in enumerate(known)}
        x = homogeneous(features)
        rows = {name: _taller(sums, len(known)) for name, sums in self.by_label.items()}
        mine = rows.get(modality, x.new_zeros(len(known), x.shape[1])).clone()
        told = torch.tensor([bool(label) for label in labels], dtype=torch.bool)
        index = torch.tensor([place[label] for label in labels if label], dtype=torch.long)
        rows[modality] = mine.index_add_(0, index, x[told])
        return Sums(known, rows, self.crossed, self.counts)

    def paired(self, pair: tuple[str, str], a: Tensor, b: Tensor) -> Sums:
        """With the inputs (n, f_a) and (n, f_b) of common moments of two modalities."""
        if pair[0] > pair[1]:
            pair, a, b = (pair[1], pair[0]), b, a
        added = homogeneous(a).T @ homogeneous(b)
        crossed = {**self.crossed, pair: self.crossed.get(pair, 0) + added}
        return Sums(self.labels, self.by_label, crossed, {**self.counts, pair: self.counts.get(pair, 0) + len(a)})


def _taller(rows: Tensor, height: int) -> Tensor:
    return torch.cat([rows, rows.new_zeros(height - len(rows), rows.shape[1])])


def anchors(count: int, dim: int) -> Tensor:
    """Orthonormal targets (count, dim) of labels: the k-th label keeps its own, whatever labels come later.

    Raises ValueError when there are more labels than dimensions.

    >>> bool(torch.equal(anchors(2, 8), anchors(5, 8)[:2]))
    True
    """
    if count > dim:
        raise ValueError(f"{count} labels need as many dimensions, embeddings have {dim}; set dim = {count}")
    drawn = torch.randn(dim, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(ANCHORS))
    return torch.linalg.qr(drawn).Q[:count]


def to_anchors(seen: Moments, by_label: Tensor, dim: int, ridge: float) -> Tensor:
    """The head (dim, f+1) that brings each input nearest to its label's anchor, in the mean over all ever seen.

    W = A^T S (n C + ridge P)^-1, S (labels, f+1) the sums of inputs by label, P diagonal: the features' mean power,
    and for the bias that of the constant. So `ridge` is relative, and the features' scale does not matter.

    >>> x = torch.eye(3, dtype=torch.float64)[:2]
    >>> seen = Moments(homogeneous(x).T @ homogeneous(x) / 2, 2)
    >>> weight = to_anchors(seen, homogeneous(x), 4, 1e-9)
    >>> bool(torch.allclose(homogeneous(x) @ weight.T, anchors(2, 4), atol=1e-6))
    True
    """
    power = seen.second * seen.count
    mean = float(power.diagonal()[:-1].mean()) or seen.count  # a sensor that only ever showed black
    padding = torch.full_like(power[-1], mean)
    padding[-1] = seen.count
    power += ridge * torch.diag(padding)
    return torch.cholesky_solve(by_label.T @ anchors(len(by_label), dim), torch.linalg.cholesky(power)).T


def to_each_other(seen: Mapping[str, Moments], sums: Sums, dim: int, ridge: float) -> dict[str, Tensor]:
    """Heads (dim, f+1) of all paired modalities whose embeddings of common moments correlate best.

    Each modality's inputs are centred and whitened (`ridge` relative to their mean variance); the `dim` leading
    eigenvectors of the block matrix of the pairs' correlations then hold every modality's share. An embedding's
    coordinate weighs as the square root of its correlation.
    """
    names = sorted({name for pair in sums.crossed for name in pair})
    means = {name: seen[name].second[-1, :-1] for name in names}
    whites = {name: _whitening(seen[name], ridge) for name in names}
    at, total = {}, 0
    for name in names:
        at[name] = slice(total, total + len(means[name]))
        total += len(means[name])
    blocks = torch.zeros(total, total, dtype=torch.float64)
    for (a, b), crossed in sums.crossed.items():
        common = crossed / sums.counts[a, b]
        block = whites[a].T @ (common[:-1, :-1] - torch.outer(common[:-1, -1], common[-1, :-1])) @ whites[b]
        blocks[at[a], at[b]], blocks[at[b], at[a]] = block, block.T
    values, vectors = torch.linalg.eigh(blocks)
    top = min(dim, total)
    vectors, values = vectors[:, -top:].flip(1), values[-top:].flip(0).clamp(min=0)
    heads = {}
    for name in names:
        weight = torch.zeros(dim, len(means[name]), dtype=torch.float64)
        weight[:top] = (whites[name] @ vectors[at[name]] * values.sqrt()).T
        heads[name] = torch.cat([weight, -(weight @ means[name])[:, None]], dim=1)
    return heads


def turned(new: Mapping[str, Tensor], old: Mapping[str, Tensor], seen: Mapping[str, Moments]) -> dict[str, Tensor]:
    """`new` heads under the one rotation that brings old inputs' embeddings nearest to what `old` made of them.

    Correlations do not say how the space is turned; without this every stage would turn it at will (orthogonal
    Procrustes, Schönemann, 1966). `seen` are the moments of the old inputs. A modality in one of them alone is turned
    with the rest.
    """
    common = [name for name in new if name in old]
    if not common:
        return dict(new)
    overlap = sum((old[name] @ seen[name].second @ new[name].T for name in common), start=torch.zeros(()))
    left, _, right = torch.linalg.svd(overlap)
    return {name: left @ right @ weight for name, weight in new.items()}


def _whitening(seen: Moments, ridge: float) -> Tensor:
    """M (f, f) with M^T (Cov + ridge tr(Cov)/f I) M = I."""
    second, mean = seen.second[:-1, :-1], seen.second[-1, :-1]
    covariance = second - torch.outer(mean, mean)
    size = len(covariance)
    padded = covariance + (ridge * torch.trace(covariance) / size + 1e-12) * torch.eye(size, dtype=second.dtype)
    return torch.linalg.inv(torch.linalg.cholesky(padded)).T

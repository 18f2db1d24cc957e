"""Contrast between the sensors of a moment, and between a window and its defects.

All but one part of `defect_loss` is InfoNCE (van den Oord et al., 2018): the cross-entropy of finding the partner
among candidates by cosine / temperature. Windows that are absent are neither asked for nor candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from trainer.plan import DefectSettings


@dataclass(frozen=True)
class Seen:
    """One sensor's unit-norm embeddings of one batch, (batch, dim), and which rows are `present` (batch,).

    `again` is the same window after another harmless change (batch, dim), `defect` the same window with each of
    some defects (defects, batch, dim); both are None when the stage learns without them.
    """

    z: Tensor
    present: Tensor
    again: Tensor | None = None
    defect: Tensor | None = None


def info_nce(asked: Tensor, answers: Tensor, others: Tensor | None, temperature: float) -> Tensor:
    """Mean -log softmax of row i of `asked` (n, dim) finding row i of `answers` among all of them and `others`."""
    candidates = answers if others is None else torch.cat([answers, others])
    logits = asked @ candidates.T / temperature  # (n, n + others)
    return functional.cross_entropy(logits, torch.arange(len(asked), device=asked.device))


def pair_loss(a: Seen, b: Seen, temperature: float) -> Tensor | None:
    """Symmetric InfoNCE between two sensors over the moments that have both; None with fewer than two of them.

    Defects of either sensor are further wrong answers: a faulty picture belongs to no sound.
    """
    both = a.present & b.present
    if int(both.sum()) < 2:
        return None
    wrong_a, wrong_b = _wrong(a), _wrong(b)
    forth = info_nce(a.z[both], b.z[both], wrong_b, temperature)
    back = info_nce(b.z[both], a.z[both], wrong_a, temperature)
    return (forth + back) / 2


def defect_loss(seen: Seen, temperature: float, own: float, together: float) -> Tensor | None:
    """A window lies nearer to its harmlessly changed self, and to normal windows at all, than to any defect.

    The first part, weighted by `own`, is InfoNCE with the batch's defects as wrong answers. Alone it leaves a normal
    window that was never seen as far from all others as a defect is; the second part, weighted by `together`, is
    supervised contrast of normal against defect (Khosla et al., 2020, equation 2): it draws normal windows together,
    where the sensors have little to tell each other to one point. None where there are no defects.
    """
    wrong = _wrong(seen)
    if wrong is None or seen.again is None:
        return None
    z = seen.z[seen.present]
    normal = z @ seen.again[seen.present].T / temperature  # (n, n)
    defects = torch.logsumexp(z @ wrong.T / temperature, dim=1)  # (n,)
    self_found = torch.logaddexp(normal.diagonal(), defects) - normal.diagonal()
    normal_found = torch.logaddexp(torch.logsumexp(normal, dim=1), defects) - normal.mean(dim=1)
    return (own * self_found + together * normal_found).mean()


def alone_loss(seen: Seen, temperature: float) -> Tensor | None:
    """For a sensor with no partner: a window finds its changed self among all other windows and the defects.

    Without a partner's contrast, telling normal from defective alone would draw all normal windows to one point.
    """
    wrong = _wrong(seen)
    if wrong is None or seen.again is None:
        return None
    return info_nce(seen.z[seen.present], seen.again[seen.present], wrong, temperature)


def _wrong(seen: Seen) -> Tensor | None:
    if seen.defect is None or not bool(seen.present.any()):
        return None
    return seen.defect[:, seen.present].flatten(0, 1)


def total_loss(
    batch: Mapping[str, Seen], temperature: float, defects: DefectSettings
) -> tuple[Tensor | None, dict[str, float]]:
    """Mean over applicable pairs plus mean over applicable sensors, and each term by name.

    The means keep the scale of the loss independent of the number of sensors. None when nothing applies.
    """
    names = list(batch)
    pairs = {
        f"{a}+{b}": pair_loss(batch[a], batch[b], temperature) for i, a in enumerate(names) for b in names[i + 1 :]
    }
    met = any(term is not None for term in pairs.values())
    single = {
        f"{'defect' if met else 'alone'} {name}": defect_loss(seen, temperature, defects.own, defects.together)
        if met
        else alone_loss(seen, temperature)
        for name, seen in batch.items()
    }
    groups = [[term for term in group.values() if term is not None] for group in (pairs, single)]
    means = [torch.stack(terms).mean() for terms in groups if terms]
    terms = {name: term.item() for name, term in (pairs | single).items() if term is not None}
    return (torch.stack(means).sum() if means else None), terms

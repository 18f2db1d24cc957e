"""Contrast between the sensors of a moment, and between a window and its defects.

All but one part of `defect_loss` is InfoNCE (van den Oord et al., 2018): the cross-entropy of finding the partner
among candidates by cosine / temperature. Windows that are absent are neither asked for nor candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from trainer.plan import DefectSettings
from trainer.supervised import asymmetric_contrast, supervised_pair


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


@dataclass(frozen=True)
class Kinds:
    """What a batch's moments are: `labels` (batch,) int64, below 0 for none, and which rows may ask (`anchors`)."""

    labels: Tensor
    anchors: Tensor


def pair_loss(a: Seen, b: Seen, temperature: float, kinds: Kinds | None = None) -> Tensor | None:
    """Symmetric InfoNCE between two sensors over the moments that have both; None with fewer than two of them.

    Defects of either sensor are further wrong answers: a faulty picture belongs to no sound. With `kinds`, every
    moment of a label is a right answer (trainer.supervised.supervised_pair), and defects are no answers here.
    """
    both = a.present & b.present
    if int(both.sum()) < 2:
        return None
    if kinds is not None:
        return supervised_pair(a.z[both], b.z[both], kinds.labels[both], kinds.anchors[both], temperature)
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


def sensor_losses(
    batch: Mapping[str, Seen],
    pairs: Sequence[tuple[str, str]],
    temperature: float,
    defects: DefectSettings,
    kinds: Kinds | None = None,
    within: bool = False,
) -> dict[str, Tensor]:
    """Each applicable term by name: of `pairs` in the batch ("cam0+mic0") and of single sensors ("defect cam0").

    `within` adds contrast by `kinds` among a sensor's own windows ("within cam0").
    """
    met = [(a, b) for a, b in pairs if a in batch and b in batch]
    found = {f"{a}+{b}": pair_loss(batch[a], batch[b], temperature, kinds) for a, b in met}
    in_touch = any(term is not None for term in found.values())
    for name, seen in batch.items():
        if in_touch:
            found[f"defect {name}"] = defect_loss(seen, temperature, defects.own, defects.together)
        else:
            found[f"alone {name}"] = alone_loss(seen, temperature)
        if within and kinds is not None:
            here = seen.present
            found[f"within {name}"] = asymmetric_contrast(
                seen.z[here], kinds.labels[here], kinds.anchors[here], temperature
            )
    return {name: term for name, term in found.items() if term is not None}


def total(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor | None:
    """The sum over groups of the mean over each group's terms; None when there are none.

    The group of a term is its name's first word, `pair` for one of two sensors; a group without a weight has 1. The
    means keep the scale of the loss independent of the number of sensors.

    >>> terms = {"a+b": torch.tensor(1.0), "a+c": torch.tensor(3.0), "same a": torch.tensor(4.0)}
    >>> total(terms, {"pair": 0.5})
    tensor(5.)
    """
    groups: dict[str, list[Tensor]] = {}
    for name, term in terms.items():
        first, _, rest = name.partition(" ")
        groups.setdefault(first if rest else "pair", []).append(term)
    means = [weights.get(name, 1.0) * torch.stack(group).mean() for name, group in groups.items()]
    return torch.stack(means).sum() if means else None

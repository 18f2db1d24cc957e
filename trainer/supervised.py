"""Contrast by labels for stages that replay: new windows are asked for, replayed ones held where a teacher had them.

Asymmetric supervised contrast and instance-wise relation distillation (Co2L: Cha et al., ICCV 2021; cila.md, sections
2.1 and 2.2), and what both are between two modalities. Rows are unit norm, and only windows that are there: an absent
one is left out of rows and columns by the caller, never filled with zeros. Everything is reckoned in float32 at least,
under autocast too, and no step needs a masked infinity: a row's own column is cut out, not blotted out.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def asymmetric_contrast(
    z: Tensor,
    labels: Tensor,
    anchors: Tensor,
    temperature: float,
    base_temperature: float | None = None,
    *,
    published: bool = False,
) -> Tensor:
    """How badly new rows find the rows of their label among all others: a scalar, 0 where none can be asked for.

    `z` (n, dim), `labels` (n,) int64, below 0 for none: such a row is nothing but a wrong answer. `anchors` (n,) bool
    are the current stage's rows; replayed ones are never asked for, though their gradient as answers reaches them.
    The mean is over anchors that have a positive; `published` takes it over all n, so that the term weakens as the
    buffer's share grows. A `base_temperature` multiplies by temperature / base (cila.md, section 4, points 1 and 2).
    With nothing to ask for the gradient is 0, where the authors' code gives NaN (point 3).

    >>> z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> loss = asymmetric_contrast(z, torch.tensor([7, 7, -1]), torch.ones(3, dtype=torch.bool), 1.0)
    >>> round(loss.item(), 4)  # log(1 + 1/e)
    0.3133
    """
    log_share = functional.log_softmax(off_diagonal(similarity(z, z)) / temperature, dim=1)  # (n, n-1)
    positive = off_diagonal(_same(labels) & anchors[:, None])
    found, asked = _found(log_share, positive)
    scale = 1.0 if base_temperature is None else temperature / base_temperature
    return scale * (found.sum() / max(1, len(z)) if published else _mean(found, asked))


def supervised_pair(za: Tensor, zb: Tensor, labels: Tensor, anchors: Tensor, temperature: float) -> Tensor:
    """The same between two sensors: each anchor finds all rows of its label at the other one, and back; a scalar.

    Row i of `za` and of `zb` (n, dim) are one moment, with one of `labels` (n,). A moment whose label is below 0 has
    its own partner as its only positive, so that without labels this is trainer.losses.pair_loss. Rows that are not
    among `anchors` (n,), the replayed ones, are wrong answers only. 0, with gradient 0, when there are no anchors.
    """
    positive = _same(labels) | torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    logits = similarity(za, zb) / temperature  # (n, n)
    both = [_found(functional.log_softmax(x, dim=1), positive & anchors[:, None]) for x in (logits, logits.T)]
    return torch.stack([_mean(found, asked) for found, asked in both]).mean()


def relation_distillation(z: Tensor, teacher: Tensor, temperature: float, teacher_temperature: float) -> Tensor | None:
    """Cross-entropy of each row's likeness to all others under a teacher and under the student, averaged: IRD.

    `z` (n, dim) and `teacher` (n, any dim) embed the same views, and take part whether new or replayed. Nothing flows
    to the teacher. It is at least the teacher's mean entropy, and just that where both agree. None with fewer than
    3 rows: with one other row there is no relation to keep.
    """
    if len(z) < 3:
        return None
    held = teacher.detach()
    student, before = off_diagonal(similarity(z, z)), off_diagonal(similarity(held, held))
    return _cross_entropy(student / temperature, before / teacher_temperature)


def cross_relation_distillation(
    za: Tensor, zb: Tensor, ga: Tensor, gb: Tensor, temperature: float, teacher_temperature: float
) -> Tensor | None:
    """The same between two modalities: each row of `za` to all rows of `zb`, and back, as between `ga` and `gb`.

    The students' embeddings (n, dim) and the teachers' (n, any dim) are of the same n moments; a moment's own partner
    is one of the rows, since its likeness says something here. None with fewer than 2 moments.
    """
    if len(za) < 2:
        return None
    student, before = similarity(za, zb) / temperature, similarity(ga.detach(), gb.detach()) / teacher_temperature
    return (_cross_entropy(student, before) + _cross_entropy(student.T, before.T)) / 2


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """Inner products (n, m) of the rows of `a` and `b`, in float32 at least: half the digits are lost below that."""
    kind = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    with torch.autocast(a.device.type, enabled=False):
        product: Tensor = a.to(kind) @ b.to(kind).T
    return product


def off_diagonal(square: Tensor) -> Tensor:
    """(n, n) to (n, n-1): each row without itself, the others in their order.

    >>> off_diagonal(torch.arange(9).reshape(3, 3)).tolist()
    [[1, 2], [3, 5], [6, 7]]
    """
    n = len(square)
    others = max(0, n - 1)
    # Behind the first entry, every (n+1)-th of the flattened matrix lies on the diagonal.
    return square.flatten()[1:].view(others, n + 1)[:, :-1].reshape(n, others)


def _same(labels: Tensor) -> Tensor:
    return (labels[:, None] == labels) & (labels >= 0)


def _found(log_share: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """Per row (n,): mean of -`log_share` over its positives, 0 where it has none; and whether it has one."""
    count = positive.sum(dim=1)
    return -(positive * log_share).sum(dim=1) / count.clamp(min=1), count > 0


def _mean(found: Tensor, asked: Tensor) -> Tensor:
    return found.sum() / asked.sum().clamp(min=1)


def _cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    return -(functional.softmax(teacher, dim=1) * functional.log_softmax(student, dim=1)).sum(dim=1).mean()

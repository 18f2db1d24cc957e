"""A teacher between the old model and the new one, and what a stage keeps of the old model's similarities.

CTP (Zhu et al., ICCV 2023) over a graph of modalities. Compatible momentum contrast asks a new embedding for its
partner among those of a teacher that follows the new model and is pulled back to the old one. Topology preservation
keeps whom the old model found similar to whom, in which all embeddings may still turn together (ctp.md, section 2).

A step of the loop: `follow`, embed the batch by student, teacher and old version, `teacher_loss`, `remember`, and the
optimiser. Embeddings are of the whole batch, gathered over processes: each then has the value that one process would
have, and the sum of their gradients, each through its own rows alone, is that process's gradient. Where gradients are
averaged over processes, multiply by their number.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.losses import Seen
from trainer.plan import TeacherSettings

Module = TypeVar("Module", bound=nn.Module)

NOBODY = -1  # sample id of a slot that was never filled
FARTHEST_FROM_UNIT = 1e-2  # what bfloat16 makes of a norm of 1


class Queue:
    """The last `size` unit-norm embeddings that the teacher made of one modality, each with its sample's id.

    A ring: the oldest row is overwritten first, and however rows come in batches, the bits are those of one at a time.

    >>> queue = Queue(3, 1)
    >>> queue.push(torch.ones(2, 1), torch.tensor([7, 8]))
    >>> queue.push(-torch.ones(2, 1), torch.tensor([9, 10]))
    >>> queue.rows().flatten().tolist(), queue.ids().tolist()
    ([-1.0, 1.0, -1.0], [10, 8, 9])
    """

    def __init__(
        self, size: int, dim: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None
    ) -> None:
        self._rows = torch.zeros(size, dim, dtype=dtype, device=device)
        self._ids = torch.full((size,), NOBODY, dtype=torch.int64, device=device)
        self._next = 0
        self._valid = 0

    def __len__(self) -> int:
        return self._valid

    def push(self, z: Tensor, ids: Tensor) -> None:
        """Append embeddings (n, dim) of the samples `ids` (n,), for any n.

        Raises ValueError for other shapes and for rows not of unit norm: an absent window is a row of zeros, which
        would be an answer that is neither right nor wrong.
        """
        size, dim = self._rows.shape
        if z.ndim != 2 or z.shape[1] != dim or ids.shape != z.shape[:1]:
            told = f"embeddings {tuple(z.shape)} with ids {tuple(ids.shape)} for a queue of dim {dim}"
            raise ValueError(f"{told}: push (n, {dim}) with (n,)")
        if not bool(((torch.linalg.vector_norm(z.detach().float(), dim=1) - 1).abs() <= FARTHEST_FROM_UNIT).all()):
            raise ValueError("a row is not of unit norm: push the rows that are present, normalised")
        count = len(z)
        kept = min(count, size)
        if not kept:
            return
        places = (self._next + torch.arange(count - kept, count, device=self._rows.device)) % size
        self._rows[places] = z.detach()[count - kept :].to(self._rows)
        self._ids[places] = ids[count - kept :].to(self._ids)
        self._next = (self._next + count) % size
        self._valid = min(size, self._valid + count)

    def rows(self) -> Tensor:
        """The embeddings (valid, dim) in the ring's order: a view, which the next push may overwrite."""
        return self._rows[: self._valid]

    def ids(self) -> Tensor:
        """Their samples' ids (valid,) int64."""
        return self._ids[: self._valid]

    def clear(self) -> None:
        """Forget all: at a change of stage, the old teacher's embeddings are no answers of the new one."""
        self._rows.zero_()
        self._ids.fill_(NOBODY)
        self._next = self._valid = 0

    def state(self) -> dict[str, Tensor]:
        """All that it holds, as tensors of its own for a safetensors file."""
        counts = {"next": torch.tensor(self._next), "valid": torch.tensor(self._valid)}
        return {"rows": self._rows.clone(), "ids": self._ids.clone(), **counts}

    @classmethod
    def restore(cls, state: Mapping[str, Tensor], device: torch.device | None = None) -> Queue:
        """The queue whose `state` this was: it goes on to the same bits. On `device`, or where the tensors are."""
        rows = state["rows"]
        queue = cls(rows.shape[0], rows.shape[1], rows.dtype, rows.device if device is None else device)
        queue._rows.copy_(rows)
        queue._ids.copy_(state["ids"])
        queue._next, queue._valid = int(state["next"]), int(state["valid"])
        return queue


def teacher_of(module: Module) -> Module:
    """A copy that is always in eval mode and never gets a gradient, of the same precision and on the same device."""
    return copy.deepcopy(module).eval().requires_grad_(False)


def follow(teacher: nn.Module, student: nn.Module, old: nn.Module | None, momentum: float, pull: float) -> None:
    """Move `teacher` in place: T <- m T + (1 - m) [pull O + (1 - pull) S], without `old` T <- m T + (1 - m) S.

    From T = O this is pull O + (1 - pull) EMA(S): never further from the old model than (1 - pull) of the way (section
    3). Parameters that need no gradient stand still, as the copy has them already; buffers are the student's. Call it
    once a step, before the teacher embeds. Raises ValueError where the modules do not have the same parameters.

    >>> student, old = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.constant_(student.weight, 3.0), nn.init.constant_(old.weight, 1.0)
    >>> teacher = teacher_of(old)
    >>> follow(teacher, student, old, momentum=0.75, pull=0.5)
    >>> teacher.weight.item()
    1.25
    """
    Follower(teacher, student, old).step(momentum, pull)


class Follower:
    """`follow` for many steps: the tensors are looked up once, which costs as much as moving them."""

    def __init__(self, teacher: nn.Module, student: nn.Module, old: nn.Module | None) -> None:
        moving = [name for name, weight in student.named_parameters() if weight.requires_grad]
        self._teacher = teacher
        self._weights = _taken(dict(teacher.named_parameters()), moving)
        self._student = _taken(dict(student.named_parameters()), moving)
        self._old = None if old is None else _taken(dict(old.named_parameters()), moving)
        buffers = dict(student.named_buffers())
        self._buffers, self._held = list(buffers.values()), _taken(dict(teacher.named_buffers()), buffers)

    @torch.no_grad()
    def step(self, momentum: float, pull: float) -> None:
        """Move the teacher by one step; see `follow`."""
        to_old = 0.0 if self._old is None else (1 - momentum) * pull
        if self._weights and self._old is not None and to_old:
            # Two steps in place make the mixture of three: what the second leaves, m + to_old, the first divides.
            torch._foreach_lerp_(self._weights, self._old, to_old / (momentum + to_old))
        if self._weights:
            torch._foreach_lerp_(self._weights, self._student, 1 - momentum - to_old)
        if self._buffers:
            torch._foreach_copy_(self._held, self._buffers)
        self._teacher.eval()  # whoever called train() on all that it holds


def _taken(tensors: Mapping[str, Tensor], names: Iterable[str]) -> list[Tensor]:
    try:
        return [tensors[name] for name in names]
    except KeyError as error:
        told = f"teacher, student and old version differ: one has no {error}"
        raise ValueError(f"{told}; make the others of the same module with teacher_of") from error


def compatible_contrast(
    z: Tensor,
    partners: Tensor,
    earlier: Tensor | None,
    temperature: float,
    soft: float = 0.0,
    own: Tensor | None = None,
    ids: Tensor | None = None,
    earlier_ids: Tensor | None = None,
) -> Tensor | None:
    """One direction: mean cross-entropy of row i of `z` (n, dim) finding row i among `partners` and `earlier`.

    `partners` (n, dim) are the teacher's embeddings of the other modality's windows, `earlier` (k, dim) rows of its
    queue. With `ids` (n,) and `earlier_ids` (k,), another candidate of a row's own sample is left out, as it is right.
    With `soft`, the target is (1 - soft) onehot + soft softmax(teacher), by the teacher's embeddings `own` (n, dim) of
    the rows themselves against the same candidates (section 8.5). No gradient goes to the teacher. None with fewer than
    two candidates. Raises ValueError for `soft` without `own` and for `ids` without `earlier_ids`.
    """
    if soft and own is None:
        raise ValueError("soft targets need the teacher's embeddings of the rows: give own, or soft = 0")
    if ids is not None and earlier is not None and earlier_ids is None:
        raise ValueError("earlier rows without ids cannot be told from a row's own sample: give earlier_ids, or no ids")
    bank = _with(partners, earlier).detach()  # (n + k, dim)
    if not len(z) or len(bank) < 2:
        return None
    same = None
    if ids is not None:
        same = ids[:, None] == _with(ids, earlier_ids if earlier is not None else None)  # (n, n + k)
        same.diagonal().fill_(False)
    shares = _log_shares(z, bank, temperature, same)
    hard = -shares.diagonal().mean()
    if not soft or own is None:
        return hard
    target = _log_shares(own.detach(), bank, temperature, same).exp()
    return (1 - soft) * hard - soft * (target * shares).sum(dim=1).mean()


def cross_topology(
    za: Tensor,
    zb: Tensor,
    ga: Tensor,
    gb: Tensor,
    temperature: float,
    teacher_temperature: float,
    anchors: tuple[Tensor | None, Tensor | None] = (None, None),
) -> Tensor | None:
    """Mean of both directions of KL(old || new) of the rowwise softmax of similarities between two modalities.

    `za`, `zb` are the new embeddings (n, dim), `ga`, `gb` the old model's of the same windows, without gradient. The
    old model's embeddings `anchors` (k, dim) of a and of b are further columns, for old and new alike (section 8.8).
    None with fewer than two columns, where every share is 1.
    """
    ways = ((za, zb, ga, gb, anchors[1]), (zb, za, gb, ga, anchors[0]))
    return _mean(
        _kept(z, _with(other, more), g, _with(old, more), temperature, teacher_temperature)
        for z, other, g, old, more in ways
    )


def same_topology(
    z: Tensor, g: Tensor, temperature: float, teacher_temperature: float, anchors: Tensor | None = None
) -> Tensor | None:
    """KL(old || new) of the rowwise softmax of similarities within one modality, each row without itself.

    `z`, `g` (n, dim) and `anchors` (k, dim) as in `cross_topology`. A row's similarity to itself, which is 1 and would
    outweigh all others, is no column and gets no gradient. None with fewer than two columns: n < 3 without anchors.
    """
    columns = _with(z, anchors)
    itself = torch.eye(len(z), len(columns), dtype=torch.bool, device=z.device)
    return _kept(z, columns, g, _with(g, anchors), temperature, teacher_temperature, itself, hidden=1)


def teacher_loss(
    new: Mapping[str, Seen],
    teacher: Mapping[str, Seen],
    old: Mapping[str, Seen],
    pairs: Sequence[tuple[str, str]],
    queues: Mapping[str, Queue],
    settings: TeacherSettings,
    ids: Tensor | None = None,
    anchors: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Each applicable term by name, times its weight; to average them is the caller's (section 8.1).

    `momentum a+b` for each of `pairs` in the batch, which `teacher` must hold; `cross a+b` where `old` knows both;
    `same a` for every modality of the batch that `old` knows. Moments that lack a modality are neither rows nor columns
    of its terms. `ids` (batch,) are the moments' own, the same at every visit; `anchors` are the old model's embeddings
    (k, dim) by modality. Nothing is pushed into `queues`: see `remember`.
    """
    terms: dict[str, Tensor | None] = {}
    met = [(a, b) for a, b in pairs if a in new and b in new]
    more = anchors or {}
    if settings.contrast:
        for a, b in met:
            found = _mean(_momentum(new, teacher, way, queues, settings, ids) for way in ((a, b), (b, a)))
            terms[f"momentum {a}+{b}"] = _times(settings.contrast, found)
    if settings.cross:
        for a, b in met:
            if a in old and b in old:
                both, beside = _present(new[a], new[b], old[a], old[b]), (more.get(a), more.get(b))
                za, zb, ga, gb = (seen.z[both] for seen in (new[a], new[b], old[a], old[b]))
                found = cross_topology(za, zb, ga, gb, settings.temperature, settings.teacher_temperature, beside)
                terms[f"cross {a}+{b}"] = _times(settings.cross, found)
    if settings.same:
        for a in new:
            if a in old:
                here = _present(new[a], old[a])
                z, g = new[a].z[here], old[a].z[here]
                found = same_topology(z, g, settings.temperature, settings.teacher_temperature, more.get(a))
                terms[f"same {a}"] = _times(settings.same, found)
    return {name: term for name, term in terms.items() if term is not None}


def remember(queues: Mapping[str, Queue], teacher: Mapping[str, Seen], ids: Tensor) -> None:
    """Push what the teacher made of the windows that are present into their queues: after the loss, as the last
    `queue` embeddings must be of earlier steps. `ids` (batch,) as in `teacher_loss`."""
    for name, seen in teacher.items():
        if name in queues:
            queues[name].push(seen.z[seen.present], ids[seen.present.to(ids.device)])


def _momentum(
    new: Mapping[str, Seen],
    teacher: Mapping[str, Seen],
    way: tuple[str, str],
    queues: Mapping[str, Queue],
    settings: TeacherSettings,
    ids: Tensor | None,
) -> Tensor | None:
    a, b = way
    both = _present(new[a], new[b], teacher[a], teacher[b])
    queue = queues.get(b)
    return compatible_contrast(
        new[a].z[both],
        teacher[b].z[both],
        None if queue is None else queue.rows(),
        settings.temperature,
        settings.soft,
        teacher[a].z[both],
        None if ids is None else ids.to(both.device)[both],
        None if queue is None else queue.ids(),
    )


def _kept(
    z: Tensor,
    columns: Tensor,
    g: Tensor,
    old_columns: Tensor,
    temperature: float,
    teacher_temperature: float,
    masked: Tensor | None = None,
    hidden: int = 0,
) -> Tensor | None:
    """KL(old || new), averaged over rows; `hidden` columns of each row are `masked`."""
    if not len(z) or len(columns) - hidden < 2:
        return None
    new = _log_shares(z, columns, temperature, masked)
    old = _log_shares(g.detach(), old_columns.detach(), teacher_temperature, masked)
    return functional.kl_div(new, old, reduction="batchmean", log_target=True)


def _log_shares(rows: Tensor, columns: Tensor, temperature: float, masked: Tensor | None) -> Tensor:
    """Rowwise log softmax of cosines / temperature over what is not `masked`, and 0, without gradient, where it is.

    The 0 rather than -inf lets any finite target be multiplied. In float32 at least, under autocast too: cosines near 1
    are 2^-8 apart in bfloat16, which a temperature of 0.07 makes a twentieth of a logit.
    """
    wide = torch.promote_types(torch.promote_types(rows.dtype, columns.dtype), torch.float32)
    with torch.autocast(rows.device.type, enabled=False):
        logits = rows.to(wide) @ columns.to(wide).T / temperature
        if masked is None:
            return torch.log_softmax(logits, dim=1)
        return torch.log_softmax(logits.masked_fill(masked, -math.inf), dim=1).masked_fill(masked, 0.0)


def _present(*seen: Seen) -> Tensor:
    return reduce(torch.logical_and, (each.present for each in seen))


def _with(columns: Tensor, more: Tensor | None) -> Tensor:
    return columns if more is None else torch.cat([columns, more.detach().to(columns.device)])


def _mean(ways: Iterable[Tensor | None]) -> Tensor | None:
    found = [way for way in ways if way is not None]
    return torch.stack(found).mean() if found else None


def _times(weight: float, term: Tensor | None) -> Tensor | None:
    return None if term is None else weight * term

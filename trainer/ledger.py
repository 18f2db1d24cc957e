"""What a stage with a teacher writes down, so that later ones can weigh distillation and bound forgetting by it.

One row a stage and modality, of scalars alone: the weight of distillation, the bound and its alarm follow from the log,
in whichever process reads it (CILA, ICML 2024; cila.md, sections 2.3, 3 and 8). At the end, which windows are replayed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from torch import Tensor
from torch.nn import functional

from trainer.supervised import off_diagonal, similarity

ROUNDING = 1e-6  # by how much a realised value may pass its bound: embeddings are float32


class _Finite(msgspec.Struct, frozen=True, kw_only=True):
    """A record whose numbers are numbers: JSON has no NaN, and a comparison with one is silently false."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} is {value}, not a number: the stage has diverged")


class Temperatures(_Finite, frozen=True):
    """Of contrast (`base` scales it, None: not at all), of the student's and of the teacher's relations."""

    contrast: float
    student: float
    teacher: float
    base: float | None = None


class Monitor(_Finite, frozen=True):
    """A pass without gradient over the buffer and the new windows after a stage, all at one temperature.

    `m` candidates a row, `n_b` rows of the buffer; mean contrast of the student on new windows (`con_new`), on the
    buffer by the teacher (`con_before`) and by the student (`con_after`), which is `dis` + `shift` (see `split`).
    """

    temperature: float
    m: int
    n_b: int
    con_new: float
    con_before: float
    con_after: float
    dis: float
    shift: float

    @property
    def forgetting(self) -> float:
        """By how much the buffer's contrast has become worse in the stage."""
        return self.con_after - self.con_before

    @property
    def a_eff(self) -> float:
        """What the worst case's 2 / temperature was on this buffer; 0 where the teacher left nothing to lose."""
        return self.shift / self.con_before if self.con_before > 0 else 0.0


class Bound(_Finite, frozen=True):
    """R = k con_new + (1 - k) con_after after a stage: `realised`, and its bound with a (`worst`) and with a_eff.

    On the buffer itself both bounds hold exactly, else `held` is false: an alarm, for then the teacher was not the
    one that was logged, or the numbers are of different windows. `slack` is what the mean over the buffer may be off
    from all that it stands for.
    """

    gamma_t: float
    a: float
    a_eff: float
    worst: float
    effective: float
    slack: float
    realised: float
    held: bool


class StageRow(_Finite, frozen=True):
    """What one stage logs of one modality.

    `k_t` is the new windows' weight, `batch` the candidates a row (keep it, or ratios of later stages mean something
    else: relations have an entropy of its logarithm). `con` is the mean contrast while training without the factor
    temperature / base, `con_scaled` with it; `dis_all` the mean distillation over whole batches, as trained,
    `dis_old` over replayed rows. They are None where there was nothing to measure, as in a first stage is all that
    needs a teacher. `norm` tells in which mode the teacher normalised ("eval", "train" or "none").
    """

    stage: int
    modality: str
    k_t: float
    lambda_t: float
    kappa: float
    temperatures: Temperatures
    batch: int
    con: float | None
    con_scaled: float | None
    dis_all: float | None = None
    dis_old: float | None = None
    monitor: Monitor | None = None
    bound: Bound | None = None
    teacher_sha256: str = ""
    norm: str = "none"


class RunningMean(msgspec.Struct, frozen=True):
    """A mean weighted by samples, kept as two numbers so that a half-trained stage can put it away and go on.

    >>> RunningMean().joined(3.0, 2).joined(6.0, 1).mean
    4.0
    """

    total: float = 0.0
    samples: int = 0

    def joined(self, value: float, samples: int) -> RunningMean:
        """With one more batch, whose mean over `samples` was `value`."""
        return RunningMean(self.total + value * samples, self.samples + samples)

    @property
    def mean(self) -> float | None:
        """None before the first sample."""
        return self.total / self.samples if self.samples else None


def adaptive_lambda(history: Sequence[StageRow], kappa: float, floor: float = 1.0, cap: float = math.inf) -> float:
    """Weight of distillation in the stage after `history`, one modality's rows in their order (section 2.3).

    kappa * sum of mean distillations / sum of mean contrasts (without the factor temperature / base) over the stages
    that had a teacher, between `floor` and `cap`. 1, whatever these are, while there is no such stage: in a first and
    a second one, and where no window of those was asked for. Raises ValueError when the rows are of several modalities.
    """
    if floor > cap:
        raise ValueError(f"floor {floor} is above cap {cap}")
    free = _unclamped(history, kappa)
    return 1.0 if free is None else min(cap, max(floor, free))


def clamped_stages(history: Sequence[StageRow]) -> int:
    """For how many stages up to the last the logged lambda was floor or cap; above 2 is an alarm (section 8).

    A stage that is 1 by definition, the second, is not clamped. With lambda at the floor for ever CILA is Co2L.
    """
    count = 0
    for at, row in reversed(list(enumerate(history))):
        free = _unclamped(history[:at], row.kappa)
        if free is None or math.isclose(free, row.lambda_t, rel_tol=1e-9):
            break
        count += 1
    return count


def _unclamped(history: Sequence[StageRow], kappa: float) -> float | None:
    if len(modalities := {row.modality for row in history}) > 1:
        raise ValueError(f"rows of {', '.join(sorted(modalities))}: lambda is of one modality, give its rows alone")
    past = [(row.con, row.dis_all) for row in history if row.con is not None and row.dis_all is not None]
    con, dis = sum(con for con, _ in past), sum(dis for _, dis in past)
    return kappa * dis / con if con > 0 else None


class Split(NamedTuple):
    """Contrast, distillation and their difference, (rows,) float64 each: con = dis + shift."""

    con: Tensor
    dis: Tensor
    shift: Tensor


def split(z: Tensor, teacher: Tensor, positives: Tensor, temperature: float) -> Split:
    """What became of the buffer's contrast under the student, as what the teacher taught and what it could not.

    `z` (n, dim) and `teacher` (n, any dim) are unit norm, of the same windows; `positives` (n, n) bool, its diagonal
    ignored. Rows without a positive are left out. With p the teacher's shares and s the student's cosines,
    con = -mean over positives of log share, dis = -sum p log share, shift = (sum p s - mean over positives of s) /
    temperature; the last is reckoned from this alone, so that the identity proves something (section 3).

    |shift| <= 2 / temperature * (the teacher's con), row by row and for any number of positives P: the teacher's
    con - ln P is at least 1 - its share of the positives, and ln P at least 1 - 1 / P, which is half of what the
    positives' own spread can add.
    """
    own = off_diagonal(positives.cpu())
    asked = own.any(dim=1)
    own = own[asked]
    z, teacher = z.detach().double().cpu(), teacher.detach().double().cpu()
    s, g = (off_diagonal(similarity(x, x))[asked] for x in (z, teacher))  # (rows, n-1)
    share, log_share = functional.softmax(g / temperature, dim=1), functional.log_softmax(s / temperature, dim=1)
    return Split(
        con=-_over(log_share, own),
        dis=-(share * log_share).sum(dim=1),
        shift=((share * s).sum(dim=1) - _over(s, own)) / temperature,
    )


def _over(values: Tensor, chosen: Tensor) -> Tensor:
    return (values * chosen).sum(dim=1) / chosen.sum(dim=1)


def monitor(z: Tensor, teacher: Tensor, positives: Tensor, temperature: float, con_new: float) -> Monitor:
    """Measure the buffer as `split` does; `con_new` is the student's mean contrast on new windows, likewise.

    Raises ValueError when no row of the buffer has a positive.
    """
    after, before = split(z, teacher, positives, temperature), split(teacher, teacher, positives, temperature)
    if not len(after.con):
        raise ValueError("no window of the buffer has a positive: keep at least two of a label, or two views of each")
    con_before, con_after, dis, shift = (float(x.mean()) for x in (before.con, *after))
    return Monitor(
        temperature=temperature,
        m=len(z) - 1,
        n_b=len(after.con),
        con_new=con_new,
        con_before=con_before,
        con_after=con_after,
        dis=dis,
        shift=shift,
    )


def bound(seen: Monitor, k_t: float, lambda_t: float, delta: float = 0.05) -> Bound:
    """The stage's risk against L_train / gamma + (1 - k) a con_before, L_train = con_new + lambda dis (section 3).

    gamma = min(1 / k, lambda / (1 - k)); a = 2 / temperature in the worst case, which says nothing after two or three
    stages, and a_eff as it was. Raises ValueError unless 0 < k <= 1 and lambda > 0: nothing else bounds old contrast.
    """
    if not 0 < k_t <= 1 or lambda_t <= 0:
        raise ValueError(f"k_t is {k_t}, lambda_t {lambda_t}: need 0 < k_t <= 1 and lambda_t > 0")
    old = 1 - k_t
    gamma = min(1 / k_t, lambda_t / old if old else math.inf)
    learned = (seen.con_new + lambda_t * seen.dis) / gamma
    a = 2 / seen.temperature
    worst, effective = learned + old * a * seen.con_before, learned + old * seen.shift
    realised = k_t * seen.con_new + old * seen.con_after
    return Bound(
        gamma_t=gamma,
        a=a,
        a_eff=seen.a_eff,
        worst=worst,
        effective=effective,
        slack=slack(seen.temperature, seen.m, seen.n_b, delta),
        realised=realised,
        held=realised <= min(worst, effective) + ROUNDING * max(1.0, realised),
    )


def slack(temperature: float, m: int, n_b: int, delta: float = 0.05) -> float:
    """How far the mean over `n_b` rows may be from the expectation, but for a chance of `delta` (Hoeffding).

    Contrast among `m` candidates lies between 0 and 2 / temperature + ln m. It takes rows as independent: two views
    of a window are not, then `n_b` is the number of windows.

    >>> round(slack(0.5, 100, 200), 3)
    0.826
    """
    return (2 / temperature + math.log(m)) * math.sqrt(math.log(2 / delta) / (2 * n_b))


def choose(labels: Sequence[str], size: int, rng: np.random.Generator) -> list[int]:
    """At most `size` indices of windows to keep, at random and with as many of each label as there are to have.

    Labels differ by at most one; one that has too few gives all. The same holds for any beginning of the list: a
    buffer is cut from its end. "" is a label as others.
    """
    return _dealt(_by_label(labels, rng), size, rng)


def merge(
    old_labels: Sequence[str], new_labels: Sequence[str], size: int, rng: np.random.Generator
) -> tuple[list[int], list[int]]:
    """The buffer for the next stage: indices of the old one that stay, in their order, and of new windows that come.

    Old windows of a label leave from its end, so that a buffer made by `choose` or `merge` keeps its best. A label
    that comes back is one class, its old windows first: write the stage into it ("2/good") where each stage shall have
    its share. The two lists one after the other are not in an order to cut: cut with `merge(labels, [], size, rng)`.
    """
    queues: dict[str, list[int]] = {}
    for at, label in enumerate(old_labels):
        queues.setdefault(label, []).append(at)
    for label, coming in _by_label(new_labels, rng).items():
        queues.setdefault(label, []).extend(len(old_labels) + at for at in coming)
    dealt = _dealt(queues, size, rng)
    kept = sorted(at for at in dealt if at < len(old_labels))
    return kept, [at - len(old_labels) for at in dealt if at >= len(old_labels)]


def _by_label(labels: Sequence[str], rng: np.random.Generator) -> dict[str, list[int]]:
    queues: dict[str, list[int]] = {}
    for at in rng.permutation(len(labels)).tolist():
        queues.setdefault(labels[at], []).append(at)
    return queues


def _dealt(queues: dict[str, list[int]], size: int, rng: np.random.Generator) -> list[int]:
    """Round by round one of each label, in an order drawn anew each round."""
    turns = [(turn, rng.random(), at) for queue in queues.values() for turn, at in enumerate(queue)]
    return [at for _, _, at in sorted(turns)[: max(0, size)]]

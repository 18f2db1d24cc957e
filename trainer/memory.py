"""What a stage leaves behind: moments of all stages, solved heads, replay, a bank, calibration, the ledger's rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lineside import features
from trainer import checkpoint, evaluate, layers, ledger, loop, projection, rules, solved
from trainer.begin import KEEPS, lambda_of
from trainer.checkpoint import Change, LayerChange, Replay, Tensors
from trainer.data import Dataset
from trainer.defects import weakly
from trainer.encoders import Encoders
from trainer.ledger import RunningMean, StageRow, Temperatures
from trainer.loop import Course
from trainer.projection import Moments, Protection
from trainer.solved import Sums
from trainer.work import Work

BANK_ROWS, CALIBRATION_ROWS = 256, 128


def remember(work: Work, encoders: Encoders, course: Course) -> Tensors:
    """What later stages need of this one: moments over all stages, the heads' start, replay, calibration windows."""
    plan, dataset, learn = work.plan, work.dataset, work.learn
    old = work.parent.tensors if work.parent else Tensors(encoders)
    tensors = replace(
        old,
        encoders=encoders,
        seen=dict(old.seen),
        changes={},
        layer_changes={},
        layers=dict(old.layers),
        bank=dict(old.bank),
        calibration=dict(old.calibration),
        guide=course.guide.state() if course.guide else {},
    )
    for modality, before in old.seen.items():
        tensors.changes[modality] = Change(old.encoders[modality].head.weight.detach().double().cpu().clone(), before)
        if modality in dataset.specs and encoders[modality].moves != "head":
            moved = layers.protectable(encoders[modality].trunk, encoders[modality].moves)
            known = old.layers.get(modality, {})
            starts = layers.matrices(old.encoders[modality].trunk, [name for name in moved if name in known])
            tensors.layer_changes[modality] = LayerChange(starts, known)
    for modality in dataset.specs:
        windows = dataset.of_modality(modality, learn)
        tensors.calibration[modality] = _calibration(old.calibration.get(modality), torch.from_numpy(windows))
        wanted = plan.encoders.moves(modality) != "head" and plan.protection.rule in KEEPS
        if wanted or modality in old.layers:  # once begun, no stage may be missing
            tensors.layers[modality] = layer_moments(encoders, modality, windows, old.layers.get(modality, {}))
    for looked in looks(work, encoders):
        tensors.seen = joined_moments(work, tensors.seen, looked)
        if plan.heads.fit == "moments" or old.sums.begun:  # once begun, no stage may be missing
            tensors.sums = summed(work, tensors.sums, looked)
    tensors.rule = remembered_rule(work, encoders, course, old.rule)
    tensors.replay = replay_of(work, old.replay)
    return tensors


def looks(work: Work, encoders: Encoders) -> Iterator[dict[str, Tensor]]:
    """The heads' inputs (present, f) of every sensor's windows, once as they are, then harmlessly changed."""
    plan = work.plan
    for k in range(plan.heads.looks if plan.heads.fit == "moments" else 1):
        looked = {}
        for sensor, view in work.dataset.views.items():
            rows = work.learn[view.present[work.learn]]
            kind = features.modality(work.dataset.specs[view.modality])
            parts = []
            for at in range(0, len(rows), evaluate.CHUNK):
                here = rows[at : at + evaluate.CHUNK]
                windows = view.inputs[here]
                if k:
                    chance = loop.chances(plan.seed + k, "looks " + sensor, 0, here)
                    windows = weakly(kind, torch.from_numpy(windows), chance).numpy()
                parts.append(evaluate.embed(encoders[view.modality], windows, with_head=False))
            nothing = np.zeros((0, encoders[view.modality].head.weight.shape[1] - 1), np.float32)
            looked[sensor] = torch.from_numpy(np.concatenate([nothing, *parts]))
        yield looked


def joined_moments(work: Work, seen: Mapping[str, Moments], looked: Mapping[str, Tensor]) -> dict[str, Moments]:
    """Moments of every modality of the stage, with the inputs of one look."""
    joined = dict(seen)
    for sensor, x in looked.items():
        modality = work.dataset.views[sensor].modality
        joined[modality] = joined.get(modality, projection.nothing_seen(x.shape[1])).joined(x)
    return joined


def summed(work: Work, sums: Sums, looked: Mapping[str, Tensor]) -> Sums:
    """Sums per label or per pair of sensors, with the inputs of one look; of the kind that there is, if any."""
    views, learn = work.dataset.views, work.learn
    by_label = bool(sums.by_label) if sums.begun else work.plan.losses.labels
    for sensor, x in looked.items() if by_label and len(work.dataset.labels) else ():
        names = work.dataset.labels[learn[views[sensor].present[learn]]]
        sums = sums.labelled(views[sensor].modality, x, names.tolist())
    for a, b in [] if by_label else work.pairs:
        if views[a].modality != views[b].modality:
            here = {sensor: views[sensor].present[learn] for sensor in (a, b)}
            common = here[a] & here[b]
            xa, xb = (looked[sensor][torch.from_numpy(common[here[sensor]])] for sensor in (a, b))
            sums = sums.paired((views[a].modality, views[b].modality), xa, xb)
    return sums


def solve(work: Work, tensors: Tensors, protections: Mapping[str, Protection]) -> None:
    """Set heads to what follows from the moments of all stages, as far as they are free to move."""
    plan, encoders, sums = work.plan, tensors.encoders, tensors.sums
    if plan.losses.labels:
        heads = {
            name: solved.to_anchors(tensors.seen[name], sums.by_label[name], plan.dim, plan.heads.ridge)
            for name in work.dataset.specs
        }
    else:
        heads = solved.to_each_other(tensors.seen, sums, plan.dim, plan.heads.ridge)
        before = {name: change.start for name, change in tensors.changes.items()}
        heads = solved.turned(heads, before, {name: change.seen for name, change in tensors.changes.items()})
    with torch.no_grad():
        for name in heads.keys() & work.dataset.specs.keys():  # an absent modality stays as it is
            encoders[name].head.weight.copy_(heads[name])
            if name in protections:
                protections[name].hold(encoders[name].head.weight)


def layer_moments(
    encoders: Encoders, modality: str, windows: NDArray[np.generic], old: Mapping[str, layers.LayerMoments]
) -> dict[str, layers.LayerMoments]:
    """Moments of every layer's inputs over all stages, so that a later stage may move the trunk."""
    trunk = encoders[modality].trunk
    where = encoders[modality].head.weight.device
    batches = (torch.from_numpy(windows[i : i + 64]).to(where) for i in range(0, len(windows), 64))
    return layers.gather(trunk, batches, layers.protectable(trunk, "all"), old or None)


def remembered_rule(work: Work, encoders: Encoders, course: Course, old: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the reference's rule and elastic weight consolidation have to know of all stages so far."""
    rule = work.plan.protection.rule
    if rule == "published":
        inputs = {
            name: torch.from_numpy(
                evaluate.embed(encoders[name], work.dataset.of_modality(name, work.learn), with_head=False)
            )
            for name in work.dataset.specs
        }
        return rules.remember_published(old, inputs)
    if rule == "ewc":
        batches = (loop.step_terms(course, batch) for batch in loop.ahead(course, range(course.per_epoch)))
        return rules.remember_ewc(old, encoders, batches, loop.weights_of(work.plan))
    return {}


def replay_of(work: Work, old: Replay | None) -> Replay | None:
    """The moments to keep whole: as many of each stage and label as there are to have, at most `replay.size`."""
    size = work.plan.replay.size
    if not size:
        return None
    number = work.parent.stage.stage + 1 if work.parent else 1
    names = work.dataset.labels[work.learn] if len(work.dataset.labels) else [""] * len(work.learn)
    rng = np.random.default_rng([work.plan.seed, 4, number])
    before = old.keys if old else []
    kept, taken = ledger.merge(before, [f"{number}/{name}" for name in names], size, rng)
    return checkpoint.replay_from(work.dataset, work.learn[taken], number).after(old.only(kept) if old else None)


def ledger_of(work: Work, encoders: Encoders, course: Course) -> list[StageRow]:
    """What this stage logs of each modality (cila.md, section 3), from its log and a pass over the replayed moments."""
    number = work.parent.stage.stage + 1 if work.parent else 1
    terms = checkpoint.logged_terms(work.folder)
    settings, share = work.plan.distill, len(work.learn) and course.batch
    again = min(len(course.replayed), round(work.plan.replay.share * share))
    rows = []
    for modality in work.dataset.specs:
        sensors = {name for name, kind in work.dataset.modalities.items() if kind == modality}
        con = RunningMean()
        for name, value in terms:
            if ":" not in name and sensors & set(name.split("+")):
                con = con.joined(value, course.batch)
        weight = lambda_of(work, modality)
        dis = RunningMean()
        for name, value in terms:
            if name.startswith("distill:") and name.removeprefix("distill:") in sensors:
                dis = dis.joined(value / (settings.weight * weight), course.batch)
        rows.append(
            StageRow(
                stage=number,
                modality=modality,
                k_t=share / (share + again),
                lambda_t=weight,
                kappa=settings.kappa,
                temperatures=Temperatures(
                    contrast=work.plan.temperature,
                    student=settings.temperature,
                    teacher=settings.teacher_temperature,
                ),
                batch=course.batch + again,
                con=con.mean,
                con_scaled=con.mean,
                dis_all=dis.mean,
                teacher_sha256=work.parent.stage.files[checkpoint.WEIGHTS] if work.parent else "",
                norm="eval" if work.parent else "none",
                **monitored(work, encoders, course, modality, share / (share + again), weight),
            )
        )
    return rows


def monitored(
    work: Work, encoders: Encoders, course: Course, modality: str, k_t: float, weight: float
) -> dict[str, ledger.Monitor | ledger.Bound]:
    """The monitor and the bound of one modality; nothing without replayed moments of a label and an old version."""
    if work.parent is None or modality not in work.old or not len(course.replayed):
        return {}
    views = [view for view in course.dataset.views.values() if view.modality == modality]
    names = course.dataset.labels
    found = []
    for rows in (course.replayed, work.learn[: 4 * len(course.replayed)]):
        windows = np.concatenate([view.inputs[rows[view.present[rows]]] for view in views])
        labels = np.concatenate([names[rows[view.present[rows]]] for view in views]) if len(names) else np.zeros(0)
        same = torch.from_numpy((labels[:, None] == labels[None]) & (labels != "")[:, None])
        z = torch.from_numpy(evaluate.embed(encoders[modality], windows))
        found.append((windows, same, z))
    (windows, same, z), (_, new_same, new_z) = found
    if len(same) < 3 or not bool(same.float().sum() > len(same)) or len(new_same) < 3:
        return {}
    before = torch.from_numpy(evaluate.embed(work.parent.tensors.encoders[modality].to(work.where), windows))
    con_new = ledger.split(new_z, new_z, new_same, work.plan.temperature).con
    if not len(con_new):
        return {}
    seen = ledger.monitor(z, before, same, work.plan.temperature, float(con_new.mean()))
    return {"monitor": seen, "bound": ledger.bound(seen, k_t, weight)}


def bank(number: int, dataset: Dataset, encoders: Encoders, held: NDArray[np.int64]) -> dict[str, Tensor]:
    """Features of at most 256 held-out moments, float16, a last column of ones where the window was present."""
    rows = held[np.linspace(0, len(held) - 1, min(BANK_ROWS, len(held))).round().astype(int)]
    stored = {}
    for sensor, view in dataset.views.items():
        present = view.present[rows]
        x = evaluate.embed(encoders[view.modality], view.inputs[rows[present]], with_head=False)
        kept = np.zeros((len(rows), x.shape[1] + 1), np.float16)
        kept[present] = np.concatenate([x, np.ones((len(x), 1), np.float32)], axis=1)
        stored[f"{number}/{sensor}/{view.modality}"] = torch.from_numpy(kept)
    return stored


def _calibration(old: Tensor | None, new: Tensor) -> Tensor:
    """At most 128 windows, spread evenly over the stages' own."""
    if old is None:
        return _thinned(new, CALIBRATION_ROWS)
    fresh = _thinned(new, CALIBRATION_ROWS // 2)
    return torch.cat([_thinned(old, CALIBRATION_ROWS - len(fresh)), fresh])


def _thinned(rows: Tensor, most: int) -> Tensor:
    return rows[torch.linspace(0, len(rows) - 1, min(most, len(rows))).round().long()]

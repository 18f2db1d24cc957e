"""The training loop, read from top to bottom.

All chance comes from (seed, epoch) and (seed, step), so that a stage stopped anywhere goes on to the same bits.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lineside.clock import NS, Clock
from trainer import checkpoint
from trainer.data import Dataset
from trainer.defects import defective, weakly
from trainer.encoders import Encoders
from trainer.losses import Seen, total_loss
from trainer.plan import Plan
from trainer.progress import Progress
from trainer.projection import Protection

WARM_UP_SHARE, LAST_RATE, LARGEST_GRADIENT, HELD_PACE = 0.05, 0.02, 1.0, 5.0
DEFECTS_EACH = 2
COLUMNS = ["step", "epoch", "loss", "terms", "learning_rate", "seconds"]


def device() -> torch.device:
    """The accelerator if there is one; all cores otherwise. Deterministic on either."""
    torch.set_num_threads(os.cpu_count() or 1)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def train(
    encoders: Encoders,
    dataset: Dataset,
    learn: NDArray[np.int64],
    plan: Plan,
    protections: Mapping[str, Protection],
    folder: Path,
    identity: str,
    clock: Clock,
    progress: Progress,
    max_steps: int | None = None,
) -> bool:
    """Train `encoders` on the moments `learn`, going on from `folder` if it holds a half-trained stage.

    Heads in `protections` move only where these allow. `max_steps` stops after that step of the stage, half trained;
    True says that the stage is trained to its end.
    """
    optimiser = optimiser_of(encoders, plan, protections)
    batch = min(plan.batch, len(learn))
    per_epoch = len(learn) // batch
    steps = plan.epochs * per_epoch
    first = checkpoint.resume(folder, identity, encoders, optimiser)
    last = steps if max_steps is None else min(steps, max_steps)
    log = checkpoint.read_log(folder, first) or [COLUMNS]
    quick = {modality: each.like(encoders[modality].head.weight) for modality, each in protections.items()}
    encoders.train()
    began = clock.now_ns()
    for step in range(first, last):
        epoch, place = divmod(step, per_epoch)
        order = np.random.default_rng([plan.seed, 0, epoch]).permutation(learn)
        rows = order[place * batch : (place + 1) * batch]
        rng = np.random.default_rng([plan.seed, 1, step])
        loss, terms = total_loss(look(encoders, dataset, rows, plan, rng), plan.temperature, plan.defects)
        rate = learning_rate(plan.learning_rate, step, steps)
        if loss is not None:
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(encoders.parameters(), LARGEST_GRADIENT)
            for group in optimiser.param_groups:
                group["lr"] = rate * group["pace"]
            optimiser.step()
        if (step + 1) % plan.protection.every == 0 or step + 1 == steps:
            for modality, protection in (protections if step + 1 == steps else quick).items():
                protection.hold(encoders[modality].head.weight)
        told = " ".join(f"{name.replace(' ', ':')}={value:.4f}" for name, value in terms.items())
        value = math.nan if loss is None else loss.item()
        seconds = (clock.now_ns() - began) / NS
        log.append([str(step), str(epoch), f"{value:.5f}", told, f"{rate:.2e}", f"{seconds:.2f}"])
        progress("training steps", step + 1, steps)
        if place == per_epoch - 1 or step + 1 == last:
            checkpoint.save_progress(folder, identity, step + 1, encoders, optimiser, log)
    encoders.eval()
    return last == steps


def look(
    encoders: Encoders, dataset: Dataset, rows: NDArray[np.int64], plan: Plan, rng: np.random.Generator
) -> dict[str, Seen]:
    """Embed one batch of moments: each sensor's present windows, changed harmlessly, and with a defect."""
    seen = {}
    for sensor, view in dataset.views.items():
        encoder = encoders[view.modality]
        where = next(encoder.parameters()).device
        present = torch.from_numpy(view.present[rows]).to(where)
        if not bool(present.any()):
            continue
        windows = torch.from_numpy(view.inputs[rows[view.present[rows]]]).to(where)  # (present, *shape)
        looks = [weakly(view.modality, windows, rng)]
        if plan.defects.wanted:
            looks.append(weakly(view.modality, windows, rng))
            looks += [defective(view.modality, windows, rng) for _ in range(DEFECTS_EACH)]
        if encoder.training and not encoder.frozen and len(windows) * len(looks) < 2:
            continue  # batch norm needs two
        z = encoder(torch.cat(looks))  # (looks * present, dim)
        filled = z.new_zeros(len(looks), len(rows), z.shape[1])
        filled[:, present] = z.reshape(len(looks), len(windows), -1)
        seen[sensor] = Seen(filled[0], present, *((filled[1], filled[2:]) if plan.defects.wanted else ()))
    return seen


def optimiser_of(encoders: Encoders, plan: Plan, protections: Mapping[str, Protection]) -> torch.optim.Optimizer:
    """AdamW over what may move; only whole weights of convolutions decay, never heads, scales or shifts.

    Protected heads go faster: nothing but the few directions left to them can move, and no further than the budget.
    """
    held = {id(encoders[modality].head.weight) for modality in protections}
    moving = [(name, weight) for name, weight in encoders.named_parameters() if weight.requires_grad]
    decaying = [weight for name, weight in moving if weight.ndim > 1 and ".head." not in name]
    others = [weight for name, weight in moving if weight.ndim <= 1 or (".head." in name and id(weight) not in held)]
    heads = [weight for _, weight in moving if id(weight) in held]
    groups = [(decaying, 0.01, 1.0), (others, 0.0, 1.0), (heads, 0.0, HELD_PACE)]
    return torch.optim.AdamW(
        [{"params": params, "weight_decay": decay, "pace": pace} for params, decay, pace in groups if params],
        lr=plan.learning_rate,
    )


def learning_rate(top: float, step: int, steps: int) -> float:
    """A short linear rise, then half a cosine down to 2 % of `top`.

    >>> [round(learning_rate(1.0, step, 100), 2) for step in (0, 4, 50, 99)]
    [0.2, 1.0, 0.53, 0.02]
    """
    warm = max(1, round(WARM_UP_SHARE * steps))
    if step < warm:
        return top * (step + 1) / warm
    done = (step - warm + 1) / max(1, steps - warm)
    return top * (LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * done)) / 2)

"""The ways to fuse registered models: UME and its weights, UMT, and every cell of MMLoRA's sweep; and which to ship.

The mean of calibrated logits (UME) is shipped unless another way beats it on the validation part beyond noise: the
literature says that gains of adapters are small and hang on the rank (ume-mmlora.md, sections 2 and 8).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lineside.errors import GateError
from trainer import classifier, fusion_gates
from trainer.adapt_plan import AdaptPlan
from trainer.classifier import Classifier
from trainer.fused import low_rank
from trainer.joint import JointCourse, Models, Said, learn_jointly
from trainer.labelled import Labelled
from trainer.progress import Progress, silent
from trainer.registry import Registered
from trainer.resampling import Resampling, interval
from trainer.ume import mean_of_logits, simplex_weights

Floats = NDArray[np.float64]
ALL, UME, WEIGHTED, UMT = "all", "UME, mean of logits", "UME, fitted weights", "UMT"


@dataclass(frozen=True)
class Way:
    """One way to fuse: its models, and the weights of the mean of their logits by sensor.

    `bases` are the files of models that stand in the place of registered ones, `adapters` those of what was added, by
    modality; `trained` counts the parameters of both.
    """

    name: str
    models: Models
    weights: Mapping[str, float]
    rank: int = 0
    trained: int = 0
    bases: Mapping[str, bytes] = field(default_factory=dict)
    adapters: Mapping[str, bytes] = field(default_factory=dict)

    def logits(self, said: Said) -> Tensor:
        """Fused logits (n, C)."""
        weights = torch.tensor([self.weights[sensor] for sensor in said.sensors])
        return mean_of_logits(said.z, said.present, weights)

    def right(self, said: Said, state: NDArray[np.int64]) -> Floats:
        """1.0 where the fused decision is right, 0.0 where it is not, (n,)."""
        return np.asarray(self.logits(said).argmax(dim=1).numpy() == state, np.float64)


def all_ways(
    known: Mapping[str, Registered], data: Labelled, plan: AdaptPlan, progress: Progress = silent
) -> list[Way]:
    """Every way, UME first. Raises GateError when a frozen base has moved, ConfigError where peft is not installed."""
    own = registered(known)
    return [*_ensembles(own, data), *_joint(own, data, plan, progress), *_sweep(known, own, data, plan, progress)]


def registered(known: Mapping[str, Registered]) -> Models:
    """The registered models with their temperatures."""
    return Models(
        {m: each.model for m, each in known.items()}, {m: each.entry.temperature for m, each in known.items()}
    )


def choose(ways: Sequence[Way], data: Labelled, plan: AdaptPlan) -> tuple[Way, str]:
    """The way to ship, and why, by the validation part alone: UME, unless a trained way beats it beyond noise.

    UME is the uniform mean, or the one with fitted weights where that is right more often. A trained way must be right
    more often than it with the plan's confidence, by paired bootstrap, shared out over all that were tried
    (Bonferroni), as the best of many is good by luck too; and it must pass the gates of retention there.
    """
    rows, state = data.rows["val"], data.state[data.rows["val"]]
    said = {way.name: way.models.say(data, "val") for way in ways}
    rights = {way.name: way.right(said[way.name], state) for way in ways}
    draws = Resampling.of(data.groups[rows])
    safe = max((way for way in ways if not way.trained), key=lambda way: rights[way.name].mean())  # a tie: the first
    trained = [way for way in ways if way.trained]
    if not trained:
        return safe, "nothing was trained"
    best = max(trained, key=lambda way: rights[way.name].mean())
    gained = rights[best.name] - rights[safe.name]
    confidence = 1 - (1 - plan.gates.confidence) / len(trained)
    low = interval(draws.means(gained), 2 * confidence - 1)[0]
    told = f"{best.name} gained {100 * gained.mean():+.2f} points on validation, surely {100 * low:+.2f}"
    if low <= 0:
        return safe, f"{told}: within noise, so {safe.name} is kept"
    alone, before = said[best.name].right(state), said[ways[0].name].right(state)
    kept = fusion_gates.retention(alone, before, draws, plan.gates.retention_loss, plan.gates.confidence)
    if lost := [gate.name for gate in kept if not gate.passed]:
        return safe, f"{told}, but it fails {', '.join(lost)} there, so {safe.name} is kept"
    return best, f"{told}: beyond noise"


def _ensembles(own: Models, data: Labelled) -> list[Way]:
    """UME, and the mean with weights fitted on the validation part."""
    said = own.say(data, "val")
    weights = simplex_weights(said.z, said.present, torch.from_numpy(data.state[data.rows["val"]]))
    fitted = dict(zip(said.sensors, weights.tolist(), strict=True))
    return [Way(UME, own, uniform(said.sensors)), Way(WEIGHTED, own, fitted)]


def uniform(sensors: Sequence[str]) -> dict[str, float]:
    """The same weight for each."""
    return {sensor: 1 / len(sensors) for sensor in sensors}


def _joint(own: Models, data: Labelled, plan: AdaptPlan, progress: Progress) -> list[Way]:
    """UMT: fresh models trained together, with the registered ones' features as a guide."""
    if not plan.umt.epochs:
        return []
    torch.manual_seed(plan.seed)
    models = {name: _fresh(data, name) for name in own.models}
    course = JointCourse(
        Models(models, dict.fromkeys(models, 1.0)),
        frozenset(models),
        plan.umt.epochs,
        plan.batch,
        plan.umt.learning_rate,
        plan.drop,
        plan.seed,
        whole=True,
        teachers=own.models,
        strength=plan.umt.strength,
    )
    learn_jointly(course, data, UMT, progress)
    temperatures = {name: _temperature(model, data, name) for name, model in models.items()}
    files = {name: classifier.to_bytes(model) for name, model in models.items()}
    count = sum(weight.numel() for model in models.values() for weight in model.parameters())
    sensors = tuple(data.dataset.views)
    return [Way(UMT, Models(models, temperatures), uniform(sensors), trained=count, bases=files)]


def _fresh(data: Labelled, modality: str) -> Classifier:
    model = Classifier(data.dataset.specs[modality], len(data.names))
    model.fit(torch.from_numpy(data.windows(modality, "train")[0]))
    return model


def _temperature(model: Classifier, data: Labelled, modality: str) -> float:
    windows, rows = data.windows(modality, "val")
    return classifier.temperature(classifier.outputs(model, windows), data.state[rows])


def _sweep(
    known: Mapping[str, Registered], own: Models, data: Labelled, plan: AdaptPlan, progress: Progress
) -> list[Way]:
    """MMLoRA: every rank, on each modality alone and on all."""
    if not plan.lora.ranks:
        return []
    chosen: list[tuple[str, frozenset[str]]] = [(name, frozenset({name})) for name in sorted(own.models)]
    if len(own.models) > 1:
        chosen.append((ALL, frozenset(own.models)))
    return [
        _cell(known, own, data, plan, rank, name, moving, progress)
        for rank in plan.lora.ranks
        for name, moving in chosen
    ]


def _cell(
    known: Mapping[str, Registered],
    own: Models,
    data: Labelled,
    plan: AdaptPlan,
    rank: int,
    where: str,
    moving: frozenset[str],
    progress: Progress,
) -> Way:
    """One rank and place: adapters trained on copies, whose bases must be the registered ones to the bit afterwards."""
    adapters = low_rank()
    torch.manual_seed(plan.seed)
    models = {name: copy.deepcopy(model) if name in moving else model for name, model in own.models.items()}
    abouts = {}
    for name in sorted(moving):
        layers, base = adapters.places(models[name], plan.lora.layers), known[name].entry.sha256
        abouts[name] = adapters.About(
            modality=name, stage=plan.stage, base_sha256=base, rank=rank, scale=plan.lora.scale, layers=layers
        )
        adapters.insert(models[name], abouts[name])
    both = Models(models, own.temperatures)
    course = JointCourse(both, moving, plan.epochs, plan.batch, plan.learning_rate, plan.drop, plan.seed)
    title = f"MMLoRA rank {rank}, {where}"
    learn_jointly(course, data, title, progress)
    for name in moving:
        if adapters.base_sha256(models[name]) != known[name].entry.sha256:
            raise GateError(title, f"the frozen base of {name} has moved", "do not use this fusion, and report it")
    files = {name: adapters.to_bytes(models[name], abouts[name]) for name in sorted(moving)}
    count = sum(pair.numel() for name in moving for pair in adapters.pairs(models[name]).values())
    return Way(title, both, uniform(tuple(data.dataset.views)), rank, count, adapters=files)

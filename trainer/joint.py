"""Joint training with late fusion: of adapters alone (MMLoRA), or of whole models with teachers (UMT).

The loss is the cross-entropy of the mean of the logits of the sensors that are kept: each sensor of a moment is dropped
with some probability, never the last, so that every subset of sensors has been seen (UME-MMA; ume-mmlora.md, 2.4).
What does not move is reckoned once, before the first step.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from trainer.classifier import Best, Classifier, outputs, score, stepped
from trainer.labelled import Labelled
from trainer.progress import Progress, silent
from trainer.ume import mean_of_logits

WEIGHT_DECAY = 1e-4


@dataclass(frozen=True)
class Said:
    """What sensors say of some moments: logits `z` (sensors, n, classes), zeros where not `present` (sensors, n)."""

    sensors: tuple[str, ...]
    z: Tensor
    present: Tensor

    def only(self, sensors: frozenset[str]) -> Said:
        """As if the other sensors were not there."""
        keep = torch.tensor([name in sensors for name in self.sensors])
        return Said(self.sensors, self.z, self.present & keep[:, None])

    def right(self, state: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """Of each sensor alone, by true states (n,): 1.0 where it is right, 0.0 where not, NaN where it is absent."""
        found = self.z.argmax(dim=2).numpy() == state
        every = zip(self.sensors, found, self.present.numpy(), strict=True)
        return {sensor: np.where(there, right, np.nan) for sensor, right, there in every}


@dataclass(frozen=True)
class Models:
    """A classifier and a temperature for each modality."""

    models: Mapping[str, Classifier]
    temperatures: Mapping[str, float]

    def say(self, data: Labelled, part: str, only: Collection[str] | None = None) -> Said:
        """Calibrated logits of every sensor for the moments of one part; zeros of modalities that are not in `only`."""
        asked = self.models.keys() if only is None else only
        found = [self._of(data, sensor, data.rows[part], asked) for sensor in data.dataset.views]
        present = [torch.from_numpy(view.present[data.rows[part]]) for view in data.dataset.views.values()]
        return Said(tuple(data.dataset.views), torch.stack(found), torch.stack(present))

    def _of(self, data: Labelled, sensor: str, rows: NDArray[np.int64], asked: Collection[str]) -> Tensor:
        view = data.dataset.views[sensor]
        z = torch.zeros(len(rows), len(data.names))
        if view.modality not in asked:
            return z
        here = view.present[rows]
        said = outputs(self.models[view.modality], view.inputs[rows[here]])
        z[torch.from_numpy(here)] = said / self.temperatures[view.modality]
        return z


@dataclass(frozen=True)
class JointCourse:
    """What is trained together: `moving` modalities learn, the others say what they always say.

    `whole` models learn with their normalisation in training mode; adapters leave it frozen. `teachers` are the frozen
    models whose features the moving ones are to have too, at `strength` times their mean squared distance.
    """

    models: Models
    moving: frozenset[str]
    epochs: int
    batch: int
    learning_rate: float
    drop: float
    seed: int
    whole: bool = False
    teachers: Mapping[str, Classifier] = field(default_factory=dict)
    strength: float = 0.0


def learn_jointly(course: JointCourse, data: Labelled, what: str, progress: Progress = silent) -> float:
    """Train what moves, leave it at the epoch that was best on `val`, and give its accuracy there.

    The start counts as an epoch: for adapters it is UME itself, so that they are never worse than it on `val`.
    """
    torch.manual_seed(course.seed)
    rows, state = data.rows["train"], torch.from_numpy(data.state)
    models = nn.ModuleDict({name: course.models.models[name] for name in sorted(course.moving)})
    resting = course.models.models.keys() - course.moving
    still, still_val = (course.models.say(data, part, resting) for part in ("train", "val"))
    taught = {sensor: _features(course, data, sensor) for sensor in data.dataset.views if course.teachers}
    weights = [weight for weight in models.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=course.learning_rate, weight_decay=WEIGHT_DECAY)
    best = Best(models.state_dict(), *_on_val(course, data, still_val))
    each = max(1, len(rows) // course.batch)
    for epoch in range(course.epochs):
        models.train(course.whole)
        chance = np.random.default_rng([course.seed, 3, epoch])
        for place, chosen in enumerate(np.array_split(chance.permutation(len(rows)), each)):
            said, extra = _batch(course, data, still, taught, chosen)
            kept = drawn(said.present, course.drop, chance)
            fused = mean_of_logits(said.z, kept)
            loss = functional.cross_entropy(fused, state[rows[chosen]]) + course.strength * extra
            stepped(loss, optimiser, course.learning_rate, epoch * each + place, course.epochs * each, what)
        models.eval()
        best.offer(*_on_val(course, data, still_val), models.state_dict())
        progress(what, epoch + 1, course.epochs)
    models.load_state_dict(best.state)
    models.requires_grad_(False)
    return best.accuracy


def drawn(present: Tensor, drop: float, chance: np.random.Generator) -> Tensor:
    """Which sensors (sensors, n) of each moment are kept; one that is present always is.

    >>> kept = drawn(torch.ones(3, 1000, dtype=torch.bool), 0.5, np.random.default_rng(0))
    >>> bool(kept.any(dim=0).all()), 0.5 < kept.double().mean().item() < 0.6
    (True, True)
    """
    luck = torch.from_numpy(chance.random(tuple(present.shape)))
    luck = torch.where(present, luck, -1.0)
    return present & ((luck >= drop) | (luck == luck.max(dim=0).values))


def _batch(
    course: JointCourse, data: Labelled, still: Said, taught: Mapping[str, Tensor], chosen: NDArray[np.int64]
) -> tuple[Said, Tensor]:
    """What every sensor says of the chosen moments of `train`, and how far features are from their teachers'."""
    rows, extra, found = data.rows["train"][chosen], torch.zeros(()), []
    for sensor, z in zip(still.sensors, still.z[:, chosen], strict=True):
        view = data.dataset.views[sensor]
        here = view.present[rows]
        if view.modality not in course.moving or here.sum() < 1 + course.whole:  # batch norm needs two
            found.append(z)
            continue
        model = course.models.models[view.modality]
        features = model.trunk(torch.from_numpy(view.inputs[rows[here]]))
        place = torch.from_numpy(np.flatnonzero(here))
        found.append(z.index_put((place,), model.head(features) / course.models.temperatures[view.modality]))
        if sensor in taught:
            extra = extra + functional.mse_loss(features, taught[sensor][chosen][place])
    return Said(still.sensors, torch.stack(found), still.present[:, chosen]), extra


def _features(course: JointCourse, data: Labelled, sensor: str) -> Tensor:
    """The teacher's features (n, f) of every moment of `train`, zeros where the sensor is absent."""
    view, rows = data.dataset.views[sensor], data.rows["train"]
    teacher: Classifier = course.teachers[view.modality]
    trunk: Callable[[Tensor], Tensor] = teacher.trunk
    here = view.present[rows]
    found = torch.zeros(len(rows), teacher.head.in_features)
    found[torch.from_numpy(here)] = outputs(teacher, view.inputs[rows[here]], trunk)
    return found


def _on_val(course: JointCourse, data: Labelled, still: Said) -> tuple[float, float]:
    """Accuracy and log score of the mean of logits on the validation part; `still` is what the others say there."""
    moved = course.models.say(data, "val", course.moving)
    return score(mean_of_logits(still.z + moved.z, still.present), data.state[data.rows["val"]])

"""One modality's own classifier of the station's states: a trunk as encoders have it, and a linear head of logits.

Where a frozen foreign backbone saw the windows before (feature files), the trunk only scales its features, and the head
is all that is learned.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save as pack
from torch import Tensor, nn
from torch.nn import functional

from lineside import features
from lineside.errors import ConfigError, GateError
from lineside.features import Prepare
from lineside.states import sharpness
from trainer.adapt_plan import LabelledPlan
from trainer.defects import weakly
from trainer.encoders import Encoder
from trainer.labelled import Labelled
from trainer.loop import chances, learning_rate
from trainer.progress import Progress, silent

CHUNK = 256
WEIGHT_DECAY = 0.01
BLUNTEST = 1e-3  # 1 / temperature of a model that says nothing


class Classifier(nn.Module):
    """(batch, *shape) prepared windows to logits (batch, classes)."""

    def __init__(self, spec: Prepare, classes: int) -> None:
        super().__init__()
        encoder = Encoder(spec, classes)
        self.trunk = encoder.trunk
        self.head = nn.Linear(encoder.head.weight.shape[1] - 1, classes)

    def forward(self, windows: Tensor) -> Tensor:
        logits: Tensor = self.head(self.trunk(windows))
        return logits

    def fit(self, windows: Tensor) -> None:
        """Set the normalisation inside the graph from windows (n, *shape)."""
        cast(Callable[[Tensor], None], self.trunk.fit)(windows)


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Weights and buffers as they are stored."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}


def to_bytes(model: nn.Module) -> bytes:
    """The safetensors file of a model: the same bytes for the same weights and buffers, whose hash names them."""
    return pack(tensors(model))


def load(model: nn.Module, stored: Mapping[str, Tensor], where: str) -> None:
    """Take stored weights and buffers. Raises ConfigError when one is missing, unknown or of another shape."""
    own = model.state_dict()
    wrong = sorted(own.keys() ^ stored.keys()) or [name for name in own if own[name].shape != stored[name].shape]
    if wrong:
        told = f"does not fit the model it is said to be of ({', '.join(wrong[:3])} missing, unknown or of other shape)"
        raise ConfigError(where, told, "register the model again")
    model.load_state_dict(dict(stored))


def outputs(model: Classifier, windows: NDArray[np.generic], call: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Logits (n, classes) of prepared windows (n, *shape), or what `call` makes of them; the model in eval mode."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        done = [(call or model)(torch.from_numpy(windows[at : at + CHUNK])) for at in range(0, len(windows), CHUNK)]
    model.train(was_training)
    return torch.cat(done) if done else torch.zeros(0, model.head.out_features)


def temperature(logits: Tensor, state: NDArray[np.int64]) -> float:
    """The scalar T for which softmax(logits (n, C) / T) has the best logarithmic score on moments not learned from.

    Guo et al., ICML 2017; as the device reckons it (lineside.states.sharpness), which never takes a finite number of
    moments for certainty.
    """
    classes = logits.shape[1]
    uniform = np.full(classes, -math.log(classes))
    return 1 / max(BLUNTEST, sharpness(logits.double().numpy(), state, uniform))


@dataclass(frozen=True)
class Part:
    """Windows (n, *shape) of one modality, their moments (n,) and states (n,)."""

    windows: NDArray[np.generic]
    rows: NDArray[np.int64]
    state: NDArray[np.int64]

    @classmethod
    def of(cls, data: Labelled, modality: str, name: str) -> Part:
        windows, rows = data.windows(modality, name)
        return cls(windows, rows, data.state[rows])


def learn_alone(data: Labelled, modality: str, plan: LabelledPlan, progress: Progress = silent) -> Classifier:
    """Train one modality's classifier by cross-entropy on `train`; the epoch that is best on `val` is given.

    Windows are harmlessly changed as a stage's are. Raises GateError when the loss is no number any more.
    """
    torch.manual_seed(plan.seed)
    spec = data.dataset.specs[modality]
    train, val = (Part.of(data, modality, name) for name in ("train", "val"))
    model = Classifier(spec, len(data.names))
    model.fit(torch.from_numpy(train.windows))
    optimiser = torch.optim.AdamW(_decaying(model), lr=plan.learning_rate)
    each = max(1, len(train.rows) // plan.batch)
    best = Best(model.state_dict())
    for epoch in range(plan.epochs):
        model.train()
        order = np.random.default_rng([plan.seed, 0, epoch]).permutation(len(train.rows))
        for place, chosen in enumerate(np.array_split(order, each)):
            step = epoch * each + place
            chance = chances(plan.seed, modality, step, chosen)
            changed = weakly(features.modality(spec), torch.from_numpy(train.windows[chosen]), chance)
            loss = functional.cross_entropy(model(changed), torch.from_numpy(train.state[chosen]))
            stepped(loss, optimiser, plan.learning_rate, step, plan.epochs * each, modality)
        best.offer(*score(outputs(model, val.windows), val.state), model.state_dict())
        progress(f"{modality} alone", epoch + 1, plan.epochs)
    model.load_state_dict(best.state)
    return model.eval()


class Best:
    """The state of the best epoch so far, by accuracy, then by log score; the first offered one wins a tie."""

    def __init__(self, state: Mapping[str, Tensor], accuracy: float = -math.inf, log_score: float = -math.inf) -> None:
        self.accuracy, self.log_score, self.state = accuracy, log_score, copy.deepcopy(dict(state))

    def offer(self, accuracy: float, log_score: float, state: Mapping[str, Tensor]) -> None:
        if (accuracy, log_score) > (self.accuracy, self.log_score):
            self.accuracy, self.log_score, self.state = accuracy, log_score, copy.deepcopy(dict(state))


def score(logits: Tensor, state: NDArray[np.int64]) -> tuple[float, float]:
    """Accuracy and mean log probability of the true states (n,) by logits (n, C)."""
    truth = torch.from_numpy(state)
    right = (logits.argmax(dim=1) == truth).double().mean()
    return float(right), -float(functional.cross_entropy(logits, truth))


def stepped(loss: Tensor, optimiser: torch.optim.Optimizer, top: float, step: int, steps: int, what: str) -> None:
    """One step down the gradient at this step's rate. Raises GateError for a loss that is no number."""
    if not bool(torch.isfinite(loss)):
        raise GateError(what, f"the loss is no number at step {step}", "lower learning_rate")
    optimiser.zero_grad()
    torch.autograd.backward(loss)
    for group in optimiser.param_groups:
        group["lr"] = learning_rate(top, step, steps)
    optimiser.step()


def _decaying(model: nn.Module) -> list[dict[str, object]]:
    """Parameter groups: only whole weights of convolutions and of the head decay, never scales or shifts."""
    whole = [weight for weight in model.parameters() if weight.ndim > 1]
    rest: Iterable[Tensor] = [weight for weight in model.parameters() if weight.ndim <= 1]
    return [{"params": whole, "weight_decay": WEIGHT_DECAY}, {"params": rest, "weight_decay": 0.0}]

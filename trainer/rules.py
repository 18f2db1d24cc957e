"""The ways in which a stage keeps what earlier stages learned, one class a row of `[protection] rule`.

`penalty` joins the loss, `project` sees the gradients before the optimiser does, `hold` the weights after it has
stepped, `finish` leaves plain weights behind. What a rule has to know of all stages so far travels as tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.nn.utils import parametrize
from torch.nn.utils.parametrize import ParametrizationList

from trainer import layers, projection, published
from trainer.encoders import Encoders
from trainer.layers import LayerProtection
from trainer.losses import total
from trainer.projection import Products, Protection, rotate

PUBLISHED_THRESHOLD = 0.1  # absolute, of the reference's code (dns.md, section 4)


class Rule(Protocol):
    """What the training loop asks of a rule at every step."""

    def penalty(self) -> Tensor | None: ...
    def project(self) -> None: ...
    def hold(self, step: int, last: bool) -> None: ...
    def finish(self) -> None: ...


class Free:
    """Nothing is kept: plain fine-tuning."""

    def penalty(self) -> Tensor | None:
        return None

    def project(self) -> None:
        pass

    def hold(self, step: int, last: bool) -> None:
        pass

    def finish(self) -> None:
        pass


@dataclass
class Held(Free):
    """Weights go back onto what they may be after every `every` steps, and exactly (in float64) after the last.

    `heads` by modality; `trunks` by modality and layer; `products` for heads of which only inner products are kept.
    """

    encoders: Encoders
    heads: Mapping[str, Protection]
    trunks: Mapping[str, Mapping[str, LayerProtection]] = field(default_factory=dict)
    products: Products | None = None
    every: int = 1

    def __post_init__(self) -> None:
        self._heads = {name: each.like(self.encoders[name].head.weight) for name, each in self.heads.items()}
        self._trunks = {name: layers.quick(self.encoders[name].trunk, each) for name, each in self.trunks.items()}

    def hold(self, step: int, last: bool) -> None:
        if not last and (step + 1) % self.every:
            return
        for name, head in (self.heads if last else self._heads).items():
            head.hold(self.encoders[name].head.weight)
        for name, trunk in (self.trunks if last else self._trunks).items():
            layers.hold_all(self.encoders[name].trunk, trunk)
        if self.products:
            self.products.hold({name: encoder.head.weight for name, encoder in self.encoders.items()})


@dataclass
class Rotated(Held):
    """Heads whose optimiser sees their free directions alone; what trunks may be is held as ever."""

    def __post_init__(self) -> None:
        for name, protection in self.heads.items():
            rotate(self.encoders[name].head, protection)
        self.rotated, self.heads = self.heads, {}
        super().__post_init__()

    def hold(self, step: int, last: bool) -> None:
        super().hold(step, last)
        for name in self.rotated:
            moving = cast(ParametrizationList, self.encoders[name].head.parametrizations.weight)
            cast(projection.Rotated, moving[0]).hold(moving.original)

    def finish(self) -> None:
        for name in self.rotated:
            parametrize.remove_parametrizations(self.encoders[name].head, "weight")


@dataclass
class Published(Free):
    """The reference's rule: gradients of heads are projected, an adaptive optimiser then steps (dns.md, section 5)."""

    encoders: Encoders
    inputs: Mapping[str, Tensor]  # P_in (f, f) by modality; its P_out is the identity (D1)

    @torch.no_grad()
    def project(self) -> None:
        for name, seen in self.inputs.items():
            gradient = self.encoders[name].head.weight.grad
            if gradient is not None:
                weight = gradient[:, :-1]  # the reference does not project biases
                weight.copy_(weight - weight @ seen.to(weight))

    @staticmethod
    def of(encoders: Encoders, remembered: Mapping[str, Tensor]) -> Published:
        """From what `remember_published` kept."""
        names = [name.partition("/")[2] for name in remembered if name.startswith("published/")]
        inputs = {name: published.projector(remembered[f"published/{name}"], PUBLISHED_THRESHOLD) for name in names}
        return Published(encoders, inputs)


def remember_published(remembered: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The second moments (f, f) of the reference, all under one counter (D5), after a stage of `inputs` (n, f)."""
    count = int(remembered.get("count", torch.tensor(0)))
    kept = {name.partition("/")[2]: x for name, x in remembered.items() if name.startswith("published/")}
    total = count + max(len(x) for x in inputs.values())
    for name in inputs:
        x = inputs[name].double().cpu()
        kept[name] = kept.get(name, x.new_zeros(x.shape[1], x.shape[1])) * (count / total) + x.T @ x / total
    return {"count": torch.tensor(total), **{f"published/{name}": x for name, x in kept.items()}}


@dataclass
class Ewc(Free):
    """Elastic weight consolidation (Kirkpatrick et al., PNAS 2017): strength / 2 * sum of Fisher * (w - start)^2."""

    encoders: Encoders
    start: Mapping[str, Tensor]
    fisher: Mapping[str, Tensor]
    strength: float

    @staticmethod
    def of(encoders: Encoders, remembered: Mapping[str, Tensor], strength: float) -> Ewc:
        """From what `remember_ewc` kept; the start is where the encoders stand now."""
        fisher = {name.removeprefix("fisher/"): x for name, x in remembered.items() if name.startswith("fisher/")}
        return Ewc(encoders, {name: x.detach().clone() for name, x in encoders.named_parameters()}, fisher, strength)

    def penalty(self) -> Tensor | None:
        moving = [(name, weight) for name, weight in self.encoders.named_parameters() if weight.requires_grad]
        terms = [
            (self.fisher[name].to(weight) * (weight - self.start[name].to(weight)) ** 2).sum()
            for name, weight in moving
            if name in self.fisher
        ]
        return self.strength / 2 * torch.stack(terms).sum() if terms else None


def remember_ewc(
    remembered: Mapping[str, Tensor],
    encoders: Encoders,
    batches: Iterable[Mapping[str, Tensor]],
    weights: Mapping[str, float],
) -> dict[str, Tensor]:
    """The diagonal Fisher information of all stages so far: squared gradients of each batch's loss, averaged.

    They are of batches, as contrast has no loss of a single moment; the scale is the strength's to choose.
    """
    moving = {name: weight for name, weight in encoders.named_parameters() if weight.requires_grad}
    fisher, count = {name: torch.zeros_like(weight) for name, weight in moving.items()}, 0
    for terms in batches:
        loss = total(terms, weights)
        if loss is None:
            continue
        gradients = torch.autograd.grad(loss, list(moving.values()), allow_unused=True)
        for name, gradient in zip(moving, gradients, strict=True):
            if gradient is not None:
                fisher[name] += gradient**2
        count += 1
    old = {name: x for name, x in remembered.items() if name.startswith("fisher/")}
    new = {f"fisher/{name}": x.cpu() / max(1, count) for name, x in fisher.items()}
    return {name: old.get(name, 0) + new.get(name, 0) for name in sorted(old | new)}

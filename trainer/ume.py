"""Late fusion of what each sensor's own model says: the uni-modal ensemble (UME) and its weighted kin.

Sources: Du et al., ICML 2023 (UME); ume-mmlora.md, section 2.1. Logits are (sensors, n, classes), calibrated by one
temperature a modality before; `present` (sensors, n) says who speaks. Who is absent is left out of the mean, never
counted as zero, so that a missing sensor gives the fusion of the rest. A moment without any sensor says nothing: zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

LEAST_SHARE = 0.02  # of the weights, spread evenly: a sensor that is left alone must still be heard
FITTING_STEPS = 60


def mean_of_logits(z: Tensor, present: Tensor, weights: Tensor | None = None) -> Tensor:
    """Weighted mean over the sensors present, (n, classes): a normalised product of experts.

    >>> z = torch.tensor([[[2.0, 0.0]], [[0.0, 4.0]]])
    >>> mean_of_logits(z, torch.tensor([[True], [True]])), mean_of_logits(z, torch.tensor([[True], [False]]))
    (tensor([[1., 2.]]), tensor([[2., 0.]]))
    """
    return (shares(z, present, weights)[:, :, None] * _silent(z, present)).sum(dim=0)


def mean_of_probabilities(z: Tensor, present: Tensor) -> Tensor:
    """Logarithm of the mean probability over the sensors present, (n, classes): a mixture of experts."""
    log_p = functional.log_softmax(_silent(z, present), dim=2)
    heard = torch.where(present[:, :, None], log_p, -torch.inf)
    mixed = torch.logsumexp(heard, dim=0) - torch.log(present.sum(dim=0).clamp(min=1)[:, None])
    return torch.where(present.any(dim=0)[:, None], mixed, 0.0)


def shares(z: Tensor, present: Tensor, weights: Tensor | None = None) -> Tensor:
    """What each sensor's logits count for in each moment's mean, (sensors, n): 0 if absent, else summing to 1."""
    every = torch.ones(len(z), dtype=z.dtype, device=z.device) if weights is None else weights.to(z)
    heard = every[:, None] * present
    return heard / torch.where(present.any(dim=0), heard.sum(dim=0), 1.0)


def simplex_weights(z: Tensor, present: Tensor, state: Tensor) -> Tensor:
    """Weights (sensors,) on the simplex with the best logarithmic score of the mean on moments not learned from.

    A free factor stands beside them while they are fitted, and is dropped: else the sharpest sensor would win, not
    the best. No weight is below LEAST_SHARE / sensors.
    """
    count = len(z)
    theta, sharp = torch.zeros(count, requires_grad=True), torch.zeros((), requires_grad=True)
    optimiser = torch.optim.LBFGS([theta, sharp], max_iter=FITTING_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        fused = mean_of_logits(z.float(), present, _on_simplex(theta))
        # Drawn a little to the middle, so that a set that is told apart without error has a best point at all.
        value = functional.cross_entropy(sharp.exp() * fused, state) + 1e-3 * (theta.square().sum() + sharp.square())
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    return _on_simplex(theta.detach())


def _on_simplex(theta: Tensor) -> Tensor:
    return (1 - LEAST_SHARE) * functional.softmax(theta, dim=0) + LEAST_SHARE / len(theta)


def _silent(z: Tensor, present: Tensor) -> Tensor:
    """Logits with zeros where there is no window, whatever stood there."""
    return torch.where(present[:, :, None], z, 0.0)

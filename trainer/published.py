"""Dual-sided gradient projection as its authors' code runs it, defects included: a baseline, never a default.

Continual Multimodal Contrastive Learning (Liu et al., NeurIPS 2025), public code; where the code and the method differ
is told in dns.md, section 5. What a stage uses is trainer.projection.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional


def info_nce(za: Tensor, zb: Tensor) -> Tensor:
    """InfoNCE in one direction, temperature 1, of embeddings (n, dim) that are not normalised (section 2.1)."""
    return functional.cross_entropy(za @ zb.T, torch.arange(len(za), device=za.device))


def projector(second: Tensor, threshold: float) -> Tensor:
    """V V^T of the eigenvectors of `second` (d, d) whose eigenvalues are above an absolute threshold (section 2.3)."""
    values, vectors = torch.linalg.eigh((second + second.T) / 2)
    kept = vectors[:, values > threshold]
    return kept @ kept.T


def project(gradient: Tensor, outputs: Tensor, inputs: Tensor) -> Tensor:
    """G - P_out G P_in (section 2.4)."""
    return gradient - outputs @ gradient @ inputs


@dataclass
class Statistics:
    """Second moments of the heads' inputs, and of what their partners made of theirs, under one counter for all.

    The counter is the defect D5: a modality that was absent from some steps is weighted wrongly.
    """

    dim: int
    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    count: int = 0

    def book(self, pair: tuple[str, str], features: tuple[Tensor, Tensor], weights: tuple[Tensor, Tensor]) -> None:
        """Add a finished step (section 2.2): `features` (n, d) and end-of-step `weights` (dim, d) of both."""
        total = self.count + len(features[0])
        for own, other in ((0, 1), (1, 0)):
            x, w = features[own], weights[own]
            second = x.T @ x / total
            self.inputs[pair[own]] = self._kept(self.inputs, pair[own], x) * (self.count / total) + second
            partner = pair[other]
            self.outputs[partner] = self._kept(self.outputs, partner, x) * (self.count / total) + w @ second @ w.T
        self.count = total

    def projectors(self, modality: str, threshold: float) -> tuple[Tensor, Tensor]:
        """P_out and P_in of a step that begins now: zero for a modality never seen.

        The output side has threshold 0, so that rounding makes it the identity (defect D1).
        """
        if modality not in self.inputs:
            zero = torch.zeros(self.dim, self.dim, dtype=torch.float64)
            return zero, zero
        return torch.eye(self.dim, dtype=torch.float64), projector(self.inputs[modality], threshold)

    def _kept(self, held: dict[str, Tensor], modality: str, like: Tensor) -> Tensor:
        return held.get(modality, torch.zeros(self.dim, self.dim, dtype=like.dtype))

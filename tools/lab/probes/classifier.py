"""The judge: multinomial logistic regression on standardised features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Weighs the losses of all clips against half the squared norm of the weights.
_LOSS_WEIGHT = 0.003


@dataclass(frozen=True)
class Classifier:
    """Scores of features x: ((x - mean) / std) @ weight + bias.

    Args:
        mean, std: float64 (D,).
        weight: float64 (D, K).
        bias: float64 (K,).
    """

    mean: Tensor
    std: Tensor
    weight: Tensor
    bias: Tensor

    def predict(self, features: Tensor) -> Tensor:
        """Features (N, D) to class indices (N,)."""
        return (((features.double() - self.mean) / self.std) @ self.weight + self.bias).argmax(1)


def train_classifier(features: Tensor, labels: Tensor, num_classes: int) -> Classifier:
    """Trains the judge to convergence, which has one end.

    Args:
        features: (N, D).
        labels: int64 (N,).
        num_classes: K.
    """
    x = features.double()
    mean, std = x.mean(0), x.std(0, correction=0)
    std = torch.where(std > 0, std, 1.0)
    x = (x - mean) / std
    weight = torch.zeros(x.shape[1], num_classes, dtype=torch.double, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=torch.double, requires_grad=True)
    search = torch.optim.LBFGS(
        [weight, bias], max_iter=1000, tolerance_grad=1e-7, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        search.zero_grad()
        total = F.cross_entropy(x @ weight + bias, labels, reduction="sum")
        penalised = (_LOSS_WEIGHT * total + weight.square().sum() / 2) / len(x)
        penalised.backward()
        return penalised

    with torch.enable_grad():
        search.step(loss)  # type: ignore[arg-type]
    return Classifier(mean, std, weight.detach(), bias.detach())

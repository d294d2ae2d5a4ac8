"""The loss of labels: cross entropy or binary cross entropy, weighted by class and focused on what is hard.

    q = targets, smoothed          p = scores            w = weights of classes

    cross entropy   - 1/N    Σ w_c · q_c · (1 - p_c)^γ · log p_c                                  p = softmax(logits)
    bce             - 1/(NK) Σ w_c · q_c · (1 - p_c)^γ · log p_c + (1 - q_c) · p_c^γ · log (1 - p_c)      p = sigmoid

Targets are one-hot, several-hot, or soft where clips are mixed. Without weights and with γ = 0 these are torch's. The
sum is divided by the number of clips and not by their weights: torch's division for class ids would undo the weights of
a small batch that holds one class alone, and its mean over processes would not be that of the whole batch.

Weights: inverse frequency; the effective number of samples (Cui et al., arXiv 1901.05555). Focus: Lin et al., arXiv
1708.02002. Smoothing of several labels: timm's `BinaryCrossEntropy`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octvideo.class_names import ClassIndex
from octvideo.errors import UserError

LossName = Literal["cross_entropy", "bce"]
ClassWeights = Literal["inverse", "effective"] | list[float] | dict[str, float]


class LabelLoss(nn.Module):
    """The mean loss of a batch. It has no parameters, and a checkpoint holds nothing of it.

    Args:
        num_classes: K.
        name: "cross_entropy": a video has one label; "bce": any number of them.
        weights: of the classes: by the counts of the training videos, a list in the order of the classes, or by name,
            1 where a name is missing. None weighs all alike.
        beta: of "effective".
        gamma: of the focus; 0 is none.
        smoothing: of labels.

    Raises:
        UserError: a value that can't be meant.
    """

    weights: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        name: LossName = "cross_entropy",
        weights: ClassWeights | None = None,
        beta: float = 0.999,
        gamma: float = 0.0,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= gamma < math.inf:
            raise UserError(f"model.focal_gamma: got {gamma}, expected 0 or more")
        if not 0 <= beta < 1:
            raise UserError(f"model.class_weights_beta: got {beta}, expected 0 to less than 1")
        if name == "bce" and weights == "effective":
            raise UserError(
                "model.class_weights effective is for cross entropy: with model.loss bce weights are those of the "
                "videos that show a class against those that do not; give inverse, a list, or weights by name"
            )
        values = weights.values() if isinstance(weights, dict) else weights if isinstance(weights, list) else ()
        if wrong := [value for value in values if not 0 <= value < math.inf]:
            raise UserError(f"model.class_weights: got {wrong[0]}, expected 0 or more")
        if isinstance(weights, list) and len(weights) != num_classes:
            raise UserError(
                f"model.class_weights: got {len(weights)} weights for {num_classes} classes, expected one for each, "
                "in the order of the classes; or {name: weight}"
            )
        self.num_classes, self.name, self.given = num_classes, name, weights
        self.beta, self.gamma, self.smoothing = beta, gamma, smoothing
        self.is_weighted = weights is not None
        given = torch.tensor(weights) if isinstance(weights, list) else torch.ones(num_classes)
        self.register_buffer("weights", given.float(), persistent=False)

    @property
    def needs_counts(self) -> bool:
        """Whether `settle` needs the number of training videos of each class."""
        return isinstance(self.given, str)

    def settle(self, class_names: Sequence[str], counts: Tensor | None, num_videos: int = 0) -> None:
        """Finds the weights of the classes.

        Args:
            class_names: K of them.
            counts: training videos of each class, (K,); see `needs_counts`.
            num_videos: of the training, which have several labels or one.

        Raises:
            UserError: a name that is no class.
        """
        if isinstance(self.given, dict):
            self.weights.copy_(weights_by_name(self.given, class_names))
        elif counts is not None and self.given is not None and self.needs_counts:
            if self.name == "bce":
                found = positive_weights(counts, num_videos)
            else:
                found = balancing_weights(counts, None if self.given == "inverse" else self.beta)
            self.weights.copy_(found)

    def described(self, class_names: Sequence[str], counts: Tensor | None) -> str:
        """The lightest and the heaviest class in a line."""
        order = self.weights.argsort(stable=True)
        ends = []
        for number in (int(order[0]), int(order[-1])):
            videos = "" if counts is None else f", {int(counts[number])} videos"
            ends.append(f"{float(self.weights[number]):.3g} ({class_names[number]}{videos})")
        what = "weights of positives" if self.name == "bce" else "class weights"
        how = self.given if isinstance(self.given, str) else "given"
        return f"{what}, {how}: {ends[0]} to {ends[1]}"

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean over the batch.

        Args:
            logits: (N, K).
            targets: (N, K), 0 to 1; of one label they sum to 1.
        """
        targets = targets.to(logits.dtype)
        weights = self.weights.to(logits.dtype) if self.is_weighted else None
        if self.name == "bce":
            return self._binary(logits, targets, weights)
        if not self.gamma:
            return F.cross_entropy(logits, targets, weight=weights, label_smoothing=self.smoothing)
        smoothed = targets * (1 - self.smoothing) + self.smoothing / self.num_classes
        log_scores = logits.log_softmax(1)
        focus = (-torch.expm1(log_scores)).clamp_min(0) ** self.gamma  # (1 - p)^γ, exact where p is near 1
        parts = smoothed * focus * log_scores
        return -(parts if weights is None else parts * weights).sum(1).mean()

    def _binary(self, logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        smoothed = targets * (1 - self.smoothing) + self.smoothing / self.num_classes
        if not self.gamma:
            return F.binary_cross_entropy_with_logits(logits, smoothed, pos_weight=weights)
        is_there, is_not = smoothed * F.logsigmoid(logits), (1 - smoothed) * F.logsigmoid(-logits)
        is_there = is_there * logits.neg().sigmoid() ** self.gamma
        is_not = is_not * logits.sigmoid() ** self.gamma
        return -((is_there if weights is None else is_there * weights) + is_not).mean()


def balancing_weights(counts: Tensor, beta: float | None) -> Tensor:
    """Weights of classes whose mean over the videos is 1, so that the rate of learning stays what it was.

    Args:
        counts: videos of each class, (K,). A class without a video weighs 1; what it weighs shows in smoothing alone.
        beta: of the effective number of samples, (1 - beta^n) / (1 - beta); None is n itself.

    Returns:
        float32 (K,).

    Example:
        >>> balancing_weights(torch.tensor([1, 3, 0]), None)
        tensor([2.0000, 0.6667, 1.0000])
    """
    n = counts.double()
    there = n > 0
    numbers = n if beta is None else -torch.expm1(n * math.log(beta)) / (1 - beta) if beta else there.double()
    weights = torch.where(there, 1 / numbers.clamp_min(1e-300), 0.0)
    weights = weights * n.sum() / (weights * n).sum()
    return torch.where(there, weights, 1.0).float()


def positive_weights(counts: Tensor, num_videos: int) -> Tensor:
    """For each class how many videos do not show it, for one that does; 1 where none does, or all do.

    Args:
        counts: videos of each class, (K,).
        num_videos: N.

    Example:
        >>> positive_weights(torch.tensor([1, 3, 0]), 4)
        tensor([3.0000, 0.3333, 1.0000])
    """
    n = counts.double()
    return torch.where((n > 0) & (n < num_videos), (num_videos - n) / n.clamp_min(1), 1.0).float()


def weights_by_name(given: Mapping[str, float], class_names: Sequence[str]) -> Tensor:
    """Weights (K,) in the order of the classes, 1 where none is given.

    Raises:
        UserError: a name that is no class.
    """
    index, weights = ClassIndex(class_names), torch.ones(len(class_names))
    for name, weight in given.items():
        weights[index.need(str(name), "model.class_weights")] = float(weight)
    return weights

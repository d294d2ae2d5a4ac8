"""Metrics over videos, from their scores: pure functions, and one torchmetrics metric that counts with them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from octvideo.errors import UserError
from octvideo.evaluation.view_scores import in_top_k


def pair_hits(scores: Tensor, labels: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Two-way decisions inside pairs of classes: is the true class scored above its opposite?

    Args:
        scores: (N, K).
        labels: int64, (N,).
        pairs: class numbers, each in one pair at most.

    Returns:
        bool, one for each video whose class is in a pair, in the order of the videos.

    Raises:
        UserError: a class is in two pairs, or twice in one.

    Example:
        >>> scores = torch.tensor([[0.2, 0.3, 0.5], [0.4, 0.1, 0.5]])
        >>> pair_hits(scores, torch.tensor([1, 1]), [(0, 1)])
        tensor([ True, False])
    """
    paired = [c for pair in pairs for c in pair]
    if len(set(paired)) != len(paired):
        raise UserError(f"pairs {list(pairs)}: every class may be in one pair only")
    opposite = torch.full((scores.shape[1],), -1, dtype=torch.int64, device=labels.device)  # (K,)
    for first, second in pairs:
        opposite[first], opposite[second] = second, first
    kept = opposite[labels] >= 0  # (N,)
    scores, labels = scores[kept], labels[kept]
    other = opposite[labels]
    two = torch.stack([torch.minimum(labels, other), torch.maximum(labels, other)], 1)  # (N,2)
    return in_top_k(scores.gather(1, two), (labels > other).long(), k=1)


def wilson_interval(hits: int, total: int, *, z: float = 1.959964) -> tuple[float, float]:
    """The shares that `hits` of `total` are consistent with: Wilson's interval, good for small counts too.

    Args:
        hits: how many were right.
        total: of how many; 0 gives (0, 1).
        z: quantile of the normal distribution; the default is 95 %.

    Example:
        >>> low, high = wilson_interval(37, 185)
        >>> f"{low:.3f} {high:.3f}"
        '0.149 0.263'
    """
    if not 0 <= hits <= total:
        raise ValueError(f"got {hits} hits of {total}, expected 0 <= hits <= total")
    if total == 0:
        return 0.0, 1.0
    share, spread = hits / total, z * z / total
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread * spread / 4) / (1 + spread)
    # Exact at the ends, where rounding would leave the observed share outside its own interval.
    return 0.0 if hits == 0 else middle - half, 1.0 if hits == total else middle + half


def mcnemar_p(first_only: int, second_only: int) -> float:
    """Two-sided p of the exact McNemar test: how often equally good runs differ at least as one-sidedly.

    Example:
        >>> mcnemar_p(1, 5)
        0.21875
    """
    n, fewer = first_only + second_only, min(first_only, second_only)
    tail = sum(math.comb(n, i) for i in range(fewer + 1))
    return min(1.0, 2 * tail / 2**n)


class VideoMetrics(Metric):
    """Top-1, top-5 and mean class accuracy over videos, exact over any batches and processes.

    Kept as whole-number counts for each class, summed over processes. torchmetrics' own accuracy would count
    a class without videos as 0 in the mean over classes as soon as it is predicted once.

    Args:
        num_classes: K.
        kwargs: of torchmetrics.Metric.

    Example:
        >>> metrics = VideoMetrics(num_classes=3)
        >>> metrics.update(torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2]]), torch.tensor([1, 2]))
        >>> metrics.compute()
        {'top1': 0.5, 'top5': 1.0, 'mean_class': 0.5}
    """

    higher_is_better = True
    full_state_update = False
    hits1: Tensor
    hits5: Tensor
    videos: Tensor

    def __init__(self, num_classes: int, **kwargs: object) -> None:
        super().__init__(**kwargs)
        if num_classes < 1:
            raise ValueError(f"num_classes: got {num_classes}, expected 1 or more")
        self.num_classes = num_classes
        for name in ("hits1", "hits5", "videos"):
            self.add_state(name, torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Counts a batch.

        Args:
            scores: (N, K); N may be 0.
            labels: int64, (N,).

        Raises:
            ValueError: shapes or labels do not fit.
        """
        if scores.shape != (len(labels), self.num_classes) or labels.ndim != 1:
            raise ValueError(
                f"got scores {tuple(scores.shape)} and labels {tuple(labels.shape)}, "
                f"expected (N, {self.num_classes}) and (N,)"
            )
        outside = labels[(labels < 0) | (labels >= self.num_classes)]
        if len(outside):
            raise ValueError(f"labels: got {int(outside[0])}, expected 0 to {self.num_classes - 1}")
        for state, k in ((self.hits1, 1), (self.hits5, 5)):
            state += torch.bincount(labels[in_top_k(scores, labels, k)], minlength=self.num_classes)
        self.videos += torch.bincount(labels, minlength=self.num_classes)

    def compute(self) -> dict[str, float]:
        """top1, top5 and mean_class (over classes with videos) in [0, 1]; NaN where nothing was counted."""
        total, seen = self.videos.sum(), self.videos > 0
        per_class = self.hits1[seen].double() / self.videos[seen]
        return {
            "top1": float(self.hits1.sum().double() / total),
            "top5": float(self.hits5.sum().double() / total),
            "mean_class": float(per_class.mean()),
        }

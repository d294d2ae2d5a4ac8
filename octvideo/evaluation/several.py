"""Metrics of videos that may have several labels, and the thresholds from which on a video has one.

The average precision (AP) of a class is the mean precision over its videos, ranked by score. mAP is the mean over the
classes that have videos, or (micro) the AP of all pairs of video and class in one ranking. Values are torchmetrics',
which equal scikit-learn's; classes without a video are left out, where scikit-learn counts 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_average_precision
from torchmetrics.utilities import dim_zero_cat

from octvideo.evaluation.view_scores import best_classes

# What `SeveralMetrics` gives, and its name in tables.
SEVERAL_METRICS = {"map": "mAP", "map_micro": "mAP micro", "top1": "top-1"}
# Of a bootstrap of mAP; less for many scores, so that it takes seconds, and where it would be few, none.
_RESAMPLES, _FEWEST_RESAMPLES, _MOST_WORK = 1000, 100, 200_000_000
_AT_ONCE = 4_000_000  # numbers of a step
Interval = tuple[float, float]


def several_hot(labels: Tensor, others: Tensor, num_classes: int) -> Tensor:
    """Which labels videos have, as bool (N, K); none where they are unknown.

    Args:
        labels: the first of each, int64 (N,), -1 where unknown.
        others: int64 (N, M), filled up with -1.
        num_classes: K.

    Example:
        >>> several_hot(torch.tensor([2, 0]), torch.tensor([[0], [-1]]), 3)
        tensor([[ True, False,  True],
                [ True, False, False]])
    """
    held = torch.cat([labels[:, None], others], 1)  # (N,1+M)
    hot = torch.zeros(len(labels), num_classes + 1, dtype=torch.bool, device=labels.device)
    return hot.scatter_(1, torch.where(held < 0, num_classes, held), True)[:, :num_classes]  # (N,K)


def average_precisions(scores: Tensor, truth: Tensor) -> Tensor:
    """The AP of each class, float (K,); NaN where no video has it.

    Args:
        scores: (N, K), 0 to 1.
        truth: bool (N, K).
    """
    found = torch.full((scores.shape[1],), math.nan)
    for number in truth.any(0).nonzero()[:, 0].tolist():  # torchmetrics' of several labels refuses one class
        found[number] = binary_average_precision(scores[:, number], truth[:, number].long())
    return found


def mean_average_precisions(scores: Tensor, truth: Tensor) -> tuple[float, float]:
    """mAP over classes (macro) and over all pairs (micro); NaN where no video has a label."""
    if not truth.any():
        return math.nan, math.nan
    macro = float(average_precisions(scores, truth).nanmean())
    return macro, float(binary_average_precision(scores.flatten(), truth.flatten().long()))


def map_intervals(scores: Tensor, truth: Tensor) -> tuple[Interval | None, Interval | None]:
    """The 95 % intervals of both: a bootstrap over videos, moved so that its mean is the value.

    A video that is drawn twice ranks beside itself, so that AP of a resample is too high; the move takes this away. It
    leaves that the AP of few videos is itself a little higher than that of many would be. None of more than two million
    scores, which would take minutes, and where no video has a label.

    Args:
        scores: (N, K), 0 to 1.
        truth: bool (N, K).
    """
    n, k = scores.shape
    num_resamples = min(_RESAMPLES, _MOST_WORK // max(n * k, 1))
    if num_resamples < _FEWEST_RESAMPLES or not truth.any():
        return None, None
    draw = torch.Generator().manual_seed(0)
    counts = (torch.randint(n, (n,), generator=draw).bincount(minlength=n) for _ in range(num_resamples))
    drawn = torch.stack(list(counts)).float()  # (R,N): how often each video was drawn
    videos = torch.arange(n)
    held = truth.any(0).nonzero()[:, 0].tolist()
    classes = [_resampled(scores[:, number], truth[:, number], videos, drawn) for number in held]
    macro = torch.stack(classes).nanmean(0)  # (R,)
    micro = _resampled(scores.flatten(), truth.flatten(), videos.repeat_interleave(k), drawn)
    values = mean_average_precisions(scores, truth)
    return _around(values[0], macro), _around(values[1], micro)


def _resampled(scores: Tensor, truth: Tensor, videos: Tensor, drawn: Tensor) -> Tensor:
    """The AP of one ranking in each resample, (R,); NaN where nothing that was drawn is true."""
    ranked, order = scores.sort(descending=True, stable=True)
    is_end = torch.cat([ranked[1:] != ranked[:-1], torch.ones(1, dtype=torch.bool)])  # equal scores fall together
    ends = is_end.nonzero()[:, 0]
    of_videos, hits = videos[order], truth[order]
    places = hits.nonzero()[:, 0]
    until = ends[torch.searchsorted(ends, places)]  # where the group of equal scores of each hit ends
    last_hit = hits.cumsum(0)[until] - 1
    found = []
    for part in drawn.split(max(_AT_ONCE // len(order), 1)):
        named = part[:, of_videos].cumsum(1)[:, until]  # (r,P)
        weights = part[:, of_videos[places]]
        total = weights.cumsum(1)
        found.append((weights * total[:, last_hit] / named.clamp(min=1)).sum(1) / total[:, -1])
    return torch.cat(found)


def _around(value: float, resampled: Tensor) -> Interval:
    kept = resampled[resampled.isfinite()].double()
    low, high = (kept.quantile(torch.tensor([0.025, 0.975], dtype=kept.dtype)) - kept.mean() + value).tolist()
    return max(low, 0.0), min(high, 1.0)


def hits_of_several(scores: Tensor, truth: Tensor, k: int = 1) -> Tensor:
    """Whether one of the k best classes is a label of the video, bool (N,); wrong where scores are not finite."""
    hits = truth.gather(1, best_classes(scores, k)).any(1)
    return hits & scores.isfinite().all(1)


def best_thresholds(scores: Tensor, truth: Tensor) -> tuple[float, ...]:
    """For each class the score from which on a video has it, by the greatest F1 on these videos.

    It lies in the middle between the last score that counts and the next lower one. A class that no video has, or
    every one, gets .5.

    Args:
        scores: (N, K), 0 to 1.
        truth: bool (N, K).

    Example:
        >>> truth = torch.tensor([[True], [False], [True], [False]])
        >>> best_thresholds(torch.tensor([[0.9], [0.5], [0.25], [0.0]]), truth)
        (0.125,)
    """
    thresholds = []
    for own, labels in zip(scores.double().cpu().T, truth.cpu().T, strict=True):
        positives = int(labels.sum())
        if positives in (0, len(labels)):
            thresholds.append(0.5)
            continue
        ranked, order = own.sort(descending=True)
        hits = labels[order].cumsum(0).double()  # among the first n
        f1 = 2 * hits / (torch.arange(1, len(own) + 1) + positives)
        lower = torch.cat([ranked[1:], ranked.new_zeros(1)])
        f1[(lower == ranked) & (torch.arange(len(own)) < len(own) - 1)] = -1.0  # equal scores fall together
        last = int(f1.argmax())
        thresholds.append(float((ranked[last] + lower[last]) / 2))
    return tuple(thresholds)


class SeveralMetrics(Metric):
    """`SEVERAL_METRICS` over videos, exact over any batches and processes: it keeps all scores.

    Args:
        num_classes: K.
        kwargs: of torchmetrics.Metric.
    """

    higher_is_better = True
    full_state_update = False
    scores: list[Tensor]
    truth: list[Tensor]

    def __init__(self, num_classes: int, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.num_classes = num_classes
        for name in ("scores", "truth"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, scores: Tensor, truth: Tensor) -> None:
        """Adds videos: scores (N, K) and which labels they have, bool (N, K); without a label they count nowhere."""
        if scores.shape != truth.shape or scores.ndim != 2 or scores.shape[1] != self.num_classes:
            raise ValueError(
                f"got scores {tuple(scores.shape)} and truth {tuple(truth.shape)}, expected (N, {self.num_classes})"
            )
        self.scores.append(scores.float())
        self.truth.append(truth)

    def known(self) -> tuple[Tensor, Tensor]:
        """Scores and labels of the videos that have some, on the CPU; of all processes within `compute` alone."""
        if not len(self.scores):
            return torch.empty(0, self.num_classes), torch.empty(0, self.num_classes, dtype=torch.bool)
        scores, truth = dim_zero_cat(self.scores).cpu(), dim_zero_cat(self.truth).cpu()
        kept = truth.any(1)
        return scores[kept], truth[kept]

    def compute(self) -> dict[str, float]:
        """`SEVERAL_METRICS` in [0, 1]; NaN where nothing was counted."""
        scores, truth = self.known()
        self.thresholds = best_thresholds(scores, truth) if len(scores) else None
        macro, micro = mean_average_precisions(scores, truth)
        top1 = float(hits_of_several(scores, truth).double().mean()) if len(scores) else math.nan
        return {"map": macro, "map_micro": micro, "top1": top1}

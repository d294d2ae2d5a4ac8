"""Metrics over videos, from their scores: pure functions, one torchmetrics metric that counts with them, and the
statistics of arms over several runs.

Runs of several seeds are tested on the same videos. Their decisions on one video are no independent draws, so they
are averaged first and a video counts once, as one cluster, whatever the number of seeds: intervals are over videos.
(Resampling whole clusters: Field and Welsh, Bootstrapping clustered data, J. R. Statist. Soc. B 69 (2007); the same
for test questions asked several times, and their paired differences: Miller, arXiv 2411.00640, sections 2 to 4.)
They tell how far other videos would have moved the figure of these trained networks. What another training run would
have given is not in them: for that, look at how much the seeds differ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from octvideo.errors import UserError
from octvideo.evaluation.scores import VideoScores
from octvideo.evaluation.view_scores import in_top_k


def pair_hits(scores: Tensor, labels: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Two-way decisions inside pairs of classes: is the true class scored above its opposite?

    Args:
        scores: (N, K).
        labels: int64, (N,).
        pairs: class ids, each in one pair at most.

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


def wilson_interval(hits: int, total: int) -> tuple[float, float]:
    """The shares that `hits` of `total` are consistent with: Wilson's 95 % interval, good for small counts too.

    Args:
        hits: how many were right.
        total: of how many; 0 gives (0, 1).

    Example:
        >>> low, high = wilson_interval(37, 185)
        >>> f"{low:.3f} {high:.3f}"
        '0.149 0.263'
    """
    if not 0 <= hits <= total:
        raise ValueError(f"got {hits} hits of {total}, expected 0 <= hits <= total")
    if total == 0:
        return 0.0, 1.0
    share, spread = hits / total, 1.959964**2 / total  # the normal distribution's quantile
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


# What `VideoMetrics` gives, and its name in tables.
METRICS = {"top1": "top-1", "top5": "top-5", "mean_class": "mean class"}


class VideoMetrics(Metric):
    """Top-1, top-5 and mean class accuracy over videos, exact over any batches and processes.

    Kept as whole-number counts for each class, summed over processes. torchmetrics' own accuracy would count
    a class without videos as 0 in the mean over classes as soon as it is predicted once.

    The counts stay on the device of the scores until `compute`: an `update` never waits for a GPU.

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
    largest: Tensor

    def __init__(self, num_classes: int, **kwargs: object) -> None:
        super().__init__(**kwargs)
        if num_classes < 1:
            raise ValueError(f"num_classes: got {num_classes}, expected 1 or more")
        self.num_classes = num_classes
        for name in ("hits1", "hits5", "videos"):
            self.add_state(name, torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("largest", torch.tensor(-1), dist_reduce_fx="max")  # label

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Counts a batch.

        Args:
            scores: (N, K); N may be 0.
            labels: int64, (N,); -1 where unknown, which counts nowhere.

        Raises:
            ValueError: shapes do not fit.
        """
        if scores.shape != (len(labels), self.num_classes) or labels.ndim != 1:
            raise ValueError(
                f"got scores {tuple(scores.shape)} and labels {tuple(labels.shape)}, "
                f"expected (N, {self.num_classes}) and (N,)"
            )
        if not len(labels):
            return
        # Neither boolean indices nor bincount: their results' sizes must be known on the host, which would wait.
        is_class = labels[:, None] == torch.arange(self.num_classes, device=labels.device)  # (N,K)
        inside = labels.clamp(0, self.num_classes - 1)
        for state, k in ((self.hits1, 1), (self.hits5, 5)):
            state += (is_class & in_top_k(scores, inside, k)[:, None]).sum(0)
        self.videos += is_class.sum(0)
        torch.maximum(self.largest, labels.max(), out=self.largest)

    def compute(self) -> dict[str, float]:
        """`METRICS` in [0, 1], mean_class over the classes with videos; NaN where nothing was counted.

        Raises:
            ValueError: a label was no class.
        """
        if (largest := int(self.largest)) >= self.num_classes:
            raise ValueError(f"labels: got {largest}, expected at most {self.num_classes - 1}")
        # On the CPU: MPS has no float64.
        hits1, hits5, videos = (counts.cpu().double() for counts in (self.hits1, self.hits5, self.videos))
        total = videos.sum()
        return {
            "top1": float(hits1.sum() / total),
            "top5": float(hits5.sum() / total),
            "mean_class": float((hits1 / videos).nanmean()),
        }


class Sums(Metric):
    """Named sums over batches and processes, on their device until `compute`.

    torchmetrics' own sums and means look for NaN at each update, and a GPU would be waited for.

    Args:
        names: of the sums.

    Example:
        >>> sums = Sums("loss", "clips")
        >>> sums.update(loss=torch.tensor(3.0), clips=2)
        >>> sums.compute()
        {'loss': 3.0, 'clips': 2.0}
    """

    full_state_update = False

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.names = names
        for name in names:
            self.add_state(name, torch.zeros(()), dist_reduce_fx="sum")

    def update(self, **amounts: Tensor | float) -> None:
        """Adds to some of the sums: single elements on their device, or numbers."""
        for name, amount in amounts.items():
            getattr(self, name).add_(amount)

    def compute(self) -> dict[str, float]:
        """Every sum."""
        return {name: float(getattr(self, name)) for name in self.names}


def mean_of(total: float, weight: float) -> float:
    """A sum over its weight; NaN of nothing."""
    return total / weight if weight else math.nan


# ── arms: shares of videos and paired differences over several runs ───────────────────────────────────────────────────

_RESAMPLES = 10_000
# The scores of an arm's runs, by seed.
BySeed = Mapping[int, VideoScores]


@dataclass(frozen=True)
class Estimate:
    """A mean over videos with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class SeedDifference:
    """Two runs of one seed, compared video by video.

    Args:
        seed: of both.
        won: videos that only the first has right.
        lost: videos that only the other has right.
        p: of the exact McNemar test.
    """

    seed: int
    won: int
    lost: int
    p: float


@dataclass(frozen=True)
class Difference:
    """Top-1 of an arm less that of its twin, over the seeds that both have.

    Args:
        mean: of the seeds' differences, in [-1, 1].
        seeds: each by itself.
    """

    mean: Estimate
    seeds: tuple[SeedDifference, ...]


def mean_top_k(runs: BySeed, k: int) -> Estimate:
    """Share of videos with the true class among the k best, averaged over the runs.

    The interval is Wilson's where the runs agree on every video (one run always does), else a bootstrap over videos
    of the share of runs that have each one right.

    Args:
        runs: of one arm, tested on the same videos.
        k: how many classes may be named.

    Raises:
        UserError: there is no run, no video with a known label, or the runs have other videos.
    """
    rates = _hits(runs, k).mean(0)  # (N,)
    if np.isin(rates, (0.0, 1.0)).all():
        return Estimate(float(rates.mean()), *wilson_interval(int(rates.sum()), len(rates)))
    return Estimate(float(rates.mean()), *bootstrap_interval(rates))


def paired_difference(runs: BySeed, twin: BySeed) -> Difference | None:
    """How much better an arm's top-1 is than its twin's on the same videos, seed by seed and on average.

    The interval is a paired bootstrap: videos are drawn, and with each goes the difference of the two arms on it,
    averaged over seeds.

    Args:
        runs: of an arm.
        twin: of the arm to compare with.

    Returns:
        None where they have no seed in common.

    Raises:
        UserError: runs were tested on other videos.
    """
    seeds = sorted(runs.keys() & twin.keys())
    if not seeds:
        return None
    # All in one call: rows of both arms are then of the same videos in the same order.
    interleaved = [run for seed in seeds for run in (runs[seed], twin[seed])]
    both = _hits(dict(enumerate(interleaved)))  # (2·S,N)
    mine, theirs = both[0::2], both[1::2]  # (S,N) each
    differences = (mine.astype(np.float64) - theirs).mean(0)  # (N,)
    mean = Estimate(float(differences.mean()), *bootstrap_interval(differences))
    each = []
    for seed, own, other in zip(seeds, mine, theirs, strict=True):
        won, lost = int((own & ~other).sum()), int((other & ~own).sum())
        each.append(SeedDifference(seed, won, lost, mcnemar_p(won, lost)))
    return Difference(mean, tuple(each))


def bootstrap_interval(values: np.ndarray) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean, 95 % (Efron and Tibshirani, An Introduction to the Bootstrap, chap. 13).

    Args:
        values: one for each video, (N,).

    Returns:
        Its two ends, the same for the same values. Both are the mean where all values are equal, since nothing is
        known of their spread then.

    Raises:
        ValueError: no values.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"got values {values.shape}, expected (N,) with N >= 1")
    rng = np.random.default_rng(0)
    # Videos with equal values are drawn alike, and there are few different values: counting how often each value is
    # drawn is the same draw, and 10,000 resamples of Kinetics' test videos fit in memory.
    different, counts = np.unique(values, return_counts=True)  # (U,), (U,)
    drawn = rng.multinomial(len(values), counts / len(values), size=_RESAMPLES)  # (R,U)
    means = drawn @ different / len(values)  # (R,)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _hits(runs: BySeed, k: int = 1) -> np.ndarray:
    """Which run has which video right, bool (S, N), the videos of all runs in one order.

    Raises:
        UserError: the runs have other videos or labels.
    """
    if not runs:
        raise UserError("no run to measure")
    rows, first = [], next(iter(runs.values())).known()
    if not len(first):
        raise UserError("no video has a known label, so there is nothing to measure")
    order = sorted(range(len(first)), key=first.paths.__getitem__)
    truth = [(first.paths[i], first.class_names[first.labels[i]]) for i in order]
    for scores in runs.values():
        known = scores.known()
        order = sorted(range(len(known)), key=known.paths.__getitem__)
        if [(known.paths[i], known.class_names[known.labels[i]]) for i in order] != truth:
            raise UserError(
                f"the runs were tested on other videos or labels ({len(truth)} and {len(known)} videos), expected "
                "the same list: test them again with one --data.test"
            )
        rows.append(known.hits(k)[order])
    return np.stack(rows)

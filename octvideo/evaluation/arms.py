"""Statistics of one network's arms over several runs: shares of videos and paired differences, with intervals.

Runs of several seeds are tested on the same videos. Their decisions on one video are no independent draws, so they
are averaged first and a video counts once, as one cluster, whatever the number of seeds: intervals are over videos.
(Resampling whole clusters: Field and Welsh, Bootstrapping clustered data, J. R. Statist. Soc. B 69 (2007); the same
for test questions asked several times, and their paired differences: Miller, arXiv 2411.00640, sections 2 to 4.)
They tell how far other videos would have moved the figure of these trained networks. What another training run would
have given is not in them: for that, look at how much the seeds differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from octvideo.errors import UserError
from octvideo.evaluation.metrics import mcnemar_p, wilson_interval
from octvideo.evaluation.scores import VideoScores

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
    return Difference(mean, tuple(_compare(*row) for row in zip(seeds, mine, theirs, strict=True)))


def bootstrap_interval(
    values: np.ndarray, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean (Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13).

    Args:
        values: one for each video, (N,).
        level: share of the bootstrap means inside.
        resamples: how many times N values are drawn with replacement.
        seed: of the draws; the same values give the same interval.

    Returns:
        Its two ends; both the mean where all values are equal, since nothing is known of their spread then.

    Raises:
        ValueError: no values, or a level outside (0, 1).
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not 0 < level < 1:
        raise ValueError(f"got values {values.shape} and level {level}, expected (N,) with N >= 1, and 0 < level < 1")
    rng = np.random.default_rng(seed)
    # Videos with equal values are drawn alike, and there are few different values: counting how often each value is
    # drawn is the same draw, and 10,000 resamples of Kinetics' test videos fit in memory.
    different, counts = np.unique(values, return_counts=True)  # (U,), (U,)
    drawn = rng.multinomial(len(values), counts / len(values), size=resamples)  # (R,U)
    means = drawn @ different / len(values)  # (R,)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
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


def _compare(seed: int, mine: np.ndarray, theirs: np.ndarray) -> SeedDifference:
    won, lost = int((mine & ~theirs).sum()), int((theirs & ~mine).sum())
    return SeedDifference(seed, won, lost, mcnemar_p(won, lost))

"""Whether scores are what they say: of videos whose best class has a score of 80 %, 80 % should be right.

The expected calibration error (ECE) is the mean distance of the two over bins of equal width, weighted by their videos
(Guo et al., arXiv 1706.04599, section 2). With few videos a bin's share is uncertain, which makes the ECE of a network
that is well calibrated larger than 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from octvideo.errors import UserError
from octvideo.evaluation.metrics import wilson_interval
from octvideo.evaluation.scores import VideoScores
from octvideo.evaluation.scoring import Scoring

_BINS = 15
_COLDEST, _HOTTEST = 0.02, 50.0  # temperatures that are looked at


@dataclass(frozen=True)
class Bin:
    """Videos whose best class has a score between two bounds.

    Args:
        low, high: (low, high], of the score.
        videos: how many, 1 or more.
        right: how many of them are of that class.
        confidence: their mean score.
    """

    low: float
    high: float
    videos: int
    right: int
    confidence: float

    @property
    def accuracy(self) -> float:
        """The share of videos that are right."""
        return self.right / self.videos

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of `accuracy`."""
        return wilson_interval(self.right, self.videos)


@dataclass(frozen=True)
class Reliability:
    """How far scores are from how often they are right.

    Args:
        bins: those with videos, by score.
        num_bins: of equal width, from 0 to 1.
    """

    bins: tuple[Bin, ...]
    num_bins: int

    @property
    def videos(self) -> int:
        """That were counted."""
        return sum(one.videos for one in self.bins)

    @property
    def ece(self) -> float:
        """The expected calibration error, in [0, 1]."""
        return sum(one.videos * abs(one.confidence - one.accuracy) for one in self.bins) / self.videos

    @property
    def confidence(self) -> float:
        """The mean score of the best class."""
        return sum(one.videos * one.confidence for one in self.bins) / self.videos

    @property
    def accuracy(self) -> float:
        """Top-1."""
        return sum(one.right for one in self.bins) / self.videos


def fit_temperature(scores: VideoScores) -> float:
    """The temperature at which the true labels are the likeliest (Guo et al., section 4.2), of scores as they are:
    p^(1/T), made to sum to 1. Of one view a video it is that of the logits.

    Args:
        scores: of videos that were not trained on, softmax.

    Raises:
        UserError: no label is known, or videos may have several.

    Example:
        >>> confident = np.array([[0.99, 0.01]] * 3 + [[0.01, 0.99]])  # right 3 times of 4
        >>> found = fit_temperature(VideoScores(list("abcd"), np.zeros(4), confident, ["x", "y"]))
        >>> f"{found:.2f}"
        '4.18'
    """
    known = scores.known()
    if known.truth is not None:
        raise UserError("a temperature is for networks of one label a video, and these scores are of several")
    if not len(known):
        raise UserError("no video has a known label, so there is nothing to fit a temperature on")
    logs = torch.from_numpy(known.scores).double().clamp_min(1e-30).log()  # (N,K)
    own = logs.gather(1, torch.from_numpy(known.labels)[:, None])[:, 0]

    def slope(beta: float) -> float:
        """Of the mean loss by 1 / T, in which it is convex."""
        return float(((logs * beta).softmax(1).mul(logs).sum(1) - own).mean())

    low, high = 1 / _HOTTEST, 1 / _COLDEST
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return 2 / (low + high)


def cooled(scores: VideoScores, temperature: float) -> VideoScores:
    """Scores of a softmax at a temperature."""
    values = Scoring(temperature=temperature).cooled(torch.from_numpy(scores.scores))
    return replace(scores, scores=values.numpy())


def reliability(scores: VideoScores, *, num_bins: int = _BINS) -> Reliability:
    """Puts the videos with a known label into bins by the score of their best class.

    Args:
        scores: of an evaluation; softmax, averaged over views.
        num_bins: of equal width.

    Raises:
        UserError: no label is known.
    """
    known = scores.known()
    if not len(known):
        raise UserError("no video has a known label, so there is nothing to measure")
    best = known.scores.max(1).astype(np.float64)
    right = known.hits()
    places = np.clip(np.ceil(best * num_bins).astype(np.int64) - 1, 0, num_bins - 1)
    bins = []
    for place in np.unique(places):
        inside = places == place
        bounds = float(place) / num_bins, float(place + 1) / num_bins
        bins.append(Bin(*bounds, int(inside.sum()), int(right[inside].sum()), float(best[inside].mean())))
    return Reliability(tuple(bins), num_bins)

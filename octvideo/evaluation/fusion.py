"""Late fusion: the weighted mean of several runs' scores of the same videos.

Weights are given, or those under which the true labels of validation videos are the likeliest: the weights of a
mixture, found by expectation maximisation, which from equal weights ends in the one best mixture.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from octvideo.errors import UserError
from octvideo.evaluation.scores import VideoScores

_MOST_STEPS, _ENOUGH = 10_000, 1e-9


def fuse(runs: Sequence[VideoScores], weights: Sequence[float] | None = None) -> VideoScores:
    """The weighted mean of scores, in the order of the first run's videos.

    Args:
        runs: of the same videos and classes.
        weights: of the runs, in any scale; None is equal ones.

    Raises:
        UserError: other videos, labels or classes; weights that can't be meant.
    """
    aligned = _aligned(runs)
    given = [1.0] * len(runs) if weights is None else list(weights)
    if len(given) != len(runs) or min(given) < 0 or not sum(given) > 0:
        raise UserError(f"weights: got {given} for {len(runs)} runs, expected one of 0 or more for each")
    shares = np.array(given) / sum(given)
    mean = np.tensordot(shares, np.stack([run.scores.astype(np.float64) for run in aligned]), 1)  # (N,K)
    first = aligned[0]
    return VideoScores(first.paths, first.labels, mean, first.class_names, first.truth)


def fusion_weights(runs: Sequence[VideoScores]) -> list[float]:
    """Weights that sum to 1, by the likelihood of the labels of validation videos.

    Args:
        runs: scores of the validation, of the same videos.

    Raises:
        UserError: other videos, labels or classes; or no label is known.
    """
    aligned = [run.known() for run in _aligned(runs)]
    if not len(aligned[0]):
        raise UserError("no validation video has a known label, so there is nothing to choose weights by")
    likely = np.stack([_likelihood(run) for run in aligned], 1)  # (videos, runs)
    weights = np.full(len(runs), 1 / len(runs))
    for _ in range(_MOST_STEPS):
        shares = likely * weights
        after = (shares / shares.sum(1, keepdims=True)).mean(0)
        done = np.abs(after - weights).max() < _ENOUGH
        weights = after
        if done:
            break
    return [float(weight) for weight in weights]


def _likelihood(run: VideoScores) -> np.ndarray:
    """Of each label; of several, of each class of each video being there or not."""
    scores = run.scores.astype(np.float64)
    if run.truth is not None:
        return np.where(run.truth, scores, 1 - scores).ravel().clip(1e-12)
    return scores[np.arange(len(run)), run.labels].clip(1e-12)


def _aligned(runs: Sequence[VideoScores]) -> list[VideoScores]:
    """The runs' videos in the order of the first."""
    first = runs[0]
    found = [first]
    if len(set(first.paths)) < len(first.paths):
        raise UserError("a video is in the scores twice: they can't be fused by video")
    for run in runs[1:]:
        if run.class_names != first.class_names:
            raise UserError("the runs have other classes, or another order of them: they can't be fused")
        place = {path: number for number, path in enumerate(run.paths)}
        if len(place) < len(run) or place.keys() != set(first.paths):
            missing = next(iter(place.keys() ^ set(first.paths)), run.paths[0])
            raise UserError(f"the runs scored other videos, such as {missing}: test them with one --data.test")
        order = [place[path] for path in first.paths]
        truth = None if run.truth is None else run.truth[order]
        moved = VideoScores(list(first.paths), run.labels[order], run.scores[order], run.class_names, truth)
        both_have = (first.truth is None) == (truth is None)
        if (
            not both_have
            or (moved.labels != first.labels).any()
            or (truth is not None and (truth != first.truth).any())
        ):
            raise UserError("the runs were tested with other labels: they can't be fused")
        found.append(moved)
    return found

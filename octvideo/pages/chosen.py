"""Which videos of a run are shown: those with thumbnails, and those that are listed by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from octvideo.evaluation.per_class import kept_thresholds, truth_and_named
from octvideo.evaluation.scores import VideoScores

MOST_CONFIDENT = 24  # mistakes that the page begins with


def confident_mistakes(scores: VideoScores, most: int = MOST_CONFIDENT) -> list[int]:
    """Numbers of the videos whose wrong class has the highest scores, the highest first.

    Of several labels those where a score lies the farthest on the wrong side of its threshold.

    Args:
        scores: with known labels.
        most: how many.
    """
    if scores.truth is not None:
        truth, named = truth_and_named(scores)
        farthest = np.where(truth != named, _distances(scores), 0.0).max(1)  # (N,)
        wrong = np.flatnonzero((truth != named).any(1))
        return wrong[np.argsort(-farthest[wrong], kind="stable")][:most].tolist()
    predicted, best = predicted_classes(scores)
    wrong = np.flatnonzero((predicted != scores.labels) & (predicted >= 0))
    return wrong[np.argsort(-best[wrong], kind="stable")][:most].tolist()


def in_order_of_use(scores: VideoScores) -> list[int]:
    """Numbers of all videos: first those that a reader will look for.

    These are the most confident mistakes; then the first of each cell of the confusion matrix, the second of each, and
    so on, mistakes before hits. Within a cell the most confident come first. Of several labels a cell holds the videos
    of which a class was found, missed or named wrongly, and a video is in as many.

    Args:
        scores: with known labels.
    """
    first = confident_mistakes(scores)
    if scores.truth is not None:
        truth, named = truth_and_named(scores)
        distances = _distances(scores)
        videos, classes = np.nonzero(truth | named)
        cells = 3 * classes + (truth + 2 * named - 1)[videos, classes]
        ranks = _ranks(cells, distances[videos, classes])
        rank = np.full(len(scores), len(scores))
        np.minimum.at(rank, videos, ranks)
        best, right = distances.max(1), (truth == named).all(1)
    else:
        predicted, best = predicted_classes(scores)
        # One of each class for no finite scores.
        rank = _ranks(scores.labels * (len(scores.class_names) + 1) + predicted + 1, best)
        right = predicted == scores.labels
    order = np.lexsort((-best, right, rank)).tolist()
    known = set(first)
    return first + [n for n in order if n not in known]


def _ranks(cells: np.ndarray, best: np.ndarray) -> np.ndarray:
    """Each one's place in its cell, the most confident first."""
    sizes = np.unique(cells, return_counts=True)[1]
    rank = np.empty(len(cells), np.int64)
    rank[np.lexsort((-best, cells))] = np.concatenate([np.arange(size) for size in sizes]) if len(sizes) else []
    return rank


def _distances(scores: VideoScores) -> np.ndarray:
    """How far scores are from their thresholds, (N, K); 0 where they are not finite."""
    return np.nan_to_num(np.abs(scores.scores - kept_thresholds(scores)), nan=0.0, posinf=0.0)


def fitting(sizes: Iterable[int], most: int) -> int:
    """How many of the first items take `most` together at most.

    Example:
        >>> fitting([4, 4, 4], 9)
        2
    """
    total = count = 0
    for size in sizes:
        total += size
        if total > most:
            break
        count += 1
    return count


def common_folder(paths: Sequence[str]) -> str:
    """What all paths begin with, up to a slash.

    Example:
        >>> common_folder(["data/test/a/1.mp4", "data/test/b/2.mp4"])
        'data/test/'
    """
    if not paths:
        return ""
    low, high = min(paths), max(paths)
    same = next((n for n, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return low[: low.rfind("/", 0, same) + 1]


def predicted_classes(scores: VideoScores) -> tuple[np.ndarray, np.ndarray]:
    """The class of each video (N,), as in the confusion matrix, and its score (N,): -1 and 0 without finite scores."""
    predicted = scores.predicted()
    best = scores.scores[np.arange(len(scores)), predicted]
    return predicted, np.where(predicted >= 0, best, 0.0)

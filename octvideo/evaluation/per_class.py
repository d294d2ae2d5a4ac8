"""What an evaluation says class by class: precision, recall and F1 with intervals, and which classes are mixed up.

Intervals hold 95 %: Wilson's of precision and recall, which are shares of videos, and a bootstrap over videos of F1 and
of the balanced accuracy, which are not. A class's part in a resample of the videos is a draw of how many are true
positives, false positives, false negatives and none of these.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from octvideo.errors import UserError
from octvideo.evaluation.metrics import wilson_interval
from octvideo.evaluation.report import confusion_matrix, percent, percent_range
from octvideo.evaluation.scores import VideoScores
from octvideo.evaluation.several import average_precisions
from octvideo.files import markdown

_RESAMPLES = 2000


@dataclass(frozen=True)
class ClassFigures:
    """One class of an evaluation.

    Args:
        name: of it.
        videos: that have it, n.
        named: videos that were taken for it.
        hits: videos of both.
        f1_interval: of F1, 95 %.
        average_precision: where videos may have several labels, else NaN.
    """

    name: str
    videos: int
    named: int
    hits: int
    f1_interval: tuple[float, float]
    average_precision: float = math.nan

    @property
    def precision(self) -> float:
        """The share of the videos taken for it that have it; NaN where none was."""
        return self.hits / self.named if self.named else math.nan

    @property
    def recall(self) -> float:
        """The share of its videos that were taken for it; NaN where it has none."""
        return self.hits / self.videos if self.videos else math.nan

    @property
    def f1(self) -> float:
        """The harmonic mean of the two; NaN where the class neither has videos nor was named."""
        both = self.videos + self.named
        return 2 * self.hits / both if both else math.nan


@dataclass(frozen=True)
class Confusion:
    """Videos of one class that were taken for another.

    Args:
        true, named: the classes.
        count: of the videos.
        videos: of the true class.
    """

    true: str
    named: str
    count: int
    videos: int


def class_figures(scores: VideoScores) -> list[ClassFigures]:
    """Of every class, in their order.

    Of several labels a video has those whose score reaches its threshold: the checkpoint's, or .5 where there was none.

    Args:
        scores: of an evaluation.

    Raises:
        UserError: no label is known.
    """
    scores = _known(scores)
    truth, named = truth_and_named(scores)  # bool (N,K) each
    precisions: Sequence[float] = [math.nan] * len(scores.class_names)
    if scores.truth is not None:
        precisions = average_precisions(torch.from_numpy(scores.scores), torch.from_numpy(scores.truth)).tolist()
    rows = []
    for number, name in enumerate(scores.class_names):
        videos, taken = int(truth[:, number].sum()), int(named[:, number].sum())
        hits = int((truth[:, number] & named[:, number]).sum())
        interval = _f1_interval(hits, taken - hits, videos - hits, len(scores))
        rows.append(ClassFigures(name, videos, taken, hits, interval, precisions[number]))
    return rows


def truth_and_named(scores: VideoScores) -> tuple[np.ndarray, np.ndarray]:
    """Which classes videos have, and which they were taken for, bool (N, K) each.

    Args:
        scores: with known labels.
    """
    if scores.truth is not None:
        return scores.truth, scores.scores.astype(np.float64) >= kept_thresholds(scores)
    return class_truth(scores), scores.predicted()[:, None] == np.arange(len(scores.class_names))


def class_truth(scores: VideoScores) -> np.ndarray:
    """Which classes videos have, bool (N, K); none where that is unknown."""
    return scores.labels[:, None] == np.arange(len(scores.class_names)) if scores.truth is None else scores.truth


def kept_thresholds(scores: VideoScores) -> np.ndarray:
    """From which score on a video has a class, (K,): the checkpoint's, or .5 where there was none."""
    return np.full(len(scores.class_names), 0.5) if scores.thresholds is None else scores.thresholds


def labels_said(scores: VideoScores) -> str:
    """How labels came of scores, in words."""
    return f"labels by {'their thresholds' if scores.thresholds is not None else 'a threshold of .5'}"


def balanced_accuracy(scores: VideoScores) -> tuple[float, tuple[float, float]]:
    """The mean recall of the classes that have videos, and its interval.

    Raises:
        UserError: no label is known, or videos may have several.
    """
    scores = _known(scores)
    if scores.truth is not None:
        raise UserError("balanced accuracy is of one label a video, and these scores are of several")
    # Videos whose scores are not finite were taken for no class: they have a column of their own.
    k = len(scores.class_names)
    places = scores.labels * (k + 1) + np.where(scores.predicted() < 0, k, scores.predicted())
    cells, counts = np.unique(places, return_counts=True)
    drawn = np.random.default_rng(0).multinomial(len(scores), counts / len(scores), size=_RESAMPLES)  # (R,cells)
    true = cells // (k + 1)
    right = cells % (k + 1) == true
    recalls = []
    for number in np.unique(true):
        own = true == number
        videos, hits = drawn[:, own].sum(1), drawn[:, own & right].sum(1)
        recalls.append(np.where(videos > 0, hits / np.maximum(videos, 1), np.nan))
    means = np.nanmean(np.stack(recalls), 0)
    all_recalls = [counts[(true == n) & right].sum() / counts[true == n].sum() for n in np.unique(true)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(np.mean(all_recalls)), (float(low), float(high))


def most_confused(scores: VideoScores, most: int = 10) -> list[Confusion]:
    """The pairs of true and named class with the most videos.

    Args:
        scores: of an evaluation, of one label a video.
        most: of the pairs.
    """
    counts = confusion_matrix(scores)
    videos = np.bincount(scores.known().labels, minlength=len(counts))
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    names = scores.class_names
    pairs = [(int(place) // len(counts), int(place) % len(counts)) for place in order]
    return [Confusion(names[t], names[p], int(wrong[t, p]), int(videos[t])) for t, p in pairs if wrong[t, p]]


def class_table(scores: VideoScores) -> str:
    """The figures of every class in Markdown, the balanced accuracy, and the classes that are mixed up most."""
    rows, several = class_figures(scores), scores.truth is not None
    header = ["class", "n", "precision", "95 %", "recall", "95 %", "F1", "95 %", *(["AP"] if several else [])]
    cells = []
    for row in rows:
        precise, recalled = wilson_interval(row.hits, row.named), wilson_interval(row.hits, row.videos)
        shown = [percent(row.precision), percent_range(precise) if row.named else ""]
        shown += [percent(row.recall), percent_range(recalled) if row.videos else ""]
        shown += [percent(row.f1), "" if math.isnan(row.f1) else percent_range(row.f1_interval)]
        cells.append([row.name, str(row.videos), *shown, *([percent(row.average_precision)] if several else [])])
    lines = [markdown(header, cells)]
    if several:
        return "\n".join([*lines, "", labels_said(scores)])
    value, interval = balanced_accuracy(scores)
    lines += ["", f"balanced accuracy: {percent(value)} ({percent_range(interval)})"]
    for pair in most_confused(scores):
        lines.append(f"{pair.true} taken for {pair.named}: {pair.count} of {pair.videos}")
    return "\n".join(lines)


def _known(scores: VideoScores) -> VideoScores:
    known = scores.known()
    if not len(known):
        raise UserError("no video has a known label, so there is nothing to measure")
    return known


def _f1_interval(hits: int, wrong: int, missed: int, total: int) -> tuple[float, float]:
    if not hits + wrong + missed:
        return 0.0, 1.0
    shares = np.array([hits, wrong, missed, total - hits - wrong - missed]) / total
    drawn = np.random.default_rng(0).multinomial(total, shares, size=_RESAMPLES)
    values = 2 * drawn[:, 0] / np.maximum(2 * drawn[:, 0] + drawn[:, 1] + drawn[:, 2], 1)
    low, high = np.quantile(values[drawn[:, :3].sum(1) > 0], [0.025, 0.975])
    return float(low), float(high)

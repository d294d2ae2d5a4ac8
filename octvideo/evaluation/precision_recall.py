"""Precision over recall of classes, each against the rest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torchmetrics.functional.classification import binary_precision_recall_curve

from octvideo.evaluation.per_class import class_truth
from octvideo.evaluation.scores import VideoScores
from octvideo.evaluation.several import average_precisions

MOST_CURVES = 12  # that are drawn of a run


@dataclass(frozen=True)
class RecallCurve:
    """The curve of one class, the lowest threshold first.

    Args:
        number: of the class.
        average_precision: of it.
        recall, precision: at each threshold, float64 (P,).
    """

    number: int
    average_precision: float
    recall: np.ndarray
    precision: np.ndarray


def recall_curves(scores: VideoScores, most: int = MOST_CURVES) -> list[RecallCurve]:
    """The curves of the classes with the most videos, those with more first.

    Args:
        scores: with known labels, of one label a video or of several.
        most: how many; classes without a video have none.
    """
    values, truth = torch.from_numpy(scores.scores), torch.from_numpy(class_truth(scores))  # (N,K) each
    counts = truth.sum(0)
    chosen = [number for number in counts.argsort(descending=True, stable=True)[:most].tolist() if counts[number]]
    precisions = average_precisions(values[:, chosen], truth[:, chosen]).tolist()
    curves = []
    for number, average in zip(chosen, precisions, strict=True):
        precision, recall, _ = binary_precision_recall_curve(values[:, number], truth[:, number].long())
        curves.append(RecallCurve(number, average, recall.double().numpy(), precision.double().numpy()))
    return curves

"""Reliability of scores, against torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from octvideo.errors import UserError
from octvideo.evaluation.calibration import reliability
from octvideo.evaluation.metrics import wilson_interval
from octvideo.evaluation.scores import VideoScores


def scores_of(values: np.ndarray, labels: np.ndarray) -> VideoScores:
    names = [f"class {k}" for k in range(values.shape[1])]
    return VideoScores([f"{n}.mp4" for n in range(len(values))], labels, values, names)


@pytest.mark.parametrize(("videos", "classes", "bins"), [(1, 2, 15), (40, 3, 15), (700, 5, 10), (500, 400, 15)])
def test_the_error_is_torchmetrics(videos: int, classes: int, bins: int) -> None:
    values = (3 * torch.randn(videos, classes)).softmax(1)
    labels = torch.randint(classes, (videos,))
    found = reliability(scores_of(values.numpy(), labels.numpy()), num_bins=bins)
    expected = multiclass_calibration_error(values, labels, classes, n_bins=bins, norm="l1")
    assert found.ece == pytest.approx(float(expected), abs=1e-6)
    assert found.videos == videos and found.confidence == pytest.approx(float(values.max(1).values.mean()), abs=1e-6)
    assert found.accuracy == pytest.approx(float((values.argmax(1) == labels).float().mean()))


def test_bins_hold_what_lies_in_them() -> None:
    values = np.array([[0.5, 0.5], [0.6, 0.4], [0.65, 0.35], [0.0, 1.0], [0.9, 0.1]], np.float32)
    found = reliability(scores_of(values, np.array([0, 1, 0, 1, -1])), num_bins=2)
    assert [(one.low, one.high, one.videos, one.right) for one in found.bins] == [(0.0, 0.5, 1, 1), (0.5, 1.0, 3, 2)]
    assert found.bins[1].interval == wilson_interval(2, 3)
    assert found.ece == pytest.approx((0.5 + 3 * abs(2.25 / 3 - 2 / 3)) / 4)


def test_nothing_known_is_an_error() -> None:
    with pytest.raises(UserError, match="no video has a known label"):
        reliability(scores_of(np.ones((2, 2), np.float32) / 2, np.array([-1, -1])))

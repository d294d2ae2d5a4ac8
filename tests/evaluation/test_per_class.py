"""Figures of classes, temperatures and fusion against scikit-learn's, torch's and a search over all weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchmetrics.functional import calibration_error

from octvideo.errors import UserError
from octvideo.evaluation.calibration import cooled, fit_temperature, reliability
from octvideo.evaluation.fusion import fuse, fusion_weights
from octvideo.evaluation.per_class import balanced_accuracy, class_figures, class_table, most_confused
from octvideo.evaluation.scores import VideoScores

sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn is the reference")
NAMES = ["a", "b", "c", "d"]


def logits_of(n: int = 60, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Of three classes, the first with most videos; the fourth has none."""
    draw = torch.Generator().manual_seed(seed)
    labels = (torch.rand(n, generator=torch.Generator().manual_seed(9)) ** 2 * 3).long()
    logits = 3 * (torch.randn(n, 4, generator=draw) + 0.8 * F.one_hot(labels, 4))
    logits[:, 3] -= 4
    return logits, labels


def some(seed: int = 0) -> VideoScores:
    logits, labels = logits_of(seed=seed)
    return VideoScores([f"{n}.mp4" for n in range(60)], labels.numpy(), logits.softmax(1).numpy(), NAMES)


def several() -> VideoScores:
    draw = torch.Generator().manual_seed(0)
    truth = torch.rand(50, 4, generator=draw) < torch.tensor([0.9, 0.4, 0.2, 0.1])
    truth[:, 0] |= ~truth.any(1)
    values = torch.rand(50, 4, generator=draw) * 0.7 + 0.3 * truth
    paths = [f"{n}.mp4" for n in range(50)]
    return VideoScores(paths, truth.int().argmax(1), values, NAMES, truth, np.array([0.2, 0.5, 0.6, 0.7]))


def test_figures_of_classes_are_scikit_learns() -> None:
    scores = some()
    found = class_figures(scores)
    expected = sklearn.precision_recall_fscore_support(
        scores.labels, scores.predicted(), labels=range(4), zero_division=np.nan
    )
    for row, precision, recall, f1, videos in zip(found, *expected, strict=True):
        assert row.videos == videos
        np.testing.assert_allclose([row.precision, row.recall], [precision, recall])
        if videos:
            assert row.f1 == pytest.approx(f1) and row.f1_interval[0] <= row.f1 <= row.f1_interval[1]
    value, (low, high) = balanced_accuracy(scores)
    assert value == pytest.approx(sklearn.balanced_accuracy_score(scores.labels, scores.predicted()))
    assert low < value < high


def test_figures_of_several_labels_are_scikit_learns() -> None:
    scores = several()
    assert scores.truth is not None
    named = scores.scores >= scores.thresholds
    expected = sklearn.precision_recall_fscore_support(scores.truth, named)
    for row, precision, recall, f1, videos in zip(class_figures(scores), *expected, strict=True):
        assert row.videos == videos
        np.testing.assert_allclose([row.precision, row.recall, row.f1], [precision, recall, f1])
    assert "labels by their thresholds" in class_table(scores)
    with pytest.raises(UserError, match="balanced accuracy is of one label a video"):
        balanced_accuracy(scores)


def test_intervals_are_those_of_resampled_videos() -> None:
    """Of F1 and balanced accuracy, by drawing videos."""
    scores, draw = some(), np.random.default_rng(1)
    predicted = scores.predicted()
    f1, balanced = [], []
    for _ in range(600):
        drawn = draw.integers(0, 60, 60)
        labels, named = scores.labels[drawn], predicted[drawn]
        f1.append(2 * ((labels == 0) & (named == 0)).sum() / ((labels == 0).sum() + (named == 0).sum()))
        balanced.append(np.mean([(named[labels == k] == k).mean() for k in range(3) if (labels == k).any()]))
    for values, interval in ((f1, class_figures(scores)[0].f1_interval), (balanced, balanced_accuracy(scores)[1])):
        np.testing.assert_allclose(interval, np.quantile(values, [0.025, 0.975]), atol=0.03)


def test_what_is_mixed_up_most() -> None:
    labels, values = [0, 0, 0, 1, 1, 2], np.eye(4)[[1, 1, 0, 0, 1, 2]]
    scores = VideoScores(list("abcdef"), np.array(labels), values, NAMES)
    first, second = most_confused(scores)
    assert (first.true, first.named, first.count, first.videos) == ("a", "b", 2, 3)
    assert (second.true, second.named, second.count, second.videos) == ("b", "a", 1, 2)
    table = class_table(scores)
    assert "a taken for b: 2 of 3" in table and "balanced accuracy: 61.1 %" in table


# ── temperature ─────────────────────────────────────────────────────────────────────────────────────────────


def test_the_temperature_has_the_least_loss_and_is_that_of_the_logits() -> None:
    logits, labels = logits_of()
    found = fit_temperature(some())
    losses = {t: float(F.cross_entropy(logits / t, labels)) for t in np.linspace(0.5, 8, 1501)}
    assert found == pytest.approx(min(losses, key=lambda t: losses[t]), abs=0.006)
    better = cooled(some(), found)
    np.testing.assert_allclose(better.scores, (logits / found).softmax(1), atol=1e-5)
    expected = calibration_error(
        torch.from_numpy(better.scores), labels, task="multiclass", num_classes=4, n_bins=15, norm="l1"
    )
    assert reliability(better).ece == pytest.approx(float(expected), abs=1e-6)
    with pytest.raises(UserError, match="a temperature is for networks of one label a video"):
        fit_temperature(several())


# ── fusion ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_runs_are_fused_by_video() -> None:
    one, other = some(0), some(1)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0)).numpy()
    shuffled = VideoScores([other.paths[n] for n in order], other.labels[order], other.scores[order], NAMES)
    found = fuse([one, shuffled], [1, 3])
    assert found.paths == one.paths
    np.testing.assert_allclose(found.scores, 0.25 * one.scores + 0.75 * other.scores, atol=1e-6)


def test_runs_of_several_labels_are_fused_by_video() -> None:
    one = several()
    assert one.truth is not None
    order = np.arange(len(one))[::-1]
    paths, truth = [one.paths[n] for n in order], one.truth[order]
    backwards = VideoScores(paths, one.labels[order], one.scores[order], NAMES, truth)
    found = fuse([one, backwards])
    assert found.paths == one.paths and (found.truth == one.truth).all()
    np.testing.assert_allclose(found.scores, one.scores, atol=1e-6)
    with pytest.raises(UserError, match="tested with other labels"):
        fuse([one, VideoScores(paths, one.labels[order], one.scores[order], NAMES, np.roll(truth, 1, axis=1))])


@pytest.mark.parametrize("with_several", [False, True])
def test_weights_of_the_fusion_are_the_likeliest(with_several: bool) -> None:
    runs = [some(seed) for seed in range(2)]
    if with_several:
        first = several()
        values = np.random.default_rng(0).random((50, 4)) * 0.5 + 0.4 * first.scores
        runs = [first, VideoScores(first.paths, first.labels, values, NAMES, first.truth)]
    found = fusion_weights(runs)

    def loss(weight: float) -> float:
        mean = fuse(runs, [weight, 1 - weight])
        if mean.truth is not None:
            return float(F.binary_cross_entropy(torch.from_numpy(mean.scores), torch.from_numpy(mean.truth).float()))
        return float(F.nll_loss(torch.from_numpy(mean.scores).log(), torch.from_numpy(mean.labels)))

    best = min(np.linspace(0, 1, 1001), key=loss)
    assert sum(found) == pytest.approx(1) and found[0] == pytest.approx(best, abs=0.003)


def test_what_cant_be_fused(tmp_path: Path) -> None:
    one = some()
    others = VideoScores(["x.mp4", *one.paths[1:]], one.labels, one.scores, NAMES)
    named = VideoScores(one.paths, one.labels, one.scores, ["z", *NAMES[1:]])
    labelled = VideoScores(one.paths, (one.labels + 1) % 3, one.scores, NAMES)
    for other, message in ((others, "other videos"), (named, "other classes"), (labelled, "with other labels")):
        with pytest.raises(UserError, match=message):
            fuse([one, other])
    with pytest.raises(UserError, match=r"weights: got \[1\] for 2 runs"):
        fuse([one, one], [1])

"""Metrics of several labels against scikit-learn's, thresholds against all possible ones, scores by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from octvideo.errors import UserError
from octvideo.evaluation.report import figures, metrics_table
from octvideo.evaluation.scores import VideoScores
from octvideo.evaluation.scoring import Scoring
from octvideo.evaluation.several import (
    SeveralMetrics,
    average_precisions,
    best_thresholds,
    map_intervals,
    mean_average_precisions,
    several_hot,
)

sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn is the reference")
NAMES = ["a", "b", "c", "d", "none"]


def some(num_videos: int = 40) -> tuple[Tensor, Tensor]:
    """Scores with ties, and labels; no video has the last class."""
    draw = torch.Generator().manual_seed(0)
    truth = torch.rand(num_videos, 5, generator=draw) < torch.tensor([0.5, 0.2, 0.1, 0.9, 0.0])
    scores = (torch.rand(num_videos, 5, generator=draw) * 0.6 + 0.3 * truth).mul(20).round() / 20
    truth[:, 0] |= ~truth.any(1)
    return scores, truth


def test_average_precision_is_scikit_learns() -> None:
    scores, truth = some()
    expected = [sklearn.average_precision_score(truth[:, k], scores[:, k]) for k in range(4)]
    found = average_precisions(scores, truth)
    np.testing.assert_allclose(found[:4], expected, atol=1e-6)
    assert found[4].isnan()  # no video has it
    macro, micro = mean_average_precisions(scores, truth)
    assert macro == pytest.approx(np.mean(expected), abs=1e-6)
    assert micro == pytest.approx(sklearn.average_precision_score(truth, scores, average="micro"), abs=1e-6)


def test_it_is_the_same_over_any_batches_and_videos_without_a_label_count_nowhere() -> None:
    scores, truth = some()
    metrics = SeveralMetrics(5)
    for first, stop in ((0, 7), (7, 7), (7, 40)):
        metrics.update(scores[first:stop], truth[first:stop])
    metrics.update(torch.rand(3, 5), torch.zeros(3, 5, dtype=torch.bool))
    found = metrics.compute()
    assert (found["map"], found["map_micro"]) == mean_average_precisions(scores, truth)
    best = scores.argmax(1)
    assert found["top1"] == pytest.approx(float(truth.gather(1, best[:, None]).float().mean()))
    assert metrics.thresholds == best_thresholds(scores, truth)
    with pytest.raises(ValueError, match=r"got scores \(2, 4\) and truth \(2, 5\)"):
        metrics.update(torch.rand(2, 4), torch.zeros(2, 5, dtype=torch.bool))


def test_intervals_are_scikit_learns_of_resampled_videos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octvideo.evaluation.several._RESAMPLES", 100)
    scores, truth = some()
    draw = torch.Generator().manual_seed(0)
    macro, micro = [], []
    for _ in range(100):
        counts = torch.randint(40, (40,), generator=draw).bincount(minlength=40).numpy()
        there = [k for k in range(5) if (counts * truth[:, k].numpy()).any()]
        score = sklearn.average_precision_score
        macro.append(np.mean([score(truth[:, k], scores[:, k], sample_weight=counts) for k in there]))
        micro.append(score(truth.flatten(), scores.flatten(), sample_weight=counts.repeat(5)))
    for found, value, drawn in zip(
        map_intervals(scores, truth), mean_average_precisions(scores, truth), (macro, micro), strict=True
    ):
        ends = np.quantile(drawn, [0.025, 0.975]) - np.mean(drawn) + value
        assert found == pytest.approx(ends.clip(0, 1), abs=1e-6) and found[0] < value < found[1]
    assert map_intervals(scores, torch.zeros_like(truth)) == (None, None)
    monkeypatch.setattr("octvideo.evaluation.several._MOST_WORK", 99 * 40 * 5)  # it would take too long
    assert map_intervals(scores, truth) == (None, None)


def test_thresholds_have_the_greatest_f1_of_all() -> None:
    scores, truth = some()
    for k, threshold in enumerate(best_thresholds(scores, truth)[:4]):
        every = [sklearn.f1_score(truth[:, k], scores[:, k] >= at, zero_division=0) for at in np.arange(0.025, 1, 0.05)]
        assert sklearn.f1_score(truth[:, k], scores[:, k] >= threshold) == pytest.approx(max(every))
        assert threshold not in scores[:, k].tolist()  # between two scores
    assert best_thresholds(scores, truth)[4] == 0.5


def test_labels_and_others_are_several_hot() -> None:
    hot = several_hot(torch.tensor([2, -1]), torch.tensor([[0, -1], [-1, -1]]), 3)
    assert hot.tolist() == [[True, False, True], [False] * 3]


# ── files and tables ────────────────────────────────────────────────────────────────────────────────────────


def held() -> VideoScores:
    scores, truth = some(20)
    return VideoScores([f"{n}.mp4" for n in range(20)], truth.int().argmax(1), scores, NAMES, truth.numpy())


def test_scores_of_several_labels_are_kept(tmp_path: Path) -> None:
    whole = held()
    whole.save(tmp_path / "scores.npz")
    loaded = VideoScores.load(tmp_path / "scores.npz")
    assert loaded.truth is not None and whole.truth is not None and (loaded.truth == whole.truth).all()
    assert int(np.load(tmp_path / "scores.npz")["format"]) == 2
    whole.save_csv(tmp_path / "scores.csv", top=1)
    line = (tmp_path / "scores.csv").read_text().splitlines()[1]
    assert line.split(",")[1] == ";".join(NAMES[k] for k in np.flatnonzero(whole.truth[0]))
    joined = VideoScores.concat([whole, whole])
    assert joined.truth is not None and joined.truth.shape == (40, 5) and joined.thresholds is None
    low, high = (replace(whole, thresholds=np.full(5, value)) for value in (0.2, 0.6))
    same = VideoScores.concat([low, low]).thresholds
    assert same is not None and same.tolist() == [0.2] * 5
    assert VideoScores.concat([low, high]).thresholds is None is VideoScores.concat([low, whole]).thresholds
    one = VideoScores(whole.paths, whole.labels, whole.scores, NAMES)
    with pytest.raises(UserError, match="some parts have several labels a video and others one"):
        VideoScores.concat([whole, one])
    with pytest.raises(ValueError, match=r"got truth \(1, 2\), expected \(20, 5\)"):
        VideoScores(whole.paths, whole.labels, whole.scores, NAMES, np.ones((1, 2)))


def test_the_table_has_them() -> None:
    scores = held()
    assert scores.truth is not None
    macro, micro, top1 = figures(scores)
    there = np.flatnonzero(scores.truth.any(0))
    expected = [sklearn.average_precision_score(scores.truth[:, k], scores.scores[:, k]) for k in there]
    assert macro.value == pytest.approx(np.mean(expected), abs=1e-6)
    assert (macro.name, micro.name, top1.name, top1.total) == ("mAP", "mAP micro", "top-1", 20)
    assert f"{100 * macro.value:.1f} %" in metrics_table(scores)
    assert macro.interval is not None and macro.interval[0] < macro.value < macro.interval[1]


# ── scoring ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_scores_of_views_by_sigmoid() -> None:
    logits = torch.tensor([[1.0, -3.0], [2.0, 0.0], [0.5, 0.5], [-1.0, 4.0]])
    expected = torch.stack([logits[:2].sigmoid().mean(0), logits[2:].sigmoid().mean(0)])
    torch.testing.assert_close(Scoring("sigmoid").of_views(logits, 2), expected)
    infinite = torch.tensor([[1.0, -torch.inf]])
    assert Scoring("sigmoid").of_views(infinite, 1).isnan().all()


def test_a_temperature_is_that_of_the_softmax() -> None:
    logits = torch.tensor([[1.0, -3.0, 0.2], [2.0, 0.0, 0.1]])
    torch.testing.assert_close(Scoring(temperature=2.5).of_views(logits, 1), (logits / 2.5).softmax(1))


def test_labels_by_thresholds() -> None:
    scoring = Scoring("sigmoid", (0.5, 0.2, 0.9))
    assert scoring.labels_of(torch.tensor([0.5, 0.8, 0.89])) == [1, 0]
    assert Scoring("sigmoid").labels_of(torch.tensor([0.5, 0.8, 0.89])) is None
    assert scoring.reordered([2, 0, 1]).thresholds == (0.9, 0.5, 0.2)


def test_what_files_say() -> None:
    scoring = Scoring("sigmoid", (0.25, 0.5))
    assert Scoring.from_dict(scoring.as_dict(), num_classes=2) == scoring
    assert Scoring.from_dict(None, num_classes=2) == Scoring()  # of older checkpoints
    for wrong, message in (
        ({"function": "cosine"}, "got function 'cosine', expected softmax or sigmoid"),
        ({"thresholds": None}, "expected function, thresholds, temperature"),
        ({"function": "sigmoid", "thresholds": [0.5]}, "got 1 thresholds for 2 classes"),
        ({"function": "softmax", "temperature": 0}, "got temperature 0.0, expected more than 0"),
        ({"function": "sigmoid", "temperature": 2}, "a temperature is for networks of one label"),
    ):
        with pytest.raises(UserError, match=message):
            Scoring.from_dict(wrong, num_classes=2)


def test_one_class_with_videos_is_enough() -> None:
    scores, truth = torch.tensor([[0.9, 0.2, 0.1], [0.8, 0.6, 0.3]]), torch.zeros(2, 3, dtype=torch.bool)
    truth[1, 0] = True
    values = average_precisions(scores, truth)
    assert values[0] == 0.5 and values[1:].isnan().all() and mean_average_precisions(scores, truth)[0] == 0.5

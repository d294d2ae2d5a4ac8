"""Metrics against plain loops, torchmetrics, and themselves split over batches and processes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from octvideo.errors import UserError
from octvideo.evaluation.metrics import VideoMetrics, pair_hits, wilson_interval
from octvideo.evaluation.view_scores import in_top_k, video_scores

K = 7


def some_scores(n: int, k: int = K, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(k - 1, (n,), generator=generator)  # the last class has no videos
    scores = torch.randn(n, k, generator=generator)
    scores[torch.arange(n), labels] += 0.8
    return scores.softmax(1), labels


def by_hand(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """With loops and sorting, as the words say it."""
    first, five, per_class = [], [], {}
    for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
        ranking = sorted(range(len(row)), key=lambda c: (-row[c], c))
        first.append(ranking[0] == label)
        five.append(label in ranking[:5])
        per_class.setdefault(label, []).append(first[-1])
    return {
        "top1": float(np.mean(first)),
        "top5": float(np.mean(five)),
        "mean_class": float(np.mean([np.mean(v) for v in per_class.values()])),
    }


def test_video_scores_average_the_softmax_of_neighbouring_rows() -> None:
    logits = torch.randn(3 * 4, K, dtype=torch.float64)
    scores = video_scores(logits, num_views=4)
    assert scores.shape == (3, K)
    rows = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    for video in range(3):
        np.testing.assert_allclose(scores[video].numpy(), rows[4 * video : 4 * video + 4].mean(0))
    # The mean of the softmax, not the softmax of the mean.
    assert not torch.allclose(scores, logits.view(3, 4, K).mean(1).softmax(1))
    assert video_scores(torch.empty(0, K), num_views=4).shape == (0, K)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_logit_that_is_not_finite_makes_its_videos_scores_nan(value: float) -> None:
    logits = torch.zeros(6, K)
    logits[3, 2] = value
    scores = video_scores(logits, num_views=2)
    assert scores.isnan().all(1).tolist() == [False, True, False]
    assert scores[0].tolist() == pytest.approx([1 / K] * K)


def test_video_scores_refuse_part_of_a_video() -> None:
    with pytest.raises(ValueError, match=r"got shape \(10, 7\) with num_views=4, expected \(N·num_views, K\)"):
        video_scores(torch.zeros(10, K), num_views=4)


@pytest.mark.parametrize("k", [2, 4, K, 30])
def test_metrics_equal_loops_and_torchmetrics(k: int) -> None:
    scores, labels = some_scores(101, k)
    metrics = VideoMetrics(k)
    metrics.update(scores, labels)
    got = metrics.compute()
    assert got == pytest.approx(by_hand(scores, labels))
    reference = MulticlassAccuracy(num_classes=k, average="micro")
    assert got["top1"] == pytest.approx(float(reference(scores, labels)))
    if k > 5:
        reference = MulticlassAccuracy(num_classes=k, average="micro", top_k=5)
        assert got["top5"] == pytest.approx(float(reference(scores, labels)))
    else:
        assert got["top5"] == 1.0


def test_batches_do_not_matter_and_may_be_empty() -> None:
    scores, labels = some_scores(31)
    whole, split = VideoMetrics(K), VideoMetrics(K)
    whole.update(scores, labels)
    for part in torch.arange(31).tensor_split([0, 1, 1, 9, 30]):
        split.update(scores[part], labels[part])
    assert split.compute() == whole.compute()
    assert split.videos.sum() == 31


class OnMps(Tensor):
    """A Mac's GPU, which has no float64."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs or {})
        if func is Tensor.cpu:
            return result.as_subclass(Tensor)
        if isinstance(result, Tensor) and result.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return result


def test_counts_on_a_device_without_float64() -> None:
    scores, labels = some_scores(31)
    metrics, expected = VideoMetrics(K), VideoMetrics(K)
    for name in ("hits1", "hits5", "videos", "largest"):
        setattr(metrics, name, getattr(metrics, name).as_subclass(OnMps))
    with pytest.raises(TypeError, match="float64"):
        metrics.videos.double()
    for counts, given in ((metrics, scores.as_subclass(OnMps)), (expected, scores)):
        counts.update(given, labels)
    assert isinstance(metrics.hits1, OnMps) and metrics.compute() == expected.compute()


def test_equal_and_broken_scores() -> None:
    tied = torch.full((2, 3), 1 / 3)
    assert in_top_k(tied, torch.tensor([0, 2]), 1).tolist() == [True, False]
    assert in_top_k(tied, torch.tensor([0, 2]), 2).tolist() == [True, False]
    broken = torch.tensor([[math.nan, 1.0, 0.0], [math.nan, math.nan, math.nan]])
    assert in_top_k(broken, torch.tensor([1, 0]), 3).tolist() == [False, False]


def test_nothing_counted_is_nan_and_reset_forgets() -> None:
    metrics = VideoMetrics(K)
    metrics.update(torch.empty(0, K), torch.empty(0, dtype=torch.int64))
    assert all(math.isnan(value) for value in metrics.compute().values())
    metrics.update(*some_scores(5))
    metrics.reset()
    assert metrics.videos.sum() == 0


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (
            torch.zeros(2, 3),
            torch.zeros(2).long(),
            r"got scores \(2, 3\) and labels \(2,\), expected \(N, 7\)",
        ),
        (torch.zeros(2, K), torch.zeros(3).long(), r"got scores \(2, 7\) and labels \(3,\)"),
    ],
)
def test_what_does_not_fit_is_refused(scores: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VideoMetrics(K).update(scores, labels)


def test_a_label_that_is_no_class_is_refused_when_it_is_read() -> None:
    metrics = VideoMetrics(K)
    metrics.update(torch.zeros(2, K), torch.tensor([0, K]))
    with pytest.raises(ValueError, match="labels: got 7, expected at most 6"):
        metrics.compute()


def test_unknown_labels_count_nowhere() -> None:
    scores, labels = some_scores(9)
    known, all_of_them = VideoMetrics(K), VideoMetrics(K)
    known.update(scores[2:], labels[2:])
    labels[:2] = -1
    all_of_them.update(scores, labels)
    assert all_of_them.compute() == known.compute()


def test_pair_hits_look_at_two_classes_only() -> None:
    scores, labels = some_scores(200)
    pairs = [(0, 3), (5, 2)]
    expected = []
    for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
        opposite = {0: 3, 3: 0, 5: 2, 2: 5}.get(label)
        if opposite is not None:
            expected.append(row[label] > row[opposite])
    assert pair_hits(scores, labels, pairs).tolist() == expected
    assert 0 < sum(expected) < len(expected)
    # A network that can't tell opposites apart gives both the same scores: one of the two is right.
    assert pair_hits(scores[:1].repeat(2, 1), torch.tensor([0, 3]), pairs).sum() == 1
    with pytest.raises(UserError, match="every class may be in one pair only"):
        pair_hits(scores, labels, [(0, 1), (1, 2)])


@pytest.mark.parametrize(("hits", "total"), [(0, 10), (1, 7), (37, 185), (80, 80)])
def test_wilson_bounds_solve_their_equation(hits: int, total: int) -> None:
    z = 1.959964
    low, high = wilson_interval(hits, total)
    share = hits / total
    assert 0 <= low <= share <= high <= 1 and high - low > 0
    for bound in {low, high} - {0.0, 1.0}:
        # At each bound p the observed share is just z standard errors away.
        assert abs(share - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / total), rel=1e-6)


def test_wilson_interval_of_published_values() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3: 81/263 and 0/20.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="got 3 hits of 2"):
        wilson_interval(3, 2)


def _one_of_two(rank: int, init_file: str, videos: int, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{init_file}", rank=rank, world_size=2)
    scores, labels = some_scores(videos)
    metrics = VideoMetrics(K)
    metrics.update(scores[rank::2], labels[rank::2])
    torch.save(metrics.compute(), f"{out}{rank}")
    dist.destroy_process_group()


@pytest.mark.skipif(torch.__version__.startswith("2.6."), reason="its Gloo may never end in destroy_process_group")
@pytest.mark.slow  # tests/cli/test_distributed.py counts by two processes too
@pytest.mark.parametrize("videos", [1, 23])  # fewer than processes; odd
def test_two_processes_count_what_one_counts(videos: int, tmp_path: Path) -> None:
    mp.spawn(_one_of_two, (str(tmp_path / "init"), videos, str(tmp_path / "out")), nprocs=2)
    one = VideoMetrics(K)
    one.update(*some_scores(videos))
    for rank in range(2):
        assert torch.load(tmp_path / f"out{rank}") == one.compute()

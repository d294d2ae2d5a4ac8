"""From the views of videos to their scores and best classes. Needs torch only, so that serving loads no metrics.

Softmax and sigmoid happen here and nowhere else, once per view; everything after works on scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from octvideo.batches import Views


def view_chunks(videos: Tensor | Sequence[Views], size: int) -> Iterator[Tensor]:
    """All views of all videos in their order, a bounded number at a time.

    Args:
        videos: views that are cut when their turn comes; or cut before, (N, V, C, T, S, S).
        size: views in a chunk, of one video or several.

    Returns:
        (n, C, T, S, S), n being `size` but for the last; nothing where there is no video.
    """
    if isinstance(videos, Tensor):
        yield from videos.flatten(0, 1).split(size) if len(videos) else ()
        return
    parts: list[Tensor] = []
    free = size
    for video in videos:
        start = 0
        while start < video.num_views:
            stop = min(start + free, video.num_views)
            parts.append(video.cut(start, stop))
            start, free = stop, free - (stop - start)
            if not free:
                yield _joined(parts)
                parts, free = [], size
    if parts:
        yield _joined(parts)


def even_chunk(num_views: int, most: int = 8) -> int:
    """A size of chunks that leaves no smaller chunk at a video's end: a network is compiled anew for each size.

    Args:
        num_views: of a video, V.
        most: views in a chunk.

    Returns:
        The largest divisor of V up to `most`, or of few views as many videos as fit. Where all divisors are less than
        half of `most`, it is `most`: small chunks would cost more than another size.

    Example:
        >>> [even_chunk(views) for views in (30, 10, 3, 1, 11)]
        [6, 5, 6, 8, 8]
    """
    if num_views <= most:
        return most // num_views * num_views
    size = next(size for size in range(most, 0, -1) if num_views % size == 0)
    return size if 2 * size >= most else most


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def video_scores(logits: Tensor, num_views: int, function: Literal["softmax", "sigmoid"] = "softmax") -> Tensor:
    """Scores of videos: softmax or sigmoid of each view, averaged over a video's views.

    Args:
        logits: all views of all videos, the views of one video next to each other, (N·V, K).
        num_views: V.
        function: "sigmoid" where a video may have several labels.

    Returns:
        Scores, which sum to 1 for each video by softmax, (N, K); NaN where a logit of the video is not finite.

    Raises:
        ValueError: the rows are no whole number of videos.

    Example:
        >>> video_scores(torch.zeros(6, 4), num_views=3)
        tensor([[0.2500, 0.2500, 0.2500, 0.2500],
                [0.2500, 0.2500, 0.2500, 0.2500]])
    """
    if logits.ndim != 2 or num_views < 1 or len(logits) % num_views:
        raise ValueError(
            f"logits: got shape {tuple(logits.shape)} with num_views={num_views}, "
            "expected (N·num_views, K): all views of every video"
        )
    # A single class at -inf would not show in the scores.
    scores = (logits.softmax(1) if function == "softmax" else logits.sigmoid()).where(
        logits.isfinite().all(1, keepdim=True), math.nan
    )  # (N·V,K)
    return scores.unflatten(0, (len(logits) // num_views, num_views)).mean(1)  # (N,K)


def in_top_k(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """Whether the true class is among the k best.

    Equal scores rank by class id, so the answer depends on no sorting algorithm. A video with scores that
    are not finite counts as wrong: comparisons with NaN would call it right.

    Args:
        scores: (N, K).
        labels: int64, (N,).
        k: how many classes may be named; more than K is K.

    Returns:
        bool, (N,).
    """
    own = scores.gather(1, labels[:, None])  # (N,1)
    lower_class = torch.arange(scores.shape[1], device=scores.device) < labels[:, None]  # (N,K)
    ahead = (scores > own) | ((scores == own) & lower_class)  # (N,K)
    return (ahead.sum(1) < k) & scores.isfinite().all(1)  # (N,)


def best_classes(scores: Tensor, k: int) -> Tensor:
    """The k best classes of each row, the best first, ranked as `in_top_k` ranks them: (..., K) to (..., k)."""
    return scores.sort(dim=-1, descending=True, stable=True).indices[..., :k]

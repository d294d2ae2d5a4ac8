"""From the logits of views to the scores of videos. Needs torch only, so that serving loads no metrics.

Softmax happens here and nowhere else, once per view; everything after it works on scores.
"""

from __future__ import annotations

from torch import Tensor


def video_scores(logits: Tensor, num_views: int) -> Tensor:
    """Scores of videos: softmax of each view, averaged over a video's views.

    Args:
        logits: all views of all videos, the views of one video next to each other, (N·V, K).
        num_views: V.

    Returns:
        Scores that sum to 1 for each video, (N, K).

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
    scores = logits.softmax(1)  # (N·V,K)
    return scores.unflatten(0, (len(logits) // num_views, num_views)).mean(1)  # (N,K)

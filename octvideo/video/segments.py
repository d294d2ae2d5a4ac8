"""Which frames make a clip of segments: one of each of T equal parts of the video, so a clip always shows all of it.
Integer maths on frame indices, beside the strided clips of sampling.py.

`segments` is the rule of TSN (arXiv 1608.00859) and TSM (arXiv 1811.08383). Segment t of a video of N frames is
[t * N // T, (t + 1) * N // T). With 4 segments of 14 frames::

    frame           0  1  2  3  4  5  6  7  8  9 10 11 12 13
    segment         0  0  0  1  1  1  1  2  2  2  3  3  3  3
    training        .  x  .  x  .  .  .  .  .  x  .  .  x  .     any frame of each segment, equally likely
    one clip        .  x  .  .  .  x  .  .  x  .  .  .  x  .     the middle: (2t + 1) * N // 2T
    two clips: 0    x  .  .  x  .  .  .  x  .  .  x  .  .  .     the first and the middle, as TSM's "twice sample":
    two clips: 1    .  x  .  .  .  x  .  .  x  .  .  .  x  .     clip c of n lies at the share c / n of each segment

`segments_ssv2` is PySlowFast's rule for Something-Something v2 (slowfast/datasets/ssv2.py). Its N - 1 steps are shared
out, bounds are rounded (halves to even) and belong to both neighbours. For the same video::

    bounds          0        3           6          10          13          round(t * 13 / 4)
    training        [--------------------------------------------]           any of [0, 3], [3, 6], [6, 10], [10, 13]
    one clip        .  x  .  .  x  .  .  .  x  .  .  x  .  .     the middle of the bounds, rounded down

Several clips of it are mmaction2's `UniformSample`: clip c of n lies (c + 1) / (n + 1) of a segment after its start.
A video of fewer frames than segments shows some of them more than once.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

import torch
from torch import Generator, Tensor

Sampling = Literal["dense", "segments", "segments_ssv2"]


def random_segments(num_frames: int, sampling: Sampling, *, clip_frames: int, generator: Generator) -> Tensor:
    """Frame indices of one clip of segments, from each a frame, every one of them equally likely.

    Args:
        num_frames: of the video, 1 or more.
        sampling: "segments" or "segments_ssv2".
        clip_frames: T.
        generator: the only source of randomness.

    Returns:
        int64 (T,), in [0, num_frames), none less than the one before.
    """
    _check(num_frames, sampling, clip_frames)
    starts, lengths = _segments(num_frames, sampling, clip_frames)
    drawn = torch.rand(clip_frames, generator=generator, dtype=torch.float64)  # (T,)
    return starts + (drawn * lengths).long()


def segment_clips(num_frames: int, sampling: Sampling, *, num_clips: int, clip_frames: int) -> Tensor:
    """Frame indices of clips of segments: one is of their middles, several lie spread over them.

    Args:
        num_frames: of the video, 1 or more.
        sampling: "segments" or "segments_ssv2".
        num_clips: how many.
        clip_frames: T.

    Returns:
        int64 (num_clips, T), in [0, num_frames).

    Example:
        >>> segment_clips(14, "segments", num_clips=2, clip_frames=4)
        tensor([[ 0,  3,  7, 10],
                [ 1,  5,  8, 12]])
    """
    _check(num_frames, sampling, clip_frames)
    if num_clips < 1:
        raise ValueError(f"got num_clips={num_clips}, expected 1 or more")
    segment, clip = torch.arange(clip_frames), torch.arange(num_clips)[:, None]  # (T,), (num_clips,1)
    if sampling == "segments":
        share, whole = (torch.ones(1, 1, dtype=torch.int64), 2) if num_clips == 1 else (clip, num_clips)
        return (segment * whole + share) * num_frames // (whole * clip_frames)
    starts, lengths = _segments(num_frames, sampling, clip_frames)
    if num_clips == 1:
        return (starts + (lengths - 1) // 2)[None]
    return starts + (clip + 1) * (num_frames - 1) // (clip_frames * (num_clips + 1))


def _segments(num_frames: int, sampling: Sampling, clip_frames: int) -> tuple[Tensor, Tensor]:
    """The first frame of each segment and how many there are, int64 (T,)."""
    if sampling == "segments":
        bounds = torch.arange(clip_frames + 1) * num_frames // clip_frames
        return bounds[:-1], (bounds[1:] - bounds[:-1]).clamp(min=1)
    bounds = torch.tensor([round(Fraction(n * (num_frames - 1), clip_frames)) for n in range(clip_frames + 1)])
    return bounds[:-1], bounds[1:] - bounds[:-1] + 1


def _check(num_frames: int, sampling: Sampling, clip_frames: int) -> None:
    if sampling not in ("segments", "segments_ssv2"):
        raise ValueError(f"sampling: got {sampling!r}, expected 'segments' or 'segments_ssv2'")
    if num_frames < 1 or clip_frames < 1:
        raise ValueError(f"got num_frames={num_frames} and clip_frames={clip_frames}, expected 1 or more")

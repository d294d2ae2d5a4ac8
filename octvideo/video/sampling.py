"""Which frames make a clip: integer maths on frame indices, no video in sight.

A clip is `clip_frames` frames, `frame_stride` apart, so it spans [start, start + clip_span). With 4 frames and
a stride of 3, and three uniform clips of a video of 20 frames::

    frame   0  1  2  3  4  5  6  7  8  9 10 11 12 13 14 15 16 17 18 19
    clip 0  x  .  .  x  .  .  x  .  .  x                                  start 0, span 10
    clip 1                 x  .  .  x  .  .  x  .  .  x                   start 5
    clip 2                                x  .  .  x  .  .  x  .  .  x    start 10 = 20 - span

Strides are exact: a rounded `linspace`, as in SlowFast's sampler, would give strides of 4, 4, 4, 5.

With a `Clock` the same numbers count its ticks instead of frames. At 10 per second, in a video of variable rate::

    seconds  0.0  0.1  0.2  0.3  0.4  0.5  0.6
    frame    0         1    2 3        4               at 0, 0.2, 0.3, 0.35 and 0.55 s
    tick     0    1    2    3    4    5    6
    shows    0    0    1    2    3    3    4           the last frame that came by then
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Literal, get_args

import torch
from torch import Generator, Tensor

# What follows the last frame of a video that is shorter than a clip.
ShortVideo = Literal["repeat_last", "loop"]


def clip_span(clip_frames: int, frame_stride: int) -> int:
    """Frames from the first to the last of a clip, both included.

    Raises:
        ValueError: one of them is below 1.

    Example:
        >>> clip_span(clip_frames=8, frame_stride=8)
        57
    """
    if clip_frames < 1 or frame_stride < 1:
        raise ValueError(f"got clip_frames={clip_frames} and frame_stride={frame_stride}, expected 1 or more")
    return (clip_frames - 1) * frame_stride + 1


def random_clip(
    num_frames: int,
    *,
    clip_frames: int,
    frame_stride: int,
    generator: Generator,
    short_video: ShortVideo = "repeat_last",
) -> Tensor:
    """Frame indices of one clip at a random start, every start equally likely.

    Args:
        num_frames: of the video, 1 or more.
        clip_frames: T.
        frame_stride: from one frame of the clip to the next.
        generator: the only source of randomness.
        short_video: what follows the last frame of a video shorter than the clip.

    Returns:
        int64 (T,), in [0, num_frames).
    """
    starts = max(num_frames - clip_span(clip_frames, frame_stride) + 1, 1)
    start = torch.randint(starts, (1,), generator=generator)
    return _inside(start + frame_stride * torch.arange(clip_frames), num_frames, short_video)


def uniform_clips(
    num_frames: int,
    *,
    num_clips: int,
    clip_frames: int,
    frame_stride: int,
    short_video: ShortVideo = "repeat_last",
) -> Tensor:
    """Frame indices of clips spread evenly: the first at the start, the last at the end, a single one centred.

    Args:
        num_frames: of the video, 1 or more.
        num_clips: how many.
        clip_frames: T.
        frame_stride: from one frame of a clip to the next.
        short_video: what follows the last frame of a video shorter than the clip.

    Returns:
        int64 (num_clips, T), in [0, num_frames).

    Example:
        >>> uniform_clips(20, num_clips=3, clip_frames=4, frame_stride=3)
        tensor([[ 0,  3,  6,  9],
                [ 5,  8, 11, 14],
                [10, 13, 16, 19]])
    """
    if num_clips < 1:
        raise ValueError(f"got num_clips={num_clips}, expected 1 or more")
    last_start = max(num_frames - clip_span(clip_frames, frame_stride), 0)
    if num_clips == 1:
        starts = torch.tensor([last_start // 2])
    else:
        starts = torch.arange(num_clips) * last_start // (num_clips - 1)  # (num_clips,)
    clips = starts[:, None] + frame_stride * torch.arange(clip_frames)  # (num_clips,T)
    return _inside(clips, num_frames, short_video)


class Clock:
    """Ticks at a constant rate, and the frame on display at each: a clip of a given stride then lasts equally long
    in every video, whatever its frame rate.

    Args:
        times: of the frames in the order of display, in units of `time_base`, and the end of the last.
        time_base: in seconds.
        target_fps: ticks per second; the first is at the first frame.
    """

    def __init__(self, times: Sequence[int], time_base: Fraction, target_fps: float) -> None:
        self._times, self._end = times[:-1], times[-1]
        # Rounded so that 29.97 is what it says; exact from here on.
        self._step = 1 / (Fraction(target_fps).limit_denominator(1001) * time_base)

    def __len__(self) -> int:
        """Ticks before the end, 1 or more; a rotten file may claim to last for years."""
        return min(max(-((self._times[0] - self._end) // self._step), 1), 2**31)

    def frames(self, ticks: Sequence[int]) -> Tensor:
        """Indices of the frames on display, int64 (len(ticks),)."""
        start = self._times[0]
        return torch.tensor([bisect_right(self._times, start + int(tick * self._step)) - 1 for tick in ticks])


def wanted_frames(
    choose: Callable[[int], Tensor], times: Sequence[int], time_base: Fraction, target_fps: float | None
) -> tuple[list[int], Tensor, int]:
    """The frames that `choose` wants: by their indices, or by ticks of a clock where there is a `target_fps`.

    Args:
        choose: from the number of frames (or ticks) to those wanted, int64 of any shape.
        times: of the frames there are, in units of `time_base`, and the last one's end.
        time_base: in seconds.
        target_fps: of the clock.

    Returns:
        Frame indices, sorted, each once; for each asked one its index among them; and the number that `choose` was
        told.
    """
    if target_fps is None:
        return *sorted_unique(choose(len(times) - 1), len(times) - 1), len(times) - 1
    clock = Clock(times, time_base, target_fps)
    ticks, places = sorted_unique(choose(len(clock)), len(clock))
    wanted, places_of_ticks = torch.unique(clock.frames(ticks), return_inverse=True)
    return wanted.tolist(), places_of_ticks[places], len(clock)


def sorted_unique(frames: Tensor, num_frames: int) -> tuple[list[int], Tensor]:
    """Distinct frame indices in order, and the index of each asked one among them.

    Raises:
        ValueError: there are none, or one lies outside of the video.
    """
    wanted, places = torch.unique(frames, return_inverse=True)
    if not len(wanted) or wanted[0] < 0 or wanted[-1] >= num_frames:
        raise ValueError(f"frame indices: got {wanted.tolist()[:3]} ..., expected some in [0, {num_frames})")
    return wanted.tolist(), places


def _inside(frames: Tensor, num_frames: int, short_video: ShortVideo) -> Tensor:
    if num_frames < 1:
        raise ValueError(f"got num_frames={num_frames}, expected 1 or more")
    if short_video not in get_args(ShortVideo):
        raise ValueError(f"short_video: got {short_video!r}, expected 'repeat_last' or 'loop'")
    return frames % num_frames if short_video == "loop" else frames.clamp(max=num_frames - 1)

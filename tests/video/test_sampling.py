"""Clip spans, exact strides, ends, short videos, and the uniformity of random clips."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import Generator

from octvideo.video import Clock, ShortVideo, clip_span, random_clip, uniform_clips


def by_hand(start: int, clip_frames: int, frame_stride: int, num_frames: int, short_video: ShortVideo) -> list[int]:
    """The reference: one frame number after the other."""
    wanted = []
    for t in range(clip_frames):
        frame = start + t * frame_stride
        while frame >= num_frames:
            frame = frame - num_frames if short_video == "loop" else num_frames - 1
        wanted.append(frame)
    return wanted


@pytest.mark.parametrize(("clip_frames", "frame_stride", "span"), [(1, 1, 1), (1, 9, 1), (8, 8, 57), (4, 3, 10)])
def test_span(clip_frames: int, frame_stride: int, span: int) -> None:
    assert clip_span(clip_frames, frame_stride) == span
    frames = uniform_clips(1000, num_clips=1, clip_frames=clip_frames, frame_stride=frame_stride)[0]
    assert frames[-1] - frames[0] + 1 == span


@pytest.mark.parametrize("num_frames", [57, 58, 60, 100, 299, 300])
@pytest.mark.parametrize("num_clips", [1, 2, 3, 10])
def test_strides_are_exact_and_the_video_is_covered_from_end_to_end(num_frames: int, num_clips: int) -> None:
    clips = uniform_clips(num_frames, num_clips=num_clips, clip_frames=8, frame_stride=8)
    assert clips.shape == (num_clips, 8) and clips.dtype == torch.int64
    assert (clips.diff(dim=1) == 8).all()
    spare = num_frames - 57
    if num_clips == 1:
        before, after = int(clips[0, 0]), int(num_frames - 1 - clips[0, -1])
        assert before + after == spare and after - before in (0, 1)  # centred
    else:
        assert clips[0, 0] == 0 and clips[-1, -1] == num_frames - 1
        steps = clips[:, 0].diff()
        assert steps.max() - steps.min() <= 1


@pytest.mark.parametrize("short_video", ["repeat_last", "loop"])
@pytest.mark.parametrize("num_frames", [1, 2, 7, 9, 10, 11])
def test_against_the_reference_around_the_length_of_a_clip(num_frames: int, short_video: ShortVideo) -> None:
    """A clip spans 10 frames here."""
    last_start = max(num_frames - 10, 0)
    expected = [by_hand(start, 4, 3, num_frames, short_video) for start in (0, last_start // 2, last_start)]
    clips = uniform_clips(num_frames, num_clips=3, clip_frames=4, frame_stride=3, short_video=short_video)
    assert clips.tolist() == expected
    for seed in range(5):
        generator = Generator().manual_seed(seed)
        clip = random_clip(num_frames, clip_frames=4, frame_stride=3, generator=generator, short_video=short_video)
        assert clip.tolist() in [by_hand(start, 4, 3, num_frames, short_video) for start in range(last_start + 1)]


def test_short_videos_as_drawn() -> None:
    settings = {"num_clips": 1, "clip_frames": 5, "frame_stride": 2}
    assert uniform_clips(6, **settings).tolist() == [[0, 2, 4, 5, 5]]
    assert uniform_clips(6, **settings, short_video="loop").tolist() == [[0, 2, 4, 0, 2]]
    assert uniform_clips(5, **settings, short_video="loop").tolist() == [[0, 2, 4, 1, 3]]


def test_random_places_are_equally_likely_and_reach_both_ends() -> None:
    generator = Generator().manual_seed(0)
    starts = torch.stack(
        [random_clip(15, clip_frames=4, frame_stride=3, generator=generator)[0] for _ in range(6000)]
    )  # 6 places of 1000 each
    counts = torch.bincount(starts)
    assert len(counts) == 6
    assert ((counts - 1000).abs() < 5 * 1000**0.5).all(), counts
    assert (counts.double() - 1000).square().sum() / 1000 < 20.5  # chi-square, 5 degrees of freedom, p = 0.001


def test_randomness_comes_from_the_generator_alone() -> None:
    def clip(seed: int) -> list[int]:
        generator = Generator().manual_seed(seed)
        return random_clip(1000, clip_frames=8, frame_stride=8, generator=generator).tolist()

    first = clip(1)
    torch.manual_seed(123)
    assert clip(1) == first and clip(2) != first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip_frames": 0}, "got clip_frames=0 and frame_stride=2, expected 1 or more"),
        ({"frame_stride": 0}, "got clip_frames=4 and frame_stride=0, expected 1 or more"),
        ({"num_clips": 0}, "got num_clips=0, expected 1 or more"),
        ({"num_frames": 0}, "got num_frames=0, expected 1 or more"),
        ({"short_video": "mirror"}, "short_video: got 'mirror', expected 'repeat_last' or 'loop'"),
    ],
)
def test_errors(change: dict[str, int], message: str) -> None:
    arguments = {"num_frames": 10, "num_clips": 1, "clip_frames": 4, "frame_stride": 2} | change
    with pytest.raises(ValueError, match=message):
        uniform_clips(arguments.pop("num_frames"), **arguments)


def test_a_clock_as_drawn() -> None:
    clock = Clock([0, 200, 300, 350, 550, 700], Fraction(1, 1000), 10)
    assert len(clock) == 7
    assert clock.frames(range(7)).tolist() == [0, 0, 1, 2, 3, 3, 4]


@pytest.mark.parametrize("target_fps", [3, 10, 23.976, 29.97, 60])
def test_a_clock_of_a_constant_rate(target_fps: float) -> None:
    """30000 / 1001 frames a second, ten seconds."""
    clock = Clock([1001 * n + 5000 for n in range(301)], Fraction(1, 30000), target_fps)
    exact = Fraction(target_fps).limit_denominator(1001)
    assert len(clock) == math.ceil(Fraction(300 * 1001, 30000) * exact)
    expected = [math.floor(k / exact / Fraction(1001, 30000)) for k in range(len(clock))]
    assert clock.frames(range(len(clock))).tolist() == expected


def test_a_rotten_clock_stays_a_number() -> None:
    clock = Clock([0, 2**60, 2**62], Fraction(1, 1), 1000)
    assert len(clock) == 2**31 and clock.frames([0, 2**31 - 1]).tolist() == [0, 0]

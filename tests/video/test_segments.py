"""Clips of segments, against the published formulas as their authors wrote them: in floating point, frame by frame."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Generator

from octvideo.errors import UserError
from octvideo.inference.standalone import classify
from octvideo.video import Sampling, VideoArray, ViewSettings, decode_views, random_segments, segment_clips
from tests.conftest import moving_frames

BOTH: tuple[Sampling, Sampling] = ("segments", "segments_ssv2")
# Powers of two divide exactly, so that the references' own rounding errors are none.
LENGTHS, SEGMENTS = [*range(1, 70), 119, 120, 255, 256, 300, 1000], (1, 2, 4, 8, 16, 32)


def tsm_middles(num_frames: int, num_segments: int) -> list[int]:
    """TSM's test clip (arXiv 1811.08383; TSN's, arXiv 1608.00859): the middle of each segment."""
    tick = num_frames / num_segments
    return [int(tick / 2.0 + tick * x) for x in range(num_segments)]


def tsm_twice(num_frames: int, num_segments: int) -> list[list[int]]:
    """TSM's "twice sample": the same, and the first frame of each segment."""
    tick = num_frames / num_segments
    return [tsm_middles(num_frames, num_segments), [int(tick * x) for x in range(num_segments)]]


def slowfast_bounds(num_frames: int, num_segments: int) -> list[tuple[int, int]]:
    """PySlowFast's bounds in its reader of Something-Something v2, both of which it may draw."""
    size = float(num_frames - 1) / num_segments
    return [(int(np.round(size * n)), int(np.round(size * (n + 1)))) for n in range(num_segments)]


def mmaction_clips(num_frames: int, num_segments: int, num_clips: int) -> list[list[int]]:
    """mmaction2's UniformSample in test mode."""
    size = float(num_frames - 1) / num_segments
    duration = size / (num_clips + 1)
    starts = [int(np.round(size * n)) for n in range(num_segments)]
    return [[start + int(duration * (k + 1)) for start in starts] for k in range(num_clips)]


@pytest.mark.parametrize("num_segments", SEGMENTS)
def test_tests_take_the_frames_that_the_published_formulas_take(num_segments: int) -> None:
    for n in LENGTHS:
        one, two = (segment_clips(n, "segments", num_clips=c, clip_frames=num_segments).tolist() for c in (1, 2))
        assert one == [tsm_middles(n, num_segments)], n
        assert sorted(two) == sorted(tsm_twice(n, num_segments)), n
        ssv2 = segment_clips(n, "segments_ssv2", num_clips=1, clip_frames=num_segments)
        assert ssv2.tolist() == [[(start + end) // 2 for start, end in slowfast_bounds(n, num_segments)]], n
        for clips in (3, 7):  # divisors that are powers of two with one more: 4 and 8
            got = segment_clips(n, "segments_ssv2", num_clips=clips, clip_frames=num_segments)
            assert got.tolist() == mmaction_clips(n, num_segments, clips), n


@pytest.mark.parametrize("sampling", BOTH)
@pytest.mark.parametrize(("num_frames", "num_segments"), [(14, 4), (64, 8), (37, 8), (11, 3), (5, 8), (1, 4)])
def test_training_draws_each_frame_of_a_segment_alike(sampling: Sampling, num_frames: int, num_segments: int) -> None:
    if sampling == "segments":
        bounds = [(t * num_frames // num_segments, (t + 1) * num_frames // num_segments) for t in range(num_segments)]
        segments = [range(start, max(end, start + 1)) for start, end in bounds]
    else:
        segments = [range(start, end + 1) for start, end in slowfast_bounds(num_frames, num_segments)]
    draws, generator = 2000, Generator().manual_seed(0)
    how = {"clip_frames": num_segments, "generator": generator}
    clips = torch.stack([random_segments(num_frames, sampling, **how) for _ in range(draws)])  # (draws,T)
    assert clips.dtype == torch.int64 and (clips.diff(dim=1) >= 0).all()
    for t, segment in enumerate(segments):
        counts = torch.bincount(clips[:, t], minlength=num_frames)
        assert counts.nonzero()[:, 0].tolist() == list(segment)
        share = 1 / len(segment)
        assert (counts[list(segment)] / draws - share).abs().max() < 5 * math.sqrt(share / draws)


def test_of_equal_segments_a_draw_is_tsns() -> None:
    """TSN's code draws t * average + randint(average), with the average length rounded down."""
    for seed in range(20):
        clip = random_segments(120, "segments", clip_frames=8, generator=Generator().manual_seed(seed))
        assert (clip // (120 // 8)).tolist() == [*range(8)]


def test_segments_as_drawn() -> None:
    assert segment_clips(14, "segments", num_clips=2, clip_frames=4).tolist() == [[0, 3, 7, 10], [1, 5, 8, 12]]
    assert segment_clips(14, "segments", num_clips=1, clip_frames=4).tolist() == [[1, 5, 8, 12]]
    assert slowfast_bounds(14, 4) == [(0, 3), (3, 6), (6, 10), (10, 13)]
    assert segment_clips(14, "segments_ssv2", num_clips=1, clip_frames=4).tolist() == [[1, 4, 8, 11]]


@pytest.mark.parametrize("sampling", BOTH)
@pytest.mark.parametrize("num_clips", [1, 2, 3, 5, 10])
def test_every_length_gives_frames_of_the_video(sampling: Sampling, num_clips: int) -> None:
    for num_frames in range(1, 40):
        clips = segment_clips(num_frames, sampling, num_clips=num_clips, clip_frames=6)
        assert clips.shape == (num_clips, 6) and clips.min() >= 0 and clips.max() < num_frames
        assert (clips.diff(dim=1) >= 0).all() and (clips.diff(dim=0) >= 0).all()
        # Half-open parts of frames, and parts of steps between frames.
        apart = num_frames // 6 if sampling == "segments" else (num_frames - 1) / 6 * num_clips / (num_clips + 1)
        assert len(clips.unique(dim=0)) == num_clips or apart < num_clips


def test_a_draw_depends_on_the_generator_alone_and_on_one_call() -> None:
    first, second = (random_segments(50, "segments", clip_frames=8, generator=Generator().manual_seed(4)) for _ in "ab")
    assert first.equal(second)
    assert not first.equal(random_segments(50, "segments", clip_frames=8, generator=Generator().manual_seed(5)))


def test_what_can_not_be_meant() -> None:
    with pytest.raises(ValueError, match="got num_frames=0 and clip_frames=4, expected 1 or more"):
        segment_clips(0, "segments", num_clips=1, clip_frames=4)
    with pytest.raises(ValueError, match="sampling: got 'dense', expected 'segments' or 'segments_ssv2'"):
        segment_clips(9, "dense", num_clips=1, clip_frames=4)
    with pytest.raises(UserError, match="sampling: got 'middle', expected 'dense', 'segments' or 'segments_ssv2'"):
        ViewSettings(sampling="middle")  # type: ignore[arg-type]


@pytest.mark.parametrize("sampling", BOTH)
@pytest.mark.parametrize("num_clips", [1, 2, 3, 10])
def test_the_program_beside_an_export_takes_the_same_frames(sampling: Sampling, num_clips: int) -> None:
    views = ViewSettings(clip_frames=7, num_clips=num_clips, sampling=sampling)
    for num_frames in (1, 5, 7, 40, 300):
        own = views.clips(num_frames)
        assert own.tolist() == classify.clip_frames(num_frames, views.as_dict()).tolist()


def test_views_of_two_clips_and_three_crops() -> None:
    settings = ViewSettings(clip_frames=4, num_clips=2, num_crops=3, short_side_px=48, crop_px=48, sampling="segments")
    frames = moving_frames(14)
    views = decode_views(VideoArray(frames), settings)
    assert settings.name == "2x3" and views.num_views == 6 and views.alike == (False, False)
    crop_left = views.cut(0, 1)[0].permute(1, 2, 3, 0)  # (T,S,S,C)
    assert crop_left.equal(frames[[0, 3, 7, 10], :, :48])
    assert views.cut(4, 5)[0].permute(1, 2, 3, 0).equal(frames[[1, 5, 8, 12], :, 8:56])


def test_settings_are_kept_and_older_versions_read_what_they_know() -> None:
    settings = ViewSettings(sampling="segments_ssv2", num_clips=2)
    assert ViewSettings.from_dict(settings.as_dict()) == settings
    assert "sampling" not in ViewSettings().as_dict()


def test_views_that_are_alike_are_known() -> None:
    how = {"clip_frames": 4, "frame_stride": 4, "short_side_px": 48, "crop_px": 48}
    short = decode_views(VideoArray(moving_frames(13)), ViewSettings(**how, num_clips=3, num_crops=3))
    assert short.alike == (True, False)
    longer = decode_views(VideoArray(moving_frames(14)), ViewSettings(**how, num_clips=3, num_crops=1))
    assert longer.alike == (False, False)
    square = decode_views(VideoArray(moving_frames(14, 48, 48)), ViewSettings(**how, num_clips=1, num_crops=3))
    assert square.alike == (False, True)
    one = decode_views(VideoArray(moving_frames(3)), ViewSettings(**how, num_clips=1, num_crops=1))
    assert one.alike == (False, False)

"""Views that are cut as the network needs them, against views that are all cut first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from octvideo.evaluation.view_scores import even_chunk, view_chunks
from octvideo.models import i3d_small
from octvideo.training import VideoClassifier
from octvideo.video import VideoViews, ViewSettings, decode_views

SETTINGS = ViewSettings(clip_frames=4, frame_stride=2, num_clips=4, num_crops=3, short_side_px=36, crop_px=32)


@pytest.fixture(scope="module")
def videos(
    tmp_path_factory: pytest.TempPathFactory, encode: Callable[..., Path], moving: Callable[..., Tensor]
) -> list[VideoViews]:
    """Of different sizes and lengths, so that their frames could not be stacked."""
    folder = tmp_path_factory.mktemp("videos")
    sizes = [(20, 48, 64), (5, 64, 48), (30, 36, 100)]
    return [
        decode_views(encode(folder / f"{n}.mp4", moving(*size), g=8), SETTINGS, decoder="pyav")
        for n, size in enumerate(sizes)
    ]


def cut_first(videos: list[VideoViews]) -> Tensor:
    """(N, V, C, T, S, S), in memory channels last."""
    return torch.stack([video.cut().permute(0, 2, 3, 4, 1) for video in videos]).permute(0, 1, 5, 2, 3, 4)


@pytest.mark.parametrize("size", [1, 5, 8, 12, 24, 36, 100])
def test_chunks_are_those_of_views_cut_first(videos: list[VideoViews], size: int) -> None:
    expected, got = list(view_chunks(cut_first(videos), size)), list(view_chunks(videos, size))
    assert [len(chunk) for chunk in got] == [len(chunk) for chunk in expected]
    for mine, theirs in zip(got, expected, strict=True):
        assert torch.equal(mine, theirs)
        # The layout chooses the convolution's algorithm, and so the last bits of the scores.
        assert mine.stride() == theirs.stride()


def test_chunks_by_default_leave_no_smaller_one_behind() -> None:
    views = [1, 2, 3, 5, 8, 9, 10, 11, 12, 15, 30, 32]
    assert [even_chunk(number) for number in views] == [8, 8, 6, 5, 8, 8, 5, 8, 6, 5, 6, 8]
    assert {len(chunk) for chunk in view_chunks(torch.zeros(7, 30, 1), even_chunk(30))} == {6}


def test_no_video_is_no_chunk(videos: list[VideoViews]) -> None:
    assert list(view_chunks([], 8)) == list(view_chunks(cut_first(videos)[:0], 8)) == []


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("views_per_chunk", [5, 8])
def test_scores_are_those_of_views_cut_first(
    videos: list[VideoViews], channels_last: bool, views_per_chunk: int
) -> None:
    network = i3d_small(num_classes=3, width=8)
    module = VideoClassifier(network, views_per_chunk=views_per_chunk, channels_last=channels_last).eval()
    with torch.inference_mode():
        assert torch.equal(module.view_scores(videos), module.view_scores(cut_first(videos)))
        assert torch.equal(module.view_scores(videos[1:2]), module.view_scores(cut_first(videos[1:2])))
        assert module.view_scores([]).shape == (0, 3)

"""Videos whose views are all alike: counted, and told with what to do; by a predictor once."""

from __future__ import annotations

import logging

import pytest
from torch import Tensor, nn

from octvideo.evaluation.alike_views import AlikeViews
from octvideo.inference import Predictor
from octvideo.video import VideoArray, ViewSettings
from tests.conftest import moving_frames


def test_none_are_nothing_to_say() -> None:
    alike = AlikeViews()
    alike.add((False, False))
    assert alike.in_words() == "" and alike.counts == {"viewed": 1, "alike_clips": 0, "alike_crops": 0}


def test_they_are_counted_and_told() -> None:
    alike = AlikeViews({"viewed": 5, "alike_clips": 1, "alike_crops": 0})
    alike.add((True, True))
    clips, crops = alike.in_words().split("; ")
    assert clips.startswith("all clips of 2 of 6 videos show the same frames") and "num_clips 1" in clips
    assert crops.startswith("all crops of 1 of 6 videos are the same") and "num_crops 1" in crops


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3, 4))


def test_a_predictor_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    views = ViewSettings(clip_frames=4, frame_stride=4, num_clips=2, num_crops=1, short_side_px=32, crop_px=32)
    predictor = Predictor(Mean(), ["a", "b", "c"], views=views, device="cpu")
    with caplog.at_level(logging.WARNING, "octvideo.inference"):
        predictor.predict(VideoArray(moving_frames(20)))
        assert caplog.messages == []
        list(predictor.predict_many([VideoArray(moving_frames(n)) for n in (20, 13, 5)]))
        predictor.predict(VideoArray(moving_frames(5)))
    (said,) = caplog.messages
    assert said.startswith("all clips of 2 of 3 videos show the same frames")

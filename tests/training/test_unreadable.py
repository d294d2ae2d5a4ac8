"""Videos that can't be read: named at once in evaluation, counted and bounded in training."""

from __future__ import annotations

import pytest

from octvideo.batches import Failure
from octvideo.errors import UserError
from octvideo.training.unreadable import UnreadableVideos


def test_evaluation_stops_with_file_reason_and_the_way_out() -> None:
    with pytest.raises(UserError) as caught:
        UnreadableVideos("test").raise_first([Failure("a b.mp4", "no frames", 0)])
    assert "cannot read video 'a b.mp4': no frames" in str(caught.value)
    assert "--model.on_unreadable count" in str(caught.value)
    UnreadableVideos("test").raise_first([])


def test_each_file_is_logged_once_and_counted_in_each_pass(caplog: pytest.LogCaptureFixture) -> None:
    videos = UnreadableVideos("training")
    for _ in range(2):
        videos.start_pass()
        videos.add([Failure("a.mp4", "broken", 0), Failure("b.mp4", "broken", 0)])
    assert videos.count == 2
    assert [record.getMessage() for record in caplog.records] == [
        "skipped in training: cannot read video 'a.mp4': broken",
        "skipped in training: cannot read video 'b.mp4': broken",
    ]
    assert videos.summary().splitlines()[0] == "2 videos could not be read in training:"


def test_the_bound_holds_exactly() -> None:
    videos = UnreadableVideos("training")
    videos.add([Failure("a.mp4", "broken", 0)])
    videos.check_bound(100, 0.01)
    videos.add([Failure("b.mp4", "broken", 0)])
    with pytest.raises(UserError, match=r"2 of 100 videos.*1\.0% that model\.max_unreadable_fraction allows.*'a\.mp4'"):
        videos.check_bound(100, 0.01)
    assert UnreadableVideos("training").summary() == ""

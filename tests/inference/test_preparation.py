"""The thread that prepares videos beside the engine: order, bounds, errors, and that it ends."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from octvideo.inference import Prediction, Predictor, preparation
from octvideo.inference.preparation import Normaliser, Preparation
from octvideo.video import VideoReadError, ViewSettings, read_views

VIEWS = ViewSettings(clip_frames=4, frame_stride=2, num_clips=2, num_crops=3, short_side_px=32, crop_px=32)


class Fake:
    """An engine that takes a while; its logits are the clips' means."""

    name, precision, views_per_call = "fake", "f32", 2

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.calls = seconds, 0

    def __call__(self, clips: Tensor) -> Tensor:
        time.sleep(self.seconds)
        self.calls += 1
        return clips.mean((2, 3, 4))


def predictor(engine: Fake) -> Predictor:
    return Predictor(engine, ["r", "g", "b"], views=VIEWS)


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "octvideo-preparation"]


def test_normalised_in_one_pass_is_normalised(tiny_video: Path) -> None:
    mean, std = (0.1, 0.4, 0.6), (0.2, 0.3, 0.5)
    views = read_views(tiny_video, VIEWS)
    column = [torch.tensor(values).view(3, 1, 1, 1) for values in (mean, std)]
    expected = (views.float() / 255 - column[0]) / column[1]
    clips = Normaliser(mean, std, torch.device("cpu"))(views)
    torch.testing.assert_close(clips, expected, atol=1e-5, rtol=0)
    assert clips.is_contiguous() and clips.dtype == torch.float32


def test_each_video_gets_its_own_result_in_order(tiny_video: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    paths = [tiny_video, tmp_path / "broken.mp4", tiny_video]
    results = list(predictor(Fake()).predict_many(paths))
    assert [type(result) for result in results] == [Prediction, VideoReadError, Prediction]
    assert results[0] == results[2]
    assert not threads()


def test_preparation_overlaps_with_the_engine(tiny_video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four videos of .1 s to decode and .3 s to compute: at most the first decoding is waited for."""
    decode = preparation.decode_views

    def slow(*args: object) -> object:
        time.sleep(0.1)
        return decode(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(preparation, "decode_views", slow)
    start = time.perf_counter()
    results = list(predictor(Fake(0.1)).predict_many([tiny_video] * 4))
    seconds = time.perf_counter() - start
    engine = sum(result.timing.engine for result in results)  # type: ignore[union-attr]
    decoding = sum(result.timing.decode for result in results)  # type: ignore[union-attr]
    assert decoding >= 0.4 and engine >= 1.2
    assert seconds < engine + decoding - 0.2


def test_what_waits_is_bounded(tiny_video: Path) -> None:
    normalised = []
    with Preparation([tiny_video] * 50, VIEWS, normalised.append, views_per_chunk=1) as prepared:  # type: ignore
        next(iter(prepared))
        time.sleep(0.5)
        assert len(normalised) <= 5  # one taken, two in the queue, one that waits for a place, and one for luck
    assert not threads()


def test_an_error_of_the_engine_ends_the_thread(tiny_video: Path) -> None:
    class Broken(Fake):
        def __call__(self, clips: Tensor) -> Tensor:
            raise KeyboardInterrupt  # as Ctrl-C would, amid a computation

    with pytest.raises(KeyboardInterrupt):
        list(predictor(Broken()).predict_many([tiny_video] * 3))
    assert not threads()


def test_an_error_of_ours_in_the_thread_is_raised(tiny_video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*args: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(preparation, "decode_views", bug)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        predictor(Fake()).predict(tiny_video)

"""The thread that prepares videos beside the engine: order, bounds, errors, and that it ends."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from octvideo.inference import Prediction, Predictor, preparation
from octvideo.inference.preparation import Normaliser, prepared_chunks
from octvideo.video import VideoReadError, ViewSettings, read_views

VIEWS = ViewSettings(clip_frames=4, frame_stride=2, num_clips=2, num_crops=3, short_side_px=32, crop_px=32)


class Fake:
    """An engine whose logits are the clips' means."""

    name, precision, views_per_call = "fake", "f32", 2

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, clips: Tensor) -> Tensor:
        self.calls += 1
        return clips.mean((2, 3, 4))


def predictor(engine: Fake) -> Predictor:
    return Predictor(engine, ["r", "g", "b"], views=VIEWS)


class OnDevice(Tensor):
    """Counts the copies to the CPU, for each of which a GPU would be waited for."""

    copies = 0

    def cpu(self, *args: Any, **kwargs: Any) -> Any:
        type(self).copies += 1
        return self.as_subclass(Tensor)


def test_a_video_waits_once_for_the_engine(tiny_video: Path) -> None:
    class Gpu(Fake):
        def __call__(self, clips: Tensor) -> Tensor:
            return super().__call__(clips).as_subclass(OnDevice)

    engine, OnDevice.copies = Gpu(), 0
    results = list(predictor(engine).predict_many([tiny_video, tiny_video]))
    assert (engine.calls, OnDevice.copies) == (6, 2)
    assert results == list(predictor(Fake()).predict_many([tiny_video, tiny_video]))


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
    """The engine is still at a video while the next one is decoded."""
    decode, decoded = preparation.decode_views, threading.Semaphore(0)

    def told(*args: object) -> object:
        views = decode(*args)  # type: ignore[arg-type]
        decoded.release()
        return views

    class Waits(Fake):
        def __call__(self, clips: Tensor) -> Tensor:
            if self.calls % 3 == 0 and self.calls < 9:  # the first of three chunks of a video that has a next one
                assert decoded.acquire(timeout=60)
            return super().__call__(clips)

    monkeypatch.setattr(preparation, "decode_views", told)
    decoded_first = threading.Thread(target=decoded.acquire)  # not waited for by the engine
    decoded_first.start()
    engine = Waits()
    assert len(list(predictor(engine).predict_many([tiny_video] * 4))) == 4 and engine.calls == 12


def test_of_equal_scores_the_first_class_is_the_best(tiny_video: Path) -> None:
    """As metrics and files of scores rank them."""

    class Even(Fake):
        def __call__(self, clips: Tensor) -> Tensor:
            return torch.zeros(len(clips), 40)

    names = [f"class {n}" for n in range(40)]
    prediction = Predictor(Even(), names, views=VIEWS).predict(tiny_video, topk=5)
    assert [name for name, _ in prediction.top] == names[:5]


def test_what_waits_is_bounded(tiny_video: Path) -> None:
    normalised = []
    chunks = prepared_chunks([tiny_video] * 50, VIEWS, normalised.append, views_per_chunk=1)  # type: ignore
    with contextlib.closing(chunks) as prepared:
        next(prepared)
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

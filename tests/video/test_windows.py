"""Frames from front to back, and windows of them: times, bounds, the last window, and the pixels of `read_frames`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import octvideo.video.streaming as streaming
from octvideo.errors import UserError
from octvideo.video import (
    FileFrames,
    GivenFrames,
    TimedFrame,
    VideoReadError,
    ViewSettings,
    Window,
    frame_windows,
    read_frames,
    resize_short_side,
)
from octvideo.video.cuts import CutFinder
from octvideo.video.windows import window_views
from tests.video.test_odd_files import ODD

VIEWS = ViewSettings(clip_frames=4, frame_stride=2, num_clips=2, num_crops=3, short_side_px=32, crop_px=32)
Encode = Callable[..., Path]
Moving = Callable[..., Tensor]


class Times:
    """A source of frames without pixels.

    Args:
        times: in units of `time_base`; the last is the end.
        rate: as stated.
    """

    name = "times"

    def __init__(self, times: Iterable[int], time_base: Fraction = Fraction(1, 10), rate: int | None = 10) -> None:
        *self._times, self.end = times
        self.time_base, self.rate = time_base, None if rate is None else Fraction(rate)

    def __iter__(self) -> Iterator[TimedFrame]:
        for time in self._times:
            yield TimedFrame(time, lambda: torch.zeros(1, 1, 3, dtype=torch.uint8))


def spans(windows: Iterable[Window]) -> list[tuple[float, float, int, int]]:
    return [(round(w.start_sec, 4), round(w.end_sec, 4), w.first, w.last) for w in windows]


def test_windows_of_constant_rate_and_the_last_one_moved_back() -> None:
    found = spans(frame_windows(Times(range(28)), VIEWS, window_sec=1.0, stride_sec=0.5))
    assert found == [(0, 1, 0, 9), (0.5, 1.5, 5, 14), (1, 2, 10, 19), (1.5, 2.5, 15, 24), (1.7, 2.7, 17, 26)]


def test_the_defaults_are_the_clips_span_and_half_of_it() -> None:
    assert spans(frame_windows(Times(range(21)), VIEWS)) == [
        (0, 0.8, 0, 7),
        (0.4, 1.2, 4, 11),
        (0.8, 1.6, 8, 15),
        (1.2, 2.0, 12, 19),
    ]
    by_clock = ViewSettings(clip_frames=4, frame_stride=2, target_fps=5.0)
    assert spans(frame_windows(Times(range(21)), by_clock))[0] == (0, 1.6, 0, 15)
    lies = spans(frame_windows(Times(range(101), rate=1000), VIEWS))
    assert lies[0] == (0, 0.8, 0, 7)  # the frames come at 10 a second, whatever is stated


@pytest.mark.parametrize("rounding", [round, int])
def test_rounded_times_do_not_change_the_windows(rounding: Callable[[float], int]) -> None:
    in_ms = [rounding(n * 1001 / 30) for n in range(201)]
    found = list(frame_windows(Times(in_ms, Fraction(1, 1000), rate=30), VIEWS))
    assert {len(window.frames) for window in found} == {8}
    assert [window.first for window in found] == list(range(0, 193, 4))


def test_a_short_video_is_one_window_and_none_is_none() -> None:
    assert spans(frame_windows(Times(range(4)), VIEWS, window_sec=5.0)) == [(0, 0.3, 0, 2)]
    assert spans(frame_windows(Times([0]), VIEWS)) == []


def test_windows_without_a_frame_are_left_out_and_a_gap_of_years_costs_nothing() -> None:
    years = 10**12
    found = spans(frame_windows(Times([0, 5, 40, 45, years, years + 5, years + 10]), VIEWS, window_sec=1, stride_sec=1))
    seconds = years / 10
    assert found == [(0, 1, 0, 1), (4, 5, 2, 3), (seconds, seconds + 1, 4, 5)]


def test_strides_longer_than_windows_leave_time_out() -> None:
    found = spans(frame_windows(Times(range(26)), VIEWS, window_sec=0.5, stride_sec=1.0))
    assert found == [(0, 0.5, 0, 4), (1, 1.5, 10, 14), (2, 2.5, 20, 24)]


@pytest.mark.parametrize("seed", range(20))
def test_windows_are_those_of_a_slow_reference(seed: int) -> None:
    random = np.random.default_rng(seed)
    times = np.cumsum(random.integers(1, 9, size=random.integers(2, 80))).tolist()
    length, stride = random.integers(5, 40), random.integers(5, 40)
    found = list(frame_windows(Times(times), VIEWS, window_sec=length / 10, stride_sec=stride / 10))
    *shown, end = times
    newest, origin, expected, k = shown[-1], shown[0], [], 0
    while True:
        start = origin + k * stride
        if start > newest or start + length > end + (end - newest) / 2:
            break
        inside = [n for n, time in enumerate(shown) if start - 0.25 <= time < start + length - 0.25]
        expected += [(inside[0], inside[-1])] if inside else []
        k += 1
    if start <= newest and (not expected or expected[-1][1] < len(shown) - 1):
        begin = max(end - length, origin)
        inside = [n for n, time in enumerate(shown) if begin - 0.25 <= time]
        expected.append((inside[0], inside[-1]))
    assert [(window.first, window.last) for window in found] == expected
    assert [window.index for window in found] == list(range(len(found)))
    for window in found:
        assert list(window.times) == times[window.first : window.last + 2]


def test_frames_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[int] = []

    class Endless(Times):
        def __iter__(self) -> Iterator[TimedFrame]:
            held: list[object] = []
            for time in itertools.count():
                frame = TimedFrame(time, lambda: torch.zeros(1))
                held.append(streaming.weakref.ref(frame))
                yield frame
                del frame
                held = [ref for ref in held if ref() is not None]  # type: ignore[operator]
                alive.append(len(held))

    windows = frame_windows(Endless([0]), VIEWS, window_sec=2.0, stride_sec=1.0)
    for _ in range(100):
        next(windows)
    assert max(alive) <= 33 + 20  # the frames that a rate is judged by, and a window


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf")])
def test_lengths_that_are_none(value: float) -> None:
    for name in ("window_sec", "stride_sec"):
        with pytest.raises(UserError, match=f"{name}: got"):
            next(frame_windows(Times(range(3)), VIEWS, **{name: value}))


# ── frames of files ─────────────────────────────────────────────────────────────────────────────────────────


def test_pixels_and_times_are_those_of_the_reader(file: Path) -> None:
    with FileFrames(file, 32) as frames:
        found = list(frames)
        images = torch.stack([frame.image for frame in found])
    expected = read_frames(file, torch.arange, resize=lambda full: resize_short_side(full, 32).permute(0, 2, 3, 1))
    assert torch.equal(images, expected.frames)
    times = [frame.time for frame in found]
    assert times == sorted(set(times)) and times[0] * frames.time_base < 1
    assert (frames.end - times[0]) * frames.time_base == pytest.approx(2.0, abs=0.01)  # 40 frames, 20 a second


def test_frames_that_wait_at_full_size_are_bounded(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    real = FileFrames._small
    monkeypatch.setattr(FileFrames, "_small", lambda self, frame: made.append(frame.pts) or real(self, frame))
    with FileFrames(video, 32) as frames:
        kept = list(frames)
    assert len(made) == 1  # none was wanted but the first, whose size all have
    made.clear()
    monkeypatch.setattr(streaming, "_WAITING_BYTES", 5 * 3 * 64 * 96)
    with FileFrames(video, 32) as frames:
        kept = list(frames)
    assert len(made) == len(kept) - 5
    made.clear()
    with FileFrames(video, 32) as frames:
        for _ in frames:
            pass
    assert len(made) == 1  # frames that nobody holds are not made small


@pytest.mark.parametrize("wrong", [None, 7, -2])
def test_of_long_windows_frames_that_no_clip_shows_are_forgotten(
    wrong: int | None, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def views() -> list[tuple[int, Tensor]]:
        with FileFrames(video, 32) as frames:
            windows = frame_windows(frames, VIEWS, window_sec=1.2, stride_sec=0.5)
            return [(window.first, window_views(window, VIEWS).cut()) for window in windows]

    made: list[int] = []
    small, foresee = FileFrames._small, FileFrames.foreseen_times
    monkeypatch.setattr(FileFrames, "_small", lambda self, frame: made.append(frame.pts) or small(self, frame))
    expected = views()
    assert len(made) == len(set(made)) < 40  # not those between clips
    monkeypatch.setattr(streaming, "_WAITING_BYTES", 1)
    monkeypatch.setattr(FileFrames, "foreseen_times", lambda self: None)
    made.clear()
    assert len(views()) == len(expected) and len(made) == 40

    def foreseen(self: FileFrames) -> list[int] | None:
        times = foresee(self)
        assert times is not None and len(times) == 41
        return times if wrong is None else [*times[:wrong], times[wrong] + 1, *times[wrong:][1:]]

    monkeypatch.setattr(FileFrames, "foreseen_times", foreseen)
    made.clear()
    for (first, clips), (other, others) in zip(views(), expected, strict=True):
        assert first == other and torch.equal(clips, others)
    if wrong is None:
        assert len(made) == len(set(made)) < 40
    else:
        assert len(made) > 40  # decoded anew, all of it


def test_a_forgotten_frame_says_so() -> None:
    frame = TimedFrame(3, lambda: torch.zeros(1, 1, 3))
    frame.forget()
    with pytest.raises(ValueError, match="the frame at 3 was forgotten: no clip shows it"):
        _ = frame.image


def test_cuts_of_a_file_are_found(encode: Encode, moving: Moving, tmp_path: Path) -> None:
    shots = [moving(12), moving(9).flip(2), 255 - moving(14)]
    for codec, pixels in (("ffv1", "bgr0"), ("ffv1", "yuv420p10le"), ("mpeg4", "yuv420p"), ("ffv1", "gray")):
        path = encode(tmp_path / f"{pixels}.mkv", torch.cat(shots), codec, pix_fmt=pixels, rate=10)
        with FileFrames(path, 32) as frames:
            assert len(list(frames)) == 35
            assert frames.cuts_sec == pytest.approx([1.2, 2.1], abs=0.002), pixels
            assert frames.num_frames == 35


def test_motion_and_flashes_are_no_cuts() -> None:
    random = np.random.default_rng(0)
    still = random.integers(0, 256, (24, 32))
    for grids in (
        [random.integers(0, 256, (24, 32)) for _ in range(20)],  # everything changes all the time
        [still + (90 if n == 8 else 0) for n in range(20)],  # a flash
        [still + 4 * n for n in range(20)],  # a fade
        [None if n == 8 else still for n in range(20)],
    ):
        finder = CutFinder()
        for time, grid in enumerate(grids):
            finder.add(time, grid)
        assert finder.cuts == []


def test_a_file_that_is_closed_gives_no_more(video: Path) -> None:
    with FileFrames(video, 32) as frames:
        taken = iter(frames)
        next(taken)
    assert list(taken) == []


@pytest.mark.parametrize(
    "name", [name for name in ODD if not name.startswith(("huge", "long"))] + [pytest.param("", marks=pytest.mark.slow)]
)
def test_odd_files_give_the_frames_of_the_reader(name: str, real_videos: Path) -> None:
    if not name:
        names = [name for name in ODD if name.startswith("long")]
    for path in [real_videos / "odd" / name for name in ([name] if name else names)]:
        expected = ODD[path.name].pyav
        try:
            with FileFrames(path, 32) as frames:
                times = [frame.time for frame in frames]
        except VideoReadError as error:
            assert expected == error.reason
            continue
        assert len(times) == frames.num_frames == expected and times == sorted(set(times))
        assert bool(frames.trouble) == bool(frames.num_missing)


# ── frames from anywhere ────────────────────────────────────────────────────────────────────────────────────


def test_given_frames_become_small_and_of_one_size() -> None:
    images = [np.full((40, 60, 3), 7, np.uint8), torch.full((80, 60, 3), 9, dtype=torch.uint8)]
    source = GivenFrames(zip(images, [1.0, 1.5], strict=True), 20)
    found = list(source)
    assert [tuple(frame.image.shape) for frame in found] == [(20, 30, 3)] * 2
    assert [float(frame.time * source.time_base) for frame in found] == [1.0, 1.5]
    assert float(source.end * source.time_base) == 2.0
    assert [int(frame.image.max()) for frame in found] == [7, 9]


def test_given_frames_may_be_written_over() -> None:
    buffer = np.zeros((20, 30, 3), np.uint8)

    def camera() -> Iterator[tuple[np.ndarray, float]]:
        for n in range(3):
            buffer[:] = n
            yield buffer, n / 10

    assert [int(frame.image.max()) for frame in list(GivenFrames(camera(), 20))] == [0, 1, 2]


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([(np.zeros((4, 4), np.uint8), 0)], r"cam, frame 0: got uint8 \(4, 4\), expected RGB, uint8 \(..., H, W, 3\)"),
        ([(np.zeros((4, 4, 3), np.float32), 0)], r"cam, frame 0: got float32 \(4, 4, 3\)"),
        ([(np.zeros((4, 4, 3), np.uint8), 1.0)] * 2, "cam, frame 1: got time 1.0 s, expected more than 1 s"),
        ([(np.zeros((4, 4, 3), np.uint8), float("nan"))], "cam, frame 0: got time nan, expected seconds"),
        ([(np.zeros((4, 4, 3), np.uint8), None)], "cam, frame 0: got time None, expected seconds"),
        ([(np.zeros((2, 4, 4, 3), np.uint8), 0.0)], r"cam, frame 0: got shape \(2, 4, 4, 3\), expected \(H, W, 3\)"),
        ([np.zeros((4, 4, 3), np.uint8)], r"cam, frame 0: got ndarray, expected \(image, seconds\)"),
    ],
)
def test_given_frames_that_are_none(frames: list[tuple[np.ndarray, float]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(GivenFrames(frames, 4, name="cam"))

"""Windows of a video: equal lengths of time at equal distances, cut while frames come, so that any length will do.

A window of 4 s every 2 s, in a video that begins at 0 s and ends at 9 s::

    seconds   0   1   2   3   4   5   6   7   8   9
    window 0  [---------------)
    window 1          [---------------)
    window 2                  [---------------)
    window 3                      [---------------)      the last one, moved back to end with the video

Windows share the frames where they overlap: each is decoded and resized once, and forgotten when no window needs it.
To a network a window is a video: `window_views` samples its frames as `decode_views` does those of a file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain, islice

import torch
from torch import Tensor

from octvideo.errors import UserError
from octvideo.video.sampling import wanted_frames
from octvideo.video.streaming import FileFrames, FrameSource, TimedFrame
from octvideo.video.transforms import evaluation_crops
from octvideo.video.views import VideoViews, ViewSettings

# Frames by which a stated frame rate is judged, and how far it may be off.
_JUDGED_FRAMES, _RATE_OFF = 33, Fraction(1, 20)
# In units of `time_base`, and in frames, the less of both: what a time may have lost when it was written.
_ROUNDED_UNITS, _ROUNDED_FRAMES = Fraction(1), Fraction(1, 4)


@dataclass(frozen=True)
class Window:
    """Some seconds of a video.

    Args:
        index: counted from 0, in order of time.
        start_sec: of the window; of the first frame that is displayed in it or after it starts.
        end_sec: excluded.
        first: index of the first frame in the video.
        frames: in order, 1 or more. Those that no clip shows may have no pixels.
        times: of the frames, in units of `time_base`, and the last one's end.
        time_base: in seconds.
    """

    index: int
    start_sec: float
    end_sec: float
    first: int
    frames: Sequence[TimedFrame] = field(repr=False)
    times: Sequence[int] = field(repr=False)
    time_base: Fraction = field(repr=False)

    @property
    def last(self) -> int:
        """Index of the last frame, which belongs to the window."""
        return self.first + len(self.frames) - 1


def clip_seconds(settings: ViewSettings, rate: Fraction) -> Fraction:
    """How long one clip of a network lasts, from its first frame to the end of the last stride.

    Args:
        settings: of the network.
        rate: frames per second of the video; those of the settings' clock, where there is one, are taken instead.
    """
    if settings.target_fps is not None:
        rate = Fraction(settings.target_fps).limit_denominator(1001)
    return settings.clip_frames * settings.frame_stride / rate


def frame_windows(
    source: FrameSource,
    settings: ViewSettings,
    *,
    window_sec: float | None = None,
    stride_sec: float | None = None,
) -> Iterator[Window]:
    """The windows of a video, each as soon as its last frame is known.

    The first starts with the first frame. A window in which no frame is displayed anew is left out: there is nothing
    to see. The last window is moved back so that it ends with the video; a video shorter than a window is one. A frame
    belongs to a window by its time, of which a container may have rounded away a unit of `time_base`.

    Where windows of a file are too long for all of their frames to wait, its packets are looked through first, and
    frames that no clip of a window shows are forgotten at once. Where they come otherwise than their packets tell, the
    file is decoded anew.

    Args:
        source: of frames.
        settings: of the network.
        window_sec: None is `clip_seconds`.
        stride_sec: from the start of one window to that of the next; None is half of a window.

    Raises:
        UserError: a length or a stride that can't be meant.
        VideoReadError: from the source.
    """
    check_windows(window_sec, stride_sec)
    how = settings, window_sec, stride_sec
    if not isinstance(source, FileFrames) or (plan := _plan_of(source, *how)) is None:
        yield from _windows(source, *how)
        return
    num_given = 0
    try:
        for window in _windows(source, *how, plan):
            num_given += 1
            yield window
        return
    except _NotAsForeseenError:
        pass
    source.start_over()
    yield from islice(_windows(source, *how), num_given, None)


class _NotAsForeseenError(Exception):
    """A file's frames came at other times than its packets tell, so that wrong ones may have been forgotten."""


@dataclass(frozen=True)
class _Foreseen:
    """What is known of a file before it is decoded.

    Args:
        times: of its frames, and the last one's end.
        windows: first and last frame of each, and what its times end with.
        wanted: frames that clips show; all others may be forgotten at once.
    """

    times: list[int]
    windows: list[tuple[int, int, int]]
    wanted: frozenset[int]


class _Times:
    """A source of frames without pixels."""

    def __init__(self, source: FileFrames, times: list[int]) -> None:
        self.name, self.time_base, self.rate, self._times = source.name, source.time_base, source.rate, times
        self.end = times[-1]

    def __iter__(self) -> Iterator[TimedFrame]:
        for time in self._times[:-1]:
            yield TimedFrame(time, torch.Tensor)


def _plan_of(
    source: FileFrames, settings: ViewSettings, window_sec: float | None, stride_sec: float | None
) -> _Foreseen | None:
    """Which frames windows show, where windows are too long for all of their frames to wait at full size."""
    rate = source.rate or Fraction(25)
    if (_exact(window_sec) or clip_seconds(settings, rate)) * rate + _JUDGED_FRAMES <= source.most_waiting:
        return None
    times = source.foreseen_times()
    if times is None:
        return None
    windows: list[tuple[int, int, int]] = []
    wanted: set[int] = set()
    for window in _windows(_Times(source, times), settings, window_sec, stride_sec):
        windows.append((window.first, window.last, window.times[-1]))
        wanted.update((window_clips(window, settings).unique() + window.first).tolist())
    return _Foreseen(times, windows, frozenset(wanted))


def _windows(
    source: FrameSource,
    settings: ViewSettings,
    window_sec: float | None,
    stride_sec: float | None,
    foreseen: _Foreseen | None = None,
) -> Iterator[Window]:
    """See `frame_windows`.

    Raises:
        _NotAsForeseenError: frames or windows are not those foreseen.
    """
    frames, time_base = iter(source), source.time_base
    if foreseen is not None:
        frames = _wanted_only(frames, foreseen)
    head = list(islice(frames, 1 if window_sec is not None or settings.target_fps is not None else _JUDGED_FRAMES))
    if not head:
        return
    length_sec = _exact(window_sec) or clip_seconds(settings, _judged_rate(source, head))
    length, stride = length_sec / time_base, (_exact(stride_sec) or length_sec / 2) / time_base
    origin = head[0].time
    rounded = min(_ROUNDED_UNITS, _ROUNDED_FRAMES / ((source.rate or 25) * time_base))
    held: list[TimedFrame] = []  # those that a window may still need
    passed = index = 0  # frames before those held; windows given
    k, covered = 0, -1  # the next place for a window; the last frame that was in one

    def place(k: int) -> Fraction:
        return origin + k * stride

    def window(start: Fraction, end: Fraction, following: int) -> Window | None:
        """The window [start, end) of the frames held, the first of which after it comes at `following`."""
        nonlocal index, covered
        inside = [n for n, frame in enumerate(held) if start - rounded <= frame.time < end - rounded]
        if not inside:
            return None
        first, stop = inside[0], inside[-1] + 1
        later = held[stop].time if stop < len(held) else following
        times = [*(frame.time for frame in held[first:stop]), later]
        seconds = float(start * time_base), float(end * time_base)
        found = Window(index, *seconds, passed + first, tuple(held[first:stop]), times, time_base)
        if foreseen and [(found.first, found.last, later)] != foreseen.windows[index : index + 1]:
            raise _NotAsForeseenError
        index, covered = index + 1, passed + stop - 1
        return found

    for frame in chain(_emptied(head), frames):
        while frame.time >= place(k) + length - rounded:
            if (found := window(place(k), place(k) + length, frame.time)) is not None:
                yield found
            # Over a gap of years in a rotten file at once.
            k = max(k + 1, int((frame.time - origin - length) // stride)) if not found else k + 1
        held.append(frame)
        # Of the last window, that may have to be moved back, the video's last frames are a part.
        keep_from = min(place(k), frame.time - length) - rounded
        num_past = next(n for n, other in enumerate(held) if other.time >= keep_from)
        if num_past:
            del held[:num_past]
            passed += num_past
    newest, end = held[-1].time, max(source.end, held[-1].time + 1)
    slack = Fraction(end - newest, 2)
    while newest >= place(k) - rounded and place(k) + length <= end + slack:
        if (found := window(place(k), place(k) + length, end)) is not None:
            yield found
        k += 1
    if passed + len(held) - 1 > covered and newest >= place(k) - rounded:
        found = window(max(Fraction(end) - length, Fraction(origin)), Fraction(end), end)
        assert found is not None  # it has the newest frame
        yield found


def _wanted_only(frames: Iterator[TimedFrame], foreseen: _Foreseen) -> Iterator[TimedFrame]:
    """The frames, of which those that no clip shows have no pixels.

    Raises:
        _NotAsForeseenError: one comes at another time.
    """
    for n, frame in enumerate(frames):
        if n >= len(foreseen.times) - 1 or frame.time != foreseen.times[n]:
            raise _NotAsForeseenError
        if n not in foreseen.wanted:
            frame.forget()
        yield frame
        del frame


def check_windows(window_sec: float | None, stride_sec: float | None) -> None:
    """Raises what can't be meant, before anything is opened.

    Raises:
        UserError: seconds that are not more than 0, or that are no time.
    """
    for name, value in (("window_sec", window_sec), ("stride_sec", stride_sec)):
        if value is not None and not 0 < value < 1e6:
            raise UserError(f"{name}: got {value}, expected seconds, more than 0")


def window_views(window: Window, settings: ViewSettings) -> VideoViews:
    """All views of a window, as `decode_views` has them of a file that holds just its frames."""
    return cut_clips(window, window_clips(window, settings), settings)


def window_clips(window: Window, settings: ViewSettings) -> Tensor:
    """The frames of a window's clips, as indices among its frames, int64 (num_clips, T)."""
    wanted, places, _ = wanted_frames(settings.clips, window.times, window.time_base, settings.target_fps)
    return torch.tensor(wanted)[places]


def cut_clips(window: Window, clips: Tensor, settings: ViewSettings) -> VideoViews:
    """Views of clips of a window, of any length.

    Args:
        window: whose frames are taken.
        clips: indices among its frames, int64 (num_clips, T).
        settings: of the crops.

    Raises:
        VideoReadError: a frame can't be converted.
    """
    wanted, places = torch.unique(clips, return_inverse=True)
    frames = torch.stack([window.frames[n].image for n in wanted.tolist()])  # (D,h,w,C)
    boxes = evaluation_crops(*frames.shape[1:3], num_crops=settings.num_crops, crop_px=settings.crop_px)
    return VideoViews(frames, places.numpy(), tuple(boxes))


def _exact(seconds: float | None) -> Fraction | None:
    """0.1 s as it is meant."""
    return None if seconds is None else Fraction(seconds).limit_denominator(1_000_000)


def _judged_rate(source: FrameSource, head: Sequence[TimedFrame]) -> Fraction:
    """Frames per second: as stated, unless the first frames come at quite another rate."""
    took = (head[-1].time - head[0].time) * source.time_base
    if not took:
        return source.rate or Fraction(25)
    measured = (len(head) - 1) / took
    if source.rate and abs(source.rate / measured - 1) < _RATE_OFF:
        return source.rate
    return measured


def _emptied(items: list[TimedFrame]) -> Iterator[TimedFrame]:
    """The items, of which none is held any longer when it has been taken."""
    items.reverse()
    while items:
        yield items.pop()

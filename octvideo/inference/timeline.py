"""Scores along a video of any length: a window of some seconds after the other, decoded once from front to back.

A window's scores are those that `octvideo test` gives a video of just its frames: the same views, the same network,
the same mean. Frames are decoded, resized and cut in a thread, while the engine computes on those before::

    file or frames ─ video/streaming ─▶ frames ─ video/windows ─▶ windows ─▶ views ┐ thread
    scores (K,) of each window  ◀─ mean of scores ── logits (V,K) ◀─ engine ◀──────┘
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from octvideo.evaluation.scoring import Scoring
from octvideo.inference.engine import Engine
from octvideo.inference.frame_units import FrameUnits
from octvideo.inference.preparation import Normaliser, Timing, made_beside, on_device
from octvideo.video import FileFrames, FrameSource, GivenFrames, VideoReadError, VideoViews, ViewSettings, Window
from octvideo.video.windows import check_windows, cut_clips, frame_windows, window_clips

log = logging.getLogger("octvideo.inference")


class Scorer(Protocol):
    """What a timeline asks of a `Predictor`."""

    views: ViewSettings
    engine: Engine
    device: torch.device
    normalise: Normaliser
    scoring: Scoring

    def checked_views(self, views: ViewSettings | None) -> ViewSettings: ...

    def clips_per_call(self, views: ViewSettings) -> int: ...

    @property
    def frame_units(self) -> FrameUnits | None: ...

    def unit_engine(self, clips_per_call: int) -> tuple[Engine, int]: ...

    def no_scores(self, name: str) -> VideoReadError: ...


@dataclass(frozen=True)
class WindowScores:
    """The scores of some seconds of a video.

    Args:
        index: of the window, counted from 0.
        start_sec: of the window.
        end_sec: excluded.
        first_frame: index of its first frame in the video.
        last_frame: of its last one, which belongs to it.
        scores: of the predictor's `scoring`, averaged over the views, float32 (K,), on the CPU.
    """

    index: int
    start_sec: float
    end_sec: float
    first_frame: int
    last_frame: int
    scores: Tensor


@dataclass(frozen=True)
class WindowRows:
    """What the engine gives for the views of a window.

    Args:
        index, start_sec, end_sec, first_frame, last_frame: see `WindowScores`.
        rows: float32 (V, ...), on the CPU: logits of each view, where the engine gives these.
        clip_sec: when the frames of each clip are displayed, float64 (num_clips, T); view = clip * num_crops + crop.
    """

    index: int
    start_sec: float
    end_sec: float
    first_frame: int
    last_frame: int
    rows: Tensor
    clip_sec: np.ndarray


@dataclass(frozen=True)
class _Done:
    """A window whose last row of logits is in a chunk.

    Args:
        window: without its frames.
        clip_sec: see `WindowRows`.
        rows: of the units of each view, int64 (V, n): numbers of rows of logits, counted from the first of all.
        oldest: row that a later window may still need.
    """

    window: tuple[int, float, float, int, int]
    clip_sec: np.ndarray
    rows: np.ndarray
    oldest: int


@dataclass(frozen=True)
class _Chunk:
    """Clips that go through the engine at once, of one window or several.

    Args:
        clips: normalised, float32 (N, 3, T, S, S); None where all of a window is known already.
        done: windows that it completes.
        seconds: that its decoding and its preparation took.
    """

    clips: Tensor | None
    done: list[_Done]
    seconds: tuple[float, float]


class Timeline:
    """Scores the windows of videos with one predictor.

    Args:
        predictor: network, engine and views.
        window_sec: length of a window; None is the span of the network's clip (`clip_frames * frame_stride` frames).
        stride_sec: from the start of one window to that of the next; None is half of a window.
        views: how clips are cut from a window; None is the predictor's. Clips must keep their shape.
        share_frames: compute frames once that several windows show, where the network sees frames one by one. None does
            it in f32, where scores stay equal to 1e-5; in other precisions they differ by its rounding.
        decode_threads: of the decoder.

    Raises:
        UserError: a length, a stride or views that can't be meant.

    `timing` says where the time of the last video went, `units` how the network's clips fall apart, if they do.

    Example:
        >>> timeline = Timeline(Predictor.from_checkpoint("runs/demo"), window_sec=2.0)  # doctest: +SKIP
        >>> for window in timeline.of_video("film.mp4"):  # doctest: +SKIP
        ...     print(window.start_sec, window.end_sec, window.scores.argmax())
    """

    def __init__(
        self,
        predictor: Scorer,
        window_sec: float | None = None,
        stride_sec: float | None = None,
        *,
        views: ViewSettings | None = None,
        share_frames: bool | None = None,
        decode_threads: int = 1,
    ) -> None:
        check_windows(window_sec, stride_sec)
        self.predictor, self.window_sec, self.stride_sec = predictor, window_sec, stride_sec
        self.views = predictor.checked_views(views)
        self.decode_threads, self.timing = decode_threads, Timing()
        self.units: FrameUnits | None = None
        if share_frames or (share_frames is None and predictor.engine.precision == "f32"):
            self.units = predictor.frame_units
        if self.units is None:
            self._engine, self._clips_per_call = predictor.engine, predictor.clips_per_call(self.views)
        else:
            self._engine, self._clips_per_call = predictor.unit_engine(predictor.clips_per_call(self.views))

    def of_video(self, path: str | Path, *, skip: int = 0) -> Generator[WindowScores, None, None]:
        """The windows of a file, in order.

        What can't be decoded is left out, what comes after it is scored, and a warning says so.

        Args:
            path: of the video.
            skip: windows at the start that are known already; their frames are decoded only.

        Raises:
            VideoReadError: the video can't be read, or a window's scores are not finite.
        """
        with FileFrames(path, self.views.short_side_px, num_threads=self.decode_threads) as frames:
            yield from self.of_source(frames, skip=skip)
            if frames.trouble:
                log.warning("%s: %s", path, frames.trouble)

    def of_frames(
        self, frames: Iterable[tuple[Tensor | np.ndarray, float]], *, rate: float | None = None, name: str = "frames"
    ) -> Generator[WindowScores, None, None]:
        """The windows of frames from anywhere, each as soon as the frame after it is there.

        Args:
            frames: RGB, uint8 (H, W, 3), and when each is displayed, in seconds. They are taken in a thread of ours.
            rate: frames per second, if known; else it is measured.
            name: for messages.

        Raises:
            UserError: a frame is something else, or its time is not later than the one before.
        """
        return self.of_source(GivenFrames(frames, self.views.short_side_px, name=name, rate=rate), at_once=True)

    def of_source(
        self, source: FrameSource, *, skip: int = 0, at_once: bool = False
    ) -> Generator[WindowScores, None, None]:
        """The windows of a source of frames, in order. The source belongs to a thread until the generator is closed.

        Args:
            source: frames of `views.short_side_px`.
            skip: see `of_video`.
            at_once: gives each window before the next is looked at, also where the engine likes more clips in a call.

        Raises:
            VideoReadError: from the source, after the windows before; or a window's scores are not finite.
        """
        windows = frame_windows(source, self.views, window_sec=self.window_sec, stride_sec=self.stride_sec)
        return self.of_windows(windows, source.name, skip=skip, at_once=at_once)

    def of_windows(
        self, windows: Iterator[Window], name: str, *, skip: int = 0, at_once: bool = False, beside: bool = True
    ) -> Generator[WindowScores, None, None]:
        """The scores of windows of one video, in order.

        Args:
            windows: by `frame_windows`, or some of them.
            name: for messages.
            skip, at_once: see `of_source`.
            beside: takes windows in a thread, before their turn. Otherwise a window is looked for when the scores of
                the one before have been taken.

        Raises:
            VideoReadError: see `of_source`.
        """
        with contextlib.closing(self._rows(windows, skip, at_once, beside)) as found:
            for window in found:
                scores = self.predictor.scoring.of_views(window.rows, len(window.rows))[0]  # (K,)
                if not scores.isfinite().all():
                    raise self.predictor.no_scores(name)
                times, frames = (window.start_sec, window.end_sec), (window.first_frame, window.last_frame)
                yield WindowScores(window.index, *times, *frames, scores)

    def rows_of_source(
        self, source: FrameSource, *, skip: int = 0, at_once: bool = False
    ) -> Generator[WindowRows, None, None]:
        """The same windows, with what the engine gives for each view.

        Args:
            source, skip, at_once: see `of_source`.

        Raises:
            VideoReadError: from the source, after the windows before.
        """
        windows = frame_windows(source, self.views, window_sec=self.window_sec, stride_sec=self.stride_sec)
        return self._rows(windows, skip, at_once, beside=True)

    def _rows(
        self, windows: Iterator[Window], skip: int, at_once: bool, beside: bool
    ) -> Generator[WindowRows, None, None]:
        self.timing, began = Timing(), time.perf_counter()
        rows = _Rows()
        made = self._chunks(windows, skip, at_once)
        with contextlib.closing(made_beside(made) if beside else made) as chunks:
            for chunk in chunks:
                start = time.perf_counter()
                if chunk.clips is not None:
                    rows.add(self._engine(chunk.clips))
                of_windows = [rows.take(done, self.units) for done in chunk.done]
                self.timing.engine += time.perf_counter() - start
                self.timing.decode += chunk.seconds[0]
                self.timing.prepare += chunk.seconds[1]
                self.timing.total = time.perf_counter() - began
                for done, of_views in zip(chunk.done, of_windows, strict=True):
                    yield WindowRows(*done.window, of_views, done.clip_sec)

    def _chunks(self, windows: Iterator[Window], skip: int, at_once: bool) -> Generator[_Chunk, None, None]:
        """In the thread: windows to clips that fill the engine's calls."""
        device, normalise = self.predictor.device, self.predictor.normalise
        plan = _Plan(self.views, self.units)
        cuts: list[Tensor] = []
        done: list[_Done] = []
        num_clips, clock = 0, time.perf_counter()
        decode = prepare = 0.0

        def chunk() -> _Chunk:
            nonlocal cuts, done, num_clips, clock, decode, prepare
            clips = normalise(cuts[0] if len(cuts) == 1 else torch.cat(cuts)) if cuts else None
            prepare += time.perf_counter() - clock
            made = _Chunk(clips, done, (decode, prepare))
            cuts, done, num_clips, decode, prepare = [], [], 0, 0.0, 0.0
            return made

        try:
            for window in windows:
                if window.index < skip:
                    continue
                views, of_window = plan.of(window)  # frames are made small here, and not before
                decode += time.perf_counter() - clock
                clock, start = time.perf_counter(), 0
                if views is not None:
                    views = on_device(views, device)
                    while start < views.num_views:
                        stop = min(start + self._clips_per_call - num_clips, views.num_views)
                        cuts.append(views.cut(start, stop))
                        num_clips, start = num_clips + stop - start, stop
                        if start == views.num_views:
                            done.append(of_window)
                        if num_clips == self._clips_per_call:
                            yield chunk()
                            clock = time.perf_counter()  # the wait for a place in the queue is nobody's work
                else:
                    done.append(of_window)
                if done and (at_once or not cuts):
                    yield chunk()
                    clock = time.perf_counter()
                del window
        except Exception:  # the windows before it count
            if done:
                yield chunk()
            raise
        if done:
            yield chunk()


@dataclass
class _Plan:
    """Which clips, or units of clips, each window adds, and which rows of logits make its views."""

    views: ViewSettings
    units: FrameUnits | None
    _next: int = 0
    _known: dict[tuple[int, ...], int] = field(default_factory=dict)  # frames of a unit -> row of its first crop

    def of(self, window: Window) -> tuple[VideoViews | None, _Done]:
        """What is to be computed for a window, None where nothing is; and what makes it complete."""
        summary = (window.index, window.start_sec, window.end_sec, window.first, window.last)
        clips = window_clips(window, self.views)  # (num_clips,T)
        clip_sec = np.asarray(window.times, np.float64)[clips.numpy()] * float(window.time_base)
        if self.units is None:
            views = cut_clips(window, clips, self.views)
            rows = np.arange(self._next, self._next + views.num_views)[:, None]  # (V,1)
            self._next += views.num_views
            return views, _Done(summary, clip_sec, rows, self._next)
        views_of_units, rows, oldest = self._of_units(window, clips)
        return views_of_units, _Done(summary, clip_sec, rows, oldest)

    def _of_units(self, window: Window, clips: Tensor) -> tuple[VideoViews | None, np.ndarray, int]:
        """What is to be computed of a window's clips, the rows of its views, and the oldest that is known."""
        assert self.units is not None
        num_units, frames, num_crops = len(self.units.weights), self.units.frames, self.views.num_crops
        for key in [key for key in self._known if min(key) < window.first]:
            del self._known[key]
        clips = clips[:, : num_units * frames].unflatten(1, (num_units, frames))
        new: list[Tensor] = []
        firsts = np.empty((len(clips), num_units), np.int64)  # rows of the units' first crops
        for n, unit in enumerate(clips.flatten(0, 1)):
            key = tuple((unit + window.first).tolist())
            if key not in self._known:
                self._known[key] = self._next
                self._next += num_crops
                new.append(unit)
            firsts.flat[n] = self._known[key]
        rows = (firsts[:, None] + np.arange(num_crops)[None, :, None]).reshape(-1, num_units)  # (V,n)
        views = cut_clips(window, torch.stack(new), self.views) if new else None
        return views, rows, min(self._known.values())


class _Rows:
    """Rows that windows still need, of logits or of features.

    They stay on the engine's device until a window is complete, so that a GPU is waited for once a window.
    """

    def __init__(self) -> None:
        self._first, self._rows = 0, torch.empty(0)
        self._new: list[Tensor] = []

    def add(self, logits: Tensor) -> None:
        """The next rows, (N, K); of features (N, D) or (N, T', D)."""
        self._new.append(logits)

    def take(self, done: _Done, units: FrameUnits | None) -> Tensor:
        """Rows of a window's views, float32 (V, ...)."""
        if self._new:
            rows = torch.cat(self._new).float().cpu()
            self._rows = torch.cat([self._rows, rows]) if len(self._rows) else rows
            self._new = []
        of_units = self._rows[torch.from_numpy(done.rows - self._first)]  # (V,n,K)
        self._rows = self._rows[done.oldest - self._first :]
        self._first = done.oldest
        return of_units[:, 0] if units is None else torch.einsum("n,vnk->vk", units.weights, of_units)

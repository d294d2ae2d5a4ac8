"""Features along videos: what a layer of the network computes for each window, averaged, with its times.

The windows and views are those of a `Timeline`; any engine runs the network, which ends at the layer
(octvideo/inference/feature_network.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from octvideo.errors import UserError
from octvideo.inference.choice import AUTO, choice_device
from octvideo.inference.engine import ModelSpec
from octvideo.inference.feature_network import feature_network
from octvideo.inference.preparation import prepared_chunks
from octvideo.inference.timeline import Scorer, Timeline, WindowRows
from octvideo.inference.torch_engines import EagerEngine
from octvideo.video import FileFrames, FrameSource, GivenFrames, VideoArray, VideoReadError, ViewSettings


@dataclass(frozen=True)
class WindowFeatures:
    """The features of some seconds of a video.

    Args:
        index: of the window, counted from 0.
        start_sec: of the window.
        end_sec: excluded; NaN of a whole video whose length is not stated.
        first_frame: index of its first frame in the video.
        last_frame: of its last one, which belongs to it; None of a whole video.
        features: averaged over views and positions, float32 (D,), on the CPU; per time step (S, D), averaged over
            crops and places, the steps of all clips in order of time.
        step_sec: start and end of each step, float64 (S, 2); None where features are pooled.
    """

    index: int
    start_sec: float
    end_sec: float
    first_frame: int
    last_frame: int | None
    features: Tensor
    step_sec: np.ndarray | None = None


class FeatureExtractor:
    """Gives the features of videos, window by window.

    Args:
        network: clips (N, 3, T, H, W) to logits (N, K), left as it is.
        make: builds a `Predictor` around a network or an engine: `Predictor` itself.
        layer: see `feature_network`; None is what the classifier reads.
        pooled: one vector for a window; else one for each time step of each clip.
        window_sec, stride_sec: see `Timeline`.
        whole: a video is one window, of which views are cut as `octvideo test` cuts them.
        views: how clips are cut from a window.
        mean, std, device, engine, precision, num_threads, expected_videos: see `Predictor`.

    Raises:
        UserError: no such layer, or an engine that can't give its features; what can't be meant together.

    `layer` is the name of the layer in full, `predictor` what computes.
    """

    def __init__(
        self,
        network: nn.Module,
        make: Any,
        *,
        views: ViewSettings,
        layer: str | None = None,
        pooled: bool = True,
        window_sec: float | None = None,
        stride_sec: float | None = None,
        whole: bool = False,
        mean: Sequence[float] = (0.45, 0.45, 0.45),
        std: Sequence[float] = (0.225, 0.225, 0.225),
        device: str = "auto",
        engine: str = "eager",
        precision: str = "f32",
        num_threads: int | None = None,
        expected_videos: int | None = None,
    ) -> None:
        if whole and not (window_sec is None and stride_sec is None):
            raise UserError("features of whole videos have no window and no stride: leave one or the other out")
        if whole and not pooled:
            raise UserError("features per time step are of windows: give a window, or leave out that videos are whole")
        if precision == "int8":
            raise UserError("features are computed in f32 or bf16, got precision int8: its scales are made for scores")
        found = feature_network(network, (3, views.clip_frames, views.crop_px, views.crop_px), layer, pooled=pooled)
        self.layer, self.pooled, self.whole = found.layer, pooled, whole
        how: dict[str, Any] = {"views": views, "mean": mean, "std": std}
        if found.kept_whole:
            if engine not in (AUTO, "eager"):
                raise UserError(
                    f"layer '{found.layer}' lies in a module that is run whole, which engine {engine} can't look into: "
                    "take engine eager, or another layer"
                )
            on = choice_device("eager", "f32" if precision == AUTO else precision, device)
            shape = (1, 3, views.clip_frames, views.crop_px, views.crop_px)
            run = EagerEngine(found.module, ModelSpec(shape, "f32" if precision == AUTO else precision, on))
            self.predictor = make(run, [], **how)
        else:
            how |= {"device": device, "engine": engine, "precision": precision, "num_threads": num_threads}
            self.predictor = make(found.module, [], **how, expected_videos=expected_videos)
        scorer: Scorer = self.predictor
        # Per time step there is nothing to share: a unit's steps are not a clip's.
        self.timeline = None if whole else Timeline(scorer, window_sec, stride_sec, share_frames=None)

    def of_video(self, video: str | Path | VideoArray) -> Generator[WindowFeatures, None, None]:
        """The features of a file, or of frames in memory, in order of time.

        Raises:
            VideoReadError: the video can't be read, or features are not finite.
        """
        if self.whole:
            yield from self.of_whole([video], raises=True)  # type: ignore[misc]
        elif isinstance(video, VideoArray):
            times = ((frame, n / video.fps) for n, frame in enumerate(video.checked_frames()))
            yield from self.of_frames(times, rate=video.fps, name=str(video))
        else:
            with FileFrames(video, self.predictor.views.short_side_px) as frames:
                yield from self.of_source(frames)

    def of_frames(
        self, frames: Iterable[tuple[Tensor | np.ndarray, float]], *, rate: float | None = None, name: str = "frames"
    ) -> Generator[WindowFeatures, None, None]:
        """The same of frames from anywhere; see `Timeline.of_frames`."""
        return self.of_source(GivenFrames(frames, self.predictor.views.short_side_px, name=name, rate=rate))

    def of_source(self, source: FrameSource) -> Generator[WindowFeatures, None, None]:
        """The same of a source of frames; see `Timeline.of_source`."""
        if self.timeline is None:
            raise UserError("features of whole videos are of files and arrays: give a window for frames from elsewhere")
        with contextlib.closing(self.timeline.rows_of_source(source)) as windows:
            for window in windows:
                self._check(window.rows, source.name)
                frames = window.first_frame, window.last_frame
                times = window.start_sec, window.end_sec
                if self.pooled:
                    yield WindowFeatures(window.index, *times, *frames, window.rows.mean(0))
                else:
                    yield WindowFeatures(window.index, *times, *frames, *_steps(window))

    def of_whole(
        self, videos: Sequence[str | Path | VideoArray], *, raises: bool = False
    ) -> Generator[WindowFeatures | VideoReadError, None, None]:
        """The features of each of many videos as a whole, in order: the next is decoded while one is computed.

        Args:
            videos: files, or frames in memory.
            raises: the error of a video that can't be read is raised, not given in its place.
        """
        predictor, views = self.predictor, self.predictor.views
        chunks = prepared_chunks(
            videos, views, predictor.normalise, views_per_chunk=predictor.views_per_chunk, device=predictor.device
        )
        rows: list[Tensor] = []
        with contextlib.closing(chunks) as prepared:
            for item in prepared:
                try:
                    if isinstance(item, VideoReadError):
                        raise item
                    rows.append(predictor.engine(item.clips))
                    if not item.is_last:
                        continue
                    of_views, rows = torch.cat(rows).float().cpu(), []  # (V,D)
                    video = videos[item.video]
                    self._check(of_views, str(video))
                    yield WindowFeatures(0, 0.0, _seconds(video), 0, None, of_views.mean(0))
                except VideoReadError as error:
                    if raises:
                        raise
                    yield error

    def _check(self, rows: Tensor, name: str) -> None:
        if not rows.isfinite().all():
            raise VideoReadError(name, f"its features are not finite in precision {self.predictor.engine.precision}")


def _seconds(video: str | Path | VideoArray) -> float:
    """Length of a video, as the file states it; NaN where it does not."""
    if isinstance(video, VideoArray):
        return len(video.frames) / video.fps
    with FileFrames(video, 1) as frames:
        return float("nan") if frames.duration_sec is None else frames.duration_sec


def _steps(window: WindowRows) -> tuple[Tensor, np.ndarray]:
    """The time steps of all clips of a window, in order: features (S, D), and their starts and ends (S, 2).

    Of T frames and T' steps, step j is of the frames from j · T / T' on. It ends where the next one starts, and the
    last one of a clip lasts as long as the one before.
    """
    clips, frames = window.clip_sec.shape
    of_clips = window.rows.unflatten(0, (clips, -1)).mean(1)  # (num_clips,T',D)
    steps = of_clips.shape[1]
    firsts = np.arange(steps) * frames // steps
    starts = window.clip_sec[:, firsts]  # (num_clips,T')
    if frames > 1:
        frame_sec = np.diff(window.clip_sec, axis=1)[:, -1:]
    else:
        frame_sec = np.full((clips, 1), window.end_sec) - starts[:, -1:]
    ends = np.concatenate([starts[:, 1:], window.clip_sec[:, -1:] + frame_sec], 1)
    order = np.argsort(starts.ravel(), kind="stable")
    times = np.stack([starts.ravel(), ends.ravel()], 1)[order]  # (S,2)
    return of_clips.flatten(0, 1)[torch.from_numpy(order)], times

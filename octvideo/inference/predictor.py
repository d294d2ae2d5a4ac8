"""Predictor: a network in an engine and everything its scores depend on, in one object.

A checkpoint says how its network was built, how clips are cut from a video and what the classes are called (its
"octvideo" block); an exported model says the same in its octvideo.json. So no config is needed to use either.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from octvideo.errors import UserError
from octvideo.evaluation.alike_views import AlikeViews
from octvideo.evaluation.scoring import Scoring
from octvideo.evaluation.view_scores import best_classes, even_chunk
from octvideo.inference.budget import ViewsChoice, choose_views, measured_video
from octvideo.inference.checkpoint import network_of_checkpoint, network_of_pytorchvideo, read_export
from octvideo.inference.choice import AUTO, choice_device, choose_engine
from octvideo.inference.device import pick_device
from octvideo.inference.engine import Engine, ModelSpec
from octvideo.inference.engines import FileEngine, build_engine
from octvideo.inference.features import FeatureExtractor, WindowFeatures
from octvideo.inference.frame_units import FrameUnits, find_frame_units, may_have_units
from octvideo.inference.preparation import Normaliser, Timing, prepared_chunks
from octvideo.inference.timeline import Timeline, WindowScores
from octvideo.stores import shown
from octvideo.video import ImageFrames, VideoArray, VideoReadError, ViewSettings, read_views

log = logging.getLogger("octvideo.inference")

_CALIBRATION_CLIPS = 32  # for int8; of each one the network is run three times


@dataclass(frozen=True)
class Prediction:
    """The best classes of one video.

    Args:
        path: the video; of an address what may be shown.
        top: (class name, score) from best to worst; scores are softmax or sigmoid, averaged over the views.
        timing: where the time went.
        labels: all classes that the video has by their thresholds, the best first; None where there are none.
    """

    path: str
    top: list[tuple[str, float]]
    timing: Timing = field(default_factory=Timing, compare=False)
    labels: list[str] | None = None


class NoScores(VideoReadError):  # noqa: N818 (named as what there is not)
    """A video whose scores are not finite; it has as little of a result as one that can't be read.

    Args:
        path: of the video.
        precision: that the engine computes in.
    """

    def __init__(self, path: str | Path, precision: str) -> None:
        super().__init__(str(path), f"its scores are not finite in precision {precision}, though the weights are")
        self.args = (f"no result for video '{self.path}': {self.reason}",)


class Predictor:
    """Classifies videos with one network.

    Args:
        network: clips (N, 3, T, H, W) to logits (N, K), left as it is; or an Engine that runs one.
        class_names: K names.
        views: how clips are cut from a video.
        mean: per channel, of pixels scaled to [0, 1].
        std: likewise.
        scoring: what makes scores of logits, and labels of scores.
        source: which weights these are, for people.
        device: "auto" is CUDA where there is one and the engine has it.
        engine: what runs the network: a name in `octvideo.inference.engines.ENGINES`, or "auto": the fastest here, by
            a measurement that is remembered (`octvideo.inference.choice`).
        precision: that it computes in: one of the engine's, or "auto".
        num_threads: of the CPU; None leaves it to the engine.
        views_per_chunk: views that go through the network at once; None is `choose_views_per_call`.
        calibrate: for int8: typical videos, of which some clips are taken.
        expected_videos: for "auto": how many are to come, since few are not worth a measurement; None is many.

    Raises:
        UserError: no such engine, precision or device, or a library that is not installed.

    The default is one engine and precision, so that scores do not depend on the machine; `engine.name`,
    `engine.precision` and `engine_reason` say what "auto" became, and why.

    Example:
        >>> predictor = Predictor.from_checkpoint("runs/demo/checkpoints/last.ckpt")  # doctest: +SKIP
        >>> predictor.predict("video.mp4").top[0]  # doctest: +SKIP
        ('moves_left', 0.98)
    """

    def __init__(
        self,
        network: nn.Module | Engine,
        class_names: Sequence[str],
        *,
        views: ViewSettings,
        mean: Sequence[float] = (0.45, 0.45, 0.45),
        std: Sequence[float] = (0.225, 0.225, 0.225),
        scoring: Scoring = Scoring(),  # noqa: B008 (frozen)
        source: str = "given network",
        device: str = "auto",
        engine: str = "eager",
        precision: str = "f32",
        num_threads: int | None = None,
        views_per_chunk: int | None = None,
        calibrate: Sequence[str] = (),
        expected_videos: int | None = None,
    ) -> None:
        self.class_names = list(class_names)
        self.mean, self.std = tuple(mean), tuple(std)
        self.views, self.scoring, self.source = views, scoring, source
        self.engine_reason = ""  # of an engine that was given
        if isinstance(network, nn.Module):
            self.device = choice_device(engine, precision, device)
            self.views_per_chunk = views_per_chunk or choose_views_per_call(views, self.device, torch.get_num_threads())
            how: dict[str, Any] = {"precision": precision, "num_threads": num_threads, "device": self.device}
            on_cpu = Normaliser(mean, std, torch.device("cpu"))
            calibration = typical_clips(calibrate, views, on_cpu) if calibrate else None
            how |= {"example_shape": clip_shape(views, self.views_per_chunk), "calibration": calibration}
            if AUTO in (engine, precision):
                clips = None if expected_videos is None else expected_videos * views.num_views
                self.engine, self.engine_reason = choose_engine(network, engine=engine, expected_clips=clips, **how)
            else:
                self.engine = build_engine(engine, network, **how)
            self.engine_reason = getattr(self.engine, "note", "") or self.engine_reason
        else:
            self.engine, self.device = network, getattr(network, "device", torch.device("cpu"))
            self.views_per_chunk = views_per_chunk or network.views_per_call or 1
        self.normalise = Normaliser(mean, std, self.device)
        # Kept where a timeline may compute its frames once, which needs other clips than the engine was made for.
        self._network = network if isinstance(network, nn.Module) and may_have_units(network) else None
        self._num_threads = num_threads
        # For features; from a checkpoint it is read again, so that no second copy of it waits in memory.
        self._network_again: Callable[[], nn.Module] | None = None
        if isinstance(network, nn.Module):
            self._network_again = lambda: network
        self._extractors: dict[tuple[Any, ...], FeatureExtractor] = {}
        self._told_alike_views = False

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        device: str = "auto",
        engine: str = "eager",
        precision: str = "f32",
        num_threads: int | None = None,
        calibrate: Sequence[str] = (),
        expected_videos: int | None = None,
        views_per_chunk: int | None = None,
    ) -> Predictor:
        """Builds the network that a checkpoint of `octvideo fit` describes, with its weights.

        Args:
            path: of the checkpoint.
            device: "auto", "cpu", "cuda", "cuda:1", ...
            engine, precision, num_threads, calibrate, expected_videos, views_per_chunk: see `Predictor`.

        Raises:
            UserError: no such file, or none of ours; no such engine, precision or device.
        """
        choice_device(engine, precision, device)  # what can't be is said before the file is read
        network, settings = network_of_checkpoint(path)
        how: dict[str, Any] = {"device": device, "engine": engine, "precision": precision, "num_threads": num_threads}
        how |= {"calibrate": calibrate, "expected_videos": expected_videos, "views_per_chunk": views_per_chunk}
        predictor = cls(network, **settings, **how)
        predictor._network_again = lambda: network_of_checkpoint(path)[0]
        return predictor

    @classmethod
    def from_export(cls, path: str | Path, *, device: str = "auto", num_threads: int | None = None) -> Predictor:
        """Loads a model that octvideo export wrote: no network is built, and neither Lightning nor pytorchvideo needed.

        Args:
            path: of the folder.
            device: "auto" is the one it was written for.
            num_threads: see `Predictor`.

        Raises:
            UserError: no such model, a missing library, or another device than it was written for.
        """
        settings = read_export(path)
        made_for = settings["device"]
        try:
            chosen = pick_device(made_for if device == "auto" else device)
        except UserError as error:
            if device != "auto":
                raise
            raise UserError(f"{path} was exported for device '{made_for}': {error}") from error
        if chosen.type != made_for:
            raise UserError(
                f"{path} was exported for device '{made_for}', got '{chosen}': export it for the other, too"
            )
        file = Path(path) / settings["model"]
        if not file.is_file():
            raise UserError(f"{path} is not whole: {file.name} is missing; export the model again")
        spec = ModelSpec(tuple(settings["input_shape"]), settings["precision"], chosen)
        return cls(
            FileEngine(settings["engine"], file, spec, num_threads=num_threads),
            settings["class_names"],
            views=ViewSettings.from_dict(settings["views"]),
            mean=settings["mean"],
            std=settings["std"],
            scoring=Scoring.from_dict(settings.get("scoring"), num_classes=len(settings["class_names"])),
            source=f"{settings['source']} ({path})",
        )

    @classmethod
    def from_pytorchvideo(
        cls,
        *,
        device: str = "auto",
        engine: str = "eager",
        precision: str = "f32",
        num_threads: int | None = None,
        calibrate: Sequence[str] = (),
        expected_videos: int | None = None,
        views_per_chunk: int | None = None,
    ) -> Predictor:
        """I3D ResNet-50 8x8 with pytorchvideo's published Kinetics-400 weights, downloaded once into torch's
        cache.

        Raises:
            UserError: neither in the cache nor to be had from the network; no such engine, precision or device.
        """
        choice_device(engine, precision, device)
        network, settings = network_of_pytorchvideo()
        how: dict[str, Any] = {"device": device, "engine": engine, "precision": precision, "num_threads": num_threads}
        how |= {"calibrate": calibrate, "expected_videos": expected_videos, "views_per_chunk": views_per_chunk}
        return cls(network, **settings, **how)

    def use_views(self, views: ViewSettings) -> None:
        """Cuts videos so from now on.

        Raises:
            UserError: clips of another shape than the engine's.
        """
        self.views = self.checked_views(views)
        self.views_per_chunk = self.engine.views_per_call or choose_views_per_call(
            views, self.device, torch.get_num_threads()
        )

    def choose_views(self, budget_sec: float, videos: Sequence[str | Path | VideoArray | ImageFrames]) -> ViewsChoice:
        """Uses the most views, from 1x1 up to those it has now, with which a video takes no longer than a time; 1x1
        where even that takes longer, which `keeps` of the result tells.

        Make the predictor with views_per_chunk=1: an engine that is made for more clips in a call computes as many of
        any smaller number of views.

        Args:
            budget_sec: seconds that a video may take by itself: opened, decoded, cut, computed.
            videos: of which the first that can be read is measured, some times.

        Raises:
            VideoReadError: none of them can be read; of the last one.
            ValueError: there is none.

        Example:
            >>> how = {"engine": "auto", "precision": "auto", "views_per_chunk": 1}  # doctest: +SKIP
            >>> predictor = Predictor.from_checkpoint("runs/demo/checkpoints/last.ckpt", **how)  # doctest: +SKIP
            >>> print(predictor.choose_views(0.2, ["video.mp4"]))  # doctest: +SKIP
            budget 200 ms: 3x1 views by openvino f32, about 150 ms a video (decoding 57, cutting 3, network 30 a view)
        """
        own = self.views

        def measure(video: str | Path | VideoArray | ImageFrames, views: ViewSettings) -> Timing:
            self.use_views(views)
            how: dict[str, Any] = {"views_per_chunk": self.views_per_chunk, "device": self.device}
            return measured_video(video, views, self.normalise, self.engine, **how)

        last: VideoReadError | None = None
        for video in videos:
            try:
                measure(video, replace(own, num_clips=1, num_crops=1))  # loads what is loaded at the first use
            except VideoReadError as error:
                last = error
                continue
            views, timing = choose_views(own, budget_sec, functools.partial(measure, video))
            self.use_views(views)
            return ViewsChoice(views, timing, budget_sec, f"{self.engine.name} {self.engine.precision}")
        self.use_views(own)
        raise last or ValueError("videos: got none to measure")

    def scores(self, path: str | Path | VideoArray | ImageFrames) -> Tensor:
        """Scores (K,) of a video, on the CPU.

        Raises:
            VideoReadError: the video can't be read.
        """
        (result,) = self._scores_of([path])
        if isinstance(result, VideoReadError):
            raise result
        return result[0]

    def predict(
        self, path: str | Path | VideoArray | ImageFrames | Tensor | np.ndarray, *, topk: int = 5, fps: float = 30.0
    ) -> Prediction:
        """The `topk` best classes of a video.

        Args:
            path: of the video; or its frames, RGB, uint8 (T, H, W, 3), or as images (`octvideo.video.FrameFolder`).
            topk: how many.
            fps: of an array of frames.

        Raises:
            VideoReadError: the video can't be read.
            UserError: an array of frames that are none.
        """
        if isinstance(path, Tensor | np.ndarray):
            path = VideoArray(path, fps)
        (result,) = self.predict_many([path], topk=topk)
        if isinstance(result, VideoReadError):
            raise result
        return result

    def predict_many(
        self, paths: Sequence[str | Path | VideoArray | ImageFrames], *, topk: int = 5
    ) -> Generator[Prediction | VideoReadError, None, None]:
        """The same of many videos, in order: the next is decoded while one is computed.

        Returns:
            For each video its prediction, or the error why it can't be read.
        """
        for path, result in zip(paths, self._scores_of(paths), strict=True):
            if isinstance(result, VideoReadError):
                yield result
                continue
            scores, timing = result
            top = [(self.class_names[k], float(scores[k])) for k in best_classes(scores, topk).tolist()]
            found = self.scoring.labels_of(scores)
            labels = None if found is None else [self.class_names[k] for k in found]
            yield Prediction(shown(str(path)), top, timing, labels)

    def stream(
        self,
        frames: Iterable[tuple[Tensor | np.ndarray, float]],
        *,
        window_sec: float | None = None,
        stride_sec: float | None = None,
    ) -> Generator[WindowScores, None, None]:
        """Scores of windows of frames from anywhere, each as soon as the frame after it is there; see `Timeline`.

        Args:
            frames: RGB, uint8 (H, W, 3), and when each is displayed, in seconds; any iterable.
            window_sec, stride_sec: see `Timeline`.

        Raises:
            UserError: a frame is something else, or its time is not later than the one before.
        """
        return Timeline(self, window_sec, stride_sec).of_frames(frames)

    def features(
        self,
        video: str | Path | VideoArray | Tensor | np.ndarray | Iterable[tuple[Tensor | np.ndarray, float]],
        layer: str | None = None,
        *,
        window_sec: float | None = None,
        stride_sec: float | None = None,
        pooled: bool = True,
        whole: bool = False,
        views: ViewSettings | None = None,
        fps: float = 30.0,
    ) -> Generator[WindowFeatures, None, None]:
        """What a layer computes for each window of a video, averaged over its views.

        Args:
            video: path; or its frames, RGB, uint8 (T, H, W, 3); or single ones with their times, as for `stream`.
            layer: name of a module, as in `named_modules`; with ":input" what it reads. None is what the classifier
                reads, so that the classifier gives the mean logits for it.
            window_sec, stride_sec: see `Timeline`.
            pooled: (D,) for a window; else (S, D), one row for each time step of each clip.
            whole: the whole video is one window, with the views of `octvideo test`.
            views: how clips are cut from a window; None is the predictor's.
            fps: of an array of frames.

        Raises:
            VideoReadError: the video can't be read.
            UserError: no such layer; an engine that can't give its features, as those of exported models.

        Example:
            >>> predictor = Predictor.from_checkpoint("runs/demo/checkpoints/last.ckpt")  # doctest: +SKIP
            >>> for window in predictor.features("film.mp4", window_sec=2.0):  # doctest: +SKIP
            ...     print(window.start_sec, window.features.shape)
        """
        extractor = self._extractor((layer, pooled, window_sec, stride_sec, whole, self.checked_views(views)))
        if isinstance(video, Tensor | np.ndarray):
            video = VideoArray(video, fps)
        if isinstance(video, str | Path | VideoArray):
            return extractor.of_video(video)
        return extractor.of_frames(video)

    def _extractor(self, key: tuple[Any, ...]) -> FeatureExtractor:
        """The last one is kept: an engine takes its time to be made."""
        if self._network_again is None:
            raise UserError(
                f"{self.source}: an exported model holds no layers to take features from; give the checkpoint it was "
                "made of"
            )
        if key not in self._extractors:
            layer, pooled, window_sec, stride_sec, whole, views = key
            self._extractors.clear()
            self._extractors[key] = FeatureExtractor(
                self._network_again(),
                Predictor,
                layer=layer,
                pooled=pooled,
                window_sec=window_sec,
                stride_sec=stride_sec,
                whole=whole,
                views=views,
                mean=self.mean,
                std=self.std,
                device=str(self.device),
                engine=self.engine.name,
                precision=self.engine.precision,
                num_threads=self._num_threads,
            )
        return self._extractors[key]

    # ── for timelines ───────────────────────────────────────────────────────────────────────────────────────

    def checked_views(self, views: ViewSettings | None) -> ViewSettings:
        """How windows are cut: as given, or as videos are.

        Raises:
            UserError: clips of another shape than the engine's.
        """
        if views is None:
            return self.views
        if (given := clip_shape(views, 1)) != (own := clip_shape(self.views, 1)):
            raise UserError(f"views: got clips {given[1:]}, expected those of the network, {own[1:]}")
        return views

    def clips_per_call(self, views: ViewSettings) -> int:
        """How many clips go through the engine at once, cut so."""
        if views == self.views or self.engine.views_per_call:
            return self.views_per_chunk
        return choose_views_per_call(views, self.device, torch.get_num_threads())

    @functools.cached_property
    def frame_units(self) -> FrameUnits | None:
        """The units into which the network's clips fall, if they do and the network is in memory."""
        if self._network is None:
            return None
        return find_frame_units(self._network, self.views.clip_frames, self.views.crop_px)

    def unit_engine(self, clips_per_call: int) -> tuple[Engine, int]:
        """The engine for single units, and how many go through it at once: of the frames of so many clips."""
        units = self.frame_units
        assert units is not None and self._network is not None
        per_call = clips_per_call * len(units.weights)
        if self.engine.views_per_call is None:
            return self.engine, per_call
        shape = (per_call, 3, units.frames, self.views.crop_px, self.views.crop_px)
        how: dict[str, Any] = {"precision": self.engine.precision, "num_threads": self._num_threads}
        return build_engine(self.engine.name, self._network, example_shape=shape, device=self.device, **how), per_call

    def no_scores(self, name: str) -> NoScores:
        """The error of a video whose scores are not finite."""
        return NoScores(name, self.engine.precision)

    def _scores_of(
        self, paths: Sequence[str | Path | VideoArray | ImageFrames]
    ) -> Generator[tuple[Tensor, Timing] | VideoReadError, None, None]:
        logits: list[Tensor] = []
        timing, alike = Timing(), AlikeViews()
        start = time.perf_counter()
        chunks = prepared_chunks(
            paths, self.views, self.normalise, views_per_chunk=self.views_per_chunk, device=self.device
        )
        with contextlib.closing(chunks) as prepared:
            for item in prepared:
                if isinstance(item, VideoReadError):
                    yield item
                    start = time.perf_counter()
                    continue
                began = time.perf_counter()
                logits.append(self.engine(item.clips))
                if item.is_last:  # on a GPU calls return before they are done, and this one waits for all
                    of_views = torch.cat(logits).float().cpu()  # (V,K)
                timing.engine += time.perf_counter() - began
                timing.decode += item.decode
                timing.prepare += item.prepare
                if item.is_last:
                    alike.add(item.alike)
                    scores = self.scoring.of_views(of_views, self.views.num_views)[0]  # (K,)
                    timing.total = time.perf_counter() - start
                    yield (scores, timing) if scores.isfinite().all() else self.no_scores(str(paths[item.video]))
                    logits, timing, start = [], Timing(), time.perf_counter()
        if (said := alike.in_words()) and not self._told_alike_views:
            self._told_alike_views = True
            log.warning("%s", said)


def clip_shape(views: ViewSettings, num_views: int) -> tuple[int, int, int, int, int]:
    """(N, 3, T, H, W) of `num_views` clips."""
    return num_views, 3, views.clip_frames, views.crop_px, views.crop_px


def choose_views_per_call(views: ViewSettings, device: torch.device, threads: int = 1) -> int:
    """How many views go through a network at once.

    On a GPU `even_chunk`. On a CPU a divisor of all, up to as many as have the pixels of one view of 8 x 256 x 256:
    larger batches only wait longer for their last view, and of single small views the calls take longer than the
    arithmetic.
    Where views can be shared out evenly, each thread gets so many: threads that have views of their own do not wait for
    each other.
    """
    if device.type != "cpu":
        return min(even_chunk(views.num_views), views.num_views)
    most = max(1, min(8, 8 * 256 * 256 // (views.clip_frames * views.crop_px**2)))
    divisors = [n for n in range(1, most * threads + 1) if views.num_views % n == 0]
    return max(n for n in divisors if n <= most or n % threads == 0)


def typical_clips(
    videos: Sequence[str],
    views: ViewSettings,
    normalise: Normaliser,
    *,
    most: int = _CALIBRATION_CLIPS,
    watch: Callable[[Sequence[str]], Iterable[str]] = iter,
) -> Tensor:
    """Normalised views of the videos, float32 (M, 3, T, H, W): as many of each, `most` at most.

    Args:
        watch: gives the videos, and may say how many have been read.

    Raises:
        VideoReadError: one can't be read.
    """
    videos = videos[:: -(-len(videos) // most)]
    each = max(1, most // len(videos))
    clips = []
    for video in watch(videos):
        cut = read_views(video, views)  # uint8 (V,3,T,S,S)
        clips.append(normalise(cut[:: -(-len(cut) // each)]))
    return torch.cat(clips)

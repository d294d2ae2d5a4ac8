"""Writes what a network sees in videos: `octvideo features VIDEO|FOLDER ... -o DIR [--ckpt RUN|FILE]`.

Each video gets a file of feature vectors with their times, one for each window. By default they are what the classifier
reads; --layer takes another layer. octvideo similar searches such a folder.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from rich.console import Console
from torch import nn

from octvideo._version import __version__
from octvideo.cli.allocator import keep_freed_memory
from octvideo.cli.arguments import Parser, above_zero, asked_views, output_folder
from octvideo.cli.infer_output import say_errors
from octvideo.cli.model_arguments import check_part, lines_of_predictor, say_lines
from octvideo.cli.on_ray import ray_arguments, ray_pool
from octvideo.cli.tables import print_table
from octvideo.cli.video_arguments import find_videos, videos_of_part
from octvideo.cluster.pool import Lost
from octvideo.errors import UserError
from octvideo.files import digest, writing_in
from octvideo.inference.checkpoint import find_checkpoint, network_of_checkpoint, network_of_pytorchvideo
from octvideo.inference.choice import AUTO
from octvideo.inference.engines import ENGINES
from octvideo.inference.feature_files import (
    SETTINGS_FILE,
    FeatureFolder,
    Format,
    Row,
    VideoFeatures,
    parquet_library,
)
from octvideo.inference.feature_network import list_layers
from octvideo.inference.features import FeatureExtractor, WindowFeatures
from octvideo.inference.predictor import Predictor
from octvideo.inference.stored_features import StoredFeatures
from octvideo.progress import Progress
from octvideo.stores import StoredFolder, by_shown, file_name, shown
from octvideo.video import FileFrames, VideoReadError, ViewSettings

STOPPED = "stopped: the same command goes on with the videos that are left"


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "videos", nargs="*", metavar="VIDEO|FOLDER|@FILE", help="@FILE: names of videos from a text file, one in a line"
    )
    parser.shared(
        "output",
        type=output_folder,
        metavar="DIR",
        help="made, here or in a store; videos whose features are in it are not done again",
    )
    parser.shared("ckpt")
    add = parser.add_argument
    add("--model", help="(exported models hold no layers: give --ckpt)")
    add("--layer", metavar="NAME", help="'list' shows all; NAME:input is what it reads (what the classifier reads)")
    add("--window", type=above_zero, metavar="S", help="seconds of a window (those of the network's clip)")
    add("--stride", type=above_zero, metavar="S", help="seconds from one window to the next (half of a window)")
    add("--whole", action="store_true", help="one vector for a video, of the views of octvideo test")
    parser.shared("views")
    parser.shared("num_clips", help="clips of a window (as octvideo test)")
    parser.shared("num_crops", help="crops of a clip (as octvideo test)")
    add("--per_step", action="store_true", help="a vector for each time step of the layer, not one for a window")
    add("--format", choices=get_args(Format), default="safetensors", help="of the files (safetensors)")
    add("--dtype", choices=("float32", "float16"), default="float32", help="of the vectors (float32)")
    add("--parquet", action="store_true", help="write index.parquet beside index.csv (needs pyarrow)")
    add("--engine", help=f"{AUTO}: the fastest here; {', '.join(ENGINES)} ({AUTO})")
    add("--precision", help=f"{AUTO}, f32, bf16 ({AUTO})")
    parser.shared("device", "threads", "runs_dir", "part")
    ray_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Writes the files; returns 0, or 1 where some video could not be read to its end (what could be is there)."""
    keep_freed_memory()
    if args.model is not None:
        raise UserError(
            f"--model {args.model}: an exported model holds no layers to take features from; give --ckpt, the run or "
            "checkpoint that it was made of"
        )
    asked_views(args.views, args.num_clips, args.num_crops)  # refuses both ways at once
    checkpoint = None if args.ckpt is None else find_checkpoint(args.ckpt, args.runs_dir)
    if args.layer == "list":
        network, settings = loaded_network(checkpoint)
        own: ViewSettings = settings["views"]
        rows = list_layers(network, (3, own.clip_frames, own.crop_px, own.crop_px))
        print_table(("layer", "class", "C x T x H x W"), rows)
        return 0
    if args.output is None:
        raise UserError("-o/--output not given: a folder for the features")
    if args.parquet:
        parquet_library()
    videos = list(by_shown(find_videos(args.videos)).values())
    if not videos:
        raise UserError("no video given: octvideo features VIDEO|FOLDER|@FILE ... -o DIR")
    check_part(args)
    videos = videos_of_part(args, videos)
    console = Console(stderr=True)
    if args.on is None:
        with console.status("getting the network ready"):
            extractor, made_by, said = _extractor_of(args, checkpoint, len(videos))
        folder = _folder_of(args, checkpoint, made_by)
        say_lines(said, console)

        def written_here(left: list[str], progress: Progress) -> Iterator[VideoReadError | str]:
            for video, made in zip(left, features_of(extractor, left, progress), strict=True):
                yield _written(folder, video, made, args.dtype)

        return _write_all(args, folder, videos, written_here)
    with ray_pool(args, FeaturesWorker(args, checkpoint, len(videos)), batch=8) as pool:
        with console.status("getting the network ready on the cluster"):
            made_by, said = pool.begin()
        folder = _folder_of(args, checkpoint, made_by)  # whose engine all others take
        say_lines(said, console)

        def written_there(left: list[str], progress: Progress) -> Iterator[VideoReadError | str]:
            pool.tell = progress.print
            for video, result in pool.run(left, len(left)):
                progress.update(said=pool.state)
                yield VideoReadError(video, result.reason) if isinstance(result, Lost) else result

        return _write_all(args, folder, videos, written_there)


def _extractor_of(
    args: argparse.Namespace, checkpoint: Path | None, expected_videos: int
) -> tuple[FeatureExtractor, dict[str, Any], list[str]]:
    """What computes the features, what they are made by, and what is said of it."""
    network, settings = loaded_network(checkpoint)
    settings["views"] = replace(settings["views"], **asked_views(args.views, args.num_clips, args.num_crops))
    asked = {"layer": args.layer, "pooled": not args.per_step, "whole": args.whole}
    asked |= {"window_sec": args.window, "stride_sec": args.stride}
    before = _engine_before(args.output, args.engine or AUTO, args.precision or AUTO)
    engine, precision = before or (args.engine or AUTO, args.precision or AUTO)
    how = {"engine": engine, "precision": precision, "device": args.device, "num_threads": args.threads}
    names = settings.pop("class_names")
    extractor = make_extractor(network, settings, **asked, **how, expected_videos=expected_videos)
    if before:
        extractor.predictor.engine_reason = f"as the features in {args.output} so far"
    made_by = {"weights": settings["source"], "class_names": names, "octvideo": __version__}
    made_by |= {"engine": extractor.predictor.engine.name, "precision": extractor.predictor.engine.precision}
    made_by |= {**asked, "layer": extractor.layer, "views": settings["views"].as_dict()}
    return extractor, made_by, [*lines_of_predictor(extractor.predictor), f"layer: {extractor.layer}"]


def _folder_of(args: argparse.Namespace, checkpoint: Path | None, made_by: dict[str, Any]) -> FeatureFolder:
    weights, *others = made_by.items()
    made_by = dict([weights, ("sha256", "" if checkpoint is None else digest(checkpoint)), *others])
    made_by |= {"format": args.format, "dtype": args.dtype}
    if isinstance(args.output, StoredFolder):
        return StoredFeatures.begun(args.output, made_by)
    return FeatureFolder.made(args.output, made_by)


def _open_folder(folder: Path | StoredFolder) -> FeatureFolder:
    return StoredFeatures(folder) if isinstance(folder, StoredFolder) else FeatureFolder(folder)


@dataclass
class FeaturesWorker:
    """What a process of a cluster does for `octvideo features`.

    Args:
        args: of the command.
        checkpoint: of the network.
        expected_videos: see `Predictor`.
    """

    args: argparse.Namespace
    checkpoint: Path | None
    expected_videos: int

    def begin(self) -> tuple[dict[str, Any], list[str]]:
        """Loads the network; returns what features are made by, and what is said of it."""
        keep_freed_memory()
        self._extractor, made_by, said = _extractor_of(self.args, self.checkpoint, self.expected_videos)
        return made_by, said

    def work(self, videos: Sequence[str]) -> Iterator[VideoReadError | str | None]:
        """What `_written` returns."""
        folder = _open_folder(self.args.output)
        for video in videos:  # one by one: what is written is told
            if self._extractor.whole:
                (made,) = features_of(self._extractor, [video])
            else:
                steps = _steps(self._extractor, video)
                while True:
                    try:
                        next(steps)
                    except StopIteration as end:
                        made = end.value
                        break
                    yield None
            yield _written(folder, video, made, self.args.dtype)


def _written(
    folder: FeatureFolder, video: str, made: VideoFeatures | VideoReadError, dtype: str
) -> VideoReadError | str:
    """Writes the features of a video; returns why there are none, or why they are not all, or nothing."""
    try:
        if isinstance(made, VideoReadError):
            return made
        folder.write(shown(video), _as_dtype(made, dtype, video))
        return f"cannot read all of video '{shown(video)}': {made.trouble}" if made.trouble else ""
    except VideoReadError as error:
        return error


def _write_all(
    args: argparse.Namespace,
    folder: FeatureFolder,
    videos: list[str],
    written: Callable[[list[str], Progress], Iterator[VideoReadError | str]],
) -> int:
    left = [video for video in videos if not folder.has(shown(video))]
    if len(left) < len(videos):
        print(f"{len(videos) - len(left)} of {len(videos)} videos are in {folder} already", file=sys.stderr)
    failures: list[VideoReadError] = []
    partly: list[str] = []
    try:
        with _alone(folder), Progress("computing features", len(left)) as progress:
            for result in written(left, progress):
                if isinstance(result, VideoReadError):
                    failures.append(result)
                elif result:
                    partly.append(result)
                progress.update(said="")
                progress.advance()
    finally:  # in any case what has been done
        file = folder.write_index([Row(error.path, reason=error.reason) for error in failures], parquet=args.parquet)
        print(f"features are in {folder}, listed in {file.name}", file=sys.stderr)
        say_errors([*failures, *partly], f"{folder}/{file.name}")
    return 1 if failures or partly else 0


def _alone(folder: FeatureFolder) -> contextlib.AbstractContextManager[None]:
    stored = isinstance(folder, StoredFeatures)
    return contextlib.nullcontext() if stored else writing_in(folder.folder, f".{folder.settings['format']}")


def loaded_network(checkpoint: Path | None) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a checkpoint, or pytorchvideo's, and what belongs to it."""
    return network_of_pytorchvideo() if checkpoint is None else network_of_checkpoint(checkpoint)


def make_extractor(network: nn.Module, settings: dict[str, Any], **how: Any) -> FeatureExtractor:
    """The extractor of a network and what belongs to it, `class_names` left out."""
    own = {key: value for key, value in settings.items() if key not in ("class_names", "source", "scoring")}
    extractor = FeatureExtractor(network, Predictor, **own, **how)
    extractor.predictor.source = settings["source"]
    return extractor


def features_of(
    extractor: FeatureExtractor, videos: list[str], progress: Progress | None = None
) -> Iterator[VideoFeatures | VideoReadError]:
    """All features of each video, in order; or the error why it can't be read."""
    if extractor.whole:
        results = extractor.of_whole(videos)
        with contextlib.closing(results):
            for result in results:
                yield result if isinstance(result, VideoReadError) else _joined([result], None)
        return
    for video in videos:
        with contextlib.closing(_steps(extractor, video)) as steps:
            while True:
                try:
                    end_sec = next(steps)
                except StopIteration as end:
                    made = end.value
                    break
                if progress is not None:
                    progress.update(said=f"{file_name(video)} at {end_sec:.0f} s")
        yield made


def _steps(extractor: FeatureExtractor, video: str) -> Generator[float, None, VideoFeatures | VideoReadError]:
    """The end of each window that is done; returns the features of all, or the error why it can't be read."""
    try:
        windows = []
        with FileFrames(video, extractor.predictor.views.short_side_px) as frames:
            with contextlib.closing(extractor.of_source(frames)) as found:
                for window in found:
                    windows.append(window)
                    yield window.end_sec
            return replace(_joined(windows, frames.rate), trouble=frames.trouble)
    except VideoReadError as error:
        return error


def _joined(windows: list[WindowFeatures], rate: Any) -> VideoFeatures:
    rows = [window.features.reshape(-1, window.features.shape[-1]) for window in windows]
    times = [
        np.array([[window.start_sec, window.end_sec]]) if window.step_sec is None else window.step_sec
        for window in windows
    ]
    numbers = [np.full(len(row), window.index, np.int64) for row, window in zip(rows, windows, strict=True)]
    joined, fps = np.concatenate(times), None if rate is None else float(rate)
    return VideoFeatures(torch.cat(rows).numpy(), joined[:, 0], joined[:, 1], np.concatenate(numbers), fps)


def _as_dtype(made: VideoFeatures, dtype: str, video: str) -> VideoFeatures:
    with np.errstate(over="ignore"):
        features = made.features.astype(dtype)
    if not np.isfinite(features).all():
        raise VideoReadError(
            video, f"its features go up to {np.abs(made.features).max():.3g}, too much for float16: --dtype float32"
        )
    return replace(made, features=features)


def _engine_before(folder: Path | StoredFolder, engine: str, precision: str) -> tuple[str, str] | None:
    """Engine and precision of the features in a folder, where "auto" leaves them open: a run is resumed as it began."""
    if AUTO not in (engine, precision):
        return None
    is_begun = folder.exists(SETTINGS_FILE) if isinstance(folder, StoredFolder) else (folder / SETTINGS_FILE).is_file()
    if not is_begun:
        return None
    settings = _open_folder(folder).settings
    name, computed_in = settings["engine"], settings["precision"]
    return (name, computed_in) if engine in (AUTO, name) and precision in (AUTO, computed_in) else None

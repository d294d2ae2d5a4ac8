"""Writes what a network sees in videos: `octvideo features VIDEO|FOLDER ... -o DIR [--ckpt RUN|FILE]`.

Each video gets a file of feature vectors with their times, one for each window. By default they are what the classifier
reads; --layer takes another layer. octvideo similar searches such a folder.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from rich.console import Console
from torch import nn

from octvideo._version import __version__
from octvideo.cli.allocator import keep_freed_memory
from octvideo.cli.arguments import Parser, above_zero, asked_views
from octvideo.cli.infer import check_part, find_videos, say_predictor
from octvideo.cli.tables import print_table
from octvideo.errors import UserError
from octvideo.files import digest
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
from octvideo.parts import names_of_part
from octvideo.progress import Progress
from octvideo.video import FileFrames, VideoReadError, ViewSettings

STOPPED = "stopped: the same command goes on with the videos that are left"


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "videos", nargs="*", metavar="VIDEO|FOLDER|@FILE", help="@FILE: names of videos from a text file, one in a line"
    )
    parser.shared("output", metavar="DIR", help="made here; videos whose features are in it are not done again")
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


def run(args: argparse.Namespace) -> int:
    """Writes the files; returns 0, or 1 where some video could not be read to its end (what could be is there)."""
    keep_freed_memory()
    if args.model is not None:
        raise UserError(
            f"--model {args.model}: an exported model holds no layers to take features from; give --ckpt, the run or "
            "checkpoint that it was made of"
        )
    views = asked_views(args.views, args.num_clips, args.num_crops)
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
    videos = list(dict.fromkeys(find_videos(args.videos)))
    if not videos:
        raise UserError("no video given: octvideo features VIDEO|FOLDER|@FILE ... -o DIR")
    check_part(args)
    videos = names_of_part(videos, args.part)
    console = Console(stderr=True)
    with console.status("getting the network ready"):
        network, settings = loaded_network(checkpoint)
        settings["views"] = replace(settings["views"], **views)
        asked = {"layer": args.layer, "pooled": not args.per_step, "whole": args.whole}
        asked |= {"window_sec": args.window, "stride_sec": args.stride}
        before = _engine_before(args.output, args.engine or AUTO, args.precision or AUTO)
        engine, precision = before or (args.engine or AUTO, args.precision or AUTO)
        how = {"engine": engine, "precision": precision, "device": args.device, "num_threads": args.threads}
        names = settings.pop("class_names")
        extractor = make_extractor(network, settings, **asked, **how, expected_videos=len(videos))
        del network
    if before:
        extractor.predictor.engine_reason = f"as the features in {args.output} so far"
    sha256 = "" if checkpoint is None else digest(checkpoint)
    made_by = {"weights": settings["source"], "sha256": sha256, "class_names": names, "octvideo": __version__}
    made_by |= {"engine": extractor.predictor.engine.name, "precision": extractor.predictor.engine.precision}
    made_by |= {**asked, "layer": extractor.layer, "views": settings["views"].as_dict()}
    folder = FeatureFolder.made(args.output, {**made_by, "format": args.format, "dtype": args.dtype})
    say_predictor(extractor.predictor, console)
    console.print(f"layer: {extractor.layer}", highlight=False, markup=False, soft_wrap=True)
    return _write_all(extractor, folder, videos, args.dtype, parquet=args.parquet)


def _write_all(
    extractor: FeatureExtractor, folder: FeatureFolder, videos: list[str], dtype: str, *, parquet: bool
) -> int:
    left = [video for video in videos if folder.find(video) is None]
    if len(left) < len(videos):
        print(f"{len(videos) - len(left)} of {len(videos)} videos are in {folder.folder} already", file=sys.stderr)
    failures: list[VideoReadError] = []
    partly: list[str] = []
    try:
        with Progress("computing features", len(left)) as progress:
            for video, made in zip(left, features_of(extractor, left, progress), strict=True):
                try:
                    if isinstance(made, VideoReadError):
                        raise made
                    folder.write(video, _as_dtype(made, dtype, video))
                    if made.trouble:
                        partly.append(f"cannot read all of video '{video}': {made.trouble}")
                except VideoReadError as error:
                    failures.append(error)
                progress.update(said="")
                progress.advance()
    finally:  # in any case what has been done
        file = folder.write_index([Row(error.path, reason=error.reason) for error in failures], parquet=parquet)
        print(f"features are in {folder.folder}, listed in {file.name}", file=sys.stderr)
        for failure in (*failures, *partly):
            print(f"error: {failure}", file=sys.stderr)
    return 1 if failures or partly else 0


def loaded_network(checkpoint: Path | None) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a checkpoint, or pytorchvideo's, and what belongs to it."""
    return network_of_pytorchvideo() if checkpoint is None else network_of_checkpoint(checkpoint)


def make_extractor(network: nn.Module, settings: dict[str, Any], **how: Any) -> FeatureExtractor:
    """The extractor of a network and what belongs to it, `class_names` left out."""
    own = {key: value for key, value in settings.items() if key not in ("class_names", "source")}
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
        try:
            windows = []
            with FileFrames(video, extractor.predictor.views.short_side_px) as frames:
                with contextlib.closing(extractor.of_source(frames)) as found:
                    for window in found:
                        windows.append(window)
                        if progress is not None:
                            progress.update(said=f"{Path(video).name} at {window.end_sec:.0f} s")
                yield replace(_joined(windows, frames.rate), trouble=frames.trouble)
        except VideoReadError as error:
            yield error


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


def _engine_before(folder: Path, engine: str, precision: str) -> tuple[str, str] | None:
    """Engine and precision of the features in a folder, where "auto" leaves them open: a run is resumed as it began."""
    if AUTO not in (engine, precision) or not (folder / SETTINGS_FILE).is_file():
        return None
    settings = FeatureFolder(folder).settings
    name, computed_in = settings["engine"], settings["precision"]
    return (name, computed_in) if engine in (AUTO, name) and precision in (AUTO, computed_in) else None

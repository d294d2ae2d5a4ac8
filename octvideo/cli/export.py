"""Writes a trained network for serving: `octvideo export --ckpt RUN|FILE --engine openvino -o FOLDER`.

The folder holds the model, its classes and settings, and a program that needs no octvideo (docs/serving.md). The model
is checked against eager PyTorch.
"""

from __future__ import annotations

import argparse
import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from octvideo.cli.arguments import Parser, positive
from octvideo.cli.video_arguments import find_videos
from octvideo.errors import UserError
from octvideo.evaluation.calibration import fit_temperature
from octvideo.evaluation.scores import VideoScores, find_scores
from octvideo.evaluation.scoring import Scoring
from octvideo.inference.checkpoint import find_checkpoint, network_of_checkpoint, network_of_pytorchvideo, run_folder
from octvideo.inference.choice import AUTO
from octvideo.inference.engines import engine_device, file_engines, precisions_of
from octvideo.inference.export import write_export
from octvideo.inference.predictor import typical_clips
from octvideo.inference.preparation import Normaliser
from octvideo.progress import track
from octvideo.video import ViewSettings

# Clips to choose int8 scales from; more changed the scores no further.
_CALIBRATION_CLIPS = 300
_CHECK_CLIPS = 6


def add_arguments(parser: Parser) -> None:
    parser.shared("ckpt")
    parser.add_argument("--engine", required=True, help=f"that runs the model: {', '.join(file_engines())}")
    parser.add_argument("--precision", default="f32", help=precisions_of(file_engines()))
    parser.shared("output", required=True, metavar="FOLDER", help="made here")
    calibrate = "typical videos: for int8, and to check the scores on"
    parser.add_argument("--calibrate", nargs="+", metavar="VIDEO|FOLDER|@FILE", help=calibrate)
    temperature = "of its scores: a number, or scores of videos that were not trained on, to fit it on (1)"
    parser.add_argument("--temperature", metavar="T|RUN|FILE", help=temperature)
    parser.add_argument("--views_per_call", type=positive, metavar="N", help="the batch size (by the size of views)")
    parser.shared("threads", help="CPU threads of the check (all)")
    parser.shared("device", help="auto, cpu, cuda, cuda:1, ...: aot compiles for it (auto)")
    parser.shared("overwrite", help="replace the model in FOLDER")
    parser.shared("runs_dir")


def run(args: argparse.Namespace) -> int:
    """Exports what the command line names, and says what was written; returns 0."""
    console = Console(stderr=True)
    for option, value in (("--engine", args.engine), ("--precision", args.precision)):
        if value == AUTO:
            raise UserError(f"{option} {AUTO} is for octvideo infer, which measures: a model is exported for one")
    if args.engine not in file_engines():
        raise UserError(f"--engine: got {args.engine}, expected {', '.join(file_engines())}")
    device = engine_device(args.engine, args.precision, args.device)
    if args.precision == "int8" and not args.calibrate:
        raise UserError("int8 needs typical videos to choose its scales from: --calibrate VIDEO|FOLDER ...")
    videos = list(find_videos(args.calibrate or []))
    checkpoint = None if args.ckpt is None else find_checkpoint(args.ckpt, args.runs_dir)
    network, settings = network_of_pytorchvideo() if checkpoint is None else network_of_checkpoint(checkpoint)
    console.print(f"weights: {settings['source']}", highlight=False, soft_wrap=True)
    if args.temperature is not None:
        own: Scoring = settings.get("scoring", Scoring())
        settings["scoring"] = replace(own, temperature=_temperature(args, settings))
        console.print(f"temperature: {settings['scoring'].temperature:.4g}", highlight=False)
    views: ViewSettings = settings["views"]
    normalise = Normaliser(settings["mean"], settings["std"], torch.device("cpu"))
    watch = functools.partial(track, text="reading")
    clips = typical_clips(videos, views, normalise, most=_CALIBRATION_CLIPS, watch=watch) if videos else None
    with console.status(f"exporting for {args.engine}"):
        written = write_export(
            network,
            args.output,
            engine=args.engine,
            precision=args.precision,
            device=device,
            views_per_call=args.views_per_call,
            num_threads=args.threads,
            calibration=clips,
            check_clips=None if clips is None else clips[:: max(1, len(clips) // _CHECK_CLIPS)][:_CHECK_CLIPS],
            overwrite=args.overwrite,
            say=lambda text: console.print(text, highlight=False, soft_wrap=True),
            **settings,
        )
    print(summary(written, args.output))
    return 0


def _temperature(args: argparse.Namespace, settings: dict[str, Any]) -> float:
    """The number that is given, or the one that suits scores best."""
    given: str = args.temperature
    try:
        number: float | None = float(given)
    except ValueError:
        number = None
    if number is not None:
        return number
    path = Path(given) if Path(given).exists() else run_folder(given, args.runs_dir)
    scores = VideoScores.load(find_scores(path)[0])
    if scores.class_names != list(settings["class_names"]):
        raise UserError(f"--temperature: {path} has scores of other classes than the network")
    return fit_temperature(scores)


def summary(settings: dict[str, Any], folder: Path) -> str:
    """What was written and how it compares, in lines."""
    check = settings["check"]
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    versions = ", ".join(f"{name} {version}" for name, version in settings["versions"].items())
    clips = f"{check['clips']} clip" + ("s" if check["clips"] != 1 else "")
    computed = "" if check["computed_in"] == settings["precision"] else f" (computed in {check['computed_in']} here)"
    return "\n".join(
        [
            f"{folder}: {settings['engine']} {settings['precision']}{computed}, {size / 1e6:.1f} MB, "
            f"written in {settings['write_seconds']:.1f} s, loaded in {check['load_seconds']:.2f} s",
            f"made with {versions}; {settings['input_shape'][0]} view(s) per call of "
            f"{' x '.join(map(str, settings['input_shape'][1:]))}, {check['seconds_per_view']:.3f} s per view",
            f"checked on {clips} against eager PyTorch: scores differ by {check['max_score_difference']:.2g} at most "
            f"(logits by {check['max_logit_difference']:.2g} of a range of {check['logit_range']:.2g}), "
            f"the best class is the same in {check['same_best_class']}",
            f"use: octvideo infer VIDEO --model {folder}, or python {folder / 'classify.py'} VIDEO",
        ]
    )

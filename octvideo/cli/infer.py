"""Names the actions in videos: `octvideo infer VIDEO|FOLDER ... [--ckpt RUN|FILE] [-o FILE]`.

Videos and folders in, the best classes of each out, as text, JSON, or lines of a file.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from octvideo.cli.allocator import keep_freed_memory
from octvideo.cli.arguments import Parser, asked_views, duration, positive, views
from octvideo.cli.infer_output import RESULTS, Json, ResultFile, Text, say_errors
from octvideo.cli.model_arguments import (
    as_begun,
    check_part,
    lines_of_predictor,
    model_arguments,
    part_of_results,
    predictor_of,
    say_lines,
    say_predictor,
    weights_of,
    with_engine,
)
from octvideo.cli.on_ray import ray_arguments, ray_pool
from octvideo.cli.video_arguments import find_videos, videos_of_part
from octvideo.cluster.pool import Lost
from octvideo.errors import UserError
from octvideo.files import digest
from octvideo.inference.budget import kept_in_words
from octvideo.inference.predictor import Prediction, Predictor
from octvideo.json_lines import first_line
from octvideo.progress import Progress
from octvideo.stores import StoredCopy, by_shown, is_remote
from octvideo.video import FrameFolder, VideoReadError

STOPPED = "stopped: results that go into a file (-o) are kept, and the same command goes on"


def add_arguments(parser: Parser) -> None:
    parser.stores_output = True
    parser.add_argument(
        "videos",
        nargs="+",
        metavar="VIDEO|FOLDER|@FILE",
        help="@FILE: names of videos from a text file, one in a line; a folder of images is a video, too",
    )
    parser.shared("frame_fps")
    model_arguments(parser)
    parser.shared("views", "num_clips", "num_crops")
    parser.add_argument(
        "--budget",
        type=duration,
        metavar="TIME",
        help="what a video may take, such as 200ms or 0.2s: the fastest engine, and the most views that keep it",
    )
    parser.shared("retry", "part")
    ray_arguments(parser)
    parser.add_argument("--timing", action="store_true", help="print where the time of each video went")
    parser.add_argument("--topk", type=positive, default=5, metavar="K", help="classes to print per video (5)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON, at the end")
    parser.shared(
        "output",
        group=form,
        metavar="FILE",
        help="write a line of JSON for each video when it is done; videos that are in FILE already are not done again",
    )


def run(args: argparse.Namespace) -> int:
    """Classifies the videos; returns 0, or 1 where some video could not be read (the others are done)."""
    asked = asked_views(args.views, args.num_clips, args.num_crops)
    if args.budget is not None and asked:
        raise UserError("--budget chooses the views, and --views, --num_clips or --num_crops name them: leave one out")
    if args.part is not None and args.budget is not None:
        raise UserError(f"--budget with --part {args.part}: other parts might take other views; name them with --views")
    check_part(args)
    videos = list(find_videos(args.videos, images=True))
    if args.part is not None:
        videos = videos_of_part(args, list(by_shown(videos).values()))
    if args.on is not None and args.budget is not None:
        raise UserError(f"--budget with --on {args.on}: it measures one machine; name the views with --views")
    weights = weights_of(args)
    console = Console(stderr=True)
    if args.on is not None:
        return _run_on_cluster(args, videos, weights, console)
    keep_freed_memory()  # but not that of the list's text
    with console.status("getting the network ready"):
        # Who names a time wants the fastest engine, so one is measured however few videos there are.
        expected_videos = len(set(videos)) if args.budget is None else None
        predictor = predictor_of(args, weights, RESULTS, expected_videos, 1 if args.budget else None)
        own = predictor.views
        told = _settle_views(args, asked, predictor, videos)
    made_by = {"weights": predictor.source, "engine": predictor.engine.name, "precision": predictor.engine.precision}
    # The model's own are not named, as in files of older versions.
    if predictor.views != own or (args.output is not None and views_of_results(args.output)):
        made_by["views"] = predictor.views.name
    output, videos = _output_of(args, made_by, weights, videos)
    say_predictor(predictor, console)
    if told:
        console.print(told, highlight=False, markup=False, soft_wrap=True)
    return _tell_results(
        args, output, len(videos), console, lambda _: predictor.predict_many(_opened(videos, args), topk=args.topk)
    )


def _output_of(
    args: argparse.Namespace, made_by: dict[str, Any], weights: Path | None, videos: list[str]
) -> tuple[Text | Json | ResultFile, list[str]]:
    """Where results go, and the videos that have none there yet."""
    if args.output is None:
        return Json(made_by) if args.json else Text(timing=args.timing), videos
    made_by = {**made_by, "topk": args.topk, "sha256": "" if weights is None else digest(weights)}
    made_by |= part_of_results(args.output, args.part)
    file = ResultFile(args.output, made_by)
    return file, file.left(videos, retry=args.retry)


def _tell_results(
    args: argparse.Namespace,
    output: Text | Json | ResultFile,
    total: int,
    console: Console,
    compute: Callable[[Progress], Generator[Prediction | VideoReadError, None, None]],
) -> int:
    """Gives each result to the output as it comes; returns the exit code."""
    failures: list[VideoReadError] = []
    seconds: list[float] = []
    try:
        # Results are closed in any case: Ctrl-C ends the preparing thread with them.
        with (
            Progress("classifying", total) as progress,
            contextlib.closing(compute(progress)) as results,
        ):
            for result in results:
                # On a terminal the bar makes room for what is printed.
                beside_bar = isinstance(output, Text) and sys.stdout.isatty()
                with progress.hidden() if beside_bar else contextlib.nullcontext():
                    output.add(result)
                if isinstance(result, VideoReadError):
                    failures.append(result)
                else:
                    seconds.append(result.timing.total)
                progress.advance()
    finally:  # in any case what has been done
        output.end()
        if args.budget is not None and seconds:
            console.print(kept_in_words(seconds, args.budget), highlight=False, soft_wrap=True)
        say_errors(failures, None if args.output is None else str(args.output))
    return 1 if failures or output.num_unreadable else 0


@dataclass
class InferWorker:
    """What a process of a cluster does for `octvideo infer`.

    Args:
        args: of the command.
        expected_videos: see `Predictor`.
    """

    args: argparse.Namespace
    expected_videos: int

    def begin(self) -> dict[str, Any]:
        """Loads the network; returns what results are made by, and what is said of it."""
        keep_freed_memory()
        self._predictor = predictor_of(self.args, weights_of(self.args), RESULTS, self.expected_videos)
        own = self._predictor.views
        asked = asked_views(self.args.views, self.args.num_clips, self.args.num_crops)
        self._predictor.use_views(replace(own, **asked))
        engine = self._predictor.engine
        made_by = {"weights": self._predictor.source, "engine": engine.name, "precision": engine.precision}
        views = self._predictor.views
        said = [*lines_of_predictor(self._predictor), *([f"views: {views.name}"] if asked else [])]
        return {"made_by": made_by, "views": views.name, "has_own_views": views == own, "said": said}

    def work(self, videos: Sequence[str]) -> Iterator[Prediction | VideoReadError]:
        """A prediction for each video, or the error why there is none."""
        opened = _opened(videos, self.args)
        with contextlib.closing(self._predictor.predict_many(opened, topk=self.args.topk)) as results:
            yield from results


def _run_on_cluster(args: argparse.Namespace, videos: list[str], weights: Path | None, console: Console) -> int:
    """`run` with the network in processes of a cluster; results come in the order in which they are done."""
    videos = list(by_shown(videos).values())
    its = as_begun(args, RESULTS)
    with ray_pool(args, InferWorker(its, len(videos)), batch=32) as pool:
        with console.status("getting the network ready on the cluster"):
            about = pool.begin()
        # All others take what the first has chosen.
        pool.worker = InferWorker(with_engine(its, about["made_by"]), len(videos))
        made_by = dict(about["made_by"])
        if not about["has_own_views"] or (args.output is not None and views_of_results(args.output)):
            made_by["views"] = about["views"]
        output, videos = _output_of(args, made_by, weights, videos)
        say_lines(about["said"], console)

        def compute(progress: Progress) -> Generator[Prediction | VideoReadError, None, None]:
            pool.tell = progress.print
            for video, result in pool.run(videos, len(videos)):
                progress.update(said=pool.state)
                yield VideoReadError(video, result.reason) if isinstance(result, Lost) else result

        return _tell_results(args, output, len(videos), console, compute)


def _settle_views(args: argparse.Namespace, asked: dict[str, Any], predictor: Predictor, videos: Sequence[str]) -> str:
    """Gives the predictor the views that are asked for, or those that a budget allows; returns what to tell of them.

    Results in one file are of the same views, so a budget chooses none where some are there.
    """
    if args.budget is None:
        if asked:
            predictor.use_views(replace(predictor.views, **asked))
        return f"views: {predictor.views.name}" if asked else ""
    before = None if args.output is None else views_of_results(args.output)
    if before is not None:
        predictor.use_views(replace(predictor.views, **before))
        return f"views: {predictor.views.name} (as the results in {args.output} so far)"
    if not videos:
        return ""
    try:
        return str(predictor.choose_views(args.budget, _opened(videos, args)))
    except VideoReadError:  # there is none to measure on, and each is told of when its turn comes
        return ""


def views_of_results(file: Path | StoredCopy) -> dict[str, Any] | None:
    """The views of the results in a file, as fields of `ViewSettings`, none for the model's own; None where there are
    no such results."""
    made_by = first_line(file) or {}
    if made_by.get("results") != RESULTS:
        return None
    try:
        return asked_views(views(str(made_by["views"])), None, None) if "views" in made_by else {}
    except argparse.ArgumentTypeError:
        return None


def _opened(videos: Sequence[str], args: argparse.Namespace) -> list[str | FrameFolder]:
    """The same, folders of images as what they hold."""
    return [
        FrameFolder.found(video, args.frame_fps) if not is_remote(video) and os.path.isdir(video) else video  # noqa: PTH112
        for video in videos
    ]

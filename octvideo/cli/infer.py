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
from octvideo.cli.infer_output import RESULTS, Json, ResultFile, Text
from octvideo.cli.on_ray import ray_arguments, ray_pool
from octvideo.cluster.pool import Lost
from octvideo.errors import UserError
from octvideo.files import VIDEO_SUFFIXES, digest, text_lines, walk_videos
from octvideo.inference.budget import kept_in_words
from octvideo.inference.checkpoint import find_checkpoint
from octvideo.inference.choice import AUTO
from octvideo.inference.device import precision_in_words
from octvideo.inference.engines import ENGINES, precisions_of
from octvideo.inference.predictor import Prediction, Predictor
from octvideo.json_lines import first_line
from octvideo.parts import Part, names_of_part
from octvideo.progress import Progress
from octvideo.stores import StoredCopy, by_shown, check_stores, file_name, is_remote, read_text, shown, videos_at
from octvideo.video import FrameFolder, VideoReadError
from octvideo.video.image_frames import IMAGE_SUFFIXES, folders_of_images

STOPPED = "stopped: results that go into a file (-o) are kept, and the same command goes on"
_ERRORS = 5  # that are printed of those that a file has


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


def model_arguments(parser: Parser) -> None:
    """The network, the engine that runs it, and where."""
    parser.shared("ckpt")
    parser.add_argument("--model", metavar="FOLDER", help="a model that octvideo export wrote, in place of --ckpt")
    parser.add_argument("--engine", help=f"{AUTO}: the fastest here; {', '.join(ENGINES)} ({AUTO})")
    parser.add_argument("--precision", help=f"{AUTO}, {precisions_of(ENGINES)}; int8 needs --calibrate ({AUTO})")
    parser.add_argument(
        "--calibrate",
        nargs="+",
        metavar="VIDEO|FOLDER|@FILE",
        help="typical videos, from which int8 chooses its scales",
    )
    parser.shared("device", "threads", "runs_dir")


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


def as_begun(args: argparse.Namespace, results: str) -> argparse.Namespace:
    """The arguments for processes of a cluster: a run is resumed with the engine that began it."""
    before = None
    if args.model is None and args.output is not None:
        before = engine_of_results(args.output, args.engine or AUTO, args.precision or AUTO, results)
    engine, precision = before or (args.engine, args.precision)
    begun_in = str(args.output) if before else None
    changed = {"engine": engine, "precision": precision, "output": None, "begun_in": begun_in}
    return argparse.Namespace(**{**vars(args), **changed})


def with_engine(args: argparse.Namespace, made_by: dict[str, Any]) -> argparse.Namespace:
    """The arguments with the engine that a process has chosen; an exported model has its own."""
    if args.model is not None or args.precision == "int8":
        return args
    return argparse.Namespace(**{**vars(args), "engine": made_by["engine"], "precision": made_by["precision"]})


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


def check_part(args: argparse.Namespace) -> None:
    """Results of all parts must be of one engine to be joined.

    Raises:
        UserError: each part would choose its own.
    """
    if args.part is not None and getattr(args, "model", None) is None and not (args.engine and args.precision):
        raise UserError(
            f"--part {args.part} without --engine and --precision: parts that choose for themselves may choose "
            "differently, and can't be joined; name both, such as --engine eager --precision f32"
        )


def videos_of_part(args: argparse.Namespace, videos: list[str]) -> list[str]:
    """The videos of `--part`, or all; says how many these are."""
    if args.part is None:
        return videos
    found = names_of_part(videos, args.part)
    print(f"part {args.part}: {len(found):,} of {len(videos):,} videos", file=sys.stderr)
    return found


def part_of_results(file: Path | StoredCopy, part: Part | None) -> dict[str, Any]:
    """What the first line of a file of results says of a part; nothing where there is none, as in older files."""
    if part is None and not (first_line(file) or {}).get("part"):
        return {}
    return {"part": None if part is None else str(part)}


def _opened(videos: Sequence[str], args: argparse.Namespace) -> list[str | FrameFolder]:
    """The same, folders of images as what they hold."""
    return [
        FrameFolder.found(video, args.frame_fps) if not is_remote(video) and os.path.isdir(video) else video  # noqa: PTH112
        for video in videos
    ]


def find_videos(names: Sequence[str], *, images: bool = False, are_here: bool = True) -> Iterator[str]:
    """Files and addresses as given, the videos under folders in natural order, and for @FILE the names in its lines.

    With `images` a folder that holds no video, but images, is one, and so are those under it.

    Of many names in a file one that is not there is left to the reader, whose error stops nothing.

    Args:
        names: of them.
        images: see above.
        are_here: of the names in a file one at least must be there.

    Raises:
        UserError: something is none of these, or a folder holds no video.
    """
    for name in names:
        path = Path(name)
        if is_remote(name):
            _check_is_video(file_name(name), shown(name))
            yield from videos_at(name)
        elif name.startswith("@") and (is_remote(name[1:]) or not path.exists()):
            listed = [line for line in text_lines(read_text(name[1:], names=True)) if line.strip()]
            check_stores(listed)
            if are_here and listed and not any(is_remote(line) or os.path.exists(line) for line in listed):  # noqa: PTH110
                raise UserError(
                    f"{shown(name[1:])}: none of its {len(listed):,} names is there, such as {listed[0]}; they count "
                    f"from the folder where the command runs, {Path.cwd()}"
                )
            yield from listed
        elif path.is_dir():
            inside = [os.path.join(path, video) for video in walk_videos(path)]  # noqa: PTH118
            inside = inside or list(folders_of_images(path) if images else ())
            if not inside:
                wanted = sorted(VIDEO_SUFFIXES | (IMAGE_SUFFIXES if images else frozenset()))
                raise UserError(f"no video in folder {path} (looked for {', '.join(wanted)})")
            yield from inside
        else:
            _check_is_video(path.name, name)
            if not path.exists():
                raise UserError(f"no file or folder {path}")
            yield name


def _check_is_video(name: str, given: str) -> None:
    if name.lower().endswith(".txt"):  # which FFmpeg takes for a film of letters
        raise UserError(f"{given} is no video: give @{given} for the names in it")


def say_predictor(predictor: Predictor, console: Console) -> None:
    """Prints what computes."""
    say_lines(lines_of_predictor(predictor), console)


def say_lines(lines: Sequence[str], console: Console) -> None:
    """Prints lines as they are."""
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def say_errors(errors: Sequence[object], file: str | None) -> None:
    """Prints why videos can't be read.

    Args:
        errors: all there are.
        file: that has them, too, so that a few will do.
    """
    shown_errors = errors if file is None else errors[:_ERRORS]
    for error in shown_errors:
        print(f"error: {error}", file=sys.stderr)
    if more := len(errors) - len(shown_errors):
        print(f"error: {more:,} more can't be read; {file} says why", file=sys.stderr)


def lines_of_predictor(predictor: Predictor) -> list[str]:
    """What computes: weights, and the engine with the reason for it."""
    precision = precision_in_words(predictor.engine.precision, predictor.device)
    reason = f" ({predictor.engine_reason})" if predictor.engine_reason else ""
    return [f"weights: {predictor.source}", f"engine: {predictor.engine.name}, {precision}{reason}"]


def weights_of(args: argparse.Namespace) -> Path | None:
    """The checkpoint, or the folder of an exported model; None for pytorchvideo's weights."""
    if args.model is not None:
        return Path(args.model)
    return None if args.ckpt is None else find_checkpoint(args.ckpt, args.runs_dir)


def predictor_of(
    args: argparse.Namespace,
    weights: Path | None,
    results: str,
    expected_videos: int | None = None,
    views_per_chunk: int | None = None,
) -> Predictor:
    """The predictor that `model_arguments` ask for.

    Args:
        args: with `output`, a file of results that may be there already.
        weights: see `weights_of`.
        results: the kind of that file.
        expected_videos, views_per_chunk: see `Predictor`.

    Raises:
        UserError: options that can't be together, or what `Predictor` refuses.
    """
    if args.model is not None:
        for option, value in (("--ckpt", args.ckpt), ("--engine", args.engine), ("--precision", args.precision)):
            if value is not None:
                raise UserError(f"{option} {value} with --model: an exported model has its own; leave one of them out")
        return Predictor.from_export(args.model, device=args.device, num_threads=args.threads)
    if args.precision == "int8" and not args.calibrate:
        raise UserError(
            "int8 needs typical videos to choose its scales from: --calibrate VIDEO|FOLDER ...; or export once with "
            "octvideo export --precision int8 --calibrate VIDEO|FOLDER ..., and infer with --model FOLDER"
        )
    if args.calibrate and args.precision != "int8":
        raise UserError("--calibrate is for --precision int8")
    engine, precision = args.engine or AUTO, args.precision or AUTO
    before = None if args.output is None else engine_of_results(args.output, engine, precision, results)
    engine, precision = before or (engine, precision)
    how: dict[str, Any] = {"engine": engine, "precision": precision, "expected_videos": expected_videos}
    how |= {"views_per_chunk": views_per_chunk, "device": args.device}
    how |= {"num_threads": args.threads, "calibrate": list(find_videos(args.calibrate or []))}
    predictor = Predictor.from_pytorchvideo(**how) if weights is None else Predictor.from_checkpoint(weights, **how)
    if begun_in := str(args.output) if before else getattr(args, "begun_in", None):
        predictor.engine_reason = f"as the results in {begun_in} so far"
    return predictor


def engine_of_results(
    file: Path | StoredCopy, engine: str, precision: str, results: str = RESULTS
) -> tuple[str, str] | None:
    """Engine and precision of the results in a file, where "auto" leaves them open: a run is resumed as it began.

    Args:
        file: that results go into.
        engine, precision: as they are asked for.
        results: the kind of the file.

    Returns:
        None where there are no such results, or what is given differs from them (then `ResultFile` refuses the file).
    """
    made_by = first_line(file) or {}
    if AUTO not in (engine, precision) or made_by.get("results") != results:
        return None
    name, computed_in = str(made_by.get("engine")), str(made_by.get("precision"))
    if name not in ENGINES or computed_in not in ENGINES[name].precisions or computed_in == "int8":
        return None
    return (name, computed_in) if engine in (AUTO, name) and precision in (AUTO, computed_in) else None

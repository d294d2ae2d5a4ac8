"""Says what happens when in videos of any length: `octvideo timeline VIDEO|FOLDER ... [--ckpt RUN|FILE] [-o FILE]`.

In place of VIDEO there may be an address (rtsp://, http://) or `camera`.

A video is scored window by window, each as `octvideo test` scores a video of just these frames. Segments are where the
score of a class reaches --threshold and stays above --leave. Scores below 0.005 of classes that are not among the best
count as 0.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from octvideo.class_names import ClassIndex
from octvideo.cli.allocator import keep_freed_memory
from octvideo.cli.arguments import (
    Parser,
    above_zero,
    asked_views,
    local_name,
    positive,
    share,
    zero_or_more,
)
from octvideo.cli.infer_output import say_errors
from octvideo.cli.live import address_frames, live_arguments, live_source, score_live
from octvideo.cli.model_arguments import (
    as_begun,
    check_part,
    lines_of_predictor,
    model_arguments,
    part_of_results,
    predictor_of,
    say_lines,
    weights_of,
    with_engine,
)
from octvideo.cli.on_ray import ray_arguments, ray_pool
from octvideo.cli.segment_file import SegmentFile
from octvideo.cli.timeline_page import TimelinePages
from octvideo.cli.timeline_scores import RESULTS, End, Scores
from octvideo.cli.timeline_shown import check_shown, show
from octvideo.cli.video_arguments import find_videos, videos_of_part
from octvideo.cluster.pool import Lost
from octvideo.errors import UserError
from octvideo.files import digest, read_text, text_lines
from octvideo.inference.predictor import Predictor
from octvideo.inference.segments import Segment, SegmentSettings
from octvideo.inference.timeline import Timeline, WindowScores
from octvideo.progress import Progress
from octvideo.stores import StoredCopy, by_shown, file_name, is_remote, shown
from octvideo.video import FileFrames, FrameFolder, VideoReadError
from octvideo.video.addresses import has_no_end, is_address
from octvideo.video.image_source import FolderFrames

STOPPED = "stopped: scores that go into a file (-o) are kept, and the same command goes on"


def add_arguments(parser: Parser) -> None:
    parser.stores_output = True
    parser.add_argument(
        "videos", nargs="+", metavar="VIDEO|FOLDER|@FILE", help="@FILE: names of videos from a text file, one in a line"
    )
    model_arguments(parser)
    parser.shared("frame_fps")
    add = parser.add_argument
    add("--window", type=above_zero, metavar="S", help="seconds of a window (those of the network's clip)")
    add("--stride", type=above_zero, metavar="S", help="seconds from one window to the next (half of a window)")
    parser.shared("views")
    parser.shared("num_clips", help="clips of a window (as octvideo test)")
    parser.shared("num_crops", help="crops of a clip (as octvideo test)")
    add("--topk", type=positive, default=5, metavar="K", help="classes to write per window, at least (5)")
    add("--classes", nargs="+", metavar="CLASS|@FILE", help="look for these alone; @FILE: one in a line")
    add(
        "--threshold",
        nargs="+",
        default=["0.5"],
        metavar="P|CLASS=P",
        help="score that a segment reaches; of a class (0.5)",
    )
    add("--leave", type=share, metavar="P", help="score at which a segment ends (0.6 of the threshold)")
    add("--smooth", type=zero_or_more, default=0.0, metavar="S", help="average scores over so many seconds (0)")
    add("--shortest", type=zero_or_more, default=0.0, metavar="S", help="leave out shorter segments (0)")
    add("--gap", type=zero_or_more, default=0.0, metavar="S", help="join segments of a class with a shorter gap (0)")
    add("--only_best", action="store_true", help="each moment belongs to its best class alone")
    add(
        "--segments",
        nargs="+",
        default=[],
        type=local_name,
        metavar="FILE|FOLDER",
        help="write segments: .json, .csv, and of one video .srt, .vtt; in a folder each video gets all of them",
    )
    add("--picture", type=Path, metavar="FILE", help="draw scores and segments of one video over time: .png or .svg")
    add(
        "--overlay",
        type=Path,
        metavar="FILE",
        help="write one video anew with captions in its frames, its sound copied: .mp4, .mov or .mkv, in H.264",
    )
    add(
        "--page",
        type=Path,
        metavar="DIR",
        help="write a page for a browser: each video beside its timeline; those that no browser plays are encoded anew",
    )
    parser.shared(
        "output",
        metavar="FILE",
        help="write a line of JSON for each window when it is done; windows that are in FILE are not computed again",
    )
    parser.shared("retry", "part")
    ray_arguments(parser)
    live_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Scores the videos; returns 0, or 1 where some video could not be read to its end (what could be is there)."""
    keep_freed_memory()
    asked_views(args.views, args.num_clips, args.num_crops)  # refuses both ways at once
    check_part(args)
    if args.on is not None and (first := next(filter(has_no_end, args.videos), None)) is not None:
        raise UserError(f"{shown(first)} with --on {args.on}: a stream is for one machine")
    names = by_shown(videos_of_part(args, list(by_shown(_find(args.videos)).values())))
    videos = list(names)
    live = live_source(args, list(names.values()))
    if args.on is not None and live is not None:
        raise UserError(f"{shown(live)} with --on {args.on}: a stream is for one machine")
    addresses = [video for video in videos if is_remote(video) or is_address(video)]
    files = [SegmentFile(Path(name), len(videos)) for name in args.segments]
    if args.overlay is not None and addresses:
        raise UserError(f"--overlay {args.overlay}: of files on this machine alone, got {addresses[0]}")
    if live is not None and isinstance(args.output, StoredCopy):
        raise UserError(f"--output {args.output}: of a stream it is a file on this machine")
    if live is not None and args.picture is not None:
        raise UserError(f"--picture {args.picture}: a stream has no end; draw one of a file")
    if args.page is not None and (live is not None or addresses):
        raise UserError(f"--page {args.page}: of files on this machine alone, got {addresses[0]}")
    _check_folders(args, videos)
    check_shown(args.picture, args.overlay, videos)
    weights = weights_of(args)
    console = Console(stderr=True)
    if args.on is None:
        with console.status("getting the network ready"):
            predictor, timeline = timeline_of(args)
        facts = facts_of(predictor, timeline)
        if live is not None:
            names, settings = facts["class_names"], _segment_settings(args, facts["class_names"])
            say_lines(facts["said"], console)
            return score_live(args, live, timeline, names, settings, _made_by(args, weights, facts), files)

        def score_here(scores: Scores, progress: Progress) -> Generator[str, None, None]:
            for number, path in enumerate(videos, 1):
                progress.begin(f"scoring {number} of {len(videos)}: {file_name(path)}, seconds")
                _score(timeline, path, scores, progress, functools.partial(_frames, args, names[path], timeline))
                yield path

        return _write(args, videos, files, _made_by(args, weights, facts), facts, console, score_here)
    its = as_begun(args, RESULTS)
    with ray_pool(args, TimelineWorker(its), batch=4) as pool:
        with console.status("getting the network ready on the cluster"):
            facts = pool.begin()
        pool.worker = TimelineWorker(with_engine(its, facts))

        def score_there(scores: Scores, progress: Progress) -> Generator[str, None, None]:
            pool.tell = progress.print
            progress.begin("scoring", len(videos))
            left = {path: (names[path], scores.begun(path)) for path in videos if not scores.is_done(path)}
            for path in videos:
                if path not in left:
                    progress.advance()
                    yield path
            for (name, _), result in pool.run(iter(left.values()), len(left)):
                path = shown(name)
                windows, end = (
                    ([], End([], f"cannot read video '{path}': {result.reason}"))
                    if isinstance(result, Lost)
                    else result
                )
                for window in windows:
                    scores.add(path, *window)
                scores.finish(path, end)
                progress.update(said=pool.state)
                progress.advance()
                yield path

        return _write(args, videos, files, _made_by(args, weights, facts), facts, console, score_there)


def timeline_of(args: argparse.Namespace) -> tuple[Predictor, Timeline]:
    """What scores windows, as the arguments ask for it."""
    predictor = predictor_of(args, weights_of(args), RESULTS)
    views = replace(predictor.views, **asked_views(args.views, args.num_clips, args.num_crops))
    return predictor, Timeline(predictor, args.window, args.stride, views=views)


def facts_of(predictor: Predictor, timeline: Timeline) -> dict[str, Any]:
    """What is to know of them."""
    facts = {"weights": predictor.source, "engine": predictor.engine.name, "precision": predictor.engine.precision}
    about = {"views": timeline.views.as_dict(), "class_names": predictor.class_names}
    return {**facts, **about, "said": lines_of_predictor(predictor)}


def _made_by(args: argparse.Namespace, weights: Path | None, facts: dict[str, Any]) -> dict[str, Any]:
    """The first line of the output; nothing where there is none."""
    if args.output is None:
        return {}
    made_by = {key: facts[key] for key in ("weights", "engine", "precision")}
    made_by |= {"sha256": "" if weights is None else digest(weights), "window": args.window, "stride": args.stride}
    made_by |= {"views": facts["views"], "topk": args.topk, "classes": args.classes}
    if args.frame_fps is not None:
        made_by["frame_fps"] = args.frame_fps
    return made_by | part_of_results(args.output, args.part)


def _write(
    args: argparse.Namespace,
    videos: list[str],
    files: list[SegmentFile],
    made_by: dict[str, Any],
    facts: dict[str, Any],
    console: Console,
    score: Callable[[Scores, Progress], Generator[str, None, None]],
) -> int:
    """Writes and prints what is asked for of each video when it is scored; returns the exit code."""
    names = facts["class_names"]
    settings = _segment_settings(args, names)
    scores = Scores(names, args.topk, settings.classes)
    if args.output is not None:
        scores.go_on_with(args.output, made_by, retry=args.retry)
    say_lines(facts["said"], console)
    pages = None if args.page is None else TimelinePages(args.page, videos, names, settings.classes)
    found: dict[str, list[Segment]] = {}
    any_shown = False
    try:
        with Progress("scoring") as progress, contextlib.closing(score(scores, progress)) as scored:
            for path in scored:
                with progress.hidden() if sys.stdout.isatty() else contextlib.nullcontext():
                    found[path] = scores.segments(path, settings)
                    if scores.videos[path].starts:  # else the error at the end says all
                        none = "" if found[path] else f"no segments: the highest score is {scores.highest(path)}"
                        _print_segments(path, found[path], names, "\n" if any_shown else "", none)
                        any_shown = True
                for file in files:
                    file.add(path, found[path], names)
                if pages is not None:
                    with progress.hidden():
                        pages.add(path, scores.videos[path], found[path], scores.videos[path].trouble)
    finally:  # in any case what has been done
        scores.close()
        found = {path: found[path] for path in videos if path in found}  # a cluster has an order of its own
        for file in files:
            file.write(found, names)
        if pages is not None:
            pages.close()
    if videos and (video := scores.videos[videos[0]]).starts:
        show(args.picture, args.overlay, videos[0], video, found[videos[0]], names, settings.classes)
    troubles = [trouble for path in videos if (trouble := scores.videos[path].trouble)]
    say_errors(troubles, None if args.output is None else str(args.output))
    return 1 if troubles else 0


def _find(names: Sequence[str]) -> Iterator[str]:
    for name in names:
        # Behind http:// there may be a stream. What ends with a slash is a folder.
        is_one = is_address(name) and not (name.lower().startswith("http") and name.endswith("/"))
        yield from [name] if is_one else find_videos([name], images=True)


def _check_folders(args: argparse.Namespace, videos: Sequence[str]) -> None:
    """Raises what can't be done of folders of images.

    Raises:
        UserError: their rate is not given, or something is wanted that needs a file.
    """
    folder = next((video for video in videos if not is_remote(video) and Path(video).is_dir()), None)
    if folder is None:
        return
    if args.frame_fps is None:
        raise UserError(f"{folder} is a folder of images, which have no times: give --frame_fps, frames per second")
    for option, value in (("--overlay", args.overlay), ("--page", args.page)):
        if value is not None:
            raise UserError(f"{option} {value}: of video files alone, got the folder of images {folder}")


def _frames(args: argparse.Namespace, name: str, timeline: Timeline) -> FileFrames | FolderFrames:
    short_side_px = timeline.views.short_side_px
    if is_address(name):
        return address_frames(args, name, short_side_px)
    if not is_remote(name) and Path(name).is_dir():
        return FolderFrames(FrameFolder.found(name, args.frame_fps), short_side_px)
    return FileFrames(name, short_side_px)


def _score(
    timeline: Timeline,
    path: str,
    scores: Scores,
    progress: Progress,
    frames_of: Callable[[], FileFrames | FolderFrames],
) -> None:
    """Scores what is left of a video."""
    if scores.is_done(path):
        return

    def lasts(seconds: float | None) -> None:
        if seconds:
            progress.update(total=max(int(seconds), 1))

    windows = _windows(timeline, path, scores.begun(path), frames_of, lasts)
    with contextlib.closing(windows):
        while True:
            try:
                window = next(windows)
            except StopIteration as end:
                scores.finish(path, end.value)
                return
            scores.add(path, *scores.as_written(window))
            progress.update(int(window.end_sec))


def _windows(
    timeline: Timeline,
    path: str,
    skip: int,
    frames_of: Callable[[], FileFrames | FolderFrames],
    lasts: Callable[[float | None], None] = lambda seconds: None,
) -> Generator[WindowScores, None, End]:
    """The windows of a video after the first so many; returns how it ends."""
    cuts: list[float] = []
    try:
        with frames_of() as frames:
            lasts(frames.duration_sec)
            windows = timeline.of_source(frames, skip=skip)
            try:
                with contextlib.closing(windows):
                    yield from windows
            finally:
                cuts = [round(cut, 6) for cut in frames.cuts_sec]
        return End(cuts, f"cannot read all of video '{path}': {frames.trouble}" if frames.trouble else "")
    except VideoReadError as error:
        return End(cuts, str(error), may_pass=error.may_pass or is_address(path))


@dataclass
class TimelineWorker:
    """What a process of a cluster does for `octvideo timeline`.

    Args:
        args: of the command.
    """

    args: argparse.Namespace

    def begin(self) -> dict[str, Any]:
        """Loads the network; returns what is to know of it."""
        keep_freed_memory()
        predictor, self._timeline = timeline_of(self.args)
        facts = facts_of(predictor, self._timeline)
        names = facts["class_names"]
        self._scores = Scores(names, self.args.topk, _segment_settings(self.args, names).classes)
        return facts

    def work(self, items: Sequence[tuple[str, int]]) -> Iterator[tuple[list[Any], End] | None]:
        """Of each video its windows after the first so many, and how it ends."""
        for name, skip in items:
            kept: list[Any] = []
            frames_of = functools.partial(_frames, self.args, name, self._timeline)
            windows = _windows(self._timeline, shown(name), skip, frames_of)
            while True:
                try:
                    kept.append(self._scores.as_written(next(windows)))
                except StopIteration as end:
                    yield kept, end.value
                    break
                yield None


def _print_segments(path: str, segments: Sequence[Segment], names: Sequence[str], before: str, none: str) -> None:
    lines = [before + path]
    for one in segments:
        times = f"{_clock(one.start_sec)} - {_clock(one.end_sec)}"
        lines.append(f"  {times}  {100 * one.score:5.1f} %  {names[one.class_index]}")
    print("\n".join(lines if segments else [*lines, f"  {none}"]), flush=True)


def _clock(seconds: float) -> str:
    """0:01:02.5, of 62.5 seconds."""
    tenths = round(seconds * 10)
    return f"{tenths // 36000}:{tenths // 600 % 60:02}:{tenths // 10 % 60:02}.{tenths % 10}"


def _segment_settings(args: argparse.Namespace, names: Sequence[str]) -> SegmentSettings:
    index = ClassIndex(names)
    enter, enter_of = 0.5, {}
    for word in args.threshold:
        name, equals, value = word.rpartition("=")
        try:
            threshold = share(value)
        except argparse.ArgumentTypeError as error:
            raise UserError(f"--threshold {word}: {error}") from error
        if equals:
            enter_of[index.need(name, "--threshold")] = threshold
        else:
            enter = threshold
    wanted: list[str] = []
    for name in args.classes or []:
        is_list = name.startswith("@") and index.find(name) is None
        wanted += filter(None, text_lines(read_text(name[1:]))) if is_list else [name]
    classes = [index.need(name, "--classes") for name in wanted] or None
    times = {"smooth_sec": args.smooth, "min_sec": args.shortest, "join_sec": args.gap}
    return SegmentSettings(enter, args.leave, enter_of, classes, **times, only_best=args.only_best)

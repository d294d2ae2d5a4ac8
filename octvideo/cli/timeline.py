"""Says what happens when in videos of any length: `octvideo timeline VIDEO|FOLDER ... [--ckpt RUN|FILE] [-o FILE]`.

In place of VIDEO there may be an address (rtsp://, http://) or `camera`.

A video is scored window by window, each as `octvideo test` scores a video of just these frames. Segments are where the
score of a class reaches --threshold and stays above --leave. Scores below 0.005 of classes that are not among the best
count as 0.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from octvideo.class_names import ClassIndex
from octvideo.cli.allocator import keep_freed_memory
from octvideo.cli.arguments import Parser, above_zero, asked_views, positive, share, zero_or_more
from octvideo.cli.infer import (
    check_part,
    find_videos,
    model_arguments,
    part_of_results,
    predictor_of,
    say_predictor,
    weights_of,
)
from octvideo.cli.live import address_frames, live_arguments, live_source, score_live
from octvideo.cli.segment_file import SegmentFile
from octvideo.cli.timeline_page import TimelinePages
from octvideo.cli.timeline_shown import check_shown, show
from octvideo.errors import UserError
from octvideo.files import digest, read_text, text_lines
from octvideo.inference.segments import Segment, SegmentSettings, segments_of_top
from octvideo.inference.timeline import Timeline, WindowScores
from octvideo.inference.window_lines import TopClasses
from octvideo.json_lines import JsonLines, Words
from octvideo.parts import names_of_part
from octvideo.progress import Progress
from octvideo.video import FileFrames, VideoReadError
from octvideo.video.addresses import is_address, shown

STOPPED = "stopped: the same command goes on where scores go into a file (-o)"
_RESULTS = "octvideo timeline 1"
_WORDS = Words("file of window scores", "another model, or of other settings", "name another file")


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "videos", nargs="+", metavar="VIDEO|FOLDER|@FILE", help="@FILE: names of videos from a text file, one in a line"
    )
    model_arguments(parser)
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
    parser.shared("part")
    live_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Scores the videos; returns 0, or 1 where some video could not be read to its end (what could be is there)."""
    keep_freed_memory()
    views = asked_views(args.views, args.num_clips, args.num_crops)
    check_part(args)
    found_videos = names_of_part(list(dict.fromkeys(_find(args.videos))), args.part)
    live = live_source(args, found_videos)
    addresses = {shown(name): name for name in found_videos if is_address(name)}
    videos = list(dict.fromkeys(map(shown, found_videos)))
    files = [SegmentFile(Path(name), len(videos)) for name in args.segments]
    if args.overlay is not None and addresses:
        raise UserError(f"--overlay {args.overlay}: of files on this machine alone, got {next(iter(addresses))}")
    if live is not None and args.picture is not None:
        raise UserError(f"--picture {args.picture}: a stream has no end; draw one of a file")
    if args.page is not None and (live is not None or addresses):
        raise UserError(f"--page {args.page}: of files on this machine alone, got {next(iter(addresses))}")
    check_shown(args.picture, args.overlay, videos)
    weights = weights_of(args)
    console = Console(stderr=True)
    with console.status("getting the network ready"):
        predictor = predictor_of(args, weights, _RESULTS)
        timeline = Timeline(predictor, args.window, args.stride, views=replace(predictor.views, **views))
    names = predictor.class_names
    settings = _segment_settings(args, names)
    scores: _Scores = _Scores(names, args.topk, settings.classes)
    made_by: dict[str, Any] = {}
    if args.output is not None:
        engine = {"engine": predictor.engine.name, "precision": predictor.engine.precision}
        made_by = {"weights": predictor.source, **engine, "sha256": "" if weights is None else digest(weights)}
        made_by |= {"window": args.window, "stride": args.stride, "views": timeline.views.as_dict()}
        made_by |= {"topk": args.topk, "classes": args.classes, **part_of_results(args.output, args.part)}
    if live is not None:
        say_predictor(predictor, console)
        return score_live(args, live, timeline, names, settings, made_by, files)
    if args.output is not None:
        scores.go_on_with(args.output, made_by)
    say_predictor(predictor, console)
    pages = None if args.page is None else TimelinePages(args.page, videos, names, settings.classes)
    found: dict[str, list[Segment]] = {}
    any_shown = False
    try:
        with Progress("scoring") as progress:
            for number, path in enumerate(videos, 1):
                progress.begin(f"scoring {number} of {len(videos)}: {Path(path).name}, seconds")
                _score(timeline, path, scores, progress, lambda path: _frames(args, path, addresses, timeline))
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
        for file in files:
            file.write(found, names)
        if pages is not None:
            pages.close()
    if videos and (video := scores.videos[videos[0]]).starts:
        show(args.picture, args.overlay, videos[0], video, found[videos[0]], names, settings.classes)
    troubles = [trouble for path in videos if (trouble := scores.videos[path].trouble)]
    for trouble in troubles:
        print(f"error: {trouble}", file=sys.stderr)
    return 1 if troubles else 0


def _find(names: Sequence[str]) -> Iterator[str]:
    for name in names:
        yield from [name] if is_address(name) else find_videos([name])


def _frames(args: argparse.Namespace, path: str, addresses: Mapping[str, str], timeline: Timeline) -> FileFrames:
    if path in addresses:
        return address_frames(args, addresses[path], timeline.views.short_side_px)
    return FileFrames(path, timeline.views.short_side_px)


def _score(
    timeline: Timeline, path: str, scores: _Scores, progress: Progress, frames_of: Callable[[str], FileFrames]
) -> None:
    """Scores what is left of a video."""
    video = scores.videos.setdefault(path, _Video())
    if video.is_done:
        return
    try:
        with frames_of(path) as frames:
            if frames.duration_sec:
                progress.update(total=max(int(frames.duration_sec), 1))
            windows = timeline.of_source(frames, skip=len(video.starts))
            try:
                with contextlib.closing(windows):
                    for window in windows:
                        scores.add(path, window)
                        progress.update(int(window.end_sec))
            finally:
                video.cuts = [round(cut, 6) for cut in frames.cuts_sec]
        trouble = f"cannot read all of video '{path}': {frames.trouble}" if frames.trouble else ""
    except VideoReadError as error:
        trouble = str(error)
    scores.finish(path, trouble)


@dataclass
class _Video:
    """What is known of a video.

    Args:
        starts, ends: of its windows, in seconds.
        scores: of each window, by class; others are 0.
        is_done: there is no more to come.
        trouble: why not all of it could be read.
        cuts: where shots begin, in seconds.
    """

    starts: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    scores: list[dict[int, float]] = field(default_factory=list)
    is_done: bool = False
    trouble: str = ""
    cuts: list[float] = field(default_factory=list)


class _Scores:
    """The scores of windows, in memory and, where it is asked for, in a file that a stopped run goes on with.

    Args:
        names: of the classes.
        topk: classes that are kept of each window, at least.
        classes: that are kept; None is all.
    """

    def __init__(self, names: Sequence[str], topk: int, classes: Sequence[int] | None) -> None:
        self.videos: dict[str, _Video] = {}
        self._names = names
        self._top = TopClasses(names, topk, classes)
        self._lines: JsonLines | None = None

    def go_on_with(self, file: Path, made_by: dict[str, Any]) -> None:
        """Takes what is in a file, and writes there from now on.

        Raises:
            UserError: see `JsonLines`.
        """
        self._lines = JsonLines(file, {"results": _RESULTS, **made_by}, _WORDS)
        for entry in self._lines.entries():
            if "path" not in entry:
                continue
            video = self.videos.setdefault(entry["path"], _Video())
            if "top" in entry:
                self._keep(video, entry["start"], entry["end"], self._top.of_listed(entry["top"]))
            else:
                video.is_done, video.trouble, video.cuts = True, entry["trouble"], entry["cuts"]
        if known := sum(len(video.starts) for video in self.videos.values()):
            print(f"{known} windows are in {file} already", file=sys.stderr)

    def add(self, path: str, window: WindowScores) -> None:
        """Keeps a window, and writes its line."""
        top = self._top.of(window.scores)  # as the line has them, so that a stopped run gives the same segments
        start, end = round(window.start_sec, 6), round(window.end_sec, 6)
        self._keep(self.videos[path], start, end, top)
        if self._lines is not None:
            self._lines.add({"path": path, "start": start, "end": end, "top": self._top.listed(top)})

    def finish(self, path: str, trouble: str) -> None:
        """Notes that a video has no more windows; of one on the net that breaks off, the next run may find more."""
        video = self.videos[path]
        video.is_done, video.trouble = True, trouble
        if self._lines is not None and not (trouble and is_address(path)):
            done = {"path": path, "windows": len(video.starts), "cuts": video.cuts, "trouble": trouble}
            self._lines.add(done)

    def segments(self, path: str, settings: SegmentSettings) -> list[Segment]:
        """The segments of a video."""
        video = self.videos[path]
        return segments_of_top(video.starts, video.ends, video.scores, settings, video.cuts)

    def highest(self, path: str) -> str:
        """The highest score of a video's windows and its class, "0.31 (kick)": what to choose thresholds by."""
        score, number = max((score, -number) for top in self.videos[path].scores for number, score in top.items())
        return f"{score:.2g} ({self._names[-number]})"

    def close(self) -> None:
        """Lets others write the file, and says what is in it."""
        if self._lines is not None:
            self._lines.close()
            windows = sum(len(video.starts) for video in self.videos.values())
            print(f"{windows} windows are in {self._lines.file}", file=sys.stderr)

    def _keep(self, video: _Video, start: float, end: float, top: dict[int, float]) -> None:
        video.starts.append(start)
        video.ends.append(end)
        video.scores.append(top)


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

"""Names the actions in videos: `octvideo infer VIDEO|FOLDER ... [--ckpt RUN|FILE] [-o FILE]`.

Videos and folders in, the best classes of each out, as text, JSON, or lines of a file.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from octvideo.cli.allocator import keep_freed_memory
from octvideo.cli.arguments import Parser, positive
from octvideo.errors import UserError
from octvideo.files import VIDEO_SUFFIXES, digest, json_text, read_text, text_lines, walk_videos
from octvideo.inference.checkpoint import find_checkpoint
from octvideo.inference.engines import ENGINES, precisions_of
from octvideo.inference.predictor import Prediction, Predictor
from octvideo.inference.preparation import Timing
from octvideo.inference.result_file import ResultFile, as_record
from octvideo.progress import Progress
from octvideo.video import VideoReadError


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "videos", nargs="+", metavar="VIDEO|FOLDER|@FILE", help="@FILE: names of videos from a text file, one in a line"
    )
    parser.shared("ckpt")
    parser.add_argument("--model", metavar="FOLDER", help="a model that octvideo export wrote, in place of --ckpt")
    parser.add_argument("--engine", help=f"{', '.join(ENGINES)} (eager)")
    parser.add_argument("--precision", help=f"{precisions_of(ENGINES)}; int8 is for --model (f32)")
    parser.shared("device", "threads", "runs_dir")
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
    keep_freed_memory()
    output: _Output | None = None
    failures: list[VideoReadError] = []
    try:
        videos = list(find_videos(args.videos))
        weights = _weights(args)
        predictor = _predictor(args, weights)
        output = _output(args, predictor, weights)
        results_of = classify(predictor, output.left(videos), topk=args.topk, prints=isinstance(output, _Text))
        with contextlib.closing(results_of) as results:
            for result in results:
                output.add(result)
                if isinstance(result, VideoReadError):
                    failures.append(result)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped" if args.output is None else "stopped: the same command goes on") from None
    finally:
        if output is not None:  # in any case what has been done
            output.end()
        for failure in failures:
            print(f"error: {failure}", file=sys.stderr)
    return 1 if failures else 0


class _Output(Protocol):
    def left(self, videos: Sequence[str]) -> Sequence[str]: ...
    def add(self, result: Prediction | VideoReadError) -> None: ...
    def end(self) -> None: ...


def _output(args: argparse.Namespace, predictor: Predictor, weights: Path | None) -> _Output:
    if args.output is not None:
        made_by = {**_made_by(predictor), "topk": args.topk, "sha256": "" if weights is None else digest(weights)}
        return _Lines(ResultFile(args.output, made_by))
    return _Json(predictor) if args.json else _Text(timing=args.timing)


class _Text:
    """Results as text, when they are there."""

    def __init__(self, *, timing: bool) -> None:
        self._timing, self._between = timing, ""

    def left(self, videos: Sequence[str]) -> Sequence[str]:
        return videos

    def add(self, result: Prediction | VideoReadError) -> None:
        if isinstance(result, Prediction):
            print(self._between + as_text(result, timing=self._timing), flush=True)
            self._between = "\n"

    def end(self) -> None:
        pass


class _Json:
    """One JSON object, at the end."""

    def __init__(self, predictor: Predictor) -> None:
        self._made_by = _made_by(predictor)
        self._videos: list[dict[str, Any]] = []
        self._errors: list[dict[str, Any]] = []

    def left(self, videos: Sequence[str]) -> Sequence[str]:
        return videos

    def add(self, result: Prediction | VideoReadError) -> None:
        (self._videos if isinstance(result, Prediction) else self._errors).append(as_record(result))

    def end(self) -> None:
        content = {**self._made_by, "videos": self._videos, "errors": self._errors}
        print(json_text(content, indent=2))


class _Lines:
    """Lines of a file, which holds those of earlier runs."""

    def __init__(self, file: ResultFile) -> None:
        self._file = file

    def left(self, videos: Sequence[str]) -> Sequence[str]:
        videos = list(dict.fromkeys(videos))
        left = [video for video in videos if video not in self._file.done]
        if len(left) < len(videos):
            done = len(videos) - len(left)
            print(f"{done} of {len(videos)} videos are in {self._file.path} already", file=sys.stderr)
        return left

    def add(self, result: Prediction | VideoReadError) -> None:
        self._file.add(result)

    def end(self) -> None:
        self._file.close()
        broken = f", {self._file.unreadable} of them of videos that can't be read" if self._file.unreadable else ""
        print(f"{len(self._file.done)} results are in {self._file.path}{broken}", file=sys.stderr)


def find_videos(names: Sequence[str]) -> Iterator[str]:
    """Files as given, the videos under folders in natural order, and for @FILE the names in its lines.

    Of many names in a file one that is not there is left to the reader, whose error stops nothing.

    Raises:
        UserError: something is none of these, or a folder holds no video.
    """
    for name in names:
        path = Path(name)
        if name.startswith("@") and not path.exists():
            yield from (line for line in text_lines(read_text(name[1:], names=True)) if line.strip())
        elif path.is_dir():
            inside = [os.path.join(path, video) for video in walk_videos(path)]  # noqa: PTH118
            if not inside:
                raise UserError(f"no video in folder {path} (looked for {', '.join(sorted(VIDEO_SUFFIXES))})")
            yield from inside
        elif path.suffix.lower() == ".txt":  # which FFmpeg takes for a film of letters
            raise UserError(f"{path} is no video: give @{path} for the names in it")
        elif path.exists():
            yield name
        else:
            raise UserError(f"no file or folder {path}")


def classify(
    predictor: Predictor, videos: Sequence[str], *, topk: int = 5, prints: bool = False
) -> Generator[Prediction | VideoReadError, None, None]:
    """For each video its prediction, or the error why it can't be read; progress on stderr.

    Args:
        predictor, videos, topk: see `Predictor.predict_many`.
        prints: results are printed as they come: on a terminal the bar makes room for them.
    """
    console = Console(stderr=True)
    console.print(f"weights: {predictor.source}", highlight=False, soft_wrap=True)
    # Results are closed in any case: Ctrl-C ends the preparing thread with them.
    with (
        Progress("classifying", len(videos)) as progress,
        contextlib.closing(predictor.predict_many(videos, topk=topk)) as results,
    ):
        for result in results:
            with progress.hidden() if prints and sys.stdout.isatty() else contextlib.nullcontext():
                yield result
            progress.advance()


def _made_by(predictor: Predictor) -> dict[str, str]:
    return {"weights": predictor.source, "engine": predictor.engine.name, "precision": predictor.engine.precision}


def as_text(prediction: Prediction, *, timing: bool = False) -> str:
    """The path of a video, then a line for each class, then where the time went."""
    lines = [f"  {100 * score:5.1f} %  {name}" for name, score in prediction.top]
    if timing:
        lines.append(f"  {timing_text(prediction.timing)}")
    return "\n".join([prediction.path, *lines])


def timing_text(timing: Timing) -> str:
    """`engine 3.10 s of 3.24 s in all (1.05); beside it: decode 0.11 s, prepare 0.12 s`."""
    share = timing.total / timing.engine if timing.engine else float("nan")
    return (
        f"engine {timing.engine:.2f} s of {timing.total:.2f} s in all (x {share:.3f}); "
        f"beside it: decode {timing.decode:.2f} s, prepare {timing.prepare:.2f} s"
    )


def _weights(args: argparse.Namespace) -> Path | None:
    """The checkpoint, or the folder of an exported model; None for pytorchvideo's weights."""
    if args.model is not None:
        return Path(args.model)
    return None if args.ckpt is None else find_checkpoint(args.ckpt, args.runs_dir)


def _predictor(args: argparse.Namespace, weights: Path | None) -> Predictor:
    if args.model is not None:
        for option, value in (("--ckpt", args.ckpt), ("--engine", args.engine), ("--precision", args.precision)):
            if value is not None:
                raise UserError(f"{option} {value} with --model: an exported model has its own; leave one of them out")
        return Predictor.from_export(args.model, device=args.device, num_threads=args.threads)
    how: dict[str, Any] = {"engine": args.engine or "eager", "precision": args.precision or "f32"}
    how |= {"device": args.device, "num_threads": args.threads}
    if args.precision == "int8":
        raise UserError(
            "int8 needs typical videos to choose its scales from: export once with octvideo export --engine openvino "
            "--precision int8 --calibrate VIDEO|FOLDER ... -o FOLDER, then infer with --model FOLDER"
        )
    return Predictor.from_pytorchvideo(**how) if weights is None else Predictor.from_checkpoint(weights, **how)

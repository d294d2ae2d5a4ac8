"""tools/infer.py: videos and folders in, the best classes of each out, as text or JSON."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from octvideo.errors import UserError
from octvideo.inference.checkpoint import newest_checkpoint
from octvideo.inference.predictor import Prediction, Predictor
from octvideo.inference.preparation import Timing
from octvideo.video import VIDEO_SUFFIXES, VideoReadError


def main(argv: Sequence[str] | None = None) -> int:
    """Classifies the videos named on the command line.

    Returns:
        0; 1 when some video could not be read (the others are done); 2 for a mistake of the user's.
    """
    args = _parser().parse_args(argv)
    print_any_name()
    try:
        videos = list(find_videos(args.videos))
        predictor = _predictor(args)
        predictions, failures = classify(predictor, videos, topk=args.topk)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    print(as_json(predictor, predictions, failures) if args.json else as_text(predictions, timing=args.timing))
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if failures else 0


def print_any_name() -> None:
    """Lets file names that are no text in this locale be printed as they are on the disk, rather than as an error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")


def find_videos(names: Sequence[str]) -> Iterator[str]:
    """Files as given, and the videos under folders in order of their names.

    Raises:
        UserError: something is neither, or a folder holds no video.
    """
    for name in names:
        path = Path(name)
        if path.is_dir():
            inside = sorted(str(p) for p in path.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES)
            if not inside:
                raise UserError(f"no video in folder {path} (looked for {', '.join(sorted(VIDEO_SUFFIXES))})")
            yield from inside
        elif path.exists():
            yield name
        else:
            raise UserError(f"no file or folder {path}")


def classify(
    predictor: Predictor, videos: Sequence[str], *, topk: int = 5
) -> tuple[list[Prediction], list[VideoReadError]]:
    """Predictions of the videos that can be read, and the errors of the others; progress on stderr."""
    console = Console(stderr=True)
    console.print(f"weights: {predictor.source}", highlight=False, soft_wrap=True)
    predictions: list[Prediction] = []
    failures: list[VideoReadError] = []
    results = predictor.predict_many(videos, topk=topk)
    # Closed in any case: Ctrl-C ends the preparing thread with it.
    with contextlib.closing(results):
        for result in track(results, description="classifying", total=len(videos), console=console):
            if isinstance(result, Prediction):
                predictions.append(result)
            else:
                failures.append(result)
    return predictions, failures


def as_text(predictions: Sequence[Prediction], *, timing: bool = False) -> str:
    """One block per video: its path, then a line per class, then where the time went."""
    blocks = []
    for prediction in predictions:
        lines = [f"  {100 * score:5.1f} %  {name}" for name, score in prediction.top]
        if timing:
            lines.append(f"  {timing_text(prediction.timing)}")
        blocks.append("\n".join([prediction.path, *lines]))
    return "\n\n".join(blocks)


def timing_text(timing: Timing) -> str:
    """`engine 3.10 s of 3.24 s in all (1.05); beside it: decode 0.11 s, prepare 0.12 s`."""
    share = timing.total / timing.engine if timing.engine else float("nan")
    return (
        f"engine {timing.engine:.2f} s of {timing.total:.2f} s in all (x {share:.3f}); "
        f"beside it: decode {timing.decode:.2f} s, prepare {timing.prepare:.2f} s"
    )


def as_json(predictor: Predictor, predictions: Sequence[Prediction], failures: Sequence[VideoReadError]) -> str:
    """One JSON object: weights, engine, precision, videos (path, top, seconds), errors (path, reason)."""
    content = {
        "weights": predictor.source,
        "engine": predictor.engine.name,
        "precision": predictor.engine.precision,
        "videos": [
            {
                "path": p.path,
                "top": [{"name": name, "score": score} for name, score in p.top],
                "seconds": {name: round(value, 4) for name, value in asdict(p.timing).items()},
            }
            for p in predictions
        ],
        "errors": [{"path": str(e.path), "reason": e.reason} for e in failures],
    }
    return json.dumps(content, indent=2, ensure_ascii=False)


def _predictor(args: argparse.Namespace) -> Predictor:
    if args.model is not None:
        for option, value in (("--ckpt", args.ckpt), ("--engine", args.engine), ("--precision", args.precision)):
            if value is not None:
                raise UserError(f"{option} {value} with --model: an exported model has its own; leave one of them out")
        return Predictor.from_export(args.model, device=args.device, num_threads=args.threads)
    how: dict[str, Any] = {"engine": args.engine or "eager", "precision": args.precision or "f32"}
    how |= {"device": args.device, "num_threads": args.threads}
    if args.precision == "int8":
        raise UserError(
            "int8 needs typical videos to choose its scales from: export once with tools/export.py --engine openvino "
            "--precision int8 --calibrate VIDEO|FOLDER ... -o FOLDER, then infer with --model FOLDER"
        )
    if args.ckpt is None:
        return Predictor.from_pytorchvideo(**how)
    path = newest_checkpoint(args.runs_dir) if args.ckpt == "last" else Path(args.ckpt)
    return Predictor.from_checkpoint(path, **how)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="infer", description="Names the actions in videos.")
    parser.add_argument("videos", nargs="+", metavar="VIDEO|FOLDER")
    parser.add_argument(
        "--ckpt",
        help="checkpoint of `octvideo fit`, or 'last' for the newest; default: pytorchvideo's Kinetics-400 I3D",
    )
    parser.add_argument("--model", metavar="FOLDER", help="a model that tools/export.py wrote, in place of --ckpt")
    parser.add_argument("--engine", help="eager (the default), compile, aot, onnx or openvino")
    parser.add_argument("--precision", help="f32 (the default), or bf16: eager, compile, aot, openvino")
    parser.add_argument("--threads", type=positive, help="CPU threads of the engine (all)")
    parser.add_argument("--timing", action="store_true", help="print where the time of each video went")
    parser.add_argument("--topk", type=positive, default=5, help="classes to print per video (5)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--runs_dir", default="runs", help="where --ckpt last looks (runs)")
    return parser


def positive(text: str) -> int:
    """A whole number of 1 or more, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"got {value}, expected 1 or more")
    return value

"""tools/infer.py: videos and folders in, the best classes of each out, as text or JSON."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track

from octvideo.errors import UserError
from octvideo.inference.checkpoint import newest_checkpoint
from octvideo.inference.predictor import Prediction, Predictor
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
        predictor = _predictor(args.ckpt, args.runs_dir, args.device)
        predictions, failures = classify(predictor, videos, topk=args.topk)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    print(as_json(predictor, predictions, failures) if args.json else as_text(predictions))
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
    for video in track(videos, description="classifying", console=console):
        try:
            predictions.append(predictor.predict(video, topk=topk))
        except VideoReadError as error:
            failures.append(error)
    return predictions, failures


def as_text(predictions: Sequence[Prediction]) -> str:
    """One block per video: its path, then a line per class."""
    blocks = []
    for prediction in predictions:
        lines = [f"  {100 * score:5.1f} %  {name}" for name, score in prediction.top]
        blocks.append("\n".join([prediction.path, *lines]))
    return "\n\n".join(blocks)


def as_json(predictor: Predictor, predictions: Sequence[Prediction], failures: Sequence[VideoReadError]) -> str:
    """One JSON object: weights, videos (path, top), errors (path, reason)."""
    content = {
        "weights": predictor.source,
        "videos": [
            {"path": p.path, "top": [{"name": name, "score": score} for name, score in p.top]} for p in predictions
        ],
        "errors": [{"path": str(e.path), "reason": e.reason} for e in failures],
    }
    return json.dumps(content, indent=2, ensure_ascii=False)


def _predictor(ckpt: str | None, runs_dir: str, device: str) -> Predictor:
    if ckpt is None:
        return Predictor.from_pytorchvideo(device=device)
    path = newest_checkpoint(runs_dir) if ckpt == "last" else Path(ckpt)
    return Predictor.from_checkpoint(path, device=device)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="infer", description="Names the actions in videos.")
    parser.add_argument("videos", nargs="+", metavar="VIDEO|FOLDER")
    parser.add_argument(
        "--ckpt",
        help="checkpoint of `octvideo fit`, or 'last' for the newest; default: pytorchvideo's Kinetics-400 I3D",
    )
    parser.add_argument("--topk", type=_positive, default=5, help="classes to print per video (5)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--runs_dir", default="runs", help="where --ckpt last looks (runs)")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"got {value}, expected 1 or more")
    return value

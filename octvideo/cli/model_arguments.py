"""Which network a command runs, by which engine: options, the predictor of them, and what is said of it.

A run that goes on takes the engine that began it; processes of a cluster take the one that the first has chosen.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from octvideo.cli.arguments import Parser
from octvideo.cli.video_arguments import find_videos
from octvideo.errors import UserError
from octvideo.inference.checkpoint import find_checkpoint
from octvideo.inference.choice import AUTO
from octvideo.inference.device import precision_in_words
from octvideo.inference.engines import ENGINES, precisions_of
from octvideo.inference.predictor import Predictor
from octvideo.json_lines import first_line
from octvideo.parts import Part
from octvideo.stores import StoredCopy


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


def weights_of(args: argparse.Namespace) -> Path | None:
    """The checkpoint, or the folder of an exported model; None for pytorchvideo's weights."""
    if args.model is not None:
        return Path(args.model)
    return None if args.ckpt is None else find_checkpoint(args.ckpt, args.runs_dir)


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


def engine_of_results(file: Path | StoredCopy, engine: str, precision: str, results: str) -> tuple[str, str] | None:
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


def part_of_results(file: Path | StoredCopy, part: Part | None) -> dict[str, Any]:
    """What the first line of a file of results says of a part; nothing where there is none, as in older files."""
    if part is None and not (first_line(file) or {}).get("part"):
        return {}
    return {"part": None if part is None else str(part)}


def lines_of_predictor(predictor: Predictor) -> list[str]:
    """What computes: weights, and the engine with the reason for it."""
    precision = precision_in_words(predictor.engine.precision, predictor.device)
    reason = f" ({predictor.engine_reason})" if predictor.engine_reason else ""
    return [f"weights: {predictor.source}", f"engine: {predictor.engine.name}, {precision}{reason}"]


def say_predictor(predictor: Predictor, console: Console) -> None:
    """Prints what computes."""
    say_lines(lines_of_predictor(predictor), console)


def say_lines(lines: Sequence[str], console: Console) -> None:
    """Prints lines as they are."""
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

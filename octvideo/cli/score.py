"""Recomputes metrics from saved scores: `octvideo score RUN|scores.npz ... [--markdown]`.

One row for each file of scores. With several, each is compared with the first, video by video where they hold
the same videos (exact McNemar test). --join treats the files as parts of one evaluation. --per_class goes class by
class. --fuse adds the weighted mean of the runs' scores: by --fuse_weights, or by the scores of validation in
--fuse_by, one file or run for each.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from octvideo.cli.arguments import Parser
from octvideo.data.synthetic import OPPOSITES
from octvideo.errors import UserError
from octvideo.evaluation.calibration import cooled, fit_temperature, reliability
from octvideo.evaluation.fusion import fuse, fusion_weights
from octvideo.evaluation.per_class import class_table
from octvideo.evaluation.report import comparison_table, markdown_table, metrics_table, pairs_from, percent, run_names
from octvideo.evaluation.scores import VideoScores, find_scores
from octvideo.files import whole_file


def add_arguments(parser: Parser) -> None:
    files = "names of runs in runs/, their folders, or files of scores"
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN|FILE", help=files)
    parser.add_argument("--join", action="store_true", help="the files are parts of one evaluation")
    parser.add_argument("--per_class", action="store_true", help="precision, recall, F1 of each class; calibration")
    parser.add_argument("--fuse", action="store_true", help="also the mean of the runs' scores")
    parser.add_argument("--fuse_weights", nargs="+", type=float, metavar="W", help="of the runs in the mean (equal)")
    val = "scores of validation videos, one for each run: the weights that suit them best"
    parser.add_argument("--fuse_by", nargs="+", type=Path, metavar="RUN|FILE", help=val)
    parser.shared("output", metavar="FILE", help="scores.npz of the mean to write")
    parser.shared("pairs", "markdown")


def run(args: Namespace) -> int:
    """Returns 0.

    Raises:
        UserError: options that can't be together, or scores that can't.
    """
    if not args.fuse and (args.fuse_weights or args.fuse_by or args.output):
        raise UserError("--fuse_weights, --fuse_by and --output are of the mean of several runs: add --fuse")
    if args.fuse_weights and args.fuse_by:
        raise UserError("--fuse_weights gives the weights, --fuse_by chooses them: leave one of them out")
    files, loaded = _loaded(args.runs)
    names = ["all parts"] if args.join else run_names(files)
    parts = [VideoScores.concat(loaded)] if args.join else loaded
    scores = dict(zip(names, parts, strict=True))
    if args.fuse:
        scores["fused"] = _fused(parts, args)
    pairs = pairs_from(args.pairs, known=OPPOSITES, class_names=parts[0].class_names)
    if args.markdown:
        print(markdown_table(scores, pairs=pairs))
    elif len(scores) == 1:
        print(metrics_table(parts[0], pairs=pairs, title=names[0]))
    else:
        print(comparison_table(scores, pairs=pairs))
    if args.per_class:
        for name, one in scores.items():
            print("", name, "", class_table(one), sep="\n")
            if one.truth is None:
                print(_calibration(one))
    return 0


def _loaded(runs: Sequence[Path]) -> tuple[list[Path], list[VideoScores]]:
    named: dict[Path, Path] = {run: Path("runs", run) for run in runs if not run.exists()}
    files = [file for run in runs for file in find_scores(named.get(run, run))]
    return files, [VideoScores.load(file) for file in files]


def _fused(parts: Sequence[VideoScores], args: Namespace) -> VideoScores:
    """The mean of the runs' scores, which is written where that is asked for."""
    if len(parts) < 2:
        raise UserError(f"--fuse: got {len(parts)} file of scores, expected two or more")
    weights: list[float] | None = args.fuse_weights
    if args.fuse_by:
        files, loaded = _loaded(args.fuse_by)
        if len(files) != len(parts):
            raise UserError(f"--fuse_by: got {len(files)} files of scores for {len(parts)} runs, expected one for each")
        weights = fusion_weights(loaded)
    fused = fuse(parts, weights)
    shown = " ".join(f"{weight:.3f}" for weight in (weights or [1 / len(parts)] * len(parts)))
    print(f"fused with weights {shown}", file=sys.stderr)
    if args.output is not None:
        with whole_file(args.output) as part:
            fused.save(part)
    return fused


def _calibration(scores: VideoScores) -> str:
    temperature = fit_temperature(scores)
    before, after = (reliability(one).ece for one in (scores, cooled(scores, temperature)))
    fitted = f"at temperature {temperature:.3f}, fitted on these videos, {percent(after)}"
    return f"calibration: ECE {percent(before)}; {fitted}"

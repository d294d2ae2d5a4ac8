"""Recomputes metrics from saved scores: `octvideo score RUN|scores.npz ... [--markdown]`.

One row for each file of scores. With several, each is compared with the first, video by video where they hold
the same videos (exact McNemar test). --join treats the files as parts of one evaluation.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from octvideo.cli.arguments import Parser
from octvideo.data.synthetic import OPPOSITES
from octvideo.evaluation.report import comparison_table, markdown_table, metrics_table, pairs_from, run_names
from octvideo.evaluation.scores import VideoScores, find_scores


def add_arguments(parser: Parser) -> None:
    files = "names of runs in runs/, their folders, or files of scores"
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN|FILE", help=files)
    parser.add_argument("--join", action="store_true", help="the files are parts of one evaluation")
    parser.shared("pairs", "markdown")


def run(args: Namespace) -> int:
    """Returns 0."""
    named: dict[Path, Path] = {run: Path("runs", run) for run in args.runs if not run.exists()}
    files = [file for run in args.runs for file in find_scores(named.get(run, run))]
    loaded = [VideoScores.load(file) for file in files]
    names = ["all parts"] if args.join else run_names(files)
    parts = [VideoScores.concat(loaded)] if args.join else loaded
    scores = dict(zip(names, parts, strict=True))
    pairs = pairs_from(args.pairs, known=OPPOSITES, class_names=parts[0].class_names)
    if args.markdown:
        print(markdown_table(scores, pairs=pairs))
    elif len(scores) == 1:
        print(metrics_table(parts[0], pairs=pairs, title=names[0]))
    else:
        print(comparison_table(scores, pairs=pairs))
    return 0

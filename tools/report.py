#!/usr/bin/env python
"""Table and picture of a run: `python tools/report.py RUN_DIR [--out FILE.png] [--markdown]`.

Reads metrics.csv (training curves) and scores.npz (table, confusion matrix) of the run folder; one of the two
is enough. The picture is written to RUN_DIR/report.png.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

# So that it runs from a checkout that is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from octvideo.data.synthetic import OPPOSITES
from octvideo.errors import UserError
from octvideo.evaluation.pictures import draw_report, read_curves
from octvideo.evaluation.report import markdown_table, metrics_table, pairs_from
from octvideo.evaluation.scores import VideoScores, find_scores
from octvideo.program import Parser, command, end_with


@command()
def main(argv: Sequence[str]) -> int:
    """Returns 0."""
    parser = Parser(description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="folder of a run")
    parser.add_argument("--scores", type=Path, help="file of scores (RUN_DIR/scores.npz, else scores_*.npz)")
    parser.add_argument("--pairs", nargs="+", metavar="A,B", help="opposite classes (known for the demo)")
    parser.add_argument("--out", type=Path, help="picture to write (RUN_DIR/report.png)")
    parser.add_argument("--title", help="of table and picture (the name of the run folder)")
    parser.add_argument("--markdown", action="store_true", help="print Markdown for a README, no table")
    report(parser.parse_args(argv))
    return 0


def report(args: argparse.Namespace) -> None:
    """Prints the table and writes the picture.

    Raises:
        UserError: the folder holds neither curves nor scores, or the pairs do not fit.
    """
    if not args.run.is_dir():
        raise UserError(f"no folder {args.run}")
    title = args.title or args.run.resolve().name
    csv_file, out = args.run / "metrics.csv", args.out or args.run / "report.png"
    curves = read_curves(csv_file) if csv_file.exists() else None
    # A run that is still training has curves and no scores.
    scores = None if curves and not args.scores and not any(args.run.glob("scores*.npz")) else _scores(args)
    pairs = pairs_from(args.pairs, known=OPPOSITES, class_names=scores.class_names) if scores else ()
    if scores and args.markdown:
        picture = out.name if out.parent.resolve() == args.run.resolve() else out
        print(markdown_table({title: scores}, pairs=pairs), f"![{title}]({picture})", sep="\n\n")
    elif scores:
        print(metrics_table(scores, pairs=pairs, title=title))
    else:
        print(f"{title}: not tested yet, so the picture has the training curves only")
    out.parent.mkdir(parents=True, exist_ok=True)
    draw_report(out, curves=curves, scores=scores, pairs=pairs, title=title)
    print(f"picture: {out}", file=sys.stderr)


def _scores(args: argparse.Namespace) -> VideoScores:
    return VideoScores.load(args.scores or find_scores(args.run)[0])


if __name__ == "__main__":
    end_with(main)

"""Table, picture and page of a run: `octvideo report RUN [-o FILE.png] [--markdown] [--page [DIR]]`.

Reads metrics.csv (training curves) and scores.npz (table, confusion matrix) of the run folder; one of the two
is enough. The picture is written to report.png in it. A page is a folder for a browser, to be looked at and sent;
the videos of the test are needed for its thumbnails. --details draws how reliable scores are, and precision over
recall.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

from octvideo.cli.arguments import Parser, positive
from octvideo.cli.report_page import MOST_THUMBNAILS, write_report_page
from octvideo.data.synthetic import OPPOSITES
from octvideo.errors import UserError
from octvideo.evaluation.detail_pictures import draw_details
from octvideo.evaluation.pictures import PICTURE_SUFFIXES, draw_report, named_in_picture, read_curves
from octvideo.evaluation.report import markdown_table, metrics_table, pairs_from
from octvideo.evaluation.scores import VideoScores, find_scores
from octvideo.lettering import lacking

STOPPED = "stopped: the same command goes on with the thumbnails that are missing"


def add_arguments(parser: Parser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's name in runs/, or its folder")
    parser.add_argument("--scores", type=Path, metavar="FILE", help="(scores.npz of the run, else its scores_*.npz)")
    parser.shared("output", metavar="FILE", help="picture to write (report.png of the run)")
    parser.add_argument("--title", metavar="TEXT", help="of table and picture (the name of the run folder)")
    parser.add_argument(
        "--details",
        type=Path,
        nargs="?",
        const=True,
        metavar="FILE",
        help="write a reliability diagram and curves of precision over recall, too (details.png of the run)",
    )
    parser.add_argument(
        "--page",
        type=Path,
        nargs="?",
        const=True,
        metavar="DIR",
        help="write a page with playing thumbnails, too (page/ of the run)",
    )
    parser.add_argument(
        "--thumbnails",
        type=positive,
        default=MOST_THUMBNAILS,
        metavar="N",
        help=f"videos that the page shows, at most ({MOST_THUMBNAILS}); others are listed by name",
    )
    parser.add_argument(
        "--videos", type=Path, default=Path(), metavar="DIR", help="where relative paths of videos start (here)"
    )
    parser.shared("pairs", "markdown")


def run(args: Namespace) -> int:
    """Prints the table, writes the picture and, where it is asked for, the page; returns 0.

    Raises:
        UserError: the folder holds neither curves nor scores, or the pairs do not fit.
    """
    folder: Path = args.run if args.run.is_dir() else Path("runs", args.run)
    if not folder.is_dir():
        raise UserError(f"no folder {args.run}, and no run of that name in runs/")
    title = args.title or folder.resolve().name
    csv_file, out = folder / "metrics.csv", args.output or folder / "report.png"
    details: Path | None = folder / "details.png" if args.details is True else args.details
    for picture in (out, details or out):
        if picture.suffix not in PICTURE_SUFFIXES:
            got = picture.suffix or "no suffix"
            raise UserError(f"picture {picture}: got {got}, expected {', '.join(PICTURE_SUFFIXES)}")
    curves = read_curves(csv_file) if csv_file.exists() else None
    scores = None
    if args.scores or curves is None or any(folder.glob("scores*.npz")):  # a run that still trains has none
        scores = VideoScores.load(args.scores or find_scores(folder)[0])
    pairs = pairs_from(args.pairs, known=OPPOSITES, class_names=scores.class_names) if scores else ()
    if scores is None:
        print(f"{title}: not tested yet, so the picture has the training curves only")
    elif args.markdown:
        place = out.name if out.parent.resolve() == folder.resolve() else out
        print(markdown_table({title: scores}, pairs=pairs), f"![{title}]({place})", sep="\n\n")
    else:
        print(metrics_table(scores, pairs=pairs, title=title))
    out.parent.mkdir(parents=True, exist_ok=True)
    of_one_label = None if scores is None or scores.truth is not None else scores
    if curves or of_one_label is not None:
        draw_report(out, curves=curves, scores=of_one_label, pairs=pairs, title=title)
        print(f"picture: {out}", file=sys.stderr)
    elif details is None and args.page is None:
        raise UserError(
            "of several labels a video there is no confusion matrix, and the run has no curves: --details or --page"
        )
    if details is not None:
        if scores is None:
            raise UserError(f"--details: {folder} has no scores; test the run first (octvideo test)")
        details.parent.mkdir(parents=True, exist_ok=True)
        draw_details(details, scores, title=title)
        print(f"details: {details}", file=sys.stderr)
    shown = named_in_picture(of_one_label) if details is None or scores is None else scores.class_names
    if line := lacking(shown, title):
        print(line, file=sys.stderr)
    if args.page is not None:
        page = write_report_page(
            folder / "page" if args.page is True else args.page,
            folder,
            title=title,
            curves=curves,
            scores=scores,
            pairs=pairs,
            videos=args.videos,
            most_thumbnails=args.thumbnails,
        )
        print(f"page: {page}", file=sys.stderr)
    return 0

"""What networks cost at several alphas: `octvideo cost [--networks NAME ...] [--alphas A ...] [--markdown]`.

Multiply-adds, parameters, and the memory of what the convolutions write (float32) for one clip, beside the
ordinary network and the figures of the paper (Table 8 of arXiv 1904.05049). Counted, not run: it takes seconds.
"""

from __future__ import annotations

from argparse import Namespace

from rich import box
from rich.console import Console
from rich.table import Table

from octvideo.cli.arguments import Parser
from octvideo.files import markdown
from octvideo.models.costs import HEADER, cost_rows, parse_clip


def add_arguments(parser: Parser) -> None:
    parser.add_argument("--networks", nargs="+", metavar="NAME", default=["c2d_r50", "i3d_r50", "slow_r50"])
    parser.add_argument("--alphas", nargs="+", type=float, metavar="A", default=[0, 0.1, 0.25, 0.5])
    parser.add_argument("--clip", default="1x3x8x224x224", metavar="NxCxTxHxW", help="(1x3x8x224x224)")
    parser.add_argument("--num_classes", type=int, default=400, metavar="K", help="(400)")
    parser.shared("markdown")


def run(args: Namespace) -> int:
    """Returns 0."""
    rows = list(cost_rows(args.networks, args.alphas, clip=parse_clip(args.clip), num_classes=args.num_classes))
    if args.markdown:
        print(markdown(HEADER, rows))
        return 0
    drawn = Table(box=box.SIMPLE_HEAD, title=f"one clip of {args.clip}", title_justify="left")
    for n, name in enumerate(HEADER):
        drawn.add_column(name, justify="left" if n == 0 else "right", no_wrap=True)
    for row, following in zip(rows, [*rows[1:], rows[-1]], strict=True):
        drawn.add_row(*row, end_section=following[0] != row[0])
    Console(width=120).print(drawn)  # wide enough in a log file too, which is no terminal
    return 0

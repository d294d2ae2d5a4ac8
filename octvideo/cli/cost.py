"""What networks cost at several alphas: `octvideo cost [--networks NAME ...] [--alphas A ...] [--markdown]`.

Multiply-adds, parameters, and the memory of what the convolutions write (float32) for one clip, beside the
ordinary network and the figures of the paper (Table 8 of arXiv 1904.05049). `--clip own` takes the size that each
network was published with. Counted, not run: it takes seconds.
"""

from __future__ import annotations

from argparse import Namespace

from octvideo.cli.arguments import Parser, positive
from octvideo.cli.tables import print_table
from octvideo.models.costs import HEADER, cost_rows, parse_clip

NETWORKS, ALPHAS = ["c2d_r50", "i3d_r50", "slow_r50"], [0, 0.1, 0.25, 0.5]


def add_arguments(parser: Parser) -> None:
    parser.add_argument("--networks", nargs="+", metavar="NAME", default=NETWORKS, help=f"({' '.join(NETWORKS)})")
    parser.add_argument("--alphas", nargs="+", type=float, metavar="A", default=ALPHAS, help="(0 0.1 0.25 0.5)")
    parser.add_argument("--clip", default="1x3x8x224x224", metavar="NxCxTxHxW|own", help="(1x3x8x224x224)")
    parser.add_argument("--num_classes", type=positive, default=400, metavar="K", help="(400)")
    parser.shared("markdown")


def run(args: Namespace) -> int:
    """Returns 0."""
    rows = list(cost_rows(args.networks, args.alphas, clip=parse_clip(args.clip), num_classes=args.num_classes))
    size = "each network's own size" if args.clip == "own" else args.clip
    print_table(HEADER, rows, title=f"one clip of {size}", sections=True, as_markdown=args.markdown)
    return 0

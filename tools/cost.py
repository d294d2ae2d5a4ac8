#!/usr/bin/env python
"""What networks cost at several alphas: `python tools/cost.py [--networks NAME ...] [--alphas A ...] [--markdown]`.

`--paper` counts the cost tables of "Drop an Octave" again and marks the rows that agree, `--paper 2 8` some of them.

Multiply-adds, parameters, and the memory of what the convolutions write (float32) for one clip, beside the
ordinary network and the figures of the paper (Table 8 of arXiv 1904.05049). Counted, not run: it takes seconds.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

# So that it runs from a checkout that is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab.paper_costs import HEADER as HEADER_PAPER
from lab.paper_costs import LAYER_HEADER, TABLES, layer_rows, markdown, paper_rows
from octvideo.models.costs import HEADER, CostRow, cost_rows, markdown_table, parse_clip
from octvideo.program import Parser, command, end_with


@command()
def main(argv: Sequence[str]) -> int:
    """Returns 0."""
    parser = Parser(description=__doc__)
    parser.add_argument("--networks", nargs="+", metavar="NAME", default=["c2d_r50", "i3d_r50", "slow_r50"])
    parser.add_argument("--alphas", nargs="+", type=float, metavar="A", default=[0, 0.1, 0.25, 0.5])
    parser.add_argument("--clip", default="1x3x8x224x224", metavar="NxCxTxHxW", help="(1x3x8x224x224)")
    parser.add_argument("--num-classes", type=int, default=400, metavar="K", help="(400)")
    parser.add_argument(
        "--paper", nargs="*", metavar="TABLE", help="tables of the paper (1 2 4 5 6 7 8), all by default"
    )
    parser.add_argument("--markdown", action="store_true", help="print Markdown for a README")
    args = parser.parse_args(argv)
    if args.paper is not None:
        print_paper(args.paper or ["1", *TABLES], as_markdown=args.markdown)
        return 0
    clip = parse_clip(args.clip)
    rows = cost_rows(args.networks, args.alphas, clip=clip, num_classes=args.num_classes)
    if args.markdown:
        print(markdown_table(rows))
    else:
        # Wide enough in a log file too, which is no terminal.
        Console(width=120).print(table(rows, title=f"one clip of {args.clip}"))
    return 0


def table(rows: list[CostRow], *, title: str) -> Table:
    """The rows for a terminal, a line between networks."""
    drawn = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for n, name in enumerate(HEADER):
        drawn.add_column(name, justify="left" if n == 0 else "right", no_wrap=True)
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        drawn.add_row(*row.cells(), end_section=following is not None and following.network != row.network)
    return drawn


def print_paper(tables: list[str], *, as_markdown: bool) -> None:
    """The paper's tables, beside our counts."""
    rest = [name for name in tables if name != "1"]
    counted = (
        [("an octave convolution, of the ordinary one (Table 1)", LAYER_HEADER, layer_rows())] if "1" in tables else []
    )
    if rest:
        rows = [row.cells() for row in paper_rows(rest)]
        title = "networks, one image of 224 x 224 or one clip of 8 x 224 x 224"
        notes = list(dict.fromkeys(cells[-1] for cells in rows if cells[-1]))
        rows = [(*cells[:-1], f"[{notes.index(cells[-1]) + 1}]" if cells[-1] else "") for cells in rows]
        counted.append((title, HEADER_PAPER, rows))
    for title, header, lines in counted:
        if as_markdown:
            print(f"{title}\n\n{markdown(header, lines)}\n")
            continue
        drawn = Table(*header, box=box.SIMPLE_HEAD, title=title, title_justify="left")
        for cells in lines:
            drawn.add_row(*cells)
        Console(width=120).print(drawn)
    if rest:
        print("\n".join(f"[{n}] {note}" for n, note in enumerate(notes, start=1)))


if __name__ == "__main__":
    end_with(main)

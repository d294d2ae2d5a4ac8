#!/usr/bin/env python
"""Counts the cost tables of "Drop an Octave" again and marks the rows that agree: `python tools/paper_costs.py [2 8]`.

Of the paper (arXiv 1904.05049) are here the tables 1, 2 and 4 to 8. Counted, not run.
"""

from collections.abc import Sequence

from lab.paper_costs import HEADER, LAYER_HEADER, TABLES, layer_rows, paper_rows
from octvideo.cli.arguments import Parser
from octvideo.cli.ending import command, end_with
from octvideo.cli.tables import print_table


@command()
def main(argv: Sequence[str]) -> int:
    """Returns 0."""
    parser = Parser(description=__doc__)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help="1 2 4 5 6 7 8 (all)")
    parser.shared("markdown")
    args = parser.parse_args(argv)
    tables = args.tables or ["1", *TABLES]
    networks = [name for name in tables if name != "1"]
    counted, notes = [], list[str]()
    if "1" in tables:
        counted.append(("an octave convolution, of the ordinary one (Table 1)", LAYER_HEADER, layer_rows()))
    if networks:
        rows = [row.cells() for row in paper_rows(networks)]
        notes = list(dict.fromkeys(cells[-1] for cells in rows if cells[-1]))
        rows = [(*cells[:-1], f"[{notes.index(cells[-1]) + 1}]" if cells[-1] else "") for cells in rows]
        counted.append(("networks, one image of 224 x 224 or one clip of 8 x 224 x 224", HEADER, rows))
    for title, header, lines in counted:
        if args.markdown:
            print(f"{title}\n")
        print_table(header, lines, title=title, as_markdown=args.markdown)
    for number, note in enumerate(notes, start=1):
        print(f"[{number}] {note}")
    return 0


if __name__ == "__main__":
    end_with(main)

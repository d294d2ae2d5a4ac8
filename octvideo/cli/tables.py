"""How commands print tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from octvideo.files import markdown


def print_table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    title: str | None = None,
    sections: bool = False,
    as_markdown: bool = False,
) -> None:
    """Prints a table; its columns but the first, which are numbers, are aligned to the right.

    Args:
        header: names of the columns.
        rows: cells.
        title: above it.
        sections: draw a line where the first cell changes.
        as_markdown: for a README, without title.
    """
    rows = list(rows)
    if as_markdown:
        print(markdown(header, rows))
        return
    drawn = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for n, name in enumerate(header):
        drawn.add_column(name, justify="right" if n else "left", no_wrap=True)
    for cells, following in zip(rows, [*rows[1:], None], strict=True):
        drawn.add_row(*cells, end_section=sections and following is not None and following[0] != cells[0])
    Console(width=120).print(drawn)  # wide enough in a log file too, which is no terminal

"""What is written of a network, once, and shown twice: as a page here, as Markdown by card_markdown.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from octvideo.evaluation.calibration import Reliability
from octvideo.evaluation.report import Figure, percent, percent_range
from octvideo.pages.page import page_html


@dataclass(frozen=True)
class Table:
    """Rows of text.

    Args:
        header: a name for each column.
        rows: as many cells each.
        left: so many columns hold names, the others numbers.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1


@dataclass(frozen=True)
class Section:
    """A part of a card; what it has is shown in this order.

    Args:
        title: of it.
        texts: paragraphs.
        chart: of scores and how often they are right; on the page alone.
        table: of figures.
        items: a list.
        code: of Python or a shell.
    """

    title: str
    texts: tuple[str, ...] = ()
    chart: Reliability | None = None
    table: Table | None = None
    items: tuple[str, ...] = ()
    code: str = ""


@dataclass(frozen=True)
class Card:
    """All that is written of a network.

    Args:
        title: its name.
        said: what it is, in a sentence.
        figures: of the test; none where there was none.
        sections: in their order.
        metadata: that the Hugging Face hub reads.
    """

    title: str
    said: str
    figures: tuple[Figure, ...] = ()
    sections: tuple[Section, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)


def card_page(card: Card) -> str:
    """The page as HTML."""
    return page_html(
        "card.html.j2",
        title=card.title,
        scripts=[],
        data=None,
        said=card.said,
        tiles=[figure_tile(figure) for figure in card.figures],
        license=str(card.metadata.get("license", "not stated")),
        sections=[
            {
                "title": section.title,
                "texts": section.texts,
                "table": section.table and {**vars(section.table), "long": len(section.table.rows) > 30},
                "items": section.items,
                "code": section.code,
                "bars": _bars(section.chart) if section.chart else [],
            }
            for section in card.sections
        ],
    )


def figure_tile(figure: Figure) -> dict[str, Any]:
    """A figure as tiles.html.j2 shows it."""
    low, high = figure.interval or (None, None)
    return {
        "name": figure.name,
        "value": percent(figure.value),
        "interval": percent_range(figure.interval),
        "low": low,
        "high": high,
        "at": figure.value,
        "count": f"{figure.hits:,} of {figure.total:,} videos" if figure.total else "",
    }


def _bars(chart: Reliability) -> list[dict[str, Any]]:
    """Each bin in a box of 1000 by 1000, from the upper left."""
    bars = []
    for one in chart.bins:
        low, high = one.interval
        bars.append(
            {
                "x": round(1000 * one.low + 4, 1),
                "width": round(1000 * (one.high - one.low) - 8, 1),
                "y": round(1000 * (1 - one.accuracy), 1),
                "height": round(1000 * one.accuracy, 1),
                "middle": round(500 * (one.low + one.high), 1),
                "top": round(1000 * (1 - high), 1),
                "bottom": round(1000 * (1 - low), 1),
                "said": f"scores {percent(one.low)} to {percent(one.high)}: {percent(one.accuracy)} of "
                f"{one.videos:,} right",
            }
        )
    return bars

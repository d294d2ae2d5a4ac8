"""What a network gets in training: strips of frames with their labels, written into the page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from octvideo.pages.page import page_html


@dataclass(frozen=True)
class Picture:
    """Strips under a title.

    Args:
        title: of a video or a batch.
        strips: a caption and the content of a PNG file, for each.
    """

    title: str
    strips: Sequence[tuple[str, bytes]]


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    title: str
    pictures: Sequence[Picture]


def browse_page(title: str, sections: Sequence[Section], settings: Sequence[tuple[str, str]]) -> str:
    """The page as HTML.

    Args:
        title: of it.
        sections: in their order.
        settings: keys of the config that made the clips, and their values.
    """
    return page_html(
        "browse.html.j2",
        title=title,
        scripts=[],
        data=None,
        settings=settings,
        sections=[
            {
                "title": section.title,
                "pictures": [
                    {
                        "title": picture.title,
                        "strips": [(caption, _source(content)) for caption, content in picture.strips],
                    }
                    for picture in section.pictures
                ],
            }
            for section in sections
        ],
    )


def _source(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"

"""The page of a video beside its timeline, and the page that lists several of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from octvideo.pages.page import counted, page_html

# What a page needs that calls `showTimeline(element, document)`.
TIMELINE_SCRIPTS = ("dom.js", "table.js", "timeline.js")
_MOST_NAMES = 4  # classes that the list shows of each video


@dataclass(frozen=True)
class ListedVideo:
    """A row of the list of videos.

    Args:
        title: its name.
        page: of it, a URL; None where there is none.
        document: see `octvideo.inference.timeline_document`; None where nothing of it could be read.
        trouble: why not all of it could be read.
    """

    title: str
    page: str | None
    document: Mapping[str, Any] | None
    trouble: str = ""


def timeline_page(document: Mapping[str, Any], *, up: str | None = None) -> str:
    """The page of one video.

    Args:
        document: see `octvideo.inference.timeline_document`.
        up: URL of the list of videos.
    """
    num_segments, num_classes = len(document["segments"]), len(document["classes"])
    said = f"{clock(document['duration'])} long, {counted(num_segments, 'segment')}, {counted(num_classes, 'class')}"
    scripts = [*TIMELINE_SCRIPTS, "timeline_start.js"]
    return page_html("timeline.html.j2", title=document["title"], scripts=scripts, data=document, said=said, up=up)


def index_page(videos: Sequence[ListedVideo], *, title: str = "Timelines") -> str:
    """The page that lists videos and leads to their pages."""
    rows = []
    for video in videos:
        document = video.document or {"duration": 0.0, "segments": [], "classes": []}
        seconds: Counter[str] = Counter()
        for one in document["segments"]:
            seconds[document["classes"][one["class"]]] += one["end"] - one["start"]
        names = [name for name, _ in seconds.most_common()]
        rows.append(
            {
                "title": video.title,
                "page": video.page,
                "trouble": video.trouble,
                "length": clock(document["duration"]) if video.document else "–",
                "num_segments": len(document["segments"]),
                "classes": names[:_MOST_NAMES],
                "num_more": max(len(names) - _MOST_NAMES, 0),
            }
        )
    said = counted(len(videos), "video")
    return page_html("index.html.j2", title=title, scripts=[], data=None, said=said, videos=rows)


def clock(seconds: float) -> str:
    """m:ss, with hours where there are some.

    Example:
        >>> clock(62.4), clock(3700)
        ('1:02', '1:01:40')
    """
    count = round(seconds)
    hours = f"{count // 3600}:{count // 60 % 60:02}" if count >= 3600 else f"{count // 60}"
    return f"{hours}:{count % 60:02}"

"""The page of `octvideo serve`: a video is chosen or recorded, and its timeline shown beside it."""

from __future__ import annotations

from collections.abc import Sequence

from octvideo.pages.page import counted, page_html
from octvideo.pages.timeline import TIMELINE_SCRIPTS


def serve_page(class_names: Sequence[str], *, max_bytes: int, max_length_sec: float) -> str:
    """The page, which asks the server that it came from.

    Args:
        class_names: that the server knows.
        max_bytes: of a video.
        max_length_sec: of a video.
    """
    return page_html(
        "serve.html.j2",
        title="What happens in your video?",
        scripts=[*TIMELINE_SCRIPTS, "camera.js", "serve.js"],
        data={"max_bytes": max_bytes, "max_length_sec": max_length_sec},
        server=True,
        names=list(class_names),
        num_classes=counted(len(class_names), "class"),
        size=f"{max_bytes / 2**20:.3g} MiB",
        length=f"{max_length_sec / 60:.3g} minutes" if max_length_sec >= 120 else f"{max_length_sec:.3g} seconds",
    )

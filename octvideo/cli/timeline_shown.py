"""What `octvideo timeline` shows of a video: its picture, and the video itself with captions."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from octvideo.errors import UserError
from octvideo.inference.segments import Segment
from octvideo.progress import Progress
from octvideo.stores import file_name


class Scored(Protocol):
    """The windows of a video: where they start and end, in seconds, and the scores of each by class."""

    starts: list[float]
    ends: list[float]
    scores: list[dict[int, float]]


def check_shown(picture: Path | None, overlay: Path | None, videos: Sequence[str]) -> None:
    """Raises what can't be meant, before hours of work.

    Raises:
        UserError: more than one video, another kind of file, or no folder for it.
    """
    for flag, file in (("--picture", picture), ("--overlay", overlay)):
        if file is not None and len(videos) != 1:
            raise UserError(f"{flag} {file}: got {len(videos)} videos, expected one")
    if picture is not None:
        from octvideo.inference.timeline_picture import check_picture

        check_picture(picture)
    if overlay is not None:
        from octvideo.video.overlay import check_overlay

        check_overlay(overlay, videos[0])


def show(
    picture: Path | None,
    overlay: Path | None,
    path: str,
    video: Scored,
    segments: Sequence[Segment],
    names: Sequence[str],
    classes: Sequence[int] | None,
) -> None:
    """Draws the picture of a video, and writes it anew with captions; what is not asked for is None.

    Args:
        picture: file to draw.
        overlay: file to write.
        path: of the video.
        video: its windows, one or more.
        segments: of it.
        names: of all classes.
        classes: those that were looked for; None is all.
    """
    if picture is None and overlay is None:
        return
    from octvideo.lettering import lacking

    title = file_name(path)
    in_pixels = overlay is not None or (picture is not None and picture.suffix.lower() == ".png")
    shown = sorted({number for top in video.scores for number in top})
    if in_pixels and (line := lacking([names[n] for n in shown], title if picture is not None else "")):
        print(line, file=sys.stderr)
    if picture is not None:
        from octvideo.inference.timeline_picture import draw_timeline

        draw_timeline(picture, video.starts, video.ends, video.scores, segments, names, title=title, classes=classes)
        print(f"the picture is {picture}", file=sys.stderr)
    if overlay is not None:
        from octvideo.inference.captions import Captions
        from octvideo.video.overlay import write_overlay

        captions = Captions(video.starts, video.ends, video.scores, segments, names)
        with Progress(f"writing {overlay.name}, seconds", max(int(video.ends[-1]), 1)) as progress:
            report = write_overlay(path, overlay, captions, on_frame=lambda time_sec: progress.update(int(time_sec)))
        for note in report.notes:
            print(f"{overlay}: {note}", file=sys.stderr)
        print(f"{report.num_frames} frames with captions are in {overlay}", file=sys.stderr)

"""Segments as files: JSON and CSV of many videos, subtitles (SubRip, WebVTT) of one."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from octvideo.errors import UserError
from octvideo.files import json_text
from octvideo.inference.segments import Segment

Segments = Mapping[str, Sequence[Segment]]  # of videos, by their paths


def segments_json(videos: Segments, names: Sequence[str]) -> str:
    """{"videos": [{"path", "segments": [{"start", "end", "class", "score"}]}]}, times in seconds."""
    content = [
        {
            "path": path,
            "segments": [
                {
                    "start": round(one.start_sec, 3),
                    "end": round(one.end_sec, 3),
                    "class": names[one.class_index],
                    "score": round(one.score, 6),
                }
                for one in segments
            ],
        }
        for path, segments in videos.items()
    ]
    return json_text({"videos": content}, indent=2) + "\n"


def segments_csv(videos: Segments, names: Sequence[str]) -> str:
    """Lines of path, start, end, class, score, after one that names them; as RFC 4180 has it."""
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(["path", "start", "end", "class", "score"])
    for path, segments in videos.items():
        for one in segments:
            row = (path, f"{one.start_sec:.3f}", f"{one.end_sec:.3f}", names[one.class_index], f"{one.score:.6f}")
            rows.writerow(row)
    return text.getvalue()


def segments_srt(videos: Segments, names: Sequence[str]) -> str:
    """Subtitles for any player.

    Many players show one subtitle at a time, so segments that overlap are cut where one of them begins or ends, and
    each piece has a line for every class.
    """
    segments = _of_one(videos)
    times = sorted({time for one in segments for time in _span(one)})
    pieces: list[tuple[int, int, list[str]]] = []
    for start, end in pairwise(times):
        lines = _captions([s for s in segments if _span(s)[0] <= start and end <= _span(s)[1]], names)
        if lines:
            pieces.append((start, end, lines))
    texts = []
    for n, (start, end, lines) in enumerate(pieces, 1):
        shown = "\n".join(line.replace("-->", "\u2192") for line in lines)
        texts.append(f"{n}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{shown}\n")
    return "\n".join(texts)


def segments_vtt(videos: Segments, names: Sequence[str]) -> str:
    """Subtitles for browsers, a cue for each segment: they show cues that overlap above each other."""
    texts = ["WEBVTT\n"]
    for one in sorted(_of_one(videos), key=_span):
        start, end = _span(one)
        (line,) = _captions([one], names)
        line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")  # no cue has "-->" then
        texts.append(f"{_clock(start, '.')} --> {_clock(end, '.')}\n{line}\n")
    return "\n".join(texts)


# By the ending of a file; those of subtitles take one video.
WRITERS: dict[str, Callable[[Segments, Sequence[str]], str]] = {
    ".json": segments_json,
    ".csv": segments_csv,
    ".srt": segments_srt,
    ".vtt": segments_vtt,
}
OF_ONE_VIDEO = frozenset({".srt", ".vtt"})


def _of_one(videos: Segments) -> Sequence[Segment]:
    if len(videos) != 1:
        raise UserError(f"subtitles: got {len(videos)} videos, expected one")
    return next(iter(videos.values()))


def _captions(segments: Sequence[Segment], names: Sequence[str]) -> list[str]:
    """A line for each, the best first. A name may hold anything but the end of a line."""
    ranked = sorted(segments, key=lambda one: (-one.score, one.class_index))
    return [f"{' '.join(names[one.class_index].split())} {100 * one.score:.0f} %" for one in ranked]


def _span(segment: Segment) -> tuple[int, int]:
    """Start and end in milliseconds, the end later."""
    start = _milliseconds(segment.start_sec)
    return start, max(_milliseconds(segment.end_sec), start + 1)


def _milliseconds(seconds: float) -> int:
    return max(round(seconds * 1000), 0)


def _clock(milliseconds: int, point: str) -> str:
    """HH:MM:SS and thousandths; hours may have more digits."""
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{point}{rest:03}"

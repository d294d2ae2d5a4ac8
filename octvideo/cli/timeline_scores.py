"""The scores of windows that `octvideo timeline` has: in memory, and in a file that a stopped run goes on with."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from octvideo.inference.segments import Segment, SegmentSettings, segments_of_top
from octvideo.inference.timeline import WindowScores
from octvideo.inference.window_lines import TopClasses
from octvideo.json_lines import JsonLines, Words
from octvideo.stores import StoredCopy

RESULTS = "octvideo timeline 1"
_WORDS = Words("file of window scores", "another model, or of other settings", "name another file")


@dataclass
class ScoredVideo:
    """What is known of a video.

    Args:
        starts, ends: of its windows, in seconds.
        scores: of each window, by class; others are 0.
        is_done: there is no more to come.
        trouble: why not all of it could be read.
        cuts: where shots begin, in seconds.
    """

    starts: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    scores: list[dict[int, float]] = field(default_factory=list)
    is_done: bool = False
    trouble: str = ""
    cuts: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class End:
    """How a video ends.

    Args:
        cuts: where shots begin, in seconds.
        trouble: why not all of it could be read.
        may_pass: see `VideoReadError`.
    """

    cuts: list[float]
    trouble: str
    may_pass: bool = False


class Scores:
    """The scores of windows, in memory and, where it is asked for, in a file that a stopped run goes on with.

    Args:
        names: of the classes.
        topk: classes that are kept of each window, at least.
        classes: that are kept; None is all.
    """

    def __init__(self, names: Sequence[str], topk: int, classes: Sequence[int] | None) -> None:
        self.videos: dict[str, ScoredVideo] = {}
        self._names = names
        self._top = TopClasses(names, topk, classes)
        self._lines: JsonLines | None = None

    def go_on_with(self, file: Path | StoredCopy, made_by: dict[str, Any], *, retry: bool = False) -> None:
        """Takes what is in a file, and writes there from now on.

        Args:
            file: of window scores.
            made_by: its first line.
            retry: videos that could not be read to their end are begun anew.

        Raises:
            UserError: see `JsonLines`.
        """
        self._lines = JsonLines(file, {"results": RESULTS, **made_by}, _WORDS)
        for entry in self._lines.entries():
            if "path" not in entry:
                continue
            video = self.videos.setdefault(entry["path"], ScoredVideo())
            if video.trouble:  # what follows is of another try, from its first window on
                video = self.videos[entry["path"]] = ScoredVideo()
            if "top" in entry:
                self._keep(video, entry["start"], entry["end"], self._top.of_listed(entry["top"]))
            else:
                video.is_done, video.trouble, video.cuts = True, entry["trouble"], entry["cuts"]
        if retry:
            # Not gone on with: the last window was moved back to where the video broke off, and the length of all of
            # them may have been judged by fewer frames.
            self.videos = {path: video for path, video in self.videos.items() if not video.trouble}
        if known := sum(len(video.starts) for video in self.videos.values()):
            print(f"{known} windows are in {file} already", file=sys.stderr)

    def is_done(self, path: str) -> bool:
        """Whether there is no more to come of a video."""
        return self.videos.setdefault(path, ScoredVideo()).is_done

    def begun(self, path: str) -> int:
        """Windows that there are of a video."""
        return len(self.videos.setdefault(path, ScoredVideo()).starts)

    def as_written(self, window: WindowScores) -> tuple[float, float, dict[int, float]]:
        """Start, end and scores of a window as its line has them, so that a stopped run gives the same segments."""
        return round(window.start_sec, 6), round(window.end_sec, 6), self._top.of(window.scores)

    def add(self, path: str, start: float, end: float, top: dict[int, float]) -> None:
        """Keeps a window, and writes its line."""
        self._keep(self.videos[path], start, end, top)
        if self._lines is not None:
            self._lines.add({"path": path, "start": start, "end": end, "top": self._top.listed(top)})

    def finish(self, path: str, end: End) -> None:
        """Notes that a video has no more windows; of one whose trouble may pass, the next run may find more."""
        video = self.videos[path]
        video.is_done, video.trouble, video.cuts = True, end.trouble, end.cuts
        if self._lines is not None and not end.may_pass:
            done = {"path": path, "windows": len(video.starts), "cuts": video.cuts, "trouble": video.trouble}
            self._lines.add(done)

    def segments(self, path: str, settings: SegmentSettings) -> list[Segment]:
        """The segments of a video."""
        video = self.videos[path]
        return segments_of_top(video.starts, video.ends, video.scores, settings, video.cuts)

    def highest(self, path: str) -> str:
        """The highest score of a video's windows and its class, "0.31 (kick)": what to choose thresholds by."""
        score, number = max((score, -number) for top in self.videos[path].scores for number, score in top.items())
        return f"{score:.2g} ({self._names[-number]})"

    def close(self) -> None:
        """Lets others write the file, and says what is in it."""
        if self._lines is not None:
            self._lines.close()
            windows = sum(len(video.starts) for video in self.videos.values())
            print(f"{windows} windows are in {self._lines.name}", file=sys.stderr)

    def _keep(self, video: ScoredVideo, start: float, end: float, top: dict[int, float]) -> None:
        video.starts.append(start)
        video.ends.append(end)
        video.scores.append(top)

"""Scores of the newest windows of a stream.

A window is taken when the engine is free for it. It is passed over, and counted, where all frames of a later one have
come, and those of its stride not in the same burst: HLS brings many seconds at once, and then none for as long.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass

from octvideo.inference.timeline import Timeline, WindowScores
from octvideo.video import LiveFrames, Window, frame_windows
from octvideo.video.live import LiveFrame


@dataclass(frozen=True)
class LiveWindow:
    """The scores of a window, with when it was.

    Args:
        scores: of it; its times count from the first frame, its indices from the last gap.
        wall: when its first frame came, in seconds since 1970, UTC.
        latency_sec: from the coming of its last frame to its scores.
        num_skipped: windows that were passed over since the one before.
        begins: it is the first one after a gap.
    """

    scores: WindowScores
    wall: float
    latency_sec: float
    num_skipped: int
    begins: bool


@dataclass
class LiveCounts:
    """What became of the windows of a stream.

    Args:
        windows: that were scored.
        skipped: that were passed over, since newer ones were there.
        latency_sum: of those scored, in seconds.
        latency_most: likewise.
    """

    windows: int = 0
    skipped: int = 0
    latency_sum: float = 0.0
    latency_most: float = 0.0

    def in_words(self, live: LiveFrames) -> str:
        """In a line."""
        text = f"{self.windows} windows scored"
        if self.windows:
            text += f", latency {self.latency_sum / self.windows:.2f} s (at most {self.latency_most:.2f} s)"
        text += f"; {self.skipped} windows skipped, {live.queue.num_dropped} of {live.num_frames} frames dropped"
        return text + (f"; the connection was cut {live.num_disconnects} times" if live.num_disconnects else "")


def live_windows(
    timeline: Timeline, live: LiveFrames, counts: LiveCounts | None = None
) -> Generator[LiveWindow, None, None]:
    """Scores of the newest windows, in order of time, until the stream is over.

    Each run of frames without a gap is scored as a file is: its last window is moved back to its end, and a run that is
    shorter than a window is one.

    Args:
        timeline: that scores them.
        live: frames of `timeline.views.short_side_px`.
        counts: is kept up to date.

    Raises:
        VideoReadError: there is no first frame; or a window's scores are not finite.
    """
    counts = counts or LiveCounts()
    for run in live.runs():
        lengths = {"window_sec": timeline.window_sec, "stride_sec": timeline.stride_sec}
        newest = _Newest(frame_windows(run, timeline.views, **lengths), timeline.stride_sec, live)
        begins = True
        with contextlib.closing(timeline.of_windows(newest, live.name, at_once=True, beside=False)) as windows:
            for scores in windows:
                latency = live.watch.seconds() - newest.last_came
                counts.windows, counts.skipped = counts.windows + 1, counts.skipped + newest.num_skipped
                counts.latency_sum += latency
                counts.latency_most = max(counts.latency_most, latency)
                yield LiveWindow(scores, newest.wall, latency, newest.num_skipped, begins)
                begins = False
        counts.skipped += newest.num_left


class _Newest:
    """Windows without those that another one follows, whose frames have all come, and at least a stride later."""

    def __init__(self, windows: Iterator[Window], stride_sec: float | None, live: LiveFrames) -> None:
        self._windows, self._stride_sec, self._live = windows, stride_sec, live
        self.num_skipped = self.num_left = 0
        self.wall = self.last_came = 0.0

    def __iter__(self) -> Iterator[Window]:
        return self

    def __next__(self) -> Window:
        self.num_left = 0
        for window in self._windows:
            stride_sec = self._stride_sec or (window.end_sec - window.start_sec) / 2
            first, last = window.frames[0], window.frames[-1]
            assert isinstance(first, LiveFrame) and isinstance(last, LiveFrame)
            queue = self._live.queue
            if self._live.newest_sec >= window.end_sec + stride_sec and queue.newest_came >= last.seconds + stride_sec:
                self.num_left += 1
                continue
            self.wall, self.last_came, self.num_skipped = first.wall, last.seconds, self.num_left
            self.num_left = 0
            return window
        raise StopIteration

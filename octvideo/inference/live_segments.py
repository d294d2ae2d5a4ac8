"""Segments of a stream, each as it closes. See `segments.py` for what a segment is.

Without smoothing these are the segments of `find_segments`. Smoothing can't look ahead here: a window's smoothed score
is the mean over those whose middles lie at most `smooth_sec` before its own, and not across a gap.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from octvideo.inference.segments import Segment, SegmentSettings


@dataclass
class _Mean:
    """Of scores, each over the time that its window speaks for."""

    seconds: float = 0.0
    total: float = 0.0

    def add(self, seconds: float, total: float) -> None:
        self.seconds, self.total = self.seconds + seconds, self.total + total


@dataclass
class _Class:
    """What is known of one class.

    Args:
        run: windows in a row at `leave` or more, with the start of the first; None where the last window has less.
        has_entered: one of them reaches `enter`.
        held: start and end of a segment that the next run may still join, with its mean.
        since: all windows after it.
    """

    run: tuple[float, _Mean] | None = None
    has_entered: bool = False
    held: tuple[float, float, _Mean] | None = None
    since: _Mean = field(default_factory=_Mean)


class LiveSegments:
    """Takes the scores of windows in order of time, and gives segments that are over.

    Args:
        settings: what counts as a segment.
        num_classes: K.

    What it keeps does not grow with time: the windows of `smooth_sec`, and sums for each class.
    """

    def __init__(self, settings: SegmentSettings, num_classes: int) -> None:
        self._settings = settings
        numbers = range(num_classes) if settings.classes is None else sorted(set(settings.classes))
        self._thresholds = {n: settings.thresholds(n) for n in numbers}
        self._leave = np.full(num_classes, np.inf)
        for n, (_, leave) in self._thresholds.items():
            self._leave[n] = leave
        self._classes: dict[int, _Class] = {}  # those in a run, or with a segment that is held
        self._recent: deque[tuple[float, np.ndarray]] = deque()  # middles and scores
        self._newest: tuple[float, float, float, np.ndarray] | None = None  # where its cell starts; start, end, scores

    def add(self, start_sec: float, end_sec: float, scores: np.ndarray, *, after_gap: bool = False) -> list[Segment]:
        """The segments that are known to be over now, by start, then by class.

        Args:
            start_sec: of the next window, not before that of the last.
            end_sec: excluded.
            scores: (K,).
            after_gap: its scores are not smoothed with those before.

        Raises:
            ValueError: windows out of order.
        """
        if end_sec <= start_sec or (self._newest is not None and start_sec < self._newest[1]):
            raise ValueError(f"got a window from {start_sec} to {end_sec}, expected the next one in time")
        scores = np.asarray(scores, np.float64)
        left, right, follows = start_sec, start_sec, False
        if self._newest is not None:
            _, before_start, before_end, _ = self._newest
            between = (before_start + before_end + start_sec + end_sec) / 4
            left, right = max(between, start_sec), min(between, before_end)
            follows = left <= right
            self._count(right)
        smoothed = self._smoothed((start_sec + end_sec) / 2, scores, after_gap)
        is_in = smoothed >= self._leave
        closed: list[Segment] = []
        for number in sorted({*self._classes, *np.flatnonzero(is_in).tolist()}):
            one = self._classes.setdefault(number, _Class())
            if one.run is not None and not (is_in[number] and follows):
                closed += self._closed(number, one, right)
            if is_in[number]:
                if one.run is None:
                    one.run, one.has_entered = (left, _Mean()), False
                one.has_entered |= bool(smoothed[number] >= self._thresholds[number][0])
            # Whatever begins from here on is too late to join it.
            begins = left if one.run is None else one.run[0]
            if one.held is not None and begins - one.held[1] >= self._settings.join_sec:
                closed += self._given(number, one)
            if one.run is None and one.held is None:
                del self._classes[number]
        self._newest = left, start_sec, end_sec, scores
        return _in_order(closed)

    def close(self) -> list[Segment]:
        """Those that are open; there is no next window."""
        closed: list[Segment] = []
        if self._newest is not None:
            end = self._newest[2]
            self._count(end)
            for number, one in self._classes.items():
                if one.run is not None:
                    closed += self._closed(number, one, end)
                closed += self._given(number, one)
        self._classes, self._newest = {}, None
        self._recent.clear()
        return _in_order(closed)

    def _count(self, right: float) -> None:
        """Adds the newest window, whose cell is known now, to all means that it belongs to."""
        assert self._newest is not None
        left, _, _, scores = self._newest
        for number, one in self._classes.items():
            seconds = right - left
            if one.run is not None:
                one.run[1].add(seconds, seconds * float(scores[number]))
            if one.held is not None:
                one.since.add(seconds, seconds * float(scores[number]))

    def _smoothed(self, middle: float, scores: np.ndarray, after_gap: bool) -> np.ndarray:
        if not self._settings.smooth_sec:
            return scores
        if after_gap:
            self._recent.clear()
        self._recent.append((middle, scores))
        while self._recent[0][0] < middle - self._settings.smooth_sec - 1e-9:
            self._recent.popleft()
        return np.mean([scores for _, scores in self._recent], 0)

    def _closed(self, number: int, one: _Class, end: float) -> list[Segment]:
        """Ends a run; it becomes the segment that is held, alone or joined to the one before."""
        assert one.run is not None
        (start, mean), one.run = one.run, None
        if not one.has_entered:
            return []
        if one.held is not None and start - one.held[1] < self._settings.join_sec:
            first, _, total = one.held
            total.add(one.since.seconds, one.since.total)
            one.held, one.since = (first, end, total), _Mean()
            return []
        given = self._given(number, one)
        one.held, one.since = (start, end, mean), _Mean()
        return given

    def _given(self, number: int, one: _Class) -> list[Segment]:
        """The segment that is held, if there is one and it is long enough."""
        if one.held is None:
            return []
        (start, end, mean), one.held = one.held, None
        if end - start < self._settings.min_sec:
            return []
        return [Segment(start, end, number, mean.total / mean.seconds)]


def _in_order(segments: list[Segment]) -> list[Segment]:
    return sorted(segments, key=lambda segment: (segment.start_sec, segment.class_index))

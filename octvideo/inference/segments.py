"""From the scores of windows to segments: from when to when a video shows a class.

Each window speaks for the moments that are nearer to its middle than to another's. Scores are smoothed over time; a
segment is a run of windows at `leave` or more, one of which at least has `enter` or more::

    score   .1  .5  .6  .9  .7  .5  .2  .5  .1         enter .8, leave .4
                [---------------]                      the later .5 reaches no .8

Two thresholds keep a score that wavers about one of them from being many segments.

Where a film is cut, a window sees two shots and says little about either. There the nearest window that lies wholly in
the shot speaks::

    shots     [------------)[----------------------)
    windows   1 [-----)  2 [-----)  3 [-----)  4 [-----)
    speaks    1 1 1 1 1 1 1  3 3 3 3 3 3  3 4 4 4 4 4 4
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from octvideo.errors import UserError

_ROUNDED_SEC = 0.002  # what times may have lost when they were written


@dataclass(frozen=True)
class SegmentSettings:
    """What counts as a segment.

    Args:
        enter: smoothed score that a segment reaches at least once.
        leave: that it has all along; None is 0.6 of `enter`.
        enter_of: classes, by their numbers, with another `enter`; their `leave` changes in proportion.
        classes: numbers of those that are looked for; None is all.
        smooth_sec: scores become the mean over windows whose middles lie no farther apart than half of this.
        min_sec: shorter segments are left out.
        join_sec: segments of a class with a shorter gap between them become one, before `min_sec` counts.
        only_best: each moment belongs to the best of the classes that are looked for, and to no other.

    Raises:
        UserError: a value that can't be meant.
    """

    enter: float = 0.5
    leave: float | None = None
    enter_of: Mapping[int, float] = field(default_factory=dict)
    classes: Sequence[int] | None = None
    smooth_sec: float = 0.0
    min_sec: float = 0.0
    join_sec: float = 0.0
    only_best: bool = False

    def __post_init__(self) -> None:
        for value in (self.enter, *self.enter_of.values()):
            if not 0 < value <= 1:
                raise UserError(f"threshold: got {value}, expected a score, more than 0 and at most 1")
        if self.leave is not None and not 0 < self.leave <= self.enter:
            raise UserError(f"leave: got {self.leave}, expected more than 0 and at most the threshold, {self.enter}")
        for name in ("smooth_sec", "min_sec", "join_sec"):
            if not 0 <= getattr(self, name) < 1e6:
                raise UserError(f"{name}: got {getattr(self, name)}, expected seconds, 0 or more")

    def thresholds(self, number: int) -> tuple[float, float]:
        """Where segments of a class are entered, and where they are left."""
        ratio = 0.6 if self.leave is None else self.leave / self.enter
        enter = self.enter_of.get(number, self.enter)
        return enter, enter * ratio


@dataclass(frozen=True)
class Segment:
    """Some time of one class.

    Args:
        start_sec: of the segment.
        end_sec: excluded.
        class_index: in the model's order.
        score: mean over the segment's time, of scores as the network gave them.
    """

    start_sec: float
    end_sec: float
    class_index: int
    score: float


def find_segments(
    starts_sec: Sequence[float],
    ends_sec: Sequence[float],
    scores: np.ndarray,
    settings: SegmentSettings,
    cuts_sec: Sequence[float] = (),
) -> list[Segment]:
    """The segments of a video, by their start, then by class.

    Args:
        starts_sec: of N windows, increasing.
        ends_sec: likewise, excluded.
        scores: (N, K).
        settings: what counts as one.
        cuts_sec: where shots begin, increasing, as `FileFrames` finds them; the first one may be left out.

    Raises:
        ValueError: numbers of windows that differ, or windows out of order.
    """
    starts, ends = np.asarray(starts_sec, np.float64), np.asarray(ends_sec, np.float64)
    if not len(starts) == len(ends) == len(scores) or (np.diff(starts) < 0).any() or (ends <= starts).any():
        raise ValueError(
            f"got {len(starts)} starts, {len(ends)} ends, {len(scores)} scores, expected as many, in order"
        )
    if not len(starts):
        return []
    scores = np.asarray(scores, np.float64)
    wanted = list(range(scores.shape[1])) if settings.classes is None else sorted(set(settings.classes))
    cells, speaks, smoothed = _of_shots(starts, ends, scores, np.asarray(cuts_sec, np.float64), settings.smooth_sec)
    scores = scores[speaks]  # (M,K)
    if settings.only_best and wanted:
        best = smoothed[:, wanted].max(1, keepdims=True)
        smoothed = np.where(smoothed == best, smoothed, 0.0)
    # Cells that follow each other without a gap make runs.
    follows = np.append(False, cells[1:, 0] <= cells[:-1, 1])
    found = []
    for number in wanted:
        enter, leave = settings.thresholds(number)
        runs: list[tuple[int, int]] = []  # windows [first, stop)
        for first, stop in _runs(smoothed[:, number] >= leave, follows):
            if smoothed[first:stop, number].max() < enter:
                continue
            if runs and cells[first, 0] - cells[runs[-1][1] - 1, 1] < settings.join_sec:
                runs[-1] = runs[-1][0], stop
            else:
                runs.append((first, stop))
        lengths = cells[:, 1] - cells[:, 0]
        for first, stop in runs:
            start, end = float(cells[first, 0]), float(cells[stop - 1, 1])
            if end - start >= settings.min_sec:
                mean = float(np.average(scores[first:stop, number], weights=lengths[first:stop]))
                found.append(Segment(start, end, number, mean))
    return sorted(found, key=lambda segment: (segment.start_sec, segment.class_index))


def segments_of_top(
    starts_sec: Sequence[float],
    ends_sec: Sequence[float],
    tops: Sequence[Mapping[int, float]],
    settings: SegmentSettings,
    cuts_sec: Sequence[float] = (),
) -> list[Segment]:
    """The same of windows of which some classes are known; of classes that reach their threshold nowhere there is no
    need to look for any.

    Args:
        starts_sec, ends_sec, settings, cuts_sec: see `find_segments`.
        tops: of each window, scores by the number of the class; others are 0.

    Raises:
        ValueError: see `find_segments`.
    """
    best: dict[int, float] = {}
    for top in tops:
        for number, score in top.items():
            best[number] = max(score, best.get(number, 0.0))
    # The best class of a moment may be one that reaches no threshold.
    classes = sorted(n for n, score in best.items() if settings.only_best or score >= settings.thresholds(n)[0])
    if settings.classes is not None:
        classes = sorted(set(classes) & set(settings.classes))
    column = {number: n for n, number in enumerate(classes)}
    scores = np.zeros((len(tops), len(classes)), np.float32)
    for row, top in zip(scores, tops, strict=True):
        for number, score in top.items():
            if number in column:
                row[column[number]] = score
    of_columns = {column[n]: enter for n, enter in settings.enter_of.items() if n in column}
    own = replace(settings, classes=None, enter_of=of_columns)
    found = find_segments(starts_sec, ends_sec, scores, own, cuts_sec)
    return [replace(segment, class_index=classes[segment.class_index]) for segment in found]


def window_cells(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The time that each window speaks for, (N, 2): up to halfway to the next one's middle, and no farther than itself.

    Example:
        >>> window_cells(np.array([0.0, 2.0, 9.0]), np.array([4.0, 6.0, 13.0])).tolist()
        [[0.0, 3.0], [3.0, 6.0], [9.0, 13.0]]
    """
    middles = (starts + ends) / 2
    between = (middles[1:] + middles[:-1]) / 2
    left = np.append(starts[:1], np.maximum(between, starts[1:]))
    right = np.append(np.minimum(between, ends[:-1]), ends[-1:])
    return np.stack([left, right], 1)


def _of_shots(
    starts: np.ndarray, ends: np.ndarray, scores: np.ndarray, cuts: np.ndarray, smooth_sec: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cells of time (M, 2), the window that speaks for each (M,), and its scores (M, K), smoothed within the shot.

    Without cuts these are the `window_cells`.
    """
    cells, middles = window_cells(starts, ends), (starts + ends) / 2
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for begin, end in pairwise([-np.inf, *cuts, np.inf]):
        first, stop = np.searchsorted(cells[:, 1], begin, "right"), np.searchsorted(cells[:, 0], end, "left")
        if first >= stop:
            continue
        parts = cells[first:stop].clip(begin, end)
        # Windows that lie in the shot; where there are none, the one that shows most of it.
        low, high = np.searchsorted(starts, begin - _ROUNDED_SEC), np.searchsorted(ends, end + _ROUNDED_SEC, "right")
        if low >= high:
            seen = np.minimum(ends[first:stop], end) - np.maximum(starts[first:stop], begin)
            low = first + int(seen.argmax())
            high = low + 1
        speaks = np.arange(first, stop).clip(low, high - 1)
        found.append((parts, speaks, _smoothed(middles[low:high], scores[low:high], smooth_sec)[speaks - low]))
    parts, windows, smoothed = zip(*found, strict=True)
    return np.concatenate(parts), np.concatenate(windows), np.concatenate(smoothed)


def _smoothed(middles: np.ndarray, scores: np.ndarray, smooth_sec: float) -> np.ndarray:
    """(N, K), each the mean of its neighbours in time."""
    reach = smooth_sec / 2 + 1e-9
    first = np.searchsorted(middles, middles - reach, side="left")
    stop = np.searchsorted(middles, middles + reach, side="right")
    sums = np.concatenate([np.zeros((1, scores.shape[1])), np.cumsum(scores, 0)])
    return (sums[stop] - sums[first]) / (stop - first)[:, None]


def _runs(is_in: np.ndarray, follows: np.ndarray) -> list[tuple[int, int]]:
    """[first, stop) of the windows in a row that are in."""
    runs: list[tuple[int, int]] = []
    for n in np.flatnonzero(is_in).tolist():
        if runs and runs[-1][1] == n and follows[n]:
            runs[-1] = runs[-1][0], n + 1
        else:
            runs.append((n, n + 1))
    return runs

"""Segments of a stream are those of a file, where nothing is smoothed; and smoothing looks back only."""

from __future__ import annotations

import numpy as np
import pytest

from octvideo.inference.live_segments import LiveSegments
from octvideo.inference.segments import Segment, SegmentSettings, find_segments


def windows_of(seed: int, num_windows: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Starts, ends and scores (N, 3): of several lengths and strides, with gaps, and scores that waver."""
    rng = np.random.default_rng(seed)
    starts = np.cumsum(rng.choice([0.5, 0.5, 0.5, 1.0, 4.0], num_windows)).astype(float)
    ends = starts + rng.choice([1.0, 1.5], num_windows)
    levels = np.repeat(rng.random((num_windows // 4, 3)), 4, 0) + rng.normal(0, 0.15, (num_windows, 3))
    return starts, ends, levels.clip(0, 1).astype(np.float32)


def one_by_one(starts: np.ndarray, ends: np.ndarray, scores: np.ndarray, settings: SegmentSettings) -> list[Segment]:
    live = LiveSegments(settings, scores.shape[1])
    found: list[Segment] = []
    for start, end, row in zip(starts, ends, scores, strict=True):
        closed = live.add(float(start), float(end), row)
        assert all(segment.end_sec <= (start + end) / 2 for segment in closed)
        found += closed
    return sorted([*found, *live.close()], key=lambda one: (one.start_sec, one.class_index))


def rounded(segments: list[Segment]) -> list[tuple[float, float, int, float]]:
    return [(round(s.start_sec, 9), round(s.end_sec, 9), s.class_index, round(s.score, 6)) for s in segments]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    "settings",
    [
        SegmentSettings(0.6, 0.4),
        SegmentSettings(0.7, 0.3, {1: 0.9}, join_sec=2.5),
        SegmentSettings(0.5, min_sec=1.5, join_sec=5.0, classes=[2, 0]),
    ],
)
def test_without_smoothing_they_are_those_of_a_file(settings: SegmentSettings, seed: int) -> None:
    starts, ends, scores = windows_of(seed)
    expected = find_segments(starts, ends, scores, settings)
    assert expected
    assert rounded(one_by_one(starts, ends, scores, settings)) == rounded(expected)


def slow_reference(
    starts: np.ndarray, ends: np.ndarray, scores: np.ndarray, enter: float, leave: float, smooth_sec: float
) -> list[tuple[float, float, int, float]]:
    """By the definition, window by window: no window is known before the next one is looked at."""
    middles, found = (starts + ends) / 2, []
    num_windows = len(starts)
    cell = [[starts[n], ends[n]] for n in range(num_windows)]
    for n in range(num_windows - 1):
        half = (middles[n] + middles[n + 1]) / 2
        cell[n][1], cell[n + 1][0] = min(half, ends[n]), max(half, starts[n + 1])
    for k in range(scores.shape[1]):
        first = None
        for n in range(num_windows + 1):
            is_in = False
            if n < num_windows:
                back = [m for m in range(n + 1) if middles[n] - middles[m] <= smooth_sec + 1e-9]
                is_in = np.mean([float(scores[m, k]) for m in back]) >= leave
            follows = 0 < n < num_windows and cell[n][0] <= cell[n - 1][1]
            if first is not None and not (is_in and follows):
                inside = range(first, n)
                tops = []
                for i in inside:
                    back = [m for m in range(i + 1) if middles[i] - middles[m] <= smooth_sec + 1e-9]
                    tops.append(np.mean([float(scores[m, k]) for m in back]))
                if max(tops) >= enter:
                    seconds = [cell[i][1] - cell[i][0] for i in inside]
                    total = sum(s * float(scores[i, k]) for s, i in zip(seconds, inside, strict=True))
                    score = total / sum(seconds)
                    found.append((round(cell[first][0], 9), round(cell[n - 1][1], 9), k, round(score, 6)))
                first = None
            if first is None and is_in:
                first = n
    return sorted(found, key=lambda one: (one[0], one[2]))


@pytest.mark.parametrize("seed", range(4))
def test_smoothing_is_the_mean_of_the_time_before(seed: int) -> None:
    starts, ends, scores = windows_of(seed)
    found = one_by_one(starts, ends, scores, SegmentSettings(0.6, 0.4, smooth_sec=1.5))
    expected = slow_reference(starts, ends, scores, 0.6, 0.4, 1.5)
    assert rounded(found) == expected and expected
    assert rounded(one_by_one(starts, ends, scores, SegmentSettings(0.6, 0.4))) != expected


def test_segments_come_when_they_close_and_not_later() -> None:
    live = LiveSegments(SegmentSettings(0.6, 0.4), 2)
    assert live.add(0, 2, np.array([0.7, 0.1])) == []
    assert live.add(1, 3, np.array([0.5, 0.7])) == []
    assert rounded(live.add(2, 4, np.array([0.3, 0.7]))) == [(0, 2.5, 0, round((1.5 * 0.7 + 0.5) / 2.5, 6))]
    assert rounded(live.close()) == [(1.5, 4, 1, 0.7)] and live.close() == []


def test_what_joins_is_held_until_nothing_can_join_it() -> None:
    live = LiveSegments(SegmentSettings(0.6, 0.4, join_sec=2.0), 1)
    scores = [0.7, 0.1, 0.7, 0.1, 0.1, 0.1, 0.1]
    closed = [live.add(n, n + 1, np.array([score])) for n, score in enumerate(scores)]
    assert [rounded(one) for one in closed] == [[], [], [], [], [], [(0, 3, 0, 0.5)], []]


def test_scores_are_not_smoothed_over_a_gap_and_no_state_grows() -> None:
    live = LiveSegments(SegmentSettings(0.6, 0.4, smooth_sec=4.0), 1)
    for n in range(10_000):
        live.add(n, n + 1, np.array([0.9]))
    assert len(vars(live)["_recent"]) == 5
    assert rounded(live.add(10_000, 10_001, np.array([0.1]), after_gap=True)) == [(0, 10_000, 0, 0.9)]
    with pytest.raises(ValueError, match="expected the next one in time"):
        live.add(0, 1, np.array([0.9]))

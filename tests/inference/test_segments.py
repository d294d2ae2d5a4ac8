"""Segments against a slow reference, and the files that they are written to."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest

from octvideo.errors import UserError
from octvideo.inference.segment_files import segments_csv, segments_json, segments_srt, segments_vtt
from octvideo.inference.segments import Segment, SegmentSettings, find_segments, window_cells

NAMES = ["walk", 'jump "high", <b>&\n-->', "跳 قفز"]


def slow_segments(
    starts: list[float], ends: list[float], scores: np.ndarray, settings: SegmentSettings
) -> list[tuple[float, float, int, float]]:
    """By a grid of moments: what each of them shows, then what lies together."""
    num, tick = len(starts), 0.125  # windows begin and end at multiples of 0.25
    middles = [(a + b) / 2 for a, b in zip(starts, ends, strict=True)]
    near = [[m for m in range(num) if abs(middles[m] - middles[n]) <= settings.smooth_sec / 2] for n in range(num)]
    found = []
    for k in range(scores.shape[1]) if settings.classes is None else settings.classes:
        enter, leave = settings.thresholds(k)
        smooth = [float(np.mean([scores[m, k] for m in near[n]])) for n in range(num)]
        owner: dict[int, int] = {}  # moment -> the window that speaks for it
        for moment in range(int(min(starts) / tick), int(max(ends) / tick)):
            time = (moment + 0.5) * tick
            inside = [n for n in range(num) if starts[n] <= time < ends[n]]
            if inside:
                owner[moment] = min(inside, key=lambda n: (abs(middles[n] - time), n))
        runs: list[list[int]] = []
        for moment in sorted(moment for moment, n in owner.items() if smooth[n] >= leave):
            if runs and runs[-1][-1] == moment - 1:
                runs[-1].append(moment)
            else:
                runs.append([moment])
        runs = [run for run in runs if max(smooth[owner[moment]] for moment in run) >= enter]
        joined: list[list[int]] = []
        for run in runs:
            if joined and (run[0] - joined[-1][-1] - 1) * tick < settings.join_sec:
                joined[-1] += [m for m in range(joined[-1][-1] + 1, run[0]) if m in owner] + run
            else:
                joined.append(run)
        for run in joined:
            if (run[-1] + 1 - run[0]) * tick >= settings.min_sec:
                mean = float(np.mean([scores[owner[moment], k] for moment in run]))
                found.append((run[0] * tick, (run[-1] + 1) * tick, k, mean))
    return sorted(found, key=lambda row: (row[0], row[2]))


@pytest.mark.parametrize("seed", range(40))
def test_segments_are_those_of_a_slow_reference(seed: int) -> None:
    random = np.random.default_rng(seed)
    length = float(random.choice([1.0, 2.0, 3.0]))
    starts = np.cumsum(random.choice([0.5, 1.0, 1.0, 4.0], 30)).tolist()
    ends = [start + length for start in starts]
    scores = random.random((30, 3)) ** 1.5
    settings = SegmentSettings(
        enter=0.7,
        leave=None if seed % 2 else 0.3,
        enter_of={1: 0.5} if seed % 3 else {},
        classes=[0, 1] if seed % 5 == 0 else None,
        smooth_sec=float(random.choice([0.0, 2.0, 3.0])),
        min_sec=float(random.choice([0.0, 2.0])),
        join_sec=float(random.choice([0.0, 1.5])),
    )
    found = find_segments(starts, ends, scores, settings)
    expected = slow_segments(starts, ends, scores, settings)
    assert [(s.start_sec, s.end_sec, s.class_index) for s in found] == [row[:3] for row in expected]
    assert [s.score for s in found] == pytest.approx([row[3] for row in expected])
    assert expected or settings.smooth_sec


@pytest.mark.parametrize("seed", range(10))
def test_by_a_cut_the_nearest_window_of_the_shot_speaks(seed: int) -> None:
    random = np.random.default_rng(seed)
    starts = np.arange(30) * 0.5
    ends = starts + 2.0
    cuts = np.unique(random.integers(1, 60, 5) * 0.25)
    scores = random.random((30, 2))
    found = find_segments(starts, ends, scores, SegmentSettings(enter=0.5, leave=0.5), cuts)
    said = {(one.class_index, n) for one in found for n in range(round(one.start_sec * 8), round(one.end_sec * 8))}
    for tick in range(132):
        time = (tick + 0.5) / 8
        begin, end = max([0.0, *cuts[cuts <= time]]), min([99.0, *cuts[cuts > time]])
        inside = [n for n in range(30) if begin <= starts[n] and ends[n] <= end]
        if inside:
            speaks = {min(inside, key=lambda n: (abs(starts[n] + 1 - time), n))}
        else:  # any of those that show most of the shot
            shown = np.minimum(ends, end) - np.maximum(starts, begin)
            speaks = {n for n in range(30) if shown[n] >= shown.max() - 1e-9}
        for number in range(2):
            assert ((number, tick) in said) in {bool(scores[n, number] >= 0.5) for n in speaks}, (tick, cuts)


def test_segments_go_on_over_cuts_and_scores_are_not_smoothed_over_them() -> None:
    starts = np.arange(8.0)
    scores = np.array([[0.9, 0.1]] * 4 + [[0.1, 0.9]] * 4)
    settings = SegmentSettings(enter=0.5, leave=0.5, smooth_sec=4.0)
    assert [(s.start_sec, s.end_sec) for s in find_segments(starts, starts + 2, scores, settings, [4.5])] == [
        (0, 4.5),
        (4.5, 9),
    ]
    (one,) = find_segments(starts, starts + 2, scores * 0 + [[0.9, 0]], settings, [2.0, 4.5])
    assert (one.start_sec, one.end_sec, one.score) == (0, 9, pytest.approx(0.9))


def test_only_the_best_class_of_a_moment() -> None:
    starts = np.arange(4.0)
    scores = np.array([[0.4, 0.3, 0.1], [0.4, 0.3, 0.1], [0.2, 0.3, 0.1], [0.2, 0.3, 0.1]])
    best = SegmentSettings(enter=0.2, only_best=True)
    found = find_segments(starts, starts + 1, scores, best)
    assert [(s.start_sec, s.end_sec, s.class_index) for s in found] == [(0, 2, 0), (2, 4, 1)]
    chosen = find_segments(starts, starts + 1, scores, SegmentSettings(enter=0.2, classes=[1, 2], only_best=True))
    assert [(s.start_sec, s.end_sec, s.class_index) for s in chosen] == [(0, 4, 1)]


def test_the_example_of_the_docstring() -> None:
    scores = np.array([[0.1, 0.5, 0.6, 0.9, 0.7, 0.5, 0.2, 0.5, 0.1]]).T
    found = find_segments(range(9), range(1, 10), scores, SegmentSettings(enter=0.8, leave=0.4))
    assert found == [Segment(1.0, 6.0, 0, pytest.approx(0.64))]
    assert find_segments([], [], np.zeros((0, 4)), SegmentSettings()) == []


def test_windows_speak_for_all_time_that_they_show_and_no_more() -> None:
    cells = window_cells(np.array([0.0, 2.0, 3.0, 9.0]), np.array([4.0, 6.0, 7.0, 13.0]))
    assert cells.tolist() == [[0, 3], [3, 4.5], [4.5, 7], [9, 13]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"enter": 0.0}, "threshold: got 0.0, expected a score, more than 0 and at most 1"),
        ({"enter_of": {1: 1.5}}, "threshold: got 1.5"),
        ({"leave": 0.6}, "leave: got 0.6, expected more than 0 and at most the threshold, 0.5"),
        ({"smooth_sec": -1.0}, "smooth_sec: got -1.0, expected seconds, 0 or more"),
    ],
)
def test_settings_that_can_not_be_meant(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SegmentSettings(**settings)
    with pytest.raises(ValueError, match="expected as many, in order"):
        find_segments([1.0, 0.0], [2.0, 3.0], np.zeros((2, 1)), SegmentSettings())


# ── files ───────────────────────────────────────────────────────────────────────────────────────────────────

OVERLAPPING = [Segment(0.0, 3661.0004, 0, 0.9), Segment(2.5, 4.0, 1, 0.95), Segment(360000.0, 360000.0001, 2, 0.5)]


def test_json_and_csv_give_back_what_was_written() -> None:
    videos = {"a, b.mp4": OVERLAPPING, "none.mp4": []}
    content = json.loads(segments_json(videos, NAMES))["videos"]
    assert [video["path"] for video in content] == list(videos)
    assert content[0]["segments"][1] == {"start": 2.5, "end": 4.0, "class": NAMES[1], "score": 0.95}
    text = segments_csv(videos, NAMES)
    assert text.startswith("path,start,end,class,score\r\n")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert rows[1] == {"path": "a, b.mp4", "start": "2.500", "end": "4.000", "class": NAMES[1], "score": "0.950000"}
    assert len(rows) == 3


def test_subrip_has_one_subtitle_at_a_time() -> None:
    assert segments_srt({"a.mp4": OVERLAPPING}, NAMES) == (
        "1\n00:00:00,000 --> 00:00:02,500\nwalk 90 %\n\n"
        '2\n00:00:02,500 --> 00:00:04,000\njump "high", <b>& → 95 %\nwalk 90 %\n\n'
        "3\n00:00:04,000 --> 01:01:01,000\nwalk 90 %\n\n"
        "4\n100:00:00,000 --> 100:00:00,001\n跳 قفز 50 %\n"
    )


def test_webvtt_has_a_cue_for_each_segment() -> None:
    assert segments_vtt({"a.mp4": OVERLAPPING}, NAMES) == (
        "WEBVTT\n\n"
        "00:00:00.000 --> 01:01:01.000\nwalk 90 %\n\n"
        '00:00:02.500 --> 00:00:04.000\njump "high", &lt;b&gt;&amp; --&gt; 95 %\n\n'
        "100:00:00.000 --> 100:00:00.001\n跳 قفز 50 %\n"
    )
    assert segments_vtt({"a.mp4": []}, NAMES) == "WEBVTT\n" and segments_srt({"a.mp4": []}, NAMES) == ""


def test_subtitles_are_of_one_video() -> None:
    for write in (segments_srt, segments_vtt):
        with pytest.raises(UserError, match="subtitles: got 2 videos, expected one"):
            write({"a": [], "b": []}, NAMES)

"""What is shown of a video's scores: some of the classes, and as many columns of time as there is room for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from octvideo.inference.segments import Segment


def chosen_rows(
    scores: Sequence[Mapping[int, float]], segments: Sequence[Segment], among: Sequence[int], most: int
) -> list[int]:
    """Classes with segments by when the first of them starts, then those with the highest scores."""
    of_segments: dict[int, float] = {}  # class -> seconds
    for one in segments:
        of_segments[one.class_index] = of_segments.get(one.class_index, 0.0) + one.end_sec - one.start_sec
    best = dict.fromkeys(among, 0.0)
    for top in scores:
        for number, score in top.items():
            if score > best.get(number, score):
                best[number] = score
    with_segments = sorted(of_segments, key=lambda n: -of_segments[n])[:most]
    first = {one.class_index: one.start_sec for one in reversed(sorted(segments, key=lambda one: one.start_sec))}
    with_segments.sort(key=lambda n: (first[n], n))
    others = sorted((n for n in best if n not in of_segments), key=lambda n: (-best[n], n))
    return with_segments + others[: most - len(with_segments)]


def score_columns(
    cells: np.ndarray,
    scores: Sequence[Mapping[int, float]],
    rows: Sequence[int],
    span: tuple[float, float],
    num_columns: int,
) -> np.ndarray:
    """The highest score of each row in each column of pixels, (rows, columns); NaN where no window speaks."""
    values = np.zeros((len(cells) + 1, len(rows)), np.float32)  # one more, which ends the last reduction
    column = {number: n for n, number in enumerate(rows)}
    for row, top in zip(values, scores, strict=False):
        for number, score in top.items():
            if number in column:
                row[column[number]] = score
    edges = np.linspace(*span, num_columns + 1)
    first = np.searchsorted(cells[:, 1], edges[:-1], side="right")
    stop = np.searchsorted(cells[:, 0], edges[1:], side="left")
    pairs = np.stack([np.minimum(first, len(cells)), np.minimum(stop, len(cells))], 1).ravel()
    heat = np.maximum.reduceat(values, pairs)[::2]  # (columns, rows)
    heat[stop <= first] = np.nan
    return heat.T

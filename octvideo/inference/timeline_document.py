"""A video's timeline as a JSON document: what `octvideo/pages/timeline.js` shows beside the video.

::

    {
      "title": "film.mp4",
      "video": "videos/film.mp4",          URL for a browser; null where there is no video to play
      "duration": 62.5,                    seconds that the windows reach to
      "classes": ["wave", "sit"],          rows, from top to bottom
      "starts": [0, 1.5], "ends": [1.5, 3],    N cells of time, in seconds, in order; there may be gaps
      "scores": [[0.9, 0.1], [0, 0.2]],    for each class N scores, 0 to 1; null where no window speaks
      "segments": [{"start": 0, "end": 1.5, "class": 0, "score": 0.9}],    "class" is a row
      "notes": ["2 of 400 classes: ..."]   lines for the reader
    }
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from octvideo.inference.score_rows import chosen_rows, score_columns
from octvideo.inference.segments import Segment, window_cells


def timeline_document(
    starts_sec: Sequence[float],
    ends_sec: Sequence[float],
    scores: Sequence[Mapping[int, float]],
    segments: Sequence[Segment],
    names: Sequence[str],
    *,
    title: str = "",
    video: str | None = None,
    classes: Sequence[int] | None = None,
    notes: Sequence[str] = (),
    most_rows: int = 20,
    most_cells: int = 2000,
) -> dict[str, Any]:
    """The document of a video; of any length it has about the same size.

    Args:
        starts_sec: of N windows, increasing.
        ends_sec: likewise, excluded.
        scores: of each window, by class; those that are missing are 0.
        segments: of the video.
        names: of all classes.
        title: above.
        video: URL of it.
        classes: that rows are chosen from; None is all.
        notes: lines that come before those that say what is left out.
        most_rows: of classes. Those that have segments come first, then those with the highest scores.
        most_cells: of time. Of more windows, each cell has the highest score in it.
    """
    among = range(len(names)) if classes is None else sorted(set(classes))
    rows = chosen_rows(scores, segments, among, most_rows)
    place = {number: row for row, number in enumerate(rows)}
    cells = window_cells(np.asarray(starts_sec, np.float64), np.asarray(ends_sec, np.float64))  # (N,2)
    span = (float(cells[0, 0]), float(cells[-1, 1])) if len(cells) else (0.0, 0.0)
    said = list(notes)
    if left_out := len(among) - len(rows):
        said.append(
            f"{len(rows)} of {len(among)} classes: those with segments and the highest scores; {left_out} left out"
        )
    if len(cells) > most_cells:
        said.append(f"{len(cells):,} windows: each of {most_cells:,} cells of time shows its highest score")
        values = score_columns(cells, scores, rows, span, most_cells)  # (rows, cells)
        edges = np.linspace(*span, most_cells + 1)
        cells = np.stack([edges[:-1], edges[1:]], 1)
    else:
        values = np.array([[top.get(number, 0.0) for top in scores] for number in rows], np.float64)
    shown = [one for one in segments if one.class_index in place]
    if hidden := len(segments) - len(shown):
        said.append(f"{hidden} segments of other classes are left out")
    return {
        "title": title,
        "video": video,
        "duration": round(span[1], 3),
        "classes": [names[number] for number in rows],
        "starts": cells[:, 0].round(3).tolist(),
        "ends": cells[:, 1].round(3).tolist(),
        # Not a number where no window speaks, which JSON calls null.
        "scores": [[round(score, 3) for score in row] for row in values.tolist()],
        "segments": [
            {
                "start": round(one.start_sec, 3),
                "end": round(one.end_sec, 3),
                "class": place[one.class_index],
                "score": round(one.score, 3),
            }
            for one in shown
        ],
        "notes": said,
    }

"""The page of a run: its figures, curves, confusion matrix, classes, and the videos behind all of these."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from octvideo.evaluation.metrics import wilson_interval
from octvideo.evaluation.per_class import class_figures, class_truth, kept_thresholds, labels_said, truth_and_named
from octvideo.evaluation.pictures import Curve
from octvideo.evaluation.report import Pairs, confusion_matrix, figures
from octvideo.evaluation.scores import VideoScores
from octvideo.files import json_text
from octvideo.pages.card import figure_tile
from octvideo.pages.chosen import common_folder, confident_mistakes, fitting, in_order_of_use, predicted_classes
from octvideo.pages.curves import charts_of, precision_recall_charts
from octvideo.pages.page import counted, page_html, plain_text

MOST_BYTES = 4_500_000  # of cells and of videos by name; the page stays below 5 MB
_MOST_UNREAD = 1000


@dataclass(frozen=True)
class Thumbnail:
    """A video's thumbnail.

    Args:
        url: of it; None where there is none.
        reason: why there is none.
    """

    url: str | None
    reason: str = ""


def report_page(
    *,
    title: str,
    curves: Mapping[str, Curve] | None = None,
    scores: VideoScores | None = None,
    thumbnails: Mapping[int, Thumbnail] | None = None,
    unreadable: Sequence[tuple[str, str]] = (),
    pairs: Pairs = (),
) -> str:
    """The page of a run as HTML; what is not given is left out.

    Args:
        title: name of the run.
        curves: of the training.
        scores: of the test.
        thumbnails: by the numbers of videos in `scores.known()`; of others the page says that there are none.
        unreadable: videos that the test could not read, and why.
        pairs: names of opposite classes.
    """
    known = None if scores is None else scores.known()
    has_scores = known is not None and len(known) > 0
    several = scores is not None and scores.truth is not None
    tiles: list[dict[str, Any]] = []
    plots = [{"title": "Training", "axis": "epoch", "over": "epochs", "charts": charts_of(curves or {}), "said": ""}]
    said = ""
    if scores is None:
        said = "The run was not tested yet, so the page has its training curves only."
    elif known is None or not len(known):
        said = f"{counted(len(scores), 'video')} scored; none has a known label, so nothing was measured."
    else:
        tiles = [figure_tile(figure) for figure in figures(known, pairs=pairs)]
        said = f"{counted(len(known), 'video')} of {counted(len(known.class_names), 'class')}"
        if known.truth is not None:
            said += f", {known.truth.sum(1).mean():.1f} labels a video"
            plots.insert(0, _precision_recall(known))
        if unknown := len(scores) - len(known):
            said += f"; {unknown:,} more without a label were left out"
    failed = [
        (known.paths[number], one.reason)
        for number, one in sorted((thumbnails or {}).items())
        if known is not None and one.url is None
    ]
    return page_html(
        "report.html.j2",
        title=title,
        scripts=["dom.js", "table.js", "several.js" if several else "matrix.js", "report.js"] if has_scores else [],
        data=report_document(known, thumbnails or {}) if has_scores and known is not None else None,
        said=said,
        tiles=tiles,
        plots=[plot for plot in plots if plot["charts"]],
        has_scores=has_scores,
        several=several,
        unreadable=list(unreadable[:_MOST_UNREAD]),
        failed=failed,
        num_unread=counted(len(unreadable) + len(failed), "video") if unreadable or failed else "",
        many_unread=len(unreadable) + len(failed) > 10,
        num_unnamed=max(len(unreadable) - _MOST_UNREAD, 0),
        notes=_notes(known, thumbnails or {}) if has_scores and known is not None else [],
    )


def report_document(scores: VideoScores, thumbnails: Mapping[int, Thumbnail]) -> dict[str, Any]:
    """What the page's scripts read.

    ::

        {
          "classes": [names],
          "counts": [[true class, predicted class, videos]],      cells that are not empty
          "table": [[videos, right, among the best five, low, high of the interval of top-1]],    for each class
          "folder": "data/test/",                                  what all paths begin with
          "videos": [[path, true class, predicted class, its score, the true class's score, thumbnail]],
                                                                   -1, 0, 0 where scores are not finite
          "clips": [URLs],     "reasons": [texts],
          "mistakes": [numbers of videos],                         the most confident ones
          "total": 12000                                           of which "videos" may be a part
        }

    A thumbnail is a number in "clips", -1 where none was made, -2 - n where the reason is the n-th of "reasons".
    Scores are in thousandths.

    Of several labels a video, there are no "counts", and::

          "table": [[videos, taken for it, of both, average precision, low, high of the interval of F1, threshold]]
          "videos": [[path, [true classes], [classes it was taken for], [scores of these], [of the true classes],
                      thumbnail]],                                 scores that are not finite are null

    Args:
        scores: with known labels.
        thumbnails: by the number of the video.
    """
    classes_of = _several_classes(scores) if scores.truth is not None else _classes(scores)
    folder = common_folder(scores.paths)
    clips: list[str] = []
    reasons: dict[str, int] = {}

    def row(number: int) -> list[Any]:
        thumbnail, place = thumbnails.get(number), -1
        if thumbnail is not None and thumbnail.url is not None:
            place = len(clips)
            clips.append(thumbnail.url)
        elif thumbnail is not None:
            place = -2 - reasons.setdefault(plain_text(thumbnail.reason), len(reasons))
        return [plain_text(scores.paths[number].removeprefix(folder)), *classes_of(number), place]

    order = in_order_of_use(scores)
    # First those with thumbnails or the reason why not: they must be found.
    order = [n for n in order if n in thumbnails] + [n for n in order if n not in thumbnails]
    counts = np.zeros((0, 0), np.int64) if scores.truth is not None else confusion_matrix(scores)
    cells = [[int(t), int(p), int(counts[t, p])] for t, p in zip(*np.nonzero(counts), strict=True)]
    rows = [row(number) for number in order]
    listed = rows[: fitting((len(json_text(one)) + 2 for one in rows), MOST_BYTES - len(json_text(cells)))]
    place_of = {number: place for place, number in enumerate(order[: len(listed)])}
    return {
        "classes": [plain_text(name) for name in scores.class_names],
        "counts": cells,
        "table": _several_table(scores) if scores.truth is not None else _class_table(scores, counts),
        "folder": plain_text(folder),
        "videos": listed,
        "clips": clips,
        "reasons": list(reasons),
        "mistakes": [place_of[number] for number in confident_mistakes(scores) if number in place_of],
        "total": len(scores),
    }


def _classes(scores: VideoScores) -> Callable[[int], list[Any]]:
    """Of a video by its number: true and predicted class, and their scores, the predicted one's first."""
    predicted, best = predicted_classes(scores)
    own = np.where(predicted >= 0, scores.scores[np.arange(len(scores)), scores.labels], 0.0)
    return lambda n: [int(scores.labels[n]), int(predicted[n]), _thousandths(best[n]), _thousandths(own[n])]


def _several_classes(scores: VideoScores) -> Callable[[int], list[Any]]:
    """The same in lists, the highest scores first."""
    truth, named = truth_and_named(scores)

    def row(number: int) -> list[Any]:
        values = scores.scores[number]
        lists = [np.flatnonzero(held[number]) for held in (truth, named)]
        true, taken = (held[np.argsort(-values[held], kind="stable")].tolist() for held in lists)
        return [true, taken, *([_thousandths(values[n]) for n in held] for held in (taken, true))]

    return row


def _thousandths(score: float) -> int | None:
    return round(1000 * float(score)) if np.isfinite(score) else None


def _several_table(scores: VideoScores) -> list[list[Any]]:
    thresholds = kept_thresholds(scores)
    table = []
    for one, threshold in zip(class_figures(scores), thresholds.tolist(), strict=True):
        low, high = one.f1_interval
        precise = None if math.isnan(one.average_precision) else round(one.average_precision, 4)
        interval = round(low, 3), round(high, 3)
        table.append([one.videos, one.named, one.hits, precise, *interval, round(threshold, 3)])
    return table


def _precision_recall(scores: VideoScores) -> dict[str, Any]:
    charts = precision_recall_charts(scores)
    left_out = int(class_truth(scores).any(0).sum()) - len(charts)
    said = f"{counted(left_out, 'class')} with fewer videos left out." if left_out else ""
    return {"title": "Precision over recall", "axis": "recall, %", "over": "recall", "charts": charts, "said": said}


def _class_table(scores: VideoScores, counts: np.ndarray) -> list[list[Any]]:
    k = len(counts)
    totals = np.bincount(scores.labels, minlength=k)
    among5 = np.bincount(scores.labels[scores.hits(5)], minlength=k)
    table = []
    for number, total in enumerate(totals.tolist()):
        right = int(counts[number, number])
        low, high = wilson_interval(right, total)
        table.append([total, right, int(among5[number]), round(low, 3), round(high, 3)])
    return table


def _notes(scores: VideoScores, thumbnails: Mapping[int, Thumbnail]) -> list[str]:
    made = sum(one.url is not None for one in thumbnails.values())
    notes = [f"{made:,} of {len(scores):,} videos have a thumbnail: some seconds from their middle, without sound."]
    if len(thumbnails) < len(scores):
        notes[0] += " Others are listed by name; --thumbnails N makes more of them."
    if scores.truth is not None:
        notes.append(f"{labels_said(scores).capitalize()}.")
    if without := int((scores.predicted() < 0).sum()):
        notes.append(f"{counted(without, 'video')} without finite scores: counted as wrong, and in no cell.")
    return notes

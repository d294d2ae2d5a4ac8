"""The picture of details: a reliability diagram, and precision over recall of classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.layout_engine import ConstrainedLayoutEngine

from octvideo.errors import UserError
from octvideo.evaluation.calibration import reliability
from octvideo.evaluation.per_class import class_truth
from octvideo.evaluation.pictures import fitted_name, plain, save_titled
from octvideo.evaluation.precision_recall import recall_curves
from octvideo.evaluation.report import percent
from octvideo.evaluation.scores import VideoScores
from octvideo.evaluation.several import average_precisions
from octvideo.lettering import font_families, shown_names

_BAR, _LINE, _INK = "#2a78b5", "#d9622b", "#23272e"
_COLOURS = 10  # of matplotlib, then they come again


def draw_details(path: str | Path, scores: VideoScores, *, title: str = "") -> None:
    """Writes the picture; of several labels a video it has the curves alone.

    Args:
        path: of the picture, with one of `PICTURE_SUFFIXES`.
        scores: of the test.
        title: of the picture.

    Raises:
        UserError: no label is known.
    """
    known = scores.known()
    if not len(known):
        raise UserError("no video has a known label, so there is nothing to draw")
    parts = 1 if known.truth is not None else 2
    # The names of the curves stand beside them.
    canvas = Canvas(figsize=(6.5 * parts + 2.2, 5.6), layout=ConstrainedLayoutEngine(w_pad=0.12), facecolor="white")
    FigureCanvasAgg(canvas)
    places = canvas.subplots(1, parts, squeeze=False, width_ratios=[6.5, 8.7][-parts:])[0]
    if parts == 2:
        draw_reliability(places[0], known)
    draw_precision_recall(places[-1], known)
    save_titled(path, canvas, title)


def draw_reliability(axes: Axes, scores: VideoScores) -> None:
    """How often the best class is right, over its score, in bins with Wilson's intervals."""
    found = reliability(scores)
    middles = [(one.low + one.high) / 2 for one in found.bins]
    shares = [one.accuracy for one in found.bins]
    # Wilson's hold the share but for rounding.
    below, above = ([abs(one.interval[end] - one.accuracy) for one in found.bins] for end in (0, 1))
    axes.bar(middles, shares, width=0.9 / found.num_bins, color=_BAR, alpha=0.8)
    axes.errorbar(middles, shares, yerr=[below, above], fmt="none", ecolor=_INK, elinewidth=1)
    axes.plot([0, 1], [0, 1], color=_LINE, linewidth=1.5)
    for middle, one in zip(middles, found.bins, strict=True):
        inside = one.accuracy > 0.06  # else the number stands on white
        axes.text(middle, 0.01, str(one.videos), ha="center", fontsize=7, color="white" if inside else _INK)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="score of the best class", ylabel="share that is right")
    axes.set_title(f"ECE {percent(found.ece)}, {found.videos} videos", fontsize=10, color=_INK, loc="left")
    plain(axes)


def draw_precision_recall(axes: Axes, scores: VideoScores) -> None:
    """Precision over recall of the classes with the most videos, each against the rest."""
    truth, curves = class_truth(scores), recall_curves(scores)
    mean = average_precisions(torch.from_numpy(scores.scores), torch.from_numpy(truth)).nanmean()
    known, names = shown_names(scores.class_names), []
    for place, curve in enumerate(curves):
        style: dict[str, Any] = {"linewidth": 1.5, "linestyle": "-" if place < _COLOURS else "--"}
        axes.step(curve.recall, curve.precision, where="post", label=str(curve.number), **style)
        names.append(f"{fitted_name(known[curve.number], 8)}  {percent(curve.average_precision)}")
    left_out = int(truth.any(0).sum()) - len(curves)
    said = f"; {left_out} classes with fewer videos are left out" if left_out else ""
    axes.set(xlim=(0, 1.01), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axes.set_title(f"mAP {percent(float(mean))}{said}", fontsize=10, color=_INK, loc="left")
    legend = axes.legend(frameon=False, labelcolor=_INK, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    for text, name in zip(legend.get_texts(), names, strict=True):  # a name may hold what matplotlib takes for a sign
        text.set(text=name, fontfamily=font_families([name]), parse_math=False)
    plain(axes)

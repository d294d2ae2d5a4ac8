"""The picture of a run: training curves from Lightning's metrics.csv, confusion matrix from its scores."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.figure import FigureBase
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, PercentFormatter

from octvideo.errors import UserError
from octvideo.evaluation.report import Figure, Pairs, confusion_matrix, figures, percent, percent_range
from octvideo.evaluation.scores import VideoScores
from octvideo.files import whole_file
from octvideo.lettering import fitted_text, font_families, shown_names, shown_text

PICTURE_SUFFIXES = (".png", ".svg", ".pdf")
_TRAIN, _VAL, _QUIET, _INK = "#2a78b5", "#d9622b", "#8a8f98", "#23272e"
_MOST_COUNTS = 24  # classes up to which the matrix shows numbers
_MOST_NAMES = 42  # and up to which it shows class names
_DPI, _NAME_PX = 120, 260  # a class name is as wide at most


@dataclass(frozen=True)
class Curve:
    """One logged metric over the training.

    Args:
        epochs: how many epochs were done at each value, fractions within an epoch.
        values: as logged.
    """

    epochs: list[float]
    values: list[float]


def read_curves(path: str | Path) -> dict[str, Curve]:
    """Every column of a metrics.csv that has values, as a curve.

    A column with one value per epoch is placed at the ends of epochs, any other by the steps of its rows.

    Args:
        path: of the metrics.csv.

    Raises:
        UserError: there is none, or it is something else.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row.get("epoch") and row.get("step")]
    except OSError as error:
        raise UserError(f"no metrics at {path} ({error.strerror}): training writes metrics.csv") from error
    if not rows:
        raise UserError(f"{path} is no metrics.csv of Lightning: it has no rows with epoch and step")
    # Epochs and steps count from 0. Whole epochs all give the same, the first rows of one give less.
    steps_per_epoch = max((int(row["step"]) + 1) / (int(row["epoch"]) + 1) for row in rows)
    curves: dict[str, Curve] = {}
    for name in rows[0].keys() - {"epoch", "step"}:
        if held := [row for row in rows if row[name]]:
            by_epoch = len({row["epoch"] for row in held}) == len(held)
            places = [int(r["epoch"]) + 1.0 if by_epoch else (int(r["step"]) + 1) / steps_per_epoch for r in held]
            curves[name] = Curve(places, [float(row[name]) for row in held])
    return curves


def draw_report(
    path: str | Path,
    *,
    curves: dict[str, Curve] | None = None,
    scores: VideoScores | None = None,
    pairs: Pairs = (),
    title: str = "",
) -> None:
    """Writes the picture of a run; what is not given is left out.

    Args:
        path: of the picture, with one of `PICTURE_SUFFIXES`.
        curves: of the training.
        scores: of the test.
        pairs: names of opposite classes; they are put next to each other.
        title: of the picture.

    Raises:
        UserError: there is nothing to draw.
    """
    if not curves and scores is None:
        raise UserError("nothing to draw: neither training curves nor scores")
    both = bool(curves) and scores is not None
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.10)
    canvas = Canvas(figsize=(13 if both else 7, 6.2), layout=layout, facecolor="white")
    FigureCanvasAgg(canvas)
    parts: list[FigureBase] = [canvas, canvas]
    if both:
        parts = list(canvas.subfigures(1, 2, width_ratios=[1, 1.12], squeeze=False)[0])
    if curves:
        draw_curves(parts[0], curves)
    if scores is not None:
        draw_confusion(parts[1].subplots(), scores, pairs=pairs)
    save_titled(path, canvas, title)


def save_titled(path: str | Path, canvas: Canvas, title: str) -> None:
    """Writes a picture, whole or not at all.

    Args:
        path: with one of `PICTURE_SUFFIXES`.
        canvas: the picture.
        title: above it, in any script; "" is none.
    """
    if title:
        # Bold letters are wider.
        shown = fitted_name(shown_text(title), 14, int(0.85 * canvas.get_figwidth() * _DPI))
        families = font_families([shown])
        # Of the system's fonts only the regular face is known.
        weight = "bold" if len(families) == 1 else "regular"
        style: dict[str, Any] = {"fontsize": 14, "fontweight": weight, "fontfamily": families, "parse_math": False}
        canvas.suptitle(shown, color=_INK, x=0.012, ha="left", **style)
    with whole_file(Path(path)) as part:
        canvas.savefig(part, dpi=_DPI, format=Path(path).suffix[1:])


def named_in_picture(scores: VideoScores | None) -> list[str]:
    """The class names that the picture shows."""
    return [] if scores is None or len(scores.class_names) > _MOST_NAMES else scores.class_names


def draw_curves(canvas: FigureBase, curves: dict[str, Curve]) -> None:
    """Loss, top-1 and learning rate above each other, training and validation in two colours."""
    # Logged as "lr", or by Lightning's LearningRateMonitor as "lr-SGD" and the like.
    lr = next((curves[name] for name in sorted(curves) if name == "lr" or name.startswith("lr-")), None)
    rows = [(kind, 3) for kind in ("loss", "top1") if {f"train/{kind}", f"val/{kind}"} & curves.keys()]
    rows += [("lr", 1)] if lr is not None else []
    if not rows:
        raise UserError(f"no train/loss, train/top1 or lr among the logged {', '.join(sorted(curves))}")
    heights = {"height_ratios": [height for _, height in rows]}
    grid = canvas.subplots(len(rows), 1, sharex=True, squeeze=False, gridspec_kw=heights)[:, 0]
    for axes, (kind, _) in zip(grid, rows, strict=True):
        if kind == "lr" and lr is not None:
            axes.plot(lr.epochs, lr.values, color=_QUIET, linewidth=1.5)
            axes.set_ylim(0, None)
        else:
            _draw_train_and_val(axes, kind, curves)
        axes.set_ylabel({"loss": "loss", "top1": "top-1", "lr": "learning\nrate"}[kind], color=_INK)
        plain(axes)
        axes.grid(axis="y", color="#e3e5e8", linewidth=0.8)
    canvas.align_ylabels(list(grid))
    grid[-1].set_xlabel("epoch", color=_INK)
    grid[-1].set_xlim(0, None)
    grid[-1].xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_train_and_val(axes: Axes, kind: str, curves: dict[str, Curve]) -> None:
    if kind == "loss" and (steps := curves.get("train/loss_step")):
        axes.plot(steps.epochs, steps.values, color=_TRAIN, alpha=0.22, linewidth=1)
    for split, colour, label in (("train", _TRAIN, "training"), ("val", _VAL, "validation")):
        curve = curves.get(f"{split}/{kind}")
        if curve is None:
            continue
        last = curve.values[-1]
        shown = f"{100 * last:.1f} %" if kind == "top1" else f"{last:.3f}"
        axes.plot(
            curve.epochs,
            curve.values,
            marker="o" if len(curve.epochs) <= 40 else "",
            markersize=3.5,
            linewidth=2,
            color=colour,
            label=f"{label}  {shown}",
        )
    if kind == "top1":
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    else:
        axes.set_ylim(0, None)
    axes.legend(frameon=False, labelcolor=_INK, loc="best")


def draw_confusion(axes: Axes, scores: VideoScores, *, pairs: Pairs = ()) -> None:
    """Share of each true class (row) that was taken for each class (column), with counts where they fit."""
    order = _paired_order(scores.class_names, pairs)
    counts = confusion_matrix(scores)[np.ix_(order, order)]  # (K,K)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)  # (K,K)
    smooth = "antialiased" if len(counts) >= 200 else "nearest"
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation=smooth)
    size = 10 if len(counts) <= 16 else 7
    if len(counts) <= _MOST_COUNTS:
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = "white" if shares[row, column] > 0.55 else _INK
            text = str(counts[row, column])
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=size + 1)
    if len(counts) <= _MOST_NAMES:
        # A class name may be long, in any script, and hold signs that matplotlib takes for mathematics.
        known = shown_names(scores.class_names)
        names = [fitted_name(known[i].replace("_", " "), size) for i in order]
        style: dict[str, Any] = {"fontsize": size, "fontfamily": font_families(names), "parse_math": False}
        axes.set_xticks(range(len(names)), names, **style)
        axes.tick_params("x", rotation=40)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(names)), names, **style)
        axes.set_xticks(np.arange(-0.5, len(names)), minor=True)
        axes.set_yticks(np.arange(-0.5, len(names)), minor=True)
        axes.grid(which="minor", color="white", linewidth=1.5)
        axes.tick_params(which="both", length=0)
    axes.set_xlabel("predicted", color=_INK)
    axes.set_ylabel("true class", color=_INK)
    axes.set_title(_caption(figures(scores, pairs=pairs)), fontsize=10, color=_INK, loc="left", pad=10)
    plain(axes)


def fitted_name(text: str, points: int, width_px: int = _NAME_PX) -> str:
    """So much of a name as is this wide in a picture, at a size of letters."""
    return fitted_text(text, round(points * _DPI / 72), width_px)


def _caption(row: list[Figure]) -> str:
    top1, *others = [figure for figure in row if not math.isnan(figure.value)]
    text = f"top-1 {percent(top1.value)}  (95 %: {percent_range(top1.interval)}, {top1.total} videos)"
    return text + "\n" + "   ".join(f"{figure.name} {percent(figure.value)}" for figure in others)


def _paired_order(class_names: list[str], pairs: Pairs) -> list[int]:
    """Classes with each one's opposite right after it, else in their own order."""
    opposite = {a: b for pair in pairs for a, b in (pair, pair[::-1])}
    ordered: list[str] = []
    for name in class_names:
        ordered += [c for c in (name, opposite.get(name)) if c is not None and c not in ordered]
    return [class_names.index(name) for name in ordered]


def plain(axes: Axes) -> None:
    """Two quiet spines, and what is drawn above the grid."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#c3c7cc")
    axes.tick_params(colors=_INK, which="both")
    axes.set_axisbelow(True)

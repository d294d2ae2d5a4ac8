"""Curves as SVG paths: of a training over its epochs, and of precision over recall."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from octvideo.evaluation.per_class import class_figures
from octvideo.evaluation.pictures import Curve
from octvideo.evaluation.precision_recall import recall_curves
from octvideo.evaluation.report import percent
from octvideo.evaluation.scores import VideoScores
from octvideo.pages.page import plain_text

_MOST_POINTS = 600  # of a line; more are averaged
_MOST_TICKS = 6
_SHARES = ("Top-1", "mAP")


@dataclass(frozen=True)
class Line:
    """A curve in a chart.

    Args:
        name: for the legend.
        kind: "train", "val", "steps" or "quiet", which decides its colour.
        path: of SVG, in a box of 1000 by 1000.
        last: its last value, in words.
        is_dot: it has one value alone.
    """

    name: str
    kind: str
    path: str
    last: str
    is_dot: bool = False


@dataclass(frozen=True)
class Chart:
    """Lines over epochs, and the ticks of both axes: (share of the axis, text)."""

    title: str
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


def charts_of(curves: Mapping[str, Curve]) -> list[Chart]:
    """The charts of a run's logged metrics; none where nothing of them was logged."""
    # Logged as "lr", or by Lightning's LearningRateMonitor as "lr-SGD" and the like.
    rate = next((name for name in sorted(curves) if name == "lr" or name.startswith("lr-")), "")
    wanted = [
        ("Loss", [("train/loss_step", "each step", "steps"), *_both("loss")], lambda value: f"{value:.3g}"),
        ("mAP", [("val/map_micro", "validation, micro", "quiet"), ("val/map", "validation", "val")], percent),
        ("Top-1", _both("top1"), percent),
        ("Learning rate", [(rate, "learning rate", "quiet")], lambda value: f"{value:.2g}"),
    ]
    charts = []
    for title, names, worded in wanted:
        there = [(curves[name], said, kind) for name, said, kind in names if name in curves]
        if any(math.isfinite(value) for curve, _, _ in there for value in curve.values):
            charts.append(_chart(title, there, worded))
    return charts


def precision_recall_charts(scores: VideoScores) -> list[Chart]:
    """Precision over recall of the classes with the most videos, a chart each, and where their thresholds lie.

    Args:
        scores: with known labels, of several labels a video.
    """
    rows = class_figures(scores)
    recalls, shares = ([(n / 4, f"{25 * n}{unit}") for n in range(5)] for unit in ("", " %"))
    charts = []
    for curve in recall_curves(scores):
        steps = _steps(curve.recall[::-1], curve.precision[::-1])
        lines = [Line("average precision", "train", steps, percent(curve.average_precision))]
        row = rows[curve.number]
        if row.named:
            dot = _place(row.recall, row.precision)
            lines.append(Line("F1 at the threshold", "val", f"M{dot}L{dot}", percent(row.f1), is_dot=True))
        charts.append(Chart(plain_text(row.name), lines, recalls, shares))
    return charts


def _steps(recall: np.ndarray, precision: np.ndarray) -> str:
    """A path along the recalls, each at its highest precision, whose area is the average precision."""
    recalls, first = np.unique(recall, return_index=True)
    highs = np.maximum.reduceat(precision, first)
    picked = np.flatnonzero(recalls > 0)
    if len(picked) > _MOST_POINTS:
        picked = picked[np.linspace(0, len(picked) - 1, _MOST_POINTS).round().astype(int)]
    places, at = [], 0.0
    for end, high in zip(recalls[picked], highs[picked], strict=True):
        places += [_place(at, high), _place(end, high)]
        at = end
    return "M" + "L".join(places)


def _place(x: float, y: float) -> str:
    return f"{1000 * x:.1f} {1000 * (1 - y):.1f}"


def _both(kind: str) -> list[tuple[str, str, str]]:
    return [(f"train/{kind}", "training", "train"), (f"val/{kind}", "validation", "val")]


def _chart(title: str, curves: Sequence[tuple[Curve, str, str]], worded: Callable[[float], str]) -> Chart:
    thinned = [(_thinned(curve), name, kind) for curve, name, kind in curves]
    right = max(float(points[:, 0].max()) for points, _, _ in thinned if len(points))
    highest = max(float(points[:, 1].max()) for points, _, _ in thinned if len(points))
    y_ticks = _ticks(1.0 if title in _SHARES else highest or 1.0)
    top = max(y_ticks[-1], highest)
    lines = []
    for (points, name, kind), (curve, _, _) in zip(thinned, curves, strict=True):
        places = [f"{1000 * x / right:.1f} {1000 * (1 - max(y, 0) / top):.1f}" for x, y in points]
        # A line of one point is drawn as a dot: its ends are round.
        is_dot = len(places) == 1
        lines.append(Line(name, kind, "M" + "L".join(places * (1 + is_dot)), worded(curve.values[-1]), is_dot))
    x_ticks = [(tick / right, f"{tick:g}") for tick in _ticks(right) if tick <= right and tick == int(tick)]
    return Chart(title, lines, x_ticks, [(tick / top, _worded_tick(title, tick)) for tick in y_ticks])


def _thinned(curve: Curve) -> np.ndarray:
    """(epoch, value) of what is finite, (P, 2); where there are too many, means of neighbours."""
    points = np.stack([np.asarray(curve.epochs, np.float64), np.asarray(curve.values, np.float64)], 1)
    points = points[np.isfinite(points).all(1)]
    if len(points) <= _MOST_POINTS:
        return points
    return np.stack([part.mean(0) for part in np.array_split(points, _MOST_POINTS)])


def _ticks(end: float) -> list[float]:
    """Round numbers from 0 to `end` or the next one above it."""
    power = 10.0 ** math.floor(math.log10(end / _MOST_TICKS))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if end / step <= _MOST_TICKS)
    return [n * step for n in range(math.ceil(end / step - 1e-9) + 1)]


def _worded_tick(title: str, tick: float) -> str:
    return f"{100 * tick:g} %" if title in _SHARES else f"{tick:g}"

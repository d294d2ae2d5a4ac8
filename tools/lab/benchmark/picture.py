"""The picture of benchmarks: time ratio against FLOP ratio per alpha; on the diagonal, every saved multiply-add saves
its time.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MultipleLocator

from lab.benchmark.arms import PRESETS, Arm, engines, paper_points
from lab.benchmark.results import Pass, Run, Spread, summarise
from octvideo.errors import UserError
from octvideo.evaluation.pictures import plain
from octvideo.inference.engine import Precision

_INK, _QUIET, _IDEAL = "#23272e", "#8a8f98", "#b9bdc3"
_COLOURS = ("#7f868f", "#2a78b5", "#d9622b", "#b3922f", "#8357a8", "#2b8a5c")  # of `engines`, from the first again
_LINES: dict[Precision, Literal["-", "--", ":"]] = {"f32": "-", "bf16": "--", "int8": ":"}
_MARKERS = "osD^v"
_NETWORKS = ("#2a78b5", "#d9622b", "#2b8a5c", "#8357a8", "#b3922f")
_ONE_THREAD = "one thread"
# What makes another line: everything but alpha and what may be chosen for each arm by itself.
_OWN = [field.name for field in fields(Arm) if field.name not in ("alpha", "downsample", "layout")]


@dataclass(frozen=True)
class Point:
    """One octave arm in the picture, its ratios to its ordinary twin."""

    arm: Arm
    flops: float
    time: Spread


def draw(path: str | Path, runs: Sequence[Run]) -> None:
    """Writes the picture of one run or several: a panel for each kind of pass, a line for each network and engine.

    Args:
        path: of the PNG.
        runs: whose octave arms are drawn; of several layouts of one arm, the fastest.

    Raises:
        UserError: no octave arm has an ordinary twin to be compared with.
    """
    panels = [(title, points) for title, points in _panels(runs).items() if points]
    if not panels:
        raise UserError("picture: no octave arm beside its ordinary twin (alpha=0, the same engine), expected one")
    paper = any(run.preset is not None and PRESETS[run.preset].paper for run in runs if run.preset in PRESETS)
    canvas = Figure(
        figsize=(4.9 * len(panels) + 0.6, 5.6),
        layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08),
        facecolor="white",
    )
    FigureCanvasAgg(canvas)
    grid = canvas.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True)[0]
    drawn = _styles([point for _, points in panels for point in points])
    low = min(min(point.flops, point.time.low) for _, points in panels for point in points)
    high = max(1.0, *(point.time.high for _, points in panels for point in points))
    if paper:
        low = min(low, *(min(pair) for pair in paper_points().values()))
    for axes, (title, points) in zip(grid, panels, strict=True):
        _frame(axes, low - 0.06, high + 0.05, title)
        for key, style in drawn.items():
            _draw_line(axes, [point for point in points if _key(point.arm) == key], style)
        if paper and title.startswith(_ONE_THREAD):
            _draw_paper(axes)
        _mark_alphas(axes, points, drawn)
    grid[0].set_ylabel("time, of the ordinary network's", color=_INK)
    beside = " (engines side by side)" if any(style.shift for style in drawn.values()) else ""
    for axes in grid:
        axes.set_xlabel(f"multiply-adds, of the ordinary network's{beside}", color=_INK)
    _legend(canvas, drawn, paper=paper)
    canvas.suptitle(
        textwrap.fill(_title(panels), 46 * len(panels)), fontsize=12, fontweight="bold", color=_INK, x=0.02, ha="left"
    )
    canvas.savefig(path, dpi=130)


def _panels(runs: Sequence[Run]) -> dict[str, list[Point]]:
    """The points of each kind of pass by its title, in the order in which they come."""
    found: dict[str, list[Point]] = {}
    for run in runs:
        for one in run.passes:
            if one.rounds:
                found.setdefault(_where(one), []).extend(_points(run, one))
    return found


def _where(found: Pass) -> str:
    if found.device == "cuda":
        return "GPU, wall time"
    clock = {"cpu": "CPU time", "wall": "wall time", "gpu": "GPU time"}[found.clock]
    return f"{_ONE_THREAD if found.threads == 1 else f'{found.threads} threads'}, {clock}"


def _points(run: Run, found: Pass) -> list[Point]:
    best: dict[tuple[object, ...], Point] = {}
    for row in summarise(run, found):
        if row.to_twin is None or row.flop_ratio is None:
            continue
        arm = row.result.arm
        point = Point(arm, row.flop_ratio, row.to_twin)
        place = (arm.alpha, arm.downsample, _key(arm))
        if place not in best or best[place].time.median > point.time.median:
            best[place] = point
    return sorted(best.values(), key=lambda point: -point.flops)


def _key(arm: Arm) -> tuple[object, ...]:
    return tuple(getattr(arm, name) for name in _OWN)


@dataclass(frozen=True)
class _Style:
    label: str
    colour: str
    line: Literal["-", "--", ":"]
    marker: str
    shift: float  # beside the true FLOP ratio, so that quartiles of several engines do not hide each other


def _styles(points: Sequence[Point]) -> dict[tuple[object, ...], _Style]:
    arms = {_key(point.arm): point.arm for point in points}
    differing = [name for name in _OWN if len({getattr(arm, name) for arm in arms.values()}) > 1]
    told = [*(name for name in differing if name not in ("engine", "precision")), "engine", "precision"]
    networks = list(dict.fromkeys(arm.network for arm in arms.values()))
    used = {arm.engine for arm in arms.values()}
    colours = dict(zip(engines(), itertools.cycle(_COLOURS), strict=False))
    styles = {}
    for number, (key, arm) in enumerate(arms.items()):
        words = [_word(arm, name) for name in told]
        styles[key] = _Style(
            " ".join(word for word in words if word),
            # Colours tell engines apart, or networks where all are run by one.
            colours[arm.engine] if len(used) > 1 else _NETWORKS[networks.index(arm.network) % len(_NETWORKS)],
            _LINES[arm.precision],
            _MARKERS[networks.index(arm.network) % len(_MARKERS)],
            0.004 * (number - (len(arms) - 1) / 2) if len(used) > 1 else 0.0,
        )
    return styles


def _word(arm: Arm, name: str) -> str:
    value = getattr(arm, name)
    if name == "octave":
        return " ".join(f"{key} {option}" for key, option in value)
    return f"{name} {value}" if name in ("batch", "frames", "crop", "classes", "width") else str(value)


def _frame(axes: Axes, low: float, high: float, title: str) -> None:
    """Equal axes, the ideal and the line above which nothing is saved."""
    axes.set_xlim(low, 1.03)
    axes.set_ylim(low, high)
    axes.plot([low, 1], [low, 1], color=_IDEAL, linewidth=1.5, zorder=1)
    axes.axhline(1, color=_IDEAL, linewidth=1, linestyle=(0, (1, 2)), zorder=1)
    axes.set_title(title, fontsize=10.5, color=_INK, loc="left")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MultipleLocator(0.1))
        axis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    plain(axes)
    axes.tick_params(labelsize=9)
    axes.grid(color="#eef0f2", linewidth=0.8)


def _draw_line(axes: Axes, points: Sequence[Point], style: _Style) -> None:
    if not points:
        return
    x = [point.flops + style.shift for point in points]
    y = [point.time.median for point in points]
    spreads = [[p.time.median - p.time.low for p in points], [p.time.high - p.time.median for p in points]]
    axes.plot([1.0, *x], [1.0, *y], color=style.colour, linestyle=style.line, linewidth=1.4, zorder=2)
    filled = style.colour if style.line == "-" else "white"
    axes.errorbar(
        x, y, yerr=spreads, color=style.colour, fmt=style.marker, markersize=5.5, markerfacecolor=filled,
        elinewidth=1.2, capsize=2.5, zorder=3,
    )  # fmt: skip


def _draw_paper(axes: Axes) -> None:
    flops, times = zip(*paper_points().values(), strict=True)
    axes.plot([1.0, *flops], [1.0, *times], color=_INK, linewidth=1, linestyle=(0, (4, 2)), zorder=2)
    axes.plot(flops, times, "X", color=_INK, markersize=6.5, linestyle="", zorder=3)


def _mark_alphas(axes: Axes, points: Sequence[Point], styles: dict[tuple[object, ...], _Style]) -> None:
    """Says once, below the diagonal, which alpha a column of points is."""
    bottom, top = axes.get_ylim()
    several = len({point.arm.network for point in points}) > 1
    columns = {(p.arm.network, p.arm.alpha): p for p in points if p.arm.downsample != "stride"}
    for (_, alpha), point in columns.items():
        lowest = min([point.flops, *(p.time.low for p in points if abs(p.flops - point.flops) < 0.025)])
        colour = styles[_key(point.arm)].colour if several else _QUIET
        place = (point.flops, lowest - 0.025 * (top - bottom))
        text = f"α {alpha:g}".replace("0.", ".")
        axes.annotate(text, place, ha="center", va="top", fontsize=8, color=colour, rotation=90)


def _legend(canvas: Figure, drawn: dict[tuple[object, ...], _Style], *, paper: bool) -> None:
    lines = [
        Line2D([], [], color=s.colour, linestyle=s.line, marker=s.marker, label=s.label,
               markerfacecolor=s.colour if s.line == "-" else "white")
        for s in drawn.values()
    ]  # fmt: skip
    if paper:
        label = "paper, TVM on a Skylake (Table 2)"
        lines.append(Line2D([], [], color=_INK, linestyle=(0, (4, 2)), marker="X", label=label))
    lines.append(Line2D([], [], color=_IDEAL, linewidth=1.5, label="ideal: time falls as multiply-adds do"))
    columns = min(len(lines), 2 if len(canvas.axes) == 1 else 4)
    canvas.legend(
        handles=lines, loc="outside lower center", ncols=columns, frameon=False, fontsize=9, labelcolor=_INK,
        handlelength=3.4,
    )  # fmt: skip


def _title(panels: Sequence[tuple[str, Sequence[Point]]]) -> str:
    arms = [point.arm for _, points in panels for point in points]
    networks = list(dict.fromkeys(arm.network for arm in arms))
    modes = {arm.mode for arm in arms}
    what = {"inference": "inference", "training": "a training step"}
    return f"{', '.join(networks)}, octave against ordinary: " + (
        what[modes.pop()] if len(modes) == 1 else "inference and training"
    )

"""The picture of a conversion: what channels lose at half resolution, from the first layer to the last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_ALL, _LOW, _INK = "#2a78b5", "#d9622b", "#23272e"


def draw_spectrum(
    path: str | Path, details: Mapping[str, Sequence[float]], low: Mapping[str, Sequence[int]], *, title: str
) -> None:
    """Writes a PNG: for each layer the channels' shares of detail, those that are stored low in another colour.

    Args:
        path: of the PNG.
        details: of each layer, for each channel, the share of its variance that half resolution cannot hold.
        low: of each layer, indices of its low channels.
        title: above.
    """
    figure = Figure(figsize=(max(6.0, 0.28 * len(details) + 3), 4.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    generator = np.random.default_rng(0)
    for place, (name, shares) in enumerate(details.items()):
        values = np.asarray(shares)
        is_low = np.zeros(len(values), bool)
        is_low[list(low.get(name, ()))] = True
        x = place + generator.uniform(-0.3, 0.3, len(values))
        for chosen, colour in ((~is_low, _ALL), (is_low, _LOW)):
            axes.scatter(x[chosen], values[chosen], s=5, color=colour, alpha=0.5, linewidths=0, rasterized=True)
        axes.hlines(np.median(values), place - 0.35, place + 0.35, color=_INK, linewidth=1.4)
    for colour, text in ((_ALL, "stored high"), (_LOW, "stored low")):
        axes.scatter([], [], s=18, color=colour, label=text)
    axes.plot([], [], color=_INK, label="median of the layer")
    axes.set_xticks(range(len(details)), list(details), rotation=90, fontsize=6.5)
    axes.set_ylim(0, None)
    axes.set_ylabel("share of the variance that\nhalf resolution cannot hold")
    axes.set_title(title, loc="left", fontsize=11, pad=22)
    axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)  # above all points
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)

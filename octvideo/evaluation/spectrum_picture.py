"""The picture of a spectrum: what channels lose at half resolution, from the first layer to the last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from octvideo.lettering import font_families, shown_text

_ALL, _LOW, _INK = "#2a78b5", "#d9622b", "#23272e"
_LOST = "share of the variance that\nhalf resolution cannot hold"


@dataclass(frozen=True)
class SpectrumPanel:
    """One network.

    Args:
        title: above.
        details: of each layer, for each channel, the share of its variance that half resolution cannot hold.
        low: of each layer, indices of its low channels.
        medians: "layer" marks each layer's median, "path" those of its high and of its low channels.
        said: what the shares are, beside them.
    """

    title: str
    details: Mapping[str, Sequence[float] | np.ndarray]
    low: Mapping[str, Sequence[int] | np.ndarray]
    medians: str = "layer"
    said: str = _LOST


def draw_spectrum(
    path: str | Path, details: Mapping[str, Sequence[float]], low: Mapping[str, Sequence[int]], *, title: str
) -> None:
    """Writes a PNG: for each layer the channels' shares of detail, those that are stored low in another colour.

    Args:
        path: of the PNG.
        details, low, title: see `SpectrumPanel`.
    """
    draw_spectra(path, [SpectrumPanel(title, details, low)])


def draw_spectra(path: str | Path, panels: Sequence[SpectrumPanel]) -> None:
    """Writes a PNG of some networks below each other.

    Args:
        path: of the PNG.
        panels: one or more; their vertical axes are the same.
    """
    most = max(len(panel.details) for panel in panels)
    size = (max(6.0, min(0.28 * most + 3, 22.0)), 4.6 * len(panels))
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, panel in zip(figure.subplots(len(panels), 1, squeeze=False, sharey=True)[:, 0], panels, strict=True):
        _draw(axes, panel)
    figure.savefig(path, format="png")


def _draw(axes: Axes, panel: SpectrumPanel) -> None:
    generator = np.random.default_rng(0)
    by_path = panel.medians == "path"
    for place, (name, shares) in enumerate(panel.details.items()):
        values = np.asarray(shares)
        is_low = np.zeros(len(values), bool)
        is_low[list(panel.low.get(name, ()))] = True
        x = place + generator.uniform(-0.3, 0.3, len(values))
        for chosen, colour in ((~is_low, _ALL), (is_low, _LOW)):
            axes.scatter(x[chosen], values[chosen], s=5, color=colour, alpha=0.5, linewidths=0, rasterized=True)
            if by_path and chosen.any():
                axes.hlines(np.median(values[chosen]), place - 0.38, place + 0.38, color=colour, linewidth=1.8)
        if not by_path:
            axes.hlines(np.median(values), place - 0.35, place + 0.35, color=_INK, linewidth=1.4)
    has_low = any(len(channels) for channels in panel.low.values())
    for colour, text in ((_ALL, "stored high"), (_LOW, "stored low"))[: 1 + has_low]:
        axes.scatter([], [], s=18, color=colour, label=text)
    axes.plot([], [], color=_ALL if by_path else _INK, label="median of the path" if by_path else "median of the layer")
    axes.set_xticks(range(len(panel.details)), list(panel.details), rotation=90, fontsize=6.5, parse_math=False)
    axes.set_xlim(-1, len(panel.details))
    axes.set_ylim(0, None)
    axes.set_ylabel(panel.said)
    title = shown_text(panel.title)
    style: dict[str, Any] = {"fontfamily": font_families([title]), "parse_math": False}
    axes.set_title(title, loc="left", fontsize=11, pad=22, **style)
    axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)  # above all points
    axes.spines[["top", "right"]].set_visible(False)

"""The picture of a timeline: classes by rows, time from left to right, scores as colour, segments as bars."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from octvideo.errors import UserError
from octvideo.files import whole_file
from octvideo.inference.score_rows import chosen_rows, score_columns
from octvideo.inference.segments import Segment, window_cells
from octvideo.lettering import fitted_text, shown_names, shown_text, text_mask

PICTURE_SUFFIXES = (".png", ".svg")

_INK, _QUIET, _SEGMENT, _EMPTY = "#23272e", "#6d737d", "#d9622b", "#ffffff"
_COLOURS = LinearSegmentedColormap.from_list("scores", ["#eef2f7", "#a6c9e5", "#2a78b5", "#0f2f4d"]).with_extremes(
    bad=_EMPTY
)
# Everything is placed by pixels of a screen; a PNG has more of them, for screens that are finer.
_WIDTH, _ROW, _MARGIN, _TOP, _BOTTOM, _FOOTER = 1000, 26, 16, 70, 34, 24
_LETTERS, _SCALE, _DPI = 13, 2, 100
_MOST_TICKS = 9
_STEPS_SEC = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)


def check_picture(path: Path) -> None:
    """Raises what is wrong with the name of a picture.

    Raises:
        UserError: another kind of file, or no folder for it.
    """
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        raise UserError(f"picture {path}: got {path.suffix or 'no suffix'}, expected {' or '.join(PICTURE_SUFFIXES)}")
    if not path.absolute().parent.is_dir():
        raise UserError(f"picture {path}: no folder {path.parent}")


def draw_timeline(
    path: str | Path,
    starts_sec: Sequence[float],
    ends_sec: Sequence[float],
    scores: Sequence[Mapping[int, float]],
    segments: Sequence[Segment],
    names: Sequence[str],
    *,
    title: str = "",
    classes: Sequence[int] | None = None,
    most_rows: int = 20,
) -> None:
    """Writes the picture of a video's scores and segments; of any length it has the same size.

    Args:
        path: of the file, .png or .svg. An SVG leaves the letters to its reader, whose fonts are taken; in a PNG names
            that no font here has are shown by number (`octvideo.lettering.lacking` says which).
        starts_sec: of N windows, increasing.
        ends_sec: likewise, excluded.
        scores: of each window, by class; those that are missing are 0.
        segments: of the video.
        names: of all classes.
        title: above.
        classes: that rows are chosen from; None is all.
        most_rows: of classes. Those that have segments come first, then those with the highest scores.

    Raises:
        UserError: see `check_picture`; or no windows.
    """
    path = Path(path)
    check_picture(path)
    if not len(starts_sec):
        raise UserError(f"picture {path}: there are no windows to draw")
    is_svg = path.suffix.lower() == ".svg"
    among = range(len(names)) if classes is None else sorted(set(classes))
    rows = chosen_rows(scores, segments, among, most_rows)
    labels = list(names) if is_svg else shown_names(names)
    cells = window_cells(np.asarray(starts_sec, np.float64), np.asarray(ends_sec, np.float64))  # (N,2)
    span = float(cells[0, 0]), float(cells[-1, 1])

    left = _MARGIN + min(max(_text_width(labels[n]) for n in rows), _WIDTH * 3 // 10) + 10
    width = _WIDTH - left - _MARGIN - 14  # the last tick's letters reach over the end
    heat = score_columns(cells, scores, rows, span, width * _SCALE)
    footer = _footer(rows, among, len(heat[0]), len(cells))
    bottom = _BOTTOM + _FOOTER * bool(footer)
    height = _TOP + bottom + _ROW * len(rows)
    figure = Figure(figsize=(_WIDTH / _DPI, height / _DPI), dpi=_DPI * _SCALE, facecolor="white")
    FigureCanvasAgg(figure)
    lettering = _Lettering(figure, _WIDTH, height, is_svg=is_svg)
    axes = figure.add_axes((left / _WIDTH, bottom / height, width / _WIDTH, _ROW * len(rows) / height))

    highest = max((score for top in scores for score in top.values()), default=0.0)
    colours = Normalize(0, next(top for top in (0.1, 0.25, 0.5, 1.0) if highest <= top or top == 1.0))
    extent = (*span, len(rows), 0)
    axes.imshow(heat, cmap=_COLOURS, norm=colours, extent=extent, aspect="auto", interpolation="nearest")
    _draw_segments(axes, segments, rows, span)
    _style(axes, span)
    for place, number in enumerate(rows):
        lettering.write(
            labels[number], left - 8, _TOP + _ROW * (place + 0.36), _INK, right=True, most=left - 8 - _MARGIN
        )
    lettering.write(title if is_svg else shown_text(title), _MARGIN, 20, _INK, bold=True, most=_WIDTH - 2 * _MARGIN)
    _draw_legend(figure, colours, has_segments=bool(segments), left=left, width=width, height=height)
    lettering.write(footer, _MARGIN, height - 14, _QUIET, size=11)
    with whole_file(path) as part, warnings.catch_warnings(), rc_context({"svg.fonttype": "none"}):
        warnings.filterwarnings("ignore", "Glyph .* missing")  # an SVG's reader has fonts of its own
        figure.savefig(part, format=path.suffix[1:].lower(), dpi=_DPI * _SCALE)


def _draw_segments(axes: Axes, segments: Sequence[Segment], rows: Sequence[int], span: tuple[float, float]) -> None:
    """Bars below the colours of each row, which leave it room."""
    least = (span[1] - span[0]) / 400  # seen at any length
    for place, number in enumerate(rows):
        axes.axhspan(place + 0.7, place + 1.0, color=_EMPTY, linewidth=0)
        axes.axhspan(place, place + 0.04, color=_EMPTY, linewidth=0)
        bars = [
            (one.start_sec, max(one.end_sec - one.start_sec, least)) for one in segments if one.class_index == number
        ]
        axes.broken_barh(bars, (place + 0.745, 0.15), facecolors=_SEGMENT, linewidth=0)


def _style(axes: Axes, span: tuple[float, float]) -> None:
    length = span[1] - span[0]
    step = next((step for step in _STEPS_SEC if length / step < _MOST_TICKS), None)
    step = step or 86400 * -(-length // (86400 * _MOST_TICKS))
    ticks = np.arange(np.ceil(span[0] / step - 1e-9), np.floor(span[1] / step + 1e-9) + 1) * step
    axes.set_xticks(
        ticks, [clock_text(tick, tenths=step < 1, hours=span[1] >= 3600) for tick in ticks], fontsize=8.5, color=_QUIET
    )
    axes.set_xlim(*span)
    axes.set_yticks([])
    axes.tick_params(length=3, color=_QUIET)
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.spines["bottom"].set_color(_QUIET)


def clock_text(seconds: float, *, tenths: bool = False, hours: bool = False) -> str:
    """mm:ss, or h:mm:ss.

    Example:
        >>> clock_text(75), clock_text(4500, hours=True), clock_text(1.5, tenths=True)
        ('01:15', '1:15:00', '00:01.5')
    """
    count = round(seconds * 10)
    minutes = f"{count // 36000}:{count // 600 % 60:02}" if hours else f"{count // 600:02}"
    return f"{minutes}:{count // 10 % 60:02}" + (f".{count % 10}" if tenths else "")


def _draw_legend(
    figure: Figure, colours: Normalize, *, has_segments: bool, left: float, width: float, height: float
) -> None:
    place = (left / _WIDTH, 1 - 56 / height, 0.14, 8 / height)
    bar = figure.colorbar(ScalarMappable(colours, _COLOURS), cax=figure.add_axes(place), orientation="horizontal")
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.set_ticks([])
    y = 1 - 52 / height
    style = {"fontsize": 8.5, "color": _QUIET, "va": "center_baseline"}
    figure.text(place[0] + place[2] + 0.008, y, f"score, 0 to {colours.vmax:g}", **style)  # type: ignore[arg-type]
    if has_segments:
        handles = [Patch(facecolor=_SEGMENT, label="segment")]
        at = (place[0] + place[2] + 0.12, y - 0.5 / height)
        legend = figure.legend(
            handles=handles, loc="center left", bbox_to_anchor=at, frameon=False, fontsize=8.5, handletextpad=0.6
        )
        legend.get_texts()[0].set_color(_QUIET)
        legend.legend_handles[0].set_height(4)  # type: ignore[union-attr]


def _footer(rows: Sequence[int], among: Sequence[int], num_columns: int, num_windows: int) -> str:
    said = []
    if left_out := len(among) - len(rows):
        said.append(
            f"{len(rows)} of {len(among)} classes: those with segments and the highest scores; {left_out} left out"
        )
    if num_windows > num_columns:
        said.append(f"{num_windows:,} windows: each column shows its highest score")
    return "; ".join(said)


def _text_width(text: str) -> int:
    """In pixels, of a name that stands beside its row."""
    return -(-text_mask(text, _LETTERS * _SCALE).shape[1] // _SCALE)


class _Lettering:
    """Writes texts of any script, placed by pixels from the top left.

    Args:
        figure: to write on.
        width: in pixels.
        height: in pixels.
        is_svg: texts stay texts.
    """

    def __init__(self, figure: Figure, width: int, height: int, *, is_svg: bool) -> None:
        self._figure, self._width, self._height, self._is_svg = figure, width, height, is_svg

    def write(
        self,
        text: str,
        x: float,
        middle: float,
        colour: str,
        *,
        right: bool = False,
        bold: bool = False,
        size: int = _LETTERS,
        most: float = _WIDTH,
    ) -> None:
        """Writes a text beside `x`: to its right, or to its left where `right` says that it ends there."""
        if not text:
            return
        text = fitted_text(text, size * _SCALE, int(most * _SCALE), bold=bold)
        if self._is_svg:
            # A figure has 72 points where there are `_DPI` pixels.
            self._figure.text(
                x / self._width,
                1 - middle / self._height,
                text,
                fontsize=size * 72 / _DPI,
                color=colour,
                ha="right" if right else "left",
                va="center_baseline",
                fontweight="bold" if bold else "normal",
                parse_math=False,
            )
            return
        mask = text_mask(text, size * _SCALE, bold=bold)
        image = np.empty((*mask.shape, 4), np.uint8)
        image[..., :3] = [int(colour[n : n + 2], 16) for n in (1, 3, 5)]
        image[..., 3] = mask
        x_px = round(x * _SCALE) - (mask.shape[1] if right else 0)
        y_px = round((self._height - middle) * _SCALE - 0.5 * mask.shape[0])
        self._figure.figimage(image, x_px, y_px, origin="upper", zorder=5)

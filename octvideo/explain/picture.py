"""The picture of an explanation: a row of frames, and below them what the high path, the low path and both say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from octvideo.errors import UserError
from octvideo.explain.saliency import PathName, Saliency
from octvideo.explain.video import ExplainedClip
from octvideo.files import whole_file
from octvideo.lettering import fitted_text, shown_text, text_mask

PICTURE_SUFFIX = ".png"
_INK, _QUIET = "#23272e", "#6d737d"
_COLOURS = colormaps["inferno"]
# In inches: a frame, the gap between two, and what is around all of them.
_CELL, _GAP, _LEFT, _RIGHT, _TOP, _BOTTOM = 1.2, 0.05, 1.75, 1.05, 0.78, 0.12
_MOST_FRAMES = 8
_DPI, _LETTERS_PX = 110, 17
_TOP_PERCENT = 99.5  # of gradients' values: what the colours reach


def check_picture(path: Path) -> None:
    """Raises what is wrong with the name of a picture, before the work.

    Raises:
        UserError: another kind of file, or no folder for it.
    """
    if path.suffix.lower() != PICTURE_SUFFIX:
        raise UserError(f"picture {path}: got {path.suffix or 'no suffix'}, expected {PICTURE_SUFFIX}")
    if not path.absolute().parent.is_dir():
        raise UserError(f"picture {path}: no folder {path.parent}")


def draw_clip(path: str | Path, clip: ExplainedClip, *, title: str) -> None:
    """Writes a PNG of a clip: up to eight of its frames, and each path's saliency over them, on one scale.

    Args:
        path: of the PNG.
        clip: what to draw.
        title: above.

    Raises:
        UserError: see `check_picture`.
    """
    path = Path(path)
    check_picture(path)
    saliency = clip.saliency
    shown = np.unique(np.linspace(0, len(clip.frames) - 1, min(_MOST_FRAMES, len(clip.frames))).round().astype(int))
    maps = {name: saliency.upsampled(name)[shown] for name in saliency.maps}
    # Single pixels stand out of gradients by far, so that on a scale up to them nothing else could be seen.
    top = 100.0 if saliency.method == "gradcam" else _TOP_PERCENT
    scale = Normalize(0, max(float(np.percentile(each, top)) for each in maps.values()) or 1.0)
    rows, columns = 1 + len(maps), len(shown)
    width = _LEFT + columns * (_CELL + _GAP) + _RIGHT
    height = _TOP + rows * (_CELL + _GAP) + _BOTTOM
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)

    def at(row: int, column: int) -> tuple[float, float, float, float]:
        left, bottom = _LEFT + column * (_CELL + _GAP), height - _TOP - (row + 1) * (_CELL + _GAP) + _GAP
        return left / width, bottom / height, _CELL / width, _CELL / height

    frames = clip.frames[shown]
    grey = frames @ np.array([0.299, 0.587, 0.114]) / 255  # (n,S,S)
    images: dict[str, np.ndarray] = {"frames": frames}
    images |= {name: _over(grey, scale(each)) for name, each in maps.items()}
    for row, (name, each) in enumerate(images.items()):
        for column, image in enumerate(each):
            axes = figure.add_axes(at(row, column))
            axes.imshow(image, interpolation="nearest")
            axes.set_axis_off()
        left, bottom, _, cell = at(row, 0)
        text = "frames" if name == "frames" else _label(saliency, name)  # type: ignore[arg-type]
        figure.text(left - 0.12 / width, bottom + cell / 2, text, ha="right", va="center", fontsize=9, color=_INK)
    _write_title(figure, title, (width, height))
    how = "Grad-CAM" if saliency.method == "gradcam" else "smoothed input gradients"
    figure.text(0.15 / width, 1 - 0.55 / height, f"{how} at {saliency.layer}", fontsize=8.5, color=_QUIET, va="center")
    left, bottom, _, _ = at(rows - 1, columns - 1)
    bar_left = left + (_CELL + 0.15) / width
    bar = figure.add_axes((bar_left, bottom, 0.14 / width, (len(maps) * (_CELL + _GAP) - _GAP) / height))
    figure.colorbar(ScalarMappable(scale, _COLOURS), cax=bar, ticks=[0, scale.vmax])
    bar.set_yticklabels(["0", "most" if top == 100 else f"top {100 - top:g} %"], fontsize=8.5, color=_QUIET)
    with whole_file(path) as part:
        figure.savefig(part, format="png")


def _write_title(figure: Figure, title: str, size: tuple[float, float]) -> None:
    """In the upper left, in any script; `size` is the figure's, in inches."""
    room = int((size[0] - 0.3) * _DPI)
    mask = text_mask(fitted_text(shown_text(title), _LETTERS_PX, room), _LETTERS_PX)
    image = np.empty((*mask.shape, 4), np.uint8)
    image[..., :3] = [int(_INK[n : n + 2], 16) for n in (1, 3, 5)]
    image[..., 3] = mask
    y = round((size[1] - 0.27) * _DPI - mask.shape[0] / 2)
    figure.figimage(image, round(0.15 * _DPI), y, origin="upper", zorder=5)


def _label(saliency: Saliency, name: PathName) -> str:
    steps = f"{len(saliency.maps[name])} steps in time"
    if name == "both":
        return f"{'both paths' if 'low' in saliency.maps else 'all channels'}\n{steps}"
    share = saliency.low_share
    if share is None:
        return f"{name} path"
    return f"{name} path\n{100 * (share if name == 'low' else 1 - share):.0f} % of high + low"


def _over(grey: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """Colours over grey frames: the stronger, the more they cover. (n, S, S) each, to (n, S, S, 3)."""
    strength = np.clip(np.asarray(strength), 0, 1)
    cover = (0.25 + 0.6 * strength)[..., None]
    return np.asarray(grey[..., None] * (1 - cover) + _COLOURS(strength)[..., :3] * cover)

"""Captions over the frames of a video: the best classes at each time, with bars for their scores."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from octvideo.inference.segments import Segment, window_cells
from octvideo.lettering import fitted_text, paint, shown_names, text_mask

_PANEL, _PANEL_SHARE = (18, 22, 29), 185  # its colour, and how much of it covers the video, of 255
_BAR, _SEGMENT, _INK, _QUIET = (42, 120, 181), (217, 98, 43), (255, 255, 255), (206, 212, 220)
_LEAST_LETTERS, _MOST_LETTERS = 9, 84  # in pixels


class Captions:
    """Paints a panel onto the lower left of frames: classes, bars and per cent, the best first.

    A frame shows the scores of the window whose middle is nearest. Classes that have a segment then are always among
    those shown, and have another colour.

    Args:
        starts_sec: of N windows, increasing.
        ends_sec: likewise, excluded.
        scores: of each window, by class; those that are missing are 0.
        segments: of the video.
        names: of all classes; those that no font here has are shown by number.
        num_rows: classes that are shown, fewer where they would cover more than half of the frame.
    """

    def __init__(
        self,
        starts_sec: Sequence[float],
        ends_sec: Sequence[float],
        scores: Sequence[Mapping[int, float]],
        segments: Sequence[Segment],
        names: Sequence[str],
        *,
        num_rows: int = 5,
    ) -> None:
        cells = window_cells(np.asarray(starts_sec, np.float64), np.asarray(ends_sec, np.float64))
        self._starts, self._ends = cells[:, 0].tolist(), cells[:, 1].tolist()
        self._scores, self._names = scores, shown_names(names)
        self._num_rows = min(num_rows, max(map(len, scores), default=0))
        # Which classes have segments from each time on, up to the next.
        times = sorted({time for one in segments for time in (one.start_sec, one.end_sec)})
        self._times = [-np.inf, *times]
        active: list[set[int]] = [set() for _ in self._times]
        for one in segments:
            for n in range(bisect_right(self._times, one.start_sec) - 1, bisect_right(self._times, one.end_sec) - 1):
                active[n].add(one.class_index)
        self._active = [frozenset(classes) for classes in active]
        self._made: tuple[object, _Panel | None] = (None, None)

    def __call__(self, image: np.ndarray, time_sec: float) -> None:
        """Paints the captions of a time onto a frame, uint8 (H, W, 3); nothing where there are no scores."""
        cell = bisect_right(self._starts, time_sec + 1e-6) - 1
        if cell < 0 or time_sec >= self._ends[cell] + 1e-6:
            return
        active = self._active[bisect_right(self._times, time_sec + 1e-6) - 1]
        key = (cell, active, image.shape)
        if key != self._made[0]:
            self._made = (key, self._panel(cell, active, image.shape))
        if self._made[1] is not None:
            self._made[1].onto(image)

    def _panel(self, cell: int, active: frozenset[int], shape: tuple[int, ...]) -> _Panel | None:
        layout = _Layout(shape[0], shape[1], self._num_rows)
        if not layout.num_rows:
            return None
        scores = self._scores[cell]
        ranked = sorted(scores, key=lambda n: (-scores[n], n))
        first = [n for n in ranked if n in active] + sorted(n for n in active if n not in scores)
        shown = (first + [n for n in ranked if n not in active])[: layout.num_rows]
        shown.sort(key=lambda n: (-scores.get(n, 0.0), n))
        return _Panel(layout, [(self._names[n], scores.get(n, 0.0), n in active) for n in shown])


class _Layout:
    """Where things stand in a frame, all in pixels.

    Args:
        height: of the frame.
        width: of the frame.
        num_rows: that are wanted.
    """

    def __init__(self, height: int, width: int, num_rows: int) -> None:
        self.letters = min(max(round(min(height, width) / 25), _LEAST_LETTERS), _MOST_LETTERS)
        self.row, self.gap = round(1.55 * self.letters), max(self.letters // 6, 1)
        self.inner = max(self.letters // 2, 2)  # between the panel's edge and the rows
        self.margin = min(self.letters, width // 16, height // 16)
        fitting = (height // 2 - 2 * self.inner + self.gap) // (self.row + self.gap)
        self.num_rows = max(min(num_rows, fitting), 0)
        self.width = min(width - 2 * self.margin, max(width * 2 // 5, 18 * self.letters))
        self.height = 2 * self.inner + self.num_rows * (self.row + self.gap) - self.gap
        if self.width < 4 * self.letters:
            self.num_rows = 0


class _Panel:
    """The captions of one moment, which many frames share.

    Args:
        layout: of the frames.
        rows: name, score, and whether the class has a segment now.
    """

    def __init__(self, layout: _Layout, rows: Sequence[tuple[str, float, bool]]) -> None:
        size = (layout.height, layout.width)
        colours = np.full((*size, 3), _PANEL, np.uint8)
        cover = Image.new("L", (layout.width, layout.height))
        box = (0, 0, layout.width - 1, layout.height - 1)
        ImageDraw.Draw(cover).rounded_rectangle(box, radius=layout.inner, fill=_PANEL_SHARE)
        share = np.array(cover)
        left, length = layout.inner, layout.width - 2 * layout.inner
        for n, (name, score, has_segment) in enumerate(rows):
            top = layout.inner + n * (layout.row + layout.gap)
            bar = slice(top, top + layout.row), slice(left, left + round(length * min(max(score, 0.0), 1.0)))
            colours[bar] = _SEGMENT if has_segment else _BAR
            share[bar] = 225
            percent = text_mask(f"{100 * score:.0f} %", layout.letters, bold=has_segment)
            room = length - percent.shape[1] - 2 * layout.inner
            text = fitted_text(name, layout.letters, max(room, 0), bold=has_segment)
            inked = np.zeros(size, np.uint8)
            for mask, x in (
                (text_mask(text, layout.letters, bold=has_segment), left + layout.inner // 2),
                (percent, left + length - percent.shape[1] - layout.inner // 2),
            ):
                paint(inked[..., None], mask, x, top + (layout.row - mask.shape[0]) // 2, (255,))
            paint(colours, inked, 0, 0, _INK if has_segment or n == 0 else _QUIET)
            share = np.maximum(share, inked)
        self._margin, self._size = layout.margin, size
        self._light = colours.astype(np.uint16) * share[..., None]
        self._rest = 255 - share[..., None].astype(np.uint16)

    def onto(self, image: np.ndarray) -> None:
        """Paints the panel onto a frame."""
        bottom, left = image.shape[0] - self._margin, self._margin
        part = image[bottom - self._size[0] : bottom, left : left + self._size[1]]
        part[:] = (self._light + part * self._rest + 127) // 255

"""Saliency over all frames of a video: the high path in orange, the low path in blue, on one scale."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from octvideo.explain.video import ExplainedClip
from octvideo.inference.segments import window_cells
from octvideo.lettering import fitted_text, paint, shown_text, text_mask

_HIGH, _LOW, _INK, _SHADE = (255, 138, 32), (64, 160, 255), (255, 255, 255), 110
_COVER = 0.75  # of a frame's pixel, by the strongest saliency of a path
_TOP = 0.995  # of a video's values reach full strength: single ones stand out of gradients by far
_MOST_PX = 56  # side of a map that is kept: gradients have one value a pixel, and a video has many clips


class Painter:
    """Paints clips' saliency onto frames, for `octvideo.video.overlay.write_overlay`.

    Frames lose their colours. Where a network's centre crop ends there is a thin line: it saw nothing beyond.

    Args:
        title: in the upper left, such as the class.
    """

    def __init__(self, title: str) -> None:
        self._title = shown_text(title)
        self._starts: list[float] = []
        self._ends: list[float] = []
        self._maps: list[dict[str, Tensor]] = []
        self._boxes: list[tuple[float, float, float, float]] = []
        self._cells: list[tuple[float, float]] | None = None
        self._scale = 1.0
        self._made: tuple[object, np.ndarray, np.ndarray] | None = None

    def add(self, clip: ExplainedClip) -> None:
        """Takes the next clip; what it keeps is small."""
        maps = clip.saliency.maps
        names = ("high", "low") if "high" in maps else ("both",)
        small = {}
        for name in names:
            each = torch.from_numpy(maps[name])  # type: ignore[index]  # (T',h,w)
            if each.shape[-1] > _MOST_PX:
                each = F.adaptive_avg_pool2d(each[:, None], _MOST_PX)[:, 0]
            small[name] = each
        self._maps.append(small)
        (height, width), box = clip.frame_size, clip.box
        self._boxes.append(
            (box.top / height, box.left / width, (box.top + box.height) / height, (box.left + box.width) / width)
        )
        self._starts.append(clip.start_sec)
        self._ends.append(clip.end_sec)
        self._cells = None

    @property
    def end_sec(self) -> float:
        """Where the last clip ends."""
        return self._ends[-1] if self._ends else 0.0

    def __call__(self, image: np.ndarray, time_sec: float) -> None:
        """Paints onto a frame, RGB, uint8 (H, W, 3)."""
        if self._cells is None and self._maps:
            cells = window_cells(np.asarray(self._starts, np.float64), np.asarray(self._ends, np.float64))
            self._cells = [(float(start), float(end)) for start, end in cells]
            values = [np.concatenate([maps[name].numpy().ravel() for maps in self._maps]) for name in self._maps[0]]
            self._scale = max(float(np.quantile(each, _TOP)) for each in values) or 1.0
        grey = image @ np.array([0.299, 0.587, 0.114], np.float32)  # (H,W)
        number = bisect_right([start for start, _ in self._cells or ()], time_sec + 1e-6) - 1
        if self._cells and number >= 0 and time_sec < self._cells[number][1] + 1e-6:
            start, end = self._starts[number], self._ends[number]
            steps = len(next(iter(self._maps[number].values())))
            step = min(max(int((time_sec - start) / max(end - start, 1e-9) * steps), 0), steps - 1)
            key = (number, step, image.shape)
            if self._made is None or self._made[0] != key:
                self._made = (key, *self._layer(number, step, image.shape[:2]))
            _, cover, light = self._made
            image[:] = (grey[..., None] * (1 - cover) + light).round().clip(0, 255)
        else:
            image[:] = grey[..., None]
        self._write(image, self._maps[0] if self._maps else {})

    def _layer(self, number: int, step: int, size: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """How much of each pixel is covered, (H, W, 1), and by which light, (H, W, 3)."""
        top, left, bottom, right = self._boxes[number]
        rows = round(top * size[0]), max(round(bottom * size[0]), round(top * size[0]) + 1)
        columns = round(left * size[1]), max(round(right * size[1]), round(left * size[1]) + 1)
        cover, light = np.zeros((*size, 1), np.float32), np.zeros((*size, 3), np.float32)
        inner = slice(*rows), slice(*columns)
        for name, maps in self._maps[number].items():
            shape = (rows[1] - rows[0], columns[1] - columns[0])
            big = F.interpolate(maps[step][None, None], shape, mode="bilinear", align_corners=False)[0, 0]
            own = _COVER * (big.numpy() / self._scale).clip(0, 1)[..., None]
            cover[inner] += own
            light[inner] += own * np.array(_LOW if name == "low" else _HIGH, np.float32)
        for edge in (rows[0], rows[1] - 1):
            if 0 < edge < size[0] - 1:
                light[edge, slice(*columns)] += 60
        for edge in (columns[0], columns[1] - 1):
            if 0 < edge < size[1] - 1:
                light[slice(*rows), edge] += 60
        return cover.clip(0, 1), light

    def _write(self, image: np.ndarray, maps: dict[str, Tensor]) -> None:
        letters = min(max(round(min(image.shape[:2]) / 22), 9), 60)
        y, x = letters // 2, letters // 2
        lines = [(self._title, _INK)]
        lines += [("high path", _HIGH), ("low path", _LOW)] if "low" in maps else []
        for text, colour in lines:
            text = fitted_text(text, letters, image.shape[1] - 2 * x, bold=colour != _INK)
            mask = text_mask(text, letters, bold=colour != _INK)
            height, width = (
                min(mask.shape[0], image.shape[0] - y),
                min(mask.shape[1] + letters // 2, image.shape[1] - x),
            )
            if height < mask.shape[0]:
                return
            part = image[y : y + height, x : x + width]
            part[:] = part // 2 - np.minimum(part // 2, _SHADE // 4)
            paint(image, mask, x + letters // 4, y, colour)
            y += height

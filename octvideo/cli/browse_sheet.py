"""Strips of frames with captions, and a contact sheet of them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from octvideo.lettering import fitted_text, paint, shown_text, text_mask

_FRAME_PX = (64, 160)  # the least and the most that a frame is shown in
_TITLE_PX, _CAPTION_PX, _GAP = 14, 12, 14
_INK, _QUIET, _GROUND = (30, 34, 42), (80, 88, 98), 255
_WIDEST_PX = 1800


@dataclass(frozen=True)
class Strip:
    """Frames of one clip side by side.

    Args:
        caption: in a line.
        frames: uint8 (n, S, S, 3).
    """

    caption: str
    frames: np.ndarray


@dataclass(frozen=True)
class Block:
    """Strips that belong together."""

    title: str
    strips: Sequence[Strip]


def strip_image(strip: Strip) -> np.ndarray:
    """Frames in a row, uint8 (h, w, 3): each as it is, but no smaller and no larger than a person likes to see."""
    size = strip.frames.shape[1]
    shown = min(max(size, _FRAME_PX[0]), _FRAME_PX[1])
    how = Image.Resampling.NEAREST if shown > size else Image.Resampling.BOX
    frames = [
        frame if shown == size else np.asarray(Image.fromarray(np.ascontiguousarray(frame)).resize((shown, shown), how))
        for frame in strip.frames
    ]
    gap = np.full((shown, 2, 3), _GROUND, np.uint8)
    row: list[np.ndarray] = []
    for frame in frames:
        row += [gap, frame] if row else [frame]
    return np.concatenate(row, 1)


def png_of(image: np.ndarray) -> bytes:
    """The content of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="png")
    return buffer.getvalue()


def contact_sheet(groups: Sequence[Sequence[Block]]) -> np.ndarray:
    """All blocks beside and below each other, each group from a new row on, uint8 (h, w, 3)."""
    drawn = [[_drawn(block) for block in group] for group in groups]
    width = max(image.shape[1] for group in drawn for image in group)
    columns = min(max((_WIDEST_PX - _GAP) // (width + _GAP), 1), max(map(len, drawn)))
    rows = [group[start : start + columns] for group in drawn for start in range(0, len(group), columns)]
    height = sum(max(image.shape[0] for image in row) + _GAP for row in rows) + _GAP
    sheet = np.full((height, columns * (width + _GAP) + _GAP, 3), _GROUND, np.uint8)
    top = _GAP
    for row in rows:
        for column, image in enumerate(row):
            left = _GAP + column * (width + _GAP)
            sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
        top += max(image.shape[0] for image in row) + _GAP
    return sheet


def _drawn(block: Block) -> np.ndarray:
    images = [strip_image(strip) for strip in block.strips]
    width = max(image.shape[1] for image in images)
    parts = [_line(block.title, width, _TITLE_PX, _INK, bold=True)]
    for strip, image in zip(block.strips, images, strict=True):
        padded = np.full((image.shape[0], width, 3), _GROUND, np.uint8)
        padded[:, : image.shape[1]] = image
        parts += [_line(strip.caption, width, _CAPTION_PX, _QUIET), padded]
    return np.concatenate(parts)


def _line(text: str, width: int, size_px: int, colour: tuple[int, int, int], *, bold: bool = False) -> np.ndarray:
    mask = text_mask(fitted_text(shown_text(text), size_px, width, bold=bold), size_px, bold=bold)
    line = np.full((mask.shape[0] + 2, width, 3), _GROUND, np.uint8)
    paint(line, mask, 0, 1, colour)
    return line

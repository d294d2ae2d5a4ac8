"""Resizing and cropping of uint8 frames, (T, H, W, C) as decoded and (T, C, H, W) from the resize on.

The program beside exported models has the same in numpy (inference/standalone/classify.py); tests hold them equal.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Box:
    """A region of a frame, in pixels.

    Args:
        top: first row.
        left: first column.
        height: number of rows.
        width: number of columns.
    """

    top: int
    left: int
    height: int
    width: int

    def of(self, frames: Tensor) -> Tensor:
        """The region of frames (T, H, W, C), as a view."""
        return frames[:, self.top : self.top + self.height, self.left : self.left + self.width]


def short_side_size(height: int, width: int, short_side_px: int) -> tuple[int, int]:
    """Height and width after the short side becomes `short_side_px`, the aspect kept and rounded down.

    Example:
        >>> short_side_size(240, 320, 256)
        (256, 341)
    """
    if height <= width:
        return short_side_px, short_side_px * width // height
    return short_side_px * height // width, short_side_px


def resize_short_side(frames: Tensor, short_side_px: int) -> Tensor:
    """Resizes whole frames.

    Args:
        frames: uint8 (T, H, W, C).
        short_side_px: of the result.

    Returns:
        uint8 (T, C, h, w), in memory as it came: channels last.
    """
    height, width = frames.shape[1:3]
    return resize(frames, short_side_size(height, width, short_side_px))


def crop_and_resize(frames: Tensor, box: Box, size: tuple[int, int]) -> Tensor:
    """Cuts a region and resizes it: pixels outside are never touched.

    Args:
        frames: uint8 (T, H, W, C).
        box: the region.
        size: height and width of the result.

    Returns:
        uint8 (T, C, h, w).
    """
    return resize(box.of(frames), size)


def resize(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear with antialiasing, uint8 (T, H, W, C) to (T, C, h, w).

    It is what torchvision's resize calls for such frames: a test holds the two equal. Importing torchvision would slow
    the start of `infer`.
    """
    frames = frames.permute(0, 3, 1, 2)  # (T,C,H,W), a channels-last view: the fast path of torch's uint8 resize
    if tuple(frames.shape[-2:]) == tuple(size):
        return frames
    return F.interpolate(frames, size, mode="bilinear", antialias=True)


def evaluation_crops(height: int, width: int, *, num_crops: int, crop_px: int) -> list[Box]:
    """Square crops of a frame: the centre, or three along its longer side, from left to right or top to bottom.

    Args:
        height: of the frames.
        width: of the frames.
        num_crops: 1 or 3.
        crop_px: side of each crop, at most the short side.

    Raises:
        ValueError: another number of crops, or a crop larger than the frame.

    Example:
        >>> [box.left for box in evaluation_crops(256, 340, num_crops=3, crop_px=256)]
        [0, 42, 84]
    """
    if num_crops not in (1, 3):
        raise ValueError(f"num_crops: got {num_crops}, expected 1 (centre) or 3")
    if crop_px > min(height, width):
        raise ValueError(f"crop_px: got {crop_px}, expected at most {min(height, width)}, the frame's short side")
    spare_y, spare_x = height - crop_px, width - crop_px
    # Halves of the spare pixels: 0, 1 or 2 of them before the crop.
    halves = [1] if num_crops == 1 else [0, 1, 2]
    boxes = []
    for n in halves:
        top, left = (1, n) if width >= height else (n, 1)
        boxes.append(Box(spare_y * top // 2, spare_x * left // 2, crop_px, crop_px))
    return boxes

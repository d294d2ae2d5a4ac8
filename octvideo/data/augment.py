"""Random training views of a clip: parameters are sampled apart from being applied, and are one for all frames."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from octvideo.errors import UserError
from octvideo.video import Box


@dataclass(frozen=True)
class Augmentation:
    """What training clips go through.

    Args:
        crop_px: side of the square clips.
        short_side_px: range that the frames' short side is resized to before a crop at a random place
            (Non-local networks, arXiv 1711.07971; uniform in 1 / size, as there). Off where `area` is given.
        area: range of the share of the frame that a crop covers (Inception's crop), stronger, for small data.
        aspect: range of that crop's width / height.
        flip: probability of a horizontal flip; 0 where left and right mean something.
        colour: strength of brightness, contrast and saturation, 0 to 1: each is multiplied by a factor from
            [1 - colour, 1 + colour].

    Raises:
        UserError: a value that can't be meant.
    """

    crop_px: int = 224
    short_side_px: tuple[int, int] = (256, 320)
    area: tuple[float, float] | None = None
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    colour: float = 0.0

    def __post_init__(self) -> None:
        if self.crop_px < 1:
            raise UserError(f"augment.crop_px: got {self.crop_px}, expected 1 or more")
        low, high = self.short_side_px
        if self.area is None and not self.crop_px <= low <= high:
            raise UserError(
                f"augment.short_side_px: got {[low, high]}, expected crop_px ({self.crop_px}) <= smallest <= largest"
            )
        if self.area is not None and not 0 < self.area[0] <= self.area[1] <= 1:
            raise UserError(f"augment.area: got {list(self.area)}, expected 0 < smallest <= largest <= 1")
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise UserError(f"augment.aspect: got {list(self.aspect)}, expected 0 < smallest <= largest")
        for name in ("flip", "colour"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"augment.{name}: got {getattr(self, name)}, expected 0 to 1")


@dataclass(frozen=True)
class ClipTransform:
    """One sampled augmentation.

    Args:
        box: region of the source frame that becomes the clip.
        flip: left and right are swapped.
        factors: of brightness, contrast and saturation.
    """

    box: Box
    flip: bool
    factors: tuple[float, float, float] = (1.0, 1.0, 1.0)


def sample_transform(augment: Augmentation, *, height: int, width: int, generator: Generator) -> ClipTransform:
    """Draws the parameters for a clip of frames of the given size.

    Args:
        augment: what may be drawn.
        height: of the source frames.
        width: of the source frames.
        generator: the only source of randomness.
    """

    def between(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    if augment.area is None:
        # A crop of crop_px from frames resized to `size` is this region of the source.
        low, high = augment.short_side_px
        size = 1 / between(1 / high, 1 / low)
        side = min(round(augment.crop_px / size * min(height, width)), height, width)
        crop_height = crop_width = side
    else:
        crop_height, crop_width = _area_crop(augment, height, width, between)
    top = int(torch.randint(height - crop_height + 1, (), generator=generator))
    left = int(torch.randint(width - crop_width + 1, (), generator=generator))
    flip = between(0, 1) < augment.flip
    factors = tuple(between(1 - augment.colour, 1 + augment.colour) for _ in range(3))
    return ClipTransform(Box(top, left, crop_height, crop_width), flip, factors)  # type: ignore[arg-type]


def _area_crop(
    augment: Augmentation, height: int, width: int, between: Callable[[float, float], float]
) -> tuple[int, int]:
    assert augment.area is not None
    area = between(*augment.area) * height * width
    aspect = math.exp(between(math.log(augment.aspect[0]), math.log(augment.aspect[1])))
    # Clamped rather than drawn again: one clip, one fixed number of draws.
    return (
        max(min(round(math.sqrt(area / aspect)), height), 1),
        max(min(round(math.sqrt(area * aspect)), width), 1),
    )


def apply_transform(clip: Tensor, transform: ClipTransform) -> Tensor:
    """What is left of a sampled augmentation once its region is cut and resized.

    Args:
        clip: uint8 (T, C, S, S), in memory channels last.
        transform: whose box is done with.

    Returns:
        uint8 (C, T, S, S), contiguous.
    """
    if transform.flip:
        clip = clip.flip(-1)
    if transform.factors != (1, 1, 1):
        clip = _coloured(clip, *transform.factors)
    # numpy writes the planes faster than torch's contiguous().
    planes = np.empty((clip.shape[1], clip.shape[0], *clip.shape[2:]), np.uint8)  # (C,T,S,S)
    np.copyto(planes, clip.numpy().swapaxes(0, 1))
    return torch.from_numpy(planes)


def _coloured(clip: Tensor, brightness: float, contrast: float, saturation: float) -> Tensor:
    # torchvision is slow to import, and most configs leave colours alone.
    from torchvision.transforms.v2 import functional as TF

    if brightness != 1:
        clip = TF.adjust_brightness(clip, brightness)
    if contrast != 1:
        clip = TF.adjust_contrast(clip, contrast)
    if saturation != 1:
        clip = TF.adjust_saturation(clip, saturation)
    return clip

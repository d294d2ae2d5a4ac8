"""Random training views of a clip: parameters are sampled apart from being applied, and are one for all frames."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from octvideo.data.policies import BINS, Operation, Policy, apply_operations, draw_operations, in_chunks
from octvideo.errors import UserError
from octvideo.seeds import seed_of
from octvideo.video import Box

EraseWith = Literal["noise", "grey"]
_GREY = 115  # .45 of 255: near 0 once the pixels are normalised


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
        hue: colours are turned by up to this share of the circle, 0 to .5.
        grey: probability of a grey clip.
        blur: probability of a Gaussian blur.
        blur_sigma: range of its standard deviation, in pixels of the clip.
        policy: "rand" is RandAugment (arXiv 1909.13719), "trivial" TrivialAugment Wide (arXiv 2103.10158).
        policy_ops: operations of RandAugment.
        policy_magnitude: of them, 0 to 30.
        erase: probability that a box is erased, the same in all its frames (arXiv 1708.04896).
        erase_area: range of the box's share of the frame.
        erase_aspect: range of its height / width.
        erase_frames: range of the share of the clip's frames, in a row, that it goes through; below 1 it is a cube.
        erase_with: "noise", the same in all frames, or "grey".

    Raises:
        UserError: a value that can't be meant.
    """

    crop_px: int = 224
    short_side_px: tuple[int, int] = (256, 320)
    area: tuple[float, float] | None = None
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    colour: float = 0.0
    hue: float = 0.0
    grey: float = 0.0
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    policy: Policy | None = None
    policy_ops: int = 2
    policy_magnitude: int = 9
    erase: float = 0.0
    erase_area: tuple[float, float] = (0.02, 0.33)
    erase_aspect: tuple[float, float] = (0.3, 3.3)
    erase_frames: tuple[float, float] = (1.0, 1.0)
    erase_with: EraseWith = "noise"

    def __post_init__(self) -> None:
        if self.crop_px < 1:
            raise UserError(f"augment.crop_px: got {self.crop_px}, expected 1 or more")
        low, high = self.short_side_px
        if self.area is None and not self.crop_px <= low <= high:
            raise UserError(
                f"augment.short_side_px: got {[low, high]}, expected crop_px ({self.crop_px}) <= smallest <= largest"
            )
        for name, most in (("area", 1.0), ("aspect", math.inf), ("blur_sigma", math.inf), ("erase_area", 1.0),
                           ("erase_aspect", math.inf), ("erase_frames", 1.0)):  # fmt: skip
            between = getattr(self, name)
            if between is not None and not 0 < between[0] <= between[1] <= most:
                bound = "" if most == math.inf else f" <= {most:g}"
                raise UserError(f"augment.{name}: got {list(between)}, expected 0 < smallest <= largest{bound}")
        for name in ("flip", "colour", "hue", "grey", "blur", "erase"):
            most = 0.5 if name == "hue" else 1
            if not 0 <= getattr(self, name) <= most:
                raise UserError(f"augment.{name}: got {getattr(self, name)}, expected 0 to {most}")
        if self.policy_ops < 1:
            raise UserError(f"augment.policy_ops: got {self.policy_ops}, expected 1 or more")
        if not 0 <= self.policy_magnitude < BINS:
            raise UserError(f"augment.policy_magnitude: got {self.policy_magnitude}, expected 0 to {BINS - 1}")


@dataclass(frozen=True)
class Erased:
    """A cube that is erased.

    Args:
        box: of each of its frames, in pixels of the clip.
        first: of its frames.
        last: of its frames, which it still has.
        noise_seed: of what is put there; None is grey.
    """

    box: Box
    first: int
    last: int
    noise_seed: int | None


@dataclass(frozen=True)
class ClipTransform:
    """One sampled augmentation.

    Args:
        box: region of the source frame that becomes the clip.
        flip: left and right are swapped.
        factors: of brightness, contrast and saturation.
        hue: turn of the colours, -.5 to .5.
        grey: the clip loses its colours.
        blur_sigma: 0 is no blur.
        operations: of a policy.
        erased: None is nothing.
    """

    box: Box
    flip: bool
    factors: tuple[float, float, float] = (1.0, 1.0, 1.0)
    hue: float = 0.0
    grey: bool = False
    blur_sigma: float = 0.0
    operations: tuple[Operation, ...] = ()
    erased: Erased | None = None


def sample_transform(
    augment: Augmentation, *, height: int, width: int, generator: Generator, clip_frames: int = 1
) -> ClipTransform:
    """Draws the parameters for a clip of frames of the given size.

    Args:
        augment: what may be drawn.
        height: of the source frames.
        width: of the source frames.
        generator: the only source of randomness.
        clip_frames: T.
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
    # What is off draws nothing, and what came to be later draws later: so older recipes draw as ever.
    hue = between(-augment.hue, augment.hue) if augment.hue else 0.0
    grey = augment.grey > 0 and between(0, 1) < augment.grey
    sigma = between(*augment.blur_sigma) if augment.blur > 0 and between(0, 1) < augment.blur else 0.0
    operations: tuple[Operation, ...] = ()
    if augment.policy is not None:
        operations = draw_operations(
            augment.policy,
            num_ops=augment.policy_ops,
            magnitude=augment.policy_magnitude,
            size_px=augment.crop_px,
            generator=generator,
        )
    erased = None
    if augment.erase > 0 and float(torch.rand(1, generator=generator)) < augment.erase:
        erased = _sample_erased(augment, clip_frames, generator)
    box = Box(top, left, crop_height, crop_width)
    return ClipTransform(box, flip, factors, hue, grey, sigma, operations, erased)  # type: ignore[arg-type]


def _sample_erased(augment: Augmentation, clip_frames: int, generator: Generator) -> Erased | None:
    """As torchvision's RandomErasing draws its box; then the frames, and the seed of the noise."""
    size = augment.crop_px

    def uniform(low: float, high: float) -> float:
        return torch.empty(1).uniform_(low, high, generator=generator).item()

    logs = torch.log(torch.tensor(augment.erase_aspect)).tolist()
    for _ in range(10):
        area = size * size * uniform(*augment.erase_area)
        aspect = float(torch.exp(torch.tensor(uniform(*logs))))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if not (0 < height < size and 0 < width < size):
            continue
        top = int(torch.randint(size - height + 1, (1,), generator=generator))
        left = int(torch.randint(size - width + 1, (1,), generator=generator))
        count = min(max(round(uniform(*augment.erase_frames) * clip_frames), 1), clip_frames)
        first = int(torch.randint(clip_frames - count + 1, (1,), generator=generator))
        seed = int(torch.randint(2**62, (1,), generator=generator)) if augment.erase_with == "noise" else None
        return Erased(Box(top, left, height, width), first, first + count - 1, seed)
    return None


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


def apply_transform(frames: Tensor, transform: ClipTransform, places: Tensor | None = None) -> Tensor:
    """What is left of a sampled augmentation once its region is cut and resized.

    Args:
        frames: uint8 (D, C, S, S), in memory channels last.
        transform: whose box is done with.
        places: of the clip's frames in `frames`, (T,); None is all of them, in order.

    Returns:
        uint8 (C, T, S, S), contiguous.
    """
    if transform.flip:
        frames = frames.flip(-1)
    # Each frame once, though a short video may be in the clip several times.
    frames = _coloured(frames, transform)
    if transform.operations:
        frames = apply_operations(_as_planes(frames).transpose(0, 1), transform.operations)
    clip = _as_planes(frames if places is None else frames[places])  # (C,T,S,S)
    if transform.erased is not None:
        _erase(clip, transform.erased)
    return clip


def _as_planes(frames: Tensor) -> Tensor:
    """(T, C, S, S) to (C, T, S, S), contiguous."""
    # numpy writes the planes faster than torch's contiguous().
    planes = np.empty((frames.shape[1], frames.shape[0], *frames.shape[2:]), np.uint8)
    np.copyto(planes, frames.numpy().swapaxes(0, 1))
    return torch.from_numpy(planes)


def _coloured(clip: Tensor, transform: ClipTransform) -> Tensor:
    brightness, contrast, saturation = transform.factors
    if (brightness, contrast, saturation) == (1, 1, 1) and not (
        transform.hue or transform.grey or transform.blur_sigma
    ):
        return clip
    # torchvision is slow to import, and most configs leave colours alone.
    from torchvision.transforms.v2 import functional as TF

    if brightness != 1:
        clip = TF.adjust_brightness(clip, brightness)
    if contrast != 1:
        clip = TF.adjust_contrast(clip, contrast)
    if saturation != 1:
        clip = TF.adjust_saturation(clip, saturation)
    if transform.hue:
        clip = in_chunks(clip, lambda part: TF.adjust_hue(part, transform.hue))
    if transform.grey:
        clip = TF.rgb_to_grayscale(clip, num_output_channels=3)
    if transform.blur_sigma:
        clip = in_chunks(clip, lambda part: _blurred(part, transform.blur_sigma))
    return clip


def _blurred(clip: Tensor, sigma: float) -> Tensor:
    """A Gaussian up to three sigmas, along one axis and then the other: torch's convolution of single planes in two
    dimensions takes several times as long.
    """
    radius = min(max(math.ceil(3 * sigma), 1), clip.shape[-1] - 1)
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    weights = (taps / taps.sum()).tolist()
    x = clip.contiguous().float()
    for axis in (-1, -2):
        pads = [radius, radius, 0, 0] if axis == -1 else [0, 0, radius, radius]
        padded, size = F.pad(x, pads, mode="reflect"), x.shape[axis]
        x = weights[0] * padded.narrow(axis, 0, size)
        for place, weight in enumerate(weights[1:], 1):
            x.add_(padded.narrow(axis, place, size), alpha=weight)
    return x.round_().to(torch.uint8)


def _erase(clip: Tensor, erased: Erased) -> None:
    """Writes into a clip (C, T, S, S)."""
    box = erased.box
    rows, columns = slice(box.top, box.top + box.height), slice(box.left, box.left + box.width)
    region = clip[:, erased.first : erased.last + 1, rows, columns]
    if erased.noise_seed is None:
        region.fill_(_GREY)
        return
    generator = Generator().manual_seed(seed_of(erased.noise_seed, "noise"))
    shape = (len(clip), 1, box.height, box.width)
    region.copy_(torch.randint(256, shape, dtype=torch.uint8, generator=generator).expand_as(region))

"""RandAugment and TrivialAugment for clips: a few operations, drawn once and applied to all frames alike.

Operations, ranges and the order of draws are those of torchvision's v2 transforms, and so are the results, bit by bit:
tests hold them equal. Where torchvision takes long for uint8 frames, the same is computed here in less time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Generator, Tensor

Policy = Literal["rand", "trivial"]
BINS = 31  # strengths, from 0 to 30
# Name -> strongest, whether it goes both ways. As torchvision's _AUGMENTATION_SPACE, in its order.
_PAPER_OPS: dict[Policy, dict[str, tuple[float, bool]]] = {
    "rand": {
        "Identity": (0, False),
        "ShearX": (0.3, True),
        "ShearY": (0.3, True),
        "TranslateX": (150 / 331, True),  # of the width
        "TranslateY": (150 / 331, True),
        "Rotate": (30, True),
        "Brightness": (0.9, True),
        "Color": (0.9, True),
        "Contrast": (0.9, True),
        "Sharpness": (0.9, True),
        "Posterize": (4, False),  # bits that are lost
        "Solarize": (1, False),
        "AutoContrast": (0, False),
        "Equalize": (0, False),
    },
    "trivial": {
        "Identity": (0, False),
        "ShearX": (0.99, True),
        "ShearY": (0.99, True),
        "TranslateX": (32, True),  # pixels
        "TranslateY": (32, True),
        "Rotate": (135, True),
        "Brightness": (0.99, True),
        "Color": (0.99, True),
        "Contrast": (0.99, True),
        "Sharpness": (0.99, True),
        "Posterize": (6, False),
        "Solarize": (1, False),
        "AutoContrast": (0, False),
        "Equalize": (0, False),
    },
}
_CHUNK_BYTES = 8 * 3 * 224 * 224  # whose float32 stay in the cache
_WITHOUT_STRENGTH = ("Identity", "AutoContrast", "Equalize")


@dataclass(frozen=True)
class Operation:
    """One operation of a policy.

    Args:
        name: as torchvision calls it.
        magnitude: in the operation's own unit: degrees, pixels, a factor less 1, bits, a threshold from 0 to 1.
    """

    name: str
    magnitude: float = 0.0


def draw_operations(
    policy: Policy, *, num_ops: int, magnitude: int, size_px: int, generator: Generator
) -> tuple[Operation, ...]:
    """Draws what a clip goes through.

    Args:
        policy: "rand" is RandAugment (arXiv 1909.13719), "trivial" TrivialAugment Wide (arXiv 2103.10158), which has
            one operation of a strength drawn too.
        num_ops: of RandAugment.
        magnitude: of RandAugment's operations, 0 to 30.
        size_px: side of the frames.
        generator: the only source of randomness.
    """
    space, chosen = _PAPER_OPS[policy], []
    for _ in range(num_ops if policy == "rand" else 1):
        name = list(space)[int(torch.randint(len(space), (), generator=generator))]
        if name in _WITHOUT_STRENGTH:
            chosen.append(Operation(name))
            continue
        most, both_ways = space[name]
        if policy == "rand" and name.startswith("Translate"):
            most *= size_px
        place = magnitude if policy == "rand" else int(torch.randint(BINS, (), generator=generator))
        value = _strength(name, most, place)
        if both_ways and float(torch.rand((), generator=generator)) <= 0.5:
            value = -value
        chosen.append(Operation(name, value))
    return tuple(chosen)


def _strength(name: str, most: float, place: int) -> float:
    if name == "Posterize":
        return float((8 - torch.arange(BINS) / ((BINS - 1) / most)).round()[place])
    ends = (1.0, 0.0) if name == "Solarize" else (0.0, most)
    return float(torch.linspace(*ends, BINS)[place])


def apply_operations(frames: Tensor, operations: Sequence[Operation]) -> Tensor:
    """Applies operations one after the other, each to all frames.

    Args:
        frames: uint8 (T, C, S, S), each plane (S, S) contiguous in memory.
        operations: as drawn.

    Returns:
        uint8 (T, C, S, S).
    """
    for operation in operations:
        frames = _apply(frames, operation)
    return frames


def _apply(frames: Tensor, operation: Operation) -> Tensor:
    # torchvision is slow to import, and most configs have no policy.
    from torchvision.transforms.v2 import functional as TF

    value = operation.magnitude
    match operation.name:
        case "Identity":
            return frames
        case "ShearX" | "ShearY":
            angle = math.degrees(math.atan(value))
            shear = [angle, 0.0] if operation.name == "ShearX" else [0.0, angle]
            return _moved(frames, angle=0.0, translate=[0, 0], scale=1.0, shear=shear, center=[0, 0])
        case "TranslateX":
            return _shifted(frames, 0, int(value))
        case "TranslateY":
            return _shifted(frames, int(value), 0)
        case "Rotate":
            return _moved(frames, angle=-value, translate=[0, 0], scale=1.0, shear=[0.0, 0.0])
        case "Brightness":
            return TF.adjust_brightness(frames, 1 + value)
        case "Color":
            return in_chunks(frames, lambda part: TF.adjust_saturation(part, 1 + value))
        case "Contrast":
            return in_chunks(frames, lambda part: TF.adjust_contrast(part, 1 + value))
        case "Sharpness":  # torch's convolution of single planes is ten times faster in this layout
            layout = torch.channels_last
            return in_chunks(frames, lambda part: TF.adjust_sharpness(part.contiguous(memory_format=layout), 1 + value))
        case "Posterize":
            return TF.posterize(frames, int(value))
        case "Solarize":
            return frames ^ (frames >= 255 * value).to(torch.uint8).neg_()
        case "AutoContrast":
            return TF.autocontrast(_planes(frames))
        case "Equalize":
            return _equalized(frames)
    raise ValueError(f"no operation {operation.name}")


def in_chunks(frames: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """The frames changed, some at a time.

    Args:
        frames: uint8 (T, C, S, S).
        change: of each frame by itself.
    """
    size = max(_CHUNK_BYTES // max(frames[0].numel(), 1), 1) if len(frames) else 1
    parts = [change(part) for part in frames.split(size)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _planes(frames: Tensor) -> Tensor:
    """The same values, each plane contiguous."""
    return frames if frames.stride(-1) == 1 and frames.stride(-2) == frames.shape[-1] else frames.contiguous()


def _moved(frames: Tensor, **affine: Any) -> Tensor:
    """An affine map with nearest pixels and black outside: torchvision's on a picture of pixel numbers, by which all
    planes are then looked up, in uint8.
    """
    from torchvision.transforms.v2 import functional as TF

    height, width = frames.shape[-2:]
    numbers = torch.arange(1.0, height * width + 1).view(1, height, width)  # 0 is outside; float32 holds 2^24
    source = TF.affine(numbers, **affine).view(-1).numpy().astype(np.intp)
    shape = frames.shape
    flat = np.ascontiguousarray(frames.numpy()).reshape(-1, height * width)
    out = np.take(flat, np.maximum(source - 1, 0), axis=1)
    out *= source > 0
    return torch.from_numpy(out).view(shape)


def _shifted(frames: Tensor, down: int, right: int) -> Tensor:
    height, width = frames.shape[-2:]
    out = torch.zeros_like(frames)
    if abs(down) < height and abs(right) < width:
        rows, columns = (slice(max(n, 0), size + min(n, 0)) for n, size in ((down, height), (right, width)))
        from_rows, from_columns = (slice(max(-n, 0), size - max(n, 0)) for n, size in ((down, height), (right, width)))
        out[..., rows, columns] = frames[..., from_rows, from_columns]
    return out


def _equalized(frames: Tensor) -> Tensor:
    """By Pillow, whose results torchvision repeats."""
    planes = np.ascontiguousarray(frames.numpy())
    out = np.empty_like(planes)
    for place in np.ndindex(planes.shape[:2]):
        out[place] = ImageOps.equalize(Image.fromarray(planes[place]))
    return torch.from_numpy(out)

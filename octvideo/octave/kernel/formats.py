"""Number formats of maps and weights that the kernel computes in: float32, bfloat16, int8 (formats.h)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

FormatName = Literal["f32", "bf16", "int8"]


@dataclass(frozen=True)
class Format:
    """A number format.

    Args:
        name: as users give it.
        index: `FormatIndex` of formats.h.
        dtype: of maps.
    """

    name: FormatName
    index: int
    dtype: torch.dtype


FORMATS: dict[FormatName, Format] = {
    "f32": Format("f32", 0, torch.float32),
    "bf16": Format("bf16", 1, torch.bfloat16),
    "int8": Format("int8", 2, torch.uint8),
}
F32 = FORMATS["f32"]


@dataclass(frozen=True)
class Quantum:
    """How an int8 element of a map stands for a real number: (element - zero) * scale.

    Args:
        scale: above 0.
        zero: the element, 0 to 255, that stands for 0: 0 for maps after a ReLU, else 128.
    """

    scale: float = 1.0
    zero: int = 0


Quanta = Sequence[Quantum]  # of a value's maps: of the high one and, if there is one, of the low one


@dataclass(frozen=True)
class LayerQuanta:
    """Of the maps that an int8 layer reads and makes.

    Args:
        x: of its input.
        y: of its result.
        residual: of the value that is added to it, if there is one.
        gate: of the value that it is multiplied by, if there is one.
    """

    x: Quanta
    y: Quanta
    residual: Quanta = ()
    gate: Quanta = ()


def quantised_weight(weight: Tensor, quanta: Sequence[Quantum]) -> tuple[Tensor, Tensor, Tensor]:
    """A weight in int8, with a scale for each output.

    Args:
        weight: (C_out, C_in, ...).
        quanta: of each input channel's map.

    Returns:
        Integers -127 to 127 as float32, in the weight's shape; scales (C_out,), by which sums of products with elements
        of the maps become real; and corrections (C_out,), which are then added, since maps whose zero is not element 0
        bring too much.
    """
    ends = (1, -1, *[1] * (weight.dim() - 2))
    scaled = weight.detach().double() * torch.tensor([q.scale for q in quanta], dtype=torch.float64).view(ends)
    outputs = scaled.flatten(1)
    scales = outputs.abs().amax(1) / 127 if outputs.numel() else outputs.new_ones(len(outputs))
    scales[scales == 0] = 1.0
    integers = (scaled / scales.view(-1, *[1] * (weight.dim() - 1))).round()
    zeros = torch.tensor([float(q.zero) for q in quanta], dtype=torch.float64).view(ends)
    corrections = -(integers * zeros).flatten(1).sum(1) * scales
    return integers.float(), scales.float(), corrections.float()

"""Kernels of image networks as kernels over time."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Inflation = Literal["average", "center"]


def inflate_kernel(kernel: Tensor, shape: torch.Size, *, rule: Inflation = "average") -> Tensor | None:
    """A convolution's kernel over one frame as a kernel over several.

    Where nothing moves, the network then computes what the image network does. "average" repeats the kernel
    over time and divides by the number of repetitions (I3D, Carreira & Zisserman, arXiv 1705.07750, section
    2.5); "center" puts it into the middle frame and zeros around it, which makes the network that of the
    single frames until it has learnt otherwise.

    Args:
        kernel: (C_out, C_in, H, W), or (C_out, C_in, 1, H, W) as C2D's.
        shape: (C_out, C_in, T, H, W), T being odd for "center".
        rule: see above.

    Returns:
        A new tensor of that shape, or None where the kernel differs in more than time.
    """
    if kernel.ndim == 4:
        kernel = kernel[:, :, None]
    if kernel.ndim != 5 or len(shape) != 5 or kernel.shape != (*shape[:2], 1, *shape[3:]):
        return None
    frames = shape[2]
    if rule == "average":
        return kernel.expand(shape) / frames
    if frames % 2 == 0:
        return None
    inflated = kernel.new_zeros(shape)
    inflated[:, :, frames // 2] = kernel[:, :, 0]
    return inflated

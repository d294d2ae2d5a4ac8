"""Blocks of four pixels, of which the low map has one, in training on CPUs: pooled, and added to, by resample.cpp.

For layers that fused_training.py does not run whole: strided ones, or with a bias.

Their gradients are slow by torch on channels-last maps: pooled and back, 192 channels on 8x56x56 take 2.5 ms
and 1.4 here, 48 channels .42 and .18 (one thread of an AMD EPYC with AVX-512, torch 2.14).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from octvideo.octave.compiled_library import load_library
from octvideo.octave.layout import LAYOUTS, is_channels_last


def has_blocks(x: Tensor, factor: Sequence[int]) -> bool:
    """Whether a map at full resolution takes the ways of this file, if a gradient through it is wanted."""
    if not torch.is_grad_enabled() or x.dtype != torch.float32 or tuple(factor) not in ((2, 2), (1, 2, 2)):
        return False
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    is_even = x.shape[-1] % 2 == x.shape[-2] % 2 == 0
    return is_even and is_channels_last(x) and load_library() is not None


class MeanOfBlocks(torch.autograd.Function):
    """`apply(x)`: (N, C, [T,] H, W) to (N, C, [T,] H/2, W/2)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return sum_blocks(x, 0.25)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return _repeat(grad * 0.25) if torch.is_grad_enabled() else _add_blocks(grad, None, 0.25)


class MapAndMeanOfBlocks(torch.autograd.Function):
    """`apply(x)`: x itself and its mean; what comes back to both is added up in one pass, not repeated before."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        # view_as gives clips of one another layout's strides.
        return x.as_strided(x.shape, x.stride()), sum_blocks(x, 0.25)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, mean_grad: Tensor | None) -> Tensor | None:  # type: ignore[override]
        if mean_grad is None:
            return grad
        if torch.is_grad_enabled():
            repeated = _repeat(mean_grad * 0.25)
            return repeated if grad is None else grad + repeated
        return _add_blocks(mean_grad, grad, 0.25)


class AddToBlocks(torch.autograd.Function):
    """`apply(y, low)`: y (N, C, [T,] H, W) plus each pixel of low (N, C, [T,] H/2, W/2) four times, a new tensor."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, low: Tensor) -> Tensor:
        return _add_blocks(low, y, 1.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        if torch.is_grad_enabled():
            blocks = grad.unflatten(-2, (-1, 2)).unflatten(-1, (-1, 2))
            return grad, blocks.sum((-3, -1))
        return grad, sum_blocks(grad, 1.0)


def _repeat(x: Tensor) -> Tensor:
    """From operations that autograd knows, for gradients of gradients."""
    return x.repeat_interleave(2, -1).repeat_interleave(2, -2)


def sum_blocks(x: Tensor, scale: float) -> Tensor:
    library, layout = load_library(), LAYOUTS[x.dim()]
    assert library is not None
    x = x.contiguous(memory_format=layout)
    height, width = x.shape[-2] // 2, x.shape[-1] // 2
    y = torch.empty((*x.shape[:-2], height, width), memory_format=layout)
    images = x.shape[0] * x.shape[2:-2].numel()
    library.sum_blocks(x.data_ptr(), y.data_ptr(), images, height, width, x.shape[1], scale, torch.get_num_threads())
    return y


def _add_blocks(low: Tensor, base: Tensor | None, scale: float) -> Tensor:
    library, layout = load_library(), LAYOUTS[low.dim()]
    assert library is not None
    height, width = low.shape[-2:]
    images = low.shape[0] * low.shape[2:-2].numel()
    # Channels of a channels-last map are one too, with longer steps from pixel to pixel.
    step = low.stride(-1)
    steps = [step * low.shape[n + 1 :].numel() for n in range(2, low.dim())]
    regular = low.stride(1) == 1 and list(low.stride()[2:]) == steps and low.stride(0) == step * low.shape[2:].numel()
    if not regular or step < low.shape[1]:
        low, step = low.contiguous(memory_format=layout), low.shape[1]
    if base is not None:
        base = base.contiguous(memory_format=layout)
    y = torch.empty((*low.shape[:-2], 2 * height, 2 * width), memory_format=layout)
    maps = low.data_ptr(), None if base is None else base.data_ptr(), y.data_ptr()
    library.add_blocks(*maps, images, height, width, low.shape[1], step, scale, torch.get_num_threads())
    return y

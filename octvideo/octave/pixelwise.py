"""Convolutions whose kernel is one pixel wide and high, over time or not, in training on CPUs without a C++ compiler.

With one, fused_training.py computes them. oneDNN has no fast code for the gradient of a weight over time; that of as
many pointwise convolutions takes 14 of 48 ms (3x1x1, 256 to 64 channels on 8x56x56; one thread of an AMD EPYC with
AVX-512, torch 2.14, float32).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from octvideo.octave.layout import LAYOUTS, fold_frames, fold_space, unfold_space

# oneDNN reorders the gradient of each pointwise convolution: below so many pixels a frame that is too much. 2048 to 512
# channels on 4x7x7 13.7 by frames and 9.2 as a convolution of clips; 1024 to 256 on 4x14x14 7.5 and 8.5.
_FEW_PIXELS = 128


def trains(x: Tensor, weight: Tensor) -> bool:
    """Whether the weight's gradient is wanted, and would be oneDNN's in float32."""
    if not (torch.is_grad_enabled() and weight.requires_grad) or torch.is_autocast_enabled("cpu"):
        return False
    # torch.func knows only operations that say how they are transformed.
    transformed = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    return not transformed and x.dtype == torch.float32 == weight.dtype


class PixelwiseConvolution(torch.autograd.Function):
    """`apply(x, weight, padding, dilation, is_product)`: F.conv2d or F.conv3d at stride 1, channels last, float32.

    Shapes: images (N, C_in, H, W) and a weight (C_out, C_in, 1, 1), or clips (N, C_in, T, H, W) and a weight
    (C_out, C_in, kernel, 1, 1). Padding and dilation are those of time; `is_product` says that images are to be a
    matrix product.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, padding: int, dilation: int, is_product: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.options = padding, dilation, is_product
        return _convolve(x, weight, *ctx.options)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        padding, dilation, is_product = ctx.options
        wanted = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():  # gradients of gradients are wanted: from operations that autograd knows
            inputs = [v for v, w in zip((x, weight), wanted, strict=True) if w]
            found = iter(torch.autograd.grad(_convolve(x, weight, *ctx.options), inputs, grad, create_graph=True))
            return *(next(found) if w else None for w in wanted), None, None, None
        x_grad = weight_grad = None
        grad = grad.contiguous(memory_format=LAYOUTS[x.dim()])
        if wanted[0]:
            if is_product:
                x_grad = (grad.permute(0, 2, 3, 1) @ weight.flatten(1)).permute(0, 3, 1, 2)
            elif x.dim() == 4:
                x_grad = back(grad, x, weight, (0, 0), (2, 2), to_input=True)
            else:
                forms = fold_space(grad), fold_space(x), weight.squeeze(4)
                x_grad = unfold_space(back(*forms, (padding, 0), (dilation, 1), to_input=True), x.shape[3:])
        if wanted[1]:
            weight_grad = _weight_gradient(grad, x, weight, padding, dilation)
        return x_grad, weight_grad, None, None, None


def _convolve(x: Tensor, weight: Tensor, padding: int, dilation: int, is_product: bool) -> Tensor:
    if is_product:
        return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1)).permute(0, 3, 1, 2)
    if x.dim() == 4:
        return F.conv2d(x, weight, None, 1, 0, 2)  # dilated by 2, or torch does not give it to oneDNN
    y = F.conv2d(fold_space(x), weight.squeeze(4), None, 1, (padding, 0), (dilation, 1))  # (N,C_out,T',H·W)
    return unfold_space(y, x.shape[3:])


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, padding: int, dilation: int) -> Tensor:
    if x.dim() == 4:
        return back(grad, x, weight, (0, 0), (2, 2), to_input=False)
    if x.shape[3] * x.shape[4] < _FEW_PIXELS:
        return back(grad, x, weight, (padding, 0, 0), (dilation, 2, 2), to_input=False)
    total = torch.zeros_like(weight)
    for k in range(weight.shape[2]):
        shift = k * dilation - padding  # frame t of the result reads frame t + shift
        first, end = max(0, -shift), min(grad.shape[2], x.shape[2] - shift)
        if first >= end:
            continue
        for clip in range(x.shape[0]):
            read = x[clip : clip + 1, :, first + shift : end + shift]
            frames = fold_frames(grad[clip : clip + 1, :, first:end]), fold_frames(read)
            total[:, :, k].add_(back(*frames, weight[:, :, k], (0, 0), (2, 2), to_input=False))
    return total


def back(
    grad: Tensor, x: Tensor, kernel: Tensor, padding: tuple[int, ...], dilation: tuple[int, ...], *, to_input: bool
) -> Tensor:
    """One of the two gradients of a convolution at stride 1, outside autograd."""
    ones = (1,) * len(padding)
    geometry = ones, padding, dilation, False, (0,) * len(padding), 1
    mask = (to_input, not to_input, False)
    results = torch.ops.aten.convolution_backward.default(grad, x, kernel, None, *geometry, mask)
    return results[0 if to_input else 1]  # type: ignore[no-any-return]

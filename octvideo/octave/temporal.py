"""Convolutions over time alone, in training on CPUs: the gradient of their weight.

oneDNN gives the weight's gradient of a convolution over time to code that reaches a quarter of the machine's peak.
Frame by frame of the kernel it is a pointwise convolution's, at full speed: 256 to 64 channels on 8x56x56, 3x1x1, 48
and 14 ms; 512 to 128 on 4x28x28 16 and 5.6 (one thread of an AMD EPYC with AVX-512, torch 2.14, float32).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from octvideo.octave.layout import fold_frames, fold_space, unfold_space

# A pointwise convolution reorders the weight's gradient: below so many pixels a frame that is too much. 2048 to 512
# channels on 4x7x7 13.7 by frames and 9.2 as a convolution of clips; 1024 to 256 on 4x14x14 7.5 and 8.5.
_FEW_PIXELS = 128


def trains_over_time(x: Tensor, weight: Tensor) -> bool:
    """Whether the weight's gradient is wanted, and by torch's own operations it would be oneDNN's in float32."""
    plain = not (torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"))
    wanted = torch.is_grad_enabled() and weight.requires_grad
    return wanted and plain and x.dtype == torch.float32 == weight.dtype


class TemporalConvolution(torch.autograd.Function):
    """`apply(x, weight, padding, dilation)`: F.conv3d of channels-last clips with a kernel of one pixel, stride 1.

    Shapes: x (N, C_in, T, H, W), weight (C_out, C_in, kernel, 1, 1), result (N, C_out, T', H, W); float32.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, padding: int, dilation: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding, ctx.dilation = padding, dilation
        return _convolve(x, weight, padding, dilation)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        padding, dilation, wanted = ctx.padding, ctx.dilation, ctx.needs_input_grad
        if torch.is_grad_enabled():  # gradients of gradients are wanted: from operations that autograd knows
            inputs = [v for v, w in zip((x, weight), wanted, strict=False) if w]
            y = _convolve(x, weight, padding, dilation)
            found = iter(torch.autograd.grad(y, inputs, grad, create_graph=True))
            return *(next(found) if w else None for w in wanted[:2]), None, None
        x_grad = weight_grad = None
        grad = grad.contiguous(memory_format=torch.channels_last_3d)
        if wanted[0]:
            forms = fold_space(grad), fold_space(x), weight.squeeze(4)
            x_grad = unfold_space(_back(*forms, (padding, 0), (dilation, 1), to_input=True), x.shape[3:])
        if wanted[1]:
            weight_grad = _weight_gradient(grad, x, weight, padding, dilation)
        return x_grad, weight_grad, None, None


def _convolve(x: Tensor, weight: Tensor, padding: int, dilation: int) -> Tensor:
    y = F.conv2d(fold_space(x), weight.squeeze(4), None, 1, (padding, 0), (dilation, 1))  # (N,C_out,T',H·W)
    return unfold_space(y, x.shape[3:])


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, padding: int, dilation: int) -> Tensor:
    """(C_out, C_in, kernel, 1, 1)."""
    if x.shape[3] * x.shape[4] < _FEW_PIXELS:  # dilated by 2, or torch does not give it to oneDNN
        return _back(grad, x, weight, (padding, 0, 0), (dilation, 2, 2), to_input=False)
    total = torch.zeros_like(weight)
    for k in range(weight.shape[2]):
        shift = k * dilation - padding  # frame t of the result reads frame t + shift
        first, end = max(0, -shift), min(grad.shape[2], x.shape[2] - shift)
        if first >= end:
            continue
        for clip in range(x.shape[0]):
            read = x[clip : clip + 1, :, first + shift : end + shift]
            frames = fold_frames(grad[clip : clip + 1, :, first:end]), fold_frames(read)
            total[:, :, k].add_(_back(*frames, weight[:, :, k], (0, 0), (2, 2), to_input=False))
    return total


def _back(
    grad: Tensor, x: Tensor, kernel: Tensor, padding: tuple[int, ...], dilation: tuple[int, ...], *, to_input: bool
) -> Tensor:
    """One of a convolution's two gradients, outside autograd."""
    ones = (1,) * len(padding)
    geometry = ones, padding, dilation, False, (0,) * len(padding), 1
    mask = (to_input, not to_input, False)
    results = torch.ops.aten.convolution_backward.default(grad, x, kernel, None, *geometry, mask)
    return results[0 if to_input else 1]  # type: ignore[no-any-return]

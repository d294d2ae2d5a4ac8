"""`octave_norm` in plain torch, for devices without Triton, and for tests to hold the kernels against."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def plain_norm(
    high: Tensor,
    half: Tensor | None,
    low: Tensor | None,
    residual_high: Tensor | None,
    residual_low: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    relu: bool,
    pools: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """See `octvideo.octave.gpu.norm.octave_norm`."""
    sizes = [high.shape[1], 0 if low is None else low.shape[1]]
    # Runs of channels are views, so that torch updates the running statistics in place.
    vectors = [[None, None] if v is None else v.split(sizes) for v in (running_mean, running_var, weight, bias)]
    of_high, of_low = zip(*vectors, strict=True)

    def norm(x: Tensor, vectors: Any) -> Tensor:
        mean, var, scale, shift = vectors
        return F.batch_norm(x, mean, var, scale, shift, training or mean is None, momentum, eps) if x.shape[1] else x

    def finish(y: Tensor, residual: Tensor | None) -> Tensor:
        y = y if residual is None else y + residual.to(y.dtype)
        return F.relu(y) if relu else y

    y_high = finish(norm(with_half(high, half), of_high), residual_high)
    y_low = None if low is None else finish(norm(low, of_low), residual_low)
    if not pools:
        return y_high, y_low, None
    parts = [*([pooled(y_high)] if sizes[0] else []), *([] if y_low is None else [y_low])]
    return y_high, y_low, torch.cat(parts, 1)


def with_half(high: Tensor, half: Tensor | None) -> Tensor:
    """x_high."""
    has_half = half is not None and high.shape[1] > 0  # torch interpolates no empty map
    return high + upsampled(half, high) if has_half else high  # type: ignore[arg-type]


def upsampled(half: Tensor, full: Tensor) -> Tensor:
    """Each pixel of (N, C, [T,] h, w) on the (up to four) of `full` (N, C, [T,] H, W) that share it."""
    scale = [1.0] * (half.dim() - 4) + [2.0, 2.0]
    made = F.interpolate(half, scale_factor=scale, mode="nearest").to(half.dtype)  # float32 under CUDA's autocast
    return made[..., : full.shape[-2], : full.shape[-1]]


def pooled(x: Tensor) -> Tensor:
    """(N, C, [T,] H, W) -> (N, C, [T,] ceil(H/2), ceil(W/2)): the mean of the pixels there are of each 2x2."""
    if x.dim() == 5:  # frame by frame: avg_pool3d has no deterministic gradient on CUDA
        frames = pooled(x.transpose(1, 2).flatten(0, 1))
        return frames.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)
    kernel = [min(2, n) for n in x.shape[-2:]]  # torch wants no less than a whole one
    return F.avg_pool2d(x, kernel, 2, ceil_mode=True, count_include_pad=False)

"""Batch norm of an octave layer's result with all that follows up to the next convolution, in few passes.

Between the convolutions of two octave layers a training step does, operation by operation: add the upsampled low part,
batch norm, residual, ReLU, pool, concatenate. A GPU is bound by memory there: each of them reads and writes a map.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from octvideo.octave.gpu.devices import on_device, runs_on
from octvideo.octave.gpu.plain import plain_norm

DTYPES = torch.float32, torch.bfloat16, torch.float16


def octave_norm(
    high: Tensor,
    half: Tensor | None,
    low: Tensor | None,
    residual_high: Tensor | None = None,
    residual_low: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    relu: bool = True,
    pools: bool = False,
    again: bool = False,
) -> tuple[Any, ...]:
    """y = relu(batch_norm(x) + residual) of both frequencies, with x_high = high + upsampled(half).

    By Triton it has no gradients of gradients: backward through its gradient raises NotImplementedError.

    Halved are H and W (factor (1, 2, 2) or (2, 2)); h = ceil(H/2), w = ceil(W/2). T stands in clips only.

    Args:
        high: (N, C_high, [T,] H, W), float32, bfloat16 or float16; C_high may be 0.
        half: (N, C_high, [T,] h, w), added upsampled, or None.
        low: (N, C_low, [T,] h, w), or None: an ordinary layer, or one whose result has no low channels.
        residual_high, residual_low: of the shapes of high and low, each may be None.
        weight, bias: (C_high + C_low,), high channels first; None: 1 and 0.
        running_mean, running_var: likewise; updated in place in training, as torch's batch norm does. Without them
            the batch's statistics serve in evaluation too. `num_batches_tracked` is the caller's.
        training: whether statistics are the batch's.
        momentum, eps: as in torch.
        relu: whether a ReLU follows.
        pools: whether `joined` is wanted.
        again: whether the results are given twice, for two readers. The gradients that both send back are then summed
            in passing, where autograd would do so in a pass over the maps.

    Returns:
        y_high: like `high`, of its dtype.
        y_low: like `low`, dense; None without `low`.
        joined: (N, C_high + C_low, [T,] h, w): pooled y_high, then y_low, which the next layer's convolution to low
            reads; None unless `pools`. y_low stands in it once more: a slice would be no dense map, which cuDNN would
            copy, and its gradient would be a map of zeros to add.
        With `again` all three once more: the same values in the same memory, which nobody may change in place.

    Raises:
        ValueError: in training, if a channel has one value only.
    """
    maps = [x for x in (high, low) if x is not None]
    residuals = residual_high, residual_low
    if not runs_on(high.device) or any(x.dtype not in DTYPES or x.shape[0] == 0 for x in maps):
        running = running_mean, running_var
        made = plain_norm(high, half, low, *residuals, weight, bias, *running, training, momentum, eps, relu, pools)
        return made * 2 if again else made
    from octvideo.octave.gpu.norm_ops import Normalize, octave_moments  # here: Triton is not there everywhere

    by_batch = training or running_mean is None
    with on_device(high):
        if by_batch:
            for x in maps:
                if x.shape[1] and x.shape[0] * math.prod(x.shape[2:]) == 1:
                    raise ValueError(f"Expected more than 1 value per channel when training, got {tuple(x.shape)}")
            detached = [None if x is None else x.detach() for x in (high, half, low)]
            running = (running_mean, running_var) if training else (None, None)
            mean, var = octave_moments(*detached, *running, momentum)
        else:
            mean, var = running_mean, running_var
        vectors = weight, bias, mean, var
        options = by_batch, eps, relu, pools, again
        results = Normalize.apply(high, half, low, *residuals, *vectors, *options)  # type: ignore[no-untyped-call]
    there = True, low is not None, pools
    return tuple(y if has else None for y, has in zip(results, there * (2 if again else 1), strict=True))

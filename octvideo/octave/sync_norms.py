"""Batch norm with the statistics of all processes' batches: in ordinary and octave layers, on any device.

nn.SyncBatchNorm takes no Octave, no CPU tensor, and in mixed precision no empty batch: the elements that it then sends
have another size than the other processes expect.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from octvideo.octave.norms import Part, batch_norm_parts


class SynchronisedNorms(TorchFunctionMode):
    """While it is entered, what norms normalise by a batch they normalise by those of all processes, in one exchange a
    layer: both maps of an octave norm go together.

    Every process must call the same norms in the same order, forward and back; a batch may be empty (N = 0). Norms in
    evaluation, frozen ones too, stay as they are.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is batch_norm_parts:
            return _by_all_processes(*args, **(kwargs or {}))
        if function is F.batch_norm:
            return _as_one_part(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def _as_one_part(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """As F.batch_norm, whose arguments these are."""
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return _by_all_processes([(input, running_mean, running_var, weight, bias)], momentum, eps)[0]


def _by_all_processes(parts: Sequence[Part], momentum: float, eps: float) -> list[Tensor]:
    """As `batch_norm_parts`."""
    flat = [value for part in parts for value in part]
    return list(_BatchNorm.apply(momentum, eps, *flat))


def _grouped(flat: Sequence[Any], size: int) -> list[Any]:
    return [flat[n : n + size] for n in range(0, len(flat), size)]


def _own_statistics(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Mean and variance of each channel, and the number of positions: (2·C+1,)."""
    channels = x.shape[1]
    if not x.numel():
        return torch.zeros(2 * channels + 1, dtype=dtype, device=x.device)
    # On the CPU, sums of bf16 maps come out in bf16.
    wide = x.to(dtype) if x.device.type == "cpu" else x
    mean_and_var = torch.batch_norm_update_stats(wide, None, None, 0.0)
    return torch.cat([*mean_and_var, mean_and_var[0].new_full((1,), x.numel() // channels)])  # N·T·H·W


class _BatchNorm(torch.autograd.Function):
    """One collective operation forward, one back, whatever the number of maps, and no reading by the host."""

    @staticmethod
    @torch.compiler.disable
    def forward(ctx: Any, momentum: float, eps: float, *flat: Any) -> tuple[Tensor, ...]:
        parts: list[Part] = _grouped(flat, 5)
        dtype = torch.promote_types(parts[0][0].dtype, torch.float32)
        own = torch.cat([_own_statistics(x, dtype) for x, *_ in parts])
        each = own.new_empty(distributed.get_world_size(), len(own))  # (R,Σ 2·C+1)
        distributed.all_gather(list(each.unbind()), own)
        outputs: list[Tensor] = []
        saved: list[Tensor] = []
        for part, of_part in zip(parts, each.split([2 * part[0].shape[1] + 1 for part in parts], 1), strict=True):
            x, running_mean, running_var, weight, bias = part
            means, variances, counts = of_part.split([x.shape[1], x.shape[1], 1], 1)
            total = counts.sum()
            share = counts / total.clamp_min(1)  # (R,1)
            mean = (means * share).sum(0)  # (C,)
            var = ((variances + (means - mean).square()) * share).sum(0)
            if running_mean is not None and running_var is not None:
                step = momentum * (total > 0)
                running_mean.lerp_(mean.to(running_mean.dtype), step.to(running_mean.dtype))
                unbiased = var * total / (total - 1).clamp_min(1)
                running_var.lerp_(unbiased.to(running_var.dtype), step.to(running_var.dtype))
            scale = torch.ones_like(mean) if weight is None else weight.to(dtype)
            shift = None if bias is None else bias.to(dtype)
            saved += [x, scale, mean, var, total]
            outputs.append(F.batch_norm(x, mean, var, scale, shift, False, 0.0, eps) if x.numel() else x.clone())
        ctx.save_for_backward(*saved)
        ctx.eps = eps
        ctx.dtypes = [tuple(None if vector is None else vector.dtype for vector in part[3:]) for part in parts]
        return tuple(outputs)

    @staticmethod
    @torch.compiler.disable
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        parts, own = _grouped(ctx.saved_tensors, 5), []
        for (x, scale, mean, var, _), grad in zip(parts, grads, strict=True):
            if x.numel():
                # As if mean and variance were constants; what they depend on follows.
                made = torch.ops.aten.native_batch_norm_backward(
                    grad.to(x.dtype), x, scale, mean, var, None, None, False, ctx.eps, [True, True, True]
                )
            else:
                made = torch.zeros_like(x), torch.zeros_like(mean), torch.zeros_like(mean)
            own.append(made)
        sums = torch.cat([vector for _, *vectors in own for vector in vectors])  # (Σ 2·C,)
        distributed.all_reduce(sums)
        gradients: list[Tensor | None] = []
        each = sums.split([2 * len(scale) for _, scale, *_ in parts])
        for (x, scale, mean, var, total), made, of_part, dtypes in zip(parts, own, each, ctx.dtypes, strict=True):
            grad_x = made[0]
            if x.numel():
                of_weight, of_bias = (-of_part * (scale * (var + ctx.eps).rsqrt() / total).repeat(2)).chunk(2)
                grad_x = grad_x + F.batch_norm(x, mean, var, of_weight, of_bias, False, 0.0, ctx.eps)
            # Of this process alone: gradients of weights are averaged over processes by what trains them.
            vectors = zip(made[1:], dtypes, strict=True)
            gradients += [grad_x, None, None, *(None if kind is None else v.to(kind) for v, kind in vectors)]
        return None, None, *gradients

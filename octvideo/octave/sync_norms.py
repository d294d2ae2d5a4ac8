"""Batch norm with the statistics of all processes' batches: in ordinary and octave layers, on any device.

nn.SyncBatchNorm takes no Octave, no CPU tensor, and in mixed precision no empty batch: the elements that it then sends
have another size than the other processes expect.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode


class SynchronisedNorms(TorchFunctionMode):
    """While it is entered, what `F.batch_norm` normalises by a batch it normalises by those of all processes.

    Every process must call the same norms in the same order, forward and back; a batch may be empty (N = 0). Norms in
    evaluation, frozen ones too, stay as they are.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is F.batch_norm:
            return _by_all_processes(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def _by_all_processes(
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
    return _BatchNorm.apply(input, running_mean, running_var, weight, bias, momentum, eps)  # type: ignore[no-any-return]


class _BatchNorm(torch.autograd.Function):
    """One collective operation forward, one back, and no reading by the host."""

    @staticmethod
    @torch.compiler.disable
    def forward(
        ctx: Any,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        channels, dtype = x.shape[1], torch.promote_types(x.dtype, torch.float32)
        count = x.numel() // max(channels, 1)  # N·T·H·W
        own = torch.zeros(2 * channels + 1, dtype=dtype, device=x.device)
        if count:
            # On the CPU, sums of bf16 maps come out in bf16.
            wide = x.to(dtype) if x.device.type == "cpu" else x
            own = torch.cat([*torch.batch_norm_update_stats(wide, None, None, 0.0), own.new_full((1,), count)])
        each = own.new_empty(distributed.get_world_size(), len(own))  # (R,2·C+1)
        distributed.all_gather(list(each.unbind()), own)
        means, variances, counts = each.split([channels, channels, 1], 1)
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
        ctx.save_for_backward(x, scale, mean, var, total)
        ctx.eps, ctx.dtypes = eps, [None if vector is None else vector.dtype for vector in (weight, bias)]
        if not count:
            return x.clone()
        return F.batch_norm(x, mean, var, scale, None if bias is None else bias.to(dtype), False, 0.0, eps)

    @staticmethod
    @torch.compiler.disable
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, mean, var, total = ctx.saved_tensors
        if x.numel():
            # As if mean and variance were constants; what they depend on follows.
            grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
                grad.to(x.dtype), x, scale, mean, var, None, None, False, ctx.eps, [True, True, True]
            )
        else:
            grad_x, grad_weight, grad_bias = torch.zeros_like(x), torch.zeros_like(mean), torch.zeros_like(mean)
        sums = torch.cat([grad_weight, grad_bias])  # (2·C,)
        distributed.all_reduce(sums)
        if x.numel():
            of_weight, of_bias = (-sums * (scale * (var + ctx.eps).rsqrt() / total).repeat(2)).chunk(2)
            grad_x = grad_x + F.batch_norm(x, mean, var, of_weight, of_bias, False, 0.0, ctx.eps)
        # Of this process alone: gradients of weights are averaged over processes by what trains them.
        vectors = zip((grad_weight, grad_bias), ctx.dtypes, strict=True)
        of_vectors = [None if dtype is None else vector.to(dtype) for vector, dtype in vectors]
        return grad_x, None, None, *of_vectors, None, None

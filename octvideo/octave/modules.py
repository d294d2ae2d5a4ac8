"""Layers that act on an Octave: batch norm with one set of statistics, and modules without parameters.

`octavize` puts these in place of an ordinary network's layers and operations; their state_dict keys are the
ordinary ones. Operations are modules, not functions: an `isinstance` in a traced function would see a Proxy.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octvideo.octave.features import Octave, merge
from octvideo.octave.partition import ChannelIndex, Partition, as_channel_index, as_partition, take_channels


class _OctBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm of each frequency by itself; weight, bias, statistics are the ordinary layer's vectors."""

    partition: Partition

    def __init__(self, num_features: int, *args: object, alpha: float | Partition, **kwargs: object) -> None:
        super().__init__(num_features, *args, **kwargs)  # type: ignore[arg-type]
        self.set_octave(alpha)

    def set_octave(self, alpha: float | Partition) -> None:
        """Choose which channels are low; parameters and statistics are not touched."""
        self.partition = as_partition(alpha, self.num_features)
        self._high = as_channel_index(self.partition.high)
        self._low = as_channel_index(self.partition.low)

    def forward(self, input: Tensor | Octave) -> Tensor | Octave:  # type: ignore[override]
        """Normalise; same sizes out as in.

        Raises:
            TypeError: if a Tensor comes where low channels are expected, or the other way round.
        """
        if self.partition.is_ordinary and not isinstance(input, Octave):
            return super().forward(input)
        if not isinstance(input, Octave) or self.partition.is_ordinary:
            want = "a Tensor" if self.partition.is_ordinary else "an Octave"
            got = type(input).__name__
            raise TypeError(f"octave batch norm with {self.partition}: expected {want}, got {got}")
        momentum = self.momentum if self.momentum is not None else 0.0
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # cumulative average, as in nn.BatchNorm
                momentum = 1.0 / float(self.num_batches_tracked)
        high = self._norm(input.high, self._high, momentum)
        return Octave(high, self._norm(input.low, self._low, momentum))

    def _norm(self, x: Tensor, channels: ChannelIndex, momentum: float) -> Tensor:
        if x.shape[1] == 0:
            return x
        use_batch = self.training or self.running_mean is None
        update = self.training and self.track_running_stats
        mean = var = None
        if self.running_mean is not None and self.running_var is not None and (update or not use_batch):
            # A run of channels is a view, which F.batch_norm updates in place; others are written back.
            mean = take_channels(self.running_mean, channels, 0)
            var = take_channels(self.running_var, channels, 0)
        weight = None if self.weight is None else take_channels(self.weight, channels, 0)
        bias = None if self.bias is None else take_channels(self.bias, channels, 0)
        y = F.batch_norm(x, mean, var, weight, bias, use_batch, momentum, self.eps)
        if update and mean is not None and var is not None and not isinstance(channels, slice):
            index = torch.tensor(channels, device=mean.device)
            with torch.no_grad():
                self.running_mean.index_copy_(0, index, mean)  # type: ignore[union-attr]
                self.running_var.index_copy_(0, index, var)  # type: ignore[union-attr]
        return y

    def extra_repr(self) -> str:
        return super().extra_repr() + f", alpha={self.partition.alpha:.3g}"


class OctBatchNorm1d(_OctBatchNorm, nn.BatchNorm1d):
    """Batch norm of an Octave of signals. A BatchNorm1d for every rule that looks for one."""


class OctBatchNorm2d(_OctBatchNorm, nn.BatchNorm2d):
    """Batch norm of an Octave of images. A BatchNorm2d for every rule that looks for one."""


class OctBatchNorm3d(_OctBatchNorm, nn.BatchNorm3d):
    """Batch norm of an Octave of clips. A BatchNorm3d for every rule (weight decay) that looks for one."""


class OctMap(nn.Module):
    """Applies one parameter-free module to each frequency: activations, dropout, pooling over time."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Octave) -> Octave:
        low = self.module(x.low)
        if x.high.shape[1] > 0:
            return Octave(self.module(x.high), low)
        # alpha = 1: pooling refuses an empty map; only the number of frames of a clip can change.
        sizes = (low.shape[2], *x.high.shape[3:]) if x.high.dim() == 5 else x.high.shape[2:]
        return Octave(x.high.new_empty(x.high.shape[0], 0, *sizes), low)


class OctFunction(nn.Module):
    """Applies one element-wise function to each frequency, with the function's other arguments fixed."""

    def __init__(self, function: Callable[..., Tensor], *args: object, **kwargs: object) -> None:
        super().__init__()
        self.function, self.args, self.kwargs = function, args, kwargs

    def forward(self, x: Octave) -> Octave:
        return Octave(self.function(x.high, *self.args, **self.kwargs), self.function(x.low, *self.args, **self.kwargs))

    def extra_repr(self) -> str:
        return getattr(self.function, "__name__", str(self.function))


class OctAdd(nn.Module):
    """Adds two Octaves of the same partition, frequency by frequency."""

    def forward(self, a: Octave, b: Octave) -> Octave:
        return Octave(a.high + b.high, a.low + b.low)


class OctCat(nn.Module):
    """Concatenates Octaves and Tensors along channels: the result's partition is theirs, side by side."""

    def forward(self, *parts: Tensor | Octave) -> Octave:
        highs = [p.high if isinstance(p, Octave) else p for p in parts]
        lows = [p.low for p in parts if isinstance(p, Octave)]
        return Octave(torch.cat(highs, 1), torch.cat(lows, 1))


class OctMerge(nn.Module):
    """An ordinary tensor from an Octave, for operations that cannot work on a pair."""

    def __init__(self, partition: Partition) -> None:
        super().__init__()
        self.partition = partition

    def forward(self, x: Octave) -> Tensor:
        return merge(x, self.partition)

    def extra_repr(self) -> str:
        return repr(self.partition)

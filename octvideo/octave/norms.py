"""Batch norm of an Octave: each frequency by itself, with the ordinary layer's parameters and statistics."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

from octvideo.octave.features import Octave
from octvideo.octave.partition import (
    HoldsIndices,
    Partition,
    as_channel_index,
    as_partition,
    take_channels,
)

# A map with the running mean, running variance, weight and bias of its channels.
Part = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def batch_norm_parts(parts: Sequence[Part], momentum: float, eps: float) -> list[Tensor]:
    """F.batch_norm of each map by its own batch; one function, so that a mode can do all of them in one exchange.

    Args:
        parts: what F.batch_norm takes of each; running statistics are changed.
        momentum: of running statistics.
        eps: added to variances.
    """
    maps = tuple(part[0] for part in parts)
    if has_torch_function(maps):
        return handle_torch_function(batch_norm_parts, maps, parts, momentum, eps)  # type: ignore[no-any-return]
    return [F.batch_norm(*part, True, momentum, eps) for part in parts]


class _OctBatchNorm(HoldsIndices, nn.modules.batchnorm._BatchNorm):
    """Batch norm of each frequency by itself; weight, bias, statistics are the ordinary layer's vectors.

    Attributes:
        partition: which channels are low.
        is_in_order: whether they are the last ones.
    """

    partition: Partition

    def __init__(self, num_features: int, *args: object, alpha: float | Partition, **kwargs: object) -> None:
        super().__init__(num_features, *args, **kwargs)  # type: ignore[arg-type]
        self.set_octave(alpha)

    def set_octave(self, alpha: float | Partition) -> None:
        """Choose which channels are low; parameters and statistics are not touched."""
        self.partition = as_partition(alpha, self.num_features)
        self._is_octave = not self.partition.is_ordinary  # decided once: torch.compile would trace every channel
        self._high = as_channel_index(self.partition.high)
        self._low = as_channel_index(self.partition.low)
        self._sizes = len(self.partition.high), len(self.partition.low)
        self.hold_indices(self._high, self._low)
        self.is_in_order = self.partition.order == slice(0, self.num_features)

    def forward(self, input: Tensor | Octave) -> Tensor | Octave:  # type: ignore[override]
        """Normalise; same sizes out as in.

        Raises:
            TypeError: if a Tensor comes where low channels are expected, or the other way round.
        """
        if not (self._is_octave or isinstance(input, Octave)):
            return super().forward(input)
        if not (isinstance(input, Octave) and self._is_octave):
            want = "an Octave" if self._is_octave else "a Tensor"
            got = type(input).__name__
            raise TypeError(f"octave batch norm with {self.partition}: expected {want}, got {got}")
        momentum = self.momentum if self.momentum is not None else 0.0
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # cumulative average, as in nn.BatchNorm
                momentum = 1.0 / float(self.num_batches_tracked)
        vectors = self.running_mean, self.running_var, self.weight, self.bias
        high, low = zip(*[self._parts(vector) for vector in vectors], strict=True)
        return Octave(*self._norm([(input.high, *high), (input.low, *low)], momentum))

    def _parts(self, vector: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Of the high and of the low channels; by one split where that is possible: one step of autograd, not two."""
        if vector is None:
            return None, None
        if self.is_in_order:
            high, low = vector.split(self._sizes)
            return high, low
        return take_channels(vector, self._high, 0, self), take_channels(vector, self._low, 0, self)

    def _norm(self, parts: Sequence[Part], momentum: float) -> list[Tensor]:
        if not (self.training or self.running_mean is None):
            return [F.batch_norm(*part, False, momentum, self.eps) if part[0].shape[1] else part[0] for part in parts]
        update = self.training and self.track_running_stats and self.running_mean is not None
        if not update:
            parts = [(x, None, None, weight, bias) for x, _, _, weight, bias in parts]
        normed = iter(batch_norm_parts([part for part in parts if part[0].shape[1]], momentum, self.eps))
        for (_, mean, var, *_), channels in zip(parts, (self._high, self._low), strict=True):
            # Of a run of channels the statistics are a view, updated in place; others are written back.
            if update and mean is not None and var is not None and not isinstance(channels, slice):
                index = self.index_tensor(channels, mean.device)
                with torch.no_grad():
                    self.running_mean.index_copy_(0, index, mean)  # type: ignore[union-attr]
                    self.running_var.index_copy_(0, index, var)  # type: ignore[union-attr]
        return [next(normed) if part[0].shape[1] else part[0] for part in parts]

    def extra_repr(self) -> str:
        return super().extra_repr() + f", alpha={self.partition.alpha:.3g}"


class OctBatchNorm1d(_OctBatchNorm, nn.BatchNorm1d):
    """Batch norm of an Octave of signals. A BatchNorm1d for every rule that looks for one."""


class OctBatchNorm2d(_OctBatchNorm, nn.BatchNorm2d):
    """Batch norm of an Octave of images. A BatchNorm2d for every rule that looks for one."""


class OctBatchNorm3d(_OctBatchNorm, nn.BatchNorm3d):
    """Batch norm of an Octave of clips. A BatchNorm3d for every rule (weight decay) that looks for one."""


class OctBatchNormAct2d(_OctBatchNorm, nn.BatchNorm2d):
    """timm's BatchNormAct2d on an Octave: batch norm, then the dropout and activation that the layer holds."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor | Octave) -> Tensor | Octave:  # type: ignore[override]
        """Normalise and activate; same sizes out as in."""
        x = super().forward(input)
        if isinstance(x, Octave):
            return Octave(self.act(self.drop(x.high)), self.act(self.drop(x.low)))
        return self.act(self.drop(x))

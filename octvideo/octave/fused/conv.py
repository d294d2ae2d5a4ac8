"""Convolutions of a network that only computes scores: weights packed, ReLU and additions done in passing.

`prepare_inference` puts these, and the octave ones of prepared_octave.py, in the places of a network's own. On the
CPU, in float32, they are fused_conv.py's where the machine has a C++ compiler, in compiled graphs too. Else they call
oneDNN's fused convolution through torch.ops.mkldnn, the operations that inductor's CPU code calls. Where a build of
torch lacks them, on CUDA, and in other graphs that are compiled or exported, they are a convolution, an addition and a
ReLU.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octvideo.octave.kernel.fused_conv import Form, FusedConv, MaxPool
from octvideo.octave.kernel.layout import (
    LAYOUTS,
    fold_frames,
    fold_space,
    is_channels_last,
    unfold_frames,
    unfold_space,
)
from octvideo.octave.layer import convolve
from octvideo.octave.resample import max_pool


class PreparedConv(nn.Module):
    """relu(max_pool(conv(x) + base)), of which relu, the pool and base are optional.

    Args:
        weight: (C_out, C_in / groups, ...).
        bias: (C_out,) or None.
        stride, padding, dilation: one number for each axis of the kernel.
        groups: as in nn.Conv3d.
        relu: apply a ReLU.

    Attributes:
        max_pool: the pool, if it has one; set it before the first call.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        *,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int = 1,
        relu: bool = False,
    ) -> None:
        super().__init__()
        layout = LAYOUTS.get(weight.dim(), torch.contiguous_format)
        own = weight.detach().clone(memory_format=torch.contiguous_format)
        self.register_buffer("weight", own.contiguous(memory_format=layout))
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.stride, self.padding, self.dilation = tuple(stride), tuple(padding), tuple(dilation)
        self.groups, self.relu = groups, relu
        self.max_pool: MaxPool | None = None
        # How its kernel becomes a two-dimensional one.
        self._form: Literal["images", "frames", "lines"] | None = None
        kernel = tuple(weight.shape[2:])
        if len(kernel) == 2:
            self._form = "images"
        elif len(kernel) == 3 and (kernel[0], self.stride[0], self.padding[0]) == (1, 1, 0):
            self._form = "frames"
        elif len(kernel) == 3 and kernel[1:] == self.stride[1:] == (1, 1) and self.padding[1:] == (0, 0):
            self._form = "lines"
        # oneDNN's order depends on the map's size. Weights in another one are sorted anew in every call: Oct-I3D-50
        # took twice as long for clips of 224 after one of 32.
        self._packed: tuple[torch.Size, Tensor, list[int], list[int], list[int]] | None = None
        self._fused: FusedConv | None = None

    gives_pair = False

    @classmethod
    def of(cls, conv: nn.modules.conv._ConvNd) -> PreparedConv | None:
        """What computes `conv`; None where it pads in a way that torch's functions do not."""
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str) or conv.transposed:
            return None
        sizes: dict[str, Any] = {name: getattr(conv, name) for name in ("stride", "padding", "dilation")}
        return cls(conv.weight, conv.bias, groups=conv.groups, **sizes)

    def forward(self, x: Tensor, base: Tensor | None = None) -> Tensor:
        """Convolve.

        Args:
            x: (N, C_in, [T,] H, W).
            base: what is added; where it has the result's shape it is overwritten with the result.

        Returns:
            (N, C_out, [T',] H', W').
        """
        if self.fuse() and can_run_fused(x) and self._fused.fits(x, base):  # type: ignore[union-attr]
            return self._fused(x, None, base)[0]  # type: ignore[misc]
        x = x.to(self.weight.dtype)  # weights in bfloat16 set the precision
        if self._is_fast(x) and (base is None or self._fits(base, x.shape)):
            return self._pooled(self._run_map(x, base))
        y = self._pooled(self.convolve(x) if base is None else self.convolve(x) + base)
        return rectified(y) if self.relu else y  # behind a pool it is the same, of fewer numbers

    def _pooled(self, y: Tensor) -> Tensor:
        if (pool := self.max_pool) is None:
            return y
        if y.dim() == 4:
            return F.max_pool2d(y, pool.window, pool.stride, pool.padding)
        return max_pool(y, (1, *pool.window), (1, *pool.stride), (0, *pool.padding))

    @property
    def form(self) -> Form:
        """Of three axes."""
        images = self.weight.dim() == 4
        sizes = (tuple(self.weight.shape[2:]), self.stride, self.padding, self.dilation)
        kernel, stride, padding, dilation = (
            (first, *size) if images else size for first, size in zip((1, 1, 0, 1), sizes, strict=True)
        )
        return Form(kernel, stride, padding, dilation, max_pool=self.max_pool)

    def fuse(self) -> bool:
        """Prepares, once, for being one pass of octvideo/octave/kernel/fused_conv.py; whether it can be.

        In a graph that is being compiled it says what came of it before.
        """
        if self._fused is not None:
            return True
        weight = self.weight
        of_cpu = weight.dtype == torch.float32 and weight.device.type == "cpu"
        if not of_cpu or torch.compiler.is_compiling() or self.groups > 1 or weight.dim() < 4:
            return False
        if self.form.is_supported and self.form.is_fast:
            sizes: dict[str, Any] = {"high": weight, "num_high": weight.shape[1], "bias_high": self.bias}
            self._fused = FusedConv(self.form, **sizes, relu=self.relu)
        return self._fused is not None

    def _run_map(self, x: Tensor, base: Tensor | None) -> Tensor:
        """oneDNN's fused convolution of images or clips."""
        if x.dim() == 4:
            return self._run(x, base)
        if self._form == "frames":
            y = self._run(fold_frames(x), None if base is None else fold_frames(base))
            return unfold_frames(y, x.shape[0])
        y = self._run(fold_space(x), None if base is None else fold_space(base))
        return unfold_space(y, x.shape[3:])

    def run_frames(self, x: Tensor, base: Tensor | None, clips: int) -> Tensor:
        """The fused convolution of channels-last frames (N·T, C_in, H, W) to (N·T', C_out, H', W'); `base` is of these.

        Args:
            clips: N.
        """
        if self._form != "lines":
            return self._run(x, base)
        y = self._run(_as_lines(x, clips), None if base is None else _as_lines(base, clips))
        c, frames, (h, w) = y.shape[1], y.shape[2], x.shape[2:]
        return y.as_strided((clips * frames, c, h, w), (h * w * c, 1, w * c, c))

    def convolve(self, x: Tensor) -> Tensor:
        """The convolution alone."""
        return convolve(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def _is_fast(self, x: Tensor) -> bool:
        """Whether the fused convolution can do it."""
        if self._form is None or torch.compiler.is_compiling() or torch.is_grad_enabled():
            return False
        return is_channels_last(x) and _has_fused_convolution(x.dtype)

    def _run(self, x: Tensor, base: Tensor | None) -> Tensor:
        """The fused convolution of images (N, C, H, W)."""
        packed = self._packed
        if packed is None or packed[0] != x.shape:
            packed = self._packed = self._pack(x)
        _, weight, *sizes = packed
        ops = torch.ops.mkldnn
        if base is None:
            attr = "relu" if self.relu else "none"
            return ops._convolution_pointwise(x, weight, self.bias, *sizes, self.groups, attr, [], "")
        unary = "relu" if self.relu else None
        total = base.contiguous(memory_format=torch.channels_last)
        ops._convolution_pointwise_.binary(total, x, weight, self.bias, *sizes, self.groups, "add", 1.0, unary, [], "")
        return total

    def _fits(self, base: Tensor, shape: Sequence[int]) -> bool:
        """Whether `base` has the result's shape for a map of `shape`, so that it can be overwritten, not broadcast."""
        if base.shape[:2] != (shape[0], self.weight.shape[0]) or base.dtype != self.weight.dtype:
            return False
        kernel, sizes = self.weight.shape[2:], (self.stride, self.padding, self.dilation)
        maps = zip(shape[2:], base.shape[2:], kernel, *sizes, strict=True)
        return all((n + 2 * p - d * (k - 1) - 1) // s + 1 == have for n, have, k, s, p, d in maps)

    def _pack(self, x: Tensor) -> tuple[torch.Size, Tensor, list[int], list[int], list[int]]:
        """The size of `x`, the weight in oneDNN's order for it, and padding, stride and dilation of two axes."""
        weight, axes = self.weight, [0, 1]
        if self._form != "images":
            weight, axes = (weight.squeeze(2), [1, 2]) if self._form == "frames" else (weight.squeeze(4), [0, 1])
        padding, stride, dilation = ([s[a] for a in axes] for s in (self.padding, self.stride, self.dilation))
        sizes = (padding, stride, dilation)
        ordered = torch.ops.mkldnn._reorder_convolution_weight(weight, *sizes, self.groups, list(x.shape))
        return x.shape, ordered, *sizes

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": None, "_fused": None}  # oneDNN's tensors neither copy nor pickle

    def _apply(self, *args: Any, **kwargs: Any) -> PreparedConv:
        self._packed = self._fused = None  # of weights that were
        return super()._apply(*args, **kwargs)

    def extra_repr(self) -> str:
        pool = f", {self.max_pool}" if self.max_pool else ""
        return f"{tuple(self.weight.shape)}, stride={self.stride}, padding={self.padding}, relu={self.relu}{pool}"


def rectified(y: Tensor) -> Tensor:
    """The ReLU of a result that nobody else has."""
    return y.relu() if torch.compiler.is_compiling() or y.requires_grad else y.relu_()


def _as_lines(x: Tensor, clips: int) -> Tensor:
    """Channels-last frames (N·T, C, H, W) as images (N, C, T, H·W), a view."""
    x = x.contiguous(memory_format=torch.channels_last)  # some of a map's channels are not
    frames, c, h, w = x.shape
    t = frames // clips
    return x.as_strided((clips, c, t, h * w), (t * h * w * c, 1, h * w * c, c))


def can_run_fused(x: Tensor) -> bool:
    """Whether what is prepared for being fused can read it now."""
    return x.dtype == torch.float32 and not torch.is_grad_enabled() and is_channels_last(x)


@functools.cache
def _has_fused_convolution(dtype: torch.dtype) -> bool:
    """Whether this torch and this CPU have oneDNN's fused convolutions in `dtype`, and they give what they should."""
    ops, x = torch.ops.mkldnn, torch.ones(1, 8, 4, 4, dtype=dtype).contiguous(memory_format=torch.channels_last)
    kernel = torch.ones(8, 8, 1, 1, dtype=dtype)
    try:
        weight = ops._reorder_convolution_weight(kernel, [0, 0], [1, 1], [1, 1], 1, [1, 8, 4, 4])
        sizes: tuple[Any, ...] = (None, [0, 0], [1, 1], [1, 1], 1)
        y = ops._convolution_pointwise(x, weight, *sizes, "relu", [], "")
        ops._convolution_pointwise_.binary(y, x, weight, *sizes, "add", 1.0, "relu", [], "")
    except (AttributeError, RuntimeError, TypeError):
        return False
    return bool((y == 16).all())

"""Whole octave layers, and ordinary convolutions, in training on CPUs: one pass forward and one back over the maps.

The gradient of an octave layer's maps is an octave layer too: of the transposed weight, with as many pixels pooled and
upsampled. So pack_weights.cpp and fused_conv.cpp do both: the weight is packed anew in each step, and there are neither
joined maps nor upsampled ones nor their sums.

A sum has one accumulator in float32: results and gradients of I3D-50's layers are up to 1.4e-6 from float64's (of their
norm). Torch's own operations, which sum blocks, are up to 7e-7 from them.

Under autocast to bfloat16 maps are in bfloat16, and so is what comes back to them. Weights stay in float32: they are
rounded as they are packed, and their gradients are sums in float32 of exact products.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from octvideo.octave.kernel.formats import F32, FORMATS, Format
from octvideo.octave.kernel.fused_conv import Form, Layer, Maps, cached_out_shapes, has_format
from octvideo.octave.kernel.layout import LAYOUTS, fold_frames, is_channels_last, unfold_frames
from octvideo.octave.kernel.library import bf16_pays, load_library

BF16 = FORMATS["bf16"]
_BLOCK = 4.0  # pixels of which the low map has one


class Weight(ctypes.Structure):
    """`struct Weight` of layer.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        *[(name, ctypes.c_int64) for name in ("out_step", "in_step", "tap_step")],
        ("scale_from_low", ctypes.c_float),
    )


class WeightGradient(ctypes.Structure):
    """`struct WeightGradient` of weight_gradient.cpp."""

    _fields_ = (
        *[(name, ctypes.c_int64) for name in ("format", "word_format", "clips", "outs", "ins")],
        *[(name, ctypes.c_int64 * 3) for name in ("out_size", "size", "kernel", "padding", "dilation")],
        ("width", ctypes.c_int64),
    )


def training_format(x: Tensor, weight: Tensor) -> Format | None:
    """What code of our own trains in, of the maps; None: torch's operations do, or no gradient of `weight` is wanted.

    Under autocast to bfloat16 it is that, else float32. The weight has float32 either way.
    """
    if not (torch.is_grad_enabled() and weight.requires_grad) or weight.dtype != torch.float32:
        return None
    # torch.func knows only operations that say how they are transformed.
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or load_library() is None:
        return None
    if not torch.is_autocast_enabled("cpu"):
        return F32 if x.dtype == torch.float32 else None
    casts = torch.get_autocast_dtype("cpu") == BF16.dtype and x.dtype in (torch.float32, BF16.dtype)
    return BF16 if casts and has_format(BF16) else None


@dataclass(frozen=True)
class TrainedConv:
    """A convolution at stride 1 without groups and bias, of maps at full resolution or of pairs.

    Args:
        form: kernel, padding and dilation of three axes; the rest of it follows from the channels.
        ins, outs: high channels, and the low ones after them (or 0).
        is_transposed: it is what comes back to the maps of another one, and reads its weight.
    """

    form: Form
    ins: tuple[int, int]
    outs: tuple[int, int]
    is_transposed: bool = False

    @classmethod
    def of(
        cls,
        kernel: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        ins: tuple[int, int],
        outs: tuple[int, int],
        *,
        is_transposed: bool = False,
    ) -> TrainedConv | None:
        """None where it pads by more than the kernel reaches, or where there is no high channel on a side.

        Args:
            kernel, padding, dilation: of two or three axes.
            ins, outs: high and low channels.
        """
        if len(kernel) == 2:
            kernel, padding, dilation = (1, *kernel), (0, *padding), (1, *dilation)
        form = Form(
            tuple(kernel),
            padding=tuple(padding),
            dilation=tuple(dilation),
            low_reads_high=outs[1] > 0,
            low_reads_low=ins[1] > 0 and outs[1] > 0,
        )
        return cls(form, ins, outs, is_transposed) if form.is_supported and ins[0] and outs[0] else None

    def fits(self, high: Tensor, low: Tensor | None, weight: Tensor) -> bool:
        """Whether the maps of an octave layer, in their layout, take the way of this file, and a gradient is wanted."""
        format = training_format(high, weight)
        if format is None or not is_channels_last(high):
            return False
        height, width = high.shape[-2:]
        has_low = low is None or (training_format(low, weight) == format and is_channels_last(low))
        return has_low and height % 2 == width % 2 == 0

    def __call__(
        self, high: Tensor, low: Tensor | None, weight: Tensor, by_torch: Callable[..., tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """The results: y_high, and y_low where it has channels.

        Args:
            high, low: channels last, with a `training_format`; of an octave layer, those for which `fits` holds.
            weight: (C_out, C_in, [kT,] kH, kW), of the high and then the low channels.
            by_torch: of the same three, the same from operations that autograd knows, for gradients of gradients.
        """
        format = training_format(high, weight)
        assert format is not None
        high, low = high.to(format.dtype), None if low is None else low.to(format.dtype)  # as autocast does
        return FusedStep.apply(self, by_torch, high, low, weight)  # type: ignore[no-any-return, no-untyped-call]

    def layer(self, format: Format) -> Layer:  # not kept, since modules with a ctypes.Structure cannot be copied
        adds_from_low = self.ins[1] > 0
        shares_low = self.form.shares_low(self.outs[1], adds_from_low=adds_from_low, format=format)
        flags = {"adds_from_low": adds_from_low, "shares_low": shares_low, "pools_sums": self.is_transposed}
        layer = self.form.layer(self.ins[0], self.outs, **flags)
        layer.format = format.index
        return layer

    @functools.cached_property
    def transposed(self) -> TrainedConv:
        """From what comes back to the results to what comes back to the maps."""
        kernel, dilation = self.form.kernel, self.form.dilation
        reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        padding = [r - p for r, p in zip(reach, self.form.padding, strict=True)]
        turned = TrainedConv.of(kernel, padding, dilation, self.outs, self.ins, is_transposed=True)
        assert turned is not None
        return turned

    def run(self, high: Tensor, low: Tensor | None, weight: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """The results, outside autograd, and what of `high` was pooled for y_low, at half the size.

        All have the maps' format, float32 or bfloat16.
        """
        library, layout, dtype = load_library(), LAYOUTS[high.dim()], high.dtype
        assert library is not None
        high = high.contiguous(memory_format=layout)
        low = None if low is None else low.contiguous(memory_format=layout)
        shapes = cached_out_shapes(self.form, high.shape, self.outs)
        results = [torch.empty(shape, dtype=dtype, memory_format=layout) for shape in shapes]
        pooled = None
        if self.outs[1]:
            half = ((n + 1) // 2 for n in high.shape[-2:])
            pooled = torch.empty((*high.shape[:-2], *half), dtype=dtype, memory_format=layout)
        weight, tap_step = _with_regular_steps(weight)
        given = Weight(weight.data_ptr(), weight.stride(0), weight.stride(1), tap_step, 1.0)
        if self.is_transposed:
            # The kernel is turned around. Means were read, so that each pixel gets its share; what was upsampled gets
            # the sum of the block.
            last_tap = weight.data_ptr() + (weight.shape[2:].numel() - 1) * tap_step * weight.element_size()
            given = Weight(last_tap, weight.stride(1), weight.stride(0), -tap_step, 1 / _BLOCK)
        out_low = results[1] if len(results) > 1 else None
        maps = Maps.of(high=high, low=low, out_high=results[0], out_low=out_low, out_pooled=pooled)
        layer = self.layer(_format_of(high)).for_map(high.shape, self.ins[1])
        library.pack_and_run_layer(*map(ctypes.byref, (layer, given, maps)), torch.get_num_threads())
        return results, pooled

    def weight_gradient(
        self,
        grads: Sequence[Tensor],
        sums: Tensor | None,
        maps: Sequence[Tensor],
        pooled: Tensor | None,
        weight: Tensor,
    ) -> Tensor:
        """As the weight's shape, channels last, float32.

        Args:
            grads: what comes back to y_high, and to y_low if there is one.
            sums: of the first one's pixels, at half the size, where there is an x_low.
            maps: x_high, and x_low if there is one.
            pooled: x_high at half the size, where there is a y_low.
        """
        result = torch.empty(weight.shape, memory_format=LAYOUTS[weight.dim()])
        ends_out, ends_in = (0, self.outs[0], None), (0, self.ins[0], None)
        for target, grad in enumerate(grads):
            for source, x in enumerate(maps):
                part = result[ends_out[target] : ends_out[target + 1], ends_in[source] : ends_in[source + 1]]
                self._add_part(sums if source > target else grad, pooled if target > source else x, part)
        return result

    def _add_part(self, grad: Tensor | None, x: Tensor | None, to: Tensor) -> None:
        """Writes the gradient of one part of the weight, of maps of one size, to `to`."""
        form, library = self.form, load_library()
        assert grad is not None and x is not None and library is not None
        in_space = form.kernel[1:] != (1, 1) or any(form.padding[1:])
        if in_space and x.dtype == torch.float32:
            self._add_part_by_torch(grad, x, to)
            return
        grad, x = (t.contiguous(memory_format=LAYOUTS[t.dim()]) for t in (grad, x))
        clips, (out_size, size) = x.shape[0], ((1, *t.shape[2:])[-3:] for t in (grad, x))
        if not in_space:  # pixels of a frame, or of all clips, are alike
            out_size, size = ((t, 1, height * width) for t, height, width in (out_size, size))
            if form.kernel[0] == 1 and not form.padding[0]:
                out_size = size = (1, 1, clips * size[0] * size[2])
                clips = 1
        # Where products of bfloat16 are slower than those of float32, blocks of pixels are converted.
        words = F32 if x.dtype == torch.float32 or not bf16_pays() else BF16
        geometry = out_size, size, form.kernel, form.padding, form.dilation
        width = to.stride(0) // math.prod(form.kernel)  # of the whole weight
        part = WeightGradient(_format_of(x).index, words.index, clips, *to.shape[:2], *geometry, width)
        library.weight_gradient(
            ctypes.byref(part), grad.data_ptr(), x.data_ptr(), to.data_ptr(), torch.get_num_threads()
        )

    def _add_part_by_torch(self, grad: Tensor, x: Tensor, to: Tensor) -> None:
        form, axes = self.form, x.dim() - 2
        if axes == 3 and form.kernel[0] == 1 and form.padding[0] == 0:
            grad, x, to, axes = fold_frames(grad), fold_frames(x), to.squeeze(2), 2
        like = torch.empty(to.shape, memory_format=LAYOUTS[axes + 2])  # what comes back is in its layout
        geometry = (1,) * axes, form.padding[-axes:], form.dilation[-axes:], False, (0,) * axes, 1
        results = torch.ops.aten.convolution_backward.default(grad, x, like, None, *geometry, (False, True, False))
        to.copy_(results[1])


def _format_of(maps: Tensor) -> Format:
    return BF16 if maps.dtype == BF16.dtype else F32


def _sums_of_blocks(x: Tensor) -> Tensor:
    """Of (N, C, [T,] H, W) of even height and width, at half the size, channels last."""
    if x.dim() == 5:
        return unfold_frames(_sums_of_blocks(fold_frames(x)), x.shape[0])
    return F.avg_pool2d(x, 2, divisor_override=1)


def _with_regular_steps(weight: Tensor) -> tuple[Tensor, int]:
    """The weight, and the step from one tap of its kernel to the next, which is the same everywhere."""
    kernel = weight.shape[2:]
    step, expected = 0, 0
    for size, stride in zip(reversed(kernel), reversed(weight.stride()[2:]), strict=True):
        if size > 1 and not expected:
            step = expected = stride
        if size > 1 and stride != expected:
            return _with_regular_steps(weight.contiguous())
        expected *= size
    return weight, step


class FusedStep(torch.autograd.Function):
    """`TrainedConv.__call__`."""

    @staticmethod
    def forward(
        ctx: Any, conv: TrainedConv, by_torch: Any, high: Tensor, low: Tensor | None, weight: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.conv, ctx.by_torch = conv, by_torch
        results, pooled = conv.run(high, low, weight)
        ctx.save_for_backward(high, low, weight, pooled)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:  # type: ignore[override]
        high, low, weight, pooled = ctx.saved_tensors
        wanted, nothing = ctx.needs_input_grad[2:], (None, None)  # of the plan and its other way
        if torch.is_grad_enabled():  # gradients of gradients are wanted: from operations that autograd knows
            inputs = [v for v, w in zip((high, low, weight), wanted, strict=True) if w]
            with torch.autocast("cpu", BF16.dtype, enabled=high.dtype == BF16.dtype, cache_enabled=False):
                results = ctx.by_torch(high, low, weight)
            found = iter(torch.autograd.grad(results, inputs, grads, create_graph=True))
            return *nothing, *[next(found) if w else None for w in wanted]
        back_to: list[Tensor] = []
        sums = weight_grad = None
        if wanted[0] or wanted[1]:
            back_to, sums = ctx.conv.transposed.run(*(*grads, None)[:2], weight)
        elif wanted[2] and low is not None:
            sums = _sums_of_blocks(grads[0])
        if wanted[2]:
            maps = [high] if low is None else [high, low]
            weight_grad = ctx.conv.weight_gradient(grads, sums, maps, pooled, weight)
        return *nothing, *(*back_to, None, None)[:2], weight_grad

"""Convolutions of several maps, each with a block of one weight, as one step of autograd.

The terms of an octave layer are such. Taken one by one, the gradient of each block is a weight of zeros to fill, and
all of them are to be added; here each is written to its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from octvideo.octave.gpu.devices import runs_on
from octvideo.octave.kernel.layout import LAYOUTS


@dataclass(frozen=True)
class Block:
    """A rectangle of a weight (C_out, C_in, ...), and the stride of the convolution with it."""

    rows: slice
    columns: slice
    stride: tuple[int, ...]

    def of(self, weight: Tensor) -> Tensor:
        """Its part of the weight, a view."""
        return weight[self.rows, self.columns]


@dataclass(frozen=True)
class BlockConvs:
    """The convolutions of one layer, without bias and groups.

    Args:
        blocks: of its weight, which do not overlap.
        padding, dilation: one int for each axis of the kernel.
    """

    blocks: tuple[Block, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    def __call__(self, weight: Tensor, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The convolution of each map (N, columns, [T,] H, W) with its block of the weight."""
        # A compiler does by itself what the step is for, and torch.func would have to be told how to transform it.
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return self.one_by_one(weight, maps)
        device = weight.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        return _Step.apply(self, weight, dtype, *[x.to(dtype) for x in maps])  # type: ignore[no-any-return,no-untyped-call]

    def one_by_one(self, weight: Tensor, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The same in steps of autograd's own."""
        convolution: Any = F.conv2d if weight.dim() == 4 else F.conv3d
        return tuple(
            convolution(x, block.of(weight), None, block.stride, self.padding, self.dilation)
            for x, block in zip(maps, self.blocks, strict=True)
        )

    def parts(self, weight: Tensor, dtype: torch.dtype) -> list[Tensor]:
        """Each block of the weight, dense and channels last."""
        if self._by_triton([weight]):
            from octvideo.octave.gpu.weight_kernels import split_weight  # here: Triton is not there everywhere

            return split_weight(weight, self._corners(weight), dtype)
        layout = LAYOUTS[weight.dim()]
        parts = []
        for part in (block.of(weight) for block in self.blocks):
            if part.dtype != dtype or not part.is_contiguous(memory_format=layout):  # in one copy
                part = torch.empty(part.shape, dtype=dtype, device=part.device, memory_format=layout).copy_(part)
            parts.append(part)
        return parts

    def whole(self, parts: Sequence[Tensor | None], weight: Tensor) -> Tensor:
        """The inverse of `parts`, of the weight's dtype: zeros where no block lies, or its part is None."""
        if all(part is not None for part in parts) and self._by_triton([weight, *parts]):  # type: ignore[list-item]
            from octvideo.octave.gpu.weight_kernels import join_weights

            return join_weights(list(parts), self._corners(weight), weight)  # type: ignore[arg-type]
        covered = sum(block.of(weight).numel() for block in self.blocks)
        full = covered == weight.numel() and None not in parts
        whole = (torch.empty_like if full else torch.zeros_like)(weight)
        for block, part in zip(self.blocks, parts, strict=True):
            if part is not None:
                block.of(whole).copy_(part)
        return whole

    def _corners(self, weight: Tensor) -> list[int]:
        """First row, last one + 1, first column, last one + 1 of each block."""
        rows, columns = weight.shape[:2]
        return [
            n for block in self.blocks for n in (*block.rows.indices(rows)[:2], *block.columns.indices(columns)[:2])
        ]

    def _by_triton(self, weights: Sequence[Tensor]) -> bool:
        if not (runs_on(weights[0].device) and len(self.blocks) <= 3):
            return False
        from octvideo.octave.gpu.weight_kernels import has_one_tap_stride

        return all(x.dtype != torch.float64 and has_one_tap_stride(x) for x in weights)


class _Step(torch.autograd.Function):
    """`BlockConvs.__call__`; maps have `dtype`, the weight may have more precision."""

    @staticmethod
    def forward(ctx: Any, convs: BlockConvs, weight: Tensor, dtype: torch.dtype, *maps: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.convs, ctx.dtype, ctx.num_maps = convs, dtype, len(maps)
        parts = convs.parts(weight, dtype)
        ctx.save_for_backward(weight, *maps, *parts)
        with torch.autocast(weight.device.type, enabled=False):
            return tuple(
                torch.convolution(
                    x, part, None, block.stride, convs.padding, convs.dilation, False, [0] * (x.dim() - 2), 1
                )
                for x, part, block in zip(maps, parts, convs.blocks, strict=True)
            )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:  # type: ignore[override]
        convs: BlockConvs = ctx.convs
        weight, *saved = ctx.saved_tensors
        maps, parts = saved[: ctx.num_maps], saved[ctx.num_maps :]
        _, wants_weight, _, *wants = ctx.needs_input_grad
        if torch.is_grad_enabled():  # gradients of gradients are wanted: from operations that autograd knows
            return _differentiable(ctx, weight, maps, grads)
        back: list[Tensor | None] = []
        to_parts: list[Tensor | None] = []
        for grad, x, part, block, wanted in zip(grads, maps, parts, convs.blocks, wants, strict=True):
            to_map = to_part = None
            if grad is not None:
                geometry = block.stride, convs.padding, convs.dilation, False, [0] * (x.dim() - 2), 1
                mask = (wanted, wants_weight, False)
                to_map, to_part, _ = torch.ops.aten.convolution_backward(grad, x, part, None, *geometry, mask)
            back.append(to_map)
            to_parts.append(to_part)
        return None, convs.whole(to_parts, weight) if wants_weight else None, None, *back


def _differentiable(ctx: Any, weight: Tensor, maps: Sequence[Tensor], grads: Sequence[Tensor | None]) -> Any:
    results = ctx.convs.one_by_one(weight.to(ctx.dtype), maps)
    given = [(y, grad) for y, grad in zip(results, grads, strict=True) if grad is not None]
    wanted = ctx.needs_input_grad[1], *ctx.needs_input_grad[3:]
    inputs = [value for value, wants in zip((weight, *maps), wanted, strict=True) if wants]
    outputs, their_grads = zip(*given, strict=True)
    found = iter(torch.autograd.grad(outputs, inputs, their_grads, create_graph=True, allow_unused=True))
    of_weight, *of_maps = [next(found) if wants else None for wants in wanted]
    return None, of_weight, None, *of_maps

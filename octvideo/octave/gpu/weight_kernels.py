"""The blocks of a weight, cut out and put back by one Triton kernel each: see weight_blocks.py.

split_weight   each block dense and channels last, in another precision if wanted
join_weights   the inverse
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from octvideo.octave.gpu.devices import on_device

MOST_BLOCKS = 3
_SIZE = 1024
# Of a block: its first and last rows and columns, and the strides of its part (row, column, tap).
_BLOCK = ("r0", "r1", "c0", "c1", "sr", "sc", "st")
_DYNAMIC = [f"{name}{n}" for n in range(MOST_BLOCKS) for name in _BLOCK] + ["columns", "taps", "sr", "sc", "st", "size"]


@triton.jit
def _place(row, column, tap, r0, r1, c0, c1, sr, sc, st):
    """Where an element of the weight lies in a part, and whether it does."""
    inside = (row >= r0) & (row < r1) & (column >= c0) & (column < c1)
    return (row - r0) * sr + (column - c0) * sc + tap * st, inside


# Sizes are not specialised: a network has dozens of shapes, and each would be compiled anew.
@triton.jit(do_not_specialize=_DYNAMIC)
def blocks_kernel(
    whole, part0, part1, part2,
    r00, r10, c00, c10, sr0, sc0, st0,
    r01, r11, c01, c11, sr1, sc1, st1,
    r02, r12, c02, c12, sr2, sc2, st2,
    columns, taps, sr, sc, st, size,
    SPLITS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Elements in the order of a channels-last weight: row, tap, column."""
    n = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    column, tap, row = n % columns, n // columns % taps, n // (columns * taps)
    at = whole + row * sr + column * sc + tap * st
    at0, in0 = _place(row, column, tap, r00, r10, c00, c10, sr0, sc0, st0)
    at1, in1 = _place(row, column, tap, r01, r11, c01, c11, sr1, sc1, st1)
    at2, in2 = _place(row, column, tap, r02, r12, c02, c12, sr2, sc2, st2)
    in_weight = n < size
    if SPLITS:
        value = tl.load(at, mask=in_weight)
        tl.store(part0 + at0, value.to(part0.dtype.element_ty), mask=in0 & in_weight)
        tl.store(part1 + at1, value.to(part1.dtype.element_ty), mask=in1 & in_weight)
        tl.store(part2 + at2, value.to(part2.dtype.element_ty), mask=in2 & in_weight)
    else:
        value = tl.load(part0 + at0, mask=in0 & in_weight, other=0.0).to(tl.float32)
        value += tl.load(part1 + at1, mask=in1 & in_weight, other=0.0).to(tl.float32)
        value += tl.load(part2 + at2, mask=in2 & in_weight, other=0.0).to(tl.float32)
        tl.store(at, value.to(whole.dtype.element_ty), mask=in_weight)


def has_one_tap_stride(x: Tensor) -> bool:
    """Whether a weight's kernel is one axis: the step from tap to tap is the same everywhere."""
    stride, expected = x.stride()[2:], x.stride(x.dim() - 1)
    for size, step in zip(reversed(x.shape[2:]), reversed(stride), strict=True):
        if size > 1 and step != expected:
            return False
        expected *= size
    return True


def _strides(x: Tensor) -> tuple[int, int, int]:
    return x.stride(0), x.stride(1), x.stride(x.dim() - 1)


def _launch(whole: Tensor, parts: list[Tensor], corners: list[int], *, splits: bool) -> None:
    slots: list[int] = []
    for n, part in enumerate(parts):
        slots += [*corners[4 * n : 4 * n + 4], *_strides(part)]
    missing = MOST_BLOCKS - len(parts)
    pointers = [*parts, *[whole] * missing]  # of a slot without a block nothing is read or written
    slots += [0] * (len(_BLOCK) * missing)
    columns, taps, size = whole.shape[1], math.prod(whole.shape[2:]), whole.numel()
    with on_device(whole):
        blocks_kernel[(-(-size // _SIZE),)](
            whole, *pointers, *slots, columns, taps, *_strides(whole), size, SPLITS=splits, SIZE=_SIZE
        )


torch.library.define("octvideo::split_weight", "(Tensor weight, int[] corners, ScalarType dtype) -> Tensor[]")
torch.library.define("octvideo::join_weights", "(Tensor[] parts, int[] corners, Tensor weight) -> Tensor")


@torch.library.register_fake("octvideo::split_weight")
def _empty_parts(weight: Tensor, corners: list[int], dtype: torch.dtype) -> list[Tensor]:
    layout = torch.channels_last if weight.dim() == 4 else torch.channels_last_3d
    parts = []
    for n in range(0, len(corners), 4):
        r0, r1, c0, c1 = corners[n : n + 4]
        shape = (r1 - r0, c1 - c0, *weight.shape[2:])
        parts.append(torch.empty(shape, dtype=dtype, device=weight.device, memory_format=layout))
    return parts


@torch.library.impl("octvideo::split_weight", ("CPU", "CUDA"))
def _split_weight(weight: Tensor, corners: list[int], dtype: torch.dtype) -> list[Tensor]:
    parts = _empty_parts(weight, corners, dtype)
    _launch(weight, parts, corners, splits=True)
    return parts


@torch.library.register_fake("octvideo::join_weights")
def _empty_whole(parts: list[Tensor], corners: list[int], weight: Tensor) -> Tensor:
    return torch.empty_like(weight)


@torch.library.impl("octvideo::join_weights", ("CPU", "CUDA"))
def _join_weights(parts: list[Tensor], corners: list[int], weight: Tensor) -> Tensor:
    whole = torch.empty_like(weight)
    _launch(whole, parts, corners, splits=False)
    return whole


def split_weight(weight: Tensor, corners: list[int], dtype: torch.dtype) -> list[Tensor]:
    """The blocks of a weight (C_out, C_in, [T,] H, W), dense and channels last.

    Args:
        corners: of each block, up to three: first row, last one + 1, first column, last one + 1.
    """
    return torch.ops.octvideo.split_weight(weight, corners, dtype)  # type: ignore[no-any-return]


def join_weights(parts: list[Tensor], corners: list[int], weight: Tensor) -> Tensor:
    """The inverse of `split_weight`, in the layout and precision of `weight`: zeros where no block lies."""
    return torch.ops.octvideo.join_weights(parts, corners, weight)  # type: ignore[no-any-return]

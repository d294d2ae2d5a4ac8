"""Ordinary and octave convolutions in float32 on the CPU, each with all that surrounds it in one pass over the maps.

Torch's operations make three convolutions of an octave layer, and passes for pooling, joining, repeating and
adding. fused_conv.cpp does a whole layer at once, with what is pooled, repeated and added still in registers or in the
cache. Ordinary convolutions gain by it too, where a residual is added or a map is pooled.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from octvideo.octave.kernel.large_pages import WEIGHTS
from octvideo.octave.kernel.layout import LAYOUTS
from octvideo.octave.kernel.library import load_library


@dataclass(frozen=True)
class MaxPool:
    """A max pool in height and width.

    Args:
        window, stride, padding: of the two axes.
    """

    window: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]


@dataclass(frozen=True)
class Form:
    """What a layer computes.

    Args:
        kernel, stride, padding, dilation: of three axes, the first being time (1, 1, 0, 1 for images).
        pool_first: x_high is pooled before anything reads it, and x_low where y_low reads it: a strided layer.
        high_reads_low: y_high's convolution reads [x_high, x_low], of one size: in a strided layer.
        low_reads_high, low_reads_low: which maps y_low's convolution reads, the high one pooled.
        max_pool: of y_high, where there is neither a low map nor a base.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...] = (1, 1, 1)
    padding: tuple[int, ...] = (0, 0, 0)
    dilation: tuple[int, ...] = (1, 1, 1)
    pool_first: bool = False
    high_reads_low: bool = False
    low_reads_high: bool = False
    low_reads_low: bool = False
    max_pool: MaxPool | None = None

    @property
    def is_fast(self) -> bool:
        """Whether an ordinary convolution is at least as fast by it as by oneDNN.

        With 16 vector registers (AVX2), 1x3x3 ones are not: all of I3D-50's took 152 by it and 137 ms by oneDNN. With
        32 (AVX-512) they take as long, and others, whose results' memory is fetched ahead, less.
        """
        library = load_library()
        in_space = self.kernel[1] * self.kernel[2] > 1
        return library is not None and (library.num_registers() >= 32 or not in_space)

    @property
    def is_supported(self) -> bool:
        """Whether fused_conv.cpp has it: it pads by less than the kernel reaches."""
        return all(p <= d * (k - 1) for p, d, k in zip(self.padding, self.dilation, self.kernel, strict=True))

    def shares_low(self, outs_low: int, *, has_repeated: bool) -> bool:
        """Whether both convolutions that read x_low at its own size run as one.

        They do where y_low's few channels alone would fill few registers; where they are more, its sums go on in them.
        """
        library = load_library()
        if library is None or self.pool_first or not (has_repeated and self.low_reads_high and self.low_reads_low):
            return False
        return 0 < outs_low < 3 * library.packed_size(1, 1)

    def numbers(
        self,
        in_high: int,
        outs_high: int,
        outs_low: int,
        *,
        relu: bool = False,
        shares_low: bool = False,
        pools_sums: bool = False,
    ) -> tuple[int, ...]:
        """What stands in `struct Layer` behind in_low."""
        pool = self.max_pool or MaxPool((1, 1), (1, 1), (0, 0))
        sizes = (self.kernel, self.stride, self.padding, self.dilation, pool.window, pool.stride, pool.padding)
        reads = (self.high_reads_low, self.low_reads_high, self.low_reads_low)
        flags = (relu, self.pool_first, *reads, shares_low, pools_sums)
        return (in_high, outs_high, outs_low, *[n for size in sizes for n in size], *map(int, flags))


class FusedConv:
    """One layer: y_high = relu(conv(x_high) + repeat(conv(x_low)) + base_high), and y_low likewise.

    fused_conv.cpp has the formulas.

    Args:
        form: which sources are read, and how.
        high: weight (C_high_out, C_in, ...) of y_high's convolution.
        repeated: weight (C_high_out, C_low_in, ...) of the low part that is added to it, or None.
        low: weight (C_low_out, C_in, ...) of y_low's convolution, or None; its C_in are the high channels, then the
            low ones, as far as it reads them.
        num_high: channels of x_high.
        bias_high, bias_low: (C,) or None.
        relu: apply a ReLU.
    """

    def __init__(
        self,
        form: Form,
        *,
        high: Tensor,
        repeated: Tensor | None = None,
        low: Tensor | None = None,
        num_high: int,
        bias_high: Tensor | None = None,
        bias_low: Tensor | None = None,
        relu: bool = False,
    ) -> None:
        num_outputs = (high.shape[0], 0 if low is None else low.shape[0])
        shares_low = form.shares_low(num_outputs[1], has_repeated=repeated is not None)
        if shares_low:
            assert repeated is not None and low is not None
            repeated, low = torch.cat([repeated, low[:, num_high:]]), low[:, :num_high]
        weights = (_pack(high, num_high), _pack(repeated), _pack(low, *([num_high] if form.low_reads_high else [])))
        biases = (None if bias is None else bias.detach().float().contiguous() for bias in (bias_high, bias_low))
        self.tensors = [*weights, *biases]
        self.numbers = form.numbers(num_high, *num_outputs, relu=relu, shares_low=shares_low)
        self.addresses = tuple(_address(tensor) for tensor in self.tensors)

    @property
    def reads_time(self) -> bool:
        """Whether a result's frame is more than what comes of the map's frame of its number."""
        kernel, stride, padding = (self.numbers[3 + 3 * n] for n in range(3))
        return (kernel, stride, padding) != (1, 1, 0)

    @property
    def weight_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors if tensor is not None)

    def out_shapes(self, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Of y_high, and of y_low if there is one, from x_high's."""
        return out_shapes(self.numbers, shape)

    def fits(self, high: Tensor, base: Tensor | None) -> bool:
        """Whether `base` has the shape of what comes of `high`, or is None."""
        shapes = _compute_out_shapes if torch.compiler.is_compiling() else out_shapes
        return base is None or base.shape == shapes(self.numbers, high.shape)[0]

    def __call__(
        self, high: Tensor, low: Tensor | None = None, base_high: Tensor | None = None, base_low: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Computes the layer.

        Args:
            high: float32 (N, C, [T,] H, W), channels last (others are copied).
            low: x_low, of half the height and width (rounded up), or None; of x_high's pooled size in a strided layer.
            base_high, base_low: of the results' shapes, or None: added, and overwritten with the results.

        Returns:
            y_high, and y_low or None; channels last.
        """
        if torch.compiler.is_compiling():
            if base_high is not None:
                torch.ops.octvideo.fused_conv_(high, low, base_high, base_low, self.tensors, self.numbers)
                return base_high, base_low
            results = torch.ops.octvideo.fused_conv(high, low, self.tensors, self.numbers)
            return results[0], results[1] if len(results) > 1 else None
        return _run(self.numbers, self.addresses, high, low, base_high, base_low)


def _compute_out_shapes(numbers: tuple[int, ...], shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Of y_high, and of y_low if there is one, from x_high's."""
    _, outs_high, outs_low, *rest = numbers
    kernel, stride, padding, dilation = (rest[n : n + 3] for n in range(0, 12, 3))
    window, window_stride, window_padding = ((1, *rest[n : n + 2]) for n in (12, 14, 16))
    axes, size, pool_first = len(shape) - 2, (1, *shape[2:])[-3:], rest[19]
    if pool_first:
        size = _half(size)
    shapes = []
    for channels, read in ((outs_high, size), (outs_low, _half(size))):
        geometry = zip(read, kernel, stride, padding, dilation, strict=True)
        out = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in geometry]
        pools = zip(out, window, window_stride, (0, *window_padding[1:]), strict=True)
        out = [(n + 2 * p - w) // s + 1 for n, w, s, p in pools]
        shapes.append((shape[0], channels, *out[-axes:]))
    return shapes if outs_low else shapes[:1]


def _half(size: Sequence[int]) -> tuple[int, ...]:
    return (size[0], (size[1] + 1) // 2, (size[2] + 1) // 2)


out_shapes = functools.lru_cache(4096)(_compute_out_shapes)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


@functools.lru_cache(4096)
def layer_of(
    numbers: tuple[int, ...], addresses: tuple[int, ...], shape: tuple[int, ...], num_low: int
) -> ctypes.Array[ctypes.c_int64]:
    """`struct Layer`: what is the same in every call with maps of one size."""
    frames, height, width = (1, *shape[2:])[-3:]
    fields = (*addresses, shape[0], frames, height, width, num_low, *numbers)
    return (ctypes.c_int64 * len(fields))(*fields)


def _run(
    numbers: tuple[int, ...],
    addresses: tuple[int, ...],
    high: Tensor,
    low: Tensor | None,
    base_high: Tensor | None,
    base_low: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    shape, layout = high.shape, LAYOUTS[high.dim()]
    shapes = out_shapes(numbers, shape)
    high = high.contiguous(memory_format=layout)
    num_low, at_low, at_base_high, at_base_low, at_low_out = 0, 0, 0, 0, 0
    if low is not None:
        low = low.contiguous(memory_format=layout)
        num_low, at_low = low.shape[1], low.data_ptr()
    if base_high is None:
        y_high = torch.empty(shapes[0], memory_format=layout)
    else:
        y_high = base_high.contiguous(memory_format=layout)
        at_base_high = y_high.data_ptr()
    y_low = None
    if len(shapes) > 1:
        if base_low is None:
            y_low = torch.empty(shapes[1], memory_format=layout)
        else:
            y_low = base_low.contiguous(memory_format=layout)
            at_base_low = y_low.data_ptr()
        at_low_out = y_low.data_ptr()
    layer = layer_of(numbers, addresses, shape, num_low)
    maps = (high.data_ptr(), at_low, at_base_high, at_base_low, y_high.data_ptr(), at_low_out)
    load_library().run_layer(layer, *maps, torch.get_num_threads())  # type: ignore[union-attr]
    return y_high, y_low


# The same for graphs that are compiled: one operation that makes its results, and one that overwrites the bases. By
# torch.library.custom_op they would be shorter here, and a call would take .01 ms more.
torch.library.define("octvideo::fused_conv", "(Tensor high, Tensor? low, Tensor?[] tensors, int[] numbers) -> Tensor[]")
torch.library.define(
    "octvideo::fused_conv_",
    "(Tensor high, Tensor? low, Tensor(a!) base_high, Tensor(b!)? base_low, Tensor?[] tensors, int[] numbers) -> ()",
)


@torch.library.impl("octvideo::fused_conv", "CPU")
def _fused_conv(high: Tensor, low: Tensor | None, tensors: list[Tensor | None], numbers: list[int]) -> list[Tensor]:
    outs = _run(tuple(numbers), tuple(_address(t) for t in tensors), high, low, None, None)
    return [y for y in outs if y is not None]


@torch.library.register_fake("octvideo::fused_conv")
def _(high: Tensor, low: Tensor | None, tensors: list[Tensor | None], numbers: list[int]) -> list[Tensor]:
    shapes = out_shapes(tuple(numbers), tuple(high.shape))
    return [torch.empty(shape, memory_format=LAYOUTS[high.dim()]) for shape in shapes]


@torch.library.impl("octvideo::fused_conv_", "CPU")
def _fused_conv_(
    high: Tensor,
    low: Tensor | None,
    base_high: Tensor,
    base_low: Tensor | None,
    tensors: list[Tensor | None],
    numbers: list[int],
) -> None:
    outs = _run(tuple(numbers), tuple(_address(t) for t in tensors), high, low, base_high, base_low)
    for base, y in zip((base_high, base_low), outs, strict=True):
        if base is not None and y is not None and y.data_ptr() != base.data_ptr():
            base.copy_(y)  # a compiler's choice of layout


@torch.library.register_fake("octvideo::fused_conv_")
def _(high: Tensor, low: Tensor | None, *others: object) -> None:
    pass


def channels_last(x: Tensor) -> Tensor:
    """`x.contiguous(memory_format=...)` of (N, C, [T,] H, W): for clips in a quarter of the time (3x8x224x224: .09 of
    .36 ms)."""
    layout, library = LAYOUTS[x.dim()], None
    plain = x.device.type == "cpu" and x.dtype == torch.float32 and x.is_contiguous()
    if plain and not torch.compiler.is_compiling() and not torch.is_grad_enabled() and not torch.jit.is_tracing():
        library = load_library()
    if library is None or x.is_contiguous(memory_format=layout):
        return x.contiguous(memory_format=layout)
    y = torch.empty(x.shape, memory_format=layout)
    pixels = x.shape[2:].numel()
    library.interleave(x.data_ptr(), y.data_ptr(), *x.shape[:2], pixels, torch.get_num_threads())
    return y


def _pack(weight: Tensor | None, *sources: int) -> Tensor | None:
    """A weight in the order in which fused_conv.cpp reads it.

    Args:
        weight: (C_out, C_in, [kT,] kH, kW).
        sources: channels of each source but the last.
    """
    library = load_library()
    if weight is None or library is None:
        return None
    weight = weight.detach().float()
    weight = weight.unsqueeze(2) if weight.dim() == 4 else weight
    splits = [n for n in (*sources, weight.shape[1] - sum(sources)) if n]
    parts = [part.permute(2, 3, 4, 1, 0).flatten(0, 3) for part in weight.split(splits, 1)]
    matrix = torch.cat(parts).contiguous()
    packed = WEIGHTS.empty(library.packed_size(*matrix.shape))
    library.pack(matrix.data_ptr(), *matrix.shape, packed.data_ptr())
    return packed

"""`octave_norm`'s torch operators: memory for the results, and Triton kernels that fill it.

In training three kernels run forward (moments, their sum, the maps) and three back; in evaluation one.

octave_moments              mean and variance of the batch; updates the running statistics
octave_normalize            the maps
octave_normalize_backward   all gradients: through mean and variance too, if these are the batch's
Normalize                   autograd's step of the last two
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from octvideo.octave.gpu.norm_grad_kernels import finish_sums_kernel, gradient_kernel, sums_kernel
from octvideo.octave.gpu.norm_kernels import finish_moments_kernel, moments_kernel, normalize_kernel

# Under TRITON_INTERPRET=1 triton.jit returns functions that run on CPU tensors. torch cannot look into these.
INTERPRETED = type(moments_kernel).__name__ == "InterpretedFunction"

# Columns are channels: 64 of 16 bits are the 128 bytes of a memory line. A tile gives each of its threads two loads of
# 8 elements for each map: enough bytes in flight to fill the memory's latency, few enough registers that several
# programs share a multiprocessor.
COLS = 64
TILE, WARPS = 2048, 4
# Programs with sums run through many tiles, since each leaves a row of sums to be added up: 4 for each of the 132
# multiprocessors of an H200, all resident at once, as a kernel of 4 warps and up to 128 registers a thread allows. A
# constant, so that sums have one order on all devices.
SUM_TILE, SUM_WARPS = 2048, 4
SUM_PROGRAMS = 528
# The kernels that add the rows up: 16 float32 columns are two sectors of 32 bytes, and thin tiles make more programs.
FINISH = {"ROWS": 64, "COLS": 16, "num_warps": 4}


def operator(name: str, mutates: tuple[str, ...] = ()) -> Callable[[Callable[..., Any]], Any]:
    """A torch operator of Triton kernels, which torch.compile sees into; interpreted ones are opaque to it."""
    if not INTERPRETED:
        return torch.library.triton_op(f"octvideo::{name}", mutates_args=mutates)

    def opaque(function: Callable[..., Any]) -> Any:
        made = torch.library.custom_op(f"octvideo::{name}", function, mutates_args=mutates)
        made.register_fake(function)
        return made

    return opaque


def wrap_triton(kernel: Any) -> Any:
    """torch.library.wrap_triton; of an interpreted kernel, which fake tensors do not run."""
    return _Interpreted(kernel) if INTERPRETED else torch.library.wrap_triton(kernel)


class _Interpreted(NamedTuple):
    kernel: Any

    def __getitem__(self, grid: Any) -> Callable[..., None]:  # type: ignore[override]
        def launch(*args: Any, **options: Any) -> None:
            if not any(isinstance(x, torch._subclasses.FakeTensor) for x in args):
                self.kernel[grid](*args, **options)

        return launch


# -- layouts -----------------------------------------------------------------------------------------------


def is_channels_last(*maps: Tensor | None) -> bool:
    """The layout of the first map that has one: a map of one channel, or one pixel, is of either."""
    for x in maps:
        if x is not None and x.numel() and x.shape[1] > 1 and math.prod(x.shape[2:]) > 1:
            return x.stride(1) == 1
    return True


def width_of(x: Tensor, last: bool) -> int | None:
    """Channels of the buffer that holds `x` (norm_kernels.py); None where no dense buffer of this layout does."""
    pixel_axes = [*range(x.dim() - 1, 1, -1)]
    if last:
        axes, lies_dense = [*pixel_axes, 0], x.shape[1] == 1 or x.stride(1) == 1
    else:
        axes, lies_dense = [0], True
        expected = 1
        for axis in [*pixel_axes, 1]:
            lies_dense &= x.shape[axis] == 1 or x.stride(axis) == expected
            expected *= x.shape[axis]
    if x.numel() == 0:
        return x.shape[1]
    if not lies_dense:
        return None
    # The first axis of more than one element tells the width, the others must agree.
    width, inner = None, 1 if last else math.prod(x.shape[2:])
    for axis in axes:
        if x.shape[axis] > 1:
            if width is None:
                width = x.stride(axis) // inner
            if width < x.shape[1] or x.stride(axis) != width * inner:
                return None
        inner *= x.shape[axis]
    return x.shape[1] if width is None else width


def memory_format(x: Tensor, last: bool) -> torch.memory_format:
    """torch's name of the layout."""
    if not last:
        return torch.contiguous_format
    return torch.channels_last if x.dim() == 4 else torch.channels_last_3d


class Maps:
    """The maps of one launch in one layout, and the widths of their buffers.

    Args:
        high, half, low: as `octave_norm` has them.
    """

    def __init__(self, high: Tensor, half: Tensor | None, low: Tensor | None) -> None:
        self.last = is_channels_last(high, low, half)
        self.dim = high.dim()
        n, channels, *frames, H, W = high.shape
        self.high_shape = (n, channels, *frames, H, W)
        self.half_size = (*frames, (H + 1) // 2, (W + 1) // 2)
        self.T = frames[0] if frames else 1
        self.frames, self.H, self.W = n * self.T, H, W
        self.channels_high, self.channels_low = channels, 0 if low is None else low.shape[1]
        self.device = high.device
        self.vec = math.gcd(8, self.channels_high, self.channels_low) if self.last else 1
        self.spare = high

    def take(self, x: Tensor | None) -> tuple[Tensor, int]:
        """A map and its buffer's width; `high` and 0 for none. One of another layout is copied: a pass more."""
        if x is None:
            return self.spare, 0
        width = width_of(x, self.last)
        if width is None:
            x, width = x.contiguous(memory_format=memory_format(x, self.last)), x.shape[1]
        if self.last:
            self.vec = math.gcd(self.vec, width)
        return x, width

    def new(self, channels: int, size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A dense map of this layout, not filled."""
        shape = (self.high_shape[0], channels, *size)
        axes = [*range(self.dim - 1, 1, -1)]
        strides, step = [1] * self.dim, 1
        for axis in [1, *axes, 0] if self.last else [*axes, 1, 0]:
            strides[axis] = step
            step *= max(1, shape[axis])
        # By strides: inductor allocates torch.empty(memory_format=...) contiguous, and then adds copies.
        return torch.empty_strided(shape, strides, dtype=dtype, device=self.device)

    def tiles(self, tile: int) -> dict[str, int]:
        """Cells and channels of a program. Thin maps get more cells; contiguous ones are read plane by plane."""
        sizes: dict[str, int] = {}
        for name, channels in (("HIGH", self.channels_high), ("LOW", self.channels_low)):
            cols = min(COLS, 1 << max(channels - 1, 0).bit_length()) if self.last else 1
            sizes |= {f"ROWS_{name}": tile // (4 * cols), f"COLS_{name}": cols}
        return sizes

    def cells(self) -> tuple[int, int]:
        """Squares of 2x2 pixels of the high map and of the low one."""
        h, w = self.half_size[-2:]
        return self.frames * h * w, self.frames * ((h + 1) // 2) * ((w + 1) // 2)

    def grid(self, tiles: dict[str, int]) -> tuple[int, int]:
        """Programs of one tile each, on the high map and in all."""
        programs = [
            -(-cells // tiles[f"ROWS_{name}"]) * -(-channels // tiles[f"COLS_{name}"])
            for name, cells, channels in self._parts()
        ]
        return programs[0], sum(programs)

    def spans(self, tiles: dict[str, int]) -> tuple[int, list[int]]:
        """For kernels with sums: programs in all; and programs_high, and blocks and span (cells) of either map.

        Each map gets its share of programs by elements.
        """
        elements = sum(cells * channels for _, cells, channels in self._parts())
        programs, spans = [], []
        for name, cells, channels in self._parts():
            rows, channel_blocks = tiles[f"ROWS_{name}"], -(-channels // tiles[f"COLS_{name}"])
            if channels == 0:
                programs.append(0)
                spans += [0, 0]
                continue
            all_tiles = -(-cells // rows)
            blocks = max(1, min(all_tiles, SUM_PROGRAMS * cells * channels // (elements * channel_blocks)))
            span = -(-all_tiles // blocks) * rows
            blocks = -(-cells // span)  # fewer, where spans of whole tiles leave the last blocks nothing
            programs.append(blocks * channel_blocks)
            spans += [blocks, span]
        return sum(programs), [programs[0], *spans]

    def _parts(self) -> list[tuple[str, int, int]]:
        cells_high, cells_low = self.cells()
        return [("HIGH", cells_high, self.channels_high), ("LOW", cells_low, self.channels_low)]

    def sizes(self) -> tuple[int, ...]:
        """channels_high, channels_low (in units of `vec`), frames, T, H, W."""
        return self.channels_high // self.vec, self.channels_low // self.vec, self.frames, self.T, self.H, self.W

    def finish_grid(self) -> tuple[int]:
        return (sum(-(-channels // FINISH["COLS"]) for channels in (self.channels_high, self.channels_low)),)


# -- operators ---------------------------------------------------------------------------------------------


@operator("octave_moments", mutates=("running_mean", "running_var"))
def octave_moments(
    high: Tensor,
    half: Tensor | None,
    low: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over all but the channels, (C_high + C_low,) float32; updates running statistics."""
    maps = Maps(high, half, low)
    (x_high, high_width), (x_half, half_width), (x_low, low_width) = map(maps.take, (high, half, low))
    unit, tiles = maps.vec, maps.tiles(SUM_TILE)
    programs, spans = maps.spans(tiles)
    _, blocks_high, _, blocks_low, _ = spans
    channels_high, channels_low = maps.channels_high, maps.channels_low
    size = 2 * (blocks_high * channels_high + blocks_low * channels_low) + blocks_high + blocks_low
    sums = torch.empty(size, dtype=torch.float32, device=high.device)
    wrap_triton(moments_kernel)[(programs,)](
        x_high, x_half, x_low, sums, high_width // unit, half_width // unit, low_width // unit, *maps.sizes(), *spans,
        VEC=unit, LAST=maps.last, HAS_HALF=half is not None, HAS_LOW=low is not None, **tiles, num_warps=SUM_WARPS,
    )  # fmt: skip
    mean, var = sums.new_empty(channels_high + channels_low), sums.new_empty(channels_high + channels_low)
    has_running = running_mean is not None and running_var is not None
    running = (running_mean, running_var) if has_running else (mean, var)
    wrap_triton(finish_moments_kernel)[maps.finish_grid()](
        sums, mean, var, *running, channels_high, channels_low, blocks_high, blocks_low, momentum,
        HAS_RUNNING=has_running, **FINISH,
    )  # fmt: skip
    return mean, var


@operator("octave_normalize")
def octave_normalize(
    high: Tensor,
    half: Tensor | None,
    low: Tensor | None,
    residual_high: Tensor | None,
    residual_low: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    training: bool,
    eps: float,
    relu: bool,
    pools: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y_high, y_low and joined; those that there are not have no elements.

    Args:
        mean, var: (C_high + C_low,).
        training: whether they are the batch's: the gradient then goes through them.
    """
    maps = Maps(high, half, low)
    taken = [maps.take(x) for x in (high, half, low, residual_high, residual_low)]
    unit, tiles = maps.vec, maps.tiles(TILE)
    channels = maps.channels_high + maps.channels_low
    y_high = maps.new(maps.channels_high, maps.high_shape[2:], high.dtype)
    y_low = high.new_empty(0) if low is None else maps.new(maps.channels_low, maps.half_size, low.dtype)
    joined = maps.new(channels, maps.half_size, high.dtype) if pools else high.new_empty(0)
    programs_high, programs = maps.grid(tiles)
    vectors = [*[high if v is None else v for v in (weight, bias)], mean, var]
    wrap_triton(normalize_kernel)[(programs,)](
        *[x for x, _ in taken], *vectors, y_high, y_low, joined, *[width // unit for _, width in taken],
        channels // unit, *maps.sizes(), programs_high, eps,
        VEC=unit, LAST=maps.last, HAS_HALF=half is not None, HAS_LOW=low is not None,
        HAS_RESIDUAL_HIGH=residual_high is not None, HAS_RESIDUAL_LOW=residual_low is not None,
        HAS_WEIGHT=weight is not None, HAS_BIAS=bias is not None, RELU=relu, POOLS=pools,
        **tiles, num_warps=WARPS,
    )  # fmt: skip
    return y_high, y_low, joined


@operator("octave_normalize_backward")
def octave_normalize_backward(
    dy_high: Tensor | None,
    dy_low: Tensor | None,
    d_joined: Tensor | None,
    again_high: Tensor | None,
    again_low: Tensor | None,
    again_joined: Tensor | None,
    high: Tensor,
    half: Tensor | None,
    low: Tensor | None,
    y_high: Tensor | None,
    y_low: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    training: bool,
    eps: float,
    relu: bool,
    has_residual_high: bool,
    has_residual_low: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of high, half, low, both residuals, weight, bias; those that there are not have no elements.

    Args:
        dy_high, dy_low, d_joined: each None where nothing used that result.
        again_high, again_low, again_joined: from a second reader of the results, to be added to these.
        y_high, y_low: of a map with a residual and a ReLU.
    """
    maps = Maps(high, half, low)
    inputs = [maps.take(x) for x in (high, half, low)]
    gradients = [maps.take(x) for x in (dy_high, dy_low, d_joined)]
    again = [maps.take(x) for x in (again_high, again_low, again_joined)]
    (y_high_, _), (y_low_, _) = maps.take(y_high), maps.take(y_low)
    unit = maps.vec
    sum_tiles, tiles = maps.tiles(SUM_TILE), maps.tiles(TILE)
    sum_programs, spans = maps.spans(sum_tiles)
    _, blocks_high, _, blocks_low, _ = spans
    channels_high, channels_low = maps.channels_high, maps.channels_low
    writes_high = has_residual_high or again_high is not None or again_joined is not None
    writes_low = low is not None and (has_residual_low or again_low is not None or again_joined is not None)
    g_high = maps.new(channels_high, maps.high_shape[2:], high.dtype) if writes_high else high.new_empty(0)
    g_low = maps.new(channels_low, maps.half_size, high.dtype) if writes_low else high.new_empty(0)
    d_weight = high.new_empty(0) if weight is None else torch.empty_like(weight)
    d_bias = high.new_empty(0) if bias is None else torch.empty_like(bias)
    vectors = [*[high if v is None else v for v in (weight, bias)], mean, var]
    has = {
        "HAS_HALF": half is not None,
        "HAS_LOW": low is not None,
        "HAS_WEIGHT": weight is not None,
        "HAS_BIAS": bias is not None,
    }
    means = torch.empty(2 * (channels_high + channels_low), dtype=torch.float32, device=high.device)
    if training or weight is not None or bias is not None or writes_high or writes_low:
        sums_size = 2 * (blocks_high * channels_high + blocks_low * channels_low)
        sums = torch.empty(sums_size, dtype=torch.float32, device=high.device)
        widths = [width // unit for _, width in (*gradients, *again, *inputs)]
        wrap_triton(sums_kernel)[(sum_programs,)](
            *[x for x, _ in (*gradients, *again, *inputs)], y_high_, y_low_, *vectors, g_high, g_low, sums, *widths,
            *maps.sizes(), *spans, eps, VEC=unit, LAST=maps.last, HAS_DY_HIGH=dy_high is not None,
            HAS_DY_LOW=dy_low is not None, POOLS=d_joined is not None, HAS_AGAIN_HIGH=again_high is not None,
            HAS_AGAIN_LOW=again_low is not None, AGAIN_POOLS=again_joined is not None, RELU=relu,
            HAS_RESIDUAL_HIGH=has_residual_high, HAS_RESIDUAL_LOW=has_residual_low,
            WRITES_G_HIGH=writes_high, WRITES_G_LOW=writes_low, **has, **sum_tiles, num_warps=SUM_WARPS,
        )  # fmt: skip
        vector_flags = {name: has[name] for name in ("HAS_WEIGHT", "HAS_BIAS")}
        wrap_triton(finish_sums_kernel)[maps.finish_grid()](
            sums, var, d_weight, d_bias, means, channels_high, channels_low, maps.frames, maps.H, maps.W,
            blocks_high, blocks_low, eps, **vector_flags, **FINISH,
        )  # fmt: skip
    # Where the first pass has written g, it takes the place of dy, and needs nothing added.
    if writes_high:
        gradients[0] = g_high, channels_high
    if writes_low:
        gradients[1] = g_low, channels_low
    d_high = maps.new(channels_high, maps.high_shape[2:], high.dtype)
    d_half = high.new_empty(0) if half is None else maps.new(channels_high, maps.half_size, half.dtype)
    d_low = high.new_empty(0) if low is None else maps.new(channels_low, maps.half_size, low.dtype)
    programs_high, programs = maps.grid(tiles)
    wrap_triton(gradient_kernel)[(programs,)](
        *[x for x, _ in (*gradients, *inputs)], y_high_, y_low_, *vectors, means, d_high, d_half, d_low,
        *[width // unit for _, width in (*gradients, *inputs)], *maps.sizes(), programs_high, eps,
        VEC=unit, LAST=maps.last, HAS_DY_HIGH=dy_high is not None or writes_high,
        HAS_DY_LOW=dy_low is not None or writes_low, POOLS_HIGH=d_joined is not None and not writes_high,
        POOLS_LOW=d_joined is not None and not writes_low, TRAINING=training, RELU_HIGH=relu and not writes_high,
        RELU_LOW=relu and not writes_low, **has, **tiles, num_warps=WARPS,
    )  # fmt: skip
    return d_high, d_half, d_low, g_high, g_low, d_weight, d_bias


# -- autograd ----------------------------------------------------------------------------------------------


class Normalize(torch.autograd.Function):
    """`octave_normalize` with a gradient; with `again` each result once more, of the same memory.

    Its second readers send their gradients back by themselves: summed here in passing, not in a pass of autograd's.
    Results of a torch operator may not share memory, hence a Function.
    """

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        """Args: those of `octave_normalize`, then `again`."""
        *args_, again = args
        results = octave_normalize(*args_)
        return (*results, *[y.view_as(y) for y in results]) if again else results

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        high, half, low, residual_high, residual_low, weight, bias, mean, var, training, eps, relu, _, _ = inputs
        has_residual = residual_high is not None, residual_low is not None
        results = [y if relu and has else None for y, has in zip(output[:2], has_residual, strict=True)]
        ctx.save_for_backward(high, half, low, *results, weight, bias, mean, var)
        ctx.options = training, eps, relu, *has_residual
        ctx.residual_dtypes = [None if r is None else r.dtype for r in (residual_high, residual_low)]
        ctx.set_materialize_grads(False)  # a result that nothing used would bring a map of zeros to read

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        given = [None if grad is None or grad.numel() == 0 else grad for grad in grads]
        given += [None] * (6 - len(given))
        _, half, low, _, _, weight, bias, _, _ = saved = ctx.saved_tensors
        twice = torch.is_grad_enabled() and not torch.compiler.is_compiling()  # by create_graph=True
        gradients: Any = _Gradients.apply if twice else octave_normalize_backward
        made = gradients(*given, *saved, *ctx.options)
        residuals = [
            None if dtype is None else g.to(dtype) for g, dtype in zip(made[3:5], ctx.residual_dtypes, strict=True)
        ]
        wanted = (True, half is not None, low is not None)
        maps = [d if has else None for d, has in zip(made[:3], wanted, strict=True)]
        vectors = [None if v is None else d for v, d in zip((weight, bias), made[5:], strict=True)]
        return (*maps, *residuals, *vectors, *[None] * 7)


class _Gradients(torch.autograd.Function):
    """`octave_normalize_backward`, whose own gradient is an error in words."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Any:
        return octave_normalize_backward(*args)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        raise NotImplementedError(
            "octave_norm by Triton has no gradients of gradients: call octvideo.octave.unfuse(network) first"
        )

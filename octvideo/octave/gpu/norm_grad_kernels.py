"""The Triton kernels of `octave_norm`'s gradient, in the terms of norm_kernels.py.

With g the gradient before the residual's addition, masked by the ReLU, d = x - mean, and N pixels a channel::

    d_bias = sum(g)        d_weight = sum(g d) / sqrt(var + eps)
    d_x = weight / sqrt(var + eps) (g - sum(g) / N - d sum(g d) / (N (var + eps)))

in evaluation without the two sums. `sums_kernel` reads all that g takes. It writes g where there is a residual, whose
gradient that is, and where two readers of the result each send a gradient back (`again`); the second pass then reads g
in place of what it was made of. `gradient_kernel` writes d_x, and its sums over cells, the gradient of the half-size
map. Without a residual the ReLU's mask is computed from x, which both passes read anyway; with one, from y.
"""

from __future__ import annotations

import triton
import triton.language as tl

from octvideo.octave.gpu.norm_kernels import (
    SIZES,
    SPANS,
    address,
    channel_vector,
    low_part,
    pixels_of,
    pixels_there,
    split_cell,
)

WIDTHS = ["dy_high_width", "dy_low_width", "d_joined_width", "high_width", "half_width", "low_width"]
AGAIN_WIDTHS = ["again_high_width", "again_low_width", "again_joined_width"]


@triton.jit
def _sent_back(
    g, dy, dy_width, d_joined, d_joined_width, frame, y_at, x_at, c, mask, T, H, W,
    VEC: tl.constexpr, LAST: tl.constexpr, HAS_DY: tl.constexpr, POOLS: tl.constexpr, COPIES: tl.constexpr,
):  # fmt: skip
    """g and, added to it, what one reader of a tile's results sends back, in float32."""
    if HAS_DY:
        at = address(frame, y_at, x_at, c, T, H, W, dy_width, VEC, LAST)
        g += tl.load(dy + at, mask=mask, other=0.0).to(tl.float32)
    if COPIES:
        at = address(frame, y_at, x_at, c, T, H, W, d_joined_width, VEC, LAST)
        g += tl.load(d_joined + at, mask=mask, other=0.0).to(tl.float32)
    if POOLS:
        at = address(frame, y_at // 2, x_at // 2, c, T, (H + 1) // 2, (W + 1) // 2, d_joined_width, VEC, LAST)
        from_pool = tl.load(d_joined + at, mask=mask, other=0.0).to(tl.float32)
        g += from_pool / pixels_there(y_at, x_at, H, W)[:, :, None]
    return g


@triton.jit
def _masked(
    g, y, centred, scale, shift, frame, y_at, x_at, c, mask, channels, T, H, W,
    VEC: tl.constexpr, LAST: tl.constexpr, RELU: tl.constexpr, FROM_Y: tl.constexpr,
):  # fmt: skip
    """g of a tile by its ReLU."""
    if RELU:
        if FROM_Y:
            result = tl.load(y + address(frame, y_at, x_at, c, T, H, W, channels, VEC, LAST), mask=mask, other=0.0)
        else:  # as it was computed forward, and rounded: y is the buffer's type alone here
            result = (centred * scale[None, None, :] + shift[None, None, :]).to(y.dtype.element_ty)
        g = tl.where(result.to(tl.float32) <= 0.0, 0.0, g)
    return g


@triton.jit
def _sums(
    pid, dy, dy_width, d_joined, d_joined_width, again, again_width, again_joined, again_joined_width,
    x, x_width, half, half_width, y, weight, bias, mean, var, g_out, sums,
    first_channel, channels, frames, T, H, W, eps, blocks, span,
    VEC: tl.constexpr, LAST: tl.constexpr, HAS_HALF: tl.constexpr, HAS_DY: tl.constexpr, POOLS: tl.constexpr,
    COPIES: tl.constexpr, HAS_AGAIN: tl.constexpr, AGAIN_POOLS: tl.constexpr, AGAIN_COPIES: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, RELU: tl.constexpr, FROM_Y: tl.constexpr,
    WRITES_G: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Of `span` cells: sums[0, block, c] of g, sums[1, block, c] of g d; and g itself."""
    channel_blocks = tl.cdiv(channels * VEC, COLS)
    block = pid // channel_blocks
    c = (pid % channel_blocks) * COLS + tl.arange(0, COLS)
    c_inside = c < channels * VEC
    h, w = (H + 1) // 2, (W + 1) // 2
    first = block * span
    last = tl.minimum(first + span, frames * h * w)
    of_vector = first_channel * VEC + c
    center = tl.load(mean + of_vector, mask=c_inside, other=0.0).to(tl.float32)
    scale = channel_vector(weight, of_vector, c_inside, 1.0, HAS_WEIGHT)
    scale *= tl.rsqrt(tl.load(var + of_vector, mask=c_inside, other=1.0).to(tl.float32) + eps)
    shift = channel_vector(bias, of_vector, c_inside, 0.0, HAS_BIAS)
    total = tl.zeros([ROWS, 4, COLS], tl.float32)
    products = tl.zeros([ROWS, 4, COLS], tl.float32)
    for start in range(first, last, ROWS):
        cell = start + tl.arange(0, ROWS)[:, None]
        inside = cell < last
        frame, i, j = split_cell(cell, H, W)
        y_at, x_at = pixels_of(i, j)
        mask = (inside & (y_at < H) & (x_at < W))[:, :, None] & c_inside[None, None, :]
        at = address(frame, y_at, x_at, c, T, H, W, x_width, VEC, LAST)
        centred = tl.load(x + at, mask=mask, other=0.0).to(tl.float32) - center[None, None, :]
        if HAS_HALF:
            at = address(frame, y_at // 2, x_at // 2, c, T, h, w, half_width, VEC, LAST)
            centred += tl.load(half + at, mask=mask, other=0.0).to(tl.float32)
        g = _sent_back(
            tl.zeros(centred.shape, tl.float32), dy, dy_width, d_joined, d_joined_width,
            frame, y_at, x_at, c, mask, T, H, W, VEC, LAST, HAS_DY, POOLS, COPIES,
        )  # fmt: skip
        g = _sent_back(
            g, again, again_width, again_joined, again_joined_width,
            frame, y_at, x_at, c, mask, T, H, W, VEC, LAST, HAS_AGAIN, AGAIN_POOLS, AGAIN_COPIES,
        )  # fmt: skip
        g = _masked(g, y, centred, scale, shift, frame, y_at, x_at, c, mask, channels, T, H, W, VEC, LAST, RELU, FROM_Y)
        if WRITES_G:
            rounded = g.to(g_out.dtype.element_ty)
            tl.store(g_out + address(frame, y_at, x_at, c, T, H, W, channels, VEC, LAST), rounded, mask=mask)
            g = rounded.to(tl.float32)  # the second pass reads it so: its mean must be this one's
        g = tl.where(mask, g, 0.0)
        total += g
        products += g * tl.where(mask, centred, 0.0)
    out = sums + block * (channels * VEC) + c
    tl.store(out, tl.sum(tl.sum(total, 1), 0), mask=c_inside)
    tl.store(out + blocks * (channels * VEC), tl.sum(tl.sum(products, 1), 0), mask=c_inside)


@triton.jit(do_not_specialize=[*SIZES, *WIDTHS, *AGAIN_WIDTHS, *SPANS, "eps"])
def sums_kernel(
    dy_high, dy_low, d_joined, again_high, again_low, again_joined, high, half, low, y_high, y_low,
    weight, bias, mean, var, g_high, g_low, sums,
    dy_high_width, dy_low_width, d_joined_width, again_high_width, again_low_width, again_joined_width,
    high_width, half_width, low_width,
    channels_high, channels_low, frames, T, H, W, programs_high, blocks_high, span_high, blocks_low, span_low, eps,
    VEC: tl.constexpr, LAST: tl.constexpr, HAS_HALF: tl.constexpr, HAS_LOW: tl.constexpr,
    HAS_DY_HIGH: tl.constexpr, HAS_DY_LOW: tl.constexpr, POOLS: tl.constexpr,
    HAS_AGAIN_HIGH: tl.constexpr, HAS_AGAIN_LOW: tl.constexpr, AGAIN_POOLS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, RELU: tl.constexpr,
    HAS_RESIDUAL_HIGH: tl.constexpr, HAS_RESIDUAL_LOW: tl.constexpr,
    WRITES_G_HIGH: tl.constexpr, WRITES_G_LOW: tl.constexpr,
    ROWS_HIGH: tl.constexpr, COLS_HIGH: tl.constexpr, ROWS_LOW: tl.constexpr, COLS_LOW: tl.constexpr,
):  # fmt: skip
    """Sums over blocks of cells, see `_sums`: those of the high map, then those of the low one."""
    pid = tl.program_id(0)
    if pid < programs_high:
        _sums(
            pid, dy_high, dy_high_width, d_joined, d_joined_width,
            again_high, again_high_width, again_joined, again_joined_width, high, high_width, half, half_width, y_high,
            weight, bias, mean, var, g_high, sums, 0, channels_high, frames, T, H, W, eps, blocks_high, span_high,
            VEC, LAST, HAS_HALF, HAS_DY_HIGH, POOLS, False, HAS_AGAIN_HIGH, AGAIN_POOLS, False,
            HAS_WEIGHT, HAS_BIAS, RELU, HAS_RESIDUAL_HIGH, WRITES_G_HIGH, ROWS_HIGH, COLS_HIGH,
        )  # fmt: skip
    if HAS_LOW:
        if pid >= programs_high:
            _sums(
                pid - programs_high, dy_low, dy_low_width, low_part(d_joined, channels_high * VEC, T, H, W, LAST),
                d_joined_width, again_low, again_low_width,
                low_part(again_joined, channels_high * VEC, T, H, W, LAST), again_joined_width,
                low, low_width, low, low_width, y_low, weight, bias, mean, var, g_low,
                sums + 2 * blocks_high * channels_high * VEC, channels_high, channels_low,
                frames, T, (H + 1) // 2, (W + 1) // 2, eps, blocks_low, span_low,
                VEC, LAST, False, HAS_DY_LOW, False, POOLS, HAS_AGAIN_LOW, False, AGAIN_POOLS,
                HAS_WEIGHT, HAS_BIAS, RELU, HAS_RESIDUAL_LOW, WRITES_G_LOW, ROWS_LOW, COLS_LOW,
            )  # fmt: skip


@triton.jit
def _finish_sums(
    first_channel, all_channels, c, channels, sums, blocks, pixels, var, d_weight, d_bias, means, eps,
    HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    c_inside = c < channels
    total = tl.zeros([COLS], tl.float32)
    products = tl.zeros([COLS], tl.float32)
    for start in range(0, blocks, ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < blocks)[:, None] & c_inside[None, :]
        at = row[:, None] * channels + c[None, :]
        total += tl.sum(tl.load(sums + at, mask=mask, other=0.0), 0)
        products += tl.sum(tl.load(sums + blocks * channels + at, mask=mask, other=0.0), 0)
    out = first_channel + c
    inverse_std = tl.rsqrt(tl.load(var + out, mask=c_inside, other=1.0).to(tl.float32) + eps)
    products *= inverse_std
    if HAS_WEIGHT:
        tl.store(d_weight + out, products, mask=c_inside)
    if HAS_BIAS:
        tl.store(d_bias + out, total, mask=c_inside)
    tl.store(means + out, total / pixels, mask=c_inside)
    tl.store(means + all_channels + out, products * inverse_std / pixels, mask=c_inside)


@triton.jit(do_not_specialize=[*SIZES, "blocks_high", "blocks_low", "eps"])
def finish_sums_kernel(
    sums, var, d_weight, d_bias, means, channels_high, channels_low, frames, H, W, blocks_high, blocks_low, eps,
    HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """d_weight, d_bias, and means[0, c], means[1, c]: the factors of 1 and of d in d_x."""
    pid = tl.program_id(0)
    programs_high = tl.cdiv(channels_high, COLS)
    c = tl.arange(0, COLS)
    if pid < programs_high:
        _finish_sums(
            0, channels_high + channels_low, pid * COLS + c, channels_high, sums, blocks_high,
            tl.cast(frames, tl.float32) * H * W, var, d_weight, d_bias, means, eps,
            HAS_WEIGHT, HAS_BIAS, ROWS, COLS,
        )  # fmt: skip
    else:
        _finish_sums(
            channels_high, channels_high + channels_low, (pid - programs_high) * COLS + c, channels_low,
            sums + 2 * blocks_high * channels_high, blocks_low,
            tl.cast(frames, tl.float32) * ((H + 1) // 2) * ((W + 1) // 2), var, d_weight, d_bias, means, eps,
            HAS_WEIGHT, HAS_BIAS, ROWS, COLS,
        )  # fmt: skip


@triton.jit
def _gradient(
    pid, dy, dy_width, d_joined, d_joined_width, x, x_width, half, half_width, y, weight, bias, mean, var, means, dx,
    d_half, first_channel, all_channels, channels, frames, T, H, W, eps,
    VEC: tl.constexpr, LAST: tl.constexpr, HAS_HALF: tl.constexpr, HAS_DY: tl.constexpr, POOLS: tl.constexpr,
    COPIES: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, TRAINING: tl.constexpr,
    RELU: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """One tile of d_x, and of its sums over cells."""
    channel_blocks = tl.cdiv(channels * VEC, COLS)
    c = (pid % channel_blocks) * COLS + tl.arange(0, COLS)
    c_inside = c < channels * VEC
    h, w = (H + 1) // 2, (W + 1) // 2
    cell = (pid // channel_blocks) * ROWS + tl.arange(0, ROWS)[:, None]
    inside = cell < frames * h * w
    frame, i, j = split_cell(cell, H, W)
    y_at, x_at = pixels_of(i, j)
    mask = (inside & (y_at < H) & (x_at < W))[:, :, None] & c_inside[None, None, :]
    of_vector = first_channel * VEC + c
    center = tl.load(mean + of_vector, mask=c_inside, other=0.0).to(tl.float32)
    scale = channel_vector(weight, of_vector, c_inside, 1.0, HAS_WEIGHT)
    scale *= tl.rsqrt(tl.load(var + of_vector, mask=c_inside, other=1.0).to(tl.float32) + eps)
    shift = channel_vector(bias, of_vector, c_inside, 0.0, HAS_BIAS)
    mean_g = channel_vector(means, of_vector, c_inside, 0.0, TRAINING)
    slope = channel_vector(means + all_channels * VEC, of_vector, c_inside, 0.0, TRAINING)
    at = address(frame, y_at, x_at, c, T, H, W, x_width, VEC, LAST)
    centred = tl.load(x + at, mask=mask, other=0.0).to(tl.float32) - center[None, None, :]
    if HAS_HALF:
        at = address(frame, y_at // 2, x_at // 2, c, T, h, w, half_width, VEC, LAST)
        centred += tl.load(half + at, mask=mask, other=0.0).to(tl.float32)
    g = _sent_back(
        tl.zeros(centred.shape, tl.float32), dy, dy_width, d_joined, d_joined_width,
        frame, y_at, x_at, c, mask, T, H, W, VEC, LAST, HAS_DY, POOLS, COPIES,
    )  # fmt: skip
    g = _masked(g, y, centred, scale, shift, frame, y_at, x_at, c, mask, channels, T, H, W, VEC, LAST, RELU, False)
    if TRAINING:
        g = g - mean_g[None, None, :] - centred * slope[None, None, :]
    g = g * scale[None, None, :]
    tl.store(dx + address(frame, y_at, x_at, c, T, H, W, channels, VEC, LAST), g.to(dx.dtype.element_ty), mask=mask)
    if HAS_HALF:
        total = tl.sum(tl.where(mask, g, 0.0), 1)[:, None, :]
        at_cell = address(frame, i, j, c, T, h, w, channels, VEC, LAST)
        mask = inside[:, :, None] & c_inside[None, None, :]
        tl.store(d_half + at_cell, total.to(d_half.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=[*SIZES, *WIDTHS, "programs_high", "eps"])
def gradient_kernel(
    dy_high, dy_low, d_joined, high, half, low, y_high, y_low, weight, bias, mean, var, means, d_high, d_half, d_low,
    dy_high_width, dy_low_width, d_joined_width, high_width, half_width, low_width,
    channels_high, channels_low, frames, T, H, W, programs_high, eps,
    VEC: tl.constexpr, LAST: tl.constexpr, HAS_HALF: tl.constexpr, HAS_LOW: tl.constexpr,
    HAS_DY_HIGH: tl.constexpr, HAS_DY_LOW: tl.constexpr, POOLS_HIGH: tl.constexpr, POOLS_LOW: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, TRAINING: tl.constexpr,
    RELU_HIGH: tl.constexpr, RELU_LOW: tl.constexpr,
    ROWS_HIGH: tl.constexpr, COLS_HIGH: tl.constexpr, ROWS_LOW: tl.constexpr, COLS_LOW: tl.constexpr,
):  # fmt: skip
    """d_high, d_half and d_low. Where g was written, it is dy: nothing else is to be added or masked."""
    pid = tl.program_id(0)
    if pid < programs_high:
        _gradient(
            pid, dy_high, dy_high_width, d_joined, d_joined_width, high, high_width, half, half_width, y_high, weight,
            bias, mean, var, means, d_high, d_half, 0, channels_high + channels_low, channels_high, frames, T, H, W,
            eps, VEC, LAST, HAS_HALF, HAS_DY_HIGH, POOLS_HIGH, False, HAS_WEIGHT, HAS_BIAS, TRAINING,
            RELU_HIGH, ROWS_HIGH, COLS_HIGH,
        )  # fmt: skip
    if HAS_LOW:
        if pid >= programs_high:
            _gradient(
                pid - programs_high, dy_low, dy_low_width, low_part(d_joined, channels_high * VEC, T, H, W, LAST),
                d_joined_width, low, low_width, low, low_width, y_low, weight, bias, mean, var, means, d_low, d_low,
                channels_high, channels_high + channels_low, channels_low, frames, T, (H + 1) // 2, (W + 1) // 2, eps,
                VEC, LAST, False, HAS_DY_LOW, False, POOLS_LOW, HAS_WEIGHT, HAS_BIAS, TRAINING,
                RELU_LOW, ROWS_LOW, COLS_LOW,
            )  # fmt: skip

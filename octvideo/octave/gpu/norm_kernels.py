"""The Triton kernels of `octave_norm`; norm_ops.py launches them.

A map is a matrix of pixels by channels. `width` says how the buffer lies that holds it: the buffer's channels, so that
pixel p of channel c stands at p * width + c in channels-last maps (LAST), and at (n * width + c) * pixels + p in
contiguous ones; a run of channels out of a wider buffer is a map too.

A program works on tiles (ROWS cells, 4 pixels, COLS channels). A cell is a square of 2x2 pixels, fewer at odd edges:
one pixel of the half-size map, so that adding an upsampled map, pooling, and the gradients of both stay inside a
program. The pixels of a cell are an axis of the tile, not a loop: a loop's loads would wait for the stores before them.
What a cell's pixels share is loaded for each of them: they stand in one warp, which fetches it once, while a smaller
tile would have to go through shared memory to meet the large one.
One launch serves both frequencies: the first programs work on the high map, the others on the low one.

Kernels with sums have two stages: each program writes the sums over its cells, then a small kernel adds them up, in one
order. There are no atomics, so a step repeated gives the same bits.

Sizes and widths are not specialised: a network has dozens of shapes, and each would be compiled anew. VEC, the largest
power of two up to 8 that divides every width and channel count, carries what matters of them: a thread's loads of
neighbouring channels may be one of that many elements.
"""

from __future__ import annotations

import triton
import triton.language as tl

SIZES = ["channels_high", "channels_low", "frames", "T", "H", "W"]
WIDTHS = ["high_width", "half_width", "low_width", "residual_high_width", "residual_low_width"]
SPANS = ["programs_high", "blocks_high", "span_high", "blocks_low", "span_low"]


@triton.jit
def split_cell(cell, H, W):
    """The frame, the row and the column of a cell."""
    w = (W + 1) // 2
    h = (H + 1) // 2
    row = cell // w
    return row // h, row % h, cell % w


@triton.jit
def pixels_of(i, j):
    """Rows and columns (cells, 4) of the pixels of cells (cells, 1)."""
    k = tl.arange(0, 4)[None, :]
    return 2 * i + k // 2, 2 * j + k % 2


@triton.jit
def pixels_there(y, x, H, W):
    """How many pixels the cell of a pixel has, as float32: fewer than 4 at odd edges."""
    return (tl.minimum(H - y // 2 * 2, 2) * tl.minimum(W - x // 2 * 2, 2)).to(tl.float32)


@triton.jit
def address(frame, y, x, c, T, H, W, width, VEC: tl.constexpr, LAST: tl.constexpr):
    """Offsets (cells, pixels, channels) into a map, of pixels (cells, pixels).

    64-bit, since maps of large batches have more than 2^31 elements.
    """
    if LAST:
        pixel = (frame.to(tl.int64) * H + y) * W + x
        return (pixel * (width * VEC))[:, :, None] + c[None, None, :]
    else:
        plane = tl.cast(T, tl.int64) * H * W
        start = (frame // T) * (width * VEC) * plane
        return (start + ((frame % T) * H + y) * W + x)[:, :, None] + c[None, None, :] * plane


@triton.jit
def channel_vector(vector, c, c_inside, default, HAS: tl.constexpr):
    """Of one value a channel; `default` where there is no vector."""
    if HAS:
        return tl.load(vector + c, mask=c_inside, other=0.0).to(tl.float32)
    else:
        return tl.full(c.shape, default, tl.float32)


@triton.jit
def _moments(
    pid, x, x_width, half, half_width, sums, counts, channels, frames, T, H, W, blocks, span,
    VEC: tl.constexpr, LAST: tl.constexpr, HAS_HALF: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Mean and centred sum of squares of `span` cells: sums[0, block, c], sums[1, block, c] and counts[block].

    Sums are of differences to the block's first pixel, which lies within the values: a mean that is large beside the
    deviation cancels before squaring. Welford's recurrence would divide in every step for the same.
    """
    channel_blocks = tl.cdiv(channels * VEC, COLS)
    block = pid // channel_blocks
    c = (pid % channel_blocks) * COLS + tl.arange(0, COLS)
    c_inside = c < channels * VEC
    h, w = (H + 1) // 2, (W + 1) // 2
    first = block * span
    last = tl.minimum(first + span, frames * h * w)
    frame_0, i_0, j_0 = split_cell(first + tl.zeros([1, 1], tl.int32), H, W)
    at_0 = address(frame_0, 2 * i_0, 2 * j_0, c, T, H, W, x_width, VEC, LAST)
    shift = tl.load(x + at_0, mask=c_inside[None, None, :], other=0.0).to(tl.float32)
    if HAS_HALF:
        at_0 = address(frame_0, i_0, j_0, c, T, h, w, half_width, VEC, LAST)
        shift += tl.load(half + at_0, mask=c_inside[None, None, :], other=0.0).to(tl.float32)
    total = tl.zeros([ROWS, 4, COLS], tl.float32)
    squares = tl.zeros([ROWS, 4, COLS], tl.float32)
    count = tl.zeros([ROWS, 4], tl.int32)
    for start in range(first, last, ROWS):
        cell = start + tl.arange(0, ROWS)[:, None]
        inside = cell < last
        frame, i, j = split_cell(cell, H, W)
        y_at, x_at = pixels_of(i, j)
        there = inside & (y_at < H) & (x_at < W)
        mask = there[:, :, None] & c_inside[None, None, :]
        at = address(frame, y_at, x_at, c, T, H, W, x_width, VEC, LAST)
        value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32) - shift
        if HAS_HALF:
            at = address(frame, y_at // 2, x_at // 2, c, T, h, w, half_width, VEC, LAST)
            value += tl.load(half + at, mask=mask, other=0.0).to(tl.float32)
        value = tl.where(mask, value, 0.0)
        total += value
        squares += value * value
        count += there.to(tl.int32)
    n = tl.sum(tl.sum(count, 1), 0).to(tl.float32)
    offset = tl.sum(tl.sum(total, 1), 0) / n
    centred = tl.sum(tl.sum(squares, 1), 0) - offset * offset * n
    centred = tl.where(centred < 0.0, 0.0, centred)  # by rounding; a NaN stays
    out = sums + block * (channels * VEC) + c
    tl.store(out, tl.sum(tl.sum(shift, 1), 0) + offset, mask=c_inside)
    tl.store(out + blocks * (channels * VEC), centred, mask=c_inside)
    tl.store(counts + block, n, mask=pid % channel_blocks == 0)


@triton.jit(do_not_specialize=[*SIZES, *WIDTHS, *SPANS])
def moments_kernel(
    high, half, low, sums, high_width, half_width, low_width, channels_high, channels_low, frames, T, H, W,
    programs_high, blocks_high, span_high, blocks_low, span_low,
    VEC: tl.constexpr, LAST: tl.constexpr, HAS_HALF: tl.constexpr, HAS_LOW: tl.constexpr,
    ROWS_HIGH: tl.constexpr, COLS_HIGH: tl.constexpr, ROWS_LOW: tl.constexpr, COLS_LOW: tl.constexpr,
):  # fmt: skip
    """Sums over blocks of cells, see `_moments`: those of the high map, those of the low one, and all counts."""
    pid = tl.program_id(0)
    sums_low = sums + 2 * blocks_high * channels_high * VEC
    counts = sums_low + 2 * blocks_low * channels_low * VEC
    if pid < programs_high:
        _moments(
            pid, high, high_width, half, half_width, sums, counts, channels_high, frames, T, H, W,
            blocks_high, span_high, VEC, LAST, HAS_HALF, ROWS_HIGH, COLS_HIGH,
        )  # fmt: skip
    if HAS_LOW:
        if pid >= programs_high:
            _moments(
                pid - programs_high, low, low_width, low, low_width, sums_low, counts + blocks_high, channels_low,
                frames, T, (H + 1) // 2, (W + 1) // 2, blocks_low, span_low, VEC, LAST, False, ROWS_LOW, COLS_LOW,
            )  # fmt: skip


@triton.jit
def _finish_moments(
    first_channel, c, channels, sums, counts, blocks, mean, var, running_mean, running_var, momentum,
    HAS_RUNNING: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """The mean first, then the deviations of the blocks' means from it: nothing large is subtracted from its like."""
    c_inside = c < channels
    total = tl.zeros([COLS], tl.float32)
    n = 0.0
    for start in range(0, blocks, ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < blocks)[:, None] & c_inside[None, :]
        weights = tl.load(counts + row, mask=row < blocks, other=0.0)
        means = tl.load(sums + row[:, None] * channels + c[None, :], mask=mask, other=0.0)
        total += tl.sum(means * weights[:, None], 0)
        n += tl.sum(weights, 0)
    center = total / n
    squares = tl.zeros([COLS], tl.float32)
    for start in range(0, blocks, ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < blocks)[:, None] & c_inside[None, :]
        weights = tl.load(counts + row, mask=row < blocks, other=0.0)
        at = row[:, None] * channels + c[None, :]
        away = tl.load(sums + at, mask=mask, other=0.0) - center[None, :]
        within = tl.load(sums + blocks * channels + at, mask=mask, other=0.0)
        squares += tl.sum(within + tl.where(mask, away * away, 0.0) * weights[:, None], 0)
    out = first_channel + c
    tl.store(mean + out, center, mask=c_inside)
    tl.store(var + out, squares / n, mask=c_inside)
    if HAS_RUNNING:
        old = tl.load(running_mean + out, mask=c_inside, other=0.0).to(tl.float32)
        tl.store(running_mean + out, old + momentum * (center - old), mask=c_inside)
        old = tl.load(running_var + out, mask=c_inside, other=0.0).to(tl.float32)
        tl.store(running_var + out, old + momentum * (squares / (n - 1.0) - old), mask=c_inside)


@triton.jit(do_not_specialize=["channels_high", "channels_low", "blocks_high", "blocks_low", "momentum"])
def finish_moments_kernel(
    sums, mean, var, running_mean, running_var, channels_high, channels_low, blocks_high, blocks_low, momentum,
    HAS_RUNNING: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """The blocks' sums, added up: mean, var (biased), and the running statistics."""
    pid = tl.program_id(0)
    programs_high = tl.cdiv(channels_high, COLS)
    sums_low = sums + 2 * blocks_high * channels_high
    counts = sums_low + 2 * blocks_low * channels_low
    c = tl.arange(0, COLS)
    if pid < programs_high:
        _finish_moments(
            0, pid * COLS + c, channels_high, sums, counts, blocks_high, mean, var, running_mean, running_var,
            momentum, HAS_RUNNING, ROWS, COLS,
        )  # fmt: skip
    else:
        _finish_moments(
            channels_high, (pid - programs_high) * COLS + c, channels_low, sums_low, counts + blocks_high, blocks_low,
            mean, var, running_mean, running_var, momentum, HAS_RUNNING, ROWS, COLS,
        )  # fmt: skip


@triton.jit
def _normalize(
    pid, x, x_width, half, half_width, residual, residual_width, weight, bias, mean, var, y, joined, joined_width,
    first_channel, channels, frames, T, H, W, eps,
    VEC: tl.constexpr, LAST: tl.constexpr, HAS_HALF: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, RELU: tl.constexpr,
    POOLS: tl.constexpr, COPIES: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """One tile. POOLS: the pooled result goes to `joined` too; COPIES: the result itself does."""
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
    at = address(frame, y_at, x_at, c, T, H, W, x_width, VEC, LAST)
    value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32) - center[None, None, :]
    if HAS_HALF:
        at = address(frame, y_at // 2, x_at // 2, c, T, h, w, half_width, VEC, LAST)
        value += tl.load(half + at, mask=mask, other=0.0).to(tl.float32)
    value = value * scale[None, None, :] + shift[None, None, :]
    if HAS_RESIDUAL:
        at = address(frame, y_at, x_at, c, T, H, W, residual_width, VEC, LAST)
        value += tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
    if RELU:
        value = tl.where(value <= 0.0, 0.0, value)  # unlike a maximum it keeps a NaN
    rounded = value.to(y.dtype.element_ty)
    tl.store(y + address(frame, y_at, x_at, c, T, H, W, channels, VEC, LAST), rounded, mask=mask)
    if COPIES:
        at = address(frame, y_at, x_at, c, T, H, W, joined_width, VEC, LAST)
        tl.store(joined + at, rounded, mask=mask)
    if POOLS:
        total = tl.sum(tl.where(mask, rounded.to(tl.float32), 0.0), 1)[:, None, :]
        at_cell = address(frame, i, j, c, T, h, w, joined_width, VEC, LAST)
        mean_of_cell = (total / pixels_there(2 * i, 2 * j, H, W)[:, :, None]).to(joined.dtype.element_ty)
        tl.store(joined + at_cell, mean_of_cell, mask=inside[:, :, None] & c_inside[None, None, :])


@triton.jit
def low_part(joined, channels_high, T, H, W, LAST: tl.constexpr):
    """Where the low channels of `joined` begin."""
    if LAST:
        return joined + channels_high
    else:
        return joined + tl.cast(channels_high, tl.int64) * T * ((H + 1) // 2) * ((W + 1) // 2)


@triton.jit(do_not_specialize=[*SIZES, *WIDTHS, "joined_width", "programs_high", "eps"])
def normalize_kernel(
    high, half, low, residual_high, residual_low, weight, bias, mean, var, y_high, y_low, joined,
    high_width, half_width, low_width, residual_high_width, residual_low_width, joined_width,
    channels_high, channels_low, frames, T, H, W, programs_high, eps,
    VEC: tl.constexpr, LAST: tl.constexpr, HAS_HALF: tl.constexpr, HAS_LOW: tl.constexpr,
    HAS_RESIDUAL_HIGH: tl.constexpr, HAS_RESIDUAL_LOW: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    RELU: tl.constexpr, POOLS: tl.constexpr,
    ROWS_HIGH: tl.constexpr, COLS_HIGH: tl.constexpr, ROWS_LOW: tl.constexpr, COLS_LOW: tl.constexpr,
):  # fmt: skip
    """relu((x - mean) / sqrt(var + eps) * weight + bias + residual) of both maps, and `joined`."""
    pid = tl.program_id(0)
    if pid < programs_high:
        _normalize(
            pid, high, high_width, half, half_width, residual_high, residual_high_width, weight, bias, mean, var,
            y_high, joined, joined_width, 0, channels_high, frames, T, H, W, eps, VEC, LAST, HAS_HALF,
            HAS_RESIDUAL_HIGH, HAS_WEIGHT, HAS_BIAS, RELU, POOLS, False, ROWS_HIGH, COLS_HIGH,
        )  # fmt: skip
    if HAS_LOW:
        if pid >= programs_high:
            _normalize(
                pid - programs_high, low, low_width, low, low_width, residual_low, residual_low_width, weight, bias,
                mean, var, y_low, low_part(joined, channels_high * VEC, T, H, W, LAST), joined_width,
                channels_high, channels_low, frames, T, (H + 1) // 2, (W + 1) // 2, eps, VEC, LAST, False,
                HAS_RESIDUAL_LOW, HAS_WEIGHT, HAS_BIAS, RELU, False, POOLS, ROWS_LOW, COLS_LOW,
            )  # fmt: skip

"""OctConv1d/2d/3d: one ordinary convolution weight, used in four parts between two resolutions.

With x = (x_high, x_low), W cut into W_hh, W_lh, W_hl, W_ll (source first) and stride 1 (arXiv 1904.05049,
section 3)::

    y_high = conv(x_high; W_hh) + up(conv(x_low; W_lh))
    y_low  = conv(x_low;  W_ll) + conv(down(x_high); W_hl)

Stride 2 pools the inputs first and convolves with stride 1, so low already has the resolution of y_high.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octvideo.octave.features import Octave, pool_down, spatial_size, upsample
from octvideo.octave.partition import ChannelIndex, Partition, as_channel_index, as_partition, take_channels

Downsample = Literal["stride", "pool"]


@dataclass(frozen=True)
class ConvPath:
    """One of the four parts: its weights, and the channels of its source and its target that they connect."""

    rows: ChannelIndex  # of the weight: output channels of the ordinary convolution
    # Input positions inside a group; one tuple for each row where they differ between groups.
    columns: ChannelIndex | tuple[tuple[int, ...], ...]
    groups: int
    inputs: ChannelIndex  # positions in the source map (x_high or x_low)
    outputs: ChannelIndex  # positions in the target map (y_high or y_low)
    covers_target: bool

    def weight(self, weight: Tensor) -> Tensor:
        if isinstance(self.columns, tuple) and self.columns and isinstance(self.columns[0], tuple):
            rows = torch.arange(weight.shape[0], device=weight.device)[
                self.rows if isinstance(self.rows, slice) else torch.tensor(self.rows, device=weight.device)
            ]
            return weight[rows[:, None], torch.tensor(self.columns, device=weight.device)]
        return take_channels(take_channels(weight, self.rows, dim=0), self.columns, dim=1)  # type: ignore[arg-type]


def plan_path(source: Partition, target: Partition, groups: int, *, from_low: bool, to_low: bool) -> ConvPath | None:
    """The part of a grouped convolution from one frequency to another; None where no kernel connects them.

    Raises:
        ValueError: if the groups that take part are not alike (such a convolution needs a merged input).
    """
    in_size, out_size = source.num_channels // groups, target.num_channels // groups
    taken: list[tuple[list[int], list[int]]] = []
    for g in range(groups):
        inputs = [i for i in range(g * in_size, (g + 1) * in_size) if source.is_low[i] == from_low]
        outputs = [o for o in range(g * out_size, (g + 1) * out_size) if target.is_low[o] == to_low]
        if inputs and outputs:
            taken.append((inputs, outputs))
    if not taken:
        return None
    if len({(len(inputs), len(outputs)) for inputs, outputs in taken}) > 1:
        raise ValueError(
            f"the {groups} groups of this convolution do not hold equally many low channels "
            f"(in {source}, out {target}); split each group alike, or merge before the convolution"
        )
    rows = [o for _, outputs in taken for o in outputs]
    per_group = [tuple(i % in_size for i in inputs) for inputs, _ in taken]
    columns: ChannelIndex | tuple[tuple[int, ...], ...] = as_channel_index(per_group[0])
    if len(set(per_group)) > 1:
        columns = tuple(own for own, (_, outputs) in zip(per_group, taken, strict=True) for _ in outputs)
    in_position = {c: n for n, c in enumerate(source.low if from_low else source.high)}
    out_position = {c: n for n, c in enumerate(target.low if to_low else target.high)}
    return ConvPath(
        rows=as_channel_index(rows),
        columns=columns,
        groups=len(taken),
        inputs=as_channel_index([in_position[i] for inputs, _ in taken for i in inputs]),
        outputs=as_channel_index([out_position[o] for o in rows]),
        covers_target=len(rows) == len(out_position),
    )


class _OctConvNd(nn.modules.conv._ConvNd):
    """What OctConv1d/2d/3d share; mixed in before the ordinary class, whose constructor and weights stay."""

    partition_in: Partition
    partition_out: Partition
    downsample: Downsample

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | str | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        alpha_in: float | Partition,
        alpha_out: float | Partition,
        downsample: Downsample = "stride",
        **factory: Any,
    ) -> None:
        geometry: tuple[Any, ...] = (kernel_size, stride, padding, dilation, groups, bias, padding_mode)
        super().__init__(in_channels, out_channels, *geometry, **factory)
        self.set_octave(alpha_in, alpha_out, downsample=downsample)

    def set_octave(
        self, alpha_in: float | Partition, alpha_out: float | Partition, *, downsample: Downsample = "stride"
    ) -> None:
        """Choose which channels are low; the weights are not touched.

        Raises:
            ValueError: if the two maps would not fit for this kernel, padding and stride.
        """
        if downsample not in ("stride", "pool"):
            raise ValueError(f"downsample: got {downsample!r}, expected 'stride' or 'pool'")
        self.downsample = downsample
        self.partition_in = as_partition(alpha_in, self.in_channels, groups=self.groups, name="alpha_in")
        self.partition_out = as_partition(alpha_out, self.out_channels, groups=self.groups, name="alpha_out")
        self.stride = tuple(int(s) for s in self.stride)  # pytorchvideo passes numpy integers
        self.is_octave = not (self.partition_in.is_ordinary and self.partition_out.is_ordinary)
        num_spatial = min(2, len(self.kernel_size))
        self._strided = any(s != 1 for s in self.stride[-num_spatial:])
        # "pool" changes a convolution without low channels too: average pooling, then stride 1.
        self._pooled = self._strided and (self.is_octave or downsample == "pool")
        if self.is_octave or self._pooled:
            problem = octave_problem(self)
            if problem:
                raise ValueError(
                    f"OctConv: {problem}; keep this convolution ordinary (alpha_in = alpha_out = 0) and merge before it"
                )
        self._conv_stride = self.stride[: len(self.stride) - num_spatial] + (1,) * num_spatial
        args = (self.partition_in, self.partition_out, self.groups)
        self._hh = plan_path(*args, from_low=False, to_low=False)
        self._hl = plan_path(*args, from_low=False, to_low=True)
        self._lh = plan_path(*args, from_low=True, to_low=False)
        self._ll = plan_path(*args, from_low=True, to_low=True)

    def forward(self, input: Tensor | Octave) -> Tensor | Octave:  # type: ignore[override]
        """Convolve.

        Args:
            input: (N, C_in, [T,] H, W), or an Octave of it where `partition_in` has low channels.

        Returns:
            A Tensor (N, C_out, [T',] H', W') where `partition_out` has no low channel, else an Octave; sizes
            are the ordinary convolution's.
        """
        high, low = self._unpack(input)
        if not self.is_octave and not self._pooled:
            return self._conv_forward(high, self.weight, self.bias)
        size = spatial_size(high)  # of y_high
        if self._pooled:  # from here on, high and low both have the resolution of y_high
            size = tuple((s + 1) // 2 for s in size)
            high = pool_down(high) if high.shape[1] else high.new_empty(*high.shape[: -len(size)], *size)
        y_high = self._run(self._hh, high, None, low=False)
        y_low = None
        if low is not None:
            if self._pooled:
                y_high = self._run(self._lh, low, y_high, low=False)
                low = pool_down(low) if self._ll else low
            elif self._lh is not None:
                y_high = self._run(self._lh, low, y_high, low=False, upsample_to=size)
            y_low = self._run(self._ll, low, None, low=True)
        if self._hl is not None:
            pooled = pool_down(take_channels(high, self._hl.inputs))
            y_low = self._run(self._hl, pooled, y_low, low=True, taken=True)
        if self.partition_out.is_ordinary:
            assert y_high is not None
            return y_high
        assert y_low is not None
        if y_high is None:  # alpha_out = 1: no high channel, but the full size is kept
            y_high = y_low.new_empty(y_low.shape[0], 0, *y_low.shape[2 : y_low.dim() - len(size)], *size)
        return Octave(y_high, y_low)

    def _unpack(self, x: Tensor | Octave) -> tuple[Tensor, Tensor | None]:
        expects_octave = not self.partition_in.is_ordinary
        if isinstance(x, Octave) != expects_octave:
            want = f"an Octave ({len(self.partition_in.low)} low channels)" if expects_octave else "a Tensor"
            raise TypeError(
                f"OctConv with {self.partition_in} in: expected {want}, got {type(x).__name__}; use split() or merge()"
            )
        if not isinstance(x, Octave):
            return x, None
        expected = tuple((s + 1) // 2 for s in spatial_size(x.high))
        if spatial_size(x.low) != expected:
            raise ValueError(
                f"Octave sizes do not fit: high {tuple(x.high.shape)} needs low of spatial size {expected}, "
                f"got {tuple(x.low.shape)}"
            )
        return x.high, x.low

    def _run(
        self,
        path: ConvPath | None,
        x: Tensor,
        total: Tensor | None,
        *,
        low: bool,
        upsample_to: tuple[int, ...] | None = None,
        taken: bool = False,
    ) -> Tensor | None:
        """Add a path's result to `total` (None: nothing yet); the first path of a target adds the bias."""
        if path is None:
            return total
        target = self.partition_out.low if low else self.partition_out.high
        bias = None
        if self.bias is not None and total is None:
            bias = take_channels(self.bias, as_channel_index(target), 0)
        x = x if taken else take_channels(x, path.inputs)
        y = self._convolve(x, path.weight(self.weight), bias if path.covers_target else None, path.groups)
        if upsample_to is not None:
            y = upsample(y, upsample_to)
        if path.covers_target:
            return y if total is None else total + y
        if total is None:
            total = y.new_zeros(y.shape[0], len(target), *y.shape[2:])
            if bias is not None:
                total = total + bias.to(y.dtype).reshape(-1, *([1] * (y.dim() - 2)))
        outputs = path.outputs
        if isinstance(outputs, slice):
            outputs = tuple(range(outputs.start, outputs.stop))
        # Under autocast the two can differ: on a CPU, upsampling returns float32.
        return total.index_add(1, torch.tensor(outputs, device=y.device), y.to(total.dtype))

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            x = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        conv = (F.conv1d, F.conv2d, F.conv3d)[len(self.kernel_size) - 1]
        return conv(x, weight, bias, self._conv_stride, padding, self.dilation, groups)

    def extra_repr(self) -> str:
        octave = f", alpha_in={self.partition_in.alpha:.3g}, alpha_out={self.partition_out.alpha:.3g}"
        return super().extra_repr() + octave + (", downsample=pool" if self._pooled else "")


def octave_problem(conv: nn.modules.conv._ConvNd) -> str | None:
    """Why `conv` cannot work on two resolutions (or by pooling), or None where it can.

    Both maps fit if, in each halved axis, 2 * padding = dilation * (kernel - 1) and the stride is 1 or 2.
    """
    axes = ("L",) if len(conv.kernel_size) == 1 else ("H", "W")
    if len({int(s) for s in conv.stride[-len(axes) :]}) > 1:
        return f"stride {tuple(conv.stride)} differs between H and W"
    for n, axis in enumerate(axes, start=-len(axes)):
        kernel, stride, dilation = int(conv.kernel_size[n]), int(conv.stride[n]), int(conv.dilation[n])
        if stride not in (1, 2):
            return f"stride {stride} in {axis}, expected 1 or 2"
        needed = dilation * (kernel - 1)
        if conv.padding == "same":
            padding = needed / 2 if needed % 2 == 0 else -1.0
        else:
            padding = 0 if conv.padding == "valid" else int(conv.padding[n])
        if 2 * padding != needed:
            want = f"padding {needed // 2}" if needed % 2 == 0 else "an odd kernel"
            return (
                f"kernel {kernel}, dilation {dilation} and padding {conv.padding} in {axis} do not keep the "
                f"size, expected {want}"
            )
    return None


class OctConv1d(_OctConvNd, nn.Conv1d):  # type: ignore[misc]
    """Octave convolution of signals (N, C, L); L is halved. See `OctConv3d`."""


class OctConv2d(_OctConvNd, nn.Conv2d):  # type: ignore[misc]
    """Octave convolution of images (N, C, H, W). See `OctConv3d`."""


class OctConv3d(_OctConvNd, nn.Conv3d):  # type: ignore[misc]
    """Octave convolution of clips (N, C, T, H, W): H and W are halved, time is kept.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode: as
            nn.Conv3d; so are `weight` and `bias`, whatever the alphas.
        alpha_in: share of low channels of the input (0: a Tensor), or the Partition of them.
        alpha_out: the same of the output.
        downsample: "pool" makes a strided convolution pool first even where both alphas are 0.

    Raises:
        ValueError: where the kernel does not fit two resolutions, with the padding that would.

    Example:
        >>> first = OctConv3d(16, 32, 3, padding=1, alpha_in=0, alpha_out=0.25)
        >>> last = OctConv3d(32, 16, 1, alpha_in=0.25, alpha_out=0)
        >>> last(first(torch.zeros(1, 16, 4, 15, 15))).shape
        torch.Size([1, 16, 4, 15, 15])
    """

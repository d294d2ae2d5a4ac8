"""OctConvTranspose1d/2d/3d: one transposed convolution weight, used in four parts between two resolutions.

With x = (x_high, x_low) and the ordinary weight (C_in, C_out / groups, ...) cut into W_hh, W_lh, W_hl, W_ll
(source first)::

    y_high = convT(x_high; W_hh) + up(convT(x_low; W_lh))
    y_low  = convT(x_low;  W_ll) + convT(down(x_high); W_hl)

Both maps grow by the stride, so low stays half of high; y_low is cropped where high is odd. The paper has no
such layer: this is its formula with another convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from octvideo.octave.factor import low_size
from octvideo.octave.features import Octave
from octvideo.octave.layer import OctaveLayer
from octvideo.octave.partition import Partition
from octvideo.octave.paths import ConvPath, Exchange, Paths
from octvideo.octave.resample import crop


class OctConvTransposeNd(OctaveLayer):
    """What OctConvTranspose1d/2d/3d share; mixed in before the ordinary class."""

    output_padding: tuple[int, ...]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] = 0,
        output_padding: int | tuple[int, ...] = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | tuple[int, ...] = 1,
        padding_mode: str = "zeros",
        *,
        alpha_in: float | Partition,
        alpha_out: float | Partition,
        factor: Sequence[int] | None = None,
        exchange: Exchange = "both",
        **factory: Any,
    ) -> None:
        geometry: tuple[Any, ...] = (kernel_size, stride, padding, output_padding, groups, bias, dilation, padding_mode)
        super().__init__(in_channels, out_channels, *geometry, **factory)
        self.set_octave(alpha_in, alpha_out, factor=factor, exchange=exchange)

    def set_octave(
        self,
        alpha_in: float | Partition,
        alpha_out: float | Partition,
        *,
        factor: Sequence[int] | None = None,
        exchange: Exchange = "both",
    ) -> None:
        """Choose which channels are low, and how the paths work; the weights are not touched.

        Args:
            alpha_in, alpha_out, factor, exchange: see `OctConvTranspose3d`.

        Raises:
            ValueError: if a choice is unknown, or if the two maps would not fit for this kernel, padding,
                output_padding and stride.
        """
        paths = self._choose_channels(alpha_in, alpha_out, factor, exchange)
        if self.is_octave:
            self._check()
        self._set_paths(
            Paths(
                hh=paths.hh,
                hl=paths.hl and replace(paths.hl, pool=self.factor),
                lh=paths.lh and replace(paths.lh, up=self.factor),
                ll=paths.ll,
            )
        )

    def forward(  # type: ignore[override]
        self, input: Tensor | Octave, output_size: Sequence[int] | None = None
    ) -> Tensor | Octave:
        """Convolve.

        Args:
            input: (N, C_in, [T,] H, W), or an Octave of it where `partition_in` has low channels.
            output_size: as nn.ConvTranspose3d's; only where no channel is low.

        Returns:
            A Tensor (N, C_out, [T',] H', W') where `partition_out` has no low channel, else an Octave; sizes
            are the ordinary layer's, stride times the input's in each halved axis.

        Raises:
            TypeError: if a Tensor comes where low channels are expected, or the other way round.
            ValueError: if the sizes of the two maps do not fit together, or `output_size` is given although
                channels are low.
        """
        high, low = self._unpack(input)
        spatial = high.shape[-len(self.stride) :]
        if output_size is not None:
            if self.is_octave:
                raise ValueError(
                    f"{type(self).__name__}: got output_size {tuple(output_size)}, but with low channels the size is "
                    "stride times the input's; leave it out, or crop the merged result"
                )
            num_axes = len(self.stride)
            extra = self._output_padding(  # type: ignore[operator]
                high, list(output_size), self.stride, self.padding, self.kernel_size, num_axes, self.dilation
            )
            assert self.paths.hh is not None
            return self._convolve(high, self.paths.hh, self.weight, self.bias, output_padding=tuple(extra))
        size = tuple(n * s for n, s in zip(spatial, self.stride, strict=True))
        return self._run(high, low, size)  # type: ignore[return-value]  # it gives no parts

    def _convolve(
        self,
        x: Tensor,
        path: ConvPath,
        weight: Tensor,
        bias: Tensor | None,
        *,
        output_padding: tuple[int, ...] | None = None,
    ) -> Tensor:
        conv = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[len(self.kernel_size) - 1]
        extra: Any = self.output_padding if output_padding is None else output_padding
        return conv(x, weight, bias, self.stride, self.padding, extra, path.groups, self.dilation)  # type: ignore[arg-type]

    def _run_paths(
        self, high: Tensor, low: Tensor | None, weight: Tensor, size: Sequence[int], joined: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        y_high, *y_low = super()._run_paths(high, low, weight, size, joined)
        # stride * ceil(n / 2) can be more than ceil(stride * n / 2).
        return y_high, *[crop(y, low_size(y_high.shape[2:], self.factor)) for y in y_low]


class OctConvTranspose1d(OctConvTransposeNd, nn.ConvTranspose1d):  # type: ignore[misc]
    """Transposed octave convolution of signals (N, C, L). See `OctConvTranspose3d`."""


class OctConvTranspose2d(OctConvTransposeNd, nn.ConvTranspose2d):  # type: ignore[misc]
    """Transposed octave convolution of images (N, C, H, W). See `OctConvTranspose3d`."""


class OctConvTranspose3d(OctConvTransposeNd, nn.ConvTranspose3d):  # type: ignore[misc]
    """Transposed octave convolution of clips (N, C, T, H, W); by default H and W are halved, time is not.

    Args:
        in_channels, out_channels, kernel_size, stride, padding: as nn.ConvTranspose3d.
        output_padding, groups, bias, dilation, padding_mode: the same; so are `weight` and `bias`, at any alpha.
        alpha_in: share of low channels of the input (0: a Tensor), or the Partition of them.
        alpha_out: the same of the output.
        factor: which axes the low map halves, as `OctConv3d`.
        exchange: which of the paths between the two frequencies run, as `OctConv3d`.

    Raises:
        ValueError: where the kernel does not give stride times the size in a halved axis, with the padding
            that would.

    Example:
        >>> first = OctConvTranspose3d(16, 8, (1, 4, 4), (1, 2, 2), (0, 1, 1), alpha_in=0, alpha_out=0.25)
        >>> y = first(torch.zeros(1, 16, 4, 7, 7))
        >>> y.high.shape, y.low.shape
        (torch.Size([1, 6, 4, 14, 14]), torch.Size([1, 2, 4, 7, 7]))
    """

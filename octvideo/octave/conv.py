"""OctConv1d/2d/3d: one ordinary convolution weight, used in four parts between two resolutions.

With x = (x_high, x_low), W cut into W_hh, W_lh, W_hl, W_ll (source first) and stride 1 (arXiv 1904.05049,
section 3)::

    y_high = conv(x_high; W_hh) + up(conv(x_low; W_lh))
    y_low  = conv(x_low;  W_ll) + conv(down(x_high); W_hl)

Resolutions are counted axis by axis. In an axis that `factor` halves, stride 2 pools the inputs first and
convolves with stride 1, so low already has the resolution of y_high there, and nothing is upsampled. In the
other axes both maps have one resolution, and every path strides as the ordinary convolution does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from octvideo.octave.features import Octave, Parts
from octvideo.octave.layer import OctaveLayer, convolve
from octvideo.octave.ordinary import pad_same
from octvideo.octave.partition import Partition
from octvideo.octave.paths import ConvPath, Downsample, Exchange, OctaveDownsample, Paths
from octvideo.octave.resample import pool_down


class OctConvNd(OctaveLayer):
    """What OctConv1d/2d/3d share; mixed in before the ordinary class, whose constructor and weights stay."""

    downsample: Downsample
    octave_downsample: OctaveDownsample

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
        factor: Sequence[int] | None = None,
        octave_downsample: OctaveDownsample = "pool",
        exchange: Exchange = "both",
        **factory: Any,
    ) -> None:
        geometry: tuple[Any, ...] = (kernel_size, stride, padding, dilation, groups, bias, padding_mode)
        super().__init__(in_channels, out_channels, *geometry, **factory)
        self.set_octave(
            alpha_in,
            alpha_out,
            downsample=downsample,
            factor=factor,
            octave_downsample=octave_downsample,
            exchange=exchange,
        )

    def set_octave(
        self,
        alpha_in: float | Partition,
        alpha_out: float | Partition,
        *,
        downsample: Downsample = "stride",
        factor: Sequence[int] | None = None,
        octave_downsample: OctaveDownsample = "pool",
        exchange: Exchange = "both",
    ) -> None:
        """Choose which channels are low, and how the paths work; the weights are not touched.

        Args:
            alpha_in, alpha_out, downsample, factor, octave_downsample, exchange: see `OctConv3d`.

        Raises:
            ValueError: if a choice is unknown, or if the two maps would not fit for this kernel, padding and
                stride.
        """
        for name, choice, kind in (
            ("downsample", downsample, Downsample),
            ("octave_downsample", octave_downsample, OctaveDownsample),
        ):
            if choice not in get_args(kind):
                raise ValueError(f"{name}: got {choice!r}, expected {' or '.join(map(repr, get_args(kind)))}")
        self.downsample, self.octave_downsample = downsample, octave_downsample
        paths = self._choose_channels(alpha_in, alpha_out, factor, exchange)
        way: OctaveDownsample = octave_downsample if self.is_octave else downsample
        strided = tuple(2 if f == 2 and s != 1 else 1 for f, s in zip(self.factor, self.stride, strict=True))
        # An ordinary convolution can pool too: it then gives up its stride, as in the official networks.
        self.pool_first = strided if way == "pool" and 2 in strided else None
        if self.is_octave or self.pool_first is not None:
            self._check()
        paths = self._with_resolutions(paths, way)
        if self.form.is_same:  # at stride 1 TensorFlow's rule is plain padding, but of even kernels
            needed = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            self.padding = tuple(n // 2 for n in needed)
            strides = [path.stride for path in (paths.hh, paths.hl, paths.lh, paths.ll) if path is not None]
            moves = max(map(max, strides)) > 1 or any(n % 2 for n in needed)
            self.padding_mode = "tensorflow" if moves else "zeros"  # type: ignore[assignment]
        self._set_paths(paths)

    def _with_resolutions(self, paths: Paths, way: OctaveDownsample) -> Paths:
        """The paths with what each has to pool, stride and upsample, axis by axis."""
        both = tuple(zip(self.factor, self.stride, strict=True))
        one_resolution = tuple(s if f == 1 else 1 for f, s in both)  # strides left where pooling does the rest
        upsampled = tuple(2 if f == 2 and s == 1 else 1 for f, s in both)
        up = upsampled if 2 in upsampled else None
        stride = one_resolution if way == "pool" else self.stride  # x_high is pooled by pool_first before any path
        to_low: dict[str, Any] = {"stride": tuple(f * s for f, s in both)} if way == "stride" else {"pool": self.factor}
        return Paths(
            hh=paths.hh and replace(paths.hh, stride=stride),
            hl=paths.hl and replace(paths.hl, **{"stride": stride, **to_low}),
            lh=paths.lh and replace(paths.lh, stride=one_resolution, up=up),
            ll=paths.ll and replace(paths.ll, stride=stride, pool=self.pool_first),
        )

    def forward(  # type: ignore[override]
        self, input: Tensor | Octave, joined: Tensor | None = None
    ) -> Tensor | Octave | Parts:
        """Convolve.

        Args:
            input: (N, C_in, [T,] H, W), or an Octave of it where `partition_in` has low channels.
            joined: (N, C_in, [T,] h, w), x_high pooled and then x_low, where that is at hand and `reads_joined`.

        Returns:
            A Tensor (N, C_out, [T',] H', W') where `partition_out` has no low channel, else an Octave; sizes
            are the ordinary convolution's. `Parts` if it `gives_parts`.

        Raises:
            TypeError: if a Tensor comes where low channels are expected, or the other way round.
            ValueError: if the sizes of the two maps do not fit together.
        """
        high, low = self._unpack(input)
        joined = joined if self.reads_joined else None
        spatial = high.shape[-len(self.stride) :]
        size = tuple((n + s - 1) // s for n, s in zip(spatial, self.stride, strict=True))
        if self.pool_first is not None and joined is None:
            high = pool_down(high, self.pool_first)
        return self._run(high, low, size, joined)

    def _convolve(self, x: Tensor, path: ConvPath, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding: Any = self.padding
        if self.padding_mode == "tensorflow":
            x, padding = pad_same(x, self.kernel_size, path.stride, self.dilation), (0,) * len(self.kernel_size)
        elif self.padding_mode != "zeros":
            x = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = (0,) * len(self.kernel_size)
        elif padding == "same" and max(path.stride) > 1:  # torch refuses "same" with a stride
            x, padding = F.pad(x, self._reversed_padding_repeated_twice), (0,) * len(self.kernel_size)
        return convolve(x, weight, bias, path.stride, padding, self.dilation, path.groups)

    def extra_repr(self) -> str:
        text = super().extra_repr() + (", downsample=pool" if self.pool_first else "")
        way = self.octave_downsample
        return text if way == "pool" else f"{text}, octave_downsample={way}"


class OctConv1d(OctConvNd, nn.Conv1d):  # type: ignore[misc]
    """Octave convolution of signals (N, C, L); L is halved. See `OctConv3d`."""


class OctConv2d(OctConvNd, nn.Conv2d):  # type: ignore[misc]
    """Octave convolution of images (N, C, H, W). See `OctConv3d`."""


class OctConv3d(OctConvNd, nn.Conv3d):  # type: ignore[misc]
    """Octave convolution of clips (N, C, T, H, W); by default H and W are halved, time is kept.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode: as
            nn.Conv3d; so are `weight` and `bias`, whatever the alphas.
        alpha_in: share of low channels of the input (0: a Tensor), or the Partition of them.
        alpha_out: the same of the output.
        downsample: "pool" makes a strided convolution pool first even where both alphas are 0.
        factor: which axes the low map halves, 1 or 2 for each of (T, H, W); None is (1, 2, 2), the paper's.
            (2, 2, 2) is the time octave: low channels at half the frame rate.
        octave_downsample: how maps shrink where an alpha is not 0. "pool" averages, then convolves with
            stride 1 (the paper's choice); "stride" lets the convolutions stride in place of pooling ("strided
            conv." in the paper's Table 3); "keep" pools from high to low, and keeps the layer's stride. Sizes are the
            same.
        exchange: which of the paths between the two frequencies run (the paper's Table 3). `weight` keeps its
            shape, its unused part gets zero gradients. A path that is some channel's only way in or out runs
            all the same, as in the first and the last octave layer.

    Raises:
        ValueError: where the kernel does not fit two resolutions, with the padding that would.

    Example:
        >>> first = OctConv3d(16, 32, 3, padding=1, alpha_in=0, alpha_out=0.25)
        >>> last = OctConv3d(32, 16, 1, alpha_in=0.25, alpha_out=0)
        >>> last(first(torch.zeros(1, 16, 4, 15, 15))).shape
        torch.Size([1, 16, 4, 15, 15])
    """

"""In which form the operations run: the one place that decides it, with the figures that say why.

The same sums can be asked of torch in several ways, whose times differ by factors, and the best way depends
on the layout. Everything here is for the CPU and channels-last maps (octvideo/octave/layout.py);
torch.compile on the CPU gets the same forms. Other maps, CUDA and exports (octvideo/octave/export_form.py) get
torch's own operations.

Milliseconds below: one thread of an AMD EPYC (AVX2), torch 2.14, float32; tools/benchmark.py measures whole
networks. Nothing in this file needs an octave pair: `arrange` does the same for ordinary networks.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octvideo.octave.fused_training import TrainedConv, trains
from octvideo.octave.layout import fold_frames, fold_space, is_channels_last, unfold_frames, unfold_space

Sizes = tuple[int, ...]


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Any,
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """F.conv1d, conv2d or conv3d of `x` (with zeros outside), in the fastest form for its layout.

    Args:
        x: (N, C_in, [T,] [H,] W).
        weight: (C_out, C_in / groups, ...).
        bias: (C_out,) or None.
        stride, dilation: one number for each axis of the kernel.
        padding: likewise, or torch's words "same" and "valid".
        groups: as in torch.
    """
    axes = weight.dim() - 2
    if axes >= 2 and x.dim() == axes + 2 and not isinstance(padding, str) and is_channels_last(x):
        pixelwise = weight.shape[-1] == weight.shape[-2] == 1 == max(stride)
        if pixelwise and bias is None and groups == 1 and trains(x, weight):
            conv = _trained(weight.shape, tuple(padding), tuple(dilation))
            if conv is not None:
                return conv(x, None, weight, functools.partial(_by_torch, padding, dilation))[0]
        if axes == 2:
            return _convolve_images(x, weight, bias, stride, padding, dilation, groups)
        return _convolve_clips(x, weight, bias, stride, padding, dilation, groups)
    return (F.conv1d, F.conv2d, F.conv3d)[axes - 1](x, weight, bias, stride, padding, dilation, groups)


@functools.cache
def _trained(shape: tuple[int, ...], padding: tuple[Any, ...], dilation: tuple[int, ...]) -> TrainedConv | None:
    """What trains a convolution whose kernel is one pixel wide and high."""
    return None if any(padding[-2:]) else TrainedConv.of(shape[2:], padding, dilation, (shape[1], 0), (shape[0], 0))


def _by_torch(padding: Any, dilation: Any, x: Tensor, _: None, weight: Tensor) -> tuple[Tensor]:
    convolution: Any = F.conv2d if weight.dim() == 4 else F.conv3d
    return (convolution(x, weight, None, 1, padding, dilation),)


def _convolve_images(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> Tensor:
    """(N, C, H, W), channels last."""
    # A kernel of one pixel has nothing to dilate, but torch gives dilated convolutions to oneDNN, and others of few
    # maps on one thread to a loop of its own: 64 to 256 channels on 8x56x56 12.1 against 15.9.
    is_pointwise = tuple(weight.shape[2:]) == (1, 1) and groups == 1 and tuple(padding) == (0, 0)
    if is_pointwise and not torch.compiler.is_compiling():
        dilation = (2, 2)
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


def _convolve_clips(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> Tensor:
    """(N, C, T, H, W), channels last. A kernel without an extent in time, or in space, becomes two-dimensional.

    On one thread torch gives conv3d to a loop of its own: 256 to 64 channels, 3x1x1 on 8x56x56, 138 (conv3d)
    against 38; 1x1x1 of as many 38 against 14.
    """
    if weight.shape[2] == 1 and padding[0] == 0:
        frames = fold_frames(x if stride[0] == 1 else x[:, :, :: stride[0]])
        y = _convolve_images(frames, weight.squeeze(2), bias, stride[1:], padding[1:], dilation[1:], groups)
        return unfold_frames(y, x.shape[0])
    if tuple(weight.shape[3:]) == tuple(stride[1:]) == (1, 1) and tuple(padding[1:]) == (0, 0):
        kernel, stride, padding, dilation = weight.squeeze(4), (stride[0], 1), (padding[0], 0), (dilation[0], 1)
        y = F.conv2d(fold_space(x), kernel, bias, stride, padding, dilation, groups)  # (N,C_out,T',H·W)
        return unfold_space(y, x.shape[3:])
    return F.conv3d(x, weight, bias, stride, padding, dilation, groups)


def max_pool(x: Tensor, kernel: Sizes, stride: Sizes, padding: Sizes, *, ceil_mode: bool = False) -> Tensor:
    """F.max_pool3d of clips (N, C, T, H, W); of pairs of frames as one maximum, where no gradient is wanted.

    Pairs of 256x8x56x56: 5.9 as a pool and 1.6 as a maximum.
    """
    t = x.shape[2]
    pairs = kernel == stride == (2, 1, 1) and not any(padding) and not (ceil_mode and t % 2)
    if pairs and is_channels_last(x) and not x.requires_grad:
        return torch.maximum(x[:, :, 0 : t - t % 2 : 2], x[:, :, 1::2])  # (N,C,T//2,H,W)
    return F.max_pool3d(x, kernel, stride, padding, ceil_mode=ceil_mode)


class _ArrangedConv:
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.padding_mode != "zeros":  # type: ignore[attr-defined]
            return super()._conv_forward(input, weight, bias)  # type: ignore[misc]
        return convolve(input, weight, bias, self.stride, self.padding, self.dilation, self.groups)  # type: ignore


class ArrangedConv2d(_ArrangedConv, nn.Conv2d):  # type: ignore[misc]
    """nn.Conv2d by `convolve`."""


class ArrangedConv3d(_ArrangedConv, nn.Conv3d):  # type: ignore[misc]
    """nn.Conv3d by `convolve`."""


def arrange(network: nn.Module) -> nn.Module:
    """Give a network channels-last weights, and its ordinary convolutions the forms of this file.

    Octave layers choose theirs by themselves. Results agree to rounding; keys, parameters and hooks stay; it
    trains, pickles and copies as before. On CUDA it is channels-last weights alone.

    Args:
        network: any; changed in place. Feed it channels-last maps: clips.to(memory_format=torch.channels_last_3d).

    Returns:
        The network.
    """
    classes: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: ArrangedConv2d, nn.Conv3d: ArrangedConv3d}
    for module in network.modules():
        if type(module) in classes:
            module.__class__ = classes[type(module)]
    for parameter in network.parameters():
        layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(parameter.dim())
        if layout is not None:
            parameter.data = parameter.data.contiguous(memory_format=layout)
    return network

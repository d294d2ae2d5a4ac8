"""Ordinary convolutions in the form that is fast for their layout: `arrange` gives it to a whole network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from octvideo.octave.layer import convolve


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

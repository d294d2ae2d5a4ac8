"""What the channels of a network hold: of each layer, the share of variance that half resolution cannot hold.

A channel x becomes up(pool x) where it is stored at half resolution. `octvideo.octave.Calibration` measures the same
of all values that it would store alike. Here it is of what each convolution writes, in networks of any kind and in
octave networks too. A batch norm after the convolution changes nothing: it scales and shifts a channel as a whole.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from octvideo.errors import UserError
from octvideo.octave import Octave
from octvideo.octave.conversion.spectrum import detail_and_energy
from octvideo.octave.factor import as_factor

_LEAST_PX = 2  # of a map's sides: a single pixel has no frequencies


@dataclass(frozen=True)
class LayerSpectrum:
    """Of what one convolution writes.

    Args:
        lost: of each channel, the share of its variance that half of its own resolution cannot hold, float64 (C,), in
            the order of the weight's rows. The rest survives pooling by 2 and repeating. Of a channel that is stored
            low the own resolution is half already.
        low: which channels are stored at half resolution, bool (C,).
        size: height and width of its maps, of those at full resolution.
    """

    lost: np.ndarray
    low: np.ndarray
    size: tuple[int, int]


@torch.no_grad()
def channel_spectra(network: nn.Module, clips: Iterable[Tensor]) -> Mapping[str, LayerSpectrum]:
    """Measures all convolutions whose maps have two rows and columns or more, in the order of computing.

    Args:
        network: clips to logits; it is run in eval, and left as it is.
        clips: what it takes, one call each, normalised: (1, 3, T, H, W).

    Raises:
        UserError: no clip, or no such convolution.

    Example:
        >>> from octvideo.models import i3d_small
        >>> found = channel_spectra(i3d_small(num_classes=5, alpha=0.25), [torch.randn(1, 3, 4, 64, 64)])
        >>> found["blocks.1.res_blocks.0.branch2.conv_a"].low.tolist()[-5:]
        [False, True, True, True, True]
    """
    sums: dict[str, list[tuple[Tensor, Tensor]]] = {}
    sizes: dict[str, tuple[int, int]] = {}
    convs = {name: module for name, module in network.named_modules() if isinstance(module, nn.modules.conv._ConvNd)}

    def add(name: str, module: nn.Module, args: Any, result: Any) -> None:
        parts = list(result) if isinstance(result, Octave) else [result]
        if parts[0].dim() < 4 or min(parts[0].shape[-2:]) < _LEAST_PX:
            return
        sizes[name] = tuple(parts[0].shape[-2:])  # type: ignore[assignment]
        found = sums.setdefault(name, [(torch.zeros(()), torch.zeros(()))] * len(parts))
        for n, x in enumerate(parts):
            if x.shape[1]:
                more = detail_and_energy(x.float(), as_factor(None, x.dim() - 2))  # (N,C)
                detail, energy = (each.sum(0).double().cpu() for each in more)
                found[n] = found[n][0] + detail, found[n][1] + energy

    was_training = network.training
    num_clips = 0
    with ExitStack() as stack:
        stack.callback(network.train, was_training)
        network.eval()
        for name, conv in convs.items():
            handle = conv.register_forward_hook(functools.partial(add, name))
            stack.callback(handle.remove)
        for clip in clips:
            network(clip)
            num_clips += 1
    if not num_clips:
        raise UserError("spectrum: got no clip to measure on")
    if not sums:
        raise UserError(
            f"spectrum: no convolution of {type(network).__name__} gives maps of {_LEAST_PX} pixels or more"
        )
    return {name: _spectrum(convs[name], parts, sizes[name]) for name, parts in sums.items()}


def _spectrum(conv: nn.Module, parts: list[tuple[Tensor, Tensor]], size: tuple[int, int]) -> LayerSpectrum:
    shares = [(detail / energy.clamp_min(1e-30)).clamp(0, 1).numpy() for detail, energy in parts]
    if len(shares) == 1:
        return LayerSpectrum(shares[0], np.zeros(len(shares[0]), bool), size)
    partition: Any = conv.partition_out
    lost, low = np.zeros(partition.num_channels), np.zeros(partition.num_channels, bool)
    for channels, own in zip((partition.high, partition.low), shares, strict=True):
        lost[list(channels)] = own
    low[list(partition.low)] = True
    return LayerSpectrum(lost, low, size)

"""Networks that see frames one by one, or in pairs: what they compute of some frames serves every clip with these.

C2D and image networks mix nothing over time before they average: their logits of a clip are the mean of those of its
units, which are single frames, or the pairs that C2D pools. A unit is a short clip, so the same network computes it,
and clips that overlap share units: with windows half over each other, half of the work.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_SIZES = (1, 2, 4)  # frames of a unit
_PROBE_PX = 64  # side of the clips that a network is probed with, at most
_SAME = 1e-7  # of the logits' size, in float64


@dataclass(frozen=True)
class FrameUnits:
    """How a clip falls into units.

    Args:
        frames: of a unit, one after the other in the clip.
        weights: of the units' logits in those of the clip, float32 (n,); they sum to 1. Frames after the last unit
            count for nothing.
    """

    frames: int
    weights: Tensor


def find_frame_units(network: nn.Module, clip_frames: int, crop_px: int) -> FrameUnits | None:
    """The smallest units of a network; None where it mixes all frames, or units can't be told.

    It is found by trying: in float64, on noise, of which every frame is another. What mixes frames anywhere but by a
    mean shows. Networks with convolutions over time are not tried.

    Args:
        network: clips (N, 3, T, H, W) to logits (N, K); left as it is.
        clip_frames: T.
        crop_px: H and W.
    """
    if not may_have_units(network):
        return None
    try:
        probed = copy.deepcopy(network).eval().cpu().double()
    except Exception:  # a network that can't be copied is run in the ordinary way
        return None
    side = min(crop_px, _PROBE_PX)
    noise = torch.randn(2, 3, clip_frames, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = _logits(probed, noise)
        if expected is None:
            return None
        for frames in _SIZES:
            num_units = clip_frames // frames
            if num_units < 2:
                break
            clips = noise[:, :, : num_units * frames].unflatten(2, (num_units, frames))  # (N,3,n,f,H,W)
            logits = _logits(probed, clips.transpose(1, 2).flatten(0, 1))  # (N·n,K)
            if logits is None:
                continue
            of_units = logits.unflatten(0, (len(noise), num_units))  # (N,n,K)
            for head_frames in sorted({num_units, *_head_kernels(network)}, reverse=True):
                weights = sliding_weights(num_units, head_frames)
                found = torch.einsum("n,bnk->bk", weights.double(), of_units)
                if (found - expected).abs().max() <= _SAME * expected.abs().max():
                    return FrameUnits(frames, weights)
    return None


def may_have_units(network: nn.Module) -> bool:
    """Whether a network has no convolution over time, so that `find_frame_units` is worth a try."""
    return not any(weight.ndim == 5 and weight.shape[2] > 1 for weight in network.parameters())


def sliding_weights(num_units: int, kernel: int) -> Tensor:
    """What each unit counts in the mean of all places of a sliding mean over `kernel` units, float32 (num_units,)."""
    kernel = min(kernel, num_units)
    counts = torch.ones(1, 1, num_units - kernel + 1), torch.ones(1, 1, kernel)
    weights = nn.functional.conv_transpose1d(*counts)[0, 0]
    return weights / weights.sum()


def _head_kernels(network: nn.Module) -> set[int]:
    """Frames of the pools in heads, which slide over longer clips."""
    found = set()
    for module in network.modules():
        kernel = getattr(module, "pool_kernel", None) or getattr(module, "kernel_size", None)
        if not isinstance(module, nn.MaxPool3d) and isinstance(kernel, tuple) and len(kernel) == 3:
            found.add(int(kernel[0]))
    return found - {1}


def _logits(network: Callable[[Tensor], Tensor], clips: Tensor) -> Tensor | None:
    """None where the network takes no such clips, or not in float64."""
    try:
        logits = network(clips)
    except Exception:  # networks are anybody's, and so are their errors
        return None
    return logits if isinstance(logits, Tensor) and logits.ndim == 2 and logits.isfinite().all() else None

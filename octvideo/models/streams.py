"""Frames of a stream one by one, through a network of images whose temporal shift looks back only."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from octvideo.errors import UserError
from octvideo.models.library import FrameNetwork
from octvideo.octave import Octave, TemporalShift, prepare_inference, takes_num_frames
from octvideo.octave.kernel.layout import channels_last


class FrameStream:
    """Computes each frame of a stream once, and keeps what the next one's shifts need of it.

    The mean of the logits of T frames after a reset is what the network gives for the clip of these frames.

    Args:
        network: of `frame_network(..., shift=..., online=True)`, ordinary or octave, or without any shift; not changed.

    Raises:
        UserError: the network sees the next frame.

    Example:
        >>> stream = FrameStream(frame_network("torchvision:resnet18", 5, shift=0.125, online=True))
        >>> torch.stack([stream.step(frame) for frame in torch.randn(4, 1, 3, 64, 64)]).mean(0).shape
        torch.Size([1, 5])
    """

    def __init__(self, network: FrameNetwork) -> None:
        images = copy.deepcopy(network.image_network)
        for path, module in list(images.named_modules()):
            if isinstance(module, TemporalShift):
                if not module.online:
                    raise UserError(
                        "this network's shift takes channels of the next frame: train one with online: true"
                    )
                images.set_submodule(path, _KeptShift(module))
        self._takes_num_frames = takes_num_frames(images)
        self._images = prepare_inference(images)
        self._kept = [module for module in self._images.modules() if isinstance(module, _KeptShift)]
        self._shape: tuple[int, ...] | None = None

    def reset(self) -> None:
        """Begins another stream: the next frame has none before it."""
        self._shape = None
        for shift in self._kept:
            shift.maps = None

    @torch.inference_mode()
    def step(self, frames: Tensor) -> Tensor:
        """The logits (N, K) of the next frame of each of N streams, (N, 3, H, W).

        Raises:
            UserError: it has another shape than the frame before.
        """
        shape = tuple(frames.shape)
        if self._shape not in (None, shape):
            raise UserError(f"the frames have shape {shape}, expected {self._shape} as before: reset() begins anew")
        self._shape = shape
        frames = channels_last(frames)
        return self._images(frames, 1) if self._takes_num_frames else self._images(frames)


class _KeptShift(nn.Module):
    """A `TemporalShift` of one frame at a time, which keeps the channels that the next frame's takes.

    Args:
        shift: an online one.
    """

    def __init__(self, shift: TemporalShift) -> None:
        super().__init__()
        self.counts = (shift.high[1], shift.low[1])
        self.maps: list[Tensor] | None = None  # of the frame before; None at the start

    def forward(self, x: Tensor | Octave, num_frames: int) -> Tensor | Octave:
        """Frames (N, C, H, W) or a pair of them, to the same."""
        maps = list(x) if isinstance(x, Octave) else [x]
        new = [part[:, :count].clone() for part, count in zip(maps, self.counts, strict=False)]
        before = self.maps or [torch.zeros_like(part) for part in new]
        self.maps = new
        made = [torch.cat([old, part[:, old.shape[1] :]], 1) for old, part in zip(before, maps, strict=True)]
        return Octave(*made) if isinstance(x, Octave) else made[0]

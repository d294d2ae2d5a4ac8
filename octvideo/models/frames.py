"""Image networks on video: every frame by itself, the scores averaged over time.

This is C2D in the wide sense (arXiv 1711.07971 means by it a ResNet that pools over time inside): whatever is
known of image networks, the rows of the octave paper's image tables included, holds for each frame.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from octvideo.models.builders import Alpha, OctaveOptions, builder, make_octave
from octvideo.models.image_networks import image_network
from octvideo.octave import Downsample, OctaveReport

_RESNET_STAGES = ("layer1", "layer2", "layer3", "layer4")


class FrameNetwork(nn.Module):
    """Runs a network of images on each frame of a clip and averages the logits over time.

    Args:
        network: images (N, 3, H, W) to logits (N, K).

    Example:
        >>> FrameNetwork(torchvision.models.resnet18(num_classes=5))(torch.randn(2, 3, 4, 64, 64)).shape
        torch.Size([2, 5])
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.image_network = network
        self.meta: dict[str, Any] = {}  # as that of an OctaveNetwork

    def forward(self, clips: Tensor) -> Tensor:
        """Clips (N, 3, T, H, W) to logits (N, K)."""
        num_clips, num_frames = clips.shape[0], clips.shape[2]
        # Of clips in channels_last_3d this is a view, in channels_last.
        frames = clips.transpose(1, 2).flatten(0, 1)  # (N·T,3,H,W)
        logits = self.image_network(frames)  # (N·T,K)
        return logits.unflatten(0, (num_clips, num_frames)).mean(1)  # (N,K)

    def to(self, *args: Any, **kwargs: Any) -> FrameNetwork:
        """As nn.Module's; channels_last_3d, the clips' memory format, is channels_last for the frames."""
        if kwargs.get("memory_format") is torch.channels_last_3d:
            kwargs["memory_format"] = torch.channels_last
        return super().to(*args, **kwargs)

    @property
    def octave_report(self) -> OctaveReport:
        """What became octave and what could not, in the image network."""
        return self.image_network.octave_report  # type: ignore[return-value]


@builder(
    network="""of images: "torchvision:NAME" or "timm:NAME", as in the library's list_models(); nothing is
        downloaded.""",
    alpha="""share of low-frequency channels; 0 is the ordinary network. In ResNets the stem and the last of
        the four stages stay ordinary, as in the paper's video networks; elsewhere the stem does. Or shares of
        module path prefixes of the image network ({"layer1": 0.5}), 0 elsewhere.""",
    dropout="before the classifier; it takes the place of the network's own.",
)
def frame_network(
    network: str = "torchvision:resnet50",
    num_classes: int = 400,
    alpha: Alpha = 0.0,
    *,
    downsample: Downsample | None = None,
    octave: OctaveOptions | None = None,
    dropout: float = 0.5,
) -> nn.Module:
    """An image network of torchvision or timm on every frame, its logits averaged over time. Any T."""
    ordinary = image_network(network, num_classes, dropout=dropout)
    shares = alpha if isinstance(alpha, dict) else _shares(ordinary, alpha)
    return FrameNetwork(make_octave(ordinary, shares, downsample=downsample, octave=octave))


def _shares(network: nn.Module, alpha: float) -> Alpha:
    """Where a single share applies: res2 to res4 of a ResNet, else everywhere but in the stem."""
    if all(hasattr(network, stage) for stage in _RESNET_STAGES):
        return {stage: alpha for stage in _RESNET_STAGES[:-1]}
    return alpha

"""Networks with ImageNet weights that a package index has, and what they see in frames."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from octvideo.errors import UserError
from octvideo.octave import prepare_inference

_FRAMES_AT_ONCE = 16  # more leave the caches


@dataclass(frozen=True)
class ImageNetwork:
    """A network from frames (N, 3, H, W), or from clips (N, 3, T, H, W), to features (N, D).

    Args:
        build: makes it, with random weights.
        octave: path prefixes of its stages down to a sixteenth of the frame's size.
        mean, std: of the pixels that it was trained on, in [0, 1].
        inflate: makes it one of clips, once it has its weights; None where it stays one of frames.
    """

    build: Callable[[], nn.Module]
    octave: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    inflate: Callable[[nn.Module], nn.Module] | None = None

    def alpha(self, share: float) -> dict[str, float]:
        """For `octavize`."""
        return dict.fromkeys(self.octave, share)

    def pixels(self, frames: Tensor) -> Tensor:
        """uint8 (N, 3, H, W) to what the network takes, channels last."""
        mean, std = (torch.tensor(each)[:, None, None] for each in (self.mean, self.std))
        return ((frames.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)

    def clip(self, frames: Tensor) -> Tensor:
        """Frames of one clip, uint8 (T, 3, H, W), to an input of the network."""
        return self._input(self.pixels(frames), 1)

    def features(self, network: nn.Module, x: Tensor, num_clips: int) -> Tensor:
        """Of clips (N, D), the mean over time.

        Args:
            network: as `build` and `inflate` make it.
            x: `pixels` of the frames of N clips, one clip after the other.
            num_clips: N.
        """
        features: Tensor = network(self._input(x, num_clips))
        return features if self.inflate else features.unflatten(0, (num_clips, -1)).mean(1)

    def _input(self, x: Tensor, num_clips: int) -> Tensor:
        return x.unflatten(0, (num_clips, -1)).transpose(1, 2) if self.inflate else x  # (N,3,T,H,W)


def _lite0() -> nn.Module:
    import timm

    # TensorFlow's epsilon. timm pads on both sides, the weights were trained padded as TensorFlow does it: timm's
    # tf_efficientnet_lite0 does so too, but its convolutions can't be strided octave ones.
    return timm.create_model("efficientnet_lite0", bn_eps=1e-3, num_classes=0)


def _mobilenet_v2() -> nn.Module:
    import torchvision

    features = torchvision.models.mobilenet_v2(weights=None).features
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _inflated(network: nn.Module) -> nn.Module:
    """Depthwise kernels see three frames from the 7th block on, and the weights are those of the middle one. Until it
    is trained, it gives what the image network gives, averaged over frames.
    """
    for path, parent in list(network.named_modules()):
        for name, module in list(parent.named_children()):
            block = int(f"{path}.{name}".strip(".").split(".")[1]) if path else 0
            frames = 3 if isinstance(module, nn.Conv2d) and module.groups > 1 and block >= _FIRST_OVER_TIME else 1
            if (made := _over_time(module, frames)) is not None:
                setattr(parent, name, made)
    return network.eval()


def _over_time(module: nn.Module, frames: int) -> nn.Module | None:
    if isinstance(module, nn.Conv2d):
        assert module.bias is None and isinstance(module.padding, tuple)
        (height, width), (down, right), (y, x) = module.kernel_size, module.stride, module.padding
        conv = nn.Conv3d(
            module.in_channels, module.out_channels, (frames, height, width), (1, down, right), (frames // 2, y, x),
            groups=module.groups, bias=False,
        )  # fmt: skip
        with torch.no_grad():
            conv.weight.zero_()
            conv.weight[:, :, frames // 2] = module.weight
        return conv
    if isinstance(module, nn.BatchNorm2d):
        norm = nn.BatchNorm3d(module.num_features, module.eps, module.momentum)
        norm.load_state_dict(module.state_dict())
        return norm
    return nn.AdaptiveAvgPool3d(1) if isinstance(module, nn.AdaptiveAvgPool2d) else None


_FIRST_OVER_TIME = 7
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_BLOCKS = tuple(f"0.{n}" for n in range(1, 14))
NETWORKS: Mapping[str, ImageNetwork] = {
    "efficientnet_lite0": ImageNetwork(_lite0, tuple(f"blocks.{n}" for n in range(5)), (0.5,) * 3, (0.5,) * 3),
    "mobilenet_v2": ImageNetwork(_mobilenet_v2, _BLOCKS, *_IMAGENET),
    "mobilenet_v2_3d": ImageNetwork(_mobilenet_v2, _BLOCKS, *_IMAGENET, _inflated),
}


def load_network(name: str, weights: Path) -> nn.Module:
    """A network of NETWORKS with weights of a file, in eval.

    Weights are taken in their order: other code names them otherwise. Those of a classifier at the end are left out.

    Raises:
        UserError: the file can't be read, or its shapes are others.
    """
    network = NETWORKS[name].build()
    try:
        state: dict[str, Any] = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{weights}: no weights that torch.load reads ({type(error).__name__})") from error
    own = network.state_dict()
    theirs = [value for value in state.values() if isinstance(value, Tensor)][: len(own)]
    for key, value in zip(own, [*theirs, *[None] * len(own)], strict=False):
        if value is None or value.shape != own[key].shape:
            got = "nothing" if value is None else tuple(value.shape)
            raise UserError(f"{weights}: not of {name}: for {key} got {got}, expected {tuple(own[key].shape)}")
    network.load_state_dict(dict(zip(own, theirs, strict=True)))
    inflate = NETWORKS[name].inflate
    return inflate(network.eval()) if inflate else network.eval()


@torch.no_grad()
def features_of(
    network: nn.Module, like: ImageNetwork, frames: Tensor, watch: Callable[[Iterable[Tensor]], Iterable[Tensor]] = iter
) -> Tensor:
    """Features of clips, the mean over their frames.

    Args:
        network: in eval.
        like: how it takes pixels.
        frames: uint8 (N, T, 3, H, W).
        watch: sees parts of the clips go by.

    Returns:
        float32 (N, D).
    """
    ready = prepare_inference(network)
    features = []
    for part in watch(frames.split(max(1, _FRAMES_AT_ONCE // frames.shape[1]))):
        features.append(like.features(ready, like.pixels(part.flatten(0, 1)), len(part)))
    return torch.cat(features)

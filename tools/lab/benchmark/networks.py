"""The networks of arms, with weights that are the same wherever the keys are, and clips to run them on.

Time does not depend on what is learnt, but scores are compared too, so they must not be degenerate: weights are drawn
by key from a fixed seed, and batch norms take their statistics from clips. Arms of one function then have one set of
weights, whichever library built them. `count` says what a network has to do, on paper.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.utils.flop_counter import FlopCounterMode

import octvideo.models as models
from lab.benchmark.arms import Arm
from octvideo.errors import UserError
from octvideo.files import one_line
from octvideo.models.library import LIBRARY_NETWORKS, FrameNetwork, check_known, image_network
from octvideo.octave import Octave

SEED = 0
_LIBRARIES = ("pytorchvideo", "torchvision", "timm")


def build_network(arm: Arm) -> nn.Module:
    """The network of an arm, clips (N, 3, T, H, W) to logits (N, K), with its library's initialisation.

    Raises:
        UserError: no such network, or it takes no such option.
    """
    library, colon, own_name = arm.network.partition(":")
    if not colon:
        return _of_ours(arm)
    if library not in _LIBRARIES:
        raise UserError(f"network: got {arm.network!r}, expected {_known()}")
    if arm.width is not None:
        raise UserError(f"width: got {arm.width} for {arm.network}, expected a builder of octvideo.models")
    if arm.is_ordinary and arm.engine == "plain":
        return _as_the_library_has_it(arm, library, own_name)
    build = models.video_network if arm.network in LIBRARY_NETWORKS else models.frame_network
    return build(arm.network, arm.classes, arm.alpha, **_options(arm))


def _of_ours(arm: Arm) -> nn.Module:
    if arm.network not in models.__all__ or arm.network in ("frame_network", "video_network"):
        raise UserError(f"network: got {arm.network!r}, expected {_known()}")
    options = _options(arm)
    if arm.width is not None:
        if not arm.network.endswith("_small"):
            raise UserError(f"width: got {arm.width} for {arm.network}, expected a small network")
        options["width"] = arm.width
    return getattr(models, arm.network)(arm.classes, arm.alpha, **options)


def _options(arm: Arm) -> dict[str, Any]:
    octave = {key: list(value) if isinstance(value, tuple) else value for key, value in arm.octave}
    return {"downsample": arm.downsample, "octave": octave or None}


def _as_the_library_has_it(arm: Arm, library: str, own_name: str) -> nn.Module:
    """Untouched: what a user of the library runs. Image networks see the frames of a clip as a batch."""
    if library == "pytorchvideo":
        import pytorchvideo.models.hub as hub

        check_known(own_name, library, [name.partition(":")[2] for name in LIBRARY_NETWORKS if library in name])
        # A softmax at the end, which some heads have, would hide differences between scores.
        return getattr(hub, own_name)(pretrained=False, model_num_class=arm.classes, head_activation=None)
    if arm.network in LIBRARY_NETWORKS:
        import torchvision

        return torchvision.models.get_model(own_name, weights=None, num_classes=arm.classes)
    return FrameNetwork(image_network(arm.network, arm.classes))


def _known() -> str:
    ours = [name for name in models.__all__ if name not in ("frame_network", "video_network")]
    return f"one of {', '.join(ours)}, or LIBRARY:NAME of {', '.join(_LIBRARIES)}"


def set_weights(network: nn.Module, clips: Sequence[Tensor]) -> nn.Module:
    """Gives a network the weights that belong to its keys, and statistics of `clips` to its batch norms.

    Args:
        network: of clips to logits; changed in place, in evaluation mode afterwards.
        clips: each (N, 3, T, H, W).
    """
    modules = dict(network.named_modules())
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            draw = torch.Generator().manual_seed(zlib.crc32(key.encode()) + SEED)
            values = torch.randn(parameter.shape, generator=draw)
            if isinstance(modules[key.rpartition(".")[0]], nn.modules.batchnorm._BatchNorm):
                values = 1 + 0.1 * values if key.endswith("weight") else 0.1 * values
            elif parameter.ndim > 1:
                values *= (2 / parameter[0].numel()) ** 0.5  # He: by the fan-in
            else:
                values.zero_()
            parameter.copy_(values)
    update_bn(clips, network.train())
    return network.eval()


def smooth_clips(shape: Sequence[int], *, seed: int) -> Tensor:
    """Clips (N, 3, T, H, W) of both coarse and fine structure, about normal: noise alone has no low frequencies."""
    draw = torch.Generator().manual_seed(seed)
    clips = torch.zeros(*shape)
    for size in (4, 16, max(shape[-2:])):
        noise = torch.randn(*shape[:2], min(size, shape[2]), min(size, shape[3]), min(size, shape[4]), generator=draw)
        clips += F.interpolate(noise, size=tuple(shape[2:]), mode="nearest")
    return clips / 3**0.5


class WeightStore:
    """Networks of arms with their weights, worked out once for arms that compute the same.

    Args:
        as_built: leave weights as the library draws them, where time and scores do not matter.
    """

    def __init__(self, *, as_built: bool = False) -> None:
        self._states: dict[Any, dict[str, Tensor]] = {}
        self._as_built = as_built

    def network(self, arm: Arm) -> nn.Module:
        """A new network of the arm, in evaluation mode.

        Raises:
            UserError: it can't be built, or takes no such clips.
        """
        network = build_network(arm)
        if self._as_built:
            return network.eval()
        if (state := self._states.get(arm.function)) is not None:
            network.load_state_dict(state)
            return network.eval()
        shape = (2, *arm.clip_shape[1:])  # two clips: statistics of one of small maps would be zero
        try:
            set_weights(network, [smooth_clips(shape, seed=SEED + number) for number in (1, 2)])
        except (RuntimeError, ValueError) as error:
            clip = "x".join(map(str, arm.clip_shape))
            reason = one_line(error)
            raise UserError(f"{arm.network} takes no clips of {clip} (frames, crop): {reason}") from error
        self._states[arm.function] = copy.deepcopy(network.state_dict())  # the network's own may be trained
        return network


# ── what they have to do ──────────────────────────────────────────────────────────────────────────────────────────────


_BYTES = {"f32": 4, "bf16": 2, "int8": 1}


@dataclass(frozen=True)
class Counts:
    """The least that one call of an arm must do.

    Args:
        multiply_adds: of convolutions and matrix products, with those of the backward pass in training.
        traffic: bytes of all maps that convolutions read and write in one forward pass, each once. What the engine
            moves beside that (copies, norms by themselves) is its own doing, and not in it.
        parameters: learnt numbers.
    """

    multiply_adds: int
    traffic: int
    parameters: int


def count(arm: Arm) -> Counts:
    """Counts on meta tensors: nothing is computed.

    Raises:
        UserError: the network can't be built, or takes no such clips.
    """
    with torch.device("meta"):
        network = build_network(arm)
    training = arm.mode == "training"
    elements = 0

    def add(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        nonlocal elements
        elements += _numel(args[0]) + _numel(output)

    for module in network.modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            module.register_forward_hook(add)
    network.train(training)
    try:
        with torch.set_grad_enabled(training), FlopCounterMode(display=False) as counter:
            logits = network(torch.zeros(*arm.clip_shape, device="meta"))
            if training:
                logits.sum().backward()
    except (RuntimeError, ValueError, UserError) as error:
        clip = "x".join(map(str, arm.clip_shape))
        raise UserError(f"{arm.network} takes no clips of {clip}: {one_line(error)}") from error
    parameters = sum(parameter.numel() for parameter in network.parameters())
    # torch counts a multiply-add as two operations.
    return Counts(counter.get_total_flops() // 2, elements * _BYTES[arm.precision], parameters)


def _numel(value: Tensor | Octave) -> int:
    return sum(part.numel() for part in (value if isinstance(value, Octave) else (value,)))

"""Features: what an ordinary hook on the ordinary network reads, averaged by hand, for every kind of network."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from octvideo.inference import Predictor
from octvideo.inference.feature_network import feature_network
from octvideo.models import c2d_small, frame_network, i3d_small, slowfast_small
from octvideo.models.library import FrameNetwork
from octvideo.octave import Octave, merge
from octvideo.video import VideoArray, ViewSettings

VIEWS = ViewSettings(clip_frames=4, frame_stride=2, num_clips=2, num_crops=3, short_side_px=32, crop_px=32)
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "c2d": lambda: c2d_small(3, width=8, zero_init_last_norm=False),
    "i3d": lambda: i3d_small(3, width=8, zero_init_last_norm=False),
    "octave": lambda: i3d_small(3, 0.25, width=8, zero_init_last_norm=False),
    "slowfast": lambda: slowfast_small(3, 0.25, width=8, frame_ratio=2, zero_init_last_norm=False),
    "frames": lambda: FrameNetwork(torchvision.models.shufflenet_v2_x0_5(num_classes=3)),
    "octave frames": lambda: frame_network("torchvision:resnet18", 3, 0.25),
}
CLIP = (3, 4, 32, 32)


@functools.cache
def network_of(name: str) -> nn.Module:
    """Not to be changed."""
    torch.manual_seed(1)
    network = NETWORKS[name]()
    if name == "frames":  # torchvision's ShuffleNet, as it is made, gives features of size 1e-5
        for module in network.train().modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        with torch.no_grad():
            network(torch.randn(8, *CLIP))
    return network.eval()


def predictor_of(name: str, **how: Any) -> Predictor:
    return Predictor(network_of(name), ["a", "b", "c"], views=how.pop("views", VIEWS), device="cpu", **how)


@pytest.fixture(scope="module")
def frames() -> Tensor:
    """Noise, of which every frame is another: 2 s."""
    coarse = torch.rand(20, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    return (nn.functional.interpolate(coarse, (40, 56)) * 255).byte().permute(0, 2, 3, 1).contiguous()


class Hook:
    """Keeps what a module gave or read last."""

    def __init__(self, network: nn.Module, name: str) -> None:
        self.values: list[Any] = []
        module = network.get_submodule(name.removesuffix(":input"))
        is_input = name.endswith(":input")
        module.register_forward_hook(lambda _, args, result: self.values.append(args[0] if is_input else result))


def mean_of(value: Any, num_clips: int, channel: int = 1) -> Tensor:
    """(N, C): over all other axes."""
    if isinstance(value, Octave):
        value = merge(value)
    if isinstance(value, list):
        return torch.cat([mean_of(one, num_clips, channel) for one in value], 1)
    value = value.movedim(channel, -1).double()
    return value.reshape(num_clips, -1, value.shape[-1]).mean(1).float()


def assert_close(got: Tensor, expected: Tensor) -> None:
    """To 1e-5 of their size, which is between .05 and 20."""
    size = float(expected.abs().max())
    assert 0.05 < size < 20
    torch.testing.assert_close(got, expected, atol=1e-5 * max(size, 1.0), rtol=0)


def clips_of(predictor: Predictor, frames: Tensor) -> Tensor:
    """All views of the frames as a video, normalised."""
    from octvideo.video import decode_views

    return predictor.normalise(decode_views(VideoArray(frames, 10.0), predictor.views).cut())


@pytest.mark.parametrize("name", NETWORKS)
def test_features_are_what_the_classifier_reads_of_the_views_of_each_window(name: str, frames: Tensor) -> None:
    predictor, network = predictor_of(name), copy.deepcopy(network_of(name))
    windows = list(predictor.features(frames, window_sec=1.0, stride_sec=0.5, fps=10.0))
    (head,) = (key for key, module in network.named_modules() if isinstance(module, nn.Linear))
    hook = Hook(network, f"{head}:input")
    assert [(w.first_frame, w.last_frame) for w in windows] == [(0, 9), (5, 14), (10, 19)]
    for window in windows:
        assert window.last_frame is not None
        clips = clips_of(predictor, frames[window.first_frame : window.last_frame + 1])
        with torch.no_grad():
            logits = network(clips).mean(0)
        expected = mean_of(hook.values[-1], len(clips), -1).mean(0)
        assert_close(window.features, expected)
        assert_close(network.get_submodule(head)(window.features), logits)
    assert (windows[0].features - windows[1].features).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("i3d", "blocks.4"),  # a stage, whose last layer is an activation
        ("i3d", "blocks.4.res_blocks.1.branch2.norm_c"),  # an addition and an activation in place follow
        ("i3d", "blocks.6.dropout"),  # in a module that is kept whole
        ("octave", "blocks.3"),  # a pair
        ("octave", "blocks.3.res_blocks.0.branch2.conv_b:input"),
        ("slowfast", "blocks.5:input"),  # two pathways
        ("slowfast", "blocks.2.multipathway_blocks.1"),
        ("frames", "image_network.stage3"),
        ("octave frames", "image_network.layer2"),
    ],
)
def test_any_layer_can_be_read(name: str, layer: str) -> None:
    network = copy.deepcopy(network_of(name))
    found = feature_network(network, CLIP, layer)
    clips = torch.randn(2, *CLIP)
    called = {"octave frames": "image_network.octave_ops.layer2_1_relu_1"}.get(name, layer)
    if layer in ("blocks.4", "blocks.3"):
        called = f"{layer}.res_blocks.1.activation"
    if layer == "blocks.2.multipathway_blocks.1":
        called = f"{layer}.res_blocks.1.activation"
    hook = Hook(network, called)
    predictor = Predictor(found.module, [], views=VIEWS, device="cpu") if not found.kept_whole else None
    with torch.no_grad():
        got = found.module(clips) if predictor is None else predictor.engine(clips)
        network(clips)
    assert found.kept_whole == (layer in ("blocks.6.dropout", "image_network.stage3"))
    assert_close(got, mean_of(hook.values[-1], 2))

"""I3D's rule, held against image networks: on a clip where nothing moves the inflated network computes theirs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck, ResNet

import octvideo.models as models
from octvideo.models.weights import inflate_kernel, load_weights, weights_in
from octvideo.octave import octavize

# The paper's layout, in torchvision's names: res5 is ordinary.
STAGES = ("layer1", "layer2", "layer3")
SMALL = [2, 2, 2, 2]


def randomise_norms(network: nn.Module) -> nn.Module:
    """Statistics and weights as after training: what is copied to the wrong place shows."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(std=0.2)
    return network


def replicate_time(network: nn.Module) -> None:
    """Pads the clips of every convolution over time by its outermost frames, instead of by zeros."""

    def pad(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        frames = module.kernel_size[0] // 2

        def one(x: Tensor) -> Tensor:
            return F.pad(x, (0, 0, 0, 0, frames, frames), mode="replicate")

        value = args[0]
        return (one(value) if isinstance(value, Tensor) else type(value)(*map(one, value)), *args[1:])

    for module in network.modules():
        if isinstance(module, nn.Conv3d) and module.kernel_size[0] > 1:
            module.padding = (0, *module.padding[1:])
            module.register_forward_pre_hook(pad)


def features(network: nn.Module, classifier: str, x: Tensor) -> Tensor:
    network.set_submodule(classifier, nn.Identity())
    with torch.no_grad():
        return network.eval()(x)


def image_network(depths: list[int]) -> nn.Module:
    """torchvision's ResNet with bottlenecks: [3, 4, 6, 3] is ResNet-50."""
    torch.manual_seed(0)
    return randomise_norms(ResNet(Bottleneck, depths, num_classes=10)).double().eval()


def twice(network: nn.Module, depths: list[int]) -> nn.Module:
    other = image_network(depths)
    other.load_state_dict(network.state_dict())
    return other


@pytest.fixture(scope="module")
def resnet26() -> nn.Module:
    return image_network(SMALL)


IMAGE = torch.randn(2, 3, 40, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
CLIP = IMAGE[:, :, None].expand(-1, -1, 4, -1, -1)
# Builder -> the path of its classifier: there is no pool among Slow's blocks.
HEADS = {"c2d_small": "blocks.6.proj", "i3d_small": "blocks.6.proj", "slow_small": "blocks.5.proj"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "slow_small" else ()) for name in HEADS]
)
def test_a_still_clip_has_the_features_of_its_image(resnet26: nn.Module, name: str) -> None:
    network = randomise_norms(getattr(models, name)(num_classes=10, width=64)).double()
    weights = weights_in(resnet26.state_dict(), source="resnet26.pth")
    report = load_weights(network, weights, head="strict")
    assert report.loaded == report.total == len(resnet26.state_dict()) and len(report.inflated) == 29
    replicate_time(network)
    expected = features(twice(resnet26, SMALL), "fc", IMAGE)
    torch.testing.assert_close(features(network, HEADS[name], CLIP), expected, rtol=1e-8, atol=1e-8)
    assert (expected[0] - expected[1]).abs().max() > 0.1  # they tell the images apart


@pytest.mark.parametrize(
    ("name", "depths"), [("i3d_small", SMALL), pytest.param("i3d_r50", [3, 4, 6, 3], marks=pytest.mark.slow)]
)
def test_an_octave_network_has_the_features_of_the_octave_image_network(name: str, depths: list[int]) -> None:
    """The reference is 2-D throughout: octavize on torchvision's own network."""
    ordinary, width = image_network(depths), {} if name == "i3d_r50" else {"width": 64}
    network = randomise_norms(getattr(models, name)(num_classes=7, alpha=0.25, **width)).double()
    report = load_weights(network, weights_in(ordinary.state_dict(), source="resnet.pth"), head="swap")
    assert report.loaded == report.total - 2 and report.classes == (10, 7)
    assert not report.missing and not report.unexpected and not report.misfits
    replicate_time(network)
    octave = octavize(ordinary, dict.fromkeys(STAGES, 0.25), downsample="pool")
    found = features(network, "blocks.6.proj", CLIP)
    torch.testing.assert_close(found, features(octave, "fc", IMAGE), rtol=1e-8, atol=1e-8)


def test_zeros_around_the_clip_are_why_time_has_to_be_replicated(resnet26: nn.Module) -> None:
    """The padding that networks train with dims the outer frames: what the test above leaves out is real."""
    network = models.i3d_small(num_classes=10, width=64).double()
    load_weights(network, weights_in(resnet26.state_dict(), source="resnet26.pth"), head="strict")
    expected = features(twice(resnet26, SMALL), "fc", IMAGE)
    assert (features(network, "blocks.6.proj", CLIP) - expected).abs().max() > 0.01 * expected.abs().max()


def test_kernels_over_one_frame_are_inflated_to_longer_ones() -> None:
    """C2D's are stored with T = 1."""
    c2d = models.c2d_small(3, width=4)
    network = models.i3d_small(3, width=4)
    report = load_weights(network, weights_in(c2d.state_dict(), source="x"), head="strict")
    assert report.loaded == report.total and len(report.inflated) == 6
    assert "  6 inflated over time (average)" in str(report).splitlines()
    assert report.pixels is None  # this is no image network
    stem, frame = (net.state_dict()["blocks.0.conv.weight"] for net in (network, c2d))
    assert stem.shape == (4, 3, 5, 7, 7)
    torch.testing.assert_close(stem, frame.repeat(1, 1, 5, 1, 1) / 5)


@pytest.mark.parametrize("shape", [(2, 3, 5, 7, 5), (2, 4, 5, 7, 7), (2, 3, 7, 7), (2, 3)])
def test_what_differs_in_more_than_time_is_not_inflated(shape: tuple[int, ...]) -> None:
    assert inflate_kernel(torch.randn(2, 3, 7, 7), torch.Size(shape)) is None
    assert inflate_kernel(torch.randn(2, 3, 3, 7, 7), torch.Size((2, 3, 5, 7, 7))) is None

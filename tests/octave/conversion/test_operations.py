"""What networks do between convolutions, on pairs: gates, global and other pools, drop path, shuffles, sizes."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octvideo.octave import OctaveNetwork, octavize
from octvideo.octave.conversion.modules import OctDropPath, OctGate, OctPool, OctShape, OctSqueeze
from octvideo.octave.features import Octave, merge, split
from octvideo.octave.partition import Partition

INTERLEAVED = Partition((True, False, False, True, False, True))


def conv(c_in: int, c_out: int, k: int = 3, **options: int) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, k, padding=k // 2, padding_mode="replicate", **options)


class Body(nn.Module):
    """A stem, two convolutions around what a subclass does, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.last = conv(3, 8), conv(8, 8), conv(8, 8), conv(8, 4)
        self.layers()

    def layers(self) -> None:
        """What a subclass adds."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.b(self.between(self.a(self.stem(x))))).mean((2, 3))


class SqueezeExcitation(Body):
    """The gate of timm and pytorchvideo: a mean, two convolutions, a product."""

    def layers(self) -> None:
        self.fc1, self.fc2 = conv(8, 4, 1), conv(4, 8, 1)

    def between(self, x: Tensor) -> Tensor:
        return x * self.fc2(self.fc1(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class PooledGate(SqueezeExcitation):
    """That of torchvision: a pooling module, and the gate on the left."""

    def layers(self) -> None:
        super().layers()
        self.avgpool = nn.AdaptiveAvgPool2d(1)

    def between(self, x: Tensor) -> Tensor:
        return F.hardsigmoid(self.fc2(F.relu(self.fc1(self.avgpool(x))))) * x


class LinearGate(Body):
    """That of the first implementations: flattened, two linear layers, the size read from the value itself."""

    def layers(self) -> None:
        self.fc = nn.Sequential(nn.Linear(8, 2), nn.ReLU(), nn.Linear(2, 8), nn.Sigmoid())

    def between(self, x: Tensor) -> Tensor:
        n, c = x.size(0), x.shape[1]
        return x * self.fc(F.adaptive_avg_pool2d(x, 1).view(n, c)).view(n, c, 1, 1)


class GlobalShift(Body):
    def between(self, x: Tensor) -> Tensor:
        return x + x.mean([2, 3], keepdim=True)


class SelfGate(Body):
    """Swish in operations, and a constant factor."""

    def between(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x) * 1.5


class Pools(Body):
    """Sizes that halving by itself would not keep: 13 x 18 to 6 x 9 to 3 x 4."""

    def layers(self) -> None:
        self.average, self.maximum = nn.AvgPool2d(2), nn.MaxPool2d(3, 2)

    def between(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.maximum(self.average(x)), 3, 1, padding=1)


class Methods(Body):
    """Operations that the tensor has itself."""

    def between(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last).relu_().sigmoid().tanh()


class Shuffle(Body):
    def layers(self) -> None:
        self.shuffle, self.norm = nn.ChannelShuffle(2), nn.BatchNorm2d(8)

    def between(self, x: Tensor) -> Tensor:
        return self.norm(self.shuffle(x)).relu()


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """As torchvision's ShuffleNetV2 has it."""
    n, c, h, w = x.size()
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class Halves(Body):
    """ShuffleNetV2's block: half of the channels is left alone, half is convolved, then both are dealt out."""

    def layers(self) -> None:
        self.c, self.norm = conv(4, 4), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(self.stem(x))
        for _ in range(2):
            left, right = x.chunk(2, dim=1)
            x = channel_shuffle(torch.cat((left, self.c(right)), dim=1), 2)
        return self.last(self.b(self.norm(x))).mean((2, 3))


class Thirds(Body):
    """Parts of unequal size, one of which nobody takes as a pair."""

    def between(self, x: Tensor) -> Tensor:
        first, second, third = torch.chunk(x, 3, 1)  # 3, 3 and 2 channels
        return torch.cat([third, second, first * first.cumsum(2)[:, :, :1]], 1)


class DropPath(nn.Module):
    """Stochastic depth as timm has it: scales whole samples in training."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * torch.empty(x.shape[0], *[1] * (x.dim() - 1)).bernoulli_(0.5).div_(0.5)


class Residual(Body):
    def layers(self) -> None:
        self.c, self.drop_path = conv(8, 8), DropPath()

    def between(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.c(x))


NETWORKS = [
    SqueezeExcitation,
    PooledGate,
    LinearGate,
    GlobalShift,
    SelfGate,
    Pools,
    Methods,
    Shuffle,
    Halves,
    Thirds,
    Residual,
]
# Of gates, which are all multiplications, one; Methods is traced below.
TRACED = [SqueezeExcitation, GlobalShift, Pools, Shuffle, Halves]


def converted(network: nn.Module, alpha: float = 0.5) -> OctaveNetwork:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight), nn.init.normal_(module.bias)
    return octavize(network.eval().double(), alpha)


@pytest.mark.parametrize("alpha", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_constant_image_gives_the_ordinary_output(kind: type[Body], alpha: float) -> None:
    network = kind()
    octave = converted(network, alpha)
    assert 0 < octave.octave_report.layers["b"][0] <= alpha  # it got through as a pair
    x = torch.randn(2, 3, 1, 1, dtype=torch.float64).expand(2, 3, 13, 18)
    torch.testing.assert_close(octave(x), network(x))


@pytest.mark.parametrize("kind", NETWORKS)
def test_trains_copies_pickles_and_takes_any_size(kind: type[Body]) -> None:
    octave = octavize(kind(), 0.5)
    octave(torch.randn(2, 3, 17, 22)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in octave.parameters())
    x = torch.randn(2, 3, 14, 15)
    octave.eval()
    for clone in (copy.deepcopy(octave), pickle.loads(pickle.dumps(octave))):
        assert torch.equal(clone(x), octave(x))


@pytest.mark.parametrize(
    ("kind", "backend"),
    [
        # That there is one graph is seen without taking it apart, which costs as much again.
        *(pytest.param(kind, "eager", marks=() if kind in TRACED else pytest.mark.slow) for kind in NETWORKS),
        (Methods, "aot_eager"),  # it has the most operations
        *(pytest.param(kind, "aot_eager", marks=pytest.mark.slow) for kind in NETWORKS if kind is not Methods),
    ],
)
def test_compiles_as_one_graph(kind: type[Body], backend: str) -> None:
    octave, x = octavize(kind(), 0.5).eval(), torch.randn(2, 3, 14, 15)
    torch.compiler.reset()
    compiled = torch.compile(octave, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(x), octave(x))


@pytest.mark.parametrize("kind", [SqueezeExcitation, PooledGate])
def test_convolutions_after_a_global_pool_stay_ordinary(kind: type[Body]) -> None:
    octave = converted(kind())
    assert type(octave.fc1) is nn.Conv2d and "fc1" not in octave.octave_report.layers
    assert octave.octave_report.merged["fc1"] == "reads globally pooled values, which have no resolution to halve"


class InvertedResidual(Body):
    """Thin, wide, depthwise, thin again, without an activation: MobileNetV2's block."""

    def layers(self) -> None:
        self.expand, self.depthwise, self.project = conv(8, 24, 1), conv(24, 24, groups=24), conv(24, 8, 1)
        self.norm = nn.BatchNorm2d(8)

    def between(self, x: Tensor) -> Tensor:
        return x + self.norm(self.project(self.depthwise(self.expand(x).relu()).relu()))


def test_of_an_inverted_residual_only_the_wide_part_is_split() -> None:
    layers = octavize(InvertedResidual(), 0.5).octave_report.layers
    assert layers["expand"] == (0.0, 0.5) and layers["depthwise"] == (0.5, 0.5) and layers["project"] == (0.5, 0.0)
    assert "a" not in layers  # it is added to the thin end
    layers = octavize(InvertedResidual(), 0.5, inverted_residuals="all").octave_report.layers
    assert layers["expand"] == (0.5, 0.5) and layers["project"] == (0.5, 0.5)
    with pytest.raises(ValueError, match="inverted_residuals: got 'none', expected 'hidden' or 'all'"):
        octavize(InvertedResidual(), 0.5, inverted_residuals="none")


def test_a_drop_path_drops_both_frequencies_or_neither() -> None:
    drop = OctDropPath(DropPath())
    x = Octave(torch.ones(64, 2, 4, 4), torch.ones(64, 1, 2, 2))
    high, low = drop(x)
    kept = high[:, 0, 0, 0] > 0
    assert 0 < kept.sum() < 64
    assert torch.equal(low[:, 0, 0, 0], 2.0 * kept) and torch.equal(high[:, 1, 3, 3], 2.0 * kept)
    drop.eval()
    assert drop(x) is x


def test_a_squeeze_gives_each_channel_its_mean_in_its_place() -> None:
    x = torch.randn(2, 6, 4, 8)
    means = OctSqueeze(torch.mean, (2, 3), partition=INTERLEAVED, dims=(2, 3))(split(x, INTERLEAVED))
    torch.testing.assert_close(means, x.mean((2, 3)))


def test_a_mean_that_leaves_a_halved_axis_is_taken_of_the_merged_tensor() -> None:
    pair = split(torch.randn(2, 6, 5, 7), INTERLEAVED)
    means = OctSqueeze(torch.mean, 2, partition=INTERLEAVED, dims=(2,))(pair)
    torch.testing.assert_close(means, merge(pair, INTERLEAVED).mean(2))


@pytest.mark.parametrize("shape", [(2, 6, 1, 1), (2, 1, 1, 1), (1, 6, 4, 6), (4, 6), (2, 6, 1, 6)], ids=str)
def test_a_gate_of_any_shape_that_broadcasts(shape: tuple[int, ...]) -> None:
    """Constant maps: scaling by resolution must not matter, and each channel meets its own factor."""
    pair = split(torch.randn(2, 6, 1, 1).expand(2, 6, 4, 6), INTERLEAVED)
    gate = torch.randn(shape[:2] + (1,) * (len(shape) - 2)).expand(shape) if len(shape) > 2 else torch.randn(shape)
    gated = OctGate(torch.mul, INTERLEAVED)(pair, gate)
    expected = merge(pair, INTERLEAVED) * gate
    if len(shape) == 2:  # differs from pixel to pixel: averaged where it is low
        expected = merge(split(expected, INTERLEAVED), INTERLEAVED)
    torch.testing.assert_close(merge(gated, INTERLEAVED), expected)


def test_the_shape_is_the_ordinary_tensors() -> None:
    pair = split(torch.randn(2, 6, 5, 7), INTERLEAVED)
    assert OctShape(torch.Tensor.size)(pair) == (2, 6, 5, 7)
    assert OctShape(torch.Tensor.size, 1)(pair) == 6 and OctShape(getattr, "ndim")(pair) == 4


@pytest.mark.parametrize("height", range(4, 19))
@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(3, 2), nn.AvgPool2d(2)])
def test_a_pooled_pair_keeps_its_sizes_together(pool: nn.Module, height: int) -> None:
    high, low = OctPool(pool)(split(torch.randn(1, 6, height, height + 1), INTERLEAVED))
    assert high.shape[2:] == pool(torch.zeros(1, 1, height, height + 1)).shape[2:]
    assert low.shape[2:] == tuple((size + 1) // 2 for size in high.shape[2:])

"""octavize on small networks with every kind of join: additions, concatenations, groups, functions."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octvideo.octave import OctBatchNorm2d, OctConv2d, Partition, octavize


def conv(c_in: int, c_out: int, k: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, k, stride, k // 2, groups=groups, padding_mode="replicate", bias=False)


class Residual(nn.Module):
    """Stem, two residual blocks (one strided), and a head that needs a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm0 = conv(3, 8), nn.BatchNorm2d(8)
        self.a, self.norm_a = conv(8, 16), nn.BatchNorm2d(16)
        self.b, self.norm_b = conv(16, 16), nn.BatchNorm2d(16)
        self.skip = conv(8, 16, 1)
        self.c, self.d = conv(16, 24, 3, 2), conv(24, 24)
        self.skip2 = conv(16, 24, 1, 2)
        self.drop = nn.Dropout(0.5)
        self.last = conv(24, 8, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm0(self.stem(x)))
        x = (self.norm_b(self.b(self.norm_a(self.a(x)).relu())) + self.skip(x)).relu()
        x = self.drop(F.relu(torch.add(self.d(F.silu(self.c(x))), self.skip2(x))))
        return self.fc(self.last(x).mean((2, 3)))


class Dense(nn.Module):
    """Concatenations of octave and ordinary values, then groups, then depthwise."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 4)
        self.a, self.b, self.c = conv(4, 8), conv(12, 8), conv(20, 16)
        self.grouped = conv(16, 16, groups=4)
        self.depthwise, self.norm = conv(16, 16, groups=16), nn.BatchNorm2d(16)
        self.last = conv(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = torch.cat([x, self.a(x)], 1)
        z = torch.cat([y, self.b(y)], dim=1)
        return self.last(self.norm(self.depthwise(self.grouped(self.c(z)).relu()))).mean((2, 3))


class Awkward(nn.Module):
    """A gate, a pool and a module that is called twice work on pairs; a kernel of even size must merge."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.twice, self.b = conv(3, 8), conv(8, 8), conv(8, 8), conv(8, 8)
        self.even = nn.Conv2d(8, 8, 2)
        self.pool = nn.MaxPool2d(2)
        self.gate = nn.Conv2d(8, 8, 1)
        self.act = nn.ReLU()
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.a(self.act(self.stem(x))))
        x = self.act(self.twice(self.act(self.twice(x))))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        return self.even(self.pool(self.b(x))).mean((2, 3))


NETWORKS = [Residual, Dense, Awkward]


def randomise_norms(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 2)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_()


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("network", NETWORKS)
def test_constant_input_gives_the_ordinary_output(network: type[nn.Module], alpha: float) -> None:
    """On a constant image (replicate padding) resolution means nothing: any wrong wiring shows."""
    ordinary = network().eval().double()
    randomise_norms(ordinary)
    octave = octavize(ordinary, alpha, downsample="pool")
    x = torch.randn(2, 3, 1, 1, dtype=torch.float64).expand(2, 3, 13, 18)
    torch.testing.assert_close(octave(x), ordinary(x))
    assert alpha == 0 or any(isinstance(m, OctConv2d) for m in octave.modules())


@pytest.mark.parametrize("network", NETWORKS)
def test_alpha_zero_is_bit_equal_in_both_modes(network: type[nn.Module]) -> None:
    ordinary = network()
    same = octavize(ordinary, 0.0)
    x = torch.randn(2, 3, 11, 14)
    for mode in (True, False):
        outputs = []
        for net in (ordinary, same):
            torch.manual_seed(1)
            outputs.append(net.train(mode)(x))
        assert torch.equal(*outputs)
    state = same.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in ordinary.state_dict().items())


def shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in network.state_dict().items()}


@pytest.mark.parametrize("alpha", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("network", NETWORKS)
def test_state_dict_stays_the_ordinary_one(network: type[nn.Module], alpha: float) -> None:
    ordinary = network()
    octave = octavize(ordinary, alpha)
    assert shapes(octave) == shapes(ordinary)
    ordinary.load_state_dict(octave.state_dict(), strict=True)
    octave.load_state_dict(network().state_dict(), strict=True)


@pytest.mark.parametrize("network", NETWORKS)
def test_trains_pickles_and_copies(network: type[nn.Module]) -> None:
    octave = octavize(network(), 0.5)
    x = torch.randn(2, 3, 11, 14)
    octave(x).square().sum().backward()
    learnt = [p for name, p in octave.named_parameters() if name != "unused"]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learnt)
    copied = copy.deepcopy(octave.eval())
    for clone in (copied, pickle.loads(pickle.dumps(octave)), pickle.loads(pickle.dumps(copied))):
        assert torch.equal(clone(x), octave(x))
        assert clone.state_dict().keys() == octave.state_dict().keys()
        assert clone.octave_report == octave.octave_report


def test_postponed_annotations_do_not_stay_in_the_graph() -> None:
    """torch 2.6 would not pickle them: those of this file are strings."""
    assert Residual.forward.__annotations__ == {"x": "Tensor", "return": "Tensor"}
    assert all(node.type is None for node in octavize(Residual(), 0.5).graph.nodes)


def test_shares_nothing_with_the_given_network() -> None:
    ordinary = Residual()
    before = copy.deepcopy(ordinary.state_dict())
    octave = octavize(ordinary, 0.5)
    with torch.no_grad():
        for p in octave.parameters():
            p.add_(1)
    octave(torch.randn(2, 3, 8, 8))
    assert all(torch.equal(v, before[k]) for k, v in ordinary.state_dict().items())
    assert type(ordinary.a) is nn.Conv2d


def test_dropout_follows_the_mode() -> None:
    octave = octavize(Residual(), 0.5)
    x = torch.randn(2, 3, 8, 8)
    for module in octave.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    assert not torch.equal(octave(x), octave(x))
    octave.eval()
    assert torch.equal(octave(x), octave(x))


def test_batch_norm_statistics_are_the_ordinary_layers() -> None:
    """Constant maps: each channel's mean is the same at any resolution, so running means must agree."""
    ordinary = Residual().double()
    octave = octavize(ordinary, 0.5)
    x = torch.randn(4, 3, 1, 1, dtype=torch.float64).expand(4, 3, 8, 8)
    ordinary(x), octave(x)
    assert isinstance(octave.norm_a, OctBatchNorm2d) and isinstance(octave.norm_a, nn.BatchNorm2d)
    torch.testing.assert_close(octave.norm_a.running_mean, ordinary.norm_a.running_mean)
    assert octave.norm_a.num_batches_tracked == 1


def test_interleaved_batch_norm_writes_its_statistics_back() -> None:
    from octvideo.octave import Partition, split

    for momentum in (0.1, None):
        partition = Partition((True, False) * 3)
        layer = OctBatchNorm2d(6, alpha=partition, momentum=momentum)
        plain = nn.BatchNorm2d(6, momentum=momentum)
        for _ in range(2):
            x = torch.randn(4, 6, 1, 1).expand(4, 6, 4, 4)
            layer(split(x, partition)), plain(x)
        torch.testing.assert_close(layer.running_mean, plain.running_mean)


def test_first_and_last_convolution_are_ordinary_outside() -> None:
    report = octavize(Residual(), 0.5).octave_report
    layers = report.layers
    assert "stem" not in layers
    assert layers["a"] == (0.0, 0.5) and layers["b"] == (0.5, 0.5) and layers["last"] == (0.5, 0.0)
    assert report.merged["last"] == "gives an ordinary tensor: only x.mean() in forward reads it"


def test_report_names_what_merged() -> None:
    octave = octavize(Awkward(), 0.5)
    text = str(octave.octave_report)
    assert "  twice  0.500 -> 0.500    44 %" in text  # 1 - 3/4 alpha (2 - alpha)
    assert "even: kernel 2" in text and "gate: reads globally pooled values" in text
    assert type(octave.even) is nn.Conv2d  # a kernel of 2 fits no two resolutions


def test_alpha_by_prefix() -> None:
    layers = octavize(Residual(), {"": 0.5, "c": 0.25, "d": 0.25, "skip2": 0.25, "a": 0}).octave_report.layers
    assert layers["c"] == (0.5, 0.25) and layers["b"] == (0.0, 0.5)
    with pytest.raises(ValueError, match="no convolution of this network is called 'nope'"):
        octavize(Residual(), {"nope": 0.5})
    with pytest.raises(ValueError, match=r"alpha of 'the network' is 1.5, expected 0 <= alpha <= 1"):
        octavize(Residual(), 1.5)


def test_addition_takes_the_smaller_alpha_and_says_so() -> None:
    report = octavize(Residual(), {"": 0.5, "skip": 0.25}).octave_report
    assert report.layers["b"][1] == 0.25 and "added to values with a smaller alpha" in report.merged["b"]


class Shared(nn.Module):
    """One module under two names, and a part that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.last = conv(3, 8), nn.Module(), conv(8, 4)
        self.body.first = conv(8, 8)
        self.body.again = self.body.first
        self.body.unread = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body.again(self.body.first(self.stem(x)))).mean((2, 3))


@pytest.mark.parametrize("alpha", [0.0, {"": 0.5}], ids=str)
def test_names_of_shared_and_unread_modules_are_kept(alpha: object) -> None:
    ordinary = Shared()
    octave = octavize(ordinary, alpha)
    copied = copy.deepcopy(octave)
    for clone in (octave, copied, pickle.loads(pickle.dumps(copied))):
        assert shapes(clone) == shapes(ordinary)
        assert clone.body.again.weight is clone.body.first.weight  # tied, as in the ordinary network


def test_downsample_is_checked() -> None:
    with pytest.raises(ValueError, match="downsample: got 'max', expected 'stride' or 'pool'"):
        octavize(Residual(), 0.0, downsample="max")


@pytest.mark.parametrize("multiple, low", [(1, 6), (8, 8), (16, 16)])
def test_channel_multiple_rounds_both_parts(multiple: int, low: int) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 12, 1), nn.ReLU(), nn.Conv2d(12, 4, 1)
    )
    octave = octavize(network, {"0": 0.1, "2": 0.3}, channel_multiple=multiple)
    first, second = (octave.get_submodule(name).partition_out for name in ("0", "2"))
    assert (len(first.high), len(first.low)) == (64 - low, low)
    assert len(second.low) == 4  # too thin to be rounded by 8 or 16
    assert octave.octave_report.layers["0"] == (0.0, low / 64)
    assert octave(torch.zeros(1, 3, 9, 9)).shape == (1, 4, 9, 9)


def test_channel_multiple_never_empties_a_part() -> None:
    for alpha, low in ((0.01, 8), (0.99, 24), (0.0, 0), (1.0, 32)):
        assert len(Partition.of(32, alpha, multiple=8).low) == low
    with pytest.raises(ValueError, match="channel_multiple: got 0, expected 1 or more"):
        octavize(nn.Conv2d(3, 4, 1), 0.5, channel_multiple=0)

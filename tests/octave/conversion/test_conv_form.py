"""Convolutions of another weight than their parameter, and with TensorFlow's padding: timm's classes, and a user's."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from octvideo.octave import Octave, OctaveNetwork, OctConv2d, octavize, prepare_inference

timm = pytest.importorskip("timm")
from timm.layers import ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame  # noqa: E402
from timm.layers.conv2d_same import Conv2dSame  # noqa: E402
from timm.layers.pool2d_same import AvgPool2dSame, MaxPool2dSame  # noqa: E402

STANDARDISED = [
    (StdConv2d, {}),
    (StdConv2d, {"stride": 2, "groups": 2, "bias": True}),
    (StdConv2dSame, {"stride": 2}),
    (StdConv2dSame, {}),
    (ScaledStdConv2d, {"gamma": 1.5}),
    (ScaledStdConv2dSame, {"stride": 2, "gain_init": 0.7}),
]
SIZES = [(12, 16), (13, 16), (15, 13)]


def named(value: Any) -> str:
    return getattr(value, "__name__", str(value))


def standardised(conv: Any) -> Tensor:
    """By the definitions of arXiv 1903.10520 and 2101.08692."""
    flat = conv.weight.flatten(1)
    mean, var = flat.mean(1, keepdim=True), flat.var(1, unbiased=False, keepdim=True)
    weight = ((flat - mean) / (var + conv.eps).sqrt()).view_as(conv.weight)
    return weight * conv.gain * conv.scale if hasattr(conv, "gain") else weight


def between(*middle: nn.Module, head: nn.Module | None = None) -> nn.Sequential:
    """A stem, what is given (of 8 channels), and a convolution that gives an ordinary tensor."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), *middle, head or nn.Conv2d(8, 8, 1)).double()


def outputs_and_gradients(network: nn.Module, x: Tensor) -> list[Tensor]:
    network.zero_grad()
    y = network(x)
    y.square().sum().backward()
    return [y, *(p.grad for p in network.parameters() if p.grad is not None)]


@pytest.mark.parametrize(("kind", "options"), [*STANDARDISED, (Conv2dSame, {"stride": 2}), (Conv2dSame, {})], ids=named)
def test_alpha_zero_is_bit_equal_with_gradients(kind: Any, options: dict[str, Any]) -> None:
    ordinary = between(kind(8, 8, 3, **options), nn.BatchNorm2d(8), nn.ReLU())
    same = octavize(ordinary, 0.0)
    assert list(same.state_dict()) == list(ordinary.state_dict())
    for size in SIZES:
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        for mode in (True, False):
            pairs = zip(*(outputs_and_gradients(net.train(mode), x) for net in (ordinary, same)), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(("kind", "options"), STANDARDISED, ids=named)
def test_octave_convolution_with_the_standardised_weight(kind: Any, options: dict[str, Any]) -> None:
    """As the octave form of a plain network that has that weight; the padding of pooled maps is the plain one."""
    ordinary = between(kind(8, 8, 3, **options))
    plain = copy.deepcopy(ordinary)
    conv = ordinary[2]
    plain[2] = nn.Conv2d(8, 8, 3, conv.stride, 1, groups=conv.groups, bias=conv.bias is not None).double()
    plain[2].weight.data.copy_(standardised(conv))
    if conv.bias is not None:
        plain[2].bias.data.copy_(conv.bias)
    octave, expected = octavize(ordinary, 0.5), octavize(plain, 0.5)
    assert octave.octave_report.layers == expected.octave_report.layers and "2" in octave.octave_report.layers
    assert list(octave.state_dict()) == list(ordinary.state_dict())
    octave.load_state_dict(ordinary.state_dict(), strict=True)
    for size in SIZES:
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        torch.testing.assert_close(octave(x), expected(x))
    # By the chain rule through the definition, and through the layer.
    x = torch.randn(2, 3, 12, 16, dtype=torch.float64)
    octave(x).square().sum().backward()
    expected(x).square().sum().backward()
    definition = standardised(conv)
    leaves = [conv.weight, *([conv.gain] if hasattr(conv, "gain") else [])]
    grads = torch.autograd.grad(definition, leaves, expected.get_submodule("2").weight.grad)
    own = octave.get_submodule("2")
    torch.testing.assert_close(own.weight.grad, grads[0])
    assert own.weight.grad.abs().sum() > 0
    if len(grads) > 1:
        torch.testing.assert_close(own.gain.grad, grads[1])


@pytest.mark.parametrize(("kind", "options"), STANDARDISED[-1:], ids=named)
def test_pickles_copies_and_compiles(kind: Any, options: dict[str, Any]) -> None:
    octave = octavize(between(kind(8, 8, 3, **options)), 0.5)
    x = torch.randn(2, 3, 12, 16, dtype=torch.float64)
    for clone in (copy.deepcopy(octave), pickle.loads(pickle.dumps(octave))):
        assert isinstance(clone, OctaveNetwork) and torch.equal(clone(x), octave(x))
        clone.get_submodule("2").weight.data.normal_()
        assert not torch.allclose(clone(x), octave(x))
    compiled = torch.compile(octave, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), octave(x))


@pytest.mark.parametrize(("kind", "options"), [*STANDARDISED, (Conv2dSame, {"stride": 2})], ids=named)
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_prepared_for_inference(kind: Any, options: dict[str, Any], alpha: float) -> None:
    """Norms fold into the weight that the layer convolves with, pools of another padding stay what they are."""
    middle = (kind(8, 8, 3, **options), nn.BatchNorm2d(8), nn.ReLU(), MaxPool2dSame(3, 2))
    network = octavize(between(*middle), alpha, octave_downsample="stride").eval()
    norm = network.get_submodule("3")
    for tensor, low in ((norm.weight.data, 0.5), (norm.running_var, 0.5), (norm.running_mean, -1.0)):
        tensor.uniform_(low, 2.0)
    network, x = network.float(), torch.randn(1, 3, 16, 13).to(memory_format=torch.channels_last)
    with torch.no_grad():
        torch.testing.assert_close(prepare_inference(network)(x), network(x), atol=1e-5, rtol=1e-4)


# Pixels before and after an axis of n, for a kernel of three: by TensorFlow's rule, worked out by hand.
BY_HAND = {(12, 2): (0, 1), (13, 2): (1, 1), (12, 4): (0, 0), (13, 4): (1, 1), (14, 4): (0, 1), (7, 2): (1, 1)}


@pytest.mark.parametrize("n", [12, 13, 14])
def test_strided_paths_pad_by_tensorflows_rule_each_for_its_map_and_stride(n: int) -> None:
    octave = octavize(between(Conv2dSame(8, 8, 3, stride=2)), {"1": 0.5, "2": 0.5}, octave_downsample="stride")
    conv = octave.get_submodule("2")
    assert isinstance(conv, OctConv2d) and conv.padding_mode == "tensorflow"
    high = torch.randn(1, 4, n, 12, dtype=torch.float64)
    low = torch.randn(1, 4, -(-n // 2), 6, dtype=torch.float64)
    w, b = conv.weight, conv.bias

    def path(x: Tensor, rows: slice, columns: slice, stride: int) -> Tensor:
        rule = {**BY_HAND, (14, 2): (0, 1), (6, 2): (0, 1)}
        pads = (0, 0, 0, 0) if stride == 1 else (*rule[x.shape[3], stride], *rule[x.shape[2], stride])
        return F.conv2d(F.pad(x, pads), w[rows, columns], None, stride, 1 if stride == 1 else 0)

    h, lo = slice(0, 4), slice(4, 8)
    expected_high = path(high, h, h, 2) + path(low, h, lo, 1) + b[h].view(-1, 1, 1)
    expected_low = path(high, lo, h, 4) + path(low, lo, lo, 2) + b[lo].view(-1, 1, 1)
    result = conv(Octave(high, low))
    torch.testing.assert_close(result.high, expected_high)
    torch.testing.assert_close(result.low, expected_low)


def test_pooled_paths_have_plain_padding() -> None:
    """The paper's way: pooled first, then stride 1, where the rule is symmetric. So all fast forms apply."""
    octave = octavize(between(Conv2dSame(8, 8, 5, stride=2)), 0.5)
    conv = octave.get_submodule("2")
    assert conv.padding_mode == "zeros" and conv.padding == (2, 2)
    assert octave(torch.randn(1, 3, 9, 12, dtype=torch.float64)).shape == (1, 8, 5, 6)


@pytest.mark.parametrize("downsample", ["stride", "pool"])
def test_the_control_pools_before_tensorflows_strided_convolution(downsample: Any) -> None:
    ordinary = between(Conv2dSame(8, 8, 3, stride=2))
    control = octavize(ordinary, 0.0, downsample=downsample)
    x = torch.randn(1, 3, 12, 12, dtype=torch.float64)
    y = ordinary[:2](x)
    if downsample == "pool":
        y = F.conv2d(F.avg_pool2d(y, 2), ordinary[2].weight, ordinary[2].bias, padding=1)
    else:
        y = ordinary[2](y)
    torch.testing.assert_close(control(x), ordinary[3](y))


def test_even_kernels_have_no_octave_form() -> None:
    network = between(Conv2dSame(8, 8, 2), Conv2dSame(8, 8, 4, stride=2))
    octave = octavize(network, 0.5)
    merged = octave.octave_report.merged
    assert merged["2"] == "kernel 2, dilation 1 in H has no centre, expected an odd one"
    assert merged["3"] == "kernel 4, dilation 1 in H has no centre, expected an odd one"
    x = torch.randn(1, 3, 9, 12, dtype=torch.float64)
    assert torch.equal(octavize(network, 0.0)(x), network(x)) and octave(x).shape == network(x).shape


def test_max_pools_of_tensorflow_pool_pairs_and_averages_merge() -> None:
    network = between(MaxPool2dSame(3, 2), nn.Conv2d(8, 8, 3, padding=1), AvgPool2dSame(2, 2))
    octave = octavize(network, 0.5)
    assert octave.octave_report.layers["3"] == (0.5, 0.0)  # after it is the average, which counts its padding
    assert "only 4 (AvgPool2dSame) reads it" in octave.octave_report.merged["3"]
    for size in SIZES:
        x = torch.randn(1, 3, *size, dtype=torch.float64)
        assert torch.equal(octavize(network, 0.0)(x), network(x))
        assert octave(x).shape == network(x).shape
    pair = Octave(torch.arange(144.0).view(1, 1, 12, 12), torch.arange(49.0).view(1, 1, 7, 7)[:, :, :6, :6])
    pooled = octave.get_submodule("2")(pair)
    assert pooled.high[0, 0, 0, 0] == 26 and pooled.high.shape == (1, 1, 6, 6)  # rows and columns 0 to 2
    assert pooled.low[0, 0, 0, 0] == 16 and pooled.low.shape == (1, 1, 3, 3)


class Normalised(nn.Conv2d):
    """A user's own: each kernel has length 1."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight / self.weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        return self._conv_forward(x, weight, self.bias)


class Scaled(nn.Conv2d):
    """Does more than to convolve."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            raise ValueError
        return super().forward(x) * x.amax()


class Noisy(nn.Conv2d):
    """Another weight in training."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * 2 if self.training else self.weight, self.bias)


def test_other_classes_are_taken_for_what_they_do() -> None:
    kinds = (Normalised, Scaled, Noisy)
    network = between(*(kind(8, 8, 3, padding=1) for kind in kinds))
    octave = octavize(network, 0.5)
    assert octave.octave_report.layers["2"] == (0.5, 0.0)
    for path, name in (("3", "Scaled"), ("4", "Noisy")):
        reason = f"is a {name}, which does more than to convolve its input with one weight"
        assert octave.octave_report.merged[path] == reason and type(octave.get_submodule(path)).__name__ == name
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    for mode in (True, False):
        same = octavize(network, 0.0).train(mode)
        assert torch.equal(same(x), network.train(mode)(x))


def test_a_block_named_after_its_lack_of_norms_is_traced() -> None:
    """timm's NormFreeBlock has a gain of its own; so have norms."""
    block = timm.models.nfnet.NormFreeBlock(8, 8, skipinit=True, act_layer=nn.ReLU)
    report = octavize(nn.Sequential(nn.Conv2d(3, 8, 1), block), {"": 0.5}).octave_report
    assert {"1.conv1", "1.conv2"} <= set(report.layers)


def small_nfnet() -> nn.Module:
    """Of every kind of block that NFNets have: gates, gains, TensorFlow's padding."""
    nfnet = timm.models.nfnet
    options = {"attn_layer": "se", "attn_kwargs": {"rd_ratio": 0.5}, "attn_gain": 2.0, "skipinit": True}
    sizes = {"depths": (1, 2), "channels": (32, 64), "stem_type": "deep_quad", "stem_chs": 32, "num_features": 64}
    return nfnet.NormFreeNet(nfnet.NfCfg(**sizes, same_padding=True, **options), num_classes=5)


FAMILIES = [small_nfnet, "tf_mobilenetv3_small_minimal_100"]
MORE = [
    *("nf_resnet26", "dm_nfnet_f0", "resnetv2_50x1_bit", "tf_efficientnet_lite0", "tf_efficientnet_b0"),
    "tf_mobilenetv3_large_100",
]
NONE_CONVERTS = ("resnetv2_50x1_bit",)  # group norms mix the channels


@pytest.mark.parametrize("name", [*FAMILIES, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)], ids=named)
def test_networks_of_timm_convert_and_every_convolution_is_accounted_for(name: Any) -> None:
    torch.manual_seed(0)
    ordinary = (timm.create_model(name, num_classes=5) if isinstance(name, str) else name()).eval()
    octave, same = octavize(ordinary, 0.25), octavize(ordinary, 0.0)
    report = octave.octave_report
    convs = {path for path, module in ordinary.named_modules() if isinstance(module, _ConvNd)}
    assert convs - set(report.layers) - set(report.merged) == set()
    assert (not report.layers) == (name in NONE_CONVERTS)
    assert octave.state_dict().keys() == ordinary.state_dict().keys()
    with torch.no_grad():
        for size in ((64, 64), (75, 66)):
            x = torch.randn(2, 3, *size)
            assert torch.equal(same(x), ordinary(x))
            assert octave(x).isfinite().all()
            torch.testing.assert_close(prepare_inference(octave)(x), octave(x), atol=1e-4, rtol=1e-3)

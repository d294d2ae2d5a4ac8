"""What an octave convolution can be told beside its alphas: factor, exchange, octave_downsample."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from octvideo.octave import Octave, OctConv1d, OctConv2d, OctConv3d, OctConvTranspose3d, Partition, merge, split
from tests.octave.against_reference import check, gradcheck

ALPHAS = [(0.0, 0.5), (0.5, 0.25), (0.5, 0.0), (1.0, 0.5), (0.5, 1.0)]
SHRINK = ["pool", "stride", "keep"]
EXCHANGES = ["none", "high_to_low", "low_to_high"]


# ---- factor: which axes are halved ---------------------------------------------------------------------------


@pytest.mark.parametrize("octave_downsample", SHRINK)
@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 1, 1)], ids=str)
@pytest.mark.parametrize("alphas", ALPHAS, ids=str)
def test_time_octave_equals_reference(alphas: tuple[float, float], stride: object, octave_downsample: str) -> None:
    """ResNet stages stride in space alone: low to high then repeats frames, but no pixels."""
    for bias, sizes in ((True, (5, 7, 6)), (False, (4, 5, 9))):
        layer = OctConv3d(
            4, 8, 3, stride, 1, bias=bias, alpha_in=alphas[0], alpha_out=alphas[1], factor=(2, 2, 2),
            octave_downsample=octave_downsample,
        ).double()  # fmt: skip
        check(layer, sizes)


@pytest.mark.parametrize("octave_downsample", SHRINK)
@pytest.mark.parametrize("factor", [f for f in itertools.product((1, 2), repeat=3) if 2 in f], ids=str)
def test_any_factor_equals_reference(factor: tuple[int, ...], octave_downsample: str) -> None:
    for stride, sizes in (((1, 2, 1), (3, 5, 4)), ((2, 1, 2), (4, 3, 5))):
        options = {"factor": factor, "octave_downsample": octave_downsample}
        check(OctConv3d(4, 6, 3, stride, 1, alpha_in=0.5, alpha_out=0.5, **options).double(), sizes)


def test_axes_that_are_not_halved_are_free() -> None:
    """Any stride, kernel and padding there; every path has the ordinary ones."""
    layer = OctConv3d(4, 6, (2, 1, 5), (2, 2, 3), (3, 0, 0), factor=(1, 2, 1), alpha_in=0.5, alpha_out=0.5)
    check(layer.double(), (4, 5, 9))
    check(OctConv3d(4, 6, 3, (4, 2, 2), 1, alpha_in=0.5, alpha_out=0.5).double(), (9, 5, 6))


@pytest.mark.parametrize("stride", [(1, 2), (2, 1)], ids=str)
def test_strides_may_differ_between_axes(stride: tuple[int, int]) -> None:
    for alpha_in, alpha_out in ALPHAS:
        check(OctConv2d(4, 8, 3, stride, 1, alpha_in=alpha_in, alpha_out=alpha_out).double(), (7, 6))


def test_time_octave_with_depthwise_and_grouped_kernels() -> None:
    for groups, stride in itertools.product((2, 8), (1, (1, 2, 2))):
        options = {"groups": groups, "alpha_in": 0.5, "alpha_out": 0.5, "factor": (2, 2, 2)}
        check(OctConv3d(8, 8, 3, stride, 1, **options).double(), (3, 5, 4))


@pytest.mark.parametrize("sizes", [(5, 7, 9), (1, 6, 3), (4, 8, 8)], ids=str)
@pytest.mark.parametrize("stride", [1, (1, 2, 2), 2], ids=str)
@pytest.mark.parametrize("octave_downsample", SHRINK)
def test_constant_clip_gives_the_ordinary_result(octave_downsample: str, stride: object, sizes: object) -> None:
    """With padding by replication a constant clip stays constant at any resolution, so no path can be off."""
    ordinary = nn.Conv3d(6, 8, 3, stride, 1, padding_mode="replicate").double()
    x = torch.randn(2, 6, 1, 1, 1, dtype=torch.float64).expand(2, 6, *sizes)
    for alpha_in, alpha_out in ALPHAS:
        options = {"alpha_in": alpha_in, "alpha_out": alpha_out, "factor": (2, 2, 2)}
        layer = OctConv3d(
            6, 8, 3, stride, 1, padding_mode="replicate", octave_downsample=octave_downsample, **options
        ).double()
        layer.load_state_dict(ordinary.state_dict())
        y = layer(split(x, layer.partition_in, layer.factor))
        torch.testing.assert_close(merge(y, layer.partition_out, layer.factor), ordinary(x))


def test_time_octave_needs_a_kernel_that_keeps_the_frames() -> None:
    args = (4, 4, (3, 1, 1))
    OctConv3d(*args, alpha_in=0.5, alpha_out=0.5)  # time is free in the paper's factor
    with pytest.raises(ValueError, match=r"kernel 3, .* in T do not keep the size, expected padding 1"):
        OctConv3d(*args, alpha_in=0.5, alpha_out=0.5, factor=(2, 2, 2))
    with pytest.raises(ValueError, match=r"stride 4 in T, expected 1 or 2"):
        OctConv3d(4, 4, 1, (4, 1, 1), alpha_in=0.5, alpha_out=0.5, factor=(2, 2, 2))


def test_pair_of_another_factor_is_refused() -> None:
    layer = OctConv3d(4, 4, 1, alpha_in=0.5, alpha_out=0.5, factor=(2, 2, 2))
    with pytest.raises(
        ValueError, match=r"needs low of spatial size \(2, 2, 3\) \(factor \(2, 2, 2\)\), got \(1, 2, 4"
    ):
        layer(split(torch.zeros(1, 4, 4, 4, 5), 0.5))


def test_pool_first_in_halved_axes_alone() -> None:
    """Without low channels "pool" averages strided axes that the factor halves; others keep their stride."""
    layer = OctConv3d(4, 6, 3, 2, 1, alpha_in=0, alpha_out=0, downsample="pool").double()
    x = torch.randn(1, 4, 5, 8, 8, dtype=torch.float64)
    pooled = nn.functional.avg_pool3d(x, (1, 2, 2))
    torch.testing.assert_close(layer(x), nn.functional.conv3d(pooled, layer.weight, layer.bias, (2, 1, 1), padding=1))


# ---- exchange: Table 3 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("alphas", ALPHAS, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_exchange_equals_reference(stride: int, alphas: tuple[float, float], exchange: str) -> None:
    layer = OctConv2d(4, 8, 3, stride, 1, alpha_in=alphas[0], alpha_out=alphas[1], exchange=exchange).double()
    check(layer, (6, 5))


def test_without_exchange_two_networks_run_side_by_side() -> None:
    """Written by hand: each frequency is an ordinary convolution with its own block of the weight."""
    layer = OctConv2d(6, 10, 3, padding=1, alpha_in=0.5, alpha_out=0.4, exchange="none")
    high, low = torch.randn(1, 3, 6, 7), torch.randn(1, 3, 3, 4)
    y = layer(Octave(high, low))
    conv = nn.functional.conv2d
    torch.testing.assert_close(y.high, conv(high, layer.weight[:6, :3], layer.bias[:6], padding=1))
    torch.testing.assert_close(y.low, conv(low, layer.weight[6:, 3:], layer.bias[6:], padding=1))


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_unused_weights_keep_their_place_and_get_no_gradient(exchange: str) -> None:
    layer = OctConv2d(4, 4, 1, alpha_in=0.5, alpha_out=0.5, exchange=exchange)
    y = layer(split(torch.rand(1, 4, 4, 4) + 1, 0.5))
    (y.high.sum() + y.low.sum()).backward()
    used = layer.weight.grad[:, :, 0, 0] != 0
    assert used[:2, :2].all() and used[2:, 2:].all()
    assert used[2:, :2].all() == used[2:, :2].any() == (exchange == "high_to_low")
    assert used[:2, 2:].all() == used[:2, 2:].any() == (exchange == "low_to_high")


def test_the_only_way_in_or_out_is_kept() -> None:
    first = OctConv2d(4, 4, 1, alpha_in=0, alpha_out=0.5, exchange="none")
    last = OctConv2d(4, 4, 1, alpha_in=0.5, alpha_out=0, exchange="none")
    assert first.paths.hl is not None and last.paths.lh is not None
    # Whole groups change sides: the second group is high before and low after, and has no other path.
    sides = {"alpha_in": Partition((False, False, True)), "alpha_out": Partition((False, True, True))}
    grouped = OctConv2d(3, 3, 1, groups=3, exchange="none", **sides).double()
    assert grouped.paths.hl is not None and grouped.paths.hl.groups == 1 and grouped.paths.lh is None
    ungrouped = OctConv2d(3, 3, 1, exchange="none", **sides)
    assert ungrouped.paths.hl is None and ungrouped.paths.lh is None


# ---- octave_downsample: Table 3's "strided conv." ------------------------------------------------------------


@pytest.mark.parametrize("alphas", ALPHAS, ids=str)
@pytest.mark.parametrize("padding_mode", ["zeros", "replicate"])
@pytest.mark.parametrize("stride", [1, 2])
def test_strided_equals_reference(stride: int, padding_mode: str, alphas: tuple[float, float]) -> None:
    for sizes in ((6, 7), (9, 8), (5, 1)):
        layer = OctConv2d(
            4, 8, 3, stride, 1, padding_mode=padding_mode, octave_downsample="stride",
            alpha_in=alphas[0], alpha_out=alphas[1],
        ).double()  # fmt: skip
        check(layer, sizes)


@pytest.mark.parametrize("stride", [1, 2])
def test_strided_by_hand(stride: int) -> None:
    """High to low strides by 2, in a strided layer by 4; low to high meets y_high without stride there."""
    layer = OctConv2d(4, 4, 3, stride, 1, bias=False, octave_downsample="stride", alpha_in=0.5, alpha_out=0.5)
    high, low = torch.randn(1, 2, 9, 9), torch.randn(1, 2, 5, 5)
    w, conv = layer.weight, nn.functional.conv2d
    up = conv(low, w[:2, 2:], padding=1)
    if stride == 1:
        up = up.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, :9, :9]
    y = layer(Octave(high, low))
    torch.testing.assert_close(y.high, conv(high, w[:2, :2], stride=stride, padding=1) + up)
    want = conv(low, w[2:, 2:], stride=stride, padding=1) + conv(high, w[2:, :2], stride=2 * stride, padding=1)
    torch.testing.assert_close(y.low, want)


@pytest.mark.parametrize("length", [8, 9])
def test_strided_equals_reference_in_1d_with_same_padding(length: int) -> None:
    """torch refuses padding="same" beside a stride; the path to low has one."""
    layer = OctConv1d(4, 4, 5, padding="same", octave_downsample="stride", alpha_in=0.5, alpha_out=0.5).double()
    y = layer(split(x := torch.randn(1, 4, length, dtype=torch.float64), 0.5))
    layer.padding = (2,)
    want = layer(split(x, 0.5))
    torch.testing.assert_close(y.low, want.low)
    check(layer, (length,))


# ---- all of them ---------------------------------------------------------------------------------------------

OPTIONS = {
    "time octave": {"factor": (2, 2, 2)},
    "width alone": {"factor": (1, 1, 2)},
    "no exchange": {"exchange": "none"},
    "high to low": {"exchange": "high_to_low"},
    "low to high": {"exchange": "low_to_high"},
    "strided": {"octave_downsample": "stride"},
    "strided time octave": {"octave_downsample": "stride", "factor": (2, 2, 2)},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("stride", [1, (1, 2, 2)], ids=str)
def test_gradients(stride: object, options: dict) -> None:
    layer = OctConv3d(2, 2, 3, stride, 1, alpha_in=0.5, alpha_out=0.5, **options).double()
    assert gradcheck(layer, (3, 3, 2), fast_mode=True)


def net(options: dict) -> nn.Module:
    """Enter, stride and leave; transposed too where the options exist there."""
    inside = OctConv3d(8, 8, 3, (1, 2, 2), 1, alpha_in=0.5, alpha_out=0.25, **options)
    shared = {k: v for k, v in options.items() if k != "octave_downsample"}
    grow = OctConvTranspose3d(8, 8, (3, 4, 4), (1, 2, 2), 1, alpha_in=0.25, alpha_out=0.5, **shared)
    layers = [
        OctConv3d(3, 8, 3, 1, 1, alpha_in=0, alpha_out=0.5, **options), inside, grow,
        OctConv3d(8, 4, 1, alpha_in=0.5, alpha_out=0, **options),
    ]  # fmt: skip
    return nn.Sequential(*layers).eval()


COMPILED = [  # one of them in the fast tests: each takes seconds
    pytest.param(options, id=name, marks=() if name == "strided time octave" else pytest.mark.slow)
    for name, options in OPTIONS.items()
]


@pytest.mark.parametrize("options", COMPILED)
def test_compiles_as_one_graph_and_exports(options: dict) -> None:
    model, x = net(options), torch.randn(1, 3, 3, 7, 8)
    torch._dynamo.reset()
    want = model(x)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), want)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), want)


def test_the_representation_names_what_is_not_the_default() -> None:
    text = repr(OctConv3d(4, 4, 1, alpha_in=0.5, alpha_out=0.5, factor=(2, 2, 2), octave_downsample="stride"))
    assert "factor=(2, 2, 2)" in text and "octave_downsample=stride" in text and "exchange" not in text
    text = repr(OctConv3d(4, 4, 1, alpha_in=0.5, alpha_out=0.5, exchange="none"))
    assert "exchange=none" in text and "factor" not in text and "octave_downsample" not in text

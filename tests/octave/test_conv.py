"""OctConv against an independent slow reference: kernels, strides, dilations, groups, odd sizes, alphas."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from octvideo.octave import Octave, OctConv1d, OctConv2d, OctConv3d, Partition, split
from tests.octave.against_reference import check, gradcheck

ALPHAS = [(0.0, 0.25), (0.25, 0.25), (0.5, 0.25), (0.25, 0.0), (0.5, 1.0), (1.0, 0.5), (1.0, 1.0)]
# kernel, stride, padding, dilation
GEOMETRIES = {
    "1x1x1": ((1, 1, 1), (1, 1, 1), (0, 0, 0), (1, 1, 1)),
    "3x1x1": ((3, 1, 1), (1, 1, 1), (1, 0, 0), (1, 1, 1)),
    "1x3x3": ((1, 3, 3), (1, 1, 1), (0, 1, 1), (1, 1, 1)),
    "1x3x3/2": ((1, 3, 3), (1, 2, 2), (0, 1, 1), (1, 1, 1)),
    "1x1x1/2": ((1, 1, 1), (1, 2, 2), (0, 0, 0), (1, 1, 1)),
    "3x3x3 time stride 2": ((3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1)),
    "1x5x3 dilated": ((1, 5, 3), (1, 1, 1), (0, 4, 2), (1, 2, 2)),
    "2x3x3 no time padding": ((2, 3, 3), (1, 1, 1), (0, 1, 1), (1, 1, 1)),
}


@pytest.mark.parametrize("alphas", ALPHAS, ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_equals_reference_in_3d(geometry: str, alphas: tuple[float, float]) -> None:
    kernel, stride, padding, dilation = GEOMETRIES[geometry]
    for bias, sizes in itertools.product((True, False), ((3, 8, 6), (4, 7, 9))):
        layer = OctConv3d(
            8, 12, kernel, stride, padding, dilation, bias=bias, alpha_in=alphas[0], alpha_out=alphas[1]
        ).double()
        check(layer, sizes)


@pytest.mark.parametrize("alphas", [(0.25, 0.25), (0.0, 0.5), (0.5, 0.0), (0.5, 0.5)], ids=str)
@pytest.mark.parametrize("groups", [2, 4, 8])
@pytest.mark.parametrize("stride", [1, 2])
def test_equals_reference_with_groups(groups: int, alphas: tuple[float, float], stride: int) -> None:
    """Groups split inside (2, and 4 at .5), whole groups (depthwise, thin groups) and mixtures of both."""
    layer = OctConv2d(8, 16, 3, stride, 1, groups=groups, alpha_in=alphas[0], alpha_out=alphas[1]).double()
    check(layer, (7, 10))


@pytest.mark.parametrize("groups", [1, 4, 8])
def test_autocast_with_groups_and_bias(groups: int) -> None:
    """Paths that fill only part of their target are added in its type; on a CPU, upsampling gives float32."""
    layer = OctConv2d(8, 16, 3, 1, 1, groups=groups, alpha_in=0.25, alpha_out=0.5)
    x = split(torch.randn(2, 8, 7, 10), layer.partition_in)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    for part, want in zip(y, layer(x), strict=True):
        torch.testing.assert_close(part.float(), want, atol=0.05, rtol=0.05)


def test_depthwise_has_no_exchange() -> None:
    layer = OctConv2d(8, 8, 3, padding=1, groups=8, alpha_in=0.5, alpha_out=0.5)
    assert layer.paths.hl is None and layer.paths.lh is None
    check(layer.double(), (5, 5))


@pytest.mark.parametrize("padding_mode", ["zeros", "replicate", "reflect", "circular"])
@pytest.mark.parametrize("stride", [1, 2])
def test_equals_reference_for_every_padding_mode(padding_mode: str, stride: int) -> None:
    layer = OctConv3d(6, 8, 3, (1, stride, stride), 1, padding_mode=padding_mode, alpha_in=0.5, alpha_out=0.25).double()
    check(layer, (3, 8, 9))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("length", [8, 9])
def test_equals_reference_in_1d(stride: int, length: int) -> None:
    check(OctConv1d(6, 4, 5, stride, 2, alpha_in=0.5, alpha_out=0.5).double(), (length,))


def test_any_partition_equals_reference() -> None:
    """Low channels anywhere, as concatenations and shuffles leave them."""
    for seed in range(5):
        flags = torch.rand(2, 10, generator=torch.Generator().manual_seed(seed)) < 0.4
        flags[:, 0], flags[:, 1] = True, False
        p_in, p_out = (Partition(tuple(row.tolist())) for row in flags)
        check(OctConv2d(10, 10, 3, padding=1, alpha_in=p_in, alpha_out=p_out).double(), (6, 5))


@pytest.mark.parametrize("alphas", [(0.0, 0.5), (0.5, 0.5), (0.5, 0.0)], ids=str)
@pytest.mark.parametrize(
    ("stride", "groups"), [(1, 1), (2, 2), *(pytest.param(*p, marks=pytest.mark.slow) for p in [(1, 2), (2, 1)])]
)
def test_gradients(alphas: tuple[float, float], stride: int, groups: int) -> None:
    geometry = ((2, 3, 3), (1, stride, stride), (0, 1, 1))  # kernel, stride, padding
    layer = OctConv3d(4, 4, *geometry, groups=groups, alpha_in=alphas[0], alpha_out=alphas[1]).double()
    assert gradcheck(layer, (2, 5, 4))


def test_weight_is_the_ordinary_one() -> None:
    ordinary = nn.Conv3d(6, 8, 3, groups=2)
    octave = OctConv3d(6, 8, 3, padding=1, groups=2, alpha_in=0.5, alpha_out=0.5)
    assert {k: v.shape for k, v in ordinary.state_dict().items()} == {
        k: v.shape for k, v in octave.state_dict().items()
    }


@pytest.mark.parametrize("padding", [(0, 1, 1), "same", "valid"])
@pytest.mark.parametrize("padding_mode", ["zeros", "replicate"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("stride", [1, 2, (1, 3, 2)])
def test_zero_alphas_are_the_ordinary_convolution(
    stride: object, groups: int, padding_mode: str, padding: object
) -> None:
    """To the last bit, and by the path that octave layers take: there is no other."""
    if padding == "same" and stride != 1:
        return  # torch has no such layer
    args = (4, 6, (3, 2, 5), stride, padding, 1, groups, True, padding_mode)
    ordinary, layer = nn.Conv3d(*args), OctConv3d(*args, alpha_in=0, alpha_out=0)
    layer.load_state_dict(ordinary.state_dict())
    x = torch.randn(1, 4, 5, 9, 8)
    assert layer.paths.hh is not None and layer.paths.hl is layer.paths.lh is layer.paths.ll is None
    assert torch.equal(layer(x), ordinary(x)) and torch.equal(layer(x[0]), ordinary(x[0]))


def test_pool_downsampling_of_an_ordinary_convolution() -> None:
    layer = OctConv2d(4, 6, 3, 2, 1, alpha_in=0, alpha_out=0, downsample="pool").double()
    check(layer, (7, 8))
    x = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    pooled = nn.functional.conv2d(nn.functional.avg_pool2d(x, 2), layer.weight, layer.bias, padding=1)
    torch.testing.assert_close(layer(x), pooled)


def test_sizes_equal_the_ordinary_ones_for_many_shapes() -> None:
    for size, kernel, stride in itertools.product(range(5, 12), (1, 3, 5), (1, 2)):
        layer = OctConv2d(4, 4, kernel, stride, kernel // 2, alpha_in=0.5, alpha_out=0.5)
        y = layer(split(torch.zeros(1, 4, size, size + 1), 0.5))
        want = nn.Conv2d(4, 4, kernel, stride, kernel // 2)(torch.zeros(1, 4, size, size + 1)).shape[2:]
        assert y.high.shape[2:] == want
        assert tuple(y.low.shape[2:]) == tuple((s + 1) // 2 for s in want)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"kernel_size": 3},
            r"kernel 3, dilation 1 and padding .* in H do not keep the size, expected padding 1",
        ),
        ({"kernel_size": 2, "padding": 1}, r"expected an odd kernel"),
        ({"kernel_size": 3, "padding": 1, "stride": 3}, r"stride 3 in H, expected 1 or 2"),
        ({"kernel_size": 1, "factor": (2, 2, 2)}, r"factor: got \(2, 2, 2\), expected 2 of 1 or 2 for \(H, W\)"),
        ({"kernel_size": 1, "factor": (1, 1)}, r"factor: got \(1, 1\), .* at least one of them 2"),
        ({"kernel_size": 1, "alpha_in": 1.5}, r"expected 0 <= alpha <= 1, got 1.5"),
        (
            {"kernel_size": 1, "alpha_in": Partition((True,))},
            r"alpha_in: got a partition of 1 channels, expected 4",
        ),
        ({"kernel_size": 1, "downsample": "max"}, r"downsample: got 'max', expected 'stride' or 'pool'"),
        ({"kernel_size": 1, "octave_downsample": "max"}, r"octave_downsample: got 'max', expected 'stride' or"),
        ({"kernel_size": 1, "exchange": "all"}, r"exchange: got 'all', expected one of 'both', 'none', 'high_to_"),
    ],
)
def test_errors_name_the_fix(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OctConv2d(4, 4, **{"alpha_in": 0.5, "alpha_out": 0.5, **options})


def test_wrong_input_is_named() -> None:
    layer = OctConv2d(4, 4, 1, alpha_in=0.5, alpha_out=0.5)
    with pytest.raises(TypeError, match=r"expected an Octave \(2 low channels\), got Tensor; use split\(\)"):
        layer(torch.zeros(1, 4, 4, 4))
    with pytest.raises(ValueError, match=r"needs low of spatial size \(3, 3\)"):
        layer(Octave(torch.zeros(1, 2, 5, 5), torch.zeros(1, 2, 2, 2)))
    with pytest.raises(ValueError, match=r"expected \(N, C, H, W\), got shape \(2, 5, 5\)"):
        layer(Octave(torch.zeros(2, 5, 5), torch.zeros(2, 3, 3)))


def test_uneven_groups_are_refused() -> None:
    uneven = Partition((True, True, True, False))
    with pytest.raises(ValueError, match="do not hold equally many low channels"):
        OctConv2d(4, 4, 1, groups=2, alpha_in=uneven, alpha_out=uneven)

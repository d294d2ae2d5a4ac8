"""Transposed octave convolutions against the NumPy reference and torch's ordinary layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from octvideo.octave import Octave, OctConvTranspose1d, OctConvTranspose2d, OctConvTranspose3d, Partition, split
from tests.octave.against_reference import check, gradcheck

ALPHAS = [(0.0, 0.25), (0.5, 0.25), (0.25, 0.0), (0.5, 1.0), (1.0, 0.5)]
# kernel, stride, padding, output_padding, dilation
GEOMETRIES = {
    "3, size kept": (3, 1, 1, 0, 1),
    "4/2": (4, 2, 1, 0, 1),
    "3/2 with output padding": (3, 2, 1, 1, 1),
    "2/2": (2, 2, 0, 0, 1),
    "3/3": (3, 3, 0, 0, 1),
    "3 dilated": (3, 1, 2, 0, 2),
    "3x1 / 2x1": ((4, 1), (2, 1), (1, 0), 0, 1),
}


@pytest.mark.parametrize("alphas", ALPHAS, ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_equals_reference_in_2d(geometry: str, alphas: tuple[float, float]) -> None:
    kernel, stride, padding, output_padding, dilation = GEOMETRIES[geometry]
    for bias in (True, False):
        layer = OctConvTranspose2d(
            4, 8, kernel, stride, padding, output_padding, bias=bias, dilation=dilation,
            alpha_in=alphas[0], alpha_out=alphas[1],
        ).double()  # fmt: skip
        check(layer, (4, 5))


@pytest.mark.parametrize("factor", [(1, 2, 2), (2, 2, 2), (2, 1, 1)], ids=str)
@pytest.mark.parametrize("time", [(3, 1, 1), (2, 2, 0)], ids=str)
def test_equals_reference_in_3d(factor: tuple[int, ...], time: tuple[int, int, int]) -> None:
    kernel, stride, padding = time
    geometry = ((kernel, 4, 3), (stride, 2, 1), (padding, 1, 1))
    check(OctConvTranspose3d(4, 6, *geometry, factor=factor, alpha_in=0.5, alpha_out=0.5).double(), (3, 4, 5))


def test_time_is_free_where_it_is_not_halved() -> None:
    check(OctConvTranspose3d(4, 4, (4, 3, 3), (3, 1, 1), (0, 1, 1), alpha_in=0.5, alpha_out=0.5).double(), (3, 4, 5))


@pytest.mark.parametrize("length", [6, 7])
def test_equals_reference_in_1d(length: int) -> None:
    check(OctConvTranspose1d(6, 4, 4, 2, 1, alpha_in=0.5, alpha_out=0.5).double(), (length,))


@pytest.mark.parametrize("alphas", [(0.25, 0.25), (0.0, 0.5), (0.5, 0.0), (0.5, 0.5)], ids=str)
@pytest.mark.parametrize("groups", [2, 4, 8])
def test_equals_reference_with_groups(groups: int, alphas: tuple[float, float]) -> None:
    layer = OctConvTranspose2d(8, 16, 4, 2, 1, groups=groups, alpha_in=alphas[0], alpha_out=alphas[1]).double()
    check(layer, (4, 5))


def test_any_partition_equals_reference() -> None:
    p_in, p_out = Partition((True, False, False, True, False)), Partition((False, True, True, False))
    check(OctConvTranspose2d(5, 4, 3, 2, 1, 1, alpha_in=p_in, alpha_out=p_out).double(), (4, 5))


@pytest.mark.parametrize("exchange", ["none", "high_to_low", "low_to_high"])
def test_exchange_equals_reference(exchange: str) -> None:
    check(OctConvTranspose2d(4, 6, 4, 2, 1, exchange=exchange, alpha_in=0.5, alpha_out=0.5).double(), (4, 5))


@pytest.mark.parametrize("alphas", [(0.0, 0.5), (0.5, 0.5), (0.5, 0.0)], ids=str)
@pytest.mark.parametrize("groups", [1, 2])
def test_gradients(alphas: tuple[float, float], groups: int) -> None:
    layer = OctConvTranspose2d(4, 4, 4, 2, 1, groups=groups, alpha_in=alphas[0], alpha_out=alphas[1]).double()
    assert gradcheck(layer, (3, 2))


@pytest.mark.parametrize("groups", [1, 2])
def test_zero_alphas_are_the_ordinary_layer(groups: int) -> None:
    """To the last bit; every argument and the wanted size too."""
    args = (4, 6, (3, 2, 5), (1, 3, 2), (0, 1, 1), (0, 2, 1), groups)
    ordinary = nn.ConvTranspose3d(*args)
    layer = OctConvTranspose3d(*args, alpha_in=0, alpha_out=0)
    layer.load_state_dict(ordinary.state_dict())
    x = torch.randn(1, 4, 2, 3, 4)
    assert isinstance(layer, nn.ConvTranspose3d)
    assert torch.equal(layer(x), ordinary(x)) and torch.equal(layer(x[0]), ordinary(x[0]))
    assert torch.equal(layer(x, output_size=(4, 8, 10)), ordinary(x, output_size=(4, 8, 10)))


def test_sizes_are_the_ordinary_ones() -> None:
    for size, (kernel, stride, padding, output_padding, dilation) in (
        (size, geometry) for size in (4, 5, 6, 7) for geometry in list(GEOMETRIES.values())[:-1]
    ):
        args = (4, 4, kernel, stride, padding, output_padding, 1, True, dilation)
        y = OctConvTranspose2d(*args, alpha_in=0.5, alpha_out=0.5)(split(torch.zeros(1, 4, size, size + 1), 0.5))
        want = nn.ConvTranspose2d(*args)(torch.zeros(1, 4, size, size + 1)).shape[2:]
        assert y.high.shape[2:] == want and tuple(y.low.shape[2:]) == tuple((s + 1) // 2 for s in want)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"kernel_size": 3, "stride": 2, "padding": 1},
            r"OctConvTranspose2d: kernel 3, stride 2, dilation 1, padding 1 and output_padding 0 in H do not give 2 "
            r"times the size, expected padding 1 and output_padding 1; keep this convolution ordinary",
        ),
        ({"kernel_size": 4, "stride": 2}, r"expected padding 1 and output_padding 0"),
        ({"kernel_size": 2}, r"do not give 1 times the size, expected a larger or odd kernel"),
        ({"kernel_size": 1, "factor": (3, 2)}, r"factor: got \(3, 2\), expected 2 of 1 or 2 for \(H, W\)"),
        ({"kernel_size": 1, "exchange": "all"}, r"exchange: got 'all'"),
    ],
)
def test_errors_name_the_fix(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OctConvTranspose2d(4, 4, **{"alpha_in": 0.5, "alpha_out": 0.5, **options})


def test_wrong_input_is_named() -> None:
    layer = OctConvTranspose2d(4, 4, 4, 2, 1, alpha_in=0.5, alpha_out=0.5)
    with pytest.raises(TypeError, match=r"OctConvTranspose2d .* expected an Octave \(2 low channels\), got Tensor"):
        layer(torch.zeros(1, 4, 4, 4))
    pair = Octave(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 2, 2))
    with pytest.raises(ValueError, match=r"got output_size \(9, 9\), but with low channels the size is stride times"):
        layer(pair, output_size=(9, 9))

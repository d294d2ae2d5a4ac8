"""Convolutions, sums and pools in the forms that are fast on channels-last maps, against torch's own operations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from octvideo.octave import OctConv3d
from octvideo.octave.layer import convolve
from octvideo.octave.resample import add_upsampled, upsample
from tests.octave.against_reference import gradcheck

LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
# kernel, stride, padding, dilation, groups
KERNELS = {
    "1x1x1": ((1, 1, 1), (1, 1, 1), (0, 0, 0), (1, 1, 1), 1),
    "1x1x1/2": ((1, 1, 1), (1, 2, 2), (0, 0, 0), (1, 1, 1), 1),
    "1x1x1/2x1x1": ((1, 1, 1), (2, 1, 1), (0, 0, 0), (1, 1, 1), 1),
    "1x1x1 padded in time": ((1, 1, 1), (1, 1, 1), (1, 0, 0), (1, 1, 1), 1),
    "3x1x1": ((3, 1, 1), (1, 1, 1), (1, 0, 0), (1, 1, 1), 1),
    "3x1x1/2x1x1 dilated": ((3, 1, 1), (2, 1, 1), (2, 0, 0), (2, 1, 1), 1),
    "3x1x1/1x2x2": ((3, 1, 1), (1, 2, 2), (1, 0, 0), (1, 1, 1), 1),
    "1x3x3": ((1, 3, 3), (1, 1, 1), (0, 1, 1), (1, 1, 1), 1),
    "1x3x3/2x2x2 grouped": ((1, 3, 3), (2, 2, 2), (0, 1, 1), (1, 1, 1), 4),
    "1x3x3 depthwise, dilated": ((1, 3, 3), (1, 1, 1), (0, 2, 2), (1, 2, 2), 8),
    "3x3x3": ((3, 3, 3), (1, 2, 2), (1, 1, 1), (1, 1, 1), 1),
}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=LAST[x.dim()])


@pytest.mark.parametrize("clips", [1, 2])
@pytest.mark.parametrize("kernel", KERNELS)
def test_convolutions_are_torchs(kernel: str, clips: int) -> None:
    """Few and many pixels, clips and images, with gradients."""
    size, stride, padding, dilation, groups = KERNELS[kernel]
    for sizes in ((4, 7, 9), (3, 40, 50)):
        x, weight, bias = random(clips, 8, *sizes), random(16, 8 // groups, *size, seed=1), random(16, seed=2)
        expected = F.conv3d(x, weight, bias, stride, padding, dilation, groups)
        got = convolve(last(x), weight, bias, stride, padding, dilation, groups)
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
        # torch's own conv3d, on one thread, makes other layouts.
        assert kernel in ("3x1x1/1x2x2", "3x3x3") or got.is_contiguous(memory_format=torch.channels_last_3d)
        if size[0] == stride[0] == 1 and padding[0] == 0:
            images = (x[:, :, 0], weight[:, :, 0], bias, stride[1:], padding[1:], dilation[1:], groups)
            got = convolve(last(images[0]), *images[1:])
            torch.testing.assert_close(got, F.conv2d(*images), atol=1e-4, rtol=1e-4)
    leaves = [random(clips, 8, 4, 6, 6), random(16, 8 // groups, *size), random(16)]
    gradients = []
    for run, x in ((F.conv3d, leaves[0]), (convolve, last(leaves[0]))):
        parts = [part.clone().requires_grad_() for part in (x, *leaves[1:])]
        run(*parts, stride, padding, dilation, groups).square().sum().backward()
        gradients.append([part.grad for part in parts])
    for want, have in zip(*gradients, strict=True):
        torch.testing.assert_close(have, want, atol=1e-2, rtol=1e-4)


@pytest.mark.parametrize("factor", [(1, 2, 2), (2, 2, 2), (1, 2, 1)])
@pytest.mark.parametrize("sizes", [(4, 6, 8), (3, 5, 7)], ids=["even", "odd"])
def test_adds_an_upsampled_map(factor: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    high = random(2, 3, *sizes)
    low = random(2, 3, *[-(-n // f) for n, f in zip(sizes, factor, strict=True)], seed=1)
    expected = high + upsample(low, sizes, factor)
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        parts = [x.clone().contiguous(memory_format=layout) for x in (high, low)]
        assert torch.equal(add_upsampled(*parts, factor), expected)
        leaves = [x.double().contiguous(memory_format=layout).requires_grad_() for x in (high, low)]

        def run(y: Tensor, x: Tensor) -> Tensor:
            return add_upsampled(y * 1.0, x, factor)

        assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


@pytest.mark.parametrize("kernel", [(1, 1, 1), (3, 1, 1), (1, 3, 3)])
def test_gradients_of_channels_last_octave_layers(kernel: tuple[int, int, int]) -> None:
    padding = tuple(k // 2 for k in kernel)
    layer = OctConv3d(4, 4, kernel, padding=padding, alpha_in=0.5, alpha_out=0.25).double()
    assert gradcheck(layer, (2, 4, 4), fast_mode=True, layout=torch.channels_last_3d)

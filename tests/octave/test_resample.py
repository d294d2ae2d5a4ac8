"""`add_upsampled` in place, as CUDA has it, against an upsampled copy."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from octvideo.octave.factor import low_size
from octvideo.octave.kernel.layout import LAYOUTS, forms_of
from octvideo.octave.resample import add_upsampled, upsample

SIZES = [((4, 6), (2, 2)), ((5, 7), (2, 2)), ((5, 6), (1, 2)), ((1, 1), (2, 2)), ((7,), (2,)), ((3, 5, 4), (1, 2, 2)),
         ((3, 5, 7), (2, 2, 2)), ((4, 5, 3), (2, 1, 1))]  # fmt: skip


@pytest.mark.parametrize("layout", ["contiguous", pytest.param("channels last", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("size", "factor"), SIZES)
def test_in_place_it_gives_the_same_sum_and_gradients(
    size: tuple[int, ...], factor: tuple[int, ...], layout: str
) -> None:
    torch.manual_seed(0)
    y = torch.randn(2, 3, *size, dtype=torch.float64)
    if layout == "channels last" and y.dim() > 3:
        y = y.contiguous(memory_format=LAYOUTS[y.dim()])
    low = torch.randn(2, 3, *low_size(size, factor), dtype=torch.float64)
    expected = y + upsample(low, size, factor)

    def by_cuda(y: Tensor, low: Tensor) -> Tensor:
        with forms_of("cuda"):
            return add_upsampled(1.0 * y, low, factor)

    with torch.no_grad(), forms_of("cuda"):
        own = y.clone()
        assert add_upsampled(own, low, factor) is own
    torch.testing.assert_close(own, expected)
    inputs = y.requires_grad_(), low.requires_grad_()
    torch.testing.assert_close(by_cuda(*inputs), expected)
    assert torch.autograd.gradcheck(by_cuda, inputs)
    assert torch.autograd.gradgradcheck(by_cuda, inputs, fast_mode=True)  # else most of this file's time


def test_what_is_cropped_of_the_low_map_gets_no_gradient() -> None:
    y, low = torch.zeros(1, 1, 2, 2).requires_grad_(), torch.ones(1, 1, 2, 2).requires_grad_()
    with forms_of("cuda"):
        add_upsampled(2 * y, low).sum().backward()
    assert low.grad is not None and low.grad.tolist() == [[[[4, 0], [0, 0]]]]


def test_an_input_of_the_user_is_not_changed() -> None:
    y, low = torch.zeros(1, 1, 2, 2).requires_grad_(), torch.ones(1, 1, 1, 1)
    with forms_of("cuda"):
        total = add_upsampled(y, low)
    assert y.sum() == 0 and total.sum() == 4

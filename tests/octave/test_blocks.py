"""Pooling and adding by resample.cpp against torch's own operations in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from octvideo.octave.blocks import AddToBlocks, MapAndMeanOfBlocks, MeanOfBlocks, has_blocks
from octvideo.octave.compiled_library import load_library
from octvideo.octave.layout import LAYOUTS
from octvideo.octave.resample import add_upsampled, pool_down

pytestmark = pytest.mark.skipif(load_library() is None, reason="no C++ compiler")
SHAPES = [(2, 3, 4, 6), (1, 17, 8, 2), (1, 16, 3, 4, 6), (3, 5, 2, 2, 4)]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=LAYOUTS[x.dim()])


def pooled(x: Tensor) -> Tensor:
    """(..., H, W)."""
    return F.avg_pool2d(x.flatten(0, -4), 2).unflatten(0, x.shape[:-3])


def repeated(x: Tensor) -> Tensor:
    return F.interpolate(x.flatten(0, -4), scale_factor=2).unflatten(0, x.shape[:-3])


def layouts(x: Tensor) -> list[Tensor]:
    """The same numbers as autograd may give them back: other layouts, a part of a map's channels."""
    more = torch.cat([numbers(*x.shape, seed=7), x, x], 1)
    part = slice(x.shape[1], 2 * x.shape[1])
    return [last(x), x, last(more)[:, part], more[:, part], last(x.transpose(-1, -2)).transpose(-1, -2)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("threads", [1, 3])
def test_means(shape: tuple[int, ...], threads: int) -> None:
    x = numbers(*shape)
    exact = x.double().requires_grad_()
    expected = pooled(exact)
    grad, map_grad = numbers(*expected.shape, seed=1), numbers(*shape, seed=2)
    (wanted,) = torch.autograd.grad(expected, exact, grad.double())
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for given in layouts(grad):
            input = last(x).requires_grad_()
            y = MeanOfBlocks.apply(input)
            torch.testing.assert_close(y.double(), expected, atol=1e-6, rtol=1e-6)
            assert y.is_contiguous(memory_format=LAYOUTS[x.dim()])
            (found,) = torch.autograd.grad(y, input, given)
            torch.testing.assert_close(found.double(), wanted, atol=1e-6, rtol=1e-6)
            same, mean = MapAndMeanOfBlocks.apply(input)
            assert torch.equal(same, input) and same.stride() == input.stride() and torch.equal(mean, y)
            (both,) = torch.autograd.grad((same, mean), input, (map_grad, given), retain_graph=True)
            torch.testing.assert_close(both.double(), wanted + map_grad, atol=1e-6, rtol=1e-6)
            (one,) = torch.autograd.grad(mean, input, given, retain_graph=True)
            assert torch.equal(one, found)
            (other,) = torch.autograd.grad(same, input, map_grad)
            assert torch.equal(other, map_grad)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_additions(shape: tuple[int, ...]) -> None:
    y, low = numbers(*shape), numbers(*shape[:-2], shape[-2] // 2, shape[-1] // 2, seed=1)
    grad = numbers(*shape, seed=2)
    for given in layouts(low):
        inputs = [last(y).requires_grad_(), given.detach().requires_grad_()]
        total = AddToBlocks.apply(*inputs)
        torch.testing.assert_close(total, y + repeated(low), atol=1e-6, rtol=1e-6)
        for read in layouts(grad):
            y_grad, low_grad = torch.autograd.grad(total, inputs, read, retain_graph=True)
            assert torch.equal(y_grad, grad)
            torch.testing.assert_close(low_grad, 4 * pooled(grad), atol=1e-5, rtol=1e-5)


def test_gradients_of_gradients() -> None:
    x, low = last(numbers(2, 3, 2, 4, 4)), last(numbers(2, 3, 2, 2, 2, seed=1))

    def penalty(function: object, *inputs: Tensor) -> list[Tensor]:
        leaves = [v.clone().requires_grad_() for v in inputs]
        loss = sum(y.pow(3).sum() for y in function(*leaves))  # type: ignore[operator]
        slopes = torch.autograd.grad(loss, leaves, create_graph=True)
        return list(torch.autograd.grad(sum(s.square().sum() for s in slopes), leaves))

    cases = [
        (lambda v: [MeanOfBlocks.apply(v)], lambda v: [pooled(v)], (x,)),
        (lambda v: MapAndMeanOfBlocks.apply(v), lambda v: [v, pooled(v)], (x,)),
        (lambda v: MapAndMeanOfBlocks.apply(v)[1:], lambda v: [pooled(v)], (x,)),
        (lambda v, w: [AddToBlocks.apply(v, w)], lambda v, w: [v + repeated(w)], (x, low)),
    ]
    for ours, plain, inputs in cases:
        torch.testing.assert_close(penalty(ours, *inputs), penalty(plain, *inputs), atol=1e-4, rtol=1e-4)


def test_where_they_are_used() -> None:
    x = last(numbers(1, 4, 2, 6, 6)).requires_grad_()
    assert "MeanOfBlocks" in type(pool_down(x).grad_fn).__name__
    assert "AddToBlocks" in type(add_upsampled(x * 1, last(numbers(1, 4, 2, 3, 3))).grad_fn).__name__
    others = [last(numbers(1, 4, 2, 6, 5)), numbers(1, 4, 2, 6, 6), x.double()]
    assert not any(has_blocks(other.requires_grad_(), (1, 2, 2)) for other in others)
    assert not has_blocks(x, (2, 2, 2))
    with torch.no_grad():
        assert not has_blocks(x, (1, 2, 2))

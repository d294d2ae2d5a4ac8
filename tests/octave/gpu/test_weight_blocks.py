"""Convolutions with blocks of a weight, against autograd's own steps; and the kernels that cut the blocks out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from octvideo.octave.gpu.devices import INTERPRETED
from octvideo.octave.gpu.weight_blocks import Block, BlockConvs
from octvideo.octave.kernel.layout import LAYOUTS

GPU = pytest.param("cuda", marks=pytest.mark.gpu)


def convs(axes: int, kernel: int = 3) -> BlockConvs:
    """Of a weight of 7 x 8 channels: two blocks of the first five rows, and all columns of the others."""
    one = (1,) * axes
    blocks = (
        Block(slice(0, 5), slice(0, 6), one),
        Block(slice(0, 5), slice(6, 8), one),
        Block(slice(5, 7), slice(0, 8), (1,) * (axes - 2) + (2, 2)),
    )
    return BlockConvs(blocks, (kernel // 2,) * axes, one)


def case(axes: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    size = (3,) * (axes - 2)
    weight = torch.randn(7, 8, *(3,) * axes, generator=generator, dtype=dtype).requires_grad_()
    shapes = [(2, 6, *size, 5, 4), (2, 2, *size, 3, 2), (2, 8, *size, 3, 4)]
    return weight, [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("axes", [2, 3])
def test_results_and_all_gradients(axes: int) -> None:
    weight, maps = case(axes)
    both = []
    for run in (convs(axes), convs(axes).one_by_one):
        results = run(weight, maps)
        both.append((results, torch.autograd.grad(sum((y**2).sum() for y in results), [weight, *maps])))
    torch.testing.assert_close(*both)


def test_gradients_of_gradients() -> None:
    weight, maps = case(2)
    # fast_mode: one random direction, since every element by itself takes long in Triton's interpreter.
    assert torch.autograd.gradgradcheck(lambda w, *x: convs(2)(w, x), (weight, *maps), fast_mode=True)


def test_only_what_is_wanted_is_computed() -> None:
    weight, maps = case(2)
    y = convs(2)(weight, maps)[1]  # the others get no gradient
    to_weight, to_map = torch.autograd.grad(y.sum(), [weight, maps[1]], retain_graph=True)
    assert to_weight[:5, 6:].abs().sum() > 0 and to_map.abs().sum() > 0
    assert to_weight[:, :6].abs().sum() == 0 and to_weight[5:].abs().sum() == 0
    frozen = convs(2)(weight.detach(), maps)
    frozen[0].sum().backward()
    assert weight.grad is None and maps[0].grad is not None and maps[1].grad is None


def test_under_autocast_maps_have_its_precision_and_the_weight_keeps_its_own() -> None:
    weight, maps = case(3, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        results = convs(3)(weight, maps)
    assert all(y.dtype == torch.bfloat16 for y in results)
    sum(y.float().sum() for y in results).backward()
    assert weight.grad is not None and weight.grad.dtype == torch.float32
    expected = convs(3).one_by_one(weight, maps)
    torch.testing.assert_close([y.float() for y in results], list(expected), rtol=0.05, atol=0.5)


def test_torch_func_sees_plain_operations() -> None:
    weight, maps = case(2)
    expected = convs(2)(weight, maps)[0]
    _, tangent = torch.func.jvp(lambda w: convs(2)(w, maps)[0], (weight,), (weight,))
    torch.testing.assert_close(tangent, expected)


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("kernel", [(1, 1, 1), (3, 1, 1), (1, 3, 3), (3, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_are_cut_out_and_put_back(kernel: tuple[int, ...], layout: str, dtype: torch.dtype, device: str) -> None:
    blocks = convs(len(kernel))
    weight = torch.randn(7, 8, *kernel, device=device)
    weight = weight.contiguous(memory_format=LAYOUTS[weight.dim()]) if layout == "channels last" else weight
    # Triton's interpreter cuts digits off where a device rounds.
    close = {"rtol": 0.01, "atol": 0.01} if INTERPRETED and dtype == torch.bfloat16 else {"rtol": 0, "atol": 0}
    parts = blocks.parts(weight, dtype)
    for part, block in zip(parts, blocks.blocks, strict=True):
        assert part.dtype == dtype and part.is_contiguous(memory_format=LAYOUTS[weight.dim()])
        torch.testing.assert_close(part, block.of(weight).to(dtype), **close)
    whole = blocks.whole(parts, weight)
    assert whole.stride() == weight.stride() and whole.dtype == weight.dtype
    torch.testing.assert_close(whole, weight.to(dtype).float(), **close)
    fewer = BlockConvs(blocks.blocks[:2], blocks.padding, blocks.dilation)
    torch.testing.assert_close(fewer.whole(parts[:2], weight)[5:], torch.zeros_like(weight[5:]))

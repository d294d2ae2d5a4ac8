"""Octave layers in training, whole by octvideo's library, against the same layers in float64 by torch's operations."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from octvideo.octave import Octave, OctConv2d, OctConv3d
from octvideo.octave.kernel.library import load_library

pytestmark = pytest.mark.skipif(load_library() is None, reason="no C++ compiler")
LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}
KERNELS = {  # and their padding and dilation
    "point": ((1, 1, 1), (0, 0, 0), (1, 1, 1)),
    "time": ((3, 1, 1), (1, 0, 0), (1, 1, 1)),
    "time, shorter": ((3, 1, 1), (0, 0, 0), (1, 1, 1)),
    "space": ((1, 3, 3), (0, 1, 1), (1, 1, 1)),
    "space, dilated": ((1, 3, 3), (0, 2, 2), (1, 2, 2)),
    "both": ((3, 3, 3), (1, 1, 1), (1, 1, 1)),
}
ALPHAS = [(0.25, 0.25), (0.0, 0.5), (0.5, 0.0), (0.5, 0.125), (0.125, 0.75)]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=LAYOUTS[x.dim()])


def is_fused(y: Tensor | Octave) -> bool:
    high = y.high if isinstance(y, Octave) else y
    return type(high.grad_fn).__name__ == "FusedStepBackward"


def inputs_of(layer: Any, *shape: int) -> list[Tensor]:
    """Of (N, [T,] H, W)."""
    count, *size = shape
    high, low = len(layer.partition_in.high), len(layer.partition_in.low)
    half = [*size[:-2], *((n + 1) // 2 for n in size[-2:])]
    return [random(count, high, *size), random(count, low, *half, seed=1)][: 1 + (low > 0)]


def run(layer: Any, maps: Sequence[Tensor]) -> Any:
    return layer(Octave(*maps) if len(maps) > 1 else maps[0])


def results_of(layer: Any, maps: Sequence[Tensor]) -> list[Tensor]:
    y = run(layer, maps)
    return list(y) if isinstance(y, Octave) else [y]


def check(layer: Any, *shape: int) -> None:
    """Results and all gradients, whatever the layout of what comes back."""
    maps = inputs_of(layer, *shape)
    exact, plain = copy.deepcopy(layer).double(), [x.double().requires_grad_() for x in maps]
    expected = results_of(exact, plain)
    grads = [random(*y.shape, seed=2 + n) for n, y in enumerate(expected)]
    wanted = torch.autograd.grad(expected, [*plain, exact.weight], [g.double() for g in grads])
    read = [last(x).requires_grad_() for x in maps]
    found = results_of(layer, read)
    assert is_fused(found[0])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, atol=1e-4, rtol=1e-4)
        assert one.is_contiguous(memory_format=LAYOUTS[one.dim()])
    for back in ([last(g) for g in grads], grads):
        for one, other in zip(
            torch.autograd.grad(found, [*read, layer.weight], back, retain_graph=True), wanted, strict=True
        ):
            torch.testing.assert_close(one.double(), other, atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("alpha_in", "alpha_out"), ALPHAS)
@pytest.mark.parametrize("outs", [40, 96])
def test_of_clips(kernel: str, alpha_in: float, alpha_out: float, outs: int) -> None:
    size, padding, dilation = KERNELS[kernel]
    alphas = {"alpha_in": alpha_in, "alpha_out": alpha_out}
    layer = OctConv3d(48, outs, size, padding=padding, dilation=dilation, bias=False, **alphas)
    for weights in (torch.contiguous_format, torch.channels_last_3d):
        layer.weight.data = layer.weight.data.contiguous(memory_format=weights)
        check(layer, 2, 4, 12, 8)


@pytest.mark.parametrize(("alpha_in", "alpha_out"), ALPHAS)
@pytest.mark.parametrize("kernel", [1, 3])
def test_of_images(kernel: int, alpha_in: float, alpha_out: float) -> None:
    check(OctConv2d(32, 24, kernel, padding=kernel // 2, bias=False, alpha_in=alpha_in, alpha_out=alpha_out), 3, 10, 14)


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("kernel", ["point", "time", "space", "both"])
def test_by_several_threads_the_same(kernel: str, threads: int) -> None:
    size, padding, _ = KERNELS[kernel]
    layer = OctConv3d(64, 80, size, padding=padding, bias=False, alpha_in=0.25, alpha_out=0.5)
    maps, before = [last(x).requires_grad_() for x in inputs_of(layer, 2, 4, 28, 28)], torch.get_num_threads()
    found = []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            results = results_of(layer, maps)
            grads = [last(random(*y.shape, seed=n)) for n, y in enumerate(results)]
            found.append([*results, *torch.autograd.grad(results, [*maps, layer.weight], grads)])
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("without", ["high", "low", "both", "weight"])
def test_only_the_gradients_that_are_wanted(without: str) -> None:
    layer = OctConv3d(32, 48, 1, bias=False, alpha_in=0.25, alpha_out=0.5)
    maps = [
        last(x).requires_grad_(without not in (name, "both"))
        for name, x in zip(("high", "low"), inputs_of(layer, 2, 3, 6, 4), strict=True)
    ]
    layer.weight.requires_grad_(without != "weight")
    wanted = [x for x in (*maps, layer.weight) if x.requires_grad]
    exact = copy.deepcopy(layer).double()
    plain = [x.detach().double().requires_grad_(x.requires_grad) for x in maps]
    (y, low), expected = results_of(layer, maps), results_of(exact, plain)
    assert is_fused(y) == (without != "weight")
    found = torch.autograd.grad(y.square().sum() + low.sum(), wanted)
    reference = torch.autograd.grad(
        expected[0].square().sum() + expected[1].sum(), [x for x in (*plain, exact.weight) if x.requires_grad]
    )
    for one, other in zip(found, reference, strict=True):
        torch.testing.assert_close(one.double(), other, atol=1e-3, rtol=1e-4)


def test_one_result_alone_sends_something_back() -> None:
    layer = OctConv3d(32, 48, 1, bias=False, alpha_in=0.25, alpha_out=0.5)
    maps, exact = inputs_of(layer, 1, 2, 6, 4), copy.deepcopy(layer).double()
    for n in (0, 1):
        y, expected = (results_of(m, [last(x) if m is layer else x.double() for x in maps])[n] for m in (layer, exact))
        found, wanted = (torch.autograd.grad(v.square().sum(), m.weight)[0] for v, m in ((y, layer), (expected, exact)))
        torch.testing.assert_close(found.double(), wanted, atol=1e-3, rtol=1e-4)


def test_gradients_of_gradients() -> None:
    layer = OctConv3d(8, 8, (3, 1, 1), padding=(1, 0, 0), bias=False, alpha_in=0.25, alpha_out=0.5)

    def penalty(layer: Any, maps: Sequence[Tensor]) -> Tensor:
        maps = [x.clone().requires_grad_() for x in maps]
        total = sum(y.square().sum() for y in results_of(layer, maps))
        slopes = torch.autograd.grad(total, maps, create_graph=True)  # type: ignore[arg-type]
        return torch.autograd.grad(sum(s.square().sum() for s in slopes), layer.weight)[0]  # type: ignore[arg-type]

    maps, exact = inputs_of(layer, 1, 3, 6, 4), copy.deepcopy(layer).double()
    found, wanted = penalty(layer, [last(x) for x in maps]), penalty(exact, [x.double() for x in maps])
    torch.testing.assert_close(found.double(), wanted, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"bias": True},
        {"stride": (1, 2, 2)},
        {"groups": 2},
        {"exchange": "none"},
        {"padding_mode": "reflect", "kernel_size": 3, "padding": 1},
        {"octave_downsample": "stride"},
        {"factor": (2, 2, 2)},
    ],
    ids=str,
)
def test_layers_of_other_forms_go_their_ways(options: dict[str, Any]) -> None:
    layer: Any = OctConv3d(
        **{
            "in_channels": 16,
            "out_channels": 16,
            "kernel_size": 1,
            "bias": False,
            "alpha_in": 0.5,
            "alpha_out": 0.5,
            **options,
        }
    )
    assert layer._trained is None


@pytest.mark.parametrize("size", [(7, 8), (8, 7)], ids=str)
def test_maps_of_odd_size_go_their_ways(size: tuple[int, int]) -> None:
    layer = OctConv3d(16, 16, 1, bias=False, alpha_in=0.5, alpha_out=0.5)
    assert not is_fused(run(layer, [last(x) for x in inputs_of(layer, 1, 2, *size)]))
    contiguous = inputs_of(layer, 1, 2, 8, 8)
    assert not is_fused(run(layer, contiguous))
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_fused(run(layer, [last(x) for x in contiguous]))


@pytest.mark.slow
@pytest.mark.usefixtures("narrower_vectors")
def test_on_processors_with_narrower_vectors() -> None:
    for kernel in KERNELS:
        for alpha_in, alpha_out in ALPHAS:
            test_of_clips(kernel, alpha_in, alpha_out, 40)

"""Gradients of convolutions of one pixel's width, with octvideo's library and without it, against torch in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octvideo.octave import arrange
from octvideo.octave.kernel.library import load_library

needs_library = pytest.mark.skipif(load_library() is None, reason="no C++ compiler")
LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=LAYOUTS[x.dim()])


@pytest.fixture(params=["library", "torch"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.param == "torch":
        monkeypatch.setenv("OCTVIDEO_FUSED", "0")
    elif load_library() is None:
        pytest.skip("no C++ compiler")
    load_library.cache_clear()
    yield
    load_library.cache_clear()


def check(conv: nn.Conv2d | nn.Conv3d, *shape: int) -> None:
    """Result and both gradients, whatever the layout of what comes back, and of the weight alone."""
    x = random(*shape)
    plain, weight = x.double().requires_grad_(), conv.weight.detach().double().requires_grad_()
    ordinary: Callable[..., Tensor] = F.conv3d if isinstance(conv, nn.Conv3d) else F.conv2d
    expected = ordinary(plain, weight, None, conv.stride, conv.padding, conv.dilation)
    grad = random(*expected.shape, seed=1)
    wanted = torch.autograd.grad(expected, (plain, weight), grad.double())
    arranged, input = arrange(conv), last(x).requires_grad_()
    y = arranged(input)
    assert ("FusedStep" in names(y.grad_fn)) == (load_library() is not None)
    torch.testing.assert_close(y.double(), expected, atol=1e-4, rtol=1e-4)
    for read in (last(grad), grad):
        found = torch.autograd.grad(y, (input, arranged.weight), read, retain_graph=True)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one.double(), other, atol=1e-3, rtol=1e-4)
    (only,) = torch.autograd.grad(arranged(input.detach()), arranged.weight, grad)
    torch.testing.assert_close(only, found[1])


def names(node: object) -> str:
    """Of a node of the graph and those before it."""
    text, nodes = "", [node]
    while nodes:
        node = nodes.pop()
        text += f" {type(node).__name__}"
        nodes += [before for before, _ in getattr(node, "next_functions", ()) if before is not None]
    return text


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("size", [4, 12], ids=["few pixels", "many pixels"])
@pytest.mark.parametrize(("kernel", "padding", "dilation"), [(3, 1, 1), (3, 0, 1), (3, 2, 2), (2, 1, 1), (5, 2, 1)])
@pytest.mark.parametrize("clips", [1, 3])
def test_over_time(size: int, kernel: int, padding: int, dilation: int, clips: int) -> None:
    geometry = {"padding": (padding, 0, 0), "dilation": (dilation, 1, 1)}
    check(nn.Conv3d(8, 6, (kernel, 1, 1), **geometry, bias=False), clips, 8, 5, size, size)  # type: ignore[arg-type]


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("shape", [(2, 3, 5), (1, 40, 50), (3, 20, 9)], ids=str)
def test_of_images(shape: tuple[int, int, int]) -> None:
    count, height, width = shape
    check(nn.Conv2d(10, 7, 1, bias=False), count, 10, height, width)


CHANNELS = [(2, 1), (3, 2), (5, 3), (16, 16), (17, 33), (48, 20), (96, 9), (130, 70), (31, 150)]


@needs_library
@pytest.mark.parametrize(("ins", "outs"), CHANNELS)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_channels_of_any_number(ins: int, outs: int, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        check(nn.Conv3d(ins, outs, (3, 1, 1), padding=(1, 0, 0), bias=False), 2, ins, 4, 7, 11)
    finally:
        torch.set_num_threads(before)


def test_gradients_of_gradients() -> None:
    over_time, of_images = nn.Conv3d(4, 4, (3, 1, 1), padding=(1, 0, 0), bias=False), nn.Conv2d(4, 4, 1, bias=False)
    for conv, axes in ((over_time, 3), (of_images, 2)):
        x = last(random(1, 4, *(3, 12, 12)[-axes:]))
        ordinary: Callable[..., Tensor] = F.conv3d if axes == 3 else F.conv2d

        def penalty(layer: Callable[[Tensor], Tensor], x: Tensor, weight: Tensor) -> Tensor:
            input = x.clone().requires_grad_()
            (slope,) = torch.autograd.grad(layer(input).square().sum(), input, create_graph=True)
            return torch.autograd.grad(slope.square().sum(), weight)[0]

        weight, padding = conv.weight.detach().clone().requires_grad_(), conv.padding
        plain = penalty(lambda v, w=weight, p=padding, f=ordinary: f(v, w, padding=p), x.contiguous(), weight)  # type: ignore[misc]
        torch.testing.assert_close(penalty(arrange(conv), x, conv.weight), plain, atol=1e-3, rtol=1e-4)


def test_under_autocast() -> None:
    conv, x = nn.Conv3d(8, 8, (3, 1, 1), padding=(1, 0, 0), bias=False), last(random(1, 8, 4, 12, 12))
    (exact,) = torch.autograd.grad(conv(x).square().sum(), conv.weight)
    arranged = arrange(conv)
    with torch.autocast("cpu", torch.bfloat16):
        y = arranged(x)
    assert y.dtype == torch.bfloat16
    (rounded,) = torch.autograd.grad(y.float().square().sum(), conv.weight)
    assert 0 < (rounded - exact).norm() < 0.02 * exact.norm()


def test_transformed_functions() -> None:
    """Gradients of each sample by torch.func, which takes no autograd.Function of the plain kind."""
    conv, x = arrange(nn.Conv2d(3, 4, 1, bias=False)), random(5, 2, 3, 6, 6)

    def loss(weight: Tensor, sample: Tensor) -> Tensor:
        y = torch.func.functional_call(conv, {"weight": weight}, last(sample))
        return y.square().sum()

    each = torch.stack([torch.autograd.grad(loss(conv.weight, sample), conv.weight)[0] for sample in x])
    torch.testing.assert_close(torch.stack([torch.func.grad(loss)(conv.weight, sample) for sample in x]), each)


@pytest.mark.slow
@pytest.mark.usefixtures("narrower_vectors")
def test_on_processors_with_narrower_vectors() -> None:
    for ins, outs in CHANNELS:
        check(nn.Conv3d(ins, outs, (3, 1, 1), padding=(1, 0, 0), bias=False), 2, ins, 4, 7, 11)

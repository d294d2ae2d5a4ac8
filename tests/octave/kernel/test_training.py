"""Octave layers in training, whole by octvideo's library, against the same layers in float64 by torch's operations."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from octvideo.octave import Octave, OctConv2d, OctConv3d, arrange
from octvideo.octave.kernel import library, training
from octvideo.octave.kernel.formats import FORMATS
from octvideo.octave.kernel.fused_conv import has_format
from octvideo.octave.kernel.library import load_library
from tests.octave.kernel.amx import RunWithAmx

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


needs_bf16 = pytest.mark.skipif(not has_format(FORMATS["bf16"]), reason="the kernel has no bfloat16 here")
HALF_ULP = 2.0**-9  # of bfloat16: a value is rounded by at most so much of it


@pytest.fixture(params=[True, False], ids=["bf16 words", "f32 words"])
def words(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the gradient of a weight multiplies, of bfloat16 maps."""
    monkeypatch.setattr(training, "bf16_pays", lambda: request.param)


def penalty(layer: Any, maps: Sequence[Tensor]) -> Tensor:
    """A gradient's gradient, of the weight."""
    maps = [x.clone().requires_grad_() for x in maps]
    total = sum(y.square().sum() for y in results_of(layer, maps))
    slopes = torch.autograd.grad(total, maps, create_graph=True)  # type: ignore[arg-type]
    return torch.autograd.grad(sum(s.square().sum() for s in slopes), layer.weight)[0]  # type: ignore[arg-type]


def run_in_bf16(layer: Any, maps: Sequence[Tensor]) -> list[Tensor]:
    with torch.autocast("cpu", torch.bfloat16):
        return results_of(layer, maps)


def check_in_bf16(layer: Any, *shape: int) -> None:
    """Results and all gradients, of maps that bfloat16 holds, against float64.

    A result is rounded, as is each weight, and each pixel that is pooled on the way. Sums are float32's: some thousands
    of terms. The sum of all products' absolute values, which the same layer gives of absolute values, bounds what that
    changes. The gradient of a weight is not rounded, and its products are of two maps, of which one may be pooled.
    """
    maps = [x.bfloat16().double() for x in inputs_of(layer, *shape)]
    exact, absolute = copy.deepcopy(layer).double(), copy.deepcopy(layer).double()
    absolute.weight.data.abs_()
    grads: list[Tensor] = []
    wanted, bounds = [], []
    for made, own in ((exact, maps), (absolute, [x.abs() for x in maps])):
        plain = [x.requires_grad_() for x in own]
        results = results_of(made, plain)
        grads = grads or [random(*y.shape, seed=2 + n).bfloat16().double() for n, y in enumerate(results)]
        back = grads if made is exact else [g.abs() for g in grads]
        found = torch.autograd.grad(results, [*plain, made.weight], back)
        (wanted if made is exact else bounds).extend([*results, *found])
    read = [last(x.detach().bfloat16()).requires_grad_() for x in maps]
    results = run_in_bf16(layer, read)
    assert is_fused(results[0])
    assert all(y.dtype == torch.bfloat16 and y.is_contiguous(memory_format=LAYOUTS[y.dim()]) for y in results)
    for back in ([last(g.bfloat16()) for g in grads], [g.bfloat16() for g in grads]):
        found = torch.autograd.grad(results, [*read, layer.weight], back, retain_graph=True)
        assert found[-1].dtype == torch.float32
        for one, other, sums in zip([*results, *found], wanted, bounds, strict=True):
            error, roundings = (one.double() - other).abs(), 2 if one is found[-1] else 3
            assert (error <= 1.01 * roundings * HALF_ULP * sums + 1e-6).all()
            assert error.norm() <= roundings * HALF_ULP * other.norm()  # of many errors, most cancel


@needs_bf16
@pytest.mark.usefixtures("words")
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("alpha_in", "alpha_out"), ALPHAS)
def test_of_clips_in_bf16(kernel: str, alpha_in: float, alpha_out: float) -> None:
    size, padding, dilation = KERNELS[kernel]
    alphas = {"alpha_in": alpha_in, "alpha_out": alpha_out}
    layer = OctConv3d(52, 76, size, padding=padding, dilation=dilation, bias=False, **alphas)
    check_in_bf16(layer, 2, 3, 6, 10)


@needs_bf16
@pytest.mark.usefixtures("words")
@pytest.mark.parametrize(("alpha_in", "alpha_out"), ALPHAS)
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_of_images_in_bf16(kernel: int, alpha_in: float, alpha_out: float) -> None:
    alphas = {"alpha_in": alpha_in, "alpha_out": alpha_out}
    check_in_bf16(OctConv2d(24, 40, kernel, padding=kernel // 2, bias=False, **alphas), 3, 10, 14)


@needs_bf16
@pytest.mark.usefixtures("words")
@pytest.mark.parametrize("threads", [2, 3])
def test_by_several_threads_the_same_in_bf16(threads: int) -> None:
    layer = OctConv3d(64, 80, 3, padding=1, bias=False, alpha_in=0.25, alpha_out=0.5)
    maps, before = (
        [last(x.bfloat16()).requires_grad_() for x in inputs_of(layer, 2, 4, 12, 12)],
        torch.get_num_threads(),
    )
    found = []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            results = run_in_bf16(layer, maps)
            grads = [last(random(*y.shape, seed=n).bfloat16()) for n, y in enumerate(results)]
            found.append([*results, *torch.autograd.grad(results, [*maps, layer.weight], grads)])
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-5)


@needs_bf16
def test_autocast_casts_maps_once_and_gives_back_their_format() -> None:
    layer = OctConv3d(32, 48, 1, bias=False, alpha_in=0.25, alpha_out=0.5)
    high, low = inputs_of(layer, 2, 3, 6, 4)
    rounded = [x.bfloat16() for x in (high, low)]
    expected = run_in_bf16(layer, [last(x) for x in rounded])
    for one, other in ((high, low), (rounded[0], low), (high, rounded[1])):  # float32 and bfloat16 may be mixed
        maps = [last(x).requires_grad_() for x in (one, other)]
        results = run_in_bf16(layer, maps)
        assert is_fused(results[0])
        assert all(torch.equal(y, e) for y, e in zip(results, expected, strict=True))
        found = torch.autograd.grad(sum(y.float().square().sum() for y in results), maps)  # type: ignore[arg-type]
        assert [g.dtype for g in found] == [one.dtype, other.dtype]
    y = run(layer, [last(high), last(low)])  # without autocast
    assert is_fused(y)
    assert y.high.dtype == torch.float32


@needs_bf16
def test_other_formats_go_their_ways_under_autocast() -> None:
    layer = OctConv3d(32, 48, 1, bias=False, alpha_in=0.25, alpha_out=0.5)
    maps = [last(x) for x in inputs_of(layer, 2, 3, 6, 4)]
    with torch.autocast("cpu", torch.float16):
        assert not is_fused(run(layer, maps))
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_fused(run(layer.double(), [x.double() for x in maps]))


@needs_bf16
@pytest.mark.usefixtures("words")
def test_nan_in_freed_memory_stays_there() -> None:
    """Scratch memory of the kernel keeps what an earlier, larger layer of NaN left."""
    for kernel in KERNELS:
        size, padding, dilation = KERNELS[kernel]
        geometry: dict[str, Any] = {"padding": padding, "dilation": dilation, "bias": False}
        large = OctConv3d(96, 96, size, **geometry, alpha_in=0.5, alpha_out=0.5)
        maps = [last(torch.full_like(x, torch.nan)) for x in inputs_of(large, 2, 4, 20, 20)]
        results = run_in_bf16(large, maps)
        torch.autograd.grad(results, large.weight, [torch.full_like(y, torch.nan) for y in results])
        check_in_bf16(OctConv3d(21, 37, size, **geometry, alpha_in=0.25, alpha_out=0.5), 1, 3, 6, 10)


@needs_bf16
def test_beside_ordinary_layers_in_bf16() -> None:
    """A network's gradients are as near to float64's as those by torch's operations are."""
    network = nn.Sequential(
        arrange(nn.Conv3d(8, 16, (3, 1, 1), padding=(1, 0, 0), bias=False)),
        nn.BatchNorm3d(16),
        nn.ReLU(),
        OctConv3d(16, 16, (1, 3, 3), padding=(0, 1, 1), bias=False, alpha_in=0, alpha_out=0.5),
        OctConv3d(16, 16, 1, bias=False, alpha_in=0.5, alpha_out=0),
        nn.Conv3d(16, 4, (1, 3, 3)),
    )
    x = random(2, 8, 4, 8, 8)

    def gradients(network: nn.Module, x: Tensor) -> list[Tensor]:
        y = network(x)
        return list(torch.autograd.grad(y.to(x.dtype).square().mean(), list(network.parameters())))

    wanted = gradients(copy.deepcopy(network).double(), x.double())
    with torch.autocast("cpu", torch.bfloat16):
        found, by_torch = gradients(network, last(x)), gradients(network, x)  # contiguous maps go torch's ways
    for one, other, exact in zip(found, by_torch, wanted, strict=True):
        assert one.dtype == torch.float32
        assert (one - exact).norm() <= 2 * (other - exact).norm() + 0.01 * exact.norm() + 1e-6


@needs_bf16
def test_gradients_of_gradients_in_bf16() -> None:
    layer = OctConv3d(8, 8, (3, 1, 1), padding=(1, 0, 0), bias=False, alpha_in=0.25, alpha_out=0.5)
    maps, exact = inputs_of(layer, 1, 3, 6, 4), copy.deepcopy(layer).double()
    with torch.autocast("cpu", torch.bfloat16):
        found = penalty(layer, [last(x) for x in maps])
    wanted = penalty(exact, [x.double() for x in maps])
    assert found.dtype == torch.float32
    assert (found - wanted).norm() < 0.02 * wanted.norm()


def check_on_amx_tiles(file: Path, cases: Sequence[tuple[Any, ...]]) -> None:
    """`check_in_bf16` of layers by a library for AMX, in a process that has tiles."""
    library.kernel_file = lambda: file
    load_library.cache_clear()
    loaded = load_library()
    assert loaded is not None
    assert loaded.tiles_are_used() or loaded.allow_tiles(False)  # the system knows nothing of emulated ones
    training.bf16_pays = lambda: True
    for kernel, ins, outs, alpha_in, alpha_out, *shape in cases:
        size, padding, dilation = KERNELS[kernel]
        geometry: dict[str, Any] = {"padding": padding, "dilation": dilation, "bias": False}
        check_in_bf16(OctConv3d(ins, outs, size, **geometry, alpha_in=alpha_in, alpha_out=alpha_out), *shape)


@pytest.mark.slow
def test_on_amx_tiles(run_with_amx: RunWithAmx, compiler: list[str], tmp_path: Path) -> None:
    file, (variant,) = tmp_path / "amx.so", [v for v in library.VARIANTS if v.name == "amx"]
    library.compile_to(file, compiler, *variant.flags)
    channels = [(21, 37), (48, 96), (96, 40)]
    kernels = ["point", "time", "space", "space, dilated"]
    cases = [
        (kernel, *c, *ALPHAS[(n + m) % 3], 2, 3, 6, 10)
        for n, kernel in enumerate(kernels)
        for m, c in enumerate(channels)
    ]
    done = run_with_amx(check_on_amx_tiles, file, cases, threads=2)
    assert done.products > 0 or not done.emulated


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
        assert not is_fused(run(layer, [last(x) for x in inputs_of(layer, 1, 2, *size)]))
        assert not is_fused(run(layer, contiguous))


@pytest.mark.slow
@pytest.mark.usefixtures("narrower_vectors")
def test_on_processors_with_narrower_vectors() -> None:
    for kernel in KERNELS:
        for alpha_in, alpha_out in ALPHAS:
            test_of_clips(kernel, alpha_in, alpha_out, 40)

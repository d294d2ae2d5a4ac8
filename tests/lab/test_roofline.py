"""The model of time, against counts by hand: of single operations, of two octave layers, of what inductor fuses."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import octvideo.models as models
from lab.roofline.command import main
from lab.roofline.device import DEVICES, Device, Kernel, Product
from lab.roofline.eager import Recorder, eager_kernels, record
from lab.roofline.fake import autocast_on, backward, fake_mode, gradients, laid_out
from lab.roofline.fused import fused_kernels
from octvideo.octave import count_cost, upsample
from octvideo.octave.gpu.norm import octave_norm
from tests.fake_cuda import needs_fake_cuda
from tests.octave.gpu.traffic import traffic

pytestmark = needs_fake_cuda

LAST = torch.channels_last_3d
# A map of 2 clips of 16 channels, 4 frames of 6x6, in bf16: 2 * 16 * 4 * 36 * 2 bytes.
SHAPE = (2, 16, 4, 6, 6)
MAP = 9216


def a_map(*shape: int, dtype: torch.dtype = torch.bfloat16, layout: torch.memory_format = LAST) -> Tensor:
    x = torch.empty(*(shape or SHAPE), dtype=dtype, device="cuda")
    return x.contiguous(memory_format=layout) if x.dim() == 5 else x


def counted(work: Callable[[], Any]) -> list[tuple[str, int]]:
    """Names and bytes of the kernels that `work` launches; a backward pass too if it returns a loss to start from."""

    def with_backward(recorder: Recorder) -> None:
        loss = work()
        if isinstance(loss, Tensor) and loss.dim() == 0:
            recorder.phase = "backward"
            recorder.kernels.clear()
            backward(loss)

    return [(kernel.name, kernel.bytes) for kernel in record(with_backward)]


# ── single operations ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_pointwise_operations_read_and_write_each_map_once() -> None:
    with fake_mode():
        x, y = a_map(), a_map()
        assert counted(lambda: x + y) == [("add", 3 * MAP)]
        assert counted(lambda: x.add_(y)) == [("add_", 3 * MAP)]
        assert counted(lambda: x.relu()) == [("relu", 2 * MAP)]
        assert counted(lambda: x.relu_()) == [("relu_", 2 * MAP)]
        assert counted(lambda: x.float()) == [("copy", 3 * MAP)]
        assert counted(lambda: x + a_map(1, 16, 1, 1, 1)) == [("add", 2 * MAP + 32)]
        column = a_map(2, 16, 4, 6, 1).expand(SHAPE)
        assert counted(lambda: x + column) == [("add", 2 * MAP + MAP // 6)]


def test_views_and_memory_cost_nothing() -> None:
    with fake_mode():
        x = a_map()
        views = [
            lambda: x[:, 4:8],
            lambda: x.permute(0, 2, 3, 4, 1).flatten(0, 1),
            lambda: x.split([4, 12], 1),
            lambda: x.detach(),
            lambda: torch.empty_like(x),
            lambda: x.expand(2, 16, 4, 6, 6).unsqueeze(0),
            lambda: x.contiguous(memory_format=LAST),
            lambda: x.bfloat16(),
        ]
        assert [counted(view) for view in views] == [[]] * len(views)


def test_what_changes_a_layout_is_a_copy() -> None:
    with fake_mode():
        x, plain = a_map(), a_map(layout=torch.contiguous_format)
        assert counted(lambda: x.contiguous()) == [("copy", 2 * MAP)]
        assert counted(lambda: x[:, :4].contiguous(memory_format=LAST)) == [("copy", MAP // 2)]
        assert counted(lambda: x.copy_(plain)) == [("copy", 2 * MAP)]
        assert counted(lambda: x.zero_()) == [("fill", MAP)]
        # torch joins maps of five axes one by one, images at once.
        assert counted(lambda: torch.cat([x, x[:, :8]], 1)) == [("cat", 2 * MAP), ("cat", MAP)]
        images = a_map(8, 16, 6, 6)
        assert counted(lambda: torch.cat([images, images[:, :8]], 1)) == [("cat", 3 * MAP)]


def test_convolution() -> None:
    weight_bytes = 32 * 16 * 9 * 2
    with fake_mode():
        x, weight = a_map(), a_map(32, 16, 1, 3, 3)
        conv: Callable[..., Tensor] = lambda w, x=x: F.conv3d(x, w, padding=(0, 1, 1))  # noqa: E731
        assert counted(lambda: conv(weight)) == [("convolution", MAP + weight_bytes + 2 * MAP)]
        # A weight of the other layout is copied, and so is a part of a map.
        plain = a_map(32, 16, 1, 3, 3, layout=torch.contiguous_format)
        assert counted(lambda: conv(plain)) == [
            ("layout", 2 * weight_bytes),
            ("convolution", MAP + weight_bytes + 2 * MAP),
        ]
        wide = a_map(2, 24, 4, 6, 6)[:, 8:]
        assert counted(lambda: conv(weight, wide))[0] == ("layout", 2 * MAP)
        bias = torch.empty(32, dtype=torch.bfloat16, device="cuda")
        assert counted(lambda: F.conv3d(x, weight, bias, padding=(0, 1, 1)))[1] == ("convolution's bias", 4 * MAP)
        assert conv(weight).is_contiguous(memory_format=LAST)


def test_convolution_as_a_product() -> None:
    with fake_mode():
        x, weight = a_map().requires_grad_(), a_map(32, 16, 1, 3, 3).requires_grad_()

        def work(recorder: Recorder) -> None:
            y = F.conv3d(x, weight, stride=(1, 2, 2), padding=(0, 1, 1))
            recorder.phase = "backward"
            backward(y.sum())

        kernels = [kernel for kernel in record(work) if kernel.product is not None]
    pixels, all_pixels = 2 * 4 * 9, 2 * 4 * 36
    assert [kernel.product for kernel in kernels] == [
        Product(pixels, 32, 9 * 16),
        Product(all_pixels, 16, 3 * 32),  # of 9 taps, two or three meet each pixel of a strided map's input
        Product(32, 9 * 16, pixels),
    ]
    assert [kernel.phase for kernel in kernels] == ["forward", "backward", "backward"]


def test_batch_norm() -> None:
    vector = 16 * 4
    with fake_mode():
        x = a_map().requires_grad_()
        norm = nn.BatchNorm3d(16, device="cuda")
        forward = [
            ("statistics", MAP + 2 * vector),
            ("running statistics", 7 * vector),
            ("batch norm", 2 * MAP + 4 * vector),
        ]
        assert counted(lambda: norm(x)) == [("add_", 16), *forward]  # num_batches_tracked, one int64
        back = counted(lambda: norm(x).sum())
        assert [entry for entry in back if "batch norm" in entry[0]] == [
            ("batch norm's sums", MAP + 2 + 6 * vector),  # of a sum: its gradient is one element, expanded
            ("batch norm, backward", 2 * MAP + 2 + 5 * vector),
        ]
        norm.eval()
        with torch.no_grad():
            assert counted(lambda: norm(x))[-1] == ("batch norm", 2 * MAP + 4 * vector)


def test_pools_and_upsampling() -> None:
    with fake_mode():
        images = a_map(8, 16, 6, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
        assert counted(lambda: F.avg_pool2d(images, 2)) == [("avg_pool2d", MAP + MAP // 4)]
        assert counted(lambda: F.interpolate(images, scale_factor=2.0)) == [("upsample_nearest2d", 5 * MAP)]
        back = dict(counted(lambda: F.avg_pool2d(images, 2).sum()))
        assert back["average pool, backward"] == 2 + MAP
        clips = a_map().requires_grad_()
        indices = 4 * MAP // 4
        forward = counted(lambda: F.max_pool3d(clips, (1, 2, 2)))
        assert forward == [("max_pool3d_with_indices", MAP + MAP // 4 + indices)]
        back = dict(counted(lambda: F.max_pool3d(clips, (1, 2, 2)).sum()))
        assert back["fill"] == MAP and back["max pool, backward"] == indices + 3 * 2


def test_products_of_matrices_and_lists() -> None:
    with fake_mode():
        a, b = torch.empty(64, 32, device="cuda"), torch.empty(32, 8, device="cuda")
        assert counted(lambda: a @ b) == [("mm", 4 * (64 * 32 + 32 * 8 + 64 * 8))]
        parts = [torch.empty(10, device="cuda") for _ in range(65)]
        assert counted(lambda: torch._foreach_add_(parts, 1)) == [("_foreach_add_", 65 * 80 // 2)] * 2


def test_upsampling_under_autocast() -> None:
    """torch's CUDA autocast interpolates in float32: an upsampled low part must not make its sum so."""
    with fake_mode(), autocast_on("bf16"):
        assert torch.is_autocast_enabled("cuda")
        x = a_map()
        y = F.conv3d(x, a_map(16, 16, 1, 1, 1, dtype=torch.float32))
        assert y.dtype == torch.bfloat16
        assert F.interpolate(a_map(8, 16, 6, 6), scale_factor=2.0).dtype == torch.float32


# ── backward from Python ──────────────────────────────────────────────────────────────────────────────────────────────


class Scaled(torch.autograd.Function):
    """Arguments that are no tensors, one without a gradient, and a result that nobody reads."""

    @staticmethod
    def forward(ctx: Any, factor: float, x: Tensor, constant: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        ctx.factor = factor
        ctx.save_for_backward(x)
        return factor * x + constant + y, x * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor, unread: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return None, ctx.factor * grad + 2 * unread + 0 * x, None, grad.sum(0, keepdim=True)


def test_gradients_are_those_of_the_engine() -> None:
    draw = torch.Generator().manual_seed(0)
    x, w, v = (torch.randn(*shape, generator=draw).requires_grad_() for shape in ((4, 3), (3, 5), (1, 5)))
    unused = torch.randn(2).requires_grad_()

    def loss() -> Tensor:
        y = torch.tanh(x @ w)
        first, _ = Scaled.apply(3.0, y, torch.ones(5), v)  # type: ignore[no-untyped-call]
        a, b = first.split([2, 3], 1)
        a = a.clone()
        a[:, 0] += b[:, 0]  # in place, on a view
        return (a.relu() * 2).sum() + (b * y[:, 2:]).mean() + y[0].sum()

    expected = torch.autograd.grad(loss(), [x, w, v, unused], allow_unused=True)
    found = gradients([loss()], [x, w, v, unused])
    assert found[3] is None
    for one, other in zip(found[:3], expected[:3], strict=True):
        assert one is not None and torch.equal(one, other)
    inner = x @ w
    through = gradients([inner.exp().sum()], [inner])  # up to a value in the middle
    assert through[0] is not None and torch.equal(through[0], inner.exp())

    backward(loss())
    for leaf, grad in zip((x, w, v), expected, strict=False):
        assert leaf.grad is not None and torch.equal(leaf.grad, grad)
    backward(loss())
    assert x.grad is not None and torch.equal(x.grad, expected[0] + expected[0])


# ── two octave layers ─────────────────────────────────────────────────────────────────────────────────────────────────


class Layer(nn.Module):
    """An octave layer with batch norm and ReLU, written out: 1x1 convolutions of images, 4 of 16 channels low."""

    def __init__(self) -> None:
        super().__init__()
        for name, outs, ins in (("hh", 12, 12), ("lh", 12, 4), ("to_low", 4, 16)):
            self.register_parameter(name, nn.Parameter(torch.empty(outs, ins, 1, 1)))
        self.norm_high, self.norm_low = nn.BatchNorm2d(12), nn.BatchNorm2d(4)

    def forward(self, high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        up = upsample(F.conv2d(low, self.lh), high.shape[2:]).to(high.dtype)
        joined = torch.cat([F.avg_pool2d(high, 2), low], 1)
        y_high, y_low = F.conv2d(high, self.hh) + up, F.conv2d(joined, self.to_low)
        return F.relu(self.norm_high(y_high)), F.relu(self.norm_low(y_low))


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Layer(), Layer()

    def forward(self, x: Tensor) -> Tensor:
        high, low = self.second(
            *self.first(x[:, :12, 0], x[:, 12:, 0, :4, :4].contiguous(memory_format=torch.channels_last))
        )
        return torch.cat([high.mean((2, 3)), low.mean((2, 3))], 1)


def test_two_octave_layers_forward_and_back() -> None:
    """Float32, so that autocast adds nothing: 2 images of 8x8, 12 high channels, 4 low ones at 4x4."""
    kernels = eager_kernels(TwoLayers(), (2, 16, 1, 8, 8), mode="training", precision="f32")
    high, low, half = 2 * 12 * 64 * 4, 2 * 4 * 16 * 4, 2 * 12 * 16 * 4  # bytes of y_high, y_low, conv(x_low; W_lh)
    weights = {"hh": 576, "lh": 192, "low": 256}
    forward = [kernel for kernel in kernels if kernel.phase == "forward"]
    back = [kernel for kernel in kernels if kernel.phase == "backward"]

    def total(name: str, own: list[Kernel]) -> tuple[int, int]:
        found = [kernel.bytes for kernel in own if kernel.name == name]
        return len(found), sum(found)

    convs = 2 * high + 576 + (low + half + 192) + (half + low + low + 256)
    assert total("convolution", forward) == (6, 2 * convs)
    assert total("upsample_nearest2d", forward) == (2, 2 * (half + high))
    assert total("add", forward) == (2, 2 * 3 * high)
    assert total("avg_pool2d", forward) == (2, 2 * (high + half))
    # In each layer, and the two means at the end, of 12 and 4 channels.
    assert total("cat", forward) == (3, 2 * 2 * (half + low) + 2 * 2 * 16 * 4)
    assert total("relu", forward) == (4, 2 * 2 * (high + low))
    assert total("statistics", forward) == (4, 2 * (high + low + 2 * 64))
    assert total("batch norm", forward) == (4, 2 * (2 * (high + low) + 4 * 64))

    # The first layer's inputs want no gradient: one convolution to maps less for each of its three.
    to_maps = (2 * high + 576) + (half + low + 192) + (low + half + low + 256)
    assert total("convolution, to maps", back) == (3, to_maps)
    assert total("convolution, to weight", back) == (6, 2 * convs)
    # Reads the gradient and the result, writes one; the last layer's gradient is a mean's, divided: a whole map.
    assert total("threshold_backward", back) == (4, 2 * 3 * (high + low))
    assert total("upsample_nearest2d_backward", back) == (2, 2 * (high + half))
    assert total("average pool, backward", back) == (1, half + high)
    # y_high of the first layer has two readers, y_low two; a part of the joined map is added as it is.
    assert total("add", back) == (2, 3 * high + 3 * low)
    assert total("batch norm's sums", back) == (4, 2 * (2 * (high + low) + 6 * 64))
    assert total("batch norm, backward", back) == (4, 2 * (3 * (high + low) + 5 * 64))
    assert sum(weights.values()) == 4 * (12 * 12 + 12 * 4 + 4 * 16)


@pytest.mark.parametrize("alpha", [0, 0.5])
def test_multiply_adds_are_those_of_count_cost(alpha: float) -> None:
    """Of channels that need no rounding up."""
    with torch.device("meta"):
        network = models.c2d_small(10, alpha, width=32)
    clip = (2, 3, 2, 32, 32)
    expected = count_cost(network, clip).multiply_adds
    kernels = eager_kernels(network, clip, mode="inference", precision="bf16")
    products = [kernel.product for kernel in kernels if kernel.product is not None]
    stem = products[0]
    assert stem.depth % 8 == 0  # 3 channels are rounded up to 8
    found = sum(product.flops for product in products) - stem.flops * 5 // 8
    assert found == 2 * expected
    assert {kernel.phase for kernel in kernels} == {"forward"}


# ── the device ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_kernel_takes_the_larger_of_moving_and_multiplying() -> None:
    device = Device(bandwidth=1e12, half_rate=1e14, float_rate=1e13, launch=1e-6, tile=32)
    assert device.seconds(Kernel("add", "other", 10**9, "forward")) == pytest.approx(1e-3 + 1e-6)
    full = Product(10**6, 64, 512)
    assert full.flops == 2 * 10**6 * 64 * 512
    bound = Kernel("convolution", "convolution", 1000, "forward", full)
    assert device.seconds(bound) == pytest.approx(full.flops / 1e14 + 1e-6)
    in_float = Kernel("convolution", "convolution", 1000, "forward", Product(10**6, 64, 512, half=False))
    assert device.seconds(in_float) == pytest.approx(full.flops / 1e13 + 1e-6)
    thin = Product(10**6, 6, 72)  # 6 of a tile's 32 columns, 72 of 80 steps
    assert device.efficiency(thin) == pytest.approx(6 / 32 * 72 / 80)
    assert DEVICES["h200"].total([bound] * 3) == pytest.approx(3 * DEVICES["h200"].seconds(bound))
    assert all(device.source for device in DEVICES.values())


# ── inductor ──────────────────────────────────────────────────────────────────────────────────────────────────────────

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="inductor needs Triton for GPUs")


@needs_triton
@pytest.mark.parametrize(("residual", "again"), [(False, False), (True, False), (True, True), (False, True)])
def test_octave_norm_moves_what_it_says(residual: bool, again: bool) -> None:
    """Of 2 clips of 4 frames, 24 high channels at 10x10 and 8 low ones at 5x5."""
    high_shape, low_shape, half_shape = (2, 24, 4, 10, 10), (2, 8, 4, 5, 5), (2, 24, 4, 5, 5)
    with fake_mode():
        high, low, half, *more = (
            a_map(*shape).requires_grad_()
            for shape in (high_shape, low_shape, half_shape, *((high_shape, low_shape) if residual else ()))
        )
        weight, bias, mean, var = (torch.empty(32, device="cuda") for _ in range(4))
        vectors = weight.requires_grad_(), bias.requires_grad_(), mean, var

        def work(recorder: Recorder) -> None:
            residuals = more or [None, None]
            maps = octave_norm(high, half, low, *residuals, *vectors, training=True, pools=True, again=again)
            recorder.phase = "backward"
            dense = [torch.empty_like(y) for y in maps if y is not None]
            gradients([y for y in maps if y is not None], [high, half, low, *more, *vectors[:2]], dense)

        kernels = [kernel for kernel in record(work) if kernel.kind == "normalisation"]
    expected = traffic(high_shape, 8, half=True, residual=residual, pools=True, again=again)
    for phase, said in zip(("forward", "backward"), expected, strict=True):
        own = [kernel for kernel in kernels if kernel.phase == phase]
        assert len(own) == said.kernels
        # Beside the maps it moves a few vectors of 32 channels.
        assert 0 <= sum(kernel.bytes for kernel in own) - (said.read + said.written) <= 20 * 32 * 4


class Block(nn.Module):
    """A convolution, batch norm, a residual and ReLU, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv3d(16, 16, (1, 3, 3), padding=(0, 1, 1), bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm3d(16) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)) + x)
        return x


@pytest.mark.slow
@needs_triton
def test_inductor_fuses_what_lies_between_convolutions() -> None:
    """Forward alone, float32: what follows a convolution is one kernel, which reads its result and the residual."""
    shape = (2, 16, 4, 32, 32)
    size = 4 * 2 * 16 * 4 * 1024
    with torch.device("meta"):
        network = Block()
    kernels = fused_kernels(network, shape, DEVICES["h200"], mode="inference", precision="f32")
    assert [kernel.kind for kernel in kernels] == ["convolution", "normalisation"] * 2
    assert [kernel.bytes for kernel in kernels] == [2 * size + 4 * 16 * 16 * 9, 3 * size + 4 * 4 * 16] * 2


@needs_triton
@pytest.mark.slow
def test_inductor_fuses_training() -> None:
    """No map is read or written more often than by hand: statistics, normalisation; sums and gradient."""
    shape = (2, 16, 4, 64, 64)
    size = 4 * 2 * 16 * 4 * 4096
    with torch.device("meta"):
        network = Block()
    kernels = fused_kernels(network, shape, DEVICES["h200"], mode="training", precision="f32")
    assert {kernel.phase for kernel in kernels} == {"forward", "backward"}
    convs = [kernel for kernel in kernels if kernel.kind == "convolution" and kernel.product is not None]
    assert len(convs) == 2 + 4 - 1  # the clips want no gradient
    # Forward, each time: statistics read a map, the rest reads it and the residual and writes one.
    maps = [round(k.bytes / size) for k in kernels if k.phase == "forward" and k.product is None and k.bytes > size / 2]
    assert sorted(maps) == [1, 1, 3, 3]


# ── the command ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_command_counts_and_shows_what_it_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, picture = tmp_path / "counts.json", tmp_path / "picture.png"
    words = [
        "c2d_small",
        "--alphas",
        "0",
        ".5:8",
        "--works",
        "inference",
        "--views",
        "2",
        "--crop",
        "32",
        "--frames",
        "2",
    ]
    assert main([*words, "--json", str(file), "--png", str(picture), "--largest", "2"]) == 0
    printed = capsys.readouterr().out
    assert "predicted, not measured" in printed and "largest of c2d_small α .5:8" in printed
    assert picture.stat().st_size > 1000
    ordinary, octave = json.loads(file.read_text())["rows"]
    assert ordinary["of_ordinary"] == 1 and octave["channel_multiple"] == 8
    assert octave["flops"] < ordinary["flops"]
    assert sum(launch["count"] for launch in octave["launches"]) == octave["kernels"]
    assert sum(octave["by_kind"].values()) == pytest.approx(octave["milliseconds"])

    slow = ["--bandwidth", ".001", "--launch", "0", "--half_rate", "1e9", "--markdown"]
    assert main(["--from", str(file), *slow]) == 0
    printed = capsys.readouterr().out
    milliseconds = ordinary["bytes"] / 1e9 * 1e3
    assert f"| {milliseconds:.2f} | 1.00 |" in printed


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["i3d"], "network: got 'i3d', expected a builder of octvideo.models"),
        (["i3d_small", "--alphas", "1.5"], "got 1.5, expected a share of 0 to 1"),
        (["i3d_small", "--launch", "-1"], "--launch: got -1, expected 0 or more"),
        (["i3d_small", "--launch", "nan"], "--launch: got nan, expected 0 or more"),
        (["i3d_small", "--json", "/nowhere/step.json"], "--json: /nowhere is no folder"),
        (["c2d_small", "--alphas", "0", "--crop", "1", "--frames", "1"], "can't be counted with clips of 32x3x1x1x1"),
    ],
)
def test_mistakes_are_told(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert told in capsys.readouterr().err


def test_another_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other.json").write_text("{}")
    assert main(["--from", str(tmp_path / "other.json")]) == 2
    assert "expected a file that --json wrote" in capsys.readouterr().err


def test_channels_last_is_of_maps_alone() -> None:
    with fake_mode():
        assert laid_out(torch.empty(2, 3), True).shape == (2, 3)
        assert laid_out(torch.empty(SHAPE), True).stride(1) == 1
        assert laid_out(torch.empty(SHAPE), False).is_contiguous()


@pytest.mark.slow
def test_octave_networks_are_predicted_faster_than_ordinary_ones(tmp_path: Path) -> None:
    """I3D-50 in its forms for CUDA against the ordinary one as torch runs it: the claims of docs/gpu.md."""
    file = tmp_path / "counts.json"
    words = ["i3d_r50", "--alphas", "0", ".1:8", ".25", "--works", "training", "prepared", "--forms", "plain", "cuda"]
    assert main([*words, "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    found = {(row["work"], row["forms"], row["alpha"]): row for row in rows}
    plain, octave = found["training", "plain", 0], found["training", "cuda", 0.25]
    assert octave["of_plain"] <= 0.92 and octave["kernels"] <= 1.6 * plain["kernels"]
    assert octave["of_ordinary"] < 1.0
    assert found["training", "cuda", 0.1]["of_plain"] <= 1.0
    assert found["prepared", "cuda", 0.25]["of_plain"] <= 0.90
    assert found["training", "plain", 0.25]["of_plain"] > 1.0

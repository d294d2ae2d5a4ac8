"""Networks of light blocks, prepared, against the networks themselves: one sequence, with nothing of torch between."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from octvideo.octave import add_temporal_shifts, fuse_convolutions, octavize, prepare_inference
from octvideo.octave.fused.light_operations import PreparedScale, PreparedShift
from octvideo.octave.fused.quantize import quantize
from octvideo.octave.fused.sequence import FusedSequence
from octvideo.octave.kernel.formats import FORMATS
from octvideo.octave.kernel.fused_conv import has_format
from tests.octave.conversion.networks import NETWORKS, Network
from tests.octave.conversion.test_networks import measure_norms
from tests.octave.kernel.cases import needs_library

INVERTED = {"blocks.0.expand": 0.5, "blocks.0.depthwise": 0.5, "blocks.1": 0.5}
WAYS = ("ordinary", "stride", "keep", "pool", "calibrated", "time octave")


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)


class Gate(nn.Module):
    def __init__(self, axes: int, channels: int, kind: str) -> None:
        super().__init__()
        conv: Any = nn.Conv2d if axes == 2 else nn.Conv3d
        self.axes = tuple(range(2, 2 + axes))
        self.reduce, self.expand = conv(channels, 5, 1), conv(5, 1 if kind == "one channel" else channels, 1)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(self.axes, keepdim=True)
        gate = torch.sigmoid(self.expand(torch.relu(self.reduce(mean))))
        return x + gate if self.kind == "added" else gate * x


class Block(nn.Module):
    def __init__(self, axes: int, ins: int, outs: int, stride: int, kind: str) -> None:
        super().__init__()
        conv: Any = nn.Conv2d if axes == 2 else nn.Conv3d
        norm: Any = nn.BatchNorm2d if axes == 2 else nn.BatchNorm3d
        self.expand, self.norm1 = conv(ins, 20, 1, bias=False), norm(20)
        strides = (stride,) * 2 if axes == 2 else (1, stride, stride)
        self.depthwise, self.norm2 = conv(20, 20, 3, strides, 1, groups=20, bias=False), norm(20)
        self.gate = Gate(axes, 20, kind)
        self.project, self.norm3 = conv(20, outs, 1, bias=False), norm(outs)
        self.adds, self.act, self.adds_early = (
            stride == 1 and ins == outs,
            nn.SiLU(),
            kind == "adds early" and stride == 1,
        )

    def forward(self, x: Tensor) -> Tensor:
        first = nn.functional.relu6(self.norm1(self.expand(x)))
        y = self.norm2(self.depthwise(first))
        y = y + first if self.adds_early else y
        y = self.norm3(self.project(self.act(self.gate(y))))
        return x + y if self.adds else y


class Light(nn.Module):
    """A stem, two inverted residuals, a head."""

    def __init__(self, axes: int = 2, kind: str = "usual") -> None:
        super().__init__()
        conv: Any = nn.Conv2d if axes == 2 else nn.Conv3d
        kernel = (3, 3) if axes == 2 else (1, 3, 3)
        self.stem = conv(3, 12, kernel, (*kernel[:-2], 2, 2), tuple(k // 2 for k in kernel))
        self.blocks = nn.ModuleList([Block(axes, 12, 12, 1, kind), Block(axes, 12, 16, 2, kind)])
        self.head, self.act, self.classes = conv(16, 24, 1), nn.Hardswish(), nn.Linear(24, 7)
        self.axes = tuple(range(2, 2 + axes))

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.hardswish(self.stem(x))
        for block in self.blocks:
            x = block(x)
        x = self.act(self.head(x))
        return self.classes(x.mean(self.axes))


def clip(axes: int, count: int = 2, seed: int = 0) -> Tensor:
    shape = (count, 3, *([5] if axes == 3 else []), 29, 37)
    return last(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


def network(axes: int, way: str, kind: str = "usual") -> nn.Module:
    torch.manual_seed(0)
    made = Light(axes, kind)
    measure_norms(made, clip(axes, 4, 1))
    made.eval()
    if way == "ordinary":
        return made
    if way == "calibrated":
        return octavize(made, INVERTED, calibration=[clip(axes, 4, n) for n in range(3)]).eval()
    if way == "time octave":
        return octavize(made, INVERTED, factor=(2, 2, 2)).eval()
    return octavize(made, INVERTED, octave_downsample=way).eval()  # type: ignore[arg-type]


def sequences(prepared: nn.Module) -> list[FusedSequence]:
    return [module for module in prepared.modules() if isinstance(module, FusedSequence)]


def near(found: Tensor, expected: Tensor, most: float = 1e-4) -> None:
    """The greatest difference, as a part of the greatest score."""
    assert found.shape == expected.shape
    assert ((found - expected).abs().max() / expected.abs().max()).item() < most


@needs_library
@pytest.mark.parametrize(
    ("axes", "way"),
    [
        *((3, way) for way in WAYS),
        (2, "pool"),
        *(pytest.param(2, way, marks=pytest.mark.slow) for way in WAYS if way not in ("pool", "time octave")),
    ],
)
def test_scores_are_the_networks(axes: int, way: str) -> None:
    own = network(axes, way)
    prepared, before = prepare_inference(own), torch.get_num_threads()
    assert sum(isinstance(m, PreparedScale) for m in prepared.modules()) == 2
    if way in ("ordinary", "pool"):
        assert [len(s.convs) for s in sequences(prepared)] == [1 + 2 * 7 + 1]
    try:
        with torch.inference_mode():
            for count, threads in ((1, 1), (3, 1), (3, 2)):
                torch.set_num_threads(threads)
                x = clip(axes, count)
                near(prepared(x), own(x))
            for clone in (copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared))):
                near(clone(x), own(x))
            near(prepared.double()(x.double()).float(), own(x))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", ["added", "one channel", "adds early"])
@pytest.mark.parametrize("way", ["ordinary", "pool", "time octave"])
def test_what_only_looks_like_a_light_block(way: str, kind: str) -> None:
    """A sum with a gate; a gate of one channel; a depthwise convolution that is added to something."""
    own, x = network(3, way, kind), clip(3)
    with torch.inference_mode():
        near(prepare_inference(own)(x), own(x))


class Pooled(nn.Module):
    """A convolution, and what follows its max pool."""

    def __init__(self, adds: bool) -> None:
        super().__init__()
        self.conv, self.pool, self.other = nn.Conv2d(3, 8, 1), nn.MaxPool2d(2), nn.Conv2d(3, 8, 1, 2)
        self.adds = adds

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.other(x)
        y = self.pool(self.conv(x))
        return y + shortcut if self.adds else nn.functional.silu(y) + shortcut


@pytest.mark.parametrize("adds", [False, True])
def test_what_follows_a_max_pool_is_not_done_before_it(adds: bool) -> None:
    torch.manual_seed(0)
    own, x = Pooled(adds).eval(), last(torch.randn(2, 3, 8, 10))
    with torch.inference_mode():
        near(prepare_inference(own)(x), own(x))


@pytest.mark.skipif(not has_format(FORMATS["bf16"]), reason="no bf16 on this processor")
@pytest.mark.parametrize("way", ["ordinary", "pool", "calibrated"])
def test_bfloat16_is_near(way: str) -> None:
    own = network(3, way)
    prepared, x = prepare_inference(own), clip(3)
    with torch.inference_mode():
        expected = prepared(x)
        for sequence in sequences(prepared):
            sequence.set_format(FORMATS["bf16"])
        found = prepared(x)
    assert not torch.equal(found, expected)
    near(found, expected, 0.03)


@pytest.mark.skipif(not has_format(FORMATS["int8"]), reason="no int8 on this processor")
@pytest.mark.parametrize("way", ["ordinary", "pool", "calibrated"])
def test_int8_is_near(way: str) -> None:
    own = network(3, way)
    prepared, x = prepare_inference(own), clip(3)
    with torch.inference_mode():
        expected = prepared(x)
        quantize(prepared, [clip(3, 4, n) for n in range(4)])
        found = prepared(x)
    assert ((found - expected).std() / expected.std()).item() < 0.1


@needs_library
@pytest.mark.parametrize("way", ["ordinary", "pool"])
def test_compiled_and_exported(way: str) -> None:
    own, x = network(2, way), clip(2)
    prepared = prepare_inference(own)
    with torch.no_grad():
        expected = own(x)
        exported = torch.export.export(prepared, (x,), strict=False).module()
        near(exported(x), expected)
        fuse_convolutions(prepared)
        compiled = torch.compile(prepared, backend="eager", fullgraph=True)
        near(compiled(x), expected)
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ordinary", "pool", "calibrated"])
def test_onnx_and_openvino(way: str, tmp_path: Path) -> None:
    onnxruntime, openvino = pytest.importorskip("onnxruntime"), pytest.importorskip("openvino")
    own, x = network(3, way), clip(3)
    prepared, file = prepare_inference(own), tmp_path / "light.onnx"
    with torch.no_grad():
        expected = own(x)
        torch.onnx.export(prepared, (x.contiguous(),), str(file), dynamo=True, input_names=["x"])
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    near(torch.from_numpy(session.run(None, {"x": x.contiguous().numpy()})[0]), expected)
    compiled = openvino.compile_model(openvino.convert_model(str(file)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    near(torch.from_numpy(compiled(x.contiguous().numpy())[0]), expected)


def _timm(name: str) -> Any:
    return lambda: pytest.importorskip("timm").create_model(name, num_classes=40)


IMAGE = ((2, 3, 45, 67),)
OTHERS = [Network(f"timm-{name}", _timm(name), IMAGE, IMAGE, 1.0) for name in ("efficientnet_lite0", "convnext_atto")]
LIGHT = ("x3d_s", "csn_r101", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0", "seresnet50", "resnext50_32x4d")


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0, 0.25, 0.5])
@pytest.mark.parametrize(
    "entry", [*OTHERS, *[n for n in NETWORKS if n.name.endswith(LIGHT)]], ids=lambda entry: entry.name
)
def test_whole_networks(entry: Network, alpha: float) -> None:
    torch.manual_seed(0)
    own = entry.build()
    measure_norms(own, entry.random_input(1))
    own.eval()
    for way in ("pool", "stride", "keep") if alpha == 0.25 else ("pool",):
        network = octavize(own, alpha, octave_downsample=way).eval() if alpha else own  # type: ignore[arg-type]
        with torch.inference_mode():
            x = entry.random_input()
            found, expected = prepare_inference(network)(last(x)), network(x)
            near(found, expected)


class Aggregated(nn.Module):
    """Bottlenecks with grouped convolutions, the second one strided, as of ResNeXt."""

    def __init__(self, axes: int) -> None:
        super().__init__()
        conv: Any = nn.Conv2d if axes == 2 else nn.Conv3d
        norm: Any = nn.BatchNorm2d if axes == 2 else nn.BatchNorm3d
        kernel, time = ((3, 3), ()) if axes == 2 else ((1, 3, 3), (1,))
        self.stem, self.axes = conv(3, 24, 1), tuple(range(2, 2 + axes))
        self.first, self.last = nn.ModuleList([conv(24, 32, 1) for _ in "ab"]), nn.ModuleList()
        self.grouped, self.norms = nn.ModuleList(), nn.ModuleList([norm(32) for _ in "ab"])
        for stride in (1, 2):
            padding = tuple(k // 2 for k in kernel)
            self.grouped.append(conv(32, 32, kernel, (*time, stride, stride), padding, groups=8, bias=False))
            self.last.append(conv(32, 24, 1))
        self.classes = nn.Linear(24, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        for n, (first, grouped, norm, last) in enumerate(
            zip(self.first, self.grouped, self.norms, self.last, strict=True)
        ):
            y = last(norm(grouped(first(x).relu())).relu())
            x = (y if n else x + y).relu()
        return self.classes(x.mean(self.axes))


def aggregated(axes: int, alpha: float, way: Any = "pool", exchange: Any = "both") -> nn.Module:
    torch.manual_seed(0)
    made = Aggregated(axes)
    measure_norms(made, clip(axes, 4, 1))
    return octavize(made.eval(), alpha, octave_downsample=way, exchange=exchange).eval()


@needs_library
@pytest.mark.parametrize(
    ("axes", "alpha", "way", "exchange"),
    [
        *[(2, 0, "pool", "both"), (3, 0.25, "pool", "both"), (2, 0.5, "pool", "both"), (2, 0.75, "pool", "none")],
        *[(2, 0.25, "stride", "both"), (3, 0.5, "keep", "both"), (2, 0.125, "pool", "both")],
        *[(2, 0.5, "pool", "low_to_high"), (2, 0.25, "pool", "high_to_low")],
    ],
)
def test_grouped_convolutions(axes: int, alpha: float, way: str, exchange: str) -> None:
    """Octave ones too are layers of the sequence, with an exchange and without one."""
    own = aggregated(axes, alpha, way, exchange)
    prepared = prepare_inference(own)
    if way == "pool" and alpha != 0.125:  # which moves whole groups
        assert [len(sequence.convs) for sequence in sequences(prepared)] == [7]
    with torch.inference_mode():
        for count in (1, 3):
            x = clip(axes, count)
            near(prepared(x), own(x))
        for clone in (copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared))):
            near(clone(x), own(x))
        near(prepared.double()(x.double()).float(), own(x))


@pytest.mark.parametrize("by", ["oneDNN", "export", pytest.param("compile", marks=pytest.mark.slow)])
def test_grouped_convolutions_without_the_kernel(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own, x = aggregated(2, 0.25), clip(2)
    prepared = prepare_inference(own)
    with torch.no_grad():
        expected = own(x)
        if by == "oneDNN":
            monkeypatch.setattr(FusedSequence, "_plan_for", lambda *_: None)
            near(prepared(x), expected)
        elif by == "export":
            near(torch.export.export(prepared, (x,), strict=False).module()(x), expected)
        else:
            near(torch.compile(prepared, backend="eager", fullgraph=True)(x), expected)
            torch._dynamo.reset()


@pytest.mark.parametrize("name", ["bf16", "int8"])
@pytest.mark.parametrize("alpha", [0.25, 0.5])
def test_grouped_convolutions_in_other_formats(name: str, alpha: float) -> None:
    if not has_format(FORMATS[name]):
        pytest.skip(f"no {name} on this processor")
    prepared, x = prepare_inference(aggregated(3, alpha)), clip(3)
    with torch.inference_mode():
        expected = prepared(x)
        if name == "int8":
            quantize(prepared, [clip(3, 4, n) for n in range(4)])
        else:
            (sequence,) = sequences(prepared)
            sequence.set_format(FORMATS[name])
        found = prepared(x)
    assert not torch.equal(found, expected)
    assert ((found - expected).std() / expected.std()).item() < 0.1


class Clips(nn.Module):
    """A network of images on clips of three frames."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.network(x, 3)
        return made


def shifted(alpha: float, *, online: bool = False) -> nn.Module:
    """Of images, with temporal shifts before its blocks' first convolutions."""
    torch.manual_seed(0)
    made = Light(2, "usual")
    measure_norms(made, clip(2, 4, 1))
    network = octavize(made.eval(), dict.fromkeys(INVERTED, alpha), octave_downsample="pool", inverted_residuals="all")
    add_temporal_shifts(network, 0.25, online=online)
    return network.eval()


@needs_library
@pytest.mark.parametrize("online", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_temporal_shifts_are_layers_of_the_sequence(alpha: float, online: bool) -> None:
    own = shifted(alpha, online=online)
    prepared, before = prepare_inference(own), torch.get_num_threads()
    (sequence,) = sequences(prepared)
    assert sum(isinstance(conv, PreparedShift) for conv in sequence.convs) == 1  # one block has a shortcut
    try:
        with torch.inference_mode():
            for count, num_frames, threads in ((6, 3, 1), (6, 6, 1), (5, 1, 1), (12, 3, 2), (12, 12, 2)):
                torch.set_num_threads(threads)
                x = clip(2, count)
                near(prepared(x, num_frames), own(x, num_frames))
                assert not torch.allclose(prepared(x, num_frames), prepared(x, 1), atol=1e-4) or num_frames == 1
            with pytest.raises(RuntimeError, match=r"unflatten|divisible|don't multiply"):
                prepared(clip(2, 5), 3)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["bf16", "int8"])
def test_temporal_shifts_in_other_formats(name: str) -> None:
    if not has_format(FORMATS[name]):
        pytest.skip(f"no {name} on this processor")
    prepared, x = Clips(prepare_inference(shifted(0.5))), clip(2, 6)
    with torch.inference_mode():
        expected = prepared(x)
        if name == "int8":
            quantize(prepared, [clip(2, 6, n) for n in range(4)])
        else:
            (sequence,) = sequences(prepared)
            sequence.set_format(FORMATS[name])
        found = prepared(x)
    assert not torch.equal(found, expected)
    assert ((found - expected).std() / expected.std()).item() < 0.1

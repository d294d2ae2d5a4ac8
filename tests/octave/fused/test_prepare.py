"""Arranged and prepared networks against torch's own operations."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from octvideo.octave import arrange, octavize, prepare_inference
from octvideo.octave.fused.arrange import ArrangedConv3d
from octvideo.octave.fused.conv import PreparedConv, PreparedOctConv
from octvideo.octave.fused.sequence import FusedSequence
from octvideo.octave.kernel.layout import export_form
from tests.octave.test_layer import KERNELS, last, random


@pytest.mark.parametrize("residual", ["none", "fits", "broadcast"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_prepared_convolutions_are_torchs(kernel: str, residual: str) -> None:
    size, stride, padding, dilation, groups = KERNELS[kernel]
    conv = nn.Conv3d(8, 16, size, stride, padding, dilation, groups)
    prepared = PreparedConv.of(conv)
    assert prepared is not None
    prepared.activation = "relu"
    with torch.inference_mode():
        for n, sizes in enumerate(((4, 7, 9), (3, 20, 30), (4, 7, 9))):  # packed once, then other sizes
            x = random(2, 8, *sizes, seed=n)
            expected = conv(x)
            added = {"none": 0.0, "fits": random(*expected.shape), "broadcast": random(2, 16, 1, 1, 1)}[residual]
            given = (last(added),) if isinstance(added, Tensor) else ()
            torch.testing.assert_close(prepared(last(x), *given), (expected + added).relu(), atol=1e-4, rtol=1e-4)
    for clone in (copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared)), prepared.double()):
        y = clone(last(x).to(clone.weight.dtype))
        torch.testing.assert_close(y.float(), expected.relu(), atol=1e-4, rtol=1e-4)


class Residual(nn.Module):
    """Two blocks, whose shortcuts are read where that forbids overwriting, or not."""

    def __init__(self, case: str) -> None:
        super().__init__()
        self.case = case
        self.first, self.norm = nn.Conv3d(3, 16, 3, padding=1), nn.BatchNorm3d(16)
        self.second, self.third = nn.Conv3d(16, 16, 1), nn.Conv3d(16, 16, 1)
        self.relu, self.same, self.pool = nn.ReLU(), nn.Identity(), nn.AdaptiveAvgPool3d(1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x))
        if self.case == "read later":
            return self.relu(x + self.second(x)) + x
        if self.case == "alias read later":
            alias = self.same(x)
            return self.relu(alias + self.second(x)) * x
        if self.case == "broadcast":
            return x + self.second(self.pool(x))
        if self.case == "broadcast shortcut":
            gate = self.third(self.pool(x))
            return self.relu(self.second(x) + gate)
        if self.case == "twice":
            y = self.second(x)
            return self.relu(y + y)
        if self.case == "one convolution called twice":
            return self.relu(x + self.second(self.second(x)))
        if self.case == "two convolutions":
            return self.relu(self.second(x) + self.third(x))
        return self.relu(x + self.second(x))


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize(
    "case",
    [
        "usual",
        "read later",
        "alias read later",
        "broadcast",
        "broadcast shortcut",
        "twice",
        "one convolution called twice",
        "two convolutions",
    ],
)
def test_overwrites_only_what_nobody_reads(case: str, alpha: float) -> None:
    torch.manual_seed(0)
    network = Residual(case).eval()
    nn.init.normal_(network.norm.running_mean)
    network = octavize(network, {"first": alpha, "second": alpha}) if alpha else network
    prepared, x = prepare_inference(network), last(random(2, 3, 4, 8, 8))
    with torch.inference_mode():
        for _ in range(2):
            torch.testing.assert_close(prepared(x), network(x), atol=1e-5, rtol=1e-5)


def test_preparation_takes_everything_on() -> None:
    """Norms are in the convolutions, which follow each other; the network given is as it was."""
    network = octavize(Residual("usual"), {"first": 0.25, "second": 0.25}).eval()
    prepared = prepare_inference(network)
    kinds = [type(m) for m in prepared.modules()]
    assert kinds.count(PreparedOctConv) == 2 and kinds.count(FusedSequence) == 1
    assert not any(issubclass(kind, nn.modules.batchnorm._BatchNorm) for kind in kinds)
    assert sum(isinstance(m, nn.BatchNorm3d) for m in network.modules()) == 1
    assert not any(p.requires_grad for p in prepared.parameters())


def test_weights_are_packed_for_the_size_at_hand() -> None:
    """Weights in oneDNN's order for another size are right, and reordered in every call."""
    conv = nn.Conv3d(16, 16, (1, 3, 3), padding=(0, 1, 1)).eval()
    prepared = PreparedConv.of(conv)
    assert prepared is not None
    with torch.inference_mode():
        for size in (4, 24, 4):
            x = last(random(1, 16, 2, size, size))
            torch.testing.assert_close(prepared(x), conv(x), atol=1e-5, rtol=1e-5)
            if prepared.onednn.packed is not None:  # this machine has the fused convolution
                assert prepared.onednn.packed[0] == (2, 16, size, size)


def test_a_strided_exchange_of_a_temporal_convolution() -> None:
    """Its kernel alone is two-dimensional, over pixels along time; with its stride in space it is not."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(3, 8, 1), nn.Conv3d(8, 16, (3, 1, 1), padding=(1, 0, 0)), nn.Conv3d(16, 4, 1))
    network = octavize(network, 0.5, octave_downsample="stride").eval()
    prepared, x = prepare_inference(network).bfloat16(), last(random(2, 3, 4, 8, 8))
    with torch.inference_mode():
        torch.testing.assert_close(prepared(x).float(), network(x), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("way", ["stride", "keep"])
def test_a_strided_octave_layer_reads_low_at_the_size_of_its_results(residual: bool, way: Any) -> None:
    """Two terms at one resolution, that cannot be joined: their strides differ."""
    torch.manual_seed(0)
    network = OctNet(residual).eval()
    octave = octavize(network, 0.5, octave_downsample=way).eval()
    prepared, x = prepare_inference(octave), last(random(2, 3, 4, 9, 8))
    with torch.inference_mode():
        torch.testing.assert_close(prepared(x), octave(x), atol=1e-5, rtol=1e-5)


class OctNet(nn.Module):
    """Two strided convolutions of clips, whose results are added to each other's or not."""

    def __init__(self, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.a, self.b = nn.Conv3d(3, 8, 1), nn.Conv3d(8, 8, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))
        self.c, self.d = nn.Conv3d(8, 8, 1, stride=(1, 2, 2)), nn.Conv3d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        return self.d((self.b(x) + self.c(x) if self.residual else self.b(x)).relu())


POOLS = [
    (nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)), True),
    (nn.MaxPool3d((1, 2, 3), (1, 3, 1)), True),
    (nn.MaxPool3d((2, 3, 3), (1, 2, 2)), False),
    (nn.MaxPool3d((1, 3, 3), (1, 2, 2), ceil_mode=True), False),
    (nn.MaxPool3d(3, 2, 1), False),
]


@pytest.mark.parametrize(("pool", "taken"), POOLS, ids=str)
def test_a_stem_takes_on_its_pool(pool: nn.MaxPool3d, taken: bool) -> None:
    stem = nn.Sequential(nn.Conv3d(3, 8, 3, padding=1), nn.ReLU(), pool).eval()
    prepared, x = prepare_inference(stem), last(random(2, 3, 4, 9, 8))
    assert any(isinstance(m, nn.MaxPool3d) for m in prepared.modules()) != taken
    for layout in (torch.channels_last_3d, torch.contiguous_format):  # fused, and by torch
        with torch.inference_mode():
            found = prepared(x.contiguous(memory_format=layout))
            torch.testing.assert_close(found, stem(x), atol=1e-5, rtol=1e-5)
        assert (found >= 0).all()


def test_a_network_within_a_module_is_prepared_too() -> None:
    class Frames(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = octavize(Residual("usual"), {"first": 0.25, "second": 0.25})

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x).mean() if x.sum() > 0 else self.network(-x).mean()

    frames, x = Frames().eval(), last(random(1, 3, 4, 8, 8))
    prepared = prepare_inference(frames)
    with torch.inference_mode():
        torch.testing.assert_close(prepared(x), frames(x), atol=1e-5, rtol=1e-5)
    assert not any(isinstance(module, nn.BatchNorm3d) for module in prepared.modules())
    assert any(isinstance(module, nn.BatchNorm3d) for module in frames.modules())


def test_a_network_that_cannot_be_traced_is_arranged() -> None:
    class Untraceable(Residual):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() > 0 else super().forward(-x)

    network, x = Untraceable("usual").eval(), last(random(1, 3, 4, 8, 8))
    prepared = prepare_inference(network)
    with torch.inference_mode():
        torch.testing.assert_close(prepared(x), network(x), atol=1e-5, rtol=1e-5)
    assert isinstance(prepared.first, ArrangedConv3d)


def test_arranging_keeps_what_is_there() -> None:
    network = nn.Sequential(nn.Conv3d(3, 8, 3, padding=1), nn.MaxPool3d((1, 2, 2)), nn.Conv3d(8, 8, 1))
    keys, x = list(network.state_dict()), random(1, 3, 4, 8, 8)
    expected = network(x)
    torch.testing.assert_close(arrange(network)(last(x)), expected, atol=1e-5, rtol=1e-5)
    assert list(network.state_dict()) == keys
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert isinstance(network[0], nn.Conv3d) and isinstance(network[0].weight, nn.Parameter)


def test_strided_octave_layers_are_exported() -> None:
    """As OpenVINO gets them: torch.export gives other objects for a layer's modules."""
    torch.manual_seed(0)
    layers = [nn.Conv3d(4, 8, 1), nn.Conv3d(8, 8, 1), nn.Conv3d(8, 8, 1, stride=(1, 2, 2)), nn.Conv3d(8, 8, 1)]
    network = prepare_inference(octavize(nn.Sequential(*layers), 0.5, octave_downsample="stride").eval())
    x = torch.randn(1, 4, 2, 16, 16)
    with torch.no_grad(), export_form("unfolded"):
        exported = torch.export.export(network, (x,)).module()
    torch.testing.assert_close(exported(x), network(x))

"""OctConv2d against public implementations of the layer, on identical weights: none of their code is here.

OCTVIDEO_PUBLIC_OCTCONV names files (joined by os.pathsep) that each define the layer. Two known ones:

- https://github.com/d-li14/octconv.pytorch, commit d639428f1772bff0e728aaef1d9741330b9dfebc, octconv.py
  (class OctaveConv);
- the package octconv 0.1.0 of PyPI (https://github.com/braincreators/octconv; class OctConv2d). Its archive:
  `pip download --no-deps octconv==0.1.0`; or install it, then no variable is needed.

Both keep four nn.Conv2d named conv_h2h, conv_h2l, conv_l2h, conv_l2l; our one weight is copied into them.

Where they agree with the paper (arXiv 1904.05049), they must agree with us: stride 1 and 2, first and last
layer, both alphas, sizes that are multiples of 4. Where they leave it, they are not asked:

- odd sizes: their pooling drops the last row and column (no ceil), so maps of other sizes do not fit;
- channels: they round alpha * channels down, once for low and once for high channels; whole numbers here;
- a strided layer at 2 mod 4 pools twice with the same loss; a bias would be added once for each path;
- alpha_out = 1 or alpha_in = 1 fails in one of them (it calls a path that is None), and groups cut low and
  high channels in blocks, where the ordinary weight of a grouped convolution has none (depthwise ones agree).
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from octvideo.octave import Octave, OctConv2d, split

pytestmark = pytest.mark.slow

VARIABLE = "OCTVIDEO_PUBLIC_OCTCONV"
HOW = (
    f"no public OctConv here: set {VARIABLE} to octconv.py of https://github.com/d-li14/octconv.pytorch at commit "
    "d639428f1772bff0e728aaef1d9741330b9dfebc, or to that of `pip download --no-deps octconv==0.1.0`"
)
CLASSES = ("OctaveConv", "OctConv2d")


def files() -> Iterator[Path]:
    if os.environ.get(VARIABLE):
        yield from map(Path, os.environ[VARIABLE].split(os.pathsep))
    elif (spec := importlib.util.find_spec("octconv")) and spec.submodule_search_locations:
        yield Path(spec.submodule_search_locations[0]) / "octconv.py"


@pytest.fixture(params=list(files()) or [None], ids=str)
def public(request: pytest.FixtureRequest) -> type[nn.Module]:
    if request.param is None:
        pytest.skip(HOW)
    spec = importlib.util.spec_from_file_location("public_octconv", request.param)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return next(getattr(module, name) for name in CLASSES if hasattr(module, name))


def build(public: type[nn.Module], ours: OctConv2d) -> nn.Module:
    """Their layer with our weight's four parts in its four convolutions."""
    alphas = ours.partition_in.alpha, ours.partition_out.alpha
    args = (ours.in_channels, ours.out_channels, ours.kernel_size[0])
    geometry = {"stride": ours.stride[0], "padding": ours.padding[0], "bias": False}
    if public.__name__ == "OctaveConv":
        options = {"alpha_in": alphas[0], "alpha_out": alphas[1], "groups": ours.groups}
        theirs = public(*args, dilation=ours.dilation[0], **geometry, **options)
    else:
        theirs = public(*args, alpha=alphas, **geometry)
    h_in = len(ours.partition_in.high) if ours.groups == 1 else 1
    h_out = len(ours.partition_out.high)
    parts = {
        "conv_h2h": ours.weight[:h_out, :h_in],
        "conv_h2l": ours.weight[h_out:, :h_in],
        "conv_l2h": ours.weight[:h_out, h_in:],
        "conv_l2l": ours.weight[h_out:, h_in:] if ours.groups == 1 else ours.weight[h_out:],
    }
    for name, part in parts.items():
        conv = getattr(theirs, name)
        if conv is not None:
            assert conv.weight.shape == part.shape, (name, conv.weight.shape, part.shape)
            conv.weight.data.copy_(part.detach())
    return theirs


def compare(public: type[nn.Module], ours: OctConv2d, size: tuple[int, int]) -> None:
    x = split(torch.randn(2, ours.in_channels, *size), ours.partition_in)
    y = ours(x)
    z = build(public, ours)(x if isinstance(x, Tensor) else tuple(x))
    want = (z[0] if isinstance(z, tuple) else z,) if isinstance(y, Tensor) else z
    for frequency, (a, b) in enumerate(zip((y,) if isinstance(y, Tensor) else y, want, strict=True)):
        assert a.shape == b.shape
        difference = (a - b).abs().max().item()
        print(f"{public.__name__} {ours} {('high', 'low')[frequency]}: largest difference {difference:.1e}")
        assert difference < 1e-5


ALPHAS = {
    "first": (0.0, 0.5),
    "first, quarter": (0.0, 0.25),
    "inner": (0.5, 0.5),
    "inner, quarter": (0.25, 0.25),
    "inner, changing": (0.25, 0.5),
    "last": (0.5, 0.0),
    "last, quarter": (0.25, 0.0),
    "ordinary": (0.0, 0.0),
}


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("alphas", ALPHAS.values(), ids=ALPHAS)
def test_stride_1(public: type[nn.Module], alphas: tuple[float, float], kernel: int) -> None:
    ours = OctConv2d(16, 24, kernel, padding=kernel // 2, bias=False, alpha_in=alphas[0], alpha_out=alphas[1])
    compare(public, ours, (12, 8))


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("alphas", ALPHAS.values(), ids=ALPHAS)
def test_stride_2(public: type[nn.Module], alphas: tuple[float, float], kernel: int) -> None:
    """Theirs pool every strided layer first, without low channels too: our downsample="pool"."""
    ours = OctConv2d(
        16, 24, kernel, 2, kernel // 2, bias=False, alpha_in=alphas[0], alpha_out=alphas[1], downsample="pool"
    )
    compare(public, ours, (16, 24))


@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise(public: type[nn.Module], stride: int) -> None:
    if public.__name__ != "OctaveConv":
        pytest.skip("this implementation has no groups")
    compare(public, OctConv2d(16, 16, 3, stride, 1, groups=16, bias=False, alpha_in=0.5, alpha_out=0.5), (16, 8))


def test_dilated(public: type[nn.Module]) -> None:
    if public.__name__ != "OctaveConv":
        pytest.skip("this implementation has no dilation")
    compare(public, OctConv2d(16, 24, 3, 1, 2, 2, bias=False, alpha_in=0.5, alpha_out=0.5), (12, 8))


def test_a_wrong_weight_would_be_seen(public: type[nn.Module]) -> None:
    ours = OctConv2d(16, 24, 3, padding=1, bias=False, alpha_in=0.5, alpha_out=0.5)
    x = split(torch.randn(2, 16, 8, 8), 0.5)
    assert isinstance(x, Octave)
    theirs = build(public, ours)
    theirs.conv_l2h.weight.data += 1e-3
    assert (ours(x).high - theirs(tuple(x))[0]).abs().max() > 1e-4
